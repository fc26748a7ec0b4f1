# Copyright 2026 The glip_hf authors. MIT licence.
"""Target assignment and losses: worked by hand, and whatever a batch of labels may hold."""

import math

import pytest
import torch
from tiny import tiny_config, tiny_inputs, tiny_labels, tiny_model

from glip_hf import loss_glip
from glip_hf.boxes_glip import make_anchors
from glip_hf.loss_glip import (
    assign_atss,
    centerness_targets,
    giou_loss,
    grounding_loss,
    match_labels,
    token_focal_loss,
)

LN2 = math.log(2)


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


ROW = tensor([0, 0, 9, 9], [10, 0, 19, 9], [20, 0, 29, 9])
"""Three anchors of 10 x 10 pixels, side by side."""


# --- assignment


def assign(anchors: torch.Tensor, level_sizes: list[int], boxes: torch.Tensor, **options: int) -> torch.Tensor:
    """Of a single image."""
    return assign_atss(anchors, level_sizes, [boxes], **options)[0]


def test_no_boxes() -> None:
    assert assign(ROW, [3], torch.zeros(0, 4)).tolist() == [-1, -1, -1]


def test_atss_by_hand() -> None:
    # IoU of a box of 15 x 10: 100 / 150, 50 / 200, 0. Mean 0.3056, standard deviation (unbiased) 0.3368.
    assert assign(ROW, [3], tensor([0, 0, 14, 9])).tolist() == [0, -1, -1]
    # 18 x 10: 100 / 180, 80 / 200, 0 against 0.3185 + 0.2866 = 0.6052: nothing is positive.
    assert assign(ROW, [3], tensor([0, 0, 17, 9])).tolist() == [-1, -1, -1]


def test_an_anchor_claimed_twice_goes_to_the_better_box() -> None:
    boxes = tensor([0, 0, 14, 9], [0, 0, 9, 9], [19, 0, 29, 9])
    assert assign(ROW, [3], boxes).tolist() == [1, -1, 2]
    assert assign(ROW, [3], boxes[[1, 0, 2]]).tolist() == [0, -1, 2]


def test_centres_must_lie_inside() -> None:
    # The first anchor's centre is (4.5, 4.5).
    anchors = torch.cat([ROW, tensor([40, 0, 49, 9])])
    assert assign(anchors, [4], tensor([4.48, 0, 9, 9])).tolist() == [0, -1, -1, -1]
    assert assign(anchors, [4], tensor([4.495, 0, 9, 9])).tolist() == [-1] * 4


def test_candidates_are_the_nearest_of_each_level() -> None:
    # With the two nearest of three the mean is (2/3 + 1/4) / 2 and the threshold 0.753: the box loses its anchor.
    assert assign(ROW, [3], tensor([0, 0, 14, 9]), top_k=2).tolist() == [-1, -1, -1]
    # Two levels, one candidate each: IoU 1 and 100 / 400.
    levels = torch.cat([ROW, tensor([0, 0, 19, 19])])
    assert assign(levels, [3, 1], tensor([0, 0, 9, 9]), top_k=9).tolist() == [0, -1, -1, -1]


def test_a_box_outside_the_image_or_inside_out_has_no_location() -> None:
    assert assign(ROW, [3], tensor([500, 500, 520, 520], [20, 9, 3, 2])).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("counts", [(0, 3, 0, 7), (1,), (0, 0), (12, 5)])
def test_a_batch_is_assigned_as_its_images(counts) -> None:
    generator = torch.Generator().manual_seed(len(counts))
    shapes = [(12, 15), (6, 8), (3, 4)]
    anchors, sizes = make_anchors(shapes, [8, 16, 32], 4), [height * width for height, width in shapes]
    corners = [torch.randint(0, 90, (count, 2), generator=generator).float() for count in counts]
    # Integers: many anchors are equally far away
    boxes = [torch.cat([c, c + torch.randint(5, 60, c.shape, generator=generator)], dim=1) for c in corners]
    found = assign_atss(anchors, sizes, boxes)
    assert found.shape == (len(counts), len(anchors))
    for own, owner in zip(boxes, found):
        assert torch.equal(owner, assign(anchors, sizes, own))
        assert bool((owner >= 0).any()) == bool(len(own)) and int(owner.max()) < len(own)


