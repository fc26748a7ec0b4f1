"""Small COCO sets for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {1: (220, 40, 40), 2: (40, 60, 220)}


def write_rectangles(folder: Path, count: int = 6, empty: int = 1, names: Sequence[str] = ("cat", "sofa")) -> Path:
    """`count` images with one rectangle each, of category 1 or 2 in turn, and `empty` ones; returns the COCO file."""
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for number in range(count + empty):
        pixels = np.full((96, 128, 3), 40, dtype=np.uint8)
        if number < count:
            left, top = (int(v) for v in rng.integers(0, 40, 2))
            width, height = (int(v) for v in rng.integers(30, 50, 2))
            category = number % 2 + 1
            pixels[top : top + height, left : left + width] = COLORS[category]
            box = [left, top, width, height]
            annotations.append({"id": number + 1, "image_id": number, "category_id": category, "bbox": box})
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "width": 128, "height": 96})
    categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
