# Copyright 2026 The glip_hf authors. MIT licence.
"""Samples to a batch that `GlipForGrounding.forward` takes.

Letters: B images (each with one caption), T tokens of the longest caption of the batch, K boxes per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..image_processing_pil_glip import common_padded_size
from .transforms import stack_padded


@dataclass
class GroundingCollator:
    """`collate_fn` for samples of `GroundingDataset`.

    Attributes:
        pad_token_id: of the tokenizer.
        size_divisor: padded height and width are multiples of it.
        with_info: add `info`, a list of dictionaries on the origin of each sample (see `GroundingDataset`). Remove it
            before the batch goes to the model.
    """

    pad_token_id: int = 0
    size_divisor: int = 32
    with_info: bool = False

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values` [B, 3, H, W] float32, `pixel_mask` [B, H, W] int64, `original_sizes` [B, 2] int64 (height,
        width), `input_ids` and `attention_mask` [B, T] int64, `labels`: B dictionaries of `boxes` [K, 4] float32
        xyxy in pixels of the network's input and `positive_map` [K, T] float32, 0 or 1 (and `greenlight_map`
        [T] float32 where the samples have it)."""
        images = [sample["pixel_values"] for sample in samples]
        size = common_padded_size([tuple(p.shape[1:]) for p in images], self.size_divisor)
        pixel_values, pixel_mask = stack_padded(images, size)
        length = max(len(sample["input_ids"]) for sample in samples)
        input_ids = torch.full((len(samples), length), self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(len(samples), length, dtype=torch.int64)
        labels = []
        for index, sample in enumerate(samples):
            tokens = len(sample["input_ids"])
            input_ids[index, :tokens] = torch.tensor(sample["input_ids"])
            attention_mask[index, :tokens] = 1
            positive_map = torch.zeros(len(sample["boxes"]), length)
            positive_map[:, :tokens] = torch.from_numpy(sample["positive_map"])
            label = {"boxes": torch.from_numpy(sample["boxes"]), "positive_map": positive_map}
            if "greenlight_map" in sample:
                label["greenlight_map"] = torch.zeros(length)
                label["greenlight_map"][:tokens] = torch.from_numpy(sample["greenlight_map"])
            labels.append(label)
        batch = {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "original_sizes": torch.tensor([sample["original_size"] for sample in samples]),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        }
        if self.with_info:
            batch["info"] = [sample["info"] for sample in samples]
        return batch
