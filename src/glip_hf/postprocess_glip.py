# Copyright 2026 The glip_hf authors. MIT licence.
"""From the model's raw output to boxes with integer labels: the one path of processor, pipelines and evaluators.

Letters: B pictures, N captions, A locations (p3 to p7, row-major), T text tokens, C classes a caption, K detections.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .boxes_glip import clip_boxes, nms

AGGREGATIONS = ("mean", "max", "power", "onehot")


def aggregate_tokens(probabilities: Tensor, positive_map: Tensor, aggregation: str = "mean") -> Tensor:
    """Class scores from token probabilities.

    Args:
        probabilities: [A, T] float in 0..1, sigmoid of the token logits.
        positive_map: [C, T] bool, the tokens of each class.
        aggregation: how a class's tokens are joined: `"mean"`; `"max"`; `"power"`, the geometric mean; or
            `"onehot"`, class c reads column c whatever its tokens (captions of one made-up token a class).

    Returns:
        [A, C] float; 0 for a class without tokens.

    Raises:
        ValueError: for an unknown aggregation, or `"onehot"` with more classes than tokens.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r} is unknown: choose one of {', '.join(AGGREGATIONS)}.")
    if aggregation == "onehot":
        if len(positive_map) > probabilities.shape[1]:
            raise ValueError(
                f"aggregation='onehot' reads one column a class, but there are {len(positive_map)} classes and "
                f"{probabilities.shape[1]} tokens: use fewer classes or another aggregation."
            )
        return probabilities[:, : len(positive_map)]
    counts = positive_map.sum(-1)
    if aggregation == "max":
        # [C, longest class]: the token indices of each class, real ones first
        tokens = positive_map.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        tokens = tokens[:, : max(int(counts.max()), 1)] if len(tokens) else tokens[:, :1]
        real = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        scores = probabilities[:, tokens].masked_fill(~real, 0).amax(-1)
    else:
        shares = (positive_map / counts.clamp(min=1)[:, None]).to(probabilities.dtype).t()
        if aggregation == "mean":
            scores = probabilities @ shares
        else:
            # The logarithm of 0, times a share of 0, must not be NaN.
            scores = (probabilities.log().clamp(min=torch.finfo(probabilities.dtype).min) @ shares).exp()
    return scores.masked_fill(counts == 0, 0)


