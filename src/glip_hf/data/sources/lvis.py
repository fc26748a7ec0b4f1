# Copyright 2026 The glip_hf authors. MIT licence.
"""LVIS JSON: COCO's format with pictures named by URL and categories too many for one caption."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Captions, Source, find_path
from .coco import CocoFile, coco_source


def read_lvis(
    annotations: str | Path,
    images: str | Path,
    name: str | None = None,
    *,
    data_root: str | Path | None = None,
    drop_empty: bool = True,
    captions: Captions = "sampled",
    strict: bool = False,
    cache_dir: str | Path | None = None,
) -> Source:
    """A detection set in LVIS's format; arguments as for `read_coco`.

    A picture lies in `images` under the last two parts of its `coco_url` (`train2017/000000000009.jpg`), as LVIS
    splits COCO's pictures anew; where there is no `coco_url`, under `file_name`. What the annotations say about
    negative and not exhaustively annotated categories is in `Record.extra`, by original id.
    """
    file = lvis_file(annotations, images, data_root=data_root)
    return coco_source(file, name, drop_empty, captions, strict, cache_dir)


def lvis_file(annotations: str | Path, images: str | Path, *, data_root: str | Path | None = None) -> CocoFile:
    """How `read_lvis` reads; arguments as there."""
    folder = str(find_path(images, data_root, must_exist=False))

    def image_path(image: Mapping[str, Any]) -> str:
        url = image.get("coco_url")
        return f"{folder}/{'/'.join(url.split('/')[-2:]) if url else image['file_name']}"

    return CocoFile(
        find_path(annotations, data_root),
        image_path,
        {"reader": "lvis", "images": folder},
        keep_keys=("neg_category_ids", "not_exhaustive_category_ids"),
    )
