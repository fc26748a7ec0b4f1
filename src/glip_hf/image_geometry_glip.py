# Copyright 2026 The glip_hf authors. MIT licence.
"""Sizes and boxes on the way from a photo to the network input: plain numbers, no pixels.

Sizes are `(height, width)` in pixels. Boxes are `xyxy` with both corners *inside* the box (GLIP's
"+1" convention: a box one pixel wide has x1 == x2), so COCO's `x, y, w, h` becomes
`x, y, x + w - 1, y + h - 1`.

The rules were checked against the recorded results of the original implementation
(`parity/preprocessing/cases.json`, `data/transforms/*.json` of the project's reference data).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def shortest_edge_size(height: int, width: int, shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """GLIP's size rule: the short side becomes `shortest_edge` unless the long one gets too long.

    * If `long / short * shortest_edge > longest_edge`, the short side becomes
      `round(longest_edge * short / long)` instead (Python's rounding: half to even).
    * The long side follows from the *rounded* short side and is cut with `int()`. So it can miss
      `longest_edge` on either side: 2000 x 1000 gives 1332 x 666. Transformers' own
      `get_size_with_aspect_ratio` computes 1333 x 666 there, which is why it is not used.
    * A picture whose short side is right already keeps its size.

    From `2 * longest_edge : 1` on, the rounded short side is 0 and the original fails; here such a
    strip becomes one pixel by `longest_edge`.
    """
    short, long = min(height, width), max(height, width)
    target = shortest_edge
    if longest_edge is not None and long / short * target > longest_edge:
        target = round(longest_edge * short / long)
    if target == short:
        return height, width
    if target < 1:
        new_short, new_long = 1, int(longest_edge)
    else:
        new_short, new_long = target, int(target * long / short)
    return (new_long, new_short) if width < height else (new_short, new_long)


def resized_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The size of the network input before padding, for any of the supported `size` dictionaries.

    Args:
        height, width: size of the upright photo, at least 1 pixel each.
        size: `{"shortest_edge"}` with or without `"longest_edge"` (GLIP's rule),
            `{"height", "width"}` (exactly that size) or `{"max_height", "max_width"}` (the largest
            that fits, ratio kept).

    Raises:
        ValueError: if `size` has another combination of keys.
    """
    keys = set(size)
    if keys in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return shortest_edge_size(height, width, size["shortest_edge"], size.get("longest_edge"))
    if keys == {"height", "width"}:
        return size["height"], size["width"]
    if keys == {"max_height", "max_width"}:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    raise ValueError(
        f"size={dict(size)} is not supported: give 'shortest_edge' (and 'longest_edge'), "
        "'height' and 'width', or 'max_height' and 'max_width'."
    )


def common_padded_size(sizes: list[tuple[int, int]], divisor: int | None) -> tuple[int, int]:
    """The smallest size that holds every picture of a batch and is a multiple of `divisor`."""
    divisor = divisor or 1
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [K, 4] with corners moved into the picture: x to 0..width-1, y to 0..height-1."""
    limits = np.array([width - 1, height - 1, width - 1, height - 1], dtype=boxes.dtype)
    return np.clip(boxes, 0, limits)


def coco_to_target(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, np.ndarray]:
    """One picture's COCO record as a training target in pixels of the upright photo.

    As GLIP's COCO reader does it: crowd regions are left out, boxes are clipped to the picture and
    those without extent (x2 <= x1 or y2 <= y1 after clipping) dropped, together with their class.

    Args:
        annotation: `{"image_id": int, "annotations": [{"bbox": [x, y, w, h], "category_id": int,
            "area": float (default w * h), "iscrowd": 0 or 1 (default 0)}, ...]}`; the list may be
            empty.

    Returns:
        `boxes` [K, 4] float32 xyxy, `class_labels` [K] int64, `area` [K] float32, `image_id` [1]
        int64, `orig_size` [2] int64 and `size` [2] int64 (height, width; equal until
        `resize_target`).

    Raises:
        ValueError: if a key is missing, an id is no integer or a box is not four finite numbers.
    """
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= set(annotation):
        raise ValueError(
            "An annotation is a dict with 'image_id' and 'annotations' (COCO detection format), "
            f"got {_shorten(annotation)}."
        )
    for thing in annotation["annotations"]:
        if not isinstance(thing, Mapping) or not {"bbox", "category_id"} <= set(thing):
            raise ValueError(
                f"Image {annotation['image_id']!r}: an annotation needs 'bbox' and 'category_id', "
                f"got {_shorten(thing)}."
            )
        if len(thing["bbox"]) != 4 or not np.isfinite(np.asarray(thing["bbox"], float)).all():
            raise ValueError(
                f"Image {annotation['image_id']!r}: 'bbox' must be four finite numbers x, y, w, h, "
                f"got {thing['bbox']!r}."
            )

    things = [thing for thing in annotation["annotations"] if not thing.get("iscrowd", 0)]
    xywh = np.array([thing["bbox"] for thing in things], dtype=np.float32).reshape(-1, 4)
    far_corners = xywh[:, :2] + np.clip(xywh[:, 2:] - np.float32(1), 0, None)
    boxes = clip_boxes(np.concatenate([xywh[:, :2], far_corners], axis=1), height, width)
    area = [thing.get("area", thing["bbox"][2] * thing["bbox"][3]) for thing in things]
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return {
        "boxes": boxes[keep],
        "class_labels": _integers([thing["category_id"] for thing in things], "category_id")[keep],
        "area": np.array(area, dtype=np.float32)[keep],
        "image_id": _integers([annotation["image_id"]], "image_id"),
        "orig_size": np.array([height, width], dtype=np.int64),
        "size": np.array([height, width], dtype=np.int64),
    }


def resize_target(target: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The target after its picture was resized to `size`: boxes, areas and `size` follow.

    Corners are simply multiplied by new / old width and height, in float32. (That is the original's
    way; with inclusive corners it is half a pixel off at the far edge.)
    """
    scale_y, scale_x = (new / int(old) for new, old in zip(size, target["size"], strict=True))
    return {
        **target,
        "boxes": target["boxes"] * np.array([scale_x, scale_y] * 2, dtype=np.float32),
        "area": target["area"] * np.float32(scale_x * scale_y),
        "size": np.array(size, dtype=np.int64),
    }


def _integers(values: list[Any], name: str) -> np.ndarray:
    """`values` as int64 [K]; refuses what is not a whole number rather than rounding it."""
    if not all(isinstance(value, int | np.integer) for value in values):
        raise ValueError(f"{name!r} must be an integer, got {_shorten(values)}.")
    return np.array(values, dtype=np.int64)


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