def _top_candidates(
    class_scores: Tensor, centerness: Tensor, level_sizes: Sequence[int], score_threshold: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of every level: scores, locations and classes, each [K]."""
    products = class_scores * centerness[:, None]
    eligible = class_scores > score_threshold
    num_classes = class_scores.shape[1]
    picked, start = [], 0
    for size in level_sizes:
        level = slice(start, start + size)
        pairs = eligible[level].flatten().nonzero().squeeze(1)
        if len(pairs) > top_k:
            pairs = pairs[products[level].flatten()[pairs].topk(top_k).indices]
        picked.append(pairs + start * num_classes)
        start += size
    pairs = torch.cat(picked)
    return products.flatten()[pairs].sqrt(), pairs // num_classes, pairs % num_classes


def _detect(outputs: Any, index: int, aggregation: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Detections of caption `index`, after NMS, in pixels of the network's input."""
    label_ids = outputs.label_ids[index]
    height, width = outputs.image_sizes[index].tolist()
    class_scores = aggregate_tokens(
        outputs.logits[index].float().sigmoid(), outputs.positive_map[index].bool(), aggregation
    )
    class_scores = class_scores.masked_fill(label_ids < 0, 0)
    scores, locations, classes = _top_candidates(
        class_scores,
        outputs.centerness_logits[index].float().sigmoid(),
        outputs.spatial_shapes[index].prod(-1).tolist(),
        options["score_threshold"],
        options["pre_nms_top_k"],
    )
    boxes = outputs.pred_boxes[index].float()[locations]
    boxes = clip_boxes(boxes * boxes.new_tensor([width, height, width, height]), height, width)
    # Rows, not labels: two rows may carry the same label only in different captions.
    keep = nms(boxes, scores, classes, options["nms_threshold"])
    return {"scores": scores[keep], "boxes": boxes[keep], "labels": label_ids[classes[keep]]}


def _keep_best(detections: dict[str, Tensor], limit: int) -> dict[str, Tensor]:
    """By descending score, at most `limit`, but a tie at the limit keeps all."""
    order = detections["scores"].argsort(descending=True, stable=True)
    scores = detections["scores"][order]
    if len(scores) > limit:
        order = order[scores >= scores[limit - 1]]
    return {name: value[order] for name, value in detections.items()}


def merge_detections(parts: Sequence[dict[str, Tensor]], limit: int = 100) -> dict[str, Tensor]:
    """The best detections of several captions of one picture, by descending score.

    Args:
        parts: detections of each caption, after NMS: `scores` [K], and whatever else has K rows.
        limit: detections kept; a tie at the limit keeps all.
    """
    return _keep_best({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, limit)


def _picture_sizes(target_sizes: Any, outputs: Any, captions: list[list[int]]) -> list[list[float]] | None:
    """(height, width) the boxes of each picture are scaled to, or None for relative boxes."""
    if target_sizes is None:
        original_sizes = getattr(outputs, "original_sizes", None)
        if original_sizes is None:
            return None
        return [original_sizes[rows[0]].tolist() for rows in captions]
    sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor) else [list(s) for s in target_sizes]
    if len(sizes) != len(captions):
        raise ValueError(
            f"target_sizes has {len(sizes)} entries for {len(captions)} pictures: give one (height, width) a picture."
        )
    return sizes


@torch.no_grad()
def post_process_grounding(
    outputs: Any,
    threshold: float = 0.0,
    target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    aggregation: str = "mean",
    score_threshold: float = 0.05,
    pre_nms_top_k: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
) -> list[dict[str, Tensor]]:
    """Boxes, scores and labels of every picture (section 7 of GLIP's specification).

    Args:
        outputs: a `GlipGroundingOutput`, or any object with its fields as attributes.
        threshold: keep detections whose final score is above this.
        target_sizes: (height, width) of each original picture, [B, 2]; default: the sizes that travelled with the
            outputs, and where there are none, boxes relative to the unpadded picture (0..1).
        aggregation: see `aggregate_tokens`.
        score_threshold: a (location, class) pair is a candidate if its class score, *before* the centerness
            factor, is above this.
        pre_nms_top_k: candidates kept a level and caption.
        nms_threshold: class-wise NMS suppresses above this IoU.
        max_detections: detections kept a picture; a tie at the limit keeps all.

    Returns:
        one dict a picture, by descending score: `scores` [K] float32, the square root of class score times
        centerness; `boxes` [K, 4] float32 xyxy; `labels` [K] int64. Captions of the same picture (chunks of a long
        vocabulary) are merged before the limit.

    Raises:
        ValueError: for an unknown aggregation, or `target_sizes` of another length than the pictures.
    """
    options = {
        "score_threshold": score_threshold,
        "pre_nms_top_k": pre_nms_top_k,
        "nms_threshold": nms_threshold,
    }
    num_captions = len(outputs.logits)
    image_indices = getattr(outputs, "image_indices", None)
    if image_indices is None:
        captions = [[n] for n in range(num_captions)]
    else:
        indices = image_indices.tolist()
        captions = [[n for n in range(num_captions) if indices[n] == b] for b in range(max(indices) + 1)]
    sizes = _picture_sizes(target_sizes, outputs, captions)

    results = []
    for picture, rows in enumerate(captions):
        parts = [_keep_best(_detect(outputs, n, aggregation, options), max_detections) for n in rows]
        merged = merge_detections(parts, max_detections)
        height, width = outputs.image_sizes[rows[0]].tolist()
        new_height, new_width = (1, 1) if sizes is None else sizes[picture]
        ratio = [new_width / width, new_height / height]
        merged["boxes"] = merged["boxes"] * merged["boxes"].new_tensor(ratio + ratio)
        above = merged["scores"] > threshold
        results.append({name: value[above] for name, value in merged.items()})
    return results


__all__ = ["AGGREGATIONS", "aggregate_tokens", "merge_detections", "post_process_grounding"]