# --- terms


def test_centerness_by_hand() -> None:
    boxes = tensor([0, 0, 9, 9], [0, 0, 14, 9], [0, 0, 29, 39])
    expected = tensor([1, math.sqrt(4.5 / 9.5), math.sqrt(4.5 / 24.5 * 4.5 / 34.5)])[0]
    torch.testing.assert_close(centerness_targets(boxes, ROW[[0, 0, 0]]), expected)


def test_giou_by_hand() -> None:
    predicted = tensor([0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 2, 10])
    target = tensor([0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [0, 0, 10, 10])
    # Equal; half: 50 / 150; apart: 0 - (300 - 200) / 300; no width: 0, and the hull is the target itself.
    torch.testing.assert_close(giou_loss(predicted, target), tensor([0, 1 - 1 / 3, 4 / 3, 1])[0], atol=1e-6, rtol=0)


def test_focal_loss_by_hand() -> None:
    logits, targets = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    targets[0, 0, 1] = 1
    mask = torch.tensor([[True, True, False]])
    expected = 0.25 * 0.25 * LN2 + 3 * 0.75 * 0.25 * LN2
    assert token_focal_loss(logits, targets, mask, 0.25, 2).item() == pytest.approx(expected)


def textbook_focal_loss(logits, targets, mask, alpha, gamma) -> torch.Tensor:
    """RetinaNet's formula (arXiv 1708.02002), term by term."""
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * torch.nn.functional.logsigmoid(logits)
    negative = -(1 - alpha) * p**gamma * torch.nn.functional.logsigmoid(-logits)
    return (torch.where(targets > 0, positive, negative) * mask[:, None]).sum()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0)])
def test_focal_loss_and_its_gradient(alpha, gamma) -> None:
    logits = (torch.randn(2, 3, 4, dtype=torch.float64) * 4).requires_grad_()
    targets, mask = (torch.rand(2, 3, 4) < 0.3).double(), torch.rand(2, 4) < 0.7
    losses = [f(logits, targets, mask, alpha, gamma) for f in (token_focal_loss, textbook_focal_loss)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, logits)[0] for loss in losses))
    assert torch.autograd.gradcheck(lambda x: token_focal_loss(x, targets, mask, alpha, gamma), [logits])


def test_focal_loss_of_confident_logits() -> None:
    # Confident and right: small values keep their digits. Confident and wrong: finite.
    logits, ones = torch.tensor([[[-12.0, 12.0, -90.0, 90.0]]]).requires_grad_(), torch.ones(1, 4)
    targets = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    exact = textbook_focal_loss(logits[..., :2].double(), targets[..., :2], ones[:, :2], 0.25, 2)
    torch.testing.assert_close(token_focal_loss(logits[..., :2], targets[..., :2], ones[:, :2], 0.25, 2), exact.float())
    loss = token_focal_loss(logits, targets, ones, 0.25, 2)
    assert loss.item() == pytest.approx(0.25 * 90 + 0.75 * 90)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad[0, 0, 2:].tolist() == pytest.approx([-0.25, 0.75])


def test_whole_loss_by_hand() -> None:
    label = {"boxes": tensor([0, 0, 14, 9]), "positive_map": tensor([0, 1, 0, 0])}
    loss, terms = grounding_loss(
        torch.zeros(1, 3, 4),
        torch.zeros(1, 3, 4),
        torch.zeros(1, 3),
        ROW,
        [3],
        torch.ones(1, 4),
        [label],
        tiny_config(),
    )
    assert terms["loss_token"].item() == pytest.approx((0.25 * 0.25 + 11 * 0.75 * 0.25) * LN2)
    assert terms["loss_bbox"].item() == pytest.approx(2 * (1 - 81 / 126), rel=1e-5)  # exclusive areas 9 x 9, 14 x 9
    assert terms["loss_centerness"].item() == pytest.approx(LN2)
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))


