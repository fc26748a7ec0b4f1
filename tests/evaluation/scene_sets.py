# Copyright 2026 The glip_hf authors. MIT licence.
"""Generated scenes as the five benchmarks' files, runs of several processes over them, and their comparison.

Seven images of four shapes: three that share a batch, and an odd number for two processes.
"""

import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from glip_hf.data.scenes import COLORS, KINDS, make_scene
from glip_hf.data.scenes.sample import SceneSample
from glip_hf.evaluation import distributed

ROOT = Path(__file__).parents[2]
SHAPES = [(160, 160), (160, 120), (160, 160), (120, 160), (160, 160), (160, 96), (120, 160)]  # width, height
IDS = [20 + index for index in range(len(SHAPES))]
NAMES = [f"{color} {kind}" for color in COLORS for kind in KINDS][:46]  # captions of 5 and of 40; all fit in one
CHUNKS = [5, 40, None]
ODINW_SETS = {"evens": IDS[::2], "odds": IDS[1::2]}
BENCHMARKS = ("coco", "lvis", "flickr", "refcoco", "odinw")


def write_scenes(folder: Path) -> Path:
    """Images and the files of every benchmark: `annotations.json` (COCO and LVIS), Flickr30k's, RefCOCO's,
    `tasks/*.yaml`."""
    scenes = [make_scene("detection", 0, index) for index in range(len(SHAPES))]
    images, boxes = [], []
    for image_id, (width, height), scene in zip(IDS, SHAPES, scenes):
        scene.pil.crop((0, 0, width, height)).save(folder / f"{image_id}.png")
        kinds = {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height, **kinds})
        for name, (x1, y1, x2, y2) in _things(scene, width, height):
            box = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
            whose = {"id": len(boxes) + 1, "image_id": image_id, "category_id": NAMES.index(name) + 1}
            boxes.append({**whose, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i, "name": name, "frequency": "rcf"[i % 3]} for i, name in enumerate(NAMES, start=1)]
    whole = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(whole))
    (folder / "tasks").mkdir()
    for name, ids in ODINW_SETS.items():
        part = {
            "images": [image for image in images if image["id"] in ids],
            "annotations": [box for box in boxes if box["image_id"] in ids],
            "categories": categories,
        }
        (folder / f"{name}.json").write_text(json.dumps(part))
        register = {"test": {"ann_file": f"{name}.json", "img_dir": "."}}
        settings = {"DATASETS": {"REGISTER": register, "TEST": '("test",)'}}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(settings))  # JSON is YAML
    things = [_things(scene, *shape) for scene, shape in zip(scenes, SHAPES)]
    _write_sentences(folder, things)
    _write_expressions(folder, things)
    return folder


def _things(scene: SceneSample, width: int, height: int) -> list[tuple[str, list[int]]]:
    """Name and box of what an image of that shape shows wholly, and the vocabulary names."""
    found = [(f"{thing.color} {thing.kind}", [int(side) for side in thing.box]) for thing in scene.things if thing.kind]
    return [(name, box) for name, box in found if name in NAMES and box[2] < width and box[3] < height]


def _write_sentences(folder: Path, images: list[list[tuple[str, list[int]]]]) -> None:
    """Flickr30k Entities' folders and MDETR's file: two sentences for the first image, one for the others."""
    for place in ("Sentences", "Annotations"):
        (folder / place).mkdir()
    records = []
    for image_id, things in zip(IDS, images):
        things = things or [("red star", [5, 5, 60, 60])]
        lines = []
        for number in range(2 if image_id == IDS[0] else 1):
            phrases = [f"a {name}" for name, _ in things]
            phrases = phrases[::-1] if number else phrases
            chains = list(range(1, len(things) + 1))[:: -1 if number else 1]
            marked = [f"[/EN#{chain}/other {phrase}]" for chain, phrase in zip(chains, phrases)]
            lines.append(" and ".join(marked) + " .")
            caption, spans, at = " and ".join(phrases) + " .", [], 0
            for phrase in phrases:
                spans.append([[at, at + len(phrase)]])
                at += len(phrase) + len(" and ")
            record = {"id": len(records), "original_img_id": image_id, "file_name": f"{image_id}.png"}
            records.append({**record, "sentence_id": number, "caption": caption, "tokens_positive_eval": spans})
        (folder / "Sentences" / f"{image_id}.txt").write_text("\n".join(lines) + "\n")
        corners = ("xmin", "ymin", "xmax", "ymax")
        objects = ""
        for chain, (_, box) in enumerate(things, start=1):
            sides = "".join(f"<{name}>{side}</{name}>" for name, side in zip(corners, box))
            objects += f"<object><name>{chain}</name><bndbox>{sides}</bndbox></object>"
        size = "<size><width>160</width><height>160</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "test.txt").write_text("".join(f"{image_id}\n" for image_id in IDS))
    (folder / "final_flickr_separateGT_test.json").write_text(json.dumps({"images": records}))


