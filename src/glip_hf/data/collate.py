# Copyright 2026 The glip_hf authors. MIT licence.
"""Samples to a batch that `GlipForGrounding.forward` takes.

Letters: B images (each with one caption), T tokens of the longest caption of the batch, K boxes per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

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
        tokens = [torch.tensor(sample["input_ids"]) for sample in samples]
        input_ids = pad_sequence(tokens, batch_first=True, padding_value=self.pad_token_id)
        labels = []
        for sample in samples:
            label = {"boxes": torch.from_numpy(sample["boxes"])}
            for key in ("positive_map", "greenlight_map"):
                if key in sample:
                    values = torch.from_numpy(sample[key]).float()
                    label[key] = pad(values, (0, input_ids.shape[1] - values.shape[-1]))
            labels.append(label)
        batch = {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "original_sizes": torch.tensor([sample["original_size"] for sample in samples]),
            "input_ids": input_ids,
            "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
            "labels": labels,
        }
        if self.with_info:
            batch["info"] = [sample["info"] for sample in samples]
        return batch
