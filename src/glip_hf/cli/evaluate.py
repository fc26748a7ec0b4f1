# Copyright 2026 The glip_hf authors. MIT licence.
"""What `glip evaluate` runs; its options are in `evaluate_options`."""

import argparse
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from ..compilation import caption_multiple, compile_for_inference
from ..data.sources import guess_file
from ..evaluation import distributed
from ..evaluation.base import Evaluator
from ..evaluation.coco import CocoEvaluator
from ..evaluation.flickr import FlickrEvaluator
from ..evaluation.lvis import LvisEvaluator
from ..evaluation.odinw import mean_metrics
from ..evaluation.refcoco import DATA_SETS, RefCocoEvaluator
from ..evaluation.report import write_report, write_summary
from ..evaluation.run import (
    Result,
    computation,
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
from ..evaluation.tasks import Task, detection_task, flickr_task, odinw_sets, refcoco_task, sentence_keys
from ..inference import GroundingEngine
from ..runs import MANIFEST, RunFolderError, file_digest
from ..values_glip import counted
from .common import UsageError, grounding_options, load_model
from .evaluate_options import DEFAULTS

CHUNKS = {"lvis": 40}  # class names per caption in the published protocols; elsewhere as many as fit
DETECTIONS = {"lvis": 300}  # detections that are kept, elsewhere 100
WITH_SPLITS = "coco of YOLO or VOC"

# Option -> the benchmarks that have it
OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("chunk_size", "separator", "prefix", "suffix", "negative_names"), ("coco", "lvis", "odinw")),
    **dict.fromkeys(("entities", "subset"), ("flickr",)),
    **dict.fromkeys(("config", "prompts"), ("odinw",)),
    **dict.fromkeys(("tokens", "giou"), DATA_SETS),
    "protocol": ("flickr", *DATA_SETS),
    "split": ("odinw", WITH_SPLITS),
    "standard": ("lvis",),
}
# Option -> those of which it needs one
NEEDS = {"overlap": ("tile",), "max_size": ("scales",), "vote_threshold": ("scales", "flip", "tile")}


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; the metrics go to stdout and to the output folder. ODinW's data sets have a subfolder each."""
    distributed.start()
    output = Path(arguments.output or f"evaluation/{arguments.benchmark}")
    _check(arguments)
    is_main, is_odinw = distributed.world()[0] == 0, arguments.benchmark == "odinw"
    if arguments.score_only and not is_main:
        return 0  # one process is enough
    tasks = [task.limited(arguments.limit) for task in _tasks(arguments)]
    folders = [output / task.name if is_odinw else output for task in tasks]
    if arguments.score_only and (held := [folder for folder in folders if (folder / MANIFEST).exists()]):
        raise RunFolderError(f"{held[0]} holds a run, whose metrics would be replaced: choose another --output.")
    require_boxes(tasks, arguments.allow_damage, needed=is_odinw)
    engine = None
    if not arguments.score_only:  # all data sets are looked at before the first is computed
        require_images(tasks, output)
        tasks = leave_out_broken(tasks, arguments.on_broken)
        for task in tasks:
            _evaluator(arguments, task).rehearse()
        engine = _engine(arguments)
        if tuned_for := engine.processor.class_names:  # as in training: whatever the order of ids
            tasks = [task.ordered(tuned_for) for task in tasks]
        for task in tasks:
            if task.names:
                engine.tokenize(task.names)  # a name that no caption can hold
    results = {}
    for task, folder in zip(tasks, folders):
        results[task.name] = (
            _score(arguments, task, folder) if engine is None else _evaluate(arguments, engine, task, folder)
        )
    result = _mean(output, results) if is_odinw else results[tasks[0].name]
    if is_main:
        for name, value in result.metrics.items():
            name = name.removesuffix("@-1")  # of LVIS: no limit of detections
            print(f"{name:24} {100 * value:7.2f}" if value >= 0 else f"{name:24}       -")
        if skipped := result.info.get("skipped_images"):
            warnings.warn(
                f"{counted(len(skipped), 'image')} that cannot be read left out: see metrics.json", stacklevel=1
            )
        print(f"-> {output}", flush=True)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise a UsageError that names an option that is missing, or one that would do nothing."""
    own = {arguments.benchmark}
    if _has_images(arguments) and not arguments.annotations.lower().endswith(".jsonl"):
        own.add(WITH_SPLITS)
    for name, owners in OWNERS.items():
        if getattr(arguments, name) not in (DEFAULTS.get(name), None, False) and own.isdisjoint(owners):
            raise UsageError(f"{_option(name)} is of {', '.join(owners)}, not of {arguments.benchmark}: leave it out.")
    for name, needed in NEEDS.items():
        if getattr(arguments, name) != DEFAULTS.get(name) and not any(getattr(arguments, one) for one in needed):
            others = " or ".join(map(_option, needed))
            raise UsageError(f"{_option(name)} does nothing without {others}: add it, or leave this out.")
    needed = ["config"] if arguments.benchmark == "odinw" else ["annotations"]
    if not arguments.score_only:
        needed += ["model"] if arguments.benchmark == "odinw" or _has_images(arguments) else ["model", "images"]
    if missing := [name for name in needed if getattr(arguments, name) is None]:
        raise UsageError(f"{arguments.benchmark} needs {', '.join(f'--{name}' for name in missing)}.")


def _option(name: str) -> str:
    """The option whose value has this name."""
    return "--" + {"negative_names": "suppress", "vote_threshold": "vote"}.get(name, name).replace("_", "-")


def _has_images(arguments: argparse.Namespace) -> bool:
    """Whether the data set is of a format that tells where its images are, and which split: YOLO, Pascal VOC, ODVG."""
    path = Path(arguments.annotations or "")
    is_other = path.suffix.lower() in (".yaml", ".yml", ".jsonl") or path.is_dir()
    return arguments.benchmark == "coco" and arguments.annotations is not None and is_other


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    """The task of the benchmark, or those of ODinW's data sets."""
    outside = arguments.allow_outside
    if arguments.benchmark == "odinw":
        return odinw_sets(arguments.config, arguments.data_root, arguments.prompts, arguments.split, outside)
    if arguments.benchmark == "flickr":
        return [flickr_task(arguments.annotations, arguments.images or ".", _subset(arguments), outside)]
    if arguments.benchmark in DATA_SETS:
        data = arguments.benchmark, arguments.annotations, arguments.images, arguments.tokens
        return [refcoco_task(*data, allow_outside=outside)]
    if _has_images(arguments):
        options = {} if arguments.split is None else {"split": arguments.split}
        splits = () if options else ("val", "test")
        file, _ = guess_file(arguments.annotations, arguments.images, splits, outside, **options)
        if file.grounded:
            raise UsageError(f"{arguments.annotations} has captions, and coco needs boxes of classes.")
        return [detection_task("coco", file)]
    return [detection_task(arguments.benchmark, arguments.annotations, arguments.images, allow_outside=outside)]


