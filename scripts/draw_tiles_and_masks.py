# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the images of docs/tiles.md and docs/masks.md.

    python scripts/draw_tiles_and_masks.py [FOLDER]  # default: docs/images; 10 seconds

tiles.png: a scene of 400 pixels without and with tiles, by the shipped model. masks.png: the true masks of a scene, as
`draw_detections` shows the masks of a SAM model.
"""

import argparse
from pathlib import Path
from unittest import mock

import torch
from PIL import Image

from glip_hf.data.scenes import SceneConfig, layout, make_scene
from glip_hf.demo import demo_model, demo_processor
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.visualize import draw_detections

TILE, OVERLAP = 160, 0.25
MANY_SMALL = SceneConfig(
    resolution=400,
    things=(16, 20),
    small=(0.055, 0.065),
    medium=(0.075, 0.095),
    large=(0.11, 0.14),
    size_weights=(0.6, 0.3, 0.1),
    distractors=(0, 0),
)


def draw_tiles() -> Image.Image:
    """The whole image at 160 pixels on the left, tiles as well on the right; 812 x 400."""
    scene = make_scene("detection", seed=3, index=2, config=MANY_SMALL)
    sheet = Image.new("RGB", (812, 400), "white")
    model, processor = demo_model(), demo_processor()
    for left, tile in ((0, None), (412, TILE)):
        engine = GroundingEngine(model, processor, GroundingOptions(threshold=0.55, tile=tile, overlap=OVERLAP))
        (found,) = engine.ground([Request(scene.pil, scene.names)])
        drawn = draw_detections(scene.pil, found.detections[0], show_scores=False, font_size=11)
        sheet.paste(drawn, (left, 0))
    return sheet


def draw_masks() -> Image.Image:
    """Things of a scene with their boxes and silhouettes, 400 x 400."""
    owners = []

    class Recorded(layout.Canvas):
        def finish(self):
            owners.append(self.owner.copy())
            return super().finish()

    with mock.patch.object(layout, "Canvas", Recorded):
        scene = make_scene("detection", seed=3, index=8, config=SceneConfig(resolution=400))
    named = [(number, thing) for number, thing in enumerate(scene.things) if thing.kind]
    names = sorted({f"{thing.color} {thing.kind}" for _, thing in named})
    text_labels = [f"{thing.color} {thing.kind}" for _, thing in named]
    result = {
        "boxes": [thing.box for _, thing in named],
        "labels": [names.index(name) for name in text_labels],
        "text_labels": text_labels,
        "masks": torch.stack([torch.from_numpy(owners[-1] == number) for number, _ in named]),
    }
    return draw_detections(scene.pil, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs/images")
    folder = parser.parse_args().folder
    for name, image in (("tiles.png", draw_tiles()), ("masks.png", draw_masks())):
        image.quantize(128).save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
