# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the detections of the shipped model: a contact sheet of fresh scenes, and the image of README.md.

    python scripts/draw_predictions.py [DIRECTORY] [--seed N] [--threshold T]  # default: docs/images; seconds

`scenes.png` has a row each for lists of class names, lists with unseen pairs of colour and kind, captions, and captions
that only a relation resolves; `grounded.png` is the shipped image with the caption of `make demo`.
"""

import argparse
from pathlib import Path

import torch

from glip_hf.data.scene_metrics import ground
from glip_hf.data.scenes import contact_sheet, make_scene
from glip_hf.demo import DEMO_CAPTION, demo_model, demo_processor, load_demo_image
from glip_hf.visualize import draw_detections

SPLITS = ("detection", "unseen", "sentences", "relations")
EACH = 4
OUTPUT = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="directory of both images")
    parser.add_argument("--seed", type=int, default=99, help="seed of the scenes; training used another")
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
    sheet = contact_sheet(samples, EACH, detections=detections)

    image = load_demo_image()
    inputs = processor(images=image, text=DEMO_CAPTION, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    result = processor.post_process_grounded_object_detection(outputs, inputs, threshold=arguments.threshold)[0]

    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, drawn in (("scenes.png", sheet), ("grounded.png", draw_detections(image, result))):
        drawn.quantize(128).save(arguments.output / name, optimize=True)
        print(arguments.output / name)


if __name__ == "__main__":
    main()
