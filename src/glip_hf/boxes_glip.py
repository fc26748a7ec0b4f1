# Copyright 2026 The glip_hf authors. MIT licence.
"""Anchors, box coder, IoU and non-maximum suppression.

Boxes are xyxy in pixels. GLIP inherits the inclusive convention of early detectors: a box covers the pixels from
x1 to x2 *including* both, so it is `x2 - x1 + PIXEL` wide. Every width, area and IoU here follows it.

Letters: A locations, K boxes, L levels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.utils import is_torchvision_available

from .ops_glip import constant, shape_constants
from .values_glip import check_number

PIXEL = 1.0  # added to a difference of coordinates by the inclusive convention
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # scale of the four regression targets (Faster R-CNN, arXiv 1506.01497)
MAX_LOG_SCALE = math.log(1000.0 / 16)  # largest decoded log ratio of a side to that of its anchor; keeps `exp` finite
NMS_BLOCK = 512


def make_anchors(
    spatial_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scale: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """One square anchor per feature-map cell, level after level, row-major, never clipped.

    Args:
        spatial_shapes: (height, width) of each level, in feature-map cells.
        strides: of each level, in pixels.
        scale: side of an anchor in strides.

    Returns:
        [A, 4] float32, xyxy in pixels: centre `k * stride + (stride - 1) / 2`, corners `(side - 1) / 2` away. Calls
        with the same arguments may give the same tensor: do not change it.
    """
    shapes = tuple((height, width) for height, width in spatial_shapes)
    return _make_anchors(shapes, tuple(strides), scale, torch.get_default_device() if device is None else device)


@shape_constants(maxsize=16)
def _make_anchors(
    spatial_shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...], scale: int, device: torch.device | str
) -> Tensor:
    anchors = []
    for (height, width), stride in zip(spatial_shapes, strides):
        middle, half = (stride - PIXEL) / 2, (scale * stride - PIXEL) / 2
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + middle
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + middle
        centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).reshape(-1, 2)
        anchors.append(torch.cat([centres - half, centres + half], dim=-1))
    return torch.cat(anchors)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2] + PIXEL


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Regression targets [..., 4] of boxes against anchors, both [..., 4] xyxy pixels; inverse of `decode_boxes`."""
    centre, size = _centre_form(boxes)
    anchor_centre, anchor_size = _centre_form(anchors)
    weights = constant(CODER_WEIGHTS, boxes.device, boxes.dtype)
    return weights * torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], dim=-1)


def decode_boxes(regression: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy pixels of a regression [..., 4] relative to anchors [A, 4].

    Log ratios of the sides are capped at `MAX_LOG_SCALE`.
    """
    anchor_centre, anchor_size = _centre_form(anchors)
    deltas = regression / constant(CODER_WEIGHTS, regression.device, regression.dtype)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = (deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor_size - PIXEL) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area in pixels of boxes [..., 4]; inclusive convention, empty boxes count 0."""
    return (boxes[..., 2:] - boxes[..., :2] + PIXEL).clamp(min=0).prod(-1)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union [K1, K2] of boxes [K1, 4] and [K2, 4]; inclusive convention, 0 between empty boxes."""
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = (bottom_right - top_left + PIXEL).clamp(min=0).prod(-1)
    union = box_area(boxes1)[:, None] + box_area(boxes2) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def clip_boxes(boxes: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Boxes [..., 4] xyxy clipped to the image: x in [0, width - 1], y in [0, height - 1]."""
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width - PIXEL)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height - PIXEL)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _overlapping_pairs(boxes: Tensor, labels: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Index pairs (first, second), first < second, of same-label boxes whose IoU exceeds the threshold.

    Expects boxes sorted by label, so that a block of rows is compared with the columns of its own labels only.
    """
    ends = torch.searchsorted(labels, labels, right=True)
    firsts, seconds = [], []
    for start in range(0, len(boxes), NMS_BLOCK):
        rows = slice(start, min(start + NMS_BLOCK, len(boxes)))
        columns = slice(start, int(ends[rows.stop - 1]))
        hit = box_iou(boxes[rows], boxes[columns]) > iou_threshold
        hit &= labels[rows, None] == labels[None, columns]
        first, second = hit.triu(1).nonzero(as_tuple=True)
        firsts.append(first + start)
        seconds.append(second + start)
    return torch.cat(firsts), torch.cat(seconds)


def nms_torch(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy class-wise NMS without a compiled operator; see `nms`.

    A box is kept if no kept box of higher score overlaps it. The rule is applied to all boxes at once until nothing
    changes; round k settles every box whose chain of overlaps is at most k long, so the end is the greedy result.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    first, second = _overlapping_pairs(boxes[order], labels[order].contiguous(), iou_threshold)
    keep = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        settled = torch.ones_like(keep)
        settled[second[keep[first]]] = False
        if torch.equal(settled, keep):
            break
        keep = settled
    kept = order[keep].sort().values  # equal scores stay in the order given
    return kept[scores[kept].argsort(descending=True, stable=True)]


def nms_torchvision(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """The same by torchvision's operator; see `nms`.

    Classes are shifted apart so that they never overlap, in float64: a float32 offset costs up to 0.01 pixel.
    """
    if is_torchvision_available():  # custom code may import under such a condition only
        from torchvision.ops import nms as torchvision_nms

    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    # As half-open boxes, whose areas in torchvision are the inclusive ones.
    shifted = boxes.double() + boxes.new_tensor([0, 0, PIXEL, PIXEL])
    shifted = shifted - shifted.min()
    shifted = shifted + (labels * (shifted.max() + PIXEL))[:, None]
    return torchvision_nms(shifted, scores.double(), iou_threshold)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each label.

    Args:
        boxes: [K, 4] xyxy pixels (areas are inclusive).
        scores: [K].
        labels: [K] int64; boxes of different labels never suppress each other.
        iou_threshold: a box is suppressed when its IoU with a kept box of higher score is *above* this.

    Returns:
        indices of the kept boxes, int64, by descending score.

    Raises:
        ValueError: for other shapes, and for NaN anywhere.
    """
    shapes = [tuple(value.shape) for value in (boxes, scores, labels)]
    if shapes != [(len(boxes), 4), (len(boxes),), (len(boxes),)]:
        raise ValueError(f"boxes, scores and labels of shapes {shapes} are not [K, 4], [K] and [K].")
    iou_threshold = check_number("iou_threshold", iou_threshold)
    if boxes.isnan().any() or scores.isnan().any():
        raise ValueError("boxes or scores are NaN: the weights or the input of the model that made them are damaged.")
    if boxes.is_cuda and is_torchvision_available():
        return nms_torchvision(boxes, scores, labels, iou_threshold)
    return nms_torch(boxes, scores, labels, iou_threshold)
