# Copyright 2026 The glip_hf authors. MIT licence.
"""The data of a pre-training run at its real size: time to the first batch, memory and speed of loader workers, resume.

    python benchmarks/pretraining_data.py                    # 1.7 M images, 25 M boxes, 0.8 M captions: 4 GB of disk
    python benchmarks/pretraining_data.py --images 20000 --captions 10000 --workers 1

Annotation files are generated: Objects365 as the original's TSV files (365 class names, captions sampled), GoldG as
MDETR's JSON. The pixels behind them are 500 JPEG files of 640 x 480: as rows of a TSV file under many names and as hard
links, so they lie in the page cache; disks and networks are not measured. Every row is a process of its own, which
does what `examples/pretrain.py` does to its data: recipe, sources, missing images, digest, batches.

For each number of workers and each size (full, and 1,000 images of each kind): seconds from the start of the process
to the first batch, from an empty cache (`cold`, once) and from a warm one, and to the first batch of a run that
resumes in the middle of epoch `--epoch`; of a worker after `--batches` batches its memory, MiB: `pss` (with its share
of what several processes have), `pss_anonymous` (what of that is not pages of files), `uss` (what it alone has), `rss`;
samples per second of all workers, and samples per second of processor time of one.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import base64
import json
import multiprocessing
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

CLASSES, PIXELS, POOL = 365, 500, 1 << 18
BOXES = 14.7
"""Per image of Objects365 on average; 6 per caption of GoldG."""
WORDS = "circle square star ring cross fish moon heart arrow drop".split()
COLOURS = "red green blue yellow white grey orange purple pink brown".split()
SMALL = 1000
CAPTIONS_PER_IMAGE = 6


def class_names() -> list[str]:
    """`CLASSES` different names of two or three words."""
    pairs = [f"{colour} {word}" for colour in COLOURS for word in WORDS]
    return [*pairs, *(f"striped {pair}" for pair in pairs), *(f"dotted {pair}" for pair in pairs),
            *(f"large {pair}" for pair in pairs)][:CLASSES]  # fmt: skip


def write_pixels(folder: Path) -> None:
    """`PIXELS` JPEG files, and the same as a TSV file with its index."""
    from benchmarks.training_data import write_images

    folder.mkdir(parents=True)
    write_images(folder, PIXELS, seed=0)
    ends = [0]
    with open(folder / "rows.tsv", "wb") as file:
        for number in range(PIXELS):
            file.write(b"%d\t%s\n" % (number, base64.b64encode((folder / f"{number}.jpg").read_bytes())))
            ends.append(file.tell())
    (folder / "rows.lineidx").write_text("".join(f"{end}\n" for end in ends[:-1]))


def random_boxes(rng: np.random.Generator) -> np.ndarray:
    """[POOL, 4] x, y, width, height in images of 640 x 480."""
    low = rng.uniform(0, (400, 300), (POOL, 2))
    return np.concatenate([low, rng.uniform(4, (240, 180), (POOL, 2))], axis=1).round(2)


def runs_of(pool: list[str], counts: np.ndarray, rng: np.random.Generator) -> Iterator[list[str]]:
    """So many entries of the pool that follow one another, for every count."""
    starts = rng.integers(0, len(pool) - counts.max(), len(counts))
    return (pool[start : start + count] for start, count in zip(starts.tolist(), counts.tolist(), strict=True))


def write_objects365(folder: Path, pixels: Path, images: int) -> Path:
    """A TSV set; its YAML."""
    rng, names = np.random.default_rng(1), class_names()
    (folder / "labels.json").write_text(json.dumps({name: index for index, name in enumerate(names, 1)}))
    corners = random_boxes(rng)
    corners[:, 2:] += corners[:, :2]
    labels = rng.integers(0, CLASSES, POOL).tolist()
    pool = [
        f'{{"class": "{names[label]}", "rect": [{box[0]:.2f}, {box[1]:.2f}, {box[2]:.2f}, {box[3]:.2f}]}}'
        for label, box in zip(labels, corners.tolist(), strict=True)
    ]
    counts = rng.poisson(BOXES - 1, images) + 1
    with open(folder / "label.tsv", "w") as file:
        file.writelines(
            f'{number}\t{{"img_id": {number}, "objects": [{", ".join(objects)}]}}\n'
            for number, objects in enumerate(runs_of(pool, counts, rng))
        )
    with open(folder / "hw.tsv", "w") as file:
        file.writelines(f'{number}\t[{{"height": 480, "width": 640}}]\n' for number in range(images))
    parts = [f"img.{number:04d}" for number in range(-(-images // PIXELS))]
    for part in parts:
        for suffix in (".tsv", ".lineidx"):
            os.link(pixels / f"rows{suffix}", folder / f"{part}{suffix}")
    listed = "".join(f"\n- {part}.tsv" for part in parts)
    path = folder / "objects365.yaml"
    path.write_text(f"img:{listed}\nlabel: label.tsv\nhw: hw.tsv\nlabelmap: labels.json\n")
    return path


def write_goldg(folder: Path, pixels: Path, captions: int) -> Path:
    """A grounding set of MDETR's format with its images beside it; the JSON file."""
    rng, names = np.random.default_rng(2), class_names()
    (folder / "images").mkdir()
    for number in range(-(-captions // CAPTIONS_PER_IMAGE)):
        os.link(pixels / f"{number % PIXELS}.jpg", folder / "images" / f"{number}.jpg")
    chosen = rng.integers(0, CLASSES, (captions, 4)).tolist()
    counts = rng.integers(3, 10, captions)
    ends = np.cumsum(counts).tolist()
    path, spans = folder / "goldg.json", []
    with open(path, "w") as file:
        file.write('{"info": [], "licenses": [], "images": [')
        for number, four in enumerate(chosen):
            phrases, caption = [names[index] for index in four], ""
            spans.append([])
            for phrase, joint in zip(phrases, (" next to ", " and ", " above the ", ""), strict=True):
                spans[-1].append(f"[[{len(caption)}, {len(caption) + len(phrase)}]]")
                caption += phrase + joint
            file.write(
                f'{", " if number else ""}{{"file_name": "{number // CAPTIONS_PER_IMAGE}.jpg", "height": 480, "width": '
                f'640, "id": {number}, "original_img_id": {number // CAPTIONS_PER_IMAGE}, "caption": "{caption}", '
                f'"dataset_name": "mixed", "data_source": "vg", "tokens_negative": [[0, {len(caption)}]], '
                f'"sentence_id": {number % CAPTIONS_PER_IMAGE}, "tokens_positive_eval": [{", ".join(spans[-1])}]}}'
            )
        file.write('], "annotations": [')
        boxes = [
            f'"bbox": [{box[0]:.2f}, {box[1]:.2f}, {box[2]:.2f}, {box[3]:.2f}], "area": {box[2] * box[3]:.2f}'
            for box in random_boxes(rng).tolist()
        ]
        for number, some in enumerate(runs_of(boxes, counts, rng)):
            first = ends[number] - len(some)
            file.writelines(
                f'{", " if first + index else ""}{{{box}, "iscrowd": 0, "image_id": {number}, "category_id": 1, "id": '
                f'{first + index}, "tokens_positive": {spans[number][index % 4]}}}'
                for index, box in enumerate(some)
            )
        file.write('], "categories": [{"supercategory": "object", "id": 1, "name": "object"}]}')
    return path


def generate(folder: Path, images: int, captions: int) -> list[dict[str, Any]]:
    """The sources of a run of this size, as in a recipe; what is there is used again."""
    pixels, own = folder / "pixels", folder / f"{images}_{captions}"
    if not pixels.is_dir():
        write_pixels(pixels)
    if not (own / "done").is_file():
        own.mkdir()
        write_objects365(own, pixels, images)
        write_goldg(own, pixels, captions)
        (own / "done").touch()
    return [
        {"format": "tsv", "name": "objects365", "yaml_file": str(own / "objects365.yaml")},
        {"format": "mdetr", "name": "goldg", "annotations": str(own / "goldg.json"), "images": str(own / "images")},
    ]


def worker_memory(pid: int) -> dict[str, float]:
    """Resident memory of a process, MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(value.split()[0]) / 1024 for name, value in (line.split(":") for line in rollup)}
    own = found["Private_Clean"] + found["Private_Dirty"]
    return {"pss": found["Pss"], "pss_anonymous": found["Pss_Anon"], "uss": own, "rss": found["Rss"]}


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run's data, in this process."""
    begun = arguments.begun
    from glip_hf.demo import demo_processor, scenes_config
    from glip_hf.training.batches import recipe_batches, recipe_sources
    from glip_hf.training.recipe import DataRecipe, Recipe

    figures: dict[str, Any] = {"imports": time.time() - begun}
    sources = json.loads(arguments.sources)
    workers = arguments.workers[0]
    data = DataRecipe(sources=sources, batch_size=arguments.batch, workers=workers, cache_dir=arguments.cache)
    recipe, processor = Recipe(data=data), demo_processor()
    last = time.time()
    mixture = recipe_sources(recipe)
    figures["sources"], last = time.time() - last, time.time()
    for source in mixture.sources:
        source.digest()
    figures["digest"], last = time.time() - last, time.time()
    batches = recipe_batches(recipe, processor, scenes_config(), 0, 1, mixture)
    start = 0
    if arguments.epoch:
        start = int((arguments.epoch + 0.5) * batches.steps_per_epoch())
    iterator = batches.batches(start)
    next(iterator)
    figures |= {"batches": time.time() - last, "first_batch": time.time() - begun, "start": start}
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures["processor_seconds"] = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    figures["peak"] = own.ru_maxrss / 1024
    pids = [process.pid for process in multiprocessing.active_children()]
    used, last = sum(map(processor_seconds, pids)), time.time()
    for _ in range(arguments.batches):
        next(iterator)
    samples, elapsed = arguments.batches * arguments.batch, time.time() - last
    if arguments.batches and pids:
        figures["samples_per_second"] = samples / elapsed
        figures["per_processor_second"] = samples / (sum(map(processor_seconds, pids)) - used)
        memories = [worker_memory(pid) for pid in pids]
        figures |= {key: sum(one[key] for one in memories) / len(pids) for key in memories[0]}
        figures["main_pss"] = worker_memory(os.getpid())["pss"]
    iterator.close()
    return figures


def run(sources: list[dict[str, Any]], cache: Path, arguments: argparse.Namespace, **options: int) -> dict[str, Any]:
    """`measure` in a fresh process."""
    given = {"batch": arguments.batch, "batches": 0, "epoch": 0, "workers": 1} | options
    command = [sys.executable, __file__, "--sources", json.dumps(sources), "--cache", str(cache)]
    command += [f"--{key}={value}" for key, value in given.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, f"--begun={time.time()}"], stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_700_000, help="of Objects365")
    parser.add_argument("--captions", type=int, default=800_000, help="of GoldG")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of loader processes")
    parser.add_argument("--batch", type=int, default=2, help="images per batch")
    parser.add_argument("--batches", type=int, default=500, help="batches after which memory and speed are read")
    parser.add_argument("--epoch", type=int, default=12, help="in the middle of which a run resumes")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "glip_pretraining_data")
    parser.add_argument("--sources", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.sources:
        print(json.dumps(measure(arguments)))
        return
    sizes = {"small": (SMALL, SMALL), "full": (arguments.images, arguments.captions)}
    for size, numbers in sizes.items():
        begun = time.time()
        sources = generate(arguments.folder, *numbers)
        print(json.dumps({"size": size, "what": "generated", "seconds": round(time.time() - begun, 1)}), flush=True)
        cache = arguments.folder / f"cache_{numbers[0]}_{numbers[1]}"
        rows = [] if cache.is_dir() else [("cold", {})]
        for workers in arguments.workers:
            rows.append(("warm", {"workers": workers, "batches": arguments.batches}))
            rows.append(("resume", {"workers": workers, "epoch": arguments.epoch}))
        for what, options in rows:
            load = os.getloadavg()[0]
            found = run(sources, cache, arguments, **options)
            row = {"size": size, "what": what, "load": load, "workers": options.get("workers", 1), **found}
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