def _subset(arguments: argparse.Namespace) -> str:
    """The subset of Flickr30k: as given, or from the file name of the annotations."""
    named = re.search(r"(?<![a-z])(test|train|val)(?![a-z])", Path(arguments.annotations).name)
    return arguments.subset or (named[1] if named else "test")


def _evaluator(arguments: argparse.Namespace, task: Task) -> Evaluator:
    """The benchmark's evaluator for the images of the task."""
    if arguments.benchmark in DATA_SETS:
        asked = {sentence.number for image in task.images for sentence in image.sentences}
        return RefCocoEvaluator(task.annotations, asked, arguments.protocol, generalized=arguments.giou)
    if arguments.benchmark != "flickr":
        ids = [image.image_id for image in task.images]
        if arguments.benchmark == "lvis":
            return LvisEvaluator(task.annotations, ids, fixed=not arguments.standard)
        return CocoEvaluator(task.annotations, ids)
    sentences = sentence_keys(task.images) if arguments.limit or task.skipped else None
    evaluator = FlickrEvaluator(_entities(arguments), _subset(arguments), arguments.protocol, sentences=sentences)
    evaluator.check_asked(
        {(image.image_id, one.number): len(one.spans) for image in task.images for one in image.sentences}
    )
    return evaluator


def _entities(arguments: argparse.Namespace) -> Path:
    """The folder of Flickr30k Entities, as given or where the data set's layout puts it; else a FileNotFoundError."""
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
    limit = arguments.max_detections or DETECTIONS.get(arguments.benchmark, 100)
    options = grounding_options(
        arguments,
        chunk_size=arguments.chunk_size or CHUNKS.get(arguments.benchmark),
        max_detections=limit,
        merged_limit=None if arguments.benchmark == "lvis" and not arguments.standard else limit,
        caption_multiple=caption_multiple(arguments.compile),
    )
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype, arguments.runtime)
    if arguments.compile:
        if not isinstance(model, nn.Module):
            raise UsageError(f"--compile {arguments.compile} is of PyTorch: leave it out for exported graphs")
        model = compile_for_inference(model, arguments.compile)
    return GroundingEngine(model, processor, options)


