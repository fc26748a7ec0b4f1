# Copyright 2026 The glip_hf authors. MIT licence.
"""A whole evaluation: pictures that are there, predictions (resumed), figures, and the folder with all of it."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..inference import Grounded, GroundingEngine, GroundingOptions, Request
from . import distributed
from .base import Evaluator
from .files import check_records, integers, numbers, read_json
from .flickr import boxes_by_phrase
from .store import PredictionStore
from .tasks import MissingPictures, Picture, Task

BOX_DECIMALS, SCORE_DECIMALS = 3, 6  # of stored predictions: thousandths of a pixel
PACKAGES = ("torch", "transformers", "numpy", "pillow", "pycocotools", "faster-coco-eval")


@dataclass
class Result:
    """What a run found: `metrics` as the evaluator summarizes them, `info` on how they came about."""

    metrics: dict[str, float]
    info: dict[str, Any] = field(default_factory=dict)


def require_pictures(tasks: Sequence[Task], output: str | Path) -> None:
    """
    Raises:
        MissingPictures: for those of all tasks; they are also listed in `missing_pictures.txt`.
    """
    total = sum(len(task.pictures) for task in tasks)
    missing = [path for task in tasks for path in task.missing_pictures()]
    if not missing:
        return
    if distributed.world()[0] == 0:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "missing_pictures.txt").write_text("".join(f"{path}\n" for path in missing))
    raise MissingPictures(missing, total)


def predictions(
    engine: GroundingEngine, task: Task, pictures: Sequence[Picture] | None = None
) -> Iterator[dict[str, Any]]:
    """Predictions for each picture, as soon as they are there (not always in order).

    Args:
        task: its vocabulary is used, or its pictures' sentences.
        pictures: those to do; default all of the task.

    Yields:
        with a vocabulary `{"image_id", "boxes" [K][4] xyxy, "scores" [K], "labels" [K] category ids}`, best
        first; with sentences `{"image_id", "sentences": [{"sentence_id", "boxes", "scores"}]}`, boxes for every
        phrase as Flickr30k's evaluator wants them. Values are rounded to `BOX_DECIMALS`, `SCORE_DECIMALS`.
    """
    pictures = task.pictures if pictures is None else pictures
    for found in engine.ground(_request(picture, task) for picture in pictures):
        yield _prediction(found, pictures[found.index], task)


def _request(picture: Picture, task: Task) -> Request:
    if task.names:
        return Request(picture.path, task.names)
    if not picture.sentences:
        return Request(picture.path)
    sentences = picture.sentences
    return Request(picture.path, [one.text for one in sentences], spans=[one.spans for one in sentences])


def _prediction(found: Grounded, picture: Picture, task: Task) -> dict[str, Any]:
    def rounded(name: str, decimals: int) -> list[Any]:
        return [one[name].double().numpy().round(decimals).tolist() for one in found.detections]

    boxes, scores = rounded("boxes", BOX_DECIMALS), rounded("scores", SCORE_DECIMALS)
    if task.names:
        labels = [task.category_ids[label] for label in found.detections[0]["labels"].tolist()]
        return {"image_id": picture.image_id, "boxes": boxes[0], "scores": scores[0], "labels": labels}
    sentences = []
    for sentence, *rows, one in zip(picture.sentences, boxes, scores, found.detections):
        by_phrase = boxes_by_phrase(*rows, one["labels"], len(sentence.spans))
        sentences.append({"sentence_id": sentence.number, "boxes": by_phrase[0], "scores": by_phrase[1]})
    return {"image_id": picture.image_id, "sentences": sentences}


def predict(
    detector: GroundingEngine, task: Task, output: str | Path, identity: Mapping[str, Any], fresh: bool = False
) -> PredictionStore:
    """Predictions of all pictures of a task, computed where they are not there yet.

    Every process does its share of the pictures, none twice. Progress goes to stderr.

    Args:
        output: folder; partial predictions go to `partial/` in it.
        identity: model and data, to be compared with an earlier run's in the same folder.
        fresh: forget an earlier run's predictions.

    Raises:
        MissingPictures: before anything is computed; all of them are listed in `missing_pictures.txt`.
    """
    require_pictures([task], output)
    rank, size = distributed.world()
    options = {k: v for k, v in asdict(detector.options).items() if k not in GroundingOptions.SPEED}
    settings = {**identity, "task": task.name, "weights": fingerprint(detector.model), **options}
    settings["size"] = dict(detector.options.size or detector.processor.image_processor.size)
    if task.names:  # the order matters: chunks
        settings["vocabulary"] = hashlib.sha256(json.dumps([task.names, task.category_ids]).encode()).hexdigest()[:16]
    store = PredictionStore(output, settings, fresh)
    todo = [picture for picture in task.pictures if picture.image_id not in store.done][rank::size]
    total = len(task.pictures)
    # The bar counts this process's share; the others have as much to do.
    bar = tqdm(total=len(todo), unit="photo", desc=task.name, disable=rank > 0 or not todo, mininterval=1.0)
    if before := sum(picture.image_id in store.done for picture in task.pictures):
        bar.set_postfix_str(f"{before} of {total} done before")
    try:
        for prediction in predictions(detector, task, todo):
            store.append(prediction)
            bar.update()
    finally:
        bar.close()
        store.close()
    return store


def fingerprint(model: torch.nn.Module, values: int = 16) -> str:
    """Tells weights apart, of a model trained further under the same path for one: the first values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:values].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def score(evaluator: Evaluator, store: PredictionStore, task: Task) -> dict[str, float]:
    """Figures of the stored predictions, over all processes; the same in each."""
    wanted = {picture.image_id for picture in task.pictures}
    for prediction in store.own():
        if prediction["image_id"] not in wanted:
            continue  # of an earlier run without --limit
        sentences = prediction.get("sentences")
        evaluator.update(
            [prediction]
            if sentences is None
            else [{"image_id": prediction["image_id"], **sentence} for sentence in sentences]
        )
    evaluator.gather()
    figures = None
    if distributed.world()[0] == 0:
        figures = evaluator.summarize()
    return distributed.broadcast(figures)


