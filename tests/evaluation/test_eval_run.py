# Copyright 2026 The glip_hf authors. MIT licence.
"""Whole runs: missing images, kill and resume, other settings, several processes."""

import copy
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from eval_cases import SIZES
from PIL import Image
from scene_sets import in_processes

from glip_hf.data.images import MissingImages
from glip_hf.evaluation import CocoEvaluator, LvisEvaluator, distributed, run
from glip_hf.evaluation.run import predict, score
from glip_hf.evaluation.store import PredictionStore
from glip_hf.evaluation.tasks import Task, TaskImage, detection_task
from glip_hf.inference import GroundingEngine, GroundingOptions
from glip_hf.runs import FolderLock, RunFolderError

IDENTITY = {"model": "small", "data": "five photos"}


@pytest.fixture(scope="module")
def task(image_folder):
    return detection_task("coco", image_folder / "annotations.json", image_folder)


@pytest.fixture
def detector(model, processor):
    return GroundingEngine(model, processor, GroundingOptions(threshold=0.3))


def figures(task, image_folder, store):
    return score(CocoEvaluator(image_folder / "annotations.json", backend="pycocotools"), store, task)


def lines(output):
    return sorted(line for path in Path(output, "partial").glob("*.jsonl") for line in path.read_text().splitlines())


