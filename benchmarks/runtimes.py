# Copyright 2026 The glip_hf authors. MIT licence.
"""Exported ONNX files in ONNX Runtime and in OpenVINO against the model: time, and largest differences.

    python benchmarks/runtimes.py --shared-weights --export out/native
    glip export --model DIR --output out/basic --deform-conv basic
    python benchmarks/runtimes.py out/basic --model DIR --export out/native --runs 3

With `--export` the model is written there first, as three graphs for images of any size, which is timed, too. Every
file (or folder of three) runs in every runtime that is installed, in turn with the model in one process, on a random
image and the caption of a case of latency.py. OpenVINO also runs in bfloat16. A file that a runtime refuses is a row
that says so. Time is that of the raw outputs, without post-processing.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Variant
from benchmarks.latency import CASES, case_inputs
from glip_hf.export import OnnxGlip, export_onnx

RUNTIMES = {"onnxruntime": [torch.float32], "openvino": [torch.float32, torch.bfloat16]}


def differences(found: Any, expected: Any) -> dict[str, float]:
    """Largest differences of probabilities (of a token, or centerness) and of edges of boxes as fractions of a side."""
    pairs = [(found[name].sigmoid(), expected[name].sigmoid()) for name in ("logits", "centerness_logits")]
    return {
        "probability": max(float((a - b).abs().max()) for a, b in pairs),
        "box": float((found.pred_boxes - expected.pred_boxes).abs().max()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__, runs=3)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="NAME.onnx or a folder, of this model")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="export the model there before; a file like the others"
    )
    parser.add_argument("--case", choices=("three", "coco80"), default="three")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: that of the case")
    arguments = harness.begin(parser, argv, "runtimes")
    case = CASES[arguments.case]
    model = harness.load_model(arguments)
    pixels, (caption,) = case_inputs(case, *(arguments.size or case.size), model)
    run = {"model": torch.inference_mode()(lambda: model(**pixels, **caption))}
    rows: dict[str, dict[str, Any]] = {"model": {}}
    if arguments.export is not None:
        start, cpu = time.perf_counter(), time.process_time()
        arguments.files.append(export_onnx(model, arguments.export))
        rows["export"] = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    for file in arguments.files:
        for runtime in (name for name in RUNTIMES if find_spec(name)):
            for dtype in RUNTIMES[runtime]:
                name, started = f"{file.name} {runtime} {str(dtype).removeprefix('torch.')}", time.perf_counter()
                try:
                    glip = OnnxGlip(file, threads=arguments.threads, runtime=runtime, dtype=dtype)
                except ValueError as error:
                    rows[name] = {"error": str(error)[:200]}
                    continue
                rows[name] = {"load_seconds": time.perf_counter() - started}
                run[name] = lambda glip=glip: glip(**pixels, **caption)
    expected = run["model"]()
    for name, once in run.items():
        rows[name] |= differences(once(), expected)
    times, rates = harness.time_variants({name: Variant(once) for name, once in run.items()}, arguments, warmup=0)
    for name in run:
        rows[name] |= {"seconds": times[name].median, "cpu_seconds": times[name].median_cpu}
        rows[name]["times_model"] = times["model"].median / times[name].median
    figures = {"case": arguments.case, "gemm_gflop_s": rates.gemm / 1e9}
    for name, row in rows.items():
        cells = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key}: {value}" for key, value in row.items()]
        print("  ".join([f"{name:40}", *cells]))
    harness.finish(arguments, "runtimes", [figures | {"name": name} | row for name, row in rows.items()], rows)


if __name__ == "__main__":
    main()