def _write_expressions(folder: Path, images: list[list[tuple[str, list[int]]]]) -> None:
    """MDETR's file of two data sets in turn: an expression for each thing, at least one for each image."""
    entries, boxes = [], []
    for image_id, (width, height), things in zip(IDS, SHAPES, images):
        for name, (x1, y1, x2, y2) in things or [("red star", [5, 5, 60, 60])]:
            entry = {"id": len(entries), "file_name": f"{image_id}.png", "width": width, "height": height}
            data_set = ("refcoco", "refcoco+")[len(entries) % 2]
            entries.append({**entry, "original_id": image_id, "caption": f"the {name}", "dataset_name": data_set})
            box = {"id": len(boxes), "image_id": entry["id"], "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1]}
            boxes.append({**box, "tokens_positive": [[4, 4 + len(name)]]})
    (folder / "finetune_refcoco_val.json").write_text(json.dumps({"images": entries, "annotations": boxes}))


ANNOTATIONS = {"flickr": "final_flickr_separateGT_test.json", "refcoco": "finetune_refcoco_val.json"}


def command(benchmark: str, scenes: Path, model: str, output: Path, *more: str) -> list[str]:
    """Arguments of `evaluate`."""
    if benchmark == "odinw":
        data = ["--config", f"{scenes}/tasks", "--data-root", f"{scenes}"]
    else:
        name = ANNOTATIONS.get(benchmark, "annotations.json")
        data = ["--annotations", f"{scenes}/{name}", "--images", f"{scenes}"]
    return [benchmark, *data, "--model", model, "--output", f"{output}", "--device", "cpu", "--gallery", "0", *more]


# -- processes -------------------------------------------------------------------------------------


def launcher(processes: int) -> list[str]:
    """`accelerate launch` of the example. `--cpu` would start one process: several on CPUs come from `--multi_gpu`."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed: its launcher goes unchecked")
    options = ["--multi_gpu", "--num_processes", f"{processes}", "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, str(ROOT / "examples" / "evaluate.py")]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def launch(processes: int, arguments: list[str]) -> None:
    """The example to its end."""
    done = subprocess.run([*launcher(processes), *arguments], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def in_processes(number: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns in each of some forked processes that form a group, by rank.

    They have the environment a launcher makes. Forked, because importing torch anew takes seconds; one thread each,
    because OpenMP's threads do not survive a fork.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    common = number, port, results, work, arguments
    started = [context.Process(target=_work, args=(rank, *common)) for rank in range(number)]
    for process in started:
        process.start()
    try:
        found = dict(results.get(timeout=600) for _ in started)
    except Empty:
        pytest.fail("a process does not answer")
    finally:
        for process in started:
            process.join(timeout=60)
            process.kill()
    failed = [text for text in found.values() if isinstance(text, str) and text.startswith("Traceback")]
    assert not failed, "\n".join(failed)
    return [found[rank] for rank in range(number)]


def _work(rank: int, number: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{number}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    PartialState._reset_state()  # of the process that forked this one
    try:
        distributed.start()
        results.put((rank, work(*arguments)))
    except BaseException:
        results.put((rank, traceback.format_exc()))
        raise


# -- comparison ------------------------------------------------------------------------------------


def stored(output: Path) -> list[list[dict[str, Any]]]:
    """What each process stored of a run, by rank."""
    files = sorted((output / "partial").glob("part-*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def assert_each_once(output: Path, ids: list[int | str], processes: int) -> None:
    """Every image is stored by one process, each of which has stored some."""
    shares = stored(output)
    assert sorted(one["image_id"] for share in shares for one in share) == sorted(ids)
    assert len(shares) == processes and all(shares)


def assert_same_predictions(
    found: list[dict[str, Any]],
    expected: list[dict[str, Any]],
    sizes: dict[int | str, tuple[int, int]],
    tolerance: float = 1e-4,
) -> None:
    """The same detections one to one: label, score to the tolerance, box to that fraction of the image.

    Sentences' boxes are compared the same way, a phrase being a label.
    """
    found_by_id, expected_by_id = ({one["image_id"]: _rows(one) for one in many} for many in (found, expected))
    assert set(found_by_id) == set(expected_by_id)
    assert sum(map(len, expected_by_id.values())) > len(expected_by_id), "hardly a detection: nothing is shown"
    for image_id, rows in expected_by_id.items():
        free = list(found_by_id[image_id])
        assert len(free) == len(rows), f"image {image_id}: {len(free)} detections, expected {len(rows)}"
        limit = tolerance * max(sizes[image_id])
        for label, score, box in rows:
            fits = [
                index
                for index, (other, points, corners) in enumerate(free)
                if other == label
                and abs(points - score) <= tolerance
                and all(abs(a - b) <= limit for a, b in zip(box, corners))
            ]
            assert fits, f"image {image_id}: no detection like label {label}, score {score}, box {box}"
            free.pop(fits[0])


def _rows(prediction: dict[str, Any]) -> list[tuple[Any, float, list[float]]]:
    """(label, score, box) of every detection of an image."""
    if "sentences" not in prediction:
        return list(zip(prediction["labels"], prediction["scores"], prediction["boxes"]))
    return [
        ((sentence["sentence_id"], phrase), score, box)
        for sentence in prediction["sentences"]
        for phrase, (scores, boxes) in enumerate(zip(sentence["scores"], sentence["boxes"]))
        for score, box in zip(scores, boxes)
    ]


def image_sizes(scenes: Path) -> dict[int | str, tuple[int, int]]:
    """By id, and by the file name, which is RefCOCO's id of an image."""
    sizes = {image_id: Image.open(scenes / f"{image_id}.png").size for image_id in IDS}
    return sizes | {f"{image_id}.png": size for image_id, size in sizes.items()}
