# Copyright 2026 The glip_hf authors. MIT licence.
"""Resizing, flipping and cropping of an image together with its boxes, and changes of its colours.

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
        vertical_flip: probability of a vertical flip, for images without an up and down: from microscopes, from above.
    """

    sizes: tuple[int, ...] = (480, 560, 640, 720, 800)
    longest: int = 1333
    flip: float = 0.5
    vertical_flip: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.sizes or min(self.sizes) < 1 or not 0 <= self.flip <= 1 or not 0 <= self.vertical_flip <= 1:
            raise ValueError(f"{self}: sizes are pixels, flip and vertical_flip are probabilities.")

    @classmethod
    def evaluation(cls, size: int = 800, longest: int = 1333) -> "ImageTransform":
        """One size, no flip."""
        return cls((size,), longest, 0.0)

    def __call__(
        self, image: Any, processor: Any, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, int], tuple[int, ...]]:
        """An image as `pixel_values` [3, H, W] float32 without padding.

        Args:
            image: anything `processor`, a GLIP image processor, takes as an image.

        Returns:
            the pixels, (height, width) of the upright image before resizing, and the axes of the pixels along which it
            was flipped, -1 (horizontally) and -2.
        """
        size = self.sizes[int(rng.integers(len(self.sizes)))]
        axes = (-1,) if rng.random() < self.flip else ()
        if self.vertical_flip and rng.random() < self.vertical_flip:
            axes += (-2,)
        made = processor(
            images=image, size={"shortest_edge": size, "longest_edge": self.longest}, do_pad=False, return_tensors="pt"
        )
        pixels = made["pixel_values"][0]
        height, width = made["original_sizes"][0].tolist()
        return (pixels.flip(axes) if axes else pixels), (height, width), axes


VISIBLE = 0.3
"""Share of a box's area that a crop must show for the box to be kept."""


def random_crop(
    pixels: Tensor, boxes: np.ndarray, side: int, rng: np.random.Generator, tries: int = 10
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """A part of an image at a random place, of its aspect ratio and with a shorter side of at most `side` pixels.

    Args:
        pixels: [3, H, W]; boxes: [K, 4] in its pixels.
        tries: places to look at for one that shows a box, where the image has any.

    Returns:
        the part, the boxes in its pixels [K, 4], clipped, and which of them it shows [K] bool.
    """
    height, width = pixels.shape[1:]
    ratio = min(1.0, side / min(height, width))
    new_height, new_width = round(height * ratio), round(width * ratio)
    for _ in range(tries):
        top, left = int(rng.integers(height - new_height + 1)), int(rng.integers(width - new_width + 1))
        moved = boxes - np.array([left, top] * 2, dtype=boxes.dtype)
        clipped = moved.clip(0, np.array([new_width - 1, new_height - 1] * 2, dtype=boxes.dtype))
        visible = (clipped[:, 2:] > clipped[:, :2]).all(axis=1) & (box_areas(clipped) >= VISIBLE * box_areas(moved))
        if visible.any() or not len(boxes):
            break
    return pixels[:, top : top + new_height, left : left + new_width], clipped, visible


def jitter_colors(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Normalised pixels [3, H, W] with saturation and contrast times, and brightness plus, up to `strength` around 1
    and 0 (standard deviations)."""
    saturation, contrast, brightness = rng.uniform(-strength, strength, 3).tolist()
    grey = pixels.mean(0, keepdim=True)
    pixels = grey + (pixels - grey) * (1 + saturation)
    mean = grey.mean()
    return mean + (pixels - mean) * (1 + contrast) + brightness


def flip_boxes(boxes: np.ndarray, length: int, axis: int = -1) -> np.ndarray:
    """Boxes [K, 4] after a flip of an image that is `length` pixels wide: x becomes length - x - 1. With axis -2 the
    image is `length` pixels high, and the same is done to y."""
    low = -1 - axis
    flipped = boxes.copy()
    flipped[:, [low, low + 2]] = np.float32(length) - boxes[:, [low + 2, low]] - np.float32(1)
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
