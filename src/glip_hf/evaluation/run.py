# Copyright 2026 The glip_hf authors. MIT licence.
"""A whole evaluation: a check that all images exist, predictions (resumable), metrics, and their provenance."""

import hashlib
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from tqdm import tqdm

from .._writing import replacing_text
from ..data.broken import find_broken
from ..data.images import MissingImages
from ..inference import Grounded, GroundingEngine, GroundingOptions, Request
from ..runs import RunFolderError, environment, file_digest
from ..values_glip import shown
from . import distributed
from .base import DetectionEvaluator, Evaluator
from .files import check_records, numbers, read_json
from .flickr import boxes_by_phrase
from .refcoco import RefCocoEvaluator
from .store import PredictionStore
from .tasks import Task, TaskImage

UNIMPORTANT = ("_name_or_path", "transformers_version")  # of a model's configuration
PACKAGE = Path(__file__).resolve().parents[1]
BOX_DECIMALS, SCORE_DECIMALS = 3, 6  # of stored predictions: thousandths of a pixel


@dataclass
class Result:
    """The outcome of a run: `metrics` as the evaluator summarizes them, `info` on how they came about."""

    metrics: dict[str, float]
    info: dict[str, Any] = field(default_factory=dict)


def require_images(tasks: Sequence[Task], output: str | Path) -> None:
    """Raise `MissingImages` for those of all tasks, after listing them in `missing_images.txt`."""
    missing = [path for task in tasks for path in task.missing_images()]
    if missing and distributed.world()[0] == 0:
        with replacing_text(Path(output) / "missing_images.txt") as file:
            file.writelines(f"{path}\n" for path in missing)
    if missing:
        raise MissingImages(missing, sum(len(task.images) for task in tasks))


def require_boxes(tasks: Sequence[Task], allow_damage: float, needed: bool = False) -> None:
    """Refuse annotations with too much damage, and tell of less: see `data.columns.Tally.require_boxes`."""
    for known in [task.annotations for task in tasks if task.annotations is not None]:
        known.tally.require_boxes(known.name, allow_damage, needed)
        if known.tally.dropped:
            distributed.tell(f"{known.name}: {known.tally.describe()}")
        if not known.tally.listed:
            distributed.tell(f"{known.name} has no annotations: nothing is measured, only predicted")


def leave_out_broken(tasks: Sequence[Task], on_broken: str) -> list[Task]:
    """The tasks without images whose header cannot be read; with "fail" they are refused, see `find_broken`."""
    broken = find_broken((image.ref for task in tasks for image in task.images), on_broken)
    return [task.without(broken) for task in tasks]


def predictions(
    engine: GroundingEngine, task: Task, images: Sequence[TaskImage] | None = None
) -> Iterator[dict[str, Any]]:
    """Predictions for each image, as soon as they are there (not always in order).

    Args:
        task: its class names are looked for, or the sentences of its images.
        images: those to do; default all of the task.

    Yields:
        with class names `{"image_id", "boxes" [K][4] xyxy, "scores" [K], "labels" [K] category ids}`, best first; with
        sentences `{"image_id", "sentences": [{"sentence_id", "boxes", "scores"}]}`, boxes for every phrase as
        Flickr30k's evaluator takes them. Values are rounded to `BOX_DECIMALS`, `SCORE_DECIMALS`.
    """
    images = task.images if images is None else images
    for found in engine.ground(_request(image, task) for image in images):
        yield _prediction(found, images[found.index], task)


def _request(image: TaskImage, task: Task) -> Request:
    if task.names or not image.sentences:
        return Request(image.ref, task.names or None)
    return Request(image.ref, [one.text for one in image.sentences], spans=[one.spans for one in image.sentences])


def _prediction(found: Grounded, image: TaskImage, task: Task) -> dict[str, Any]:
    boxes, scores = (
        [one[name].double().numpy().round(decimals).tolist() for one in found.detections]
        for name, decimals in (("boxes", BOX_DECIMALS), ("scores", SCORE_DECIMALS))
    )
    if task.names:
        labels = [task.category_ids[label] for label in found.detections[0]["labels"].tolist()]
        return {"image_id": image.image_id, "boxes": boxes[0], "scores": scores[0], "labels": labels}
    sentences = []
    for sentence, *rows, one in zip(image.sentences, boxes, scores, found.detections):
        by_phrase = boxes_by_phrase(*rows, one["labels"], len(sentence.spans))
        sentences.append({"sentence_id": sentence.number, "boxes": by_phrase[0], "scores": by_phrase[1]})
    return {"image_id": image.image_id, "sentences": sentences}


