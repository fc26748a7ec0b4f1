# Copyright 2026 The glip_hf authors. MIT licence.
"""What `glip evaluate` runs; its options are in `evaluate_options`."""

import argparse
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from ..compilation import caption_multiple, compile_for_inference
from ..evaluation import distributed
from ..evaluation.base import Evaluator
from ..evaluation.coco import CocoEvaluator
from ..evaluation.flickr import FlickrEvaluator, folder_digest
from ..evaluation.lvis import LvisEvaluator
from ..evaluation.odinw import mean_metrics
from ..evaluation.report import metric_name, write_report, write_summary
from ..evaluation.run import (
    Result,
    leave_out_broken,
    load_predictions,
    predict,
    provenance,
    require_boxes,
    require_images,
    score,
    write_json,
    write_predictions,
)
from ..evaluation.tasks import Task, detection_task, flickr_task, odinw_sets, sentence_keys
from ..inference import GroundingEngine, GroundingOptions
from ..runs import file_digest
from .common import load_model

CHUNKS = {"lvis": 40}
"""Class names per caption in the published protocols; elsewhere as many as fit."""


DETECTIONS = {"lvis": 300}
"""Detections that are kept, elsewhere 100."""


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; the metrics go to stdout and to the output folder."""
    distributed.start()
    output = Path(arguments.output or f"evaluation/{arguments.benchmark}")
    _check(arguments)
    is_main = distributed.world()[0] == 0
    if arguments.score_only and not is_main:
        return 0  # one process is enough
    if arguments.benchmark == "odinw":
        result = _odinw(arguments, output)
    elif arguments.score_only:
        result = _score_only(arguments, output)
    else:
        whole = _task(arguments)
        require_boxes([whole], arguments.allow_damage)
        task = whole.limited(arguments.limit)
        require_images([task], output)
        (task,), broken = leave_out_broken([task], arguments.on_broken)
        evaluator = partial(_evaluator, arguments, whole)
        evaluator(task).rehearse()
        result = _evaluate(arguments, _engine(arguments), task, evaluator, output, broken)
    if is_main:
        for name, value in result.metrics.items():
            name = metric_name(name)
            print(f"{name:24} {100 * value:7.2f}" if value >= 0 else f"{name:24}       -")
        if count := result.info.get("skipped"):
            warnings.warn(f"{count} images cannot be read and were left out: see metrics.json", stacklevel=1)
        print(f"-> {output}", flush=True)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: naming an option that is missing.
    """
    needed = ["config"] if arguments.benchmark == "odinw" else ["annotations"]
    if not arguments.score_only:
        needed += ["model"] if arguments.benchmark == "odinw" else ["model", "images"]
    if missing := [name for name in needed if getattr(arguments, name) is None]:
        raise ValueError(f"{arguments.benchmark} needs {', '.join(f'--{name}' for name in missing)}.")


def _task(arguments: argparse.Namespace) -> Task:
    images, outside = arguments.images, arguments.allow_outside
    if arguments.benchmark == "flickr":
        return flickr_task(arguments.annotations, images or ".", _subset(arguments), outside)
    return detection_task(arguments.benchmark, arguments.annotations, images, allow_outside=outside)


def _subset(arguments: argparse.Namespace) -> str:
    """The subset of Flickr30k: as given, or from the file name of the annotations."""
    named = re.search(r"(?<![a-z])(test|train|val)(?![a-z])", Path(arguments.annotations).name)
    return arguments.subset or (named[1] if named else "test")


def _evaluator(arguments: argparse.Namespace, whole: Task | None, task: Task | None) -> Evaluator:
    """The benchmark's evaluator for the images of the task, a part of the `whole` one.

    Without tasks all sentences of Flickr30k Entities count.
    """
    if arguments.benchmark != "flickr":
        ids = [image.image_id for image in task.images]
        if arguments.benchmark == "lvis":
            return LvisEvaluator(task.annotations, ids, fixed=not arguments.standard)
        return CocoEvaluator(task.annotations, ids)
    is_part = task and (arguments.limit or len(task.images) < len(whole.images))
    sentences = sentence_keys(task.images) if is_part else None
    evaluator = FlickrEvaluator(_entities(arguments), _subset(arguments), arguments.protocol, sentences=sentences)
    if task is not None:
        asked = {(image.image_id, one.number): len(one.spans) for image in task.images for one in image.sentences}
        evaluator.check_asked(asked)
    return evaluator


def _entities(arguments: argparse.Namespace) -> Path:
    """The folder of Flickr30k Entities: as given, or where the layout of the data set puts it.

    Raises:
        FileNotFoundError: naming the folders that were tried.
    """
    if arguments.entities:
        return Path(arguments.entities)
    folders = [Path(arguments.annotations)]
    for base in (arguments.images, arguments.annotations):
        for parent in [] if base is None else [Path(base), *Path(base).absolute().parents][:3]:
            folders += [parent, parent / "flickr30k", parent / "flickr30k" / "flickr30k"]
    for folder in folders:
        if (folder / "Sentences").is_dir() and (folder / "Annotations").is_dir():
            return folder
    listed = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise FileNotFoundError(f"Sentences/ and Annotations/ of Flickr30k Entities are in none of {listed}: --entities.")


