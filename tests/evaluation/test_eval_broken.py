# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip evaluate` over what users have: images that cannot be read, odd ids, runs that were there before."""

import json
import shutil

import pytest
from eval_cases import NAMES, SIZES, evaluate
from PIL import Image


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
    assert code == 0 and "2 images cannot be read and were left out: see metrics.json" in error
    assert (metrics["run"]["pictures"], metrics["run"]["skipped"]) == (3, 2)
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
    assert code == 1 and "annotations: its content is another than before" in error and "--fresh" in error
    assert run("--limit", "2", "--fresh")[0] == 0
    Image.new("RGB", SIZES[0]).save(data / "0.png")
    code, _, _, error = run("--limit", "2")
    assert code == 1 and "predictions for other images: 1 of 2 differ" in error and "0.png" in error


def test_figures_without_a_limit_have_no_minus_one(run, data):
    code, metrics, out, _ = run("--limit", "1", benchmark="lvis")
    assert code == 0 and "AR " in out and "@-1" not in out


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
