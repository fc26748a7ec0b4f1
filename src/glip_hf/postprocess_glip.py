# Copyright 2026 The glip_hf authors. MIT licence.
"""From the raw output of the model to boxes with integer labels: the one path of processor, pipelines and evaluators.

Letters: B images, N captions, A locations (p3 to p7, row-major), T text tokens, C classes of a caption, K detections.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers.processing_utils import Unpack

from .boxes_glip import clip_boxes, nms
from .prompts_glip import read_number, refuse_unknown
from .values_glip import quote

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


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checked options of post-processing, `threshold` among them: one number each, and a known aggregation.

    Raises:
        TypeError, ValueError: naming the option.
    """
    read = dict(options)
    for name in ("threshold", "score_threshold", "nms_threshold"):
        if name in read:
            if isinstance(read[name], list | tuple) or getattr(read[name], "ndim", 0):
                raise TypeError(
                    f"{name}={quote(read[name])} must be one number: give the lowest that any class needs, and "
                    "filter the detections by their labels."
                )
            read[name] = read_number(name, read[name])
    for name in ("pre_nms_top_k", "max_detections"):
        if name in read:
            read[name] = read_number(name, read[name], least=0, whole=True)
    if read.get("aggregation", "mean") not in AGGREGATIONS:
        raise ValueError(
            f"aggregation={quote(read['aggregation'])} is not known: choose one of {', '.join(AGGREGATIONS)}."
        )
    return read


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
    read_options({"aggregation": aggregation})
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
    class_scores = class_scores.masked_fill(label_ids < 0, 0)
    centerness = outputs.centerness_logits[index].float().sigmoid()
    if (class_scores.sum() + centerness.sum()).isnan():
        raise ValueError(
            f"The model's scores for caption {index} are NaN: its weights or its input are damaged, or a value "
            "overflowed in float16, where bfloat16 or float32 helps."
        )
    scores, locations, classes = _top_candidates(
        class_scores,
        centerness,
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
    limit = read_number("limit", limit, least=0, whole=True)
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores, order = merged["scores"].sort(descending=True, stable=True)
    if len(scores) > limit:
        order = order[scores >= scores[limit - 1]] if limit else order[:0]
    return {name: value[order] for name, value in merged.items()}


def _image_sizes(target_sizes: Any, outputs: Any, captions: list[list[int]]) -> list[list[float]] | None:
    """(height, width) the boxes of each image are scaled to, or None for relative boxes."""
    name, original_sizes = "target_sizes", getattr(outputs, "original_sizes", None)
    if target_sizes is None:
        if original_sizes is None:
            return None
        name, target_sizes = "original_sizes", [original_sizes[rows[0]] if rows else (1, 1) for rows in captions]
    try:
        sizes = [[float(side) for side in size] for size in target_sizes]
    except (TypeError, ValueError):
        sizes = [[]]
    if any(len(size) != 2 or not all(0 < side < math.inf for side in size) for size in sizes):
        raise ValueError(
            f"{name}={quote(target_sizes)} must have (height, width) in pixels for each image; for one image, "
            "[(480, 640)]."
        )
    if len(sizes) != len(captions):
        raise ValueError(f"{name} has {len(sizes)} entries for {len(captions)} images: give one per image.")
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
        TypeError: for an unknown keyword argument, an option that is not one number, and outputs without logits.
        ValueError: for an unknown aggregation, a negative limit, NaN, `target_sizes` that are not (height, width) of
            each image, and maps or labels of another shape than the captions.
    """
    refuse_unknown("post-processing", kwargs, GlipPostProcessKwargs.__annotations__)
    options = read_options({**DEFAULTS, **kwargs, "threshold": threshold})
    if not hasattr(outputs, "logits"):
        raise TypeError(
            f"outputs are a {type(outputs).__name__} without 'logits': give what GlipForGrounding returned."
        )
    (count, _, tokens), maps, labels = (
        tuple(getattr(outputs, name).shape) for name in ("logits", "positive_map", "label_ids")
    )
    if maps != (*labels, tokens) or labels[:1] != (count,):
        raise ValueError(
            f"positive_map {maps} and label_ids {labels} do not fit {count} captions of {tokens} tokens: their shapes "
            "must be (captions, classes, tokens) and (captions, classes)."
        )
    captions = [[n] for n in range(count)]
    image_indices = getattr(outputs, "image_indices", None)
    if image_indices is not None:
        indices = image_indices.tolist()
        if min(indices, default=0) < 0:
            raise ValueError(f"image_indices={quote(indices)} must not be negative.")
        captions = [
            [n for n, owner in enumerate(indices) if owner == image] for image in range(max(indices, default=-1) + 1)
        ]
    sizes = _image_sizes(target_sizes, outputs, captions)

    results = []
    for image, rows in enumerate(captions):
        if not rows:  # an image without captions
            none = outputs.logits.new_zeros(0, dtype=torch.float32)
            results.append({"scores": none, "boxes": none.view(0, 4), "labels": none.long()})
            continue
        height, width = outputs.image_sizes[rows[0]].tolist()
        if not height * width:
            raise ValueError(f"Image {image} has no pixels: its pixel_mask is 0 everywhere.")
        merged = merge_detections([_detect(outputs, n, options) for n in rows], options["max_detections"])
        new_height, new_width = (1, 1) if sizes is None else sizes[image]
        scale = [new_width / width, new_height / height]
        merged["boxes"] = merged["boxes"] * merged["boxes"].new_tensor(scale + scale)
        above = merged["scores"] > options["threshold"]
        results.append({name: value[above] for name, value in merged.items()})
    return results
