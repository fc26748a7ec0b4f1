# Copyright 2026 The glip_hf authors. MIT licence.
"""Anchors, box coder, IoU, clipping and NMS, all in the inclusive convention; recorded values of the original."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import FIXTURES
from transformers.utils import is_torchvision_available

from glip_hf.boxes_glip import (
    _make_anchors,
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    make_anchors,
    nms,
    nms_torch,
    nms_torchvision,
)

RECORDED = json.loads((FIXTURES / "boxes.json").read_text())


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_empty_inputs() -> None:
    none, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert box_area(none).shape == (0,)
    assert box_iou(none, torch.rand(3, 4)).shape == (0, 3)
    assert clip_boxes(none, 10, 10).shape == (0, 4)
    assert decode_boxes(none, none).shape == encode_boxes(none, none).shape == (0, 4)
    kept = nms(none, torch.zeros(0), labels, 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def test_anchors_of_the_first_cells() -> None:
    # Side 64 around (3.5, 3.5); the next cell lies 8 pixels to the right. Side 128 around (7.5, 7.5).
    anchors = make_anchors([(2, 3), (1, 2)], [8, 16], 8)
    assert anchors.dtype == torch.float32 and anchors.shape == (8, 4)
    assert anchors[0].tolist() == [-28, -28, 35, 35]
    assert anchors[1].tolist() == [-20, -28, 43, 35]
    assert anchors[3].tolist() == [-28, -20, 35, 43]
    assert anchors[6].tolist() == [-56, -56, 71, 71]
    assert anchors[7].tolist() == [-40, -56, 87, 71]
    assert box_area(anchors).tolist() == [64 * 64] * 6 + [128 * 128] * 2


def test_recorded_box_coder() -> None:
    record = RECORDED["box_coder"]
    anchors = tensor(record["anchors"])
    decoded = decode_boxes(tensor(record["deltas"]), anchors)
    torch.testing.assert_close(decoded, tensor(record["decoded"]), rtol=1e-5, atol=1e-3)
    encoded = encode_boxes(tensor(record["gt"]), anchors)
    torch.testing.assert_close(encoded, tensor(record["encoded"]), rtol=1e-5, atol=1e-5)


def test_anchors_are_cached_per_size() -> None:
    first = make_anchors([torch.Size((2, 3))], [8], 8)
    assert make_anchors([(2, 3)], (8,), 8) is first and make_anchors([(2, 3)], [8], 4) is not first
    for side in range(1, 40):
        make_anchors([(side, side)], [8], 8)
    assert _make_anchors.cache_info().currsize == _make_anchors.cache_info().maxsize == 16


def test_no_regression_is_the_anchor_itself() -> None:
    anchors = make_anchors([(2, 2)], [8], 8)
    assert torch.equal(decode_boxes(torch.zeros(4, 4), anchors), anchors)
    assert torch.equal(encode_boxes(anchors, anchors), torch.zeros(4, 4))


def test_sides_are_capped() -> None:
    anchor = tensor([[0, 0, 15, 15]])
    box = decode_boxes(tensor([[0, 0, 1e6, 1e6]]), anchor)
    assert math.isclose(box[0, 2] - box[0, 0] + 1, 1000, rel_tol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 500)] * 2, *[st.floats(1, 400)] * 2), min_size=1, max_size=6))
def test_coder_round_trip(rows) -> None:
    boxes = tensor([[x, y, x + w, y + h] for x, y, w, h in rows])
    anchors = tensor([[100, 100, 163, 163]]).expand_as(boxes)
    again = decode_boxes(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(again, boxes, rtol=1e-4, atol=1e-2)


def test_iou_counts_both_border_pixels() -> None:
    boxes = tensor([[0, 0, 1, 1], [1, 0, 2, 1], [2, 2, 2, 2], [0, 0, 1, 1]])
    # Two 2 x 2 boxes share a column of two pixels: 2 / (4 + 4 - 2). A box of one pixel has area 1.
    expected = tensor([[1, 1 / 3, 0, 1], [1 / 3, 1, 0, 1 / 3], [0, 0, 1, 0], [1, 1 / 3, 0, 1]])
    torch.testing.assert_close(box_iou(boxes, boxes), expected)
    assert box_area(tensor([[5, 5, 3, 9]])).item() == 0


def test_recorded_clipping() -> None:
    record = RECORDED["clip"]
    source = tensor(RECORDED["clip"]["boxes_xyxy"])
    torch.testing.assert_close(clip_boxes(source, 150, 200), tensor(record["clipped_to_200x150_no_remove"]))


def test_clip_takes_tensor_sizes_and_clips_both_sides() -> None:
    clipped = clip_boxes(tensor([[-3, -2, 300, 200]]), torch.tensor(100), torch.tensor(50))
    assert clipped.tolist() == [[0, 0, 49, 99]]


@pytest.mark.parametrize(("threshold", "kept"), [("threshold", "kept_indices_ascending"), ("threshold2", None)])
def test_recorded_nms(threshold, kept) -> None:
    record = RECORDED["label_aware_nms"]
    found = nms(tensor(record["boxes"]), tensor(record["scores"]), torch.tensor(record["labels"]), record[threshold])
    assert sorted(found.tolist()) == record[kept or "kept_indices_ascending2"]
    scores = tensor(record["scores"])[found]
    assert torch.equal(scores, scores.sort(descending=True).values)


def greedy(boxes, scores, labels, threshold) -> list[int]:
    """The textbook loop, one pair at a time."""
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if not any(bool(box_iou(boxes[i][None], boxes[j][None]) > threshold) for j in rivals):
            kept.append(i)
    return kept


@st.composite
def crowds(draw):
    count = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 24, (count, 2), generator=generator).float()
    sides = torch.randint(0, 16, (count, 2), generator=generator).float()
    scores = torch.rand(count, generator=generator)
    if draw(st.booleans()):  # ties
        scores = (scores * 4).round() / 4
    labels = torch.randint(0, draw(st.integers(1, 4)), (count,), generator=generator)
    return torch.cat([corners, corners + sides], 1), scores, labels


@settings(max_examples=60, deadline=None)
@given(crowds(), st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]))
def test_nms_equals_the_greedy_loop(crowd, threshold) -> None:
    assert nms_torch(*crowd, threshold).tolist() == greedy(*crowd, threshold)


def test_nms_across_blocks() -> None:
    # More boxes than one block of the overlap search, in chains that alternate kept and suppressed.
    starts = torch.arange(1300, dtype=torch.float32) * 4
    boxes = torch.stack([starts, torch.zeros(1300), starts + 9, torch.full((1300,), 9.0)], 1)
    scores = torch.linspace(1, 0.5, 1300)
    kept = nms_torch(boxes, scores, torch.zeros(1300, dtype=torch.int64), 0.4)
    assert kept.tolist() == list(range(0, 1300, 2))


def test_labels_never_suppress_each_other() -> None:
    boxes = tensor([[0, 0, 9, 9]]).expand(3, 4)
    scores = tensor([0.5, 0.9, 0.7])
    assert nms(boxes, scores, torch.tensor([0, 0, 1]), 0.5).tolist() == [1, 2]


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed: its NMS cannot be compared")
def test_nms_equals_torchvision() -> None:
    if not pytest.importorskip("torchvision").extension._has_ops():
        pytest.skip("torchvision's operators do not load beside this torch: its NMS cannot be compared")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(200, 2, generator=generator) * 100
        boxes = torch.cat([corners, corners + torch.rand(200, 2, generator=generator) * 40], 1)
        scores = torch.rand(200, generator=generator)
        labels = torch.randint(0, 3, (200,), generator=generator)
        expected = nms_torchvision(boxes, scores, labels, 0.5)
        assert nms_torch(boxes, scores, labels, 0.5).tolist() == expected.tolist()


def test_iou_of_empty_boxes_is_zero() -> None:
    inverted = tensor([[9, 9, 3, 3], [5, 5, 9, 9]])
    assert box_iou(inverted, inverted).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": torch.full((2, 4), float("nan"))}, "NaN"),
        ({"scores": torch.tensor([0.5, float("nan")])}, "NaN"),
        ({"iou_threshold": float("nan")}, "iou_threshold=nan must be a number"),
        ({"boxes": torch.zeros(2, 5)}, r"\[K, 4\]"),
        ({"scores": torch.zeros(3)}, r"\[K, 4\]"),
        ({"labels": torch.zeros(1, dtype=torch.int64)}, r"\[K, 4\]"),
    ],
)
def test_nms_of_what_makes_no_sense(change, words) -> None:
    given = {"boxes": torch.zeros(2, 4), "scores": torch.ones(2), "labels": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=words):
        nms(**given | {"iou_threshold": 0.5} | change)
