# Copyright 2026 The glip_hf authors. MIT licence.
"""From the raw output of the model to boxes with integer labels: the one path of processor, pipelines and evaluators.

Letters: B images, N captions, A locations (p3 to p7, row-major), T text tokens, C classes of a caption, K detections.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers.processing_utils import Unpack

from .boxes_glip import clip_boxes, nms
from .prompts_glip import listed
from .values_glip import check_number, quote, refuse_unknown

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
    class_agnostic_nms (`bool`, *optional*, defaults to `False`):
        Then, of the detections above their thresholds that overlap by more than `nms_threshold`, whatever their
        classes, only the best is kept.
    features (`bool`, *optional*, defaults to `False`):
        Give the feature vector of each detection as well: the outputs must have the last of `hidden_states`.
    """

    aggregation: str
    score_threshold: float
    pre_nms_top_k: int
    nms_threshold: float
    max_detections: int
    class_agnostic_nms: bool
    features: bool


DEFAULTS = GlipPostProcessKwargs(
    aggregation="mean",
    score_threshold=0.05,
    pre_nms_top_k=1000,
    nms_threshold=0.6,
    max_detections=100,
    class_agnostic_nms=False,
    features=False,
)

# Score threshold of all classes; or one for each class name, and under None that of all other names (else 0)
Threshold = float | Mapping[str | None, float]


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checked options of post-processing, `threshold` among them; a TypeError or ValueError names the option."""
    read = dict(options)
    for name in ("threshold", "score_threshold", "nms_threshold"):
        if name == "threshold" and isinstance(read.get(name), Mapping):
            if not all(key is None or isinstance(key, str) for key in read[name]):
                raise TypeError(f"threshold={quote(read[name])} must have class names as its keys, or None for others.")
            read[name] = {key: check_number(f"threshold of {key!r:.80}", own) for key, own in read[name].items()}
        elif name in read:
            if isinstance(read[name], list | tuple) or getattr(read[name], "ndim", 0):
                hint = "; for a threshold per class, give {class name: number}" if name == "threshold" else ""
                raise TypeError(f"{name}={quote(read[name])} must be one number{hint}.")
            read[name] = check_number(name, read[name])
    for name in ("class_agnostic_nms", "features"):
        if not isinstance(read.get(name, False), bool):
            raise TypeError(f"{name}={quote(read[name])} must be True or False.")
    for name in ("pre_nms_top_k", "max_detections"):
        if name in read:
            read[name] = check_number(name, read[name], least=0, whole=True)
    if read.get("aggregation", "mean") not in AGGREGATIONS:
        raise ValueError(
            f"aggregation={quote(read['aggregation'])} is not known: choose one of {', '.join(AGGREGATIONS)}."
        )
    return read


def label_thresholds(threshold: Threshold, names: Sequence[str]) -> float | Tensor:
    """The thresholds of the labels of these class names, [C] float32, or the one of all."""
    if not isinstance(threshold, Mapping):
        return threshold
    return torch.tensor([threshold.get(name, threshold.get(None, 0.0)) for name in names], dtype=torch.float32)


def check_thresholds(threshold: Threshold, names: Iterable[str]) -> None:
    """Raise a ValueError unless all class names with a threshold of their own are among these."""
    known = dict.fromkeys(names)
    own = threshold if isinstance(threshold, Mapping) else ()
    unknown = [key for key in own if key is not None and key not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {quote(close[0])}?" if close else f"the names are {listed(list(known))}."
        raise ValueError(f"threshold has {listed(unknown)}, which is not asked for: {hint}")


def names_of_images(text_labels: Sequence[str] | Sequence[Sequence[str]], count: int) -> list[Sequence[str]]:
    """The class names of each of `count` images, given as one list for all or as a list for each; a TypeError for one
    text, a ValueError for another number of lists."""
    is_one = isinstance(text_labels, str)
    if not is_one and all(isinstance(name, str) for name in text_labels):
        return [text_labels] * count
    if is_one or not all(hasattr(names, "__len__") for names in text_labels):
        raise TypeError(f"text_labels={quote(text_labels)} must be a list of class names, or such a list per image.")
    if len(text_labels) != count:
        raise ValueError(f"text_labels has {len(text_labels)} lists of names for {count} images: give one each.")
    return list(text_labels)


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
    class_scores: Tensor, centerness: Tensor, sizes: Sequence[int], lowest: float, options: GlipPostProcessKwargs
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of every level, above `lowest`: scores, locations and classes, each [K]."""
    products = class_scores * centerness[:, None]
    eligible = (class_scores > options["score_threshold"]) & (products.sqrt() > lowest)
    num_classes, top_k = class_scores.shape[1], options["pre_nms_top_k"]
    picked, start = [], 0
    for size in sizes:
        level = slice(start, start + size)
        pairs = eligible[level].flatten().nonzero().squeeze(1)
        if len(pairs) > top_k:
            pairs = pairs[products[level].flatten()[pairs].topk(top_k).indices]
        picked.append(pairs + start * num_classes)
        start += size
    pairs = torch.cat(picked)
    return products.flatten()[pairs].sqrt(), pairs // num_classes, pairs % num_classes


