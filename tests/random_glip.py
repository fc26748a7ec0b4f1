"""A narrow GLIP with pseudo-random weights and a photo, for tests of what surrounds a model.

It is built in seconds, and every feature-map cell of every image gets some score, so there is always something to see.

    directory = save_random_model(tmp_path / "model")  # from_pretrained loads it
"""

import os
from pathlib import Path

import torch
from locations import FIXTURES
from PIL import Image
from transformers import BertTokenizer, SwinConfig
from transformers.models.bert.configuration_bert import BertConfig

from glip_hf import GlipConfig, GlipForGrounding, GlipImageProcessorPil, GlipProcessor
from glip_hf.demo import VOCABULARY

PHOTO = FIXTURES / "images" / "photo.jpg"
SEED = 6


def random_config() -> GlipConfig:
    """Every part of GLIP, each as narrow as it goes: about 0.6 M parameters."""
    return GlipConfig(
        backbone_config=SwinConfig(
            embed_dim=16,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 8],
            window_size=7,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(VOCABULARY.read_text(encoding="utf-8").split()),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        ),
        d_model=32,
        num_blocks=2,
        fusion_hidden_size=64,
        fusion_heads=4,
    )


def random_model() -> GlipForGrounding:
    """The small model in evaluation mode, with the same weights on every call; the global seed is
    left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = GlipForGrounding(random_config())
        # Fresh heads score every place alike and low; wider ones pick some places, so that there is
        # something to see.
        head = model.head
        for name, std in (("text_projection", 1.0), ("centerness", 0.5), ("bbox_pred", 0.02)):
            getattr(head, name).weight.normal_(std=std)
        head.bias0.fill_(-1.0)
    return model.eval()


def random_processor(shortest_edge: int = 320) -> GlipProcessor:
    """A processor with our own vocabulary of a few hundred words, and small pictures for speed."""
    longest_edge = round(shortest_edge * 5 / 3)
    tokenizer = BertTokenizer(vocab=str(VOCABULARY), do_lower_case=True)
    return GlipProcessor(
        image_processor=GlipImageProcessorPil(size={"shortest_edge": shortest_edge, "longest_edge": longest_edge}),
        tokenizer=tokenizer,
    )


def save_random_model(directory: str | os.PathLike) -> Path:
    """Write model and processor to a directory that `from_pretrained` loads; an existing one is
    overwritten.

    Returns:
        the directory.
    """
    path = Path(directory)
    random_model().save_pretrained(path)
    random_processor().save_pretrained(path)
    return path


def load_photo() -> Image.Image:
    """The photo, 640 x 480 RGB; `scripts/draw_photo.py` draws it."""
    with Image.open(PHOTO) as photo:
        return photo.convert("RGB")
