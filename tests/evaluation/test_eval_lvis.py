# Copyright 2026 The glip_hf authors. MIT licence.
"""LvisEvaluator against the recorded results of the original (and of the package lvis 0.5.3)."""

import numpy as np
import pytest
from eval_cases import recorded

from glip_hf.evaluation import LvisEvaluator, lvis
from glip_hf.evaluation.lvis import match, place_in_group

CASES = {
    "fixed_topk10000": {},
    "fixed_topk50": {"max_per_category": 50},
    "fixed_topk20": {"max_per_category": 20},
    "fixed_topk5": {"max_per_category": 5},
    "normal": {"fixed": False},
    "cross_check_lvis_package_0_5_3": {"fixed": False},
    "no_detections_one_image_only": {},
}


@pytest.fixture(scope="module")
def case():
    return recorded("lvis")


def as_float32(predictions):
    return [
        {
            "image_id": p["image_id"],
            "boxes": np.array(p["boxes"], dtype=np.float32).reshape(-1, 4),
            "scores": np.array(p["scores"], dtype=np.float32),
            "labels": np.array(p["labels"], dtype=np.int64),
        }
        for p in predictions
    ]


@pytest.mark.parametrize("name", CASES)
def test_recorded_results(case, name):
    evaluator = LvisEvaluator(case["gt"], **CASES[name])
    predictions = as_float32(case["predictions"])
    evaluator.update(predictions[:1] if name.startswith("no_detections") else predictions)
    expected = case["expected"][name]
    figures = evaluator.summarize()
    assert figures == pytest.approx(expected["results"], abs=1e-6)
    if "per_category_AP" in expected:
        assert [row["AP"] for row in evaluator.per_class()] == pytest.approx(expected["per_category_AP"], abs=1e-6)
        assert evaluator.num_detections == expected["num_detections_evaluated"]


@pytest.mark.parametrize("reverse", [False, True])
def test_batches_of_seven_with_early_pruning(case, reverse, monkeypatch):
    """Neither the order of updates nor pruning in between changes anything."""
    monkeypatch.setattr(lvis, "PRUNE_FROM", 300)
    evaluator = LvisEvaluator(case["gt"], max_per_category=20)
    predictions = as_float32(case["predictions"])
    predictions = predictions[::-1] if reverse else predictions
    for start in range(0, len(predictions), 7):
        evaluator.update(predictions[start : start + 7])
    assert evaluator._held < 2965
    expected = case["expected"]["fixed_topk20_batch7"]
    assert evaluator.summarize() == pytest.approx(expected["results"], abs=1e-6)
    assert evaluator.num_detections == expected["num_detections_evaluated"]


def test_results_survive_the_file(case):
    first, second = LvisEvaluator(case["gt"]), LvisEvaluator(case["gt"])
    first.update(case["predictions"])
    second.load_results(first.results())
    assert second.summarize() == pytest.approx(first.summarize(), abs=1e-9)


def test_empty():
    truth = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "a", "frequency": "r"}]}
    figures = LvisEvaluator(truth).summarize()
    assert set(figures.values()) == {-1.0} and figures["APr"] == -1


def test_federated_rules_by_hand():
    """Two categories on two images: a false positive counts only where the image is evaluated for it."""
    truth = {
        "images": [
            {"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
            {"id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": [1]},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
        ],
        "categories": [{"id": 1, "name": "a", "frequency": "f"}, {"id": 2, "name": "b", "frequency": "r"}],
    }
    right, wrong = [0, 0, 10, 10], [50, 50, 60, 60]
    evaluator = LvisEvaluator(truth)
    evaluator.update(
        [
            {"image_id": 1, "boxes": [right, wrong], "scores": [0.9, 0.99], "labels": [1, 2]},
            {"image_id": 2, "boxes": [right, wrong, wrong], "scores": [0.8, 0.95, 0.9], "labels": [1, 1, 2]},
        ]
    )
    # Category 1: the unmatched one on image 2 is ignored (not exhaustive). Category 2 has no objects.
    figures = evaluator.summarize()
    assert figures["AP"] == figures["APf"] == figures["APs"] == pytest.approx(1)
    assert figures["APr"] == -1
    # On image 2 category 2 is not evaluated, so its detection is not shown either.
    assert evaluator.gallery_items()[1].show()[0]["text_labels"] == ["a"]


@pytest.mark.parametrize("listed", [5, "12", {}, [None], [[1]], [float("nan")]])
def test_federated_lists_that_are_none(listed):
    images, categories = [{"id": 1, "neg_category_ids": listed}], [{"id": 1, "name": "a"}]
    truth = {"images": images, "annotations": [], "categories": categories}
    if listed:
        with pytest.raises(ValueError, match="image 1: neg_category_ids .* is not a list of category ids"):
            LvisEvaluator(truth)
    else:
        LvisEvaluator(truth)


def test_match_prefers_what_counts_and_the_last_of_equals():
    ious = np.array([[0.9, 0.6, 0.6], [0.6, 0.6, 0.0]])
    ignored = np.array([[True, False, False]])
    matched, on_ignored = match(ious, ignored)
    assert matched[0, 0].tolist() == [True, True] and on_ignored[0, 0].tolist() == [False, False]
    # At 0.65 only the ignored box is near enough, for the first detection.
    assert matched[0, 3].tolist() == [True, False] and on_ignored[0, 3].tolist() == [True, False]


def test_place_in_group():
    assert place_in_group(np.array([3, 3, 5, 7, 7, 7])).tolist() == [0, 1, 0, 0, 1, 2]
    assert place_in_group(np.zeros(0, dtype=np.int64)).tolist() == []
