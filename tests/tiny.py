# Copyright 2026 The glip_hf authors. MIT licence.
"""Small configurations, models and inputs: a forward takes some 20 ms."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertTokenizer, SwinConfig

from glip_hf import GlipConfig, GlipForGrounding, GlipImageProcessorPil, GlipProcessor

VOCABULARY = 60
FIXTURE_VOCABULARY = Path(__file__).parent / "fixtures" / "tokenizer" / "vocab.txt"


def tiny_swin(**overrides: Any) -> SwinConfig:
    options = {
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "out_indices": [2, 3, 4],
    }
    return SwinConfig(**{**options, **overrides})


def tiny_bert(**overrides: Any) -> BertConfig:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    return BertConfig(**{**options, **overrides})


def tiny_config(**overrides: Any) -> GlipConfig:
    options = {
        "backbone_config": tiny_swin(),
        "text_config": tiny_bert(),
        "d_model": 16,
        "num_blocks": 2,
        "fusion_hidden_size": 32,
        "fusion_heads": 4,
        "group_norm_groups": 4,
        "max_text_length": 32,
        "num_class_channels": 5,
    }
    return GlipConfig(**{**options, **overrides})


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that leave no path silent: the initial values keep offsets, gates and boxes near zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.rand(parameter.shape, generator=generator) - 0.5
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        spread = 0.3 if parameter.dim() == 1 else 3 / fan_in**0.5
        centre = 1.0 if parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.data.copy_(centre + spread * noise)
    return model


def tiny_model(seed: int = 0, **overrides: Any) -> GlipForGrounding:
    """In evaluation mode."""
    return lively(GlipForGrounding(tiny_config(**overrides)), seed).eval()


def tiny_inputs(
    images: int = 2, captions: int | None = None, height: int = 64, width: int = 96, length: int = 9, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    captions = images if captions is None else captions
    ids = torch.randint(5, VOCABULARY, (captions, length), generator=generator)
    return {
        "pixel_values": torch.randn(images, 3, height, width, generator=generator),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def tiny_labels(images: int = 2, length: int = 9) -> list[dict[str, Tensor]]:
    """Two boxes per image, of one and of two tokens."""
    positive_map = torch.zeros(2, length)
    positive_map[0, 1] = 1
    positive_map[1, 3:5] = 0.5
    boxes = torch.tensor([[4.0, 6.0, 60.0, 50.0], [30.0, 10.0, 90.0, 60.0]])
    return [{"boxes": boxes + index, "positive_map": positive_map} for index in range(images)]


def make_processor(vocabulary: Path = FIXTURE_VOCABULARY, **options: Any) -> GlipProcessor:
    """A processor of images of 32 pixels, with the vocabulary of tests/fixtures unless told otherwise."""
    images = GlipImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    return GlipProcessor(images, BertTokenizer(str(vocabulary)), **options)
