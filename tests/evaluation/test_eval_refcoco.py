# Copyright 2026 The glip_hf authors. MIT licence.
"""RefCOCO: Precision@k worked out by hand, MDETR's generalized IoU, files as users have them, whole runs."""

import json

import numpy as np
import pytest
import torch
from eval_cases import evaluate
from scene_sets import IDS, command, stored, write_scenes
from transformers.loss.loss_for_object_detection import generalized_box_iou

from glip_hf.evaluation import RefCocoEvaluator
from glip_hf.evaluation.refcoco import generalized_iou, read_expressions
from glip_hf.evaluation.run import load_predictions
from glip_hf.evaluation.tasks import refcoco_task

BOX = [10, 10, 20, 20]  # x, y, width, height: the corners 10, 10, 30, 30
HALF = [10, 10, 30, 20]  # inside it, half of it: IoU and generalized IoU 0.5
SHIFTED = [15, 15, 35, 35]  # IoU 225 / 575 = 0.391
NEAR = [14, 14, 34, 34]  # IoU 256 / 544 = 0.471
AWAY = [60, 60, 80, 80]
# x, y, width, height 0, 0, 30, 30: IoU 625 / 1175 = 0.532; the box around both is 35 wide, so the generalized IoU is
# 0.532 - 50 / 1225 = 0.491
DIAGONAL = [5, 5, 35, 35]


def entry(number, caption="the red cup", data_set="refcoco", **more):
    image = {"id": number, "file_name": f"{number // 10}.jpg", "width": 100, "height": 100, "original_id": 7}
    return {**image, "caption": caption, "dataset_name": data_set, **more}


def box(number, corners=BOX, **more):
    return {"id": number, "image_id": number, "bbox": corners, "tokens_positive": [[8, 11]], "iscrowd": 0, **more}


DOCUMENT = {
    "images": [entry(11), entry(12), entry(13), entry(21, data_set="refcoco+"), entry(22, data_set="refcoco+")],
    "annotations": [box(11), box(12), box(13, [0, 0, 30, 30]), box(21), box(22, iscrowd=1)],
    "categories": [{"id": 1, "name": "cup"}],
}
FOUND = [
    {"image_id": 11, "boxes": [AWAY, HALF], "scores": [0.1, 0.9]},  # first, once they are ranked
    {"image_id": 12, "boxes": [AWAY, HALF, SHIFTED, AWAY], "scores": [0.9, 0.6, 0.7, 0.8]},  # fourth
    {"image_id": 13, "boxes": [DIAGONAL], "scores": [0.3]},  # first, unless the IoU is the generalized one
    {"image_id": 21, "boxes": [AWAY] * 9 + [HALF, AWAY], "scores": np.linspace(1, 0, 11).tolist()},  # tenth
    {"image_id": 22, "boxes": [NEAR, SHIFTED], "scores": [0.5, 0.5]},  # never
]
BY_HAND = {
    "Precision@1_all": 2 / 5, "Precision@5_all": 3 / 5, "Precision@10_all": 4 / 5,
    "Precision@1_refcoco": 2 / 3, "Precision@5_refcoco": 3 / 3, "Precision@10_refcoco": 3 / 3,
    "Precision@1_refcoco+": 0, "Precision@5_refcoco+": 0, "Precision@10_refcoco+": 1 / 2,
}  # fmt: skip
WITHOUT_THE_DIAGONAL = {"Precision@1_refcoco": 1 / 3, "Precision@5_refcoco": 2 / 3, "Precision@10_refcoco": 2 / 3}


def summary(found=FOUND, document=DOCUMENT, **options):
    evaluator = RefCocoEvaluator(document, **options)
    evaluator.update(found)
    return evaluator.summarize()


def test_precision_by_hand():
    assert summary() == pytest.approx(BY_HAND)
    generalized = summary(generalized=True)
    assert {name: generalized[name] for name in WITHOUT_THE_DIAGONAL} == pytest.approx(WITHOUT_THE_DIAGONAL)
    assert generalized["Precision@1_all"] == pytest.approx(1 / 5)
    assert summary(iou_threshold=0.45)["Precision@1_refcoco+"] == pytest.approx(1 / 2)  # NEAR counts, then
    assert summary(found=FOUND[::-1]) == summary()
    assert summary(top_k=(4,), only=[12]) == {"Precision@4_all": 1.0, "Precision@4_refcoco": 1.0}


