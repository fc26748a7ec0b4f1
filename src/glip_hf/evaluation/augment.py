# Copyright 2026 The glip_hf authors. MIT licence.
"""Joining detections: of several captions of a picture, and of several views (sizes, mirrored) of it.

Boxes are xyxy in pixels of the photo with both corners inside (a mirrored x is width - 1 - x).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..boxes_glip import box_iou

Found = dict[str, Tensor]  # scores [K], boxes [K, 4], labels [K]


@dataclass(frozen=True)
class View:
    """How a photo is shown to the model: `short_side` pixels (None: the processor's size), mirrored or not."""

    short_side: int | None = None
    flip: bool = False


def make_views(scales: Sequence[int] = (), flip: bool = False) -> list[View]:
    """Every scale, plain and (with `flip`) mirrored; no scale stands for the processor's own."""
    sides: list[int | None] = list(scales) or [None]
    return [View(side, mirrored) for side in sides for mirrored in ((False, True) if flip else (False,))]


def unflip(found: Found, width: int) -> Found:
    """Detections of a mirrored photo, in the photo."""
    x1, y1, x2, y2 = found["boxes"].unbind(-1)
    return {**found, "boxes": torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=-1)}


def join(parts: Sequence[Found], limit: int | None = None) -> Found:
    """All detections by descending score, at most `limit`; a tie at the limit keeps all, as in post-processing."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("scores", "boxes", "labels")}
    order = joined["scores"].argsort(descending=True, stable=True)
    if limit is not None and len(order) > limit:
        ranked = joined["scores"][order]
        order = order[ranked >= ranked[limit - 1]]
    return {name: value[order] for name, value in joined.items()}


def vote(found: Found, threshold: float) -> Found:
    """Box voting (arXiv 1505.01749): overlapping detections of a label become one.

    By descending score, a detection gathers all left of its label with IoU >= `threshold`; the box is their mean
    weighted by score, the score that of the best.
    """
    scores, boxes, labels = found["scores"], found["boxes"], found["labels"]
    order = scores.argsort(descending=True, stable=True)
    scores, boxes, labels = scores[order], boxes[order], labels[order]
    out_scores, out_boxes, out_labels = [scores[:0]], [boxes[:0]], [labels[:0]]
    for label in labels.unique():
        rows = labels == label
        own_boxes, own_scores = boxes[rows], scores[rows]
        near = box_iou(own_boxes, own_boxes) >= threshold
        left = torch.ones(len(own_boxes), dtype=torch.bool, device=boxes.device)
        for index in range(len(own_boxes)):
            if not left[index]:
                continue
            group = near[index] & left
            group[index] = True
            left &= ~group
            weights = own_scores[group, None]
            out_boxes.append((own_boxes[group] * weights).sum(0, keepdim=True) / weights.sum())
            out_scores.append(own_scores[index : index + 1])
            out_labels.append(label[None])
    return {"scores": torch.cat(out_scores), "boxes": torch.cat(out_boxes), "labels": torch.cat(out_labels)}


__all__ = ["Found", "View", "join", "make_views", "unflip", "vote"]
