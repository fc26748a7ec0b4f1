# Copyright 2026 The glip_hf authors. MIT licence.
"""Throughput of the data loader and of training: the loader alone, a training step alone, and both together.

    python benchmarks/training_data.py                          # 480 x 640, 2 images per step, 0, 1 and 2 workers
    python benchmarks/training_data.py --workers 0 4 8 --batch 8

Images are JPEG files of 640 x 480 with detail at all scales, about as large as those of COCO; they are in a temporary
folder and in the page cache, so disks and networks are not measured. They are processed as in training
(`dataset_batches`): decoding, resizing, flipping, captions with up to 85 negative class names, batches. The step is
that of `training.py`, on the same batch twice: after waiting for the next batch of the loader with the most workers,
and alone. `waiting_share` is the fraction of the time of the former that the model waited.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image

from benchmarks import harness
from benchmarks.harness import synchronise
from benchmarks.training import make_optimizer, train_step
from glip_hf import GlipConfig
from glip_hf.data.scenes.wording import vocabulary
from glip_hf.demo import demo_processor
from glip_hf.training.batches import build_dataset, dataset_batches
from glip_hf.training.recipe import DataRecipe, Recipe, RunRecipe

IMAGES, BOXES, NAMES = 64, 7, 80


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Write JPEG files and a COCO file for them; returns the path of the latter."""
    rng = np.random.default_rng(seed)
    width, height = 640, 480
    words = [word for word in vocabulary() if word.isalpha() and len(word) > 2][:NAMES]
    images, annotations = [], []
    for number in range(count):
        noise = sum(
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (height // scale, width // scale, 3), np.uint8)).resize(
                    (width, height), Image.Resampling.BICUBIC
                ),
                np.float32,
            )
            for scale in (2, 8, 40, 160)
        )
        Image.fromarray((noise / 4).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for _ in range(BOXES):
            x, y = rng.uniform(0, 400), rng.uniform(0, 300)
            box = [x, y, rng.uniform(40, 200), rng.uniform(40, 150)]
            name = int(rng.integers(len(words))) + 1
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": name, "bbox": box})
    categories = [{"id": i, "name": word} for i, word in enumerate(words, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def loader(folder: Path, annotations: Path, config: GlipConfig, arguments: Any, workers: int) -> Iterator[dict]:
    """The endless batches of a training run."""
    source = {"format": "coco", "annotations": str(annotations), "images": str(folder)}
    data = DataRecipe(
        sources=[source],
        short_sides=[arguments.short_side],
        batch_size=arguments.batch,
        workers=workers,
        cache_dir=str(folder / "cache"),
    )
    recipe = Recipe(data=data, run=RunRecipe(seed=arguments.seed))
    processor = demo_processor()
    dataset = build_dataset(recipe, processor, config)
    batches = dataset_batches(dataset, recipe, rank=0, processes=1)
    return batches.batches(0)


def images_per_second(batches: Iterator[dict], size: int, count: int) -> float:
    """Throughput of the loader alone, without the first batch, for which workers start."""
    next(batches)
    begun = time.perf_counter()
    for _ in range(count):
        next(batches)
    return size * count / (time.perf_counter() - begun)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__, runs=3)
    parser.add_argument(
        "--short-side", type=int, default=480, help="of the images in pixels; the long side is 4/3 of it"
    )
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of loader processes to measure"
    )
    parser.add_argument(
        "--batches", type=int, default=60, help="number of batches in the measurement of the loader alone"
    )
    arguments = harness.begin(parser, argv, "training_data")
    model = harness.load_model(arguments).train()
    torch.set_num_threads(arguments.threads)
    step = functools.partial(train_step, model, make_optimizer(model), arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        annotations = write_images(folder, max(IMAGES, arguments.batch), arguments.seed)
        size = statistics.mean(path.stat().st_size for path in folder.glob("*.jpg"))
        figures: dict[str, Any] = {"short_side": arguments.short_side, "batch": arguments.batch}
        figures["image_kib"] = size / 1024
        most = max(arguments.workers)
        for workers in arguments.workers:
            batches = loader(folder, annotations, model.config, arguments, workers)
            of_loader = images_per_second(batches, arguments.batch, arguments.batches)
            figures[f"loader_images_a_second_{workers}"] = of_loader
            del batches  # its workers end
        batches = loader(folder, annotations, model.config, arguments, most)
        next(batches)
        alone, both, waiting, tokens = [], [], [], []
        for number in range(arguments.warmup + arguments.runs):
            begun = time.perf_counter()
            inputs = send_to_device(dict(next(batches)), model.device, non_blocking=True)
            del inputs["sample_ids"]
            waited = time.perf_counter() - begun
            step(inputs)
            synchronise()
            together = time.perf_counter() - begun
            begun = time.perf_counter()
            step(inputs)
            synchronise()
            if number >= arguments.warmup:
                alone.append(time.perf_counter() - begun)
                both.append(together)
                waiting.append(waited)
                tokens.append(inputs["input_ids"].shape[1])
        del batches
    rate = arguments.batch / statistics.median(alone)
    of_a_worker = figures[f"loader_images_a_second_{most}"] / max(most, 1)
    figures |= {
        "tokens": statistics.mean(tokens),
        "step_seconds": statistics.median(alone),
        "step_and_loader_seconds": statistics.median(both),
        "waiting_share": sum(waiting) / sum(both),
        "step_images_a_second": rate,
        "workers_that_keep_up": rate / of_a_worker,
    }
    harness.finish(arguments, "training_data", [figures], figures)


if __name__ == "__main__":
    main()
