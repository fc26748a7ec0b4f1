# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the scene that the package ships as its example image.

    python scripts/draw_scene.py [OUT.png]  # default: src/glip_hf/assets/scene.png; 1 second

It belongs to a split that training never sees. tests/test_demo.py draws it again and compares.
"""

import argparse
from pathlib import Path

from PIL import Image

from glip_hf.data.scenes import SceneConfig, SceneSample, make_scene
from glip_hf.demo import DEMO_IMAGE

CONFIG = SceneConfig(
    resolution=480,
    things=(5, 11),
    small=(0.12, 0.16),
    size_weights=(0.3, 0.45, 0.25),
    pattern_chance=0.4,
    overlap_chance=0.4,
    min_visible=0.7,
    cut_chance=0.15,
    rotation=25.0,
    color_jitter=14.0,
    light=0.8,
    noise=4.0,
    blur_chance=0.2,
)
"""Somewhat harder than the scenes of training, and three times as large: the processor resizes it."""


def scene() -> SceneSample:
    """The image with its annotations."""
    return make_scene("relations", seed=7, index=5, config=CONFIG)


def draw_scene() -> Image.Image:
    """480 x 480."""
    return scene().pil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=DEMO_IMAGE)
    draw_scene().save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
