# Copyright 2026 The glip_hf authors. MIT licence.
"""Result and annotation files through `evaluate ... --score-only`: what is wrong is one line that names it."""

import contextlib
import csv
import io
import json
from copy import deepcopy

import numpy as np
import pytest
from eval_cases import evaluate

from glip_hf.evaluation import CocoEvaluator, LvisEvaluator
from glip_hf.evaluation.files import numbers

TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400}],
    "categories": [{"id": 7, "name": "cat", "frequency": "f"}, {"id": 3, "name": "dog", "frequency": "r"}],
}
FOUND = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "score": 0.9}
BY_PICTURE = {"image_id": 1, "boxes": [[10, 10, 29, 29]], "labels": [7], "scores": [0.9]}
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def score(tmp_path, capsys):
    """Scores entries against annotations; gives the exit code, metrics.json and stderr."""

    def run(benchmark, entries, truth=TRUTH, *more):
        (tmp_path / "found.json").write_text(json.dumps(entries))
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        output = tmp_path / "out"
        files = ["--score-only", f"{tmp_path}/found.json", "--annotations", f"{tmp_path}/truth.json"]
        code = evaluate([benchmark, *files, "--output", f"{output}", *more])
        metrics = json.loads((output / "metrics.json").read_text()) if code == 0 else None
        return code, metrics, capsys.readouterr().err

    return run


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"annotations": [FOUND]}, "a JSON list of results is needed, this is a dict"),
        ([1, 2], "entry 0 is not a JSON object but 1"),
        ([[FOUND]], "entry 0 is not a JSON object"),
        ([FOUND, {key: FOUND[key] for key in ("image_id", "score")}], "entry 1 has no category_id, bbox"),
        ([FOUND | {"image_id": 99}], "image 99 is not in the annotations"),
        ([FOUND | {"image_id": "1"}], "image '1' is not in the annotations"),
        ([FOUND | {"image_id": [1]}], "image_id [1] of entry 0"),
        ([FOUND | {"image_id": True}], "image_id True of entry 0"),
        ([FOUND | {"category_id": True}], "category_id True of entry 0"),
        ([FOUND | {"category_id": [7]}], "category_id [7] of entry 0"),
        ([FOUND | {"category_id": 10**20}], "category 100000000000000000000 is not in the annotations"),
        ([FOUND | {"category_id": "x" * 500}], "category 'xxx"),
        ([FOUND | {"bbox": None}], "bbox None is not a list of 4 finite numbers"),
        ([FOUND | {"score": "0.9"}], "score '0.9' is not a finite number"),
        ([FOUND | {"category_id": 99}], "category 99 is not in the annotations"),
        ([FOUND | {"category_id": "cat"}], "image 1: category 'cat' is not in the annotations"),
        ([FOUND | {"category_id": 7.5}], "image 1: category 7.5 is not in the annotations"),
        ([FOUND | {"score": NAN}], "image 1: score nan is not a finite number"),
        ([FOUND | {"score": None}], "image 1: score None"),
        ([FOUND, FOUND | {"score": "high"}], "image 1: score 'high'"),
        ([FOUND | {"bbox": [0, 0, INFINITE, 1]}], "bbox [0, 0, inf, 1] is not a list of 4 finite numbers"),
        ([FOUND, FOUND | {"bbox": [1, 2, 3]}], "bbox [1, 2, 3]"),
        ([FOUND | {"bbox": [1, 2]}, FOUND | {"bbox": [3, 4]}], "bbox [1, 2]"),
        ([FOUND | {"bbox": [[1, 2, 3, 4]]}], "bbox [[1, 2, 3, 4]]"),
        ([BY_PICTURE | {"boxes": [[1, 2, 3]]}], "image 1: box [1, 2, 3]"),
        ([BY_PICTURE | {"scores": []}], "image 1: 1 boxes, 0 scores and 1 labels"),
        ([BY_PICTURE | {"boxes": None}], "image 1: box: None is not a list"),
        ([BY_PICTURE | {"boxes": {"x": 1}}], "image 1: box: an object with the keys ['x'] is not a list"),
        ([BY_PICTURE | {"scores": None}], "image 1: score: None is not a list"),
        ([BY_PICTURE | {"scores": ["0.9"]}], "image 1: score '0.9' is not a finite number"),
        ([BY_PICTURE | {"labels": None}], "image 1: labels None are not a list of category ids"),
        ([BY_PICTURE | {"labels": "7"}], "image 1: labels '7' are not a list"),
        ([BY_PICTURE | {"labels": [None]}], "image 1: category None is not in the annotations"),
        ([BY_PICTURE, 5], "entry 1 is not a JSON object but 5"),
        ([{"image_id": 1, "boxes": [], "labels": []}], "entry 0 has no scores"),
    ],
)
def test_results_that_are_none(score, benchmark, entries, message):
    code, _, error = score(benchmark, entries)
    assert code == 1 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "has no results for these images: is it the right file?"),
        ([FOUND | {"bbox": [0.1, 0.1, 0.2, 0.2]}], "lie between 0 and 1: they must be in pixels"),
        ([FOUND, FOUND | {"bbox": [30, 30, -20, -20]}], "1 of 2 boxes of "),
        ([BY_PICTURE | {"boxes": [[30, 30, 9, 9]]}], "have no positive width and height"),
    ],
)
def test_results_that_cannot_be_right_are_told(score, entries, message):
    code, _, error = score("coco", entries)
    assert code == 0 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