def _evaluate(arguments: argparse.Namespace, engine: GroundingEngine, task: Task, output: Path) -> Result:
    """Predict, score, and (in process 0) write everything."""
    begin = time.monotonic()
    # Not "auto": a run that is resumed on another machine must not go on in another dtype.
    settings = computation(engine.model)
    if arguments.benchmark in DATA_SETS:
        settings["tokens"] = arguments.tokens
    path = Path(arguments.annotations if task.annotations is None else task.annotations.name)
    # Of a folder the digest of each image has what is asked about it; scoring reads the rest anew.
    inputs = {} if path.is_dir() else {"annotations": [path.name, file_digest(path)]}
    store = predict(engine, task, output, settings, arguments.fresh, inputs, arguments.on_broken)
    seconds = time.monotonic() - begin
    task = task.without(store.broken)
    evaluator = _evaluator(arguments, task)
    metrics = score(evaluator, store, task)
    info = provenance(engine.model, arguments.model, engine.options)
    info |= {"benchmark": arguments.benchmark, "images": len(task.images), "seconds": round(seconds, 1)}
    info |= {"skipped": len(task.skipped), "skipped_images": task.skipped}
    is_measured = task.annotations is None or task.annotations.tally.listed > 0
    if task.annotations is not None:
        info["annotations"] = asdict(task.annotations.tally)
    result = Result(metrics if is_measured else {}, info)
    if distributed.world()[0] > 0:
        return result
    if is_measured:
        write_report(output, result, evaluator, task, arguments.gallery)
    else:
        write_json(output / "metrics.json", {"run": info})
        write_predictions(output / "predictions.json", evaluator)
    return result


def _score(arguments: argparse.Namespace, task: Task, output: Path) -> Result:
    """Metrics of a result file; with --images (and where ODinW's are) also the gallery."""
    path, shown = Path(arguments.score_only), arguments.images
    if arguments.benchmark == "odinw":
        path, shown = path / task.name / "predictions.json", not task.missing_images()
    evaluator = _evaluator(arguments, task)
    images = task.annotations.images if task.annotations else ()
    sizes = {one["id"]: (one["width"], one["height"]) for one in images if one["width"] and one["height"]}
    load_predictions(evaluator, path, sizes)
    info = {**provenance(), "benchmark": arguments.benchmark, "predictions": str(path), "images": len(task.images)}
    result = Result(evaluator.summarize(), info)
    write_report(output, result, evaluator, task if shown else None, arguments.gallery, predictions=False)
    return result


def _mean(output: Path, results: Mapping[str, Result]) -> Result:
    """The mean over data sets, written to the output folder."""
    *_, info = [dict(one.info) for one in results.values()]
    for of_one_set in ("seconds", "annotations", "predictions"):
        info.pop(of_one_set, None)
    counts = {name: one.info.get("images", 0) for name, one in results.items()}
    skipped = {path: why for one in results.values() for path, why in one.info.get("skipped_images", {}).items()}
    info |= {"images": sum(counts.values()), "skipped": len(skipped), "skipped_images": skipped}
    metrics = {name: one.metrics for name, one in results.items()}
    result = Result(mean_metrics(metrics), info)
    if distributed.world()[0] == 0:
        write_summary(output, result, "AP", metrics, counts)
    return result
