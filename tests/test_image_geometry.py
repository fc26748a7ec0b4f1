# Copyright 2026 The glip_hf authors. MIT licence.
"""The size rule and the way of boxes: recorded results of the original, and properties."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from glip_hf.image_processing_pil_glip import (
    coco_to_target,
    common_padded_size,
    resize_target,
    resized_size,
    shortest_edge_size,
)

# --- sizes

# (width, height), shortest edge, expected (height, width) at longest edge 1333: recorded results of
# the original: upscaling, exact fits, the rounding of the short side and the cut of the long one
RECORDED_SIZES = [
    ((640, 480), 800, (800, 1066)),
    ((480, 640), 800, (1066, 800)),
    ((1333, 800), 800, (800, 1333)),
    ((333, 500), 800, (1201, 800)),
    ((1, 1), 800, (800, 800)),
    ((2000, 1000), 800, (666, 1332)),
    ((1000, 2000), 800, (1332, 666)),
    ((3, 5), 800, (1333, 800)),
    ((799, 800), 800, (801, 800)),
    ((1920, 1080), 800, (750, 1333)),
    ((1000, 100), 480, (133, 1330)),
    ((1093, 337), 480, (411, 1333)),
    ((1920, 1080), 560, (560, 995)),
    ((481, 480), 480, (480, 481)),
]


@pytest.mark.parametrize(("original", "shortest", "expected"), RECORDED_SIZES)
def test_size_rule_equals_the_original(original, shortest, expected):
    width, height = original
    assert shortest_edge_size(height, width, shortest, 1333) == expected


def test_size_rule_on_all_recorded_cases(shared):
    cases = json.loads((shared / "parity/preprocessing/cases.json").read_text())
    for case in cases["resize_800_1333"]:
        width, height = case["input_wh"]
        assert list(shortest_edge_size(height, width, 800, 1333)) == case["output_hw"]
    multi_scale = cases["resize_train_multi_scale"]
    for shortest, outputs in multi_scale["output_hw_by_min_size"].items():
        for (width, height), output in zip(multi_scale["input_wh"], outputs, strict=True):
            assert list(shortest_edge_size(height, width, int(shortest), 1333)) == output
    rows = json.loads((shared / "data/transforms/resize_sizes.json").read_text())["rows"]
    for width, height, shortest, longest, new_width, new_height in rows:
        assert shortest_edge_size(height, width, shortest, longest) == (new_height, new_width)


sides = st.integers(1, 12_000)


@example(height=411, width=1001, shortest=411, slack=589)  # 411 * (1001 / 411) is 1000.9999999999999
@given(height=sides, width=sides, shortest=st.integers(1, 1500), slack=st.integers(0, 1500))
def test_size_rule_invariants(height, width, shortest, slack):
    longest = shortest + slack
    new_height, new_width = shortest_edge_size(height, width, shortest, longest)
    assert (new_width, new_height) == shortest_edge_size(width, height, shortest, longest)
    assert (new_height <= new_width) == (height <= width) or new_height == new_width

    ratio = max(height, width) / min(height, width)
    short, long = sorted((new_height, new_width))
    assert 1 <= short <= shortest
    # the long side follows a short side that was rounded by at most a half
    assert long <= longest + ratio / 2
    strip = longest / ratio <= 0.5
    if strip and min(height, width) != short:
        assert (short, long) == (1, longest)
    elif not strip:
        assert -1e-9 * long <= short * ratio - long < 1 + 1e-9 * long  # ratio kept, cut to whole pixels


@given(height=sides, width=sides, size=st.integers(1, 2000))
def test_size_rule_without_upper_limit(height, width, size):
    assert min(shortest_edge_size(height, width, size)) == size


@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=5),
    divisor=st.one_of(st.none(), st.integers(1, 64)),
)
def test_padded_size_is_the_smallest_that_fits(sizes, divisor):
    padded = common_padded_size(sizes, divisor)
    for side, needed in zip(padded, map(max, zip(*sizes, strict=True)), strict=True):
        assert side % (divisor or 1) == 0
        assert needed <= side < needed + (divisor or 1)


def test_other_size_dictionaries():
    assert resized_size(50, 100, {"height": 7, "width": 9}) == (7, 9)
    assert resized_size(50, 100, {"max_height": 100, "max_width": 100}) == (50, 100)
    assert resized_size(1, 10_000, {"max_height": 100, "max_width": 100}) == (1, 100)
    with pytest.raises(ValueError, match="longest_edge.*is not supported"):
        resized_size(50, 100, {"longest_edge": 7})


# --- boxes


def coco(*things, image_id=7):
    return {"image_id": image_id, "annotations": list(things)}


def thing(bbox, category_id=1, **more):
    return {"bbox": bbox, "category_id": category_id, "area": 6.0, "iscrowd": 0, **more}


def test_area_defaults_to_width_times_height():
    target = coco_to_target(coco({"bbox": [1, 2, 3, 4], "category_id": 0}), 20, 20)
    assert target["area"].tolist() == [12]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1}, "'image_id' and 'annotations'"),
        ([1, 2], "'image_id' and 'annotations'"),
        (coco({"bbox": [1, 2, 3, 4]}), "needs 'bbox' and 'category_id'"),
        (coco([1, 2, 3, 4]), "needs 'bbox' and 'category_id'"),
        (coco(thing([1, 2, 3])), "four finite numbers"),
        (coco(thing([1, 2, 3, float("nan")])), "four finite numbers"),
        (coco(thing([1, 2, 3, 4], "cat")), "'category_id' must be an integer"),
        (coco(image_id="img-1"), "'image_id' must be an integer"),
        (coco(image_id=None), "'image_id' must be an integer"),
        (coco(image_id="000007"), "'image_id' must be an integer"),  # a name, as for the readers
        (coco(image_id=10**20), "'image_id' must be an integer"),
        (coco(thing([1, 2, 3, 4], 1.5)), "'category_id' must be an integer, got 1.5"),
        (coco(thing([1, 2, 3, 4], True)), "'category_id' must be an integer, got True"),
        (coco(thing(None)), "needs 'bbox' and 'category_id'"),
        (coco(thing([])), "four finite numbers"),
        (coco(thing(["1", "x", 3, 4])), "four finite numbers"),
        (coco(thing(7)), "four finite numbers"),
        (coco(thing([1, 2, 3, 4], area="much")), "'area' must be a number, got 'much'"),
        (coco(thing([1, 2, 3, 4], area=float("nan"))), "'area' must be a number, got nan"),
        (coco(thing([1, 2, 3, 4], iscrowd="yes")), "'iscrowd' must be 0 or 1, got 'yes'"),
    ],
)
def test_bad_annotations(annotation, message):
    with pytest.raises(ValueError, match=message):
        coco_to_target(annotation, 20, 20)


def test_what_is_beyond_doubt_is_taken():
    box = {"bbox": ["1", "2", "3", "4"], "category_id": 0.0, "area": None, "iscrowd": None}
    others = [
        box | {"bbox": torch.tensor([1.0, 2, 3, 4]), "category_id": torch.tensor([5]), "area": "7.5", "iscrowd": "0"},
        box | {"bbox": np.array([1, 2, 3, 4]), "category_id": " 6", "iscrowd": False},
        *[box | {"iscrowd": crowd} for crowd in (True, "1", 1.0)],
    ]
    target = coco_to_target(coco(box, *others, image_id="7"), 20, 20)
    assert target["class_labels"].tolist() == [0, 5, 6] and target["area"].tolist() == [12, 7.5, 12]
    assert target["boxes"].tolist() == [[1, 2, 3, 5]] * 3 and target["image_id"].tolist() == [7]


# recorded: image 640 x 480 to 1243 x 491
RECORDED_BOXES = [[330.14, 336.95, 335.48, 345.2], [441.36, 198.34, 463.48, 211.47]]
RECORDED_RESIZED = [
    [641.1938, 344.6718, 651.5651, 353.1108],
    [857.2039, 202.8853, 900.1651, 216.3162],
]


def xyxy_to_coco(boxes):
    return coco(*[thing([x1, y1, x2 - x1 + 1, y2 - y1 + 1]) for x1, y1, x2, y2 in boxes])


def test_boxes_follow_the_resize_as_in_the_original():
    target = resize_target(coco_to_target(xyxy_to_coco(RECORDED_BOXES), 480, 640), (491, 1243))
    np.testing.assert_allclose(target["boxes"], RECORDED_RESIZED, rtol=0, atol=1e-4)


def test_boxes_on_all_recorded_cases(shared):
    for case in json.loads((shared / "data/transforms/boxlist_ops.json").read_text()):
        (width, height), (new_width, new_height) = case["size_wh"], case["resize_to_wh"]
        target = coco_to_target(xyxy_to_coco(case["boxes"]), height, width)
        resized = resize_target(target, (new_height, new_width))
        np.testing.assert_allclose(resized["boxes"], case["resized"], rtol=0, atol=1e-3)


@given(st.data())
def test_box_invariants(data):
    height, width = data.draw(st.tuples(st.integers(1, 900), st.integers(1, 900)))
    number = st.floats(-2000, 2000, width=32)
    boxes = data.draw(st.lists(st.tuples(number, number, number, number), max_size=6))
    target = coco_to_target(coco(*[thing(list(box), k) for k, box in enumerate(boxes)]), height, width)
    new = resize_target(target, (height * 2, width * 3))
    kept = target["boxes"]
    assert len(kept) == len(target["class_labels"]) == len(target["area"]) <= len(boxes)
    assert (kept[:, :2] < kept[:, 2:]).all() and (kept >= 0).all()
    assert (kept <= [width - 1, height - 1] * 2).all()
    np.testing.assert_allclose(new["boxes"], kept * [3, 2, 3, 2], rtol=1e-6)
