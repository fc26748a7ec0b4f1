# Copyright 2026 The glip_hf authors. MIT licence.
"""MDETR's grounding files: Flickr30k Entities, and the mixture of GQA and Visual Genome (with or without COCO).

COCO's format, where an image entry is a caption of an image and annotations say which characters name them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import find_path
from .coco import CocoFile, reader


def mdetr_file(
    annotations: str | Path, images: str | Path | Mapping[str, str | Path], *, data_root: str | Path | None = None
) -> CocoFile:
    """A grounding set in MDETR's format.

    Args:
        annotations: `final_flickr_separateGT_*.json`, `final_mixed_train.json`, `final_mixed_train_no_coco.json`,
            `final_refexp_val.json`, ...
        images: the folder of the images. For the mixed files a folder for each `data_source`:
            `{"vg": "gqa/images", "coco": "coco/train2014"}`.

    `Record.eval_spans` holds `tokens_positive_eval`; `Record.extra` what there is of `sentence_id`, `original_img_id`,
    `original_id`, `data_source`.
    """
    if isinstance(images, Mapping):
        folders = {key: str(find_path(path, data_root, must_exist=False)) for key, path in images.items()}
    else:
        folders = str(find_path(images, data_root, must_exist=False))

    def image_path(image: Mapping[str, Any]) -> str:
        if isinstance(folders, str):
            return f"{folders}/{image['file_name']}"
        if image["data_source"] not in folders:
            raise ValueError(f"data_source {image['data_source']!r} has no folder; images= names {sorted(folders)}")
        return f"{folders[image['data_source']]}/{image['file_name']}"

    path = find_path(annotations, data_root)
    key = {"reader": "mdetr", "images": folders}
    keep_keys = ("sentence_id", "original_img_id", "original_id", "data_source")
    return CocoFile(path, image_path, key, path.stem, "given", keep_keys)


read_mdetr = reader(mdetr_file)
