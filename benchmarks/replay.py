# Copyright 2026 The glip_hf authors. MIT licence.
"""What a model forgets in fine-tuning, and what `--replay scenes` keeps.

Cost:    three runs of some minutes on 2 CPU cores.
Command: python benchmarks/replay.py --train train.json --images images --validation val.json [--max-steps 300]
Result:  a table on stdout: AP on the new data, and on generated scenes AP50 and the recall of phrases and of relations,
         which is what the shipped model knows; before, and after tuning with each share of replayed scenes.
"""

import sys
from pathlib import Path

# the parent folder in place of this one: see __init__.py
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import subprocess
import tempfile

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.cli.common import model_name
from glip_hf.data.scene_metrics import evaluate_scenes
from glip_hf.training.finetuning import Validation, load_tuning_data

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", type=model_name)
    for name in ("--train", "--images", "--validation"):
        parser.add_argument(name, required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.25, 0.5])
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=100, help="test scenes per split")
    parser.add_argument("--set", nargs="*", default=[], help="passed on to examples/finetune.py")
    arguments = parser.parse_args()
    data = load_tuning_data(arguments.train, arguments.images, arguments.validation)

    def measure(what: str, directory: str | Path) -> None:
        model, processor = GlipForGrounding.from_pretrained(directory), GlipProcessor.from_pretrained(directory)
        new, old = Validation(data, processor)(model), evaluate_scenes(model, processor, arguments.scenes)
        figures = [new["AP50"], new["AP"], old["ap50"], old["ap"], old["recall1"], old["relation_recall1"]]
        print(f"| {what} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |", flush=True)

    print("| replay | new AP50 | new AP | scenes AP50 | scenes AP | phrase Recall@1 | relation Recall@1 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    measure("before tuning", arguments.model)
    fixed = ["run.evaluate_every=0", "tuning.early_stopping=0", "schedule.name=cosine", "run.trackers=[]"]
    with tempfile.TemporaryDirectory() as folder:
        for share in arguments.shares:
            output = f"{folder}/{share}"
            command = [sys.executable, str(EXAMPLE), "--model", arguments.model, "--train", arguments.train]
            command += ["--images", arguments.images, "--validation", arguments.validation, "--output-dir", output]
            command += ["--replay", f"scenes:{share}"] if share else []
            # The new images are seen equally often.
            command += ["--max-steps", str(round(arguments.max_steps / (1 - share)))]
            subprocess.run([*command, "--set", *fixed, *arguments.set], check=True, stdout=subprocess.DEVNULL)
            measure(f"{share:.0%}" if share else "none", f"{output}/final")


if __name__ == "__main__":
    main()