def test_weights_of_the_terms() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    plain = model(**inputs, labels=labels).loss_dict
    for name, value in {"token": 3.0, "bbox": 0.5, "centerness": 0.0}.items():
        before = getattr(model.config, f"{name}_loss_weight")
        setattr(model.config, f"{name}_loss_weight", value)
        terms = model(**inputs, labels=labels).loss_dict
        torch.testing.assert_close(terms[f"loss_{name}"], plain[f"loss_{name}"] * value / before)


# --- batches


def gradients(model, labels, **inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]:
    model.zero_grad()
    outputs = model(**(tiny_inputs() | inputs), labels=labels)
    outputs.loss.backward()
    return outputs.loss_dict, {name: p.grad for name, p in model.named_parameters()}


def no_boxes(length: int = 9) -> dict[str, torch.Tensor]:
    return {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, length)}


def test_a_batch_without_boxes() -> None:
    terms, grads = gradients(tiny_model(), [no_boxes(), no_boxes()])
    assert all(bool(term.isfinite()) for term in terms.values())
    assert terms["loss_bbox"].item() == terms["loss_centerness"].item() == 0 < terms["loss_token"].item()
    for name in ("head.bbox_pred.weight", "head.centerness.bias", "head.level_scales.0"):
        assert grads[name] is not None and not bool(grads[name].any())
    assert bool(grads["head.text_projection.weight"].any())


def test_an_image_without_boxes_only_adds_negatives() -> None:
    model, labels = tiny_model(), tiny_labels()
    both, grads = gradients(model, [labels[0], no_boxes()])
    assert all(bool(g.isfinite().all()) for g in grads.values() if g is not None)
    alone = model(**{key: value[:1] for key, value in tiny_inputs().items()}, labels=labels[:1]).loss_dict
    torch.testing.assert_close(both["loss_bbox"], alone["loss_bbox"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["loss_centerness"], alone["loss_centerness"], rtol=1e-4, atol=1e-5)
    assert both["loss_token"] > alone["loss_token"]


def test_a_box_without_a_phrase_still_trains_its_box() -> None:
    labels = tiny_labels()
    for label in labels:
        label["positive_map"] = torch.zeros_like(label["positive_map"])
    terms, _ = gradients(tiny_model(), labels)
    assert all(bool(term.isfinite()) and term > 0 for term in terms.values())


def test_every_parameter_gets_a_gradient_but_the_frozen() -> None:
    model = tiny_model()
    _, grads = gradients(model, tiny_labels())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"head.class_logits.weight", "head.class_logits.bias"}
    assert {name for name, grad in grads.items() if grad is None} == frozen


def test_no_object_is_the_last_token_of_a_full_caption_only() -> None:
    model = tiny_model()
    length = model.config.max_text_length
    logits = torch.zeros(1, 3, length)
    label = {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, length)}

    def token_loss(columns: int, mask: torch.Tensor) -> float:
        cut = {key: value[..., :columns] if key == "positive_map" else value for key, value in label.items()}
        zeros = torch.zeros(1, 3, 4)
        terms = grounding_loss(
            logits[..., :columns], zeros, zeros[..., 0], ROW, [3], mask[:, :columns], [cut], model.config
        )[1]
        return terms["loss_token"].item()

    full, negative = torch.ones(1, length), 0.75 * 0.25 * LN2
    assert token_loss(length - 1, full) == pytest.approx(3 * (length - 1) * negative)
    assert token_loss(length, full) == pytest.approx(3 * ((length - 1) * negative + 0.25 * 0.25 * LN2))
    full[0, -1] = 0
    assert token_loss(length, full) == pytest.approx(3 * (length - 1) * negative)


def test_the_full_caption_runs_through_the_model() -> None:
    model = tiny_model()
    length = model.config.max_text_length
    terms, _ = gradients(model, tiny_labels(length=length), **tiny_inputs(length=length))
    assert all(bool(term.isfinite()) for term in terms.values())