def test_kill_and_resume(task, image_folder, detector, tmp_path, monkeypatch):
    whole = predict(detector, task, tmp_path / "whole", IDENTITY)
    append = PredictionStore.append

    def killed_after_two(self, prediction):
        append(self, prediction)
        if len(lines(tmp_path / "resumed")) == 2:
            self._file.write('{"image_id": 12, "boxes": [[1')  # the kill comes in the middle of a line
            raise KeyboardInterrupt

    monkeypatch.setattr(PredictionStore, "append", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        predict(detector, task, tmp_path / "resumed", IDENTITY)
    monkeypatch.undo()

    seen, encode = [], type(detector.model).get_image_features
    monkeypatch.setattr(
        type(detector.model),
        "get_image_features",
        lambda self, *a, **k: seen.append(len(a[0])) or encode(self, *a, **k),
    )
    resumed = predict(detector, task, tmp_path / "resumed", IDENTITY)
    assert sum(seen) == len(SIZES) - 2
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
    assert figures(task, image_folder, resumed) == figures(task, image_folder, whole)


def test_nothing_left_to_do(task, detector, tmp_path, monkeypatch):
    predict(detector, task, tmp_path, IDENTITY)
    monkeypatch.setattr(type(detector.model), "get_image_features", None)
    assert len(list(predict(detector, task, tmp_path, IDENTITY).own())) == len(SIZES)


def test_limit_then_all(task, image_folder, detector, tmp_path):
    few = predict(detector, task.limited(2), tmp_path, IDENTITY)
    assert len(list(few.own())) == 2
    full = predict(detector, task, tmp_path, IDENTITY)
    assert len(list(full.own())) == len(SIZES)
    # Only what was asked for is scored.
    limited = task.limited(2)
    ids = [image.image_id for image in limited.images]
    evaluator = CocoEvaluator(image_folder / "annotations.json", ids, backend="pycocotools")
    score(evaluator, full, limited)
    assert {entry["image_id"] for entry in evaluator.results()} <= set(ids)


def test_other_settings_are_refused(task, model, processor, detector, tmp_path):
    predict(detector, task.limited(1), tmp_path, IDENTITY)
    other = GroundingEngine(model, processor, GroundingOptions(threshold=0.1))
    with pytest.raises(RunFolderError, match="threshold=0.3, this one has 0.1: .*--fresh"):
        predict(other, task.limited(1), tmp_path, IDENTITY)
    faster = GroundingEngine(model, processor, GroundingOptions(threshold=0.3, batch_size=4, workers=1))
    predict(faster, task.limited(1), tmp_path, IDENTITY)  # speed is no setting of results
    assert len(list(predict(other, task.limited(1), tmp_path, IDENTITY, fresh=True).own())) == 1


def test_another_vocabulary_is_refused(task, detector, tmp_path):
    """The same file name, edited: predictions of other words do not mix with these."""
    predict(detector, task.limited(1), tmp_path, IDENTITY)
    edited = Task(task.name, task.images, ["kitten", *task.names[1:]], task.category_ids)
    with pytest.raises(RunFolderError, match="class names .12 names. of another content.*--fresh"):
        predict(detector, edited.limited(2), tmp_path, IDENTITY)


def test_other_weights_are_refused(task, model, processor, detector, tmp_path):
    """Trained further and saved under the same path: the old predictions are not taken for its own."""
    predict(detector, task.limited(1), tmp_path, IDENTITY)
    further = copy.deepcopy(model)
    with torch.no_grad():
        further.head.bbox_pred.bias[0] += 1e-3
    with pytest.raises(RunFolderError, match="weights .298 tensors. of another content.*--fresh"):
        predict(
            GroundingEngine(further, processor, GroundingOptions(threshold=0.3)), task.limited(2), tmp_path, IDENTITY
        )


@pytest.fixture(scope="module")
def whole_run(task, model, processor, tmp_path_factory):
    """The folder of a run that is done."""
    output = tmp_path_factory.mktemp("whole")
    predict(GroundingEngine(model, processor, GroundingOptions(threshold=0.3)), task, output, IDENTITY)
    return output


def three_numbers(line):
    stored = json.loads(line)
    return json.dumps(stored | {"boxes": [box[:3] for box in stored["boxes"]]}, separators=(",", ":")).encode()


DAMAGE = {
    "three numbers per box": three_numbers,
    "boxes null": lambda line: json.dumps(json.loads(line) | {"boxes": None}).encode(),
    "another digit": lambda line: line.replace(b"0.", b"1.", 1),
    "another image": lambda line: line.replace(b'"image_id":11', b'"image_id":10'),
    "a flipped bit": lambda line: line[:40] + bytes([line[40] ^ 128]) + line[41:],
    "not JSON": lambda line: b"?" * len(line),
    "an empty line": lambda line: b"",
    "a JSON number": lambda line: b"3",
    "nested": lambda line: b"[" * 100_000,
    "zeros": lambda line: bytes(len(line)),
    "twice": lambda line: line + b"\n" + line,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_lines_are_computed_again(kind, whole_run, task, image_folder, detector, tmp_path, monkeypatch):
    """Found by their checksums, counted, and made anew; the others are kept."""
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    part = tmp_path / "partial" / "part-000.jsonl"
    stored = part.read_bytes().splitlines()
    part.write_bytes(b"".join(line + b"\n" for line in [stored[0], DAMAGE[kind](stored[1]), *stored[2:]]))
    done, append = [], PredictionStore.append
    monkeypatch.setattr(PredictionStore, "append", lambda self, p: done.append(p["image_id"]) or append(self, p))
    with pytest.warns(UserWarning) as told:
        store = predict(detector, task, tmp_path, IDENTITY)
    messages = " ".join(str(one.message) for one in told)
    assert done == ([] if kind == "twice" else [11])
    assert ("has damaged predictions (1): they are computed again" in messages) == (kind != "twice")
    assert lines(tmp_path) == lines(whole_run)
    assert len(list(store.own())) == len(SIZES)


def test_predictions_of_unknown_origin_are_refused(whole_run, task, detector, tmp_path):
    """Without the manifest, with a damaged one, and with that of another kind of run."""
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    for text in (None, "{", "[]", (whole_run / "run.json").read_text().replace("evaluation", "training")):
        (tmp_path / "run.json").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunFolderError, match="--fresh"):
            predict(detector, task, tmp_path, IDENTITY)
    assert lines(tmp_path) == lines(whole_run)  # nothing was touched
    assert len(list(predict(detector, task, tmp_path, IDENTITY, fresh=True).own())) == len(SIZES)


def test_other_images_are_refused(whole_run, task, detector, tmp_path):
    """Of the same names in another folder, or changed in place; the same ones in another folder are the same run."""
    shutil.copytree(whole_run, tmp_path / "run")
    moved = [replace(image, path=str(tmp_path / Path(image.path).name)) for image in task.images]
    for image in task.images:
        shutil.copy(image.path, tmp_path)
    there = replace(task, images=moved)
    with pytest.warns(UserWarning, match="all 5 predictions .* nothing is computed, they are scored again. --fresh"):
        predict(detector, there, tmp_path / "run", IDENTITY)
    Image.open(moved[2].path).rotate(180).save(moved[2].path)
    with pytest.raises(RunFolderError, match=f"1 of 5 differ .*{moved[2].path}.*--fresh"):
        predict(detector, there, tmp_path / "run", IDENTITY)


@pytest.mark.parametrize("what", ["annotations", "processor", "model", "glip_hf"])
def test_other_inputs_are_refused(what, whole_run, task, model, processor, tmp_path, monkeypatch):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    engine = GroundingEngine(model, copy.deepcopy(processor), GroundingOptions(threshold=0.3))
    if what == "processor":
        engine.processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    elif what == "model":
        monkeypatch.setattr(model.config, "architectures", ["Other"])
    elif what == "glip_hf":
        monkeypatch.setattr(run, "PACKAGE", Path(__file__).parent)
    with pytest.raises(RunFolderError, match=f"with {what}.*--fresh"):
        predict(engine, task, tmp_path, IDENTITY, inputs={"annotations": "x"} if what == "annotations" else {})


def test_one_run_at_a_time(task, detector, tmp_path):
    """While one computes, another in the same folder is refused; afterwards the folder is free."""
    lock = FolderLock(tmp_path)
    with pytest.raises(RunFolderError, match=f"in use by this process .{os.getpid()}."):
        predict(detector, task.limited(1), tmp_path, IDENTITY)
    lock.release()
    predict(detector, task.limited(1), tmp_path, IDENTITY)
    predict(detector, task.limited(2), tmp_path, IDENTITY)


def test_progress_and_time_left(task, detector, tmp_path, capsys):
    predict(detector, task.limited(2), tmp_path, IDENTITY)
    capsys.readouterr()
    predict(detector, task, tmp_path, IDENTITY)
    shown = capsys.readouterr().err
    assert "3/3" in shown and f"2 of {len(SIZES)} done before" in shown
    assert re.search(r"\[\d+:\d+<(\d+:\d+|\?), ", shown)  # elapsed < left


def test_missing_images_come_before_the_run(task, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(type(detector.model), "get_text_features", None)
    gone = [TaskImage(index, f"{tmp_path}/gone-{index}.jpg") for index in range(30)]
    with pytest.raises(MissingImages, match="30 of 35 images are missing") as raised:
        predict(detector, Task("coco", [*task.images, *gone], ["cat"], [1]), tmp_path, IDENTITY)
    assert "gone-0.jpg" in str(raised.value) and "and 10 more" in str(raised.value)
    assert len((tmp_path / "missing_images.txt").read_text().splitlines()) == 30
    assert not (tmp_path / "partial").exists()


def test_damaged_image_is_named(tmp_path, detector):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="bad.jpg"):
        predict(detector, Task("coco", [TaskImage(1, str(tmp_path / "bad.jpg"))], ["cat"], [1]), tmp_path, IDENTITY)


def test_commit_is_that_of_this_package(monkeypatch, tmp_path):
    """Not of a repository that somebody's environment lies in; then of what pip installed from, if it knows."""
    package = tmp_path / "lib" / "run.py"
    package.parent.mkdir()
    package.touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    origins = {"direct_url.json": None}
    distribution = SimpleNamespace(version="0", read_text=origins.get)
    monkeypatch.setattr(run, "__file__", str(package))
    monkeypatch.setattr(run.metadata, "distribution", lambda name: distribution)
    assert run.provenance()["commit"] is None
    origins["direct_url.json"] = '{"vcs_info": {"vcs": "git", "commit_id": "abc"}}'
    assert run.provenance()["commit"] == "abc"
    subprocess.run(["git", "-C", str(tmp_path), "add", "lib"], check=True)
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert run.provenance()["commit"] == f"{head.strip()}+"  # the file is not committed yet


def test_no_images(detector, tmp_path):
    assert list(predict(detector, Task("coco", [], ["cat"], [1]), tmp_path, IDENTITY).own()) == []


def share(truth, output):
    """One process of a run whose model finds every object, with what it counted."""
    rank, size = distributed.world()
    ids = [image["id"] for image in truth["images"]]
    store = PredictionStore(output, {"model": "none"})
    for image_id in [i for i in ids if i not in store.done][rank::size]:
        store.append({"image_id": image_id, "boxes": [[0, 0, 10, 10]], "scores": [1 / image_id], "labels": [1]})
    store.close()
    evaluator = LvisEvaluator(truth)
    evaluator.update(store.own())
    own = evaluator.num_detections
    evaluator.gather()
    figures = distributed.broadcast(evaluator.summarize() if rank == 0 else None)
    return [rank, len(store.done), own, evaluator.num_detections, figures["AP"]]


def test_uneven_shares_of_two_processes(tmp_path):
    """Five images over two processes, one line torn; then nothing left, over one process."""
    truth = {
        "images": [{"id": i, "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in range(1, 6)],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100} for i in range(1, 5)],
        "categories": [{"id": 1, "name": "a", "frequency": "f"}],
    }
    first = in_processes(2, share, truth, tmp_path)
    assert first == [[0, 0, 3, 5, pytest.approx(1)], [1, 0, 2, 5, pytest.approx(1)]]
    part = tmp_path / "partial" / "part-001.jsonl"
    part.write_text(part.read_text()[:-5])
    # One process now owns both files, and makes the torn prediction again.
    assert in_processes(1, share, truth, tmp_path) == [[0, 4, 5, 5, pytest.approx(1)]]