def predict(
    engine: GroundingEngine,
    task: Task,
    output: str | Path,
    settings: Mapping[str, Any],
    fresh: bool = False,
    inputs: Mapping[str, Any] | None = None,
    on_broken: str = "fail",
) -> PredictionStore:
    """Predictions for all images of a task, computed where an earlier run has not.

    Every process does its share of the images, none twice. Progress goes to stderr.

    Args:
        output: folder; partial predictions go to `partial/` in it.
        settings, inputs: what else predictions or their metrics follow from (`runs.Manifest`); they, the model, the
            class names and the images have to be those of an earlier run in the same folder.
        fresh: discard the predictions of an earlier run.
        on_broken: "skip" leaves out images that cannot be read (`PredictionStore.broken`); "fail" stops at the first.

    Raises:
        MissingImages: before anything is computed; all of them are listed in `missing_images.txt`.
        RunFolderError: if the folder is in use, or holds predictions that do not go with these.
        ValueError: naming an image that cannot be read.
    """
    require_images([task], output)
    rank, size = distributed.world()
    options = {k: v for k, v in asdict(engine.options).items() if k not in GroundingOptions.SPEED}
    settings = {**settings, "task": task.name, **options}
    settings["size"] = dict(engine.options.size or engine.processor.image_processor.size)
    inputs = {**(inputs or {}), **fingerprints(engine)}
    if task.names:  # the order matters: chunks
        inputs["class names"] = [f"{len(task.names)} names", digest([task.names, task.category_ids])]
    store = PredictionStore(output, settings, fresh, inputs)
    with closing(store):
        _compare_images(store, task)
        todo = [image for image in task.images if image.image_id not in store.done][rank::size]
        before = sum(image.image_id in store.done for image in task.images)
        if before and before == len(task.images):
            distributed.tell(
                f"all {before} predictions in {store.folder} are of an earlier run: nothing is computed, they are "
                "scored again. --fresh computes them anew"
            )
        # The bar counts this process's share; the others have as much to do.
        bar = tqdm(total=len(todo), unit="image", desc=task.name, disable=rank > 0 or not todo, mininterval=1.0)
        if before:
            bar.set_postfix_str(f"{before} of {len(task.images)} done before")
        with bar:
            for found in engine.ground((_request(image, task) for image in todo), skip_broken=True):
                image = todo[found.index]
                if found.error is None:
                    store.append({**_prediction(found, image, task), "input": image_digest(image)})
                elif on_broken == "skip":
                    store.broken[image.path] = str(found.error)
                else:
                    raise ValueError(
                        f"{str(found.error).removesuffix('.')}. Repair the image, or leave it out with --on-broken "
                        "skip; what has been computed is kept."
                    ) from found.error
                bar.update()
        store.broken = distributed.merge(store.broken)
    return store


def _compare_images(store: PredictionStore, task: Task) -> None:
    """Raise a RunFolderError if a stored prediction is of another image than the one that is there now."""
    rank, size = distributed.world()
    known = [image for image in task.images if image.image_id in store.done][rank::size]
    own = [image.path for image in known if store.done[image.image_id] != image_digest(image)]
    if changed := [path for part in distributed.gather(own) for path in part]:
        raise RunFolderError(
            f"{store.folder} holds predictions for other images: {len(changed)} of {len(store.done)} differ from "
            f"those that are there now (the first: {shown(changed[0])}). --fresh computes all anew; or choose another "
            "--output."
        )


def image_digest(image: TaskImage) -> str:
    """A digest of the image's file and of what the annotations say that its predictions depend on."""
    return digest([file_digest(image.path), image.size, [asdict(one) for one in image.sentences]])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _plain_tensors(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a state dict, also those that a wrapper such as torchao's int8 weights holds."""
    for name, tensor in state.items():
        if is_traceable_wrapper_subclass(tensor):
            parts = {f"{name}.{part}": getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]}
            yield from _plain_tensors(parts)
        else:
            yield name, tensor


def fingerprints(engine: GroundingEngine) -> dict[str, list[str]]:
    """Descriptions and digests of all that makes the engine's predictions: weights, configuration, processor, code."""
    processor, code = engine.processor, hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    found = {
        "processor": ["configuration", digest([processor.image_processor.to_dict(), processor.tokenizer.get_vocab()])],
        "glip_hf": ["source code", code.hexdigest()],
    }
    if not isinstance(engine.model, torch.nn.Module):  # exported
        files = [file for graph in engine.model.files for file in sorted(graph.parent.glob(f"{graph.name}*"))]
        return {"weights": [f"{len(files)} files", digest([file_digest(file) for file in files])], **found}
    weights, state = hashlib.sha256(), engine.model.state_dict()
    for name, tensor in _plain_tensors(state):
        weights.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = engine.model.config.to_dict()
    return {
        "weights": [f"{len(state)} tensors", weights.hexdigest()],
        "model": ["configuration", digest({k: v for k, v in config.items() if k not in UNIMPORTANT})],
        **found,
    }


