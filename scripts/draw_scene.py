# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the scene that the package ships as its example picture.

    python scripts/draw_scene.py [OUT.png]  # default: src/glip_hf/assets/scene.png; 1 second

It is of a split that training never sees. tests/test_demo.py draws it again and compares.
"""

import argparse
from pathlib import Path

from PIL import Image

from glip_hf.data.scenes import SceneConfig, make_scene
from glip_hf.demo import DEMO_PHOTO


def draw_scene() -> Image.Image:
    """480 x 480, three times what the model was trained with: processors resize."""
    return make_scene("relations", seed=7, index=5, config=SceneConfig(resolution=480)).pil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=DEMO_PHOTO)
    draw_scene().save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