def test_padding_of_the_caption_does_not_change_the_loss() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    expected = model(**inputs, labels=labels).loss_dict

    def pad(x: torch.Tensor, to: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, to - x.shape[-1]))

    for to in (12, model.config.max_text_length):
        inputs_to = inputs | {key: pad(inputs[key], to) for key in ("input_ids", "attention_mask")}
        labels_to = [label | {"positive_map": pad(label["positive_map"], to)} for label in labels]
        for key, value in model(**inputs_to, labels=labels_to).loss_dict.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_half_precision_loss_is_computed_in_float32() -> None:
    model, inputs, labels = tiny_model(), tiny_inputs(), tiny_labels()
    expected = model(**inputs, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda labels: labels[:1], "1 entries for 2"),
        (lambda labels: [labels[0], {"boxes": torch.zeros(1, 4)}], r"labels\[1\] has no 'positive_map'"),
        (lambda labels: [labels[0], {"class_labels": torch.zeros(1)}], r"labels\[1\] has no 'boxes'"),
        (lambda labels: [labels[0] | {"boxes": torch.zeros(2, 5)}, labels[1]], r"\(2, 5\), not \[K, 4\]"),
        (lambda labels: [labels[0] | {"boxes": torch.zeros(4)}, labels[1]], r"labels\[0\]\['boxes'\]"),
        (lambda labels: [labels[0] | {"boxes": torch.zeros(3, 4)}, labels[1]], "one row per box"),
        (lambda labels: [labels[0], labels[1] | {"positive_map": torch.zeros(2, 256)}], r"\(2, 256\), not \(2, 9\)"),
        (lambda labels: [labels[0] | {"boxes": torch.full((2, 4), math.nan)}, labels[1]], "NaN"),
        (lambda labels: [labels[0], labels[1] | {"positive_map": torch.full((2, 9), math.nan)}], r"labels\[1\].*NaN"),
        (lambda labels: [labels[0] | {"boxes": labels[0]["boxes"].flip(1)}, labels[1]], "a box with x2 < x1"),
        (lambda labels: [labels[0] | {"boxes": [[1, 2, 3, 4]] * 2}, labels[1]], "is a list, not a tensor"),
        (lambda labels: [labels[0] | {"positive_map": None}, labels[1]], "is a NoneType, not a tensor"),
        (lambda labels: [labels[0] | {"boxes": torch.tensor([[0, 0, 1e30, 1e30]] * 2)}, labels[1]], "a billion pixels"),
        (lambda labels: labels[0], "labels=an object with the keys .* must be a list"),
        (lambda labels: [labels[0], None], "must be a list: for each pair a dict"),
        (lambda labels: torch.zeros(2, 4), "must be a list"),
        (lambda labels: iter(labels), "must be a list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, words) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        tiny_model()(**tiny_inputs(), labels=change(tiny_labels()))


def test_boxes_that_look_like_fractions_are_told(monkeypatch) -> None:
    told, labels = [], tiny_labels()
    monkeypatch.setattr(loss_glip.logger, "warning_once", told.append)
    tiny_model()(**tiny_inputs(), labels=labels)
    tiny_model()(**tiny_inputs(), labels=[{name: value[:0] for name, value in label.items()} for label in labels])
    assert not told
    labels[1]["boxes"] = labels[1]["boxes"] / 96
    tiny_model()(**tiny_inputs(), labels=labels)
    assert "labels[1]['boxes'] lie between 0 and 1: boxes are x1, y1, x2, y2 in pixels" in told[0]


def test_positives_are_what_the_loss_divides_by() -> None:
    anchors, sizes = make_anchors([(8, 8), (4, 4)], (8, 16), 8), [64, 16]
    boxes = torch.tensor([[0.0, 0, 63, 63], [10, 12, 50, 40]])
    labels = [{"boxes": boxes}, {"boxes": boxes[:0]}, {"boxes": boxes[1:]}]
    *_, centerness = match_labels(labels, anchors, sizes, 9)
    owners = assign_atss(anchors, sizes, [label["boxes"] for label in labels])
    assert len(centerness) == (owners >= 0).sum() > 0
    alone = [match_labels([label], anchors, sizes, 9)[-1] for label in labels]
    assert torch.equal(centerness, torch.cat(alone)) and len(alone[1]) == 0