def _detect(outputs: Any, index: int, options: GlipPostProcessKwargs) -> dict[str, Tensor]:
    """Detections of caption `index`, after NMS within each row of its map, in pixels of the network's input."""
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
    threshold, sizes = options["threshold"], outputs.spatial_shapes[index].prod(-1).tolist()
    lowest = min({None: 0.0, **threshold}.values()) if isinstance(threshold, Mapping) else threshold
    # NMS need not see what is not above the threshold: it would suppress nothing that is.
    scores, locations, classes = _top_candidates(class_scores, centerness, sizes, lowest, options)
    boxes = outputs.pred_boxes[index].float()[locations]
    boxes = clip_boxes(boxes * boxes.new_tensor([width, height, width, height]), height, width)
    # Rows, not labels: prompts of one label may stand in several captions, and the result must not depend on that.
    keep = nms(boxes, scores, classes, options["nms_threshold"])
    locations = locations[keep]
    found = {"scores": scores[keep], "boxes": boxes[keep], "labels": label_ids[classes[keep]], "locations": locations}
    if options["features"]:
        states = getattr(outputs, "hidden_states", None)
        if not states or states[-1] is None:
            raise ValueError("features are the last hidden state: call the model with output_hidden_states=[-1].")
        found["features"] = states[-1][index][locations].float()
    return found


def has_repeats(label_ids: Tensor) -> bool:
    """Whether a label has several rows (prompts); those of -1 are padding."""
    labels = label_ids[label_ids >= 0]
    return len(labels.unique()) < len(labels)


def merge_detections(
    parts: Sequence[dict[str, Tensor]],
    limit: int = 100,
    threshold: float | Tensor = -math.inf,
    nms_threshold: float | None = None,
    class_agnostic: bool = False,
) -> dict[str, Tensor]:
    """The best detections of several captions or views of one image, by descending score.

    Args:
        parts: detections of each: `scores` [K], and whatever else has K rows.
        limit: detections kept; a tie at the limit keeps all.
        threshold: detections above it are kept; one number, or one for each label, [C].
        nms_threshold: NMS IoU threshold over all parts, within each label or `class_agnostic`; None for no NMS. The
            unit of the boxes does not matter.
    """
    limit = check_number("limit", limit, least=0, whole=True)
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    own = threshold.to(merged["labels"].device)[merged["labels"]] if isinstance(threshold, Tensor) else threshold
    above = merged["scores"] > own
    merged = {name: value[above] for name, value in merged.items()}
    if nms_threshold is not None and len(merged["scores"]):
        boxes, labels = merged["boxes"], merged["labels"]
        # So large that the pixel which the inclusive convention adds does not count.
        boxes = boxes * (2**20 / boxes.abs().max().clamp(min=torch.finfo(boxes.dtype).tiny))
        keep = nms(boxes, merged["scores"], torch.zeros_like(labels) if class_agnostic else labels, nms_threshold)
        merged = {name: value[keep] for name, value in merged.items()}
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
        sizes = [[] if isinstance(size, str) else [float(side) for side in size] for size in target_sizes]
    except (TypeError, ValueError):
        sizes = [[]]
    if any(len(size) != 2 or not all(0 < side < math.inf for side in size) for size in sizes):
        raise ValueError(
            f"{name}={quote(target_sizes)} must have (height, width) in pixels for each image; for one image, "
            "[(480, 640)]."
        )
    return sizes


