# Copyright 2026 The glip_hf authors. MIT licence.
"""A folder of photos: images per second of the forward passes alone, and from JPEG files to detections.

    python benchmarks/folder.py --photos 16 --runs 2                # full size, COCO's image sizes
    python benchmarks/folder.py --photos 16 --runs 2 --scale 6      # photos of 8 to 11 megapixels
    python benchmarks/folder.py --model src/glip_hf/assets/glip-scenes --photos 200

Four variants run in turn, with one model, the same 3 class names and the same JPEG files of 5 shapes, which are
generated:

* `forward`: image encoder, tower and head on pixels that lie in memory, the caption encoded once; no post-processing.
  In the batches that the engine forms.
* `engine`: `GroundingEngine` on the files.
* `command`: `glip ground FOLDER --names ... --json`, without loading the model; `--save` draws and saves every photo,
  too.
* `pipeline`: the Transformers pipeline on the list of files.

`rate_over_forward_X` is the rate of X over that of `forward`: what is left for decoding, resizing, post-processing and
output is the rest to 1. The rest as in `harness.py`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer
from transformers.utils import logging

from benchmarks import harness
from benchmarks.harness import ROOT, SHARED, Variant
from glip_hf import GlipImageProcessorPil, GlipProcessor, GlipZeroShotObjectDetectionPipeline
from glip_hf.cli import ground
from glip_hf.cli import main as glip
from glip_hf.inference import GroundingEngine, GroundingOptions, Request, pad_captions
from glip_hf.modeling_glip import select

SHAPES = ((640, 480), (640, 427), (480, 640), (500, 375), (640, 360))
NAMES = ["cat", "dog", "sofa"]
THRESHOLD = 0.4


def make_photos(folder: Path, count: int, scale: float, seed: int) -> list[Path]:
    """JPEG files of these shapes in turn, smooth with some noise: a photo of 640 x 480 takes about 100 KiB."""
    generator = np.random.default_rng(seed)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    made: dict[tuple[int, int], bytes] = {}
    for number, path in enumerate(paths):
        width, height = (round(side * scale) for side in SHAPES[number % len(SHAPES)])
        if (width, height) not in made:
            coarse = generator.integers(0, 256, (-(-height // 32), -(-width // 32), 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
            noisy = (smooth + generator.integers(-8, 9, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(noisy).save(file, "JPEG", quality=90)
            made[width, height] = file.getvalue()
        path.write_bytes(made[width, height])
    return paths


def make_processor(arguments: argparse.Namespace) -> GlipProcessor:
    """That of the model; of a random one the released one, of a tiny one a small one."""
    if arguments.model is not None:
        return GlipProcessor.from_pretrained(arguments.model)
    if arguments.tiny:
        small = {"shortest_edge": 64, "longest_edge": 128}
        vocabulary = ROOT / "tests" / "fixtures" / "tokenizer" / "vocab.txt"
        return GlipProcessor(GlipImageProcessorPil(size=small), BertTokenizer(str(vocabulary)))
    return GlipProcessor(GlipImageProcessorPil(), BertTokenizer(str(SHARED / "data" / "tokenizer" / "vocab.txt")))


def forward_alone(engine: GroundingEngine, paths: Sequence[Path]) -> Callable[[], None]:
    """The forward passes that the engine runs for these photos."""
    captions, size = engine.encode(NAMES), engine.options.batch_size
    shapes = paths[: len(SHAPES)]
    each = [dict(engine.processor(images=str(path), return_tensors="pt")) for path in shapes]
    counts: Counter[int] = Counter(number % len(shapes) for number in range(len(paths)))
    by_padded: dict[tuple[int, ...], list[int]] = {}
    for shape, count in counts.items():
        by_padded.setdefault(tuple(each[shape]["pixel_values"].shape), []).extend([shape] * count)
    batches = [rows[start : start + size] for rows in by_padded.values() for start in range(0, len(rows), size)]

    @torch.inference_mode()
    def run() -> None:
        for rows in batches:
            pixels = {name: torch.cat([each[row][name] for row in rows]).to(engine.model.device) for name in each[0]}
            values = pixels["pixel_values"].to(engine.model.dtype)
            features = engine.model.get_image_features(values, pixels["pixel_mask"], return_dict=True)
            for row in range(len(rows)):  # one pair per pass, as the engine does on a CPU
                chosen = features if len(rows) == 1 else select(features, torch.tensor([row]))
                engine.model(image_features=chosen, **pad_captions(captions[:1]))

    return run


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__, runs=3)
    parser.add_argument("--photos", type=int, default=200, help="files in the folder")
    parser.add_argument("--scale", type=float, default=1.0, help="of the photos' sides: 1 is COCO's 640 pixels")
    parser.add_argument("--batch-size", type=int, default=1, help="images of one padded size per pass")
    parser.add_argument("--workers", type=int, default=2, help="threads that read, draw and save")
    parser.add_argument("--save", action="store_true", help="`command` draws and saves the photos, too")
    parser.add_argument("--only", nargs="+", choices=("engine", "command", "pipeline"), help="of the variants")
    arguments = harness.begin(parser, argv, "folder")
    logging.set_verbosity_error()
    model = harness.load_model(arguments).to(getattr(torch, arguments.dtype))
    processor = make_processor(arguments)
    speed = {"batch_size": arguments.batch_size, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        folder = Path(directory) / "photos"
        folder.mkdir()
        paths = make_photos(folder, arguments.photos, arguments.scale, arguments.seed)
        engine = GroundingEngine(model, processor, GroundingOptions(threshold=THRESHOLD, **speed))
        detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device=arguments.device)
        stack.callback(setattr, ground, "load_model", ground.load_model)
        ground.load_model = lambda *_: (model, processor)

        def of_engine() -> None:
            assert sum(1 for _ in engine.ground(Request(str(path), NAMES) for path in paths)) == len(paths)

        def command() -> None:
            words = ["ground", str(folder), "--names", *NAMES, "--model", "-", "--threshold", str(THRESHOLD)]
            words += ["--batch-size", str(arguments.batch_size), "--workers", str(arguments.workers)]
            words += ["--json", f"{directory}/found.json"]
            words += ["--save", f"{directory}/saved/"] if arguments.save else []
            with contextlib.redirect_stdout(io.StringIO()):
                if glip(words) != 0:
                    raise SystemExit("glip ground failed")

        def pipeline() -> None:
            options = {"candidate_labels": NAMES, "threshold": THRESHOLD, "batch_size": arguments.batch_size}
            detector([str(path) for path in paths], num_workers=arguments.workers, **options)

        ways = {"engine": of_engine, "command": command, "pipeline": pipeline}
        chosen = {name: Variant(run) for name, run in ways.items() if name in (arguments.only or ways)}
        variants = {"forward": Variant(forward_alone(engine, paths)), **chosen}
        times, rates = harness.time_variants(variants, arguments)

    figures: dict[str, float] = {"photos": len(paths), "megapixels": 0.3072 * arguments.scale**2}
    figures |= {**speed, "save": float(arguments.save)}
    alone = times["forward"]
    for name in variants:
        own = times[name]
        figures[f"images_per_second_{name}"] = len(paths) / own.median
        figures[f"cpu_seconds_per_image_{name}"] = own.median_cpu / len(paths)
        if name != "forward":
            figures[f"rate_over_forward_{name}"] = alone.median / own.median
            figures[f"cpu_over_forward_{name}"] = own.median_cpu / alone.median_cpu
    figures |= {"gemm_gflop_s": rates.gemm / 1e9, "copy_gb_s": rates.copy / 1e9}
    harness.finish(arguments, "folder", [figures], figures)


if __name__ == "__main__":
    main()
