# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip evaluate` over what users have: images that cannot be read, odd ids, runs that were there before."""

import json
import shutil

import pytest
from eval_cases import NAMES, SIZES, evaluate
from PIL import Image

from glip_hf.data.sources.coco import read_annotations
from glip_hf.evaluation import CocoEvaluator


@pytest.fixture
def data(image_folder, tmp_path):
    """A copy of the images and their annotations, to damage."""
    return shutil.copytree(image_folder, tmp_path / "data")


@pytest.fixture
def run(data, model, processor, tmp_path, capsys, monkeypatch):
    """Evaluates COCO on the data; gives the exit code, metrics.json, stdout and stderr. No plots, no model to load."""
    monkeypatch.setattr("glip_hf.evaluation.report.make_plots", lambda *_: {})

    def start(*more, can_load=True, benchmark="coco"):
        output = tmp_path / "out"
        monkeypatch.setattr("glip_hf.cli.evaluate.load_model", (lambda *_: (model, processor)) if can_load else None)
        files = ["--annotations", f"{data}/annotations.json", "--images", f"{data}", "--output", f"{output}"]
        code = evaluate([benchmark, *files, "--model", "small", "--device", "cpu", "--gallery", "0", *more])
        said = capsys.readouterr()
        return code, json.loads((output / "metrics.json").read_text()) if code == 0 else None, said.out, said.err

    return start


@pytest.fixture
def change(data):
    """Rewrites the annotations: `change(images=..., annotations=..., categories=...)`, from entry to entry."""

    def rewrite(**changes):
        path = data / "annotations.json"
        document = json.loads(path.read_text())
        for key, of_entry in changes.items():
            document[key] = [entry | of_entry(entry) for entry in document[key]]
        path.write_text(json.dumps(document))
        return document

    return rewrite


def cut(path):
    """A header and not much more."""
    path.write_bytes(path.read_bytes()[:300])


def test_a_broken_header_is_found_before_the_model(run, data):
    (data / "3.png").write_bytes(b"not an image")
    code, _, _, error = run(can_load=False)
    assert code == 1 and "1 of 5 images cannot be read" in error and "3.png" in error and "--on-broken skip" in error
    for index in range(len(SIZES)):
        (data / f"{index}.png").write_bytes(b"")
    code, _, _, error = run("--on-broken", "skip", can_load=False)
    assert code == 1 and "5 of 5 images cannot be read" in error and "is the folder right?" in error


def test_a_truncated_image(run, data, tmp_path):
    """Its header is read, its pixels are not: the run stops with the remedy, keeps what it has, and goes on with it."""
    cut(data / "1.png")
    code, _, _, error = run()
    assert code == 1 and "1.png" in error and "--on-broken skip; what has been computed is kept" in error
    (data / "3.png").write_bytes(b"not an image")
    code, metrics, out, error = run("--on-broken", "skip")
    assert code == 0 and "2 images that cannot be read left out: see metrics.json" in error
    assert (metrics["run"]["images"], metrics["run"]["skipped"]) == (3, 2)
    assert sorted(path[-5:] for path in metrics["run"]["skipped_images"]) == ["1.png", "3.png"]
    assert not {entry["image_id"] for entry in json.loads((tmp_path / "out/predictions.json").read_text())} & {11, 13}
    # What was left out is not counted as missed: the figures are those of the three others alone.
    document = json.loads((data / "annotations.json").read_text())
    kept = [image for image in document["images"] if image["id"] not in (11, 13)]
    boxes = [box for box in document["annotations"] if box["image_id"] not in (11, 13)]
    (data / "annotations.json").write_text(json.dumps(document | {"images": kept, "annotations": boxes}))
    expected = run("--fresh")[1]
    assert {k: v for k, v in metrics.items() if k != "run"} == {k: v for k, v in expected.items() if k != "run"}


def test_a_finished_folder_says_so(run, data):
    """Old predictions are named as such; an edited annotation file, and other images, are another run."""
    first = run("--limit", "2")
    assert "earlier run" not in first[3]
    code, metrics, out, error = run("--limit", "2")
    assert (code, out) == (0, first[2]) and "all 2 predictions in" in error and "--fresh computes them anew" in error
    document = json.loads((data / "annotations.json").read_text())
    document["annotations"][0]["bbox"][0] += 1
    (data / "annotations.json").write_text(json.dumps(document))
    code, _, _, error = run("--limit", "2")
    assert code == 2 and "annotations" in error and "another content" in error and "--fresh" in error
    assert run("--limit", "2", "--fresh")[0] == 0
    Image.new("RGB", SIZES[0]).save(data / "0.png")
    code, _, _, error = run("--limit", "2")
    assert code == 2 and "predictions for other images: 1 of 2 differ" in error and "0.png" in error