def test_corners_in_place_of_sizes_are_told(score, benchmark):
    truth = TRUTH | {"images": [image | {"width": 100, "height": 80} for image in TRUTH["images"]]}
    corners = [FOUND | {"bbox": [60, 40, 90, 70]}, FOUND | {"bbox": [55, 30, 95, 60]}, FOUND]
    _, _, error = score(benchmark, corners, truth)
    assert "2 of 3 boxes of" in error and "not the corners x1, y1, x2, y2" in error and error.count("\n") == 1
    for others in ([FOUND | {"bbox": [-5, 0, 20, 20]}], [FOUND]):  # a detector that does not clip; one box alone
        assert score(benchmark, corners[:1] + others, truth)[2] == ""


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"file_name": "a.jpg"}]}, "0 of 1 boxes are used; left out: 1 malformed"),
        ({"images": None}, "unknown_image"),
        ({"categories": [{"id": 7}]}, "the category None with the id 7 has no name"),
        ({"categories": [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}]}, "stands for 'cat' and for 'dog'"),
        ({"categories": None}, "there are no 'categories'"),
        ({"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}, "annotation number 0 of image 1: no category_id"),
        ({"annotations": [TRUTH["annotations"][0] | {"bbox": [1, 2, 3, NAN]}]}, "1 nan_box"),
        ({"annotations": [TRUTH["annotations"][0] | {"bbox": [0.1, 0.2, 0.3, 0.4]}]}, "1 normalised_box"),
        ({"annotations": [TRUTH["annotations"][0] | {"iscrowd": 1}]}, "0 of 1 boxes are used; left out: 1 crowd"),
    ],
)
def test_annotations_that_are_none(score, benchmark, change, message):
    """Nothing is scored against a file without a usable box."""
    code, _, error = score(benchmark, [FOUND], TRUTH | change)
    assert code == (1 if "categories" in change else 2) and message in error and error.count("\n") == 1


def with_ids(first, second, cat, dog):
    """`TRUTH` and what was found in it, with other ids of its images and categories."""
    images = [image | {"id": new} for image, new in zip(TRUTH["images"], (first, second))]
    categories = [category | {"id": new} for category, new in zip(TRUTH["categories"], (cat, dog))]
    boxes = [{"image_id": image, "category_id": cat, "bbox": [10, 10, 20, 20]} for image in (first, second)]
    found = [FOUND | {"image_id": image, "category_id": cat} for image in (second, first)]
    return TRUTH | {"images": images, "categories": categories, "annotations": boxes}, found