def load_predictions(evaluator: Evaluator, path: str | Path) -> None:
    """Predictions of a result file: COCO results, or a list of `{"image_id", "boxes", "scores", "labels"}` (xyxy).

    Raises:
        ValueError: for another content.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a JSON list of results is needed, this is a {type(entries).__name__}.")
    by_picture = bool(entries) and isinstance(entries[0], Mapping) and {"boxes", "labels"} <= set(entries[0])
    if not by_picture:
        evaluator.load_results(entries)
        return
    check_records(entries, ("image_id", "boxes", "scores", "labels"), "the results")
    # What a model gives is float32, and the difference of corners was taken in it.
    evaluator.update(
        {
            "image_id": entry["image_id"],
            "boxes": numbers(entry["boxes"], 4, f"picture {entry['image_id']!r}: box").astype(np.float32),
            "scores": numbers(entry["scores"], None, f"picture {entry['image_id']!r}: score"),
            "labels": integers(entry["labels"], f"picture {entry['image_id']!r}: label"),
        }
        for entry in entries
    )


def provenance(model: Any = None, source: str | None = None, options: GroundingOptions | None = None) -> dict[str, Any]:
    """Where figures come from: command, commit, versions, model, machine."""
    info: dict[str, Any] = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processes": distributed.world()[1],
    }
    if model is not None:
        device = model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
        info |= {"model": source, "model_type": type(model).__name__, "dtype": str(model.dtype).split(".")[-1]}
        info |= {"device": f"{device} ({name})", "threads": torch.get_num_threads()}
    if options is not None:
        info["options"] = asdict(options)
    return info


def _versions() -> dict[str, str]:
    from .. import __version__

    found = {"glip_hf": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the source tree this package runs from, with "+" for changes; or that pip installed it from."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(here), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # An environment inside somebody's repository is not part of it.
    if git("ls-files", "--error-unmatch", "--", Path(__file__).name):
        return f"{git('rev-parse', 'HEAD')}{'+' if git('status', '--porcelain', '--', str(here)) else ''}"
    try:
        origin = json.loads(metadata.distribution("glip_hf").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return None
    return origin.get("vcs_info", {}).get("commit_id")


def write_json(path: Path, value: Any) -> None:
    """Write and rename, so that a half-written file never carries the name."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(temporary, path)


def write_predictions(path: Path, evaluator: Evaluator) -> None:
    """All predictions as one result file, entry by entry: LVIS has millions."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for index, entry in enumerate(evaluator.results()):
            file.write(("\n" if index == 0 else ",\n") + json.dumps(entry, separators=(",", ":")))
        file.write("\n]\n")
    os.replace(temporary, path)


__all__ = [
    "Result",
    "fingerprint",
    "load_predictions",
    "predict",
    "predictions",
    "provenance",
    "require_pictures",
    "score",
    "write_json",
    "write_predictions",
]
