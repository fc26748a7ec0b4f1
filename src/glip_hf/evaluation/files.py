# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotation and result files as users have them: errors name the position and the value of what is wrong."""

import json
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = {
    "images": ("id",),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
"""Required keys of the records of each list of COCO-style annotations."""


def read_json(source: str | Path | Mapping[str, Any]) -> Any:
    """A JSON file, or what was read already."""
    if not isinstance(source, str | Path):
        return source
    with open(source, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{source} is not valid JSON: {error}") from None


def read_annotations(source: str | Path | Mapping[str, Any], *needed: str) -> Mapping[str, Any]:
    """COCO-style annotations.

    Raises:
        ValueError: if the file is not a JSON object, lacks one of the lists `needed`, or has a record there that lacks
            one of `FIELDS`, a box that is not four finite numbers, or a duplicate id of an image or a category.
    """
    document = read_json(source)
    name = str(source) if isinstance(source, str | Path) else "the annotations"
    if not isinstance(document, Mapping):
        raise ValueError(f"{name}: a JSON object is needed, with {', '.join(needed)}.")
    if missing := [key for key in needed if key not in document]:
        raise ValueError(f"{name} has no {' and no '.join(missing)}.")
    for key in needed:
        check_records(document[key], FIELDS[key], f"{name}, {key}")
    if "annotations" in needed:
        boxes = document["annotations"]
        numbers([box["bbox"] for box in boxes], 4, f"{name}, annotations: bbox")
    if "categories" in needed:
        for category in document["categories"]:
            if not isinstance(category["id"], int | np.integer | str):
                raise ValueError(
                    f"{name}: the id of category {category['name']!r}, {category['id']!r}, is not an integer."
                )
        for key in ("images", "categories"):
            for record_id, count in Counter(record["id"] for record in document[key]).most_common(1):
                if count > 1:
                    raise ValueError(f"{name}: id {record_id!r} stands for {count} {key}; each needs its own.")
    return document


def listed_boxes(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Annotations of images and categories that the file lists; a warning counts the others."""
    images = {image["id"] for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    boxes = document["annotations"]
    kept = [box for box in boxes if box["image_id"] in images and box["category_id"] in categories]
    if len(kept) < len(boxes):
        first = next(box for box in boxes if box["image_id"] not in images or box["category_id"] not in categories)
        warnings.warn(
            f"{len(boxes) - len(kept)} of {len(boxes)} annotations are left out: the file does not list their image "
            f"or category (the first: image {first['image_id']!r}, category {first['category_id']!r})",
            stacklevel=3,
        )
    return kept


def in_order(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Images or categories by ascending id, numbers before text."""
    return sorted(records, key=lambda record: (isinstance(record["id"], str), record["id"]))


def check_records(records: Any, needed: Sequence[str], what: str) -> None:
    """
    Raises:
        ValueError: if `records` is not a list of mappings that have all of `needed`; `what` names the list.
    """
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(f"{what}: a JSON list is needed, this is a {type(records).__name__}.")
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{what}: entry {index} is not a JSON object but {record!r:.60}.")
        if missing := [key for key in needed if key not in record]:
            raise ValueError(f"{what}: entry {index} has no {', '.join(missing)}.")
        for key in ("id", "image_id", "category_id"):
            if not isinstance(record.get(key), Hashable) or isinstance(record.get(key), bool):
                raise ValueError(
                    f"{what}: {key} {record[key]!r:.60} of entry {index} is neither a number nor a string."
                )


def numbers(values: Sequence[Any] | np.ndarray, width: int | None, what: str) -> np.ndarray:
    """Numbers of a file as float64: [K], or [K, width] from lists of that length.

    Raises:
        ValueError: naming the first value that is not a finite number; `what` says what the values are.
    """
    if not (values.ndim if hasattr(values, "ndim") else isinstance(values, list | tuple)):
        raise ValueError(f"{what}: {values!r:.100} is not a list.")
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    shape = () if width is None else (width,)
    array = _numeric(values)
    if array is None or array.shape != (len(values), *shape) or not np.isfinite(array).all():
        for value in values:
            one = _numeric(value)
            if one is None or one.shape != shape or not np.isfinite(one).all():
                needed = "a finite number" if width is None else f"a list of {width} finite numbers"
                raise ValueError(f"{what} {value!r:.80} is not {needed}.")
        array = np.zeros((0, *shape))
    return array


def _numeric(value: Any) -> np.ndarray | None:
    """As float64, if it consists of numbers alone and is not ragged."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


__all__ = ["check_records", "in_order", "listed_boxes", "numbers", "read_annotations", "read_json"]
