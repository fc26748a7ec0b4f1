# Copyright 2026 The glip_hf authors. MIT licence.
"""Resizing and flipping of an image together with its boxes.

Boxes are xyxy pixels with both corners inside. Letters: K boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageTransform:
    """From an image to the model's input, by the image processor, at a random scale.

    Attributes:
        sizes: shortest sides to choose from, pixels.
        longest: longest side allowed, pixels.
        flip: probability of a horizontal flip. The caption keeps its "left" and "right", as in the original.
    """

    sizes: tuple[int, ...] = (480, 560, 640, 720, 800)
    longest: int = 1333
    flip: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.sizes or min(self.sizes) < 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"{self}: sizes are pixels, flip is a probability.")

    @classmethod
    def evaluation(cls, size: int = 800, longest: int = 1333) -> "ImageTransform":
        """One size, no flip."""
        return cls((size,), longest, 0.0)

    def __call__(self, image: Any, processor: Any, rng: np.random.Generator) -> tuple[Tensor, tuple[int, int], bool]:
        """An image as `pixel_values` [3, H, W] float32 without padding.

        Args:
            image: anything `processor`, a GLIP image processor, takes as an image.

        Returns:
            the pixels, (height, width) of the upright image before resizing, and whether it was flipped.
        """
        size = self.sizes[int(rng.integers(len(self.sizes)))]
        flipped = bool(rng.random() < self.flip)
        made = processor(
            images=image, size={"shortest_edge": size, "longest_edge": self.longest}, do_pad=False, return_tensors="pt"
        )
        pixels = made["pixel_values"][0]
        height, width = made["original_sizes"][0].tolist()
        return (pixels.flip(-1) if flipped else pixels), (height, width), flipped


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes [K, 4] after a horizontal flip of an image `width` pixels wide: x becomes width - x - 1."""
    flipped = boxes.copy()
    flipped[:, [0, 2]] = np.float32(width) - boxes[:, [2, 0]] - np.float32(1)
    return flipped


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """[K] square pixels, both corners counted."""
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def stack_padded(images: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images [3, h, w] as one batch with zeros at the right and bottom.

    Returns:
        `pixel_values` [B, 3, H, W] float32 and `pixel_mask` [B, H, W] int64, 1 on the image.
    """
    pixels = torch.zeros(len(images), 3, *size)
    mask = torch.zeros(len(images), *size, dtype=torch.int64)
    for index, image in enumerate(images):
        height, width = image.shape[1:]
        pixels[index, :, :height, :width] = image
        mask[index, :height, :width] = 1
    return pixels, mask