def test_generalized_iou_is_that_of_transformers():
    corners = np.sort(np.random.default_rng(0).uniform(0, 100, [2, 50, 2, 2]), axis=2).reshape(2, 50, 4)
    expected = generalized_box_iou(*map(torch.from_numpy, corners)).numpy()
    assert generalized_iou(*corners) == pytest.approx(expected, abs=1e-12)
    assert (generalized_iou(*corners) < 0).any() and (generalized_iou(*corners) > 0.3).any()
    nothing = np.zeros([1, 4])
    assert generalized_iou(nothing, corners[0, :1]).shape == (1, 1)
    assert generalized_iou(nothing, nothing) == 0


def test_expressions_of_several_boxes():
    """Not in RefCOCO, but its format has them: any of the boxes, or the box around all."""
    document = {"images": [entry(1)], "annotations": [box(1), box(1, [70, 10, 20, 20], id=2)]}
    for found, any_box, merged in (([10, 10, 30, 30], 1, 0), ([10, 10, 90, 30], 0, 1), ([70, 10, 91, 30], 1, 0)):
        predictions = [{"image_id": 1, "boxes": [found], "scores": [1]}]
        assert summary(predictions, document)["Precision@1_all"] == any_box
        assert summary(predictions, document, protocol="merged")["Precision@1_all"] == merged
    with pytest.raises(ValueError, match="protocol='both'"):
        RefCocoEvaluator(document, protocol="both")


