# Copyright 2026 The glip_hf authors. MIT licence.
"""CocoEvaluator against the recorded results of pycocotools, and what users get wrong."""

import importlib.util

import numpy as np
import pytest
from eval_cases import recorded

from glip_hf.evaluation import CocoEvaluator

CASES = [("detections_as_given", 0), ("with_plus_one_width_height", 1)]
BACKENDS = ["pycocotools", "faster_coco_eval"]
TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20]}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
}


@pytest.fixture(scope="module")
def case():
    return recorded("coco")


def backend_or_skip(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: its agreement with pycocotools goes unchecked")
    return name


def by_image(detections, reverse=False):
    """As a model gives them: xyxy with both corners inside, one record per image."""
    images = {}
    for found in detections:
        x, y, w, h = found["bbox"]
        one = images.setdefault(found["image_id"], {"boxes": [], "scores": [], "labels": []})
        one["boxes"].append([x, y, x + w, y + h])
        one["scores"].append(found["score"])
        one["labels"].append(found["category_id"])
    records = [{"image_id": image_id, **found} for image_id, found in images.items()]
    return records[::-1] if reverse else records


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "plus"), CASES)
def test_recorded_results(case, name, plus, backend):
    evaluator = CocoEvaluator(case["gt"], backend=backend_or_skip(backend))
    grown = [0, 0, plus, plus]
    evaluator.load_results(
        {**d, "bbox": [value + more for value, more in zip(d["bbox"], grown)]} for d in case["detections"]
    )
    expected = case["expected"][name]
    figures = evaluator.summarize()
    assert list(figures) == case["expected"]["stat_names"]
    assert list(figures.values()) == pytest.approx(expected["stats"], abs=1e-6)
    classes = {str(row["id"]): row["AP"] for row in evaluator.per_class() if row["AP"] >= 0}
    assert classes == pytest.approx(expected["per_category_AP"], abs=1e-6)


def test_boxes_of_the_model_get_the_inclusive_pixel(case):
    """xyxy predictions, in any order of images, give the metrics of widths that count both corners."""
    evaluator = CocoEvaluator(case["gt"], backend="pycocotools")
    for record in by_image(case["detections"], reverse=True):
        evaluator.update([record])
    expected = case["expected"]["with_plus_one_width_height"]["stats"]
    assert list(evaluator.summarize().values()) == pytest.approx(expected, abs=1e-6)


def test_results_survive_the_file(case):
    first = CocoEvaluator(case["gt"], backend="pycocotools")
    first.update(by_image(case["detections"]))
    second = CocoEvaluator(case["gt"], backend="pycocotools")
    second.load_results(first.results())
    assert second.summarize() == pytest.approx(first.summarize(), abs=1e-9)


def test_no_detections_is_zero():
    evaluator = CocoEvaluator(TRUTH, backend="pycocotools")
    assert set(evaluator.summarize().values()) == {0.0}
    assert {row["name"]: row["AP"] for row in evaluator.per_class()} == {"dog": -1, "cat": 0}
    assert evaluator.gallery_items()[0].score == 0


def test_nothing_to_find_is_missing():
    evaluator = CocoEvaluator({**TRUTH, "annotations": []}, backend="pycocotools")
    assert set(evaluator.summarize().values()) == {-1}


def test_perfect_detection_by_hand():
    evaluator = CocoEvaluator(TRUTH)
    evaluator.update([{"image_id": 1, "boxes": [[10, 10, 29, 29]], "scores": [0.9], "labels": [7]}])
    assert evaluator.summarize()["AP"] == pytest.approx(1)
    (exhibit,) = evaluator.gallery_items()
    found, truth = exhibit.show()
    assert (exhibit.image_id, exhibit.score, exhibit.objects) == (1, 1, 1)
    assert found["text_labels"] == truth["text_labels"] == ["cat"]


def test_second_prediction_is_ignored():
    evaluator = CocoEvaluator(TRUTH)
    evaluator.update([{"image_id": 1, "boxes": np.zeros((0, 4)), "scores": [], "labels": []}])
    with pytest.warns(UserWarning, match="multiple predictions for image 1"):
        evaluator.update([{"image_id": 1, "boxes": [[10, 10, 29, 29]], "scores": [0.9], "labels": [7]}])
    assert evaluator.summarize()["AP"] == 0


def test_only_some_images(case):
    ids = [image["id"] for image in case["gt"]["images"]][:10]
    evaluator = CocoEvaluator(case["gt"], ids, backend="pycocotools")
    evaluator.update(by_image(case["detections"]))
    assert len(evaluator.image_ids) == len(evaluator.gallery_items()) == 10
    assert evaluator.summarize()["AP"] > 0
    with pytest.raises(ValueError, match="image 999999 is not"):
        CocoEvaluator(case["gt"], [999999])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "image 5 is not in the annotations"),
        ({"labels": [0]}, "category 0 is not in the annotations"),
        ({"scores": [0.5, 0.4]}, "1 boxes, 2 scores and 1 labels"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "box .0, 0, nan, 1. is not a list of 4 finite numbers"),
        ({"boxes": [[0, 0, 1]]}, "box .0, 0, 1. is not a list of 4"),
        ({"boxes": None}, "box: None is not a list"),
        ({"scores": np.array(0.5)}, "score: array.0.5. is not a list"),
    ],
)
def test_errors_name_the_value(change, message):
    record = {"image_id": 1, "boxes": [[0, 0, 1, 1]], "scores": [0.5], "labels": [7]}
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(TRUTH).update([record | change])


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend='coco' is unknown: choose one of faster_coco_eval, pycocotools"):
        CocoEvaluator(TRUTH, backend="coco")


def test_malformed_files(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="unreadable JSON at character 0"):
        CocoEvaluator(tmp_path / "a.json")
    with pytest.raises(ValueError, match="is not a JSON object"):
        CocoEvaluator([1, 2])
    with pytest.raises(ValueError, match="there are no 'categories'"):
        CocoEvaluator({"images": [], "categories": []})
    with pytest.raises(ValueError, match="the results: entry 0 has no bbox"):
        CocoEvaluator(TRUTH).load_results([{"image_id": 1, "category_id": 7, "score": 1}])
