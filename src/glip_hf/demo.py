# Copyright 2026 The glip_hf authors. MIT licence.
"""A small model and a photo that need no download: for `make demo`, the README, the examples and
the tests.

    directory = build_demo_model("out/demo/model")  # seconds; from_pretrained loads it
    image = load_demo_photo()  # two cats on a pink sofa, drawn by us

The weights are pseudo-random from a fixed seed. Nothing was trained: boxes come out, and they mean
nothing (`DEMO_NOTICE` says so to whoever sees them).
"""

import os
from pathlib import Path

import torch
from PIL import Image
from transformers import BertTokenizer, SwinConfig
from transformers.models.bert.configuration_bert import BertConfig

from .configuration_glip import GlipConfig
from .image_processing_pil_glip import GlipImageProcessorPil
from .modeling_glip import GlipForGrounding
from .processing_glip import GlipProcessor

ASSETS = Path(__file__).parent / "assets"
DEMO_PHOTO = ASSETS / "photo.jpg"
DEMO_CAPTION = "two cats on a pink sofa"
DEMO_NAMES = ("cat", "remote control")
DEMO_NOTICE = (
    "This is the demonstration model: its weights are random, not trained, so the boxes mean "
    "nothing. Convert a released checkpoint for real ones (README.md)."
)
SEED = 6


def demo_config() -> GlipConfig:
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
            vocab_size=len((ASSETS / "vocab.txt").read_text(encoding="utf-8").split()),
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


def scenes_config() -> GlipConfig:
    """The small GLIP that learns generated scenes: all parts at reduced width, 1.6 M parameters.

    No dropout of any kind: no scene is seen twice. Anchors of 32 pixels and up, for things of 14 to 70.
    """
    return GlipConfig(
        backbone_config=SwinConfig(
            embed_dim=24,
            depths=[2, 1, 2, 1],
            num_heads=[1, 2, 4, 8],
            window_size=7,
            drop_path_rate=0.0,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len((ASSETS / "vocab.txt").read_text(encoding="utf-8").split()),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=64,
        num_blocks=2,
        fusion_hidden_size=128,
        fusion_heads=4,
        fusion_dropout=0.0,
        dropblock_prob=0.0,
        anchor_scale=4,
        num_class_channels=0,
    )


def demo_model() -> GlipForGrounding:
    """The small model in evaluation mode, with the same weights on every call; the global seed is
    left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = GlipForGrounding(demo_config())
        # Fresh heads score every place alike and low; wider ones pick some places, so that there is
        # something to see.
        head = model.head
        for name, std in (("text_projection", 1.0), ("centerness", 0.5), ("bbox_pred", 0.02)):
            getattr(head, name).weight.normal_(std=std)
        head.bias0.fill_(-1.0)
    return model.eval()


def demo_processor(shortest_edge: int = 320) -> GlipProcessor:
    """A processor with our own vocabulary of a few hundred words, and small pictures for speed."""
    longest_edge = round(shortest_edge * 5 / 3)
    tokenizer = BertTokenizer(vocab=str(ASSETS / "vocab.txt"), do_lower_case=True)
    return GlipProcessor(
        image_processor=GlipImageProcessorPil(size={"shortest_edge": shortest_edge, "longest_edge": longest_edge}),
        tokenizer=tokenizer,
    )


def build_demo_model(directory: str | os.PathLike) -> Path:
    """Write model and processor to a directory that `from_pretrained` loads; an existing one is
    overwritten.

    Returns:
        the directory.
    """
    path = Path(directory)
    demo_model().save_pretrained(path)
    demo_processor().save_pretrained(path)
    return path


def load_demo_photo() -> Image.Image:
    """The photo that the package ships, 640 x 480 RGB; `scripts/draw_demo_photo.py` draws it."""
    with Image.open(DEMO_PHOTO) as photo:
        return photo.convert("RGB")