def test_figures_without_a_limit_have_no_minus_one(run, data):
    code, metrics, out, _ = run("--limit", "1", benchmark="lvis")
    assert code == 0 and "AR " in out and "@-1" not in out


def metrics_alone(metrics):
    return {name: value for name, value in metrics.items() if name not in ("run", "per_category_AP")}


@pytest.mark.parametrize("benchmark", ["coco", "lvis"])
def test_null_is_missing_and_numbers_may_be_text(run, change, benchmark):
    """Null where a tool has nothing to say, and values as other tools spell them: the same figures."""
    _, plain, _, _ = run(benchmark=benchmark)
    nothing = {"width": None, "height": None, "coco_url": None, "flickr_url": None, "license": None}
    nothing |= {"neg_category_ids": None, "not_exhaustive_category_ids": None}
    change(
        images=lambda _: nothing,
        annotations=lambda box: (
            {"iscrowd": None, "area": None, "segmentation": None, "id": 0}
            | {"image_id": f"{box['image_id']}", "category_id": float(box["category_id"])}
            | {"bbox": [str(number) for number in box["bbox"]]}
        ),
        categories=lambda _: {"supercategory": None, "frequency": None},
    )
    code, metrics, _, error = run("--fresh", benchmark=benchmark)
    assert code == 0 and metrics_alone(metrics) == metrics_alone(plain)
    assert metrics["run"]["annotations"]["kept"] == 5 and "left out" not in error


BOXES = [{"bbox": []}, {"bbox": None}, {"bbox": [1, 2, 3, float("nan")]}, {"category_id": None}, {"image_id": "x"}]


def test_one_damaged_box_is_left_out_and_counted(run, data, change):
    whole = (data / "annotations.json").read_text()
    for damage in BOXES:
        (data / "annotations.json").write_text(whole)
        change(annotations=lambda box, damage=damage: damage if box["image_id"] == 11 else {})
        found = read_annotations(data / "annotations.json")
        assert (found.tally.listed, found.tally.kept, sum(found.tally.dropped.values())) == (5, 4, 1)
        assert len(found.boxes) == CocoEvaluator(found).objects_by_category().total() == 4
    code, metrics, _, error = run()
    assert code == 0 and "4 of 5 boxes are used; left out: 1 " in error and "annotation 2" in error
    assert metrics["run"]["annotations"]["kept"] == 4


def test_a_damaged_file_starts_nothing(run, change):
    """Before a model is loaded: exit code 2, counts, the option that allows it."""
    change(annotations=lambda box: {"bbox": None} if box["image_id"] > 11 else {})
    code, _, _, error = run(can_load=False)
    assert code == 2 and "2 of 5 boxes are used" in error and "--allow-damage 0.6" in error
    assert run("--allow-damage", "0.6")[0] == 0
    change(annotations=lambda box: {"bbox": [0.1, 0.2, 0.3, 0.4]})
    code, _, _, error = run("--allow-damage", "1", can_load=False)
    assert code == 2 and "0 of 5 boxes are used; left out: 5 normalised_box" in error


def test_a_file_without_annotations_is_predicted_only(run, data, tmp_path):
    """COCO's test-dev info file."""
    document = json.loads((data / "annotations.json").read_text())
    del document["annotations"]
    (data / "annotations.json").write_text(json.dumps(document))
    code, metrics, out, error = run()
    assert code == 0 and "has no annotations: nothing is measured, only predicted" in error
    assert list(metrics) == ["run"] and "AP" not in out
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in found} == {image["id"] for image in document["images"]}


def test_what_scoring_cannot_take_is_told_before_the_model(run, monkeypatch):
    """Whatever the backend dislikes: it is asked once before any image is read by a model."""

    def refuse(self):
        raise ValueError("no such metric")

    monkeypatch.setattr(CocoEvaluator, "_accumulate", refuse)
    code, _, _, error = run(can_load=False)
    assert code == 1 and "no such metric" in error


def test_ids_of_text_come_back(run, data, tmp_path):
    """From the annotations through the model to predictions.json, and into --score-only."""
    document = json.loads((data / "annotations.json").read_text())
    for image in document["images"]:
        image["id"] = f"photo {image['id']}"
    for category in document["categories"]:
        category["id"] += 2**60
    for box in document["annotations"]:
        box |= {"image_id": f"photo {box['image_id']}", "category_id": box["category_id"] + 2**60}
    (data / "annotations.json").write_text(json.dumps(document))
    code, metrics, _, _ = run()
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in found} == {image["id"] for image in document["images"]}
    assert {entry["category_id"] for entry in found} <= {2**60 + index for index in range(1, len(NAMES) + 1)}
    assert list(metrics["per_category_AP"]) == [f"{2**60 + index}" for index in range(1, len(NAMES) + 1)]