IDS = {
    "text": ("img_1", "img_2", "cat", "dog"),
    "numeric text": ("000001", "1", "7", "07"),
    "beyond float64": (2**53, 2**53 + 1, 2**53, 2**53 + 1),
    "beyond int64": (10**20, 10**20 + 1, 10**20, 2**63),
    "negative": (-1, 0, -1, 0),
    "unicode": ("bild ä", "图 \t", "\ud7ff", "\U0001f600"),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("evaluator", [CocoEvaluator, LvisEvaluator])
def test_ids_of_any_kind_come_back_as_they_were(evaluator, ids):
    """Scored, and written as the annotations have them; our own file is read again."""
    truth, found = with_ids(*ids)
    by_file, by_image = evaluator(truth), evaluator(truth)
    by_file.load_results(found)
    by_image.update(BY_PICTURE | {"image_id": image, "labels": [ids[2]]} for image in ids[:2])
    for one in (by_file, by_image):
        written = json.loads(json.dumps(list(one.results())))
        assert {(e["image_id"], e["category_id"]) for e in written} == {(ids[0], ids[2]), (ids[1], ids[2])}
        again = evaluator(truth)
        again.load_results(written)
        assert again.summarize() == one.summarize() and one.summarize()["AP50"] == pytest.approx(1)
        assert {row["id"]: row["objects"] for row in one.per_class()} == {ids[2]: 2, ids[3]: 0}


@pytest.mark.parametrize("evaluator", [CocoEvaluator, LvisEvaluator])
def test_the_document_is_not_changed(evaluator):
    """The backends write into the records that they are given."""
    before = deepcopy(TRUTH)
    made = evaluator(TRUTH)
    made.load_results([deepcopy(FOUND)])
    made.summarize()
    assert before == TRUTH


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
def test_nothing_found_and_nothing_to_find(score, benchmark):
    """Zero where there is something to find, a dash (-1) where not; the folder is whole in both cases."""
    code, metrics, _ = score(benchmark, [])
    assert code == 0 and metrics["AP"] == 0 and metrics["per_category_AP"] == {"3": -1, "7": 0}
    code, metrics, _ = score(benchmark, [BY_PICTURE | {"boxes": [], "labels": [], "scores": []}])
    assert code == 0 and metrics["AP"] == 0
    for entries in ([], [FOUND]):
        code, metrics, _ = score(benchmark, entries, TRUTH | {"annotations": []})
        assert code == 0 and metrics["AP"] == -1


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
@pytest.mark.parametrize("change", [{"category_id": 55}, {"image_id": 9}])
def test_boxes_of_what_is_not_listed_are_left_out(score, benchmark, change):
    """As pycocotools leaves them out; but it is said."""
    boxes = [*TRUTH["annotations"], TRUTH["annotations"][0] | change]
    code, metrics, error = score(benchmark, [FOUND], TRUTH | {"annotations": boxes})
    assert code == 0 and metrics["AP"] == pytest.approx(1)
    assert "1 of 2 boxes are used; left out: 1 unknown_" in error and str(*change.values()) in error


def test_first_images_only(score, tmp_path):
    """--limit goes by the ids of the annotations, as in a run."""
    second = TRUTH["annotations"][0] | {"image_id": 2}
    truth = TRUTH | {"annotations": [*TRUTH["annotations"], second]}
    assert score("coco", [FOUND], truth)[1]["AP"] == pytest.approx(0.5, abs=0.01)
    for image in (truth := deepcopy(truth))["images"]:
        del image["file_name"]  # no image is looked for
    assert score("coco", [FOUND], truth, "--limit", "1")[1]["AP"] == pytest.approx(1)
    with open(tmp_path / "out" / "per_class.csv", newline="") as file:
        assert [row["objects"] for row in csv.DictReader(file)] == ["0", "1"]


def test_a_hair_below_the_threshold(score):
    """Half of the object but 0.0004 pixels of its height: a miss at IoU 0.5, which rounding would make a hit."""
    truth = TRUTH | {"annotations": [TRUTH["annotations"][0] | {"bbox": [0, 0, 10, 10], "area": 100}]}
    assert score("coco", [FOUND | {"bbox": [0, 0, 10, 4.9996]}], truth)[1]["AP50"] == 0
    assert score("coco", [FOUND | {"bbox": [0, 0, 10, 5]}], truth)[1]["AP50"] == pytest.approx(1)


def test_numbers_by_hand():
    assert numbers([], None, "x").shape == (0,) and numbers([], 4, "x").shape == (0, 4)
    assert numbers([[1, 2], [3, 4.5]], 2, "x").tolist() == [[1, 2], [3, 4.5]]
    for value in ("1", None, [1], {}):
        with pytest.raises(ValueError, match="x .* is not a finite number"):
            numbers([1, value], None, "x")


# -- pycocotools itself ----------------------------------------------------------------------------


def random_case(seed):
    """Crowds, more than 100 detections per image, equal scores, images without objects, boxes of full precision."""
    random, number = np.random.default_rng(seed), 0
    images, boxes, found = [], [], []
    for image_id in random.permutation(12).tolist():
        images.append({"id": image_id, "file_name": f"{image_id}.jpg"})
        for _ in range(random.integers(8) if image_id % 4 else 0):
            x, y, w, h = (random.random(4) * [200, 200, *[random.choice([25, 80, 300])] * 2] + 1).tolist()
            number += 1
            what = {"id": number, "image_id": image_id, "category_id": int(random.choice([1, 4, 9]))}
            crowd = int(random.random() < 0.15)
            boxes.append({**what, "bbox": [x, y, w, h], "area": w * h * 0.8, "iscrowd": crowd})
            for _ in range(random.integers(40)):
                moved = (np.array([x, y, w, h]) + random.normal(0, 0.15, 4) * [w, h, w, h]).tolist()
                found.append({"image_id": image_id, "category_id": what["category_id"], "bbox": moved})
        for _ in range(random.integers(100)):
            bbox = (random.random(4) * 200).tolist()
            found.append({"image_id": image_id, "category_id": int(random.choice([1, 4, 7, 9])), "bbox": bbox})
    for one in found:
        one["score"] = round(float(random.random()), 2)
    categories = [{"id": index, "name": f"c{index}"} for index in (9, 1, 7, 4)]
    return {"images": images, "annotations": boxes, "categories": categories}, found


@pytest.mark.parametrize("seed", range(4))
def test_same_as_pycocotools_on_files_it_reads(seed):
    pytest.importorskip("pycocotools", reason="pycocotools (extra eval) is not installed: nothing to compare with")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = random_case(seed)
    evaluator = CocoEvaluator(deepcopy(truth), backend="pycocotools")
    evaluator.load_results(found)
    ours = list(evaluator.summarize().values())
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**truth, "info": {}}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.05 < ours[0] < 0.95
    assert ours == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
