# Copyright 2026 The glip_hf authors. MIT licence.
"""Few-shot fine-tuning: 20 images of two kinds of objects that are absent from pre-training on scenes.

Cost:    about 10 minutes per mode on 2 CPU cores.
Command: python benchmarks/novel_kinds.py --model out/scenes/final-ema [--modes full prompt] [--max-steps 300]
Result:  a table on stdout and benchmarks/results/novel_kinds.csv: COCO AP50 and AP of the two kinds on fresh scenes,
         before and after; for prompt tuning also whether all other parameters are unchanged, bit for bit.

The scenes are written as a COCO data set, which is all that examples/finetune.py is given.
"""

import sys
from pathlib import Path

# the parent folder in place of this one: see __init__.py
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence

import torch

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.data.scenes import NOVEL_KINDS, SceneDataset, SceneSample
from glip_hf.training.finetuning import Validation, load_tuning_data

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "novel_kinds.csv"


def write_coco(folder: Path, name: str, samples: Sequence[SceneSample]) -> Path:
    """Scenes as a COCO data set whose categories are the novel kinds; other objects have no boxes."""
    images, annotations = [], []
    for number, sample in enumerate(samples):
        file = f"{name}_{number}.png"
        sample.pil.save(folder / file)
        side = sample.image.shape[0]
        images.append({"id": number, "file_name": file, "width": side, "height": side})
        for thing in sample.things:
            if thing.kind in NOVEL_KINDS:
                x1, y1, x2, y2 = (float(value) for value in thing.box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": NOVEL_KINDS.index(thing.kind) + 1,
                        "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
                    }
                )
    categories = [{"id": k, "name": kind} for k, kind in enumerate(NOVEL_KINDS, start=1)]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def with_novel_kinds(split: str, count: int, seed: int) -> list[SceneSample]:
    """The first `count` scenes of a split that contain a novel kind."""
    found: list[SceneSample] = []
    for sample in SceneDataset(split, 100 * count, seed):
        if any(thing.kind in NOVEL_KINDS for thing in sample.things):
            found.append(sample)
        if len(found) == count:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GLIP pre-trained on scenes")
    parser.add_argument("--modes", nargs="+", default=["full", "prompt"])
    parser.add_argument("--images", "--pictures", type=int, default=20, help="training images")
    parser.add_argument("--test-images", "--test-pictures", type=int, default=200)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="passed on to examples/finetune.py")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = write_coco(folder, "train", with_novel_kinds("novel_train", arguments.images, arguments.seed))
        test = write_coco(folder, "test", with_novel_kinds("novel", arguments.test_images, arguments.seed))
        data = load_tuning_data(train, folder, validation=test)
        validation = Validation(data, GlipProcessor.from_pretrained(arguments.model), batch_size=16)
        base = GlipForGrounding.from_pretrained(arguments.model)
        before = validation(base)
        rows.append({"mode": "before", "AP50": before["AP50"], "AP": before["AP"], "seconds": 0.0})
        print(rows[-1], flush=True)
        for mode in arguments.modes:
            start, output = time.monotonic(), folder / mode
            # All images are for training: the test scenes must not choose the step, so no early stopping either.
            fixed = ["run.evaluate_every=0", "tuning.early_stopping=0", "schedule.name=cosine", "run.trackers=[]"]
            command = [sys.executable, str(ROOT / "examples" / "finetune.py"), "--model", arguments.model]
            command += ["--train", str(train), "--images", str(folder), "--validation", str(train)]
            command += ["--mode", mode, "--max-steps", str(arguments.max_steps), "--output-dir", str(output)]
            subprocess.run([*command, "--set", *fixed, *arguments.set], check=True)
            if mode == "prompt":
                tuned = GlipForGrounding.from_pretrained(arguments.model)
                tuned.load_prompt_table(output / "final")
                state = tuned.state_dict()
                same = all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
            else:
                tuned, same = GlipForGrounding.from_pretrained(output / "final"), False
            figures = validation(tuned)
            row = {"mode": mode, "AP50": figures["AP50"], "AP": figures["AP"], "base_unchanged": same}
            rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
            print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, ["mode", "AP50", "AP", "base_unchanged", "seconds"])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
