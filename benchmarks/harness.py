# Copyright 2026 The glip_hf authors. MIT licence.
"""What the speed benchmarks share: options, models, inputs, timing, the machine's rates, records.

A benchmark compares variants (the model, its textbook form) that run in turn, A B A B, in one process, so that other
load on the machine affects all of them alike. A plain matrix product and a plain copy run in every round too: their
medians are the rates by which `floor.py` converts counted work to seconds.

Peak memory is measured by `peak_memory.py`, time per part by `part_timer.py`; `floor.py` counts the minimum of work.
"""

import argparse
import csv
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from glip_hf import GlipConfig, GlipForGrounding
from glip_hf.kernels.cpu_linear import onednn_available, onednn_linear

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PRESET = "glip_tiny_model_o365_goldg"
MIB = 2**20

# -- options and models ----------------------------------------------------------------------------


def make_parser(description: str | None, runs: int = 5, weights_option: str = "--model") -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help="timed rounds; figures are medians over them")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them, not timed")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, the same for all variants")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        weights_option,
        type=Path,
        dest="model",
        metavar="DIR",
        help="directory of a saved model; default: GLIP-T with random weights",
    )
    weights.add_argument(
        "--shared-weights",
        action="store_true",
        help="the synthetic weights of the parity cases (tests/parity/synthetic.py)",
    )
    weights.add_argument(
        "--tiny", action="store_true", help="a model of a few layers, to check that the benchmark runs"
    )
    parser.add_argument(
        "--memory-runs", type=int, default=1, help="child processes per variant for peak memory; 0: none"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="directory of the CSV")
    parser.add_argument("--no-record", action="store_true", help="write no CSV row")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    return parser


def begin(parser: argparse.ArgumentParser, argv: Sequence[str] | None, name: str) -> argparse.Namespace:
    """Parse the options; PyTorch keeps to one thread until the child processes of `peak_memory` have run."""
    arguments = parser.parse_args(argv)
    arguments.command = " ".join(["python", f"benchmarks/{name}.py", *(sys.argv[1:] if argv is None else argv)])
    for option in ("runs", "threads"):
        if getattr(arguments, option) < 1:
            raise SystemExit(f"--{option} {getattr(arguments, option)} must be at least 1.")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    return arguments


def tiny_config(**overrides: Any) -> GlipConfig:
    """A GLIP of 0.2 million parameters with a vocabulary of 1,000 tokens."""
    backbone = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3, 4],
    }
    text = {
        "model_type": "bert",
        "vocab_size": 1000,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 256,
    }
    options = {
        "backbone_config": backbone,
        "text_config": text,
        "d_model": 16,
        "num_blocks": 2,
        "fusion_hidden_size": 32,
        "fusion_heads": 4,
        "group_norm_groups": 4,
        "num_class_channels": 5,
    }
    return GlipConfig(**{**options, **overrides})


def load_model(arguments: argparse.Namespace) -> GlipForGrounding:
    """The model to measure, in evaluation mode."""
    if arguments.model is not None:
        model = GlipForGrounding.from_pretrained(arguments.model)
    elif arguments.shared_weights:
        sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
        from parity.harness import build_model

        model = build_model(PRESET, 0)
    else:
        model = GlipForGrounding(tiny_config() if arguments.tiny else GlipConfig.from_preset(PRESET))
    return model.eval().to(arguments.device)


def weights_of(arguments: argparse.Namespace) -> str:
    """Where the weights come from, for the record."""
    if arguments.model is not None:
        return arguments.model.name
    return "parity" if arguments.shared_weights else "tiny" if arguments.tiny else f"random {arguments.seed}"


# -- inputs ----------------------------------------------------------------------------------------