def computation(model: Any) -> dict[str, str]:
    """`dtype` that a model computes in, `device`, and the `runtime` of an exported one."""
    dtype, runtime = getattr(model, "precision", model.dtype), getattr(model, "runtime", None)
    found = {"dtype": str(dtype).removeprefix("torch."), "device": model.device.type}
    return found if runtime is None else {**found, "runtime": runtime}


def score(evaluator: Evaluator, store: PredictionStore, task: Task) -> dict[str, float]:
    """Metrics of the stored predictions, over all processes; the same in each."""
    wanted = {image.image_id for image in task.images}
    for prediction in store.own():
        image_id = prediction["image_id"]
        if image_id in wanted:  # an earlier run may have had no --limit
            evaluator.update({"image_id": image_id, **one} for one in prediction.get("sentences", [prediction]))
    evaluator.gather()
    return distributed.broadcast(evaluator.summarize() if distributed.world()[0] == 0 else None)


def load_predictions(
    evaluator: Evaluator, path: str | Path, sizes: Mapping[int | str, tuple[int, int]] = MappingProxyType({})
) -> None:
    """Give an evaluator a result file: COCO results, or a list of `{"image_id", "boxes", "scores", "labels"}` (xyxy).

    Args:
        sizes: (width, height) in pixels by image id, which tell corners that are written as x, y, width, height.

    Raises:
        ValueError: for a file of another form.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a JSON list of results is needed, this is a {type(entries).__name__}.")
    by_image = bool(entries) and isinstance(entries[0], Mapping) and {"boxes", "labels"} <= set(entries[0])
    if not by_image:
        evaluator.load_results(entries)
        _warn_of_boxes(evaluator, path, sizes)
        return
    check_records(entries, ("image_id", "boxes", "scores", "labels"), "the results")
    # A model gives float32, and the difference of corners was taken in it.
    evaluator.update(
        {
            "image_id": entry["image_id"],
            "boxes": numbers(entry["boxes"], 4, f"image {entry['image_id']!r}: box").astype(np.float32),
            "scores": entry["scores"],
            "labels": entry["labels"],
        }
        for entry in entries
    )
    _warn_of_boxes(evaluator, path, {})


def _warn_of_boxes(evaluator: Evaluator, path: str | Path, sizes: Mapping[int | str, tuple[int, int]]) -> None:
    """Warn when no box of a result file can be right: the figures alone would not tell."""
    if not isinstance(evaluator, DetectionEvaluator | RefCocoEvaluator):
        return
    found = evaluator.boxes()  # [K, 4] xywh
    empty = int((found[:, 2:] <= 0).any(1).sum())
    if not len(found):
        warnings.warn(f"{path} has no results for these images: is it the right file?", stacklevel=3)
    elif (found <= 1).all():
        warnings.warn(f"the boxes of {path} lie between 0 and 1: they must be in pixels", stacklevel=3)
    elif empty:
        warnings.warn(
            f"{empty:,} of {len(found):,} boxes of {path} have no positive width and height: 'bbox' is x, y, width, "
            "height, 'boxes' are x1, y1, x2, y2",
            stacklevel=3,
        )
    elif isinstance(evaluator, DetectionEvaluator) and (far := evaluator.beyond(sizes)) >= max(2, len(found) / 10):
        warnings.warn(
            f"{far:,} of {len(found):,} boxes of {path} leave their image on the right or at the bottom and none on "
            "the other sides: 'bbox' is x, y, width, height, not the corners x1, y1, x2, y2",
            stacklevel=3,
        )


def provenance(model: Any = None, source: str | None = None, options: GroundingOptions | None = None) -> dict[str, Any]:
    """Where metrics come from: command, commit, versions, model, machine."""
    info: dict[str, Any] = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": environment(distributed.world()[1]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processes": distributed.world()[1],
    }
    if model is not None:
        device = model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
        info |= {"model": source, "model_type": type(model).__name__, **computation(model)}
        info |= {"device": f"{device} ({name})", "threads": torch.get_num_threads()}
    if options is not None:
        info["options"] = asdict(options)
    return info


def _commit() -> str | None:
    """The commit of the source tree that this package runs from, "+" for changes; or the one pip installed it from."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here), *arguments]
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
    with replacing_text(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_predictions(path: Path, evaluator: Evaluator) -> None:
    """All predictions as one result file, entry by entry: LVIS has millions."""
    with replacing_text(path) as file:
        file.write("[")
        for index, entry in enumerate(evaluator.results()):
            file.write(("\n" if index == 0 else ",\n") + json.dumps(entry, separators=(",", ":")))
        file.write("\n]\n")
