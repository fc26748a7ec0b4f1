# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw what the shipped model finds in fresh scenes: a contact sheet of lists, sentences and relations.

python scripts/draw_predictions.py [OUT.png] [--seed N] [--threshold T]  # default: docs/images/scenes.png; seconds
"""

import argparse
from pathlib import Path

import torch

from glip_hf.data.scene_metrics import ground
from glip_hf.data.scenes import contact_sheet, make_scene
from glip_hf.demo import demo_model, demo_processor

SPLITS = ("detection", "unseen", "sentences", "relations")
EACH = 4
OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "scenes.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=99, help="of the scenes; training used another")
    parser.add_argument("--threshold", type=float, default=0.4, help="lowest score that is drawn")
    arguments = parser.parse_args()
    model, processor = demo_model(), demo_processor()
    samples, detections = [], []
    for split in SPLITS:
        some = [make_scene(split, arguments.seed, index) for index in range(EACH)]
        for found in (ground(model, processor, [sample])[0] for sample in some):
            kept = found["scores"] >= arguments.threshold
            detections.append({name: value[kept] for name, value in found.items() if torch.is_tensor(value)})
        samples += some
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(samples, EACH, detections=detections).quantize(128).save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
