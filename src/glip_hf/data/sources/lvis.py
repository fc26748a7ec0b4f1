# Copyright 2026 The glip_hf authors. MIT licence.
"""LVIS JSON: COCO's format with images named by URL and too many categories for one caption."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import find_path
from .coco import CocoFile, reader


def lvis_file(annotations: str | Path, images: str | Path, *, data_root: str | Path | None = None) -> CocoFile:
    """A detection set in LVIS's format; arguments as for `coco_file`.

    An image lies in `images` under the last two parts of its `coco_url` (`train2017/000000000009.jpg`), as LVIS splits
    COCO's images anew; where there is no `coco_url`, under `file_name`. What the annotations say about negative and not
    exhaustively annotated categories is in `Record.extra`, by original id.
    """
    folder, path = str(find_path(images, data_root, must_exist=False)), find_path(annotations, data_root)

    def image_path(image: Mapping[str, Any]) -> str:
        url = image.get("coco_url")
        return f"{folder}/{'/'.join(url.split('/')[-2:]) if url else image['file_name']}"

    key = {"reader": "lvis", "images": folder}
    keep_keys = ("neg_category_ids", "not_exhaustive_category_ids")
    return CocoFile(path, image_path, key, path.stem, "sampled", keep_keys)


read_lvis = reader(lvis_file)