def test_predictions_of_another_form():
    evaluator = RefCocoEvaluator(DOCUMENT, only=[11, 12])
    one = FOUND[0]
    for change, message in (
        ({"image_id": 99}, "expression 99 is not in the annotations"),
        ({"image_id": [1]}, "image_id .* is neither a number nor a string"),
        ({"boxes": [[1, 2, 3]]}, r"expression 11: box \[1, 2, 3\] is not a list of 4 finite numbers"),
        ({"scores": ["a", "b"]}, "expression 11: score 'a' is not a finite number"),
        ({"scores": [1]}, "expression 11: 2 boxes and 1 scores"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.load_results([one | change])
    for add in (evaluator.load_results, evaluator.update):
        with pytest.raises(ValueError, match="entry 0 is not a JSON object but 11"):
            add([11])
        with pytest.raises(ValueError, match="entry 2 has no boxes, scores"):
            add([FOUND[4], FOUND[4], {"image_id": 11}])
    with pytest.raises(ValueError, match="entry 0 has no scores"):  # a result file of Flickr30k
        evaluator.load_results([{"image_id": 11, "sentence_id": 0, "boxes": []}])
    with pytest.raises(ValueError, match="entry 0 has no scores"):
        evaluator.load_results([{"image_id": 11, "boxes": []}])
    evaluator.load_results([one, FOUND[4]])  # of an expression that is not evaluated
    with pytest.raises(RuntimeError, match="Missing predictions for 1 of 2 expressions, the first is expression 12 of"):
        evaluator.summarize()
    evaluator.update([{"image_id": 12, "boxes": [], "scores": []}])  # nothing was found
    with pytest.warns(UserWarning, match="multiple predictions for expression 11"):
        evaluator.update([one])
    assert evaluator.summarize()["Precision@10_all"] == 0.5
    again = RefCocoEvaluator(DOCUMENT, only=[11, 12])
    again.load_results(json.loads(json.dumps(list(evaluator.results()))))
    assert again.summarize() == evaluator.summarize()


def test_one_image_for_all_of_its_expressions(tmp_path):
    for name in "12":
        (tmp_path / f"{name}.jpg").touch()
    task = refcoco_task("refcoco", DOCUMENT, tmp_path)
    assert [(image.image_id, image.size) for image in task.images] == [("1.jpg", (100, 100)), ("2.jpg", (100, 100))]
    assert [[one.number for one in image.sentences] for image in task.images] == [[11, 12, 13], [21, 22]]
    assert task.missing_images() == []
    assert task.images[0].sentences[0].spans == [[(8, 11)]]  # "cup"
    assert refcoco_task("refcoco", DOCUMENT, None, "all").images[0].sentences[0].spans == [[(0, 11)]]
    assert task.annotations.tally.kept == 5  # the region of many objects is one of them


def test_files_as_users_have_them(tmp_path, recwarn):
    document = {
        "images": [
            entry(1), entry(2), entry(3, caption=" "), entry(4), entry(5, file_name=None, coco_url="http://a/b/0.jpg"),
            entry(6, file_name="../0.jpg"), entry(7),
        ],
        "annotations": [
            box(1, [10, 10, 0, 20]), box(3), box(4, tokens_positive=[]), box(5), box(6), box(7), box(7), box(99),
        ],
    }  # fmt: skip
    (tmp_path / "0.jpg").touch()
    (tmp_path / "photos").mkdir()
    task = refcoco_task("refcoco", document, tmp_path)
    told = " ".join(str(warning.message) for warning in recwarn)
    assert "2 of 7 expressions have no box and are left out" in told
    assert "1 of 7 expressions have no text and are left out" in told
    assert "1 of 7 expressions have no tokens_positive: all of their tokens score a box" in told
    dropped = {"empty_box": 1, "unknown_image": 1, "duplicate_annotation": 1, "span_outside": 1}
    assert task.annotations.tally.dropped == dropped
    asked = {one.number: one.spans for image in task.images for one in image.sentences}
    assert asked == {4: [[(0, 11)]], 5: [[(8, 11)]], 6: [[(8, 11)]], 7: [[(8, 11)]]}
    (problem,) = refcoco_task("refcoco", document, tmp_path / "photos").missing_images()[-1:]
    assert problem.startswith("image '../0.jpg': the file name") and "--allow-outside" in problem
    with pytest.raises(ValueError, match=r"of refcoco, refcoco\+, and none of refcocog: `glip evaluate refcoco`"):
        refcoco_task("refcocog", DOCUMENT, None)
    with pytest.raises(ValueError, match="none of its 1 images has a caption with a box: MDETR's files"):
        refcoco_task("refcoco", {"images": [entry(1, None)], "annotations": [box(1, tokens_positive=None)]}, None)
    assert refcoco_task("refcoco", {"images": [entry(1)], "annotations": [box(1, [1, 1, 0, 0])]}, None).images == []
    own = [entry(1, data_set="ours"), {key: value for key, value in entry(2).items() if key != "dataset_name"}]
    expressions, notes = read_expressions({"images": own, "annotations": [box(1), box(2)]})
    assert ([one.data_set for one in expressions], notes) == (["ours", ""], {})
    assert len(refcoco_task("refcocog", {"images": own, "annotations": [box(1), box(2)]}, None).images) == 1


def test_nothing_to_compare_with(tmp_path):
    """Entries without annotations are predicted; there is no precision of them."""
    evaluator = RefCocoEvaluator({"images": [entry(1)]})
    evaluator.update([FOUND[0] | {"image_id": 1}])
    assert set(evaluator.summarize().values()) == {-1.0}
    (tmp_path / "gt.json").write_text(json.dumps(DOCUMENT))
    for found, message in (([0.1, 0.1, 0.5, 0.5], "lie between 0 and 1"), ([50, 50, 20, 10], "5 of 5 boxes of")):
        found = [one | {"boxes": [found], "scores": [1]} for one in FOUND]
        (tmp_path / "found.json").write_text(json.dumps(found))
        with pytest.warns(UserWarning, match=message):
            load_predictions(RefCocoEvaluator(tmp_path / "gt.json"), tmp_path / "found.json")


@pytest.mark.parametrize("options", [[], ["--giou"]])
def test_a_result_file_by_hand(tmp_path, options):
    for name, content in (("found.json", FOUND), ("finetune_refcoco_val.json", DOCUMENT)):
        (tmp_path / name).write_text(json.dumps(content))
    files = ["--score-only", f"{tmp_path}/found.json", "--annotations", f"{tmp_path}/finetune_refcoco_val.json"]
    assert evaluate(["refcoco", *files, "--output", f"{tmp_path}/out", *options]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = BY_HAND | (WITHOUT_THE_DIAGONAL if options else {})
    for name in [name for name in expected if options == [] or not name.endswith("_all")]:
        assert metrics[name] == pytest.approx(expected[name])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def test_a_run_its_report_and_its_result_file(scenes, tmp_path, capsys):
    arguments = command("refcoco", scenes, "demo", tmp_path / "out", "--gallery", "2", "--limit", "4")
    assert evaluate(arguments) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["primary"] == "Precision@1_all"
    assert metrics["Precision@1_all"] == 4 / 6  # `demo` knows scenes; two images do not show the star that is asked for
    assert "Precision@1_all            66.67" in capsys.readouterr().out
    asked = refcoco_task("refcoco", scenes / "finetune_refcoco_val.json", None).limited(4).images
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [one["image_id"] for one in found] == [one.number for image in asked for one in image.sentences]
    assert [one["image_id"] for one in stored(tmp_path / "out")[0]] == [f"{image_id}.png" for image_id in IDS[:4]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Precision@1, all expressions" in page and page.count("<figure") == 4 and "the first box of each" in page
    assert (tmp_path / "out" / "precision.png").stat().st_size > 1000

    score = ["refcoco", "--score-only", f"{tmp_path}/out/predictions.json", *arguments[1:3], "--limit", "4"]
    assert evaluate([*score, "--output", f"{tmp_path}/again"]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert {**again, "run": None} == {**metrics, "run": None}

    # Other tokens are another experiment.
    assert evaluate([*arguments, "--tokens", "all"]) == 2
    assert "tokens=head, this one has all" in capsys.readouterr().err