def _engine(arguments: argparse.Namespace) -> GroundingEngine:
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    limit = arguments.max_detections or DETECTIONS.get(arguments.benchmark, 100)
    values = vars(arguments) | {
        "chunk_size": arguments.chunk_size or CHUNKS.get(arguments.benchmark),
        "max_detections": limit,
        "merged_limit": None if arguments.benchmark == "lvis" and not arguments.standard else limit,
        "caption_multiple": caption_multiple(arguments.compile),
    }
    options = GroundingOptions(
        **{field.name: values[field.name] for field in fields(GroundingOptions) if field.name in values}
    )
    if arguments.compile:
        model = compile_for_inference(model, arguments.compile)
    return GroundingEngine(model, processor, options)


def _inputs(arguments: argparse.Namespace, task: Task) -> dict[str, list[str]]:
    """Names and digests of the annotations."""
    path = Path(arguments.annotations if task.annotations is None else task.annotations.name)
    inputs = {} if path.is_dir() else {"annotations": [path.name, file_digest(path)]}
    if arguments.benchmark == "flickr":
        folder = _entities(arguments)
        inputs["entities"] = [folder.name, folder_digest(folder, _subset(arguments))]
    return inputs


def _evaluate(
    arguments: argparse.Namespace,
    engine: GroundingEngine,
    task: Task,
    make_evaluator: Callable[[Task], Evaluator],
    output: Path,
    broken: Mapping[str, str],
) -> Result:
    """Predict, score, and (in process 0) write everything.

    Args:
        broken: path -> reason, of images that were left out of the task already.
    """
    begin = time.monotonic()
    settings = {"dtype": arguments.dtype, "device": engine.model.device.type}
    inputs = _inputs(arguments, task)
    store = predict(engine, task, output, settings, arguments.fresh, inputs, arguments.on_broken)
    seconds = time.monotonic() - begin
    task = replace(task, images=[image for image in task.images if image.path not in store.broken])
    evaluator = make_evaluator(task)
    metrics = score(evaluator, store, task)
    is_measured = task.annotations is None or task.annotations.tally.listed > 0
    info = provenance(engine.model, arguments.model, engine.options)
    info |= {"benchmark": arguments.benchmark, "pictures": len(task.images), "seconds": round(seconds, 1)}
    skipped = {**broken, **store.broken}
    info |= {"skipped": len(skipped), "skipped_images": skipped}
    info |= {} if task.annotations is None else {"annotations": task.annotations.tally.to_dict()}
    result = Result(metrics if is_measured else {}, info)
    if distributed.world()[0] > 0:
        return result
    if is_measured:
        write_report(output, result, evaluator, task, arguments.gallery)
    else:
        write_json(output / "metrics.json", {"run": info})
        write_predictions(output / "predictions.json", evaluator)
    return result


def _score_only(arguments: argparse.Namespace, output: Path) -> Result:
    """Metrics of a result file; with --images also the gallery, with --limit for the first images."""
    wanted = arguments.limit or arguments.images or arguments.benchmark != "flickr"
    whole = _task(arguments) if wanted else None
    task = whole.limited(arguments.limit) if wanted else None
    if task is not None:
        require_boxes([task], arguments.allow_damage)
    evaluator = _evaluator(arguments, whole, task)
    shown = task if arguments.images else None
    return _score_file(arguments, evaluator, Path(arguments.score_only), output, shown)


def _score_file(
    arguments: argparse.Namespace, evaluator: Evaluator, path: Path, output: Path, task: Task | None
) -> Result:
    load_predictions(evaluator, path)
    info = {**provenance(), "benchmark": arguments.benchmark, "predictions": str(path)}
    result = Result(evaluator.summarize(), info)
    write_report(output, result, evaluator, task, arguments.gallery, predictions=False)
    return result


def _odinw(arguments: argparse.Namespace, output: Path) -> Result:
    """Each data set in a subfolder of its own, and the mean in the output folder."""
    sets = odinw_sets(
        arguments.config, arguments.data_root, arguments.prompts, arguments.split, arguments.allow_outside
    )
    tasks = [one.task.limited(arguments.limit) for one in sets]
    require_boxes(tasks, arguments.allow_damage, needed=True)
    evaluator, engine, broken = partial(_evaluator, arguments, None), None, {}
    if not arguments.score_only:  # all sets are looked at before the first is computed
        require_images(tasks, output)
        tasks, broken = leave_out_broken(tasks, arguments.on_broken)
        for task in tasks:
            evaluator(task).rehearse()
        engine = _engine(arguments)
    metrics, info = {}, {}
    for task in tasks:
        name = task.name
        if engine is None:
            path, shown = Path(arguments.score_only) / name / "predictions.json", not task.missing_images()
            result = _score_file(arguments, evaluator(task), path, output / name, task if shown else None)
        else:
            result = _evaluate(arguments, engine, task, evaluator, output / name, {})
            broken |= result.info["skipped_images"]
        metrics[name], info = result.metrics, result.info
    info["pictures"] = sum(len(task.images) for task in tasks)
    info |= {"skipped": len(broken), "skipped_images": broken}
    for of_one_set in ("seconds", "annotations"):
        info.pop(of_one_set, None)
    result = Result(mean_metrics(metrics), info)
    if distributed.world()[0] == 0:
        write_summary(output, result, "AP", metrics, {task.name: len(task.images) for task in tasks})
    return result
