# Copyright 2026 The glip_hf authors. MIT licence.
"""From the raw output of the model to boxes with integer labels: the one path of processor, pipelines and evaluators.

Letters: B images, N captions, A locations (p3 to p7, row-major), T text tokens, C classes of a caption, K detections.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers.processing_utils import Unpack

from .boxes_glip import clip_boxes, nms
from .prompts_glip import refuse_unknown

AGGREGATIONS = ("mean", "max", "power", "onehot")


class GlipPostProcessKwargs(TypedDict, total=False):
    r"""
    aggregation (`str`, *optional*, defaults to `"mean"`):
        How the token scores of a class are combined, see `aggregate_tokens`.
    score_threshold (`float`, *optional*, defaults to 0.05):
        A (location, class) pair is a candidate if its class score, *before* the centerness factor, is above this.
    pre_nms_top_k (`int`, *optional*, defaults to 1000):
        Candidates kept per level and caption.
    nms_threshold (`float`, *optional*, defaults to 0.6):
        NMS IoU threshold: class-wise NMS suppresses above it.
    max_detections (`int`, *optional*, defaults to 100):
        Detections kept per image; a tie at the limit keeps all.
    """

    aggregation: str
    score_threshold: float
    pre_nms_top_k: int
    nms_threshold: float
    max_detections: int


DEFAULTS = GlipPostProcessKwargs(
    aggregation="mean", score_threshold=0.05, pre_nms_top_k=1000, nms_threshold=0.6, max_detections=100
)


def aggregate_tokens(probabilities: Tensor, positive_map: Tensor, aggregation: str = "mean") -> Tensor:
    """Class scores from token probabilities.

    Args:
        probabilities: [A, T] float in 0..1, sigmoid of the token logits.
        positive_map: [C, T] bool, the tokens of each class.
        aggregation: how the tokens of a class are combined: `"mean"`; `"max"`; `"power"`, the geometric mean; or
            `"onehot"`, class c reads column c whatever its tokens (captions of one made-up token per class).

    Returns:
        [A, C] float; 0 for a class without tokens.

    Raises:
        ValueError: for an unknown aggregation, or `"onehot"` with more classes than tokens.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r} is not known: choose one of {', '.join(AGGREGATIONS)}.")
    if aggregation == "onehot":
        if len(positive_map) > probabilities.shape[1]:
            raise ValueError(
                f"aggregation='onehot' reads one column per class, but there are {len(positive_map)} classes and "
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


def _detect(outputs: Any, index: int, options: GlipPostProcessKwargs) -> dict[str, Tensor]:
    """Detections of caption `index`, after NMS, in pixels of the network's input."""
    label_ids = outputs.label_ids[index]
    height, width = outputs.image_sizes[index].tolist()
    probabilities = outputs.logits[index].float().sigmoid()
    class_scores = aggregate_tokens(probabilities, outputs.positive_map[index].bool(), options["aggregation"])
    scores, locations, classes = _top_candidates(
        class_scores.masked_fill(label_ids < 0, 0),
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


def merge_detections(parts: Sequence[dict[str, Tensor]], limit: int = 100) -> dict[str, Tensor]:
    """The best detections of several captions of one image, by descending score.

    Args:
        parts: detections of each caption, after NMS: `scores` [K], and whatever else has K rows.
        limit: detections kept; a tie at the limit keeps all.
    """
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores, order = merged["scores"].sort(descending=True, stable=True)
    if len(scores) > limit:
        order = order[scores >= scores[limit - 1]] if limit else order[:0]
    return {name: value[order] for name, value in merged.items()}


def _image_sizes(target_sizes: Any, outputs: Any, captions: list[list[int]]) -> list[list[float]] | None:
    """(height, width) the boxes of each image are scaled to, or None for relative boxes."""
    if target_sizes is None:
        original_sizes = getattr(outputs, "original_sizes", None)
        return None if original_sizes is None else [original_sizes[rows[0]].tolist() for rows in captions]
    sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor) else [list(size) for size in target_sizes]
    if len(sizes) != len(captions):
        raise ValueError(f"target_sizes has {len(sizes)} entries for {len(captions)} images: give one per image.")
    return sizes


@torch.no_grad()
def post_process_grounding(
    outputs: Any,
    threshold: float = 0.0,
    target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    **kwargs: Unpack[GlipPostProcessKwargs],
) -> list[dict[str, Tensor]]:
    """Boxes, scores and labels of every image (section 7 of GLIP's specification).

    Args:
        outputs: a `GlipGroundingOutput`, or any object with its fields as attributes.
        threshold: score threshold: detections whose final score is above it are kept.
        target_sizes: (height, width) of each original image, [B, 2]; default: the sizes that came with the outputs, and
            where there are none, boxes relative to the unpadded image (0..1).
        kwargs: see [`GlipPostProcessKwargs`].

    Returns:
        One dict per image, by descending score: `scores` [K] float32, the square root of class score times centerness;
        `boxes` [K, 4] float32 xyxy; `labels` [K] int64. Captions of the same image (chunks of a long vocabulary) are
        merged before the limit.

    Raises:
        TypeError: for an unknown keyword argument.
        ValueError: for an unknown aggregation, a negative limit, or `target_sizes` of another length than the images.
    """
    refuse_unknown("post-processing", kwargs, GlipPostProcessKwargs.__annotations__)
    options: GlipPostProcessKwargs = {**DEFAULTS, **kwargs}
    for name in ("pre_nms_top_k", "max_detections"):
        if options[name] < 0:
            raise ValueError(f"{name}={options[name]} must not be negative.")
    captions = [[n] for n in range(len(outputs.logits))]
    image_indices = getattr(outputs, "image_indices", None)
    if image_indices is not None:
        indices = image_indices.tolist()
        captions = [[n for n, owner in enumerate(indices) if owner == image] for image in range(max(indices) + 1)]
    sizes = _image_sizes(target_sizes, outputs, captions)

    results = []
    for image, rows in enumerate(captions):
        merged = merge_detections([_detect(outputs, n, options) for n in rows], options["max_detections"])
        height, width = outputs.image_sizes[rows[0]].tolist()
        new_height, new_width = (1, 1) if sizes is None else sizes[image]
        scale = [new_width / width, new_height / height]
        merged["boxes"] = merged["boxes"] * merged["boxes"].new_tensor(scale + scale)
        above = merged["scores"] > threshold
        results.append({name: value[above] for name, value in merged.items()})
    return results
