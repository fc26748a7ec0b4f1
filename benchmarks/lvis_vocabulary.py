# Copyright 2026 The glip_hf authors. MIT licence.
"""LVIS vocabulary, 1,203 names in 31 captions, on full-size GLIP-T: our driver against the naive loop.

The naive loop calls `model(pixel_values, input_ids)` for every caption, as the original evaluates: picture and text are
encoded 31 times a picture. The driver encodes the picture once and the vocabulary once for the whole data set. Both
use the same model, the same head and the same post-processing, in one run, alternating. Memory is the peak of the
process beyond the loaded model (text features of the vocabulary included), against one picture with one
caption, each in three processes of its own.

    python benchmarks/lvis_vocabulary.py --threads 2 --pictures 2        # about 8 minutes on 2 CPU cores

Weights are synthetic (tests/synthetic.py): time does not depend on their values. Names come from
../shared/data/captions/lvis_v1_categories.json, or any LVIS annotation file with --annotations.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from parity_cases import FIXTURES, build_model  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from glip_hf import GlipImageProcessorPil, GlipProcessor  # noqa: E402
from glip_hf.evaluation.augment import join  # noqa: E402
from glip_hf.evaluation.driver import Detector, Options  # noqa: E402
from glip_hf.evaluation.tasks import Picture, Task  # noqa: E402

SHARED = ROOT.parent / "shared"
ARCHITECTURE = "glip_tiny_model_o365_goldg"


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (most since `reset_peak`) of this process, MiB. Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def reset_peak() -> float:
    """Forget the peak of loading; what is resident now, MiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


class Watch:
    """Wall time, and CPU time of all threads: the one to go by on a machine that others use as well."""

    def __enter__(self) -> "Watch":
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = (now() - begin for now, begin in zip((time.perf_counter, time.process_time), self._begin))


def make_task(annotations: Path, pictures: int) -> Task:
    document = json.loads(annotations.read_text())
    categories = document["categories"] if isinstance(document, dict) else document
    categories = sorted(categories, key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    photo = str(FIXTURES / "images" / "full_chelsea.png")
    ids = [category["id"] for category in categories]
    return Task("lvis", [Picture(index, photo) for index in range(pictures)], names, ids, names)


@torch.inference_mode()
def naive(detector: Detector, task: Task, picture: Picture) -> dict[str, torch.Tensor]:
    """Every caption with the whole model, picture and text encoded anew."""
    model, processor, options = detector.model, detector.processor, detector.options
    parts = []
    words = processor(text=task.names, chunk_size=options.chunk_size, return_tensors="pt")
    pixels = processor(images=picture.path, return_tensors="pt")
    for row in range(len(words["input_ids"])):
        length = int(words["attention_mask"][row].sum())
        tokens = {
            name: words[name][row : row + 1, :length] for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        outputs = model(
            **pixels,
            **tokens,
            positive_map=words["positive_map"][row : row + 1, :, :length],
            label_ids=words["label_ids"][row : row + 1],
        )
        found = processor.image_processor.post_process_object_detection(
            outputs, threshold=0.0, max_detections=options.max_detections
        )
        parts.append(found[0])
    return join(parts)


def print_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of one picture with so many names, in a process of its own."""
    detector, task = prepare(arguments)
    count = arguments.memory
    before = reset_peak()
    list(detector.predict(Task("lvis", task.pictures[:1], task.names[:count], task.category_ids[:count])))
    print(json.dumps(resident_mib("VmHWM") - before))


def measure_memory(names: int, repeats: int = 3) -> list[float]:
    """MiB of each of some runs: the allocator's luck moves one by a third."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", str(names)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return sorted(json.loads(run.stdout.splitlines()[-1]) for run in runs)


def prepare(arguments: argparse.Namespace) -> tuple[Detector, Task]:
    torch.set_num_threads(arguments.threads)
    short, long = arguments.size
    images = GlipImageProcessorPil(size={"shortest_edge": short, "longest_edge": long})
    processor = GlipProcessor(images, BertTokenizer(str(arguments.vocab)))
    options = Options(chunk_size=40, max_detections=300, merged_limit=None, workers=1, pairs=arguments.pairs)
    detector = Detector(build_model(ARCHITECTURE, 0), processor, options)
    return detector, make_task(arguments.annotations, arguments.pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, default=SHARED / "data/captions/lvis_v1_categories.json")
    parser.add_argument("--vocab", type=Path, default=SHARED / "data/tokenizer/vocab.txt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--pairs", type=int, help="pairs a pass of the head; default as in evaluation")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="short and long side, pixels")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return print_memory(arguments)
    detector, task = prepare(arguments)
    with Watch() as text:
        vocabulary = detector.encode_names(task.names)
    detector.encode_names = lambda names: vocabulary  # once for the whole data set, not once a picture
    ours, theirs, worst = [], [], 0.0
    for picture in task.pictures:
        with Watch() as watch:
            (found,) = detector.predict(task, [picture])
        ours.append(watch)
        with Watch() as watch:
            expected = naive(detector, task, picture)
        theirs.append(watch)
        scores = torch.tensor(found["scores"])
        same = len(scores) == len(expected["scores"])
        worst = max(worst, float((scores - expected["scores"]).abs().max()) if same else float("nan"))
    wall = [statistics.median(watch.wall for watch in watches) for watches in (ours, theirs)]
    cpu = [statistics.median(watch.cpu for watch in watches) for watches in (ours, theirs)]
    single, whole = measure_memory(40), measure_memory(len(task.names))
    figures = {
        "captions": len(vocabulary),
        "ours_seconds_a_picture": wall[0],
        "naive_seconds_a_picture": wall[1],
        "speedup": wall[1] / wall[0],
        "ours_cpu_seconds_a_picture": cpu[0],
        "naive_cpu_seconds_a_picture": cpu[1],
        "speedup_of_cpu_time": cpu[1] / cpu[0],
        "text_cpu_seconds_once": text.cpu,
        "one_caption_mib": single,
        "ours_mib": whole,
        "memory_ratio_of_medians": statistics.median(whole) / statistics.median(single),
        "detections": len(scores),
        "largest_score_difference": worst,
        "threads": arguments.threads,
        "size": list(arguments.size),
    }
    for name, value in figures.items():
        print(f"{name:28} {value:.3g}" if isinstance(value, float) else f"{name:28} {value}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
