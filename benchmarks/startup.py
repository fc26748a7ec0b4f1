# Copyright 2026 The glip_hf authors. MIT licence.
"""From the shell to the result: whole processes, of this code and of another checkout in turn.

    git worktree add /tmp/old 91b3ee3
    python benchmarks/startup.py --against /tmp/old/src      # full-size GLIP-T, random weights
    python benchmarks/startup.py --model DIR --photo a.jpg
    python benchmarks/startup.py --model demo --runs 1       # seconds: check that it runs

Rows: `glip --help`; `import glip_hf`; its model class; `glip ground PHOTO cat --model FOLDER`; and in one more process
the first two forward passes of that photo. `outside` is the command's time less that of a warm forward pass: start,
imports, weights, tokenizer, image, post-processing, output, end. CPU seconds are those of all threads; files are
in the page cache from the warm-up on.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from PIL import Image
from transformers import BertTokenizer

from benchmarks import harness
from glip_hf import GlipConfig, GlipForGrounding, GlipImageProcessorPil, GlipProcessor
from glip_hf.demo import DEMO_MODEL, VOCABULARY

FORWARD = """
import time
import torch
from PIL import Image
from glip_hf import GlipForGrounding, GlipProcessor
torch.set_num_threads({threads})
model, processor = GlipForGrounding.from_pretrained({model!r}).eval(), GlipProcessor.from_pretrained({model!r})
inputs = processor(images=Image.open({photo!r}).convert("RGB"), text=["cat"], return_tensors="pt")
times = []
with torch.inference_mode():
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        model(**inputs)
        times += [time.perf_counter() - wall, time.process_time() - cpu]
print(*times)
"""


def make_model(folder: Path) -> None:
    """Full-size GLIP-T with random weights, as `glip convert` writes it, and a vocabulary of BERT's length."""
    words = VOCABULARY.read_text(encoding="utf-8").split()
    model = GlipForGrounding(GlipConfig.from_preset(harness.PRESET))
    words += [f"##x{i}" for i in range(model.config.text_config.vocab_size - len(words))]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    model.save_pretrained(folder, save_original_format=False)
    GlipProcessor(GlipImageProcessorPil(), BertTokenizer(vocab=str(vocabulary))).save_pretrained(folder)


def make_photo(file: Path) -> None:
    """A JPEG of 1066 x 800 pixels with colours and noise."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((1066, 800))
    noisy = np.asarray(colours) + rng.normal(0, 6, (800, 1066, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def run(source: Path, words: Sequence[str], threads: int) -> tuple[float, float, str]:
    """Seconds and CPU seconds of a Python process that imports glip_hf from `source`, and what it prints.

    Raises:
        RuntimeError: with the end of its errors, if it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
    before, wall = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - wall, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)[:200]}: {done.stderr[-500:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, done.stdout


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--photo", type=Path, help="default: a generated one of 1066 x 800 pixels")
    parser.add_argument("--against", type=Path, metavar="SRC", help="`src` of another checkout, run in turn")
    arguments = harness.begin(parser, argv, "startup")
    sources = {"": harness.ROOT / "src"} | ({"_against": arguments.against} if arguments.against else {})
    if arguments.against and not (arguments.against / "glip_hf").is_dir():
        raise SystemExit(f"--against {arguments.against} has no glip_hf: give the src of a checkout.")
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, photo = arguments.model, arguments.photo
        if model is None:
            make_model(model := temporary)
        elif str(model) == "demo":
            model = DEMO_MODEL
        if photo is None:
            make_photo(photo := temporary / "photo.jpg")
        forward = FORWARD.format(threads=arguments.threads, model=str(model), photo=str(photo))
        commands = {
            "help": ["-m", "glip_hf.cli", "--help"],
            "import": ["-c", "import glip_hf"],
            "import_model": ["-c", "from glip_hf import GlipForGrounding"],
            "ground": ["-m", "glip_hf.cli", "ground", str(photo), "cat", "--model", str(model)],
            "forward": ["-c", forward],
        }
        seconds: dict[str, list[float]] = {}
        for number in range(arguments.warmup + arguments.runs):
            for name, command in commands.items():
                for kind, source in sources.items():
                    wall, cpu, out = run(source, command, arguments.threads)
                    if number < arguments.warmup:
                        continue
                    if name != "forward":
                        seconds.setdefault(f"{name}{kind}", []).append(wall)
                        seconds.setdefault(f"{name}_cpu{kind}", []).append(cpu)
                        continue
                    first, first_cpu, warm, warm_cpu = map(float, out.split())
                    parts = {"first": first, "first_cpu": first_cpu, "warm": warm, "warm_cpu": warm_cpu}
                    for part, value in parts.items():
                        seconds.setdefault(f"forward_{part}{kind}", []).append(value)
            harness.say(f"round {number + 1 - arguments.warmup} of {arguments.runs}")
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    for kind in sources:
        for cpu in ("", "_cpu"):
            figures[f"outside{cpu}{kind}"] = figures[f"ground{cpu}{kind}"] - figures[f"forward_warm{cpu}{kind}"]
    if arguments.against:
        for cpu in ("", "_cpu"):
            figures[f"outside{cpu}_ratio"] = figures[f"outside{cpu}_against"] / figures[f"outside{cpu}"]
    harness.finish(arguments, "startup", [figures], figures)


if __name__ == "__main__":
    main()
