# Copyright 2026 The glip_hf authors. MIT licence.
"""Target assignment and losses of GLIP: pure functions, normalisers passed in.

ATSS (arXiv 1912.02424) gives every location a box or none; the token loss is a sigmoid focal loss (arXiv 1708.02002) on
the dot products, boxes are trained with GIoU (arXiv 1902.09630), weighted by centerness (FCOS, arXiv 1904.01355).

Letters: B images, A locations, K boxes of an image, P positive locations, T text tokens.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .boxes_glip import box_iou, decode_boxes, encode_boxes
from .ops_glip import once_differentiable
from .values_glip import quote

logger = logging.get_logger(__name__)

INSIDE = 0.01  # pixels by which an anchor's centre must lie inside a box
GIOU_EPS = 1e-7


def assign_atss(anchors: Tensor, level_sizes: list[int], boxes: list[Tensor], top_k: int = 9) -> Tensor:
    """The box each location is responsible for, in every image; only the last step tells images apart.

    A box's candidates are the `top_k` nearest anchor centres of every level (all of a smaller level); positive are
    those whose IoU reaches the mean plus the standard deviation (unbiased) of the candidates' and whose centre lies
    inside the box. An anchor claimed by several boxes goes to the one of highest IoU.

    Args:
        anchors: [A, 4] xyxy pixels; level_sizes: anchors of each level.
        boxes: of each image, [K, 4] xyxy pixels, K may be 0.

    Returns:
        [B, A] int64, index of the box among those of the image, or -1.
    """
    owners = torch.full((len(boxes), len(anchors)), -1, dtype=torch.int64, device=anchors.device)
    counts = [len(own) for own in boxes]
    if not any(counts):
        return owners
    boxes = torch.cat(boxes)
    ious = box_iou(anchors, boxes)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = (centres[:, None] - box_centres).square().sum(-1).sqrt()
    candidates, start = [], 0
    for size in level_sizes:
        nearest = distances[start : start + size].topk(min(top_k, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    candidates = torch.cat(candidates)  # [candidates, K]
    candidate_ious = ious.gather(0, candidates)
    threshold = candidate_ious.mean(0) + candidate_ious.std(0)
    candidate_centres = centres[candidates]
    margin = torch.cat([candidate_centres - boxes[:, :2], boxes[:, 2:] - candidate_centres], dim=-1).amin(-1)
    positive = (candidate_ious >= threshold) & (margin > INSIDE)
    claimed = torch.full_like(ious, -1).scatter_(0, candidates, candidate_ious.masked_fill(~positive, -1))
    for image, own in enumerate(claimed.split(counts, dim=1)):
        if counts[image]:
            best, owner = own.max(1)
            owners[image] = owner.masked_fill_(best < 0, -1)
    return owners


def centerness_targets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Centerness [P] in 0..1 of the centres of anchors in their boxes, both [P, 4] xyxy pixels (FCOS, equation 3)."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = torch.stack([centres - boxes[:, :2], boxes[:, 2:] - centres], dim=-1)  # [P, (x, y), 2]
    return (sides.amin(-1) / sides.amax(-1)).prod(-1).sqrt()


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU, [P], of boxes [P, 4] xyxy; exclusive areas, a negative predicted side has length 0."""
    top_left, bottom_right = predicted[:, :2], torch.maximum(predicted[:, :2], predicted[:, 2:])
    inter = torch.minimum(bottom_right, target[:, 2:]) - torch.maximum(top_left, target[:, :2])
    inter = inter.clamp(min=0).prod(-1)
    union = (bottom_right - top_left).prod(-1) + (target[:, 2:] - target[:, :2]).prod(-1) - inter + GIOU_EPS
    hull = torch.maximum(bottom_right, target[:, 2:]) - torch.minimum(top_left, target[:, :2])
    hull = hull.prod(-1) + GIOU_EPS
    return 1 - (inter / union - (hull - union) / hull)


