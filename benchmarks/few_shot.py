# Copyright 2026 The glip_hf authors. MIT licence.
"""Fine-tuning on few images: every number of shots x mode x seed on a COCO data set, by examples/finetune.py.

Cost:    one to three minutes per run of 120 steps on a CPU core, most of it for `full` at 320 pixels.
Command: python benchmarks/few_shot.py --train train.json --images images --validation val.json [--model demo]
             [--shots 1 3 5 10 0] [--modes full prompt lora] [--seeds 1 2 3] [--max-steps 120] [--set key=value ...]
Result:  benchmarks/results/few_shot.csv, a row per run, and mean and standard deviation over the seeds on stdout. Runs
         that the file has are not repeated.

The last weights count, not the best: the validation images choose nothing. Shots of 0 are all images.
"""

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "few_shot.csv"
FIELDS = ("shots", "mode", "seed", "steps", "AP", "AP50", "seconds")


def run(arguments: argparse.Namespace, shots: int, mode: str, seed: int) -> dict[str, str]:
    """One row; an AP is that of the weights after the last step."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, str(ROOT / "examples" / "finetune.py"), "--model", arguments.model]
        command += ["--train", arguments.train, "--images", arguments.images, "--validation", arguments.validation]
        command += ["--mode", mode, "--seed", str(seed), "--max-steps", str(arguments.max_steps)]
        command += ["--shots", str(shots)] if shots else []
        only_last = [f"run.evaluate_every={arguments.max_steps}", "schedule.name=cosine", "run.trackers=[]"]
        command += ["--output-dir", output, "--overwrite", "--set", *only_last, *arguments.set]
        subprocess.run(command, check=True)
        last = json.loads((Path(output) / "history.json").read_text())[-1]
    seconds = round(time.monotonic() - start)
    values = (shots, mode, seed, last["step"], round(last["AP"], 4), round(last["AP50"], 4), seconds)
    return {name: str(value) for name, value in zip(FIELDS, values, strict=True)}


def report(rows: list[dict[str, str]]) -> None:
    """Mean and standard deviation over the seeds as a Markdown table."""
    print("| shots | mode | seeds | AP | AP50 |\n| --- | --- | --- | --- | --- |")
    for shots, mode in dict.fromkeys((row["shots"], row["mode"]) for row in rows):
        own = [row for row in rows if (row["shots"], row["mode"]) == (shots, mode)]
        cells = []
        for name in ("AP", "AP50"):
            values = [float(row[name]) for row in own]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {'all' if shots == '0' else shots} | `{mode}` | {len(own)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--images", "--validation"):
        parser.add_argument(name, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3, 5, 10, 0])
    parser.add_argument("--modes", nargs="+", default=["full", "prompt", "lora"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max-steps", type=int, default=120)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", nargs="*", default=[], help="passed on to examples/finetune.py")
    arguments = parser.parse_args()
    rows = []
    if arguments.results.is_file():
        with open(arguments.results, newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["shots"], row["mode"], row["seed"], row["steps"]) for row in rows}
    for seed, shots, mode in itertools.product(arguments.seeds, arguments.shots, arguments.modes):
        if (str(shots), mode, str(seed), str(arguments.max_steps)) in done:
            continue
        rows.append(run(arguments, shots, mode, seed))
        with open(arguments.results, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        print(rows[-1], flush=True)
    report(rows)


if __name__ == "__main__":
    main()