def random_image(height: int, width: int, device: str, batch: int = 1) -> dict[str, Tensor]:
    """`pixel_values` and `pixel_mask` of images of height x width pixels, padded to multiples of 32."""
    padded = [-(-side // 32) * 32 for side in (height, width)]
    mask = torch.zeros(batch, *padded, dtype=torch.int64)
    mask[:, :height, :width] = 1
    pixels = torch.randn(batch, 3, *padded) * mask[:, None]
    return {"pixel_values": pixels.to(device), "pixel_mask": mask.to(device)}


def random_caption(tokens: int, names: int, vocabulary: int, device: str, batch: int = 1) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `positive_map` [batch, names, tokens]: one token per class name, evenly spaced."""
    ids = torch.randint(min(1000, vocabulary // 2), vocabulary, (batch, tokens))
    positive_map = torch.zeros(batch, names, tokens, dtype=torch.bool)
    for name in range(names):
        positive_map[:, name, 1 + name * (tokens - 2) // names] = True
    caption = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "positive_map": positive_map}
    return {key: value.to(device) for key, value in caption.items()}


# -- time ------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """Something to run and time. `prepare` runs before each run and is not timed."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass
class Seconds:
    """Times of one variant. CPU time, of all threads, is the more reliable one on a shared machine."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)


def synchronise() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def time_in_turn(variants: dict[str, Variant], runs: int, warmup: int = 1) -> dict[str, Seconds]:
    """Seconds of all variants, which run one after the other, `warmup` + `runs` times."""
    times = {name: Seconds([], []) for name in variants}
    for number in range(warmup + runs):
        for name, variant in variants.items():
            variant.prepare()
            gc.collect()
            synchronise()
            wall, cpu = time.perf_counter(), time.process_time()
            variant.run()
            synchronise()
            if number >= warmup:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
        done = "  ".join(f"{name} {t.wall[-1]:.4g} s" for name, t in times.items() if t.wall)
        say(f"round {number + 1 - warmup} of {runs}: {done or 'warm-up'}")
    return times


# -- rates of the machine --------------------------------------------------------------------------

GEMM_SIDE = 2048
COPY_BYTES = 256 * MIB


def calibration(device: str, dtype: torch.dtype, small: bool = False) -> dict[str, Variant]:
    """A plain matrix product and a plain copy, to be timed in turn with the variants; in float32 on a CPU also the same
    product in oneDNN. See `Rates`."""
    side, size = (256, MIB) if small else (GEMM_SIDE, COPY_BYTES)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    variants = {"gemm": Variant(lambda: torch.mm(a, b, out=product)), "copy": Variant(lambda: target.copy_(source))}
    if device == "cpu" and dtype == torch.float32 and onednn_available():
        other = torch.no_grad()(lambda: onednn_linear(a, b))
        # Also run before it is timed: it allocates its result, and a training step before it leaves that memory cold.
        variants["gemm_onednn"] = Variant(other, prepare=other)
    return variants


@dataclass
class Rates:
    """What this machine reaches. gemm: operations per second of `torch.mm`, where a multiplication and an addition
    count as two; copy: bytes read and written per second; onednn: as gemm, of oneDNN, where that was timed."""

    gemm: float
    copy: float
    onednn: float = 0.0

    @classmethod
    def of(cls, times: dict[str, Seconds], small: bool = False) -> "Rates":
        side, size = (256, MIB) if small else (GEMM_SIDE, COPY_BYTES)
        onednn = 2 * side**3 / times["gemm_onednn"].median if "gemm_onednn" in times else 0.0
        return cls(2 * side**3 / times["gemm"].median, 2 * size / times["copy"].median, onednn)

    @property
    def fastest(self) -> "Rates":
        """With the rate of the faster library."""
        return replace(self, gemm=max(self.gemm, self.onednn))


def time_variants(
    variants: dict[str, Variant], arguments: argparse.Namespace, warmup: int | None = None
) -> tuple[dict[str, Seconds], Rates]:
    """Seconds of all variants with `--threads` threads, and the rates of the machine in the same rounds."""
    torch.set_num_threads(arguments.threads)
    rates = calibration(arguments.device, getattr(torch, arguments.dtype), arguments.tiny)
    times = time_in_turn(variants | rates, arguments.runs, arguments.warmup if warmup is None else warmup)
    return times, Rates.of(times, arguments.tiny)


class Countable(Protocol):
    """What has a minimum of time: `floor.Work`."""

    def seconds(self, rates: Rates) -> float: ...


def time_figures(
    times: dict[str, Seconds], rates: Rates, work: Countable, fast: str = "fast", other: str = "reference"
) -> dict[str, float]:
    """Medians in seconds of two variants and their ratio, and the minimum that `work` takes at the rate of `torch.mm`
    (floor) and of the faster library (fastest floor), with the first variant's ratio to it."""
    figures = {"seconds": times[fast].median, "cpu_seconds": times[fast].median_cpu}
    if other in times:
        figures[f"seconds_{other}"] = times[other].median
        figures[f"cpu_seconds_{other}"] = times[other].median_cpu
        figures[f"ratio_vs_{other}"] = times[other].median / times[fast].median
        figures[f"ratio_vs_{other}_cpu"] = times[other].median_cpu / times[fast].median_cpu
    for name, reached in (("floor", rates), ("fastest_floor", rates.fastest)):
        least = work.seconds(reached)
        figures |= {f"{name}_seconds": least, f"time_over_{name}": times[fast].median / least}
    figures |= {"gemm_gflop_s": rates.gemm / 1e9, "copy_gb_s": rates.copy / 1e9}
    return figures | ({"onednn_gflop_s": rates.onednn / 1e9} if rates.onednn else {})


def shares(parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Seconds of each part as a fraction of their sum."""
    return {
        name: {part: value / sum(seconds.values()) for part, value in seconds.items()}
        for name, seconds in parts.items()
    }


def print_parts(seconds: dict[str, dict[str, float]], floors: dict[str, float] | None = None) -> None:
    """A table: seconds and share of each part in each variant, and its floor."""
    floors = floors or {}
    names = list(dict.fromkeys(part for variant in seconds.values() for part in variant))
    print("  ".join([f"{'part':16}", *(f"{variant:>12} {'share':>6}" for variant in seconds), f"{'floor':>9}"]))
    for name in names:
        cells = [f"{one.get(name, 0):10.3f} s {one.get(name, 0) / sum(one.values()):6.1%}" for one in seconds.values()]
        least = f"{floors[name]:7.3f} s" if name in floors else ""
        print("  ".join([f"{name:16}", *cells, least]).rstrip())


# -- records ---------------------------------------------------------------------------------------


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, what and where: the first columns of every row."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = bool(_git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results"))
    machine = torch.cuda.get_device_name() if arguments.device != "cpu" else f"{_processor()}, {os.cpu_count()} cores"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit + (" + changes" if changed else ""),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": machine,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "weights": weights_of(arguments),
        "runs": arguments.runs,
        "command": arguments.command,
    }


def flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as columns: {"parts": {"fast": 1}} is {"parts_fast": 1}."""
    flat = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}_")
        else:
            flat[prefix + key] = value
    return flat


def record(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file; a column that is new is added, empty in the earlier rows."""
    row = {key.replace(" ", "_"): value for key, value in flatten(row).items()}
    rows: list[dict[str, Any]] = []
    columns: list[str] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or [])
    columns += [key for key in row if key not in columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])


def rounded(value: Any, digits: int = 4) -> Any:
    """All floats within `value`, rounded to `digits` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value


def finish(
    arguments: argparse.Namespace, name: str, figures: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Print the figures (except parts, see `print_parts`), append them to NAME.csv, with `--json` print `summary`.

    Args:
        figures: one dict per row.
        summary: what `--json` prints on the last line.
    """
    where = circumstances(arguments)
    for row in figures:
        for key, value in flatten(rounded({key: row[key] for key in row if "parts" not in key})).items():
            print(f"{key:40} {value}")
        if not arguments.no_record:
            record(arguments.results / f"{name}.csv", {**where, **rounded(row)})
    if arguments.json:
        print(json.dumps({**rounded(summary), **where}), flush=True)