class TokenFocalLoss(torch.autograd.Function):
    """See `token_focal_loss`. With x = -logit at target 1 and logit at 0, q = sigmoid(x), the probability of the wrong
    answer, and w = alpha or 1 - alpha: a term is -w q^gamma log(1 - q), and its derivative by x
    w q^gamma (q - gamma (1 - q) log(1 - q))."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
        sign = 1 - 2 * targets
        against = logits * sign
        wrong, log_right = against.sigmoid(), nn.functional.logsigmoid(-against)
        # 1 - alpha at sign 1, alpha at sign -1
        weight = ((0.5 - alpha) * sign).add_(0.5).mul_(mask[:, None]).mul_(wrong.pow(gamma))
        if ctx.needs_input_grad[0]:
            slope = (1 - wrong).mul_(log_right).mul_(-gamma).add_(wrong).mul_(weight).mul_(sign)
            ctx.save_for_backward(slope)
        return -weight.mul_(log_right).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grad, None, None, None, None


def token_focal_loss(logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the focal loss over logits [B, A, T] at real tokens, mask [B, T] bool; targets 0 or 1."""
    return TokenFocalLoss.apply(logits, targets, mask, alpha, gamma)


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes of `torch.distributed`; the tensor itself where there is only one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


def match_labels(
    labels: list[dict[str, Tensor]], anchors: Tensor, level_sizes: list[int], top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The positive locations of a batch: their images, locations, rows of their boxes among all boxes of the batch,
    target boxes [P, 4] xyxy pixels, and centerness targets. P and the sum of these are the normalisers of the loss."""
    boxes = [label["boxes"].float() for label in labels]
    owners = assign_atss(anchors, level_sizes, boxes, top_k)
    images, locations = (owners >= 0).nonzero(as_tuple=True)
    starts = torch.cat([owners.new_full((1,), start) for start in accumulate(map(len, [[], *boxes[:-1]]))])
    rows = starts[images] + owners[images, locations]
    own_anchors = anchors[locations]
    # Through the coder and back: its cap on large boxes holds for targets too.
    targets = decode_boxes(encode_boxes(torch.cat(boxes)[rows], own_anchors), own_anchors)
    return images, locations, rows, targets, centerness_targets(targets, own_anchors)


def check_labels(labels: list[dict[str, Tensor]], num_pairs: int, num_tokens: int) -> None:
    """Refuse labels that do not fit the batch with a TypeError or ValueError that names the entry; warn of boxes that
    look like fractions of the image."""
    if not isinstance(labels, list | tuple) or not all(isinstance(label, Mapping) for label in labels):
        raise TypeError(f"labels={quote(labels)} must be a list: for each pair a dict of 'boxes' and 'positive_map'.")
    if len(labels) != num_pairs:
        raise ValueError(f"labels has {len(labels)} entries for {num_pairs} (image, caption) pairs.")
    for index, label in enumerate(labels):
        for key in ("boxes", "positive_map"):
            if key not in label:
                raise ValueError(f"labels[{index}] has no {key!r}, only {sorted(label)}.")
            if not isinstance(label[key], Tensor):
                raise TypeError(f"labels[{index}][{key!r}] is a {type(label[key]).__name__}, not a tensor.")
        boxes, positive_map = label["boxes"], label["positive_map"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"labels[{index}]['boxes'] has shape {tuple(boxes.shape)}, not [K, 4].")
        if tuple(positive_map.shape) != (len(boxes), num_tokens):
            raise ValueError(
                f"labels[{index}]['positive_map'] has shape {tuple(positive_map.shape)}, not "
                f"({len(boxes)}, {num_tokens}): one row per box, one column per token of the batch's captions."
            )
    tests = {
        ("boxes", "NaN, infinity or a billion pixels"): lambda label: ~(label["boxes"].abs() < 1e9),
        ("positive_map", "NaN or infinity"): lambda label: ~label["positive_map"].isfinite(),
        ("boxes", "a box with x2 < x1 or y2 < y1"): lambda label: label["boxes"][:, 2:] < label["boxes"][:, :2],
    }
    fractions = [(label["boxes"] <= 1).all() & bool(len(label["boxes"])) for label in labels]
    # All at once, as an accelerator has to be waited for.
    found = [wrong(label).flatten() for wrong in tests.values() for label in labels]
    if not torch.cat([*found, torch.stack(fractions)]).any():
        return
    for (key, what), wrong in tests.items():
        for index, label in enumerate(labels):
            if wrong(label).any():
                raise ValueError(f"labels[{index}][{key!r}] holds {what}.")
    # No error: an object at the corner may be as small.
    text = "lie between 0 and 1: boxes are x1, y1, x2, y2 in pixels of the model input, fractions of it train nothing."
    logger.warning_once(f"labels[{[bool(one) for one in fractions].index(True)}]['boxes'] {text}")


def grounding_loss(
    logits: Tensor,
    bbox_regression: Tensor,
    centerness_logits: Tensor,
    anchors: Tensor,
    level_sizes: list[int],
    text_mask: Tensor,
    labels: list[dict[str, Tensor]],
    config: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss, that of the original.

    Args:
        logits: [B, A, T]; bbox_regression: [B, A, 4]; centerness_logits: [B, A].
        anchors: [A, 4] xyxy pixels; level_sizes: anchors of each level.
        text_mask: [B, T], 1 at real tokens.
        labels: one dict per image: `boxes` [K, 4] xyxy in pixels of the network's input, `positive_map` [K, T] whose
            non-zero entries are the tokens of a box. K may be 0; a row may be all zero (a box without a phrase).
        config: a `GlipConfig`, for the weights.

    Returns:
        the weighted sum, and its terms `loss_token`, `loss_bbox`, `loss_centerness`. All are finite whatever the
        labels, and differentiable even without a positive location, so every rank of a distributed run has a gradient.

    Raises:
        ValueError: for labels that do not fit the batch.
    """
    check_labels(labels, *logits.shape[::2])
    with torch.autocast(logits.device.type, enabled=False):
        logits, centerness_logits = logits.float(), centerness_logits.float()
        bbox_regression = bbox_regression.float()
        targets = torch.zeros_like(logits)
        if logits.shape[-1] == config.max_text_length:
            # "No object" is the last token of a full caption; in any shorter one that column is padding.
            targets[..., -1] = 1
        images, locations, rows, boxes, centerness = match_labels(labels, anchors, level_sizes, config.atss_top_k)
        positive_maps = torch.cat([label["positive_map"] for label in labels])
        targets[images, locations] = (positive_maps[rows] != 0).to(targets.dtype)

        num_positive = mean_over_processes(logits.new_full((), len(rows))).clamp(min=1)
        loss_token = token_focal_loss(logits, targets, text_mask.bool(), config.focal_alpha, config.focal_gamma)
        sum_centerness = mean_over_processes(centerness.sum())
        # Every rank takes part in both reductions above, also one without a box.
        if len(rows):
            predicted = decode_boxes(bbox_regression[images, locations], anchors[locations])
            loss_bbox = (giou_loss(predicted, boxes) * centerness).sum() / sum_centerness
            loss_centerness = nn.functional.binary_cross_entropy_with_logits(
                centerness_logits[images, locations], centerness, reduction="sum"
            )
        else:
            loss_bbox, loss_centerness = 0 * bbox_regression.sum(), 0 * centerness_logits.sum()
        losses = {
            "loss_token": config.token_loss_weight * loss_token / num_positive,
            "loss_bbox": config.bbox_loss_weight * loss_bbox,
            "loss_centerness": config.centerness_loss_weight * loss_centerness / num_positive,
        }
    return sum(losses.values()), losses