@torch.no_grad()
def post_process_grounding(
    outputs: Any,
    threshold: Threshold = 0.0,
    target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    merge: bool = True,
    **kwargs: Unpack[GlipPostProcessKwargs],
) -> list[dict[str, Tensor]]:
    """Boxes, scores and labels of every image, as the original computes them.

    Args:
        outputs: a `GlipGroundingOutput`, or any object with its fields as attributes.
        threshold: score threshold: detections whose final score is above it are kept. See `Threshold`.
        target_sizes: (height, width) of each original image, [B, 2]; default: the sizes that came with the outputs, and
            where there are none, boxes relative to the unpadded image (0..1). Where captions have `image_indices`, it
            also tells the number of images, of which the last may have no caption.
        text_labels: the class names, one list for all images or a list for each, where thresholds name them.
        merge: merge the captions of an image; else there is one result per caption, and no NMS but that within rows.
        kwargs: see [`GlipPostProcessKwargs`].

    Returns:
        One dict per image, by descending score: `scores` [K] float32, the square root of class score times centerness;
        `boxes` [K, 4] float32 xyxy; `labels` [K] int64; `locations` [K] int64, the index of each in the outputs' A
        locations; and on request `features` [K, D] float32, the last hidden states there. Captions of the same image
        (chunks of a long vocabulary) are merged before the limit, where a label has several prompts with an NMS of all.

    Raises:
        TypeError: for an unknown keyword argument, an option that is not one number, and outputs without logits.
        ValueError: for an unknown aggregation, a negative limit, NaN, thresholds of unknown class names, features
            without hidden states, `target_sizes` that are not (height, width) of each image, and maps or labels of
            another shape than the captions.
    """
    refuse_unknown("post-processing", kwargs, [*DEFAULTS, "threshold", "target_sizes", "text_labels"])
    options = read_options({**DEFAULTS, **kwargs, "threshold": threshold})
    if not hasattr(outputs, "logits"):
        raise TypeError(
            f"outputs are a {type(outputs).__name__} without 'logits': give what GlipForGrounding returned."
        )
    (count, locations, tokens), maps, labels = (
        tuple(getattr(outputs, name).shape) for name in ("logits", "positive_map", "label_ids")
    )
    if maps != (*labels, tokens) or labels[:1] != (count,):
        raise ValueError(
            f"positive_map {maps} and label_ids {labels} do not fit {count} captions of {tokens} tokens: their shapes "
            "must be (captions, classes, tokens) and (captions, classes)."
        )
    image_indices = getattr(outputs, "image_indices", None)
    shapes = {"centerness_logits": (count, locations), "pred_boxes": (count, locations, 4), "image_sizes": (count, 2)}
    for name, shape in (shapes | ({} if image_indices is None else {"image_indices": (count,)})).items():
        if (given := tuple(getattr(outputs, name).shape)) != shape:
            raise ValueError(f"{name} {given} do not fit logits {tuple(outputs.logits.shape)}: it must be {shape}.")
    captions = [[n] for n in range(count)]
    if image_indices is not None and merge:
        indices = image_indices.tolist()
        if min(indices, default=0) < 0:
            raise ValueError(f"image_indices={quote(indices)} must not be negative.")
        captions = [
            [n for n, owner in enumerate(indices) if owner == image] for image in range(max(indices, default=-1) + 1)
        ]
    sizes = _image_sizes(target_sizes, outputs, captions)
    if sizes is not None:
        if image_indices is not None and merge:  # the last images may have no caption
            captions += [[] for _ in sizes[len(captions) :]]
        if len(sizes) != len(captions):
            raise ValueError(f"target_sizes has {len(sizes)} entries for {len(captions)} images: give one per image.")
    names = [()] * len(captions) if text_labels is None else names_of_images(text_labels, len(captions))
    if isinstance(options["threshold"], Mapping):
        if text_labels is None:
            raise ValueError("thresholds of class names need these: give text_labels, or what the processor returned.")
        check_thresholds(options["threshold"], chain(*names))

    results = []
    for image, rows in enumerate(captions):
        limit = options["max_detections"] if rows else 0  # an image without captions
        rows = rows or [0]
        height, width = outputs.image_sizes[rows[0]].tolist()
        if min(height, width) <= 0:
            raise ValueError(f"Image {image} has no pixels: its pixel_mask is 0 everywhere.")
        agnostic = options["class_agnostic_nms"]
        with_nms = merge and (agnostic or has_repeats(outputs.label_ids[rows]))
        merged = merge_detections(
            [_detect(outputs, n, options) for n in rows],
            limit,
            label_thresholds(options["threshold"], names[image]),
            options["nms_threshold"] if with_nms else None,
            agnostic,
        )
        new_height, new_width = (1, 1) if sizes is None else sizes[image]
        scale = [new_width / width, new_height / height]
        merged["boxes"] = merged["boxes"] * merged["boxes"].new_tensor(scale + scale)
        results.append(merged)
    return results
