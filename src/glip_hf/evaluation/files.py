# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotation and result files as users have them: errors name the position and the value of what is wrong."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.columns import Tally
from ..data.sources.coco import read_document
from ..messages_glip import quote
from ..values_glip import id_order


@dataclass(frozen=True)
class Annotations:
    """A detection set without what is damaged: lists as `read_document` gives them, the images in order of their ids.

    Attributes:
        name: the file, for messages.
        tally: what became of the boxes.
    """

    name: str
    images: list[dict[str, Any]]
    boxes: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    tally: Tally

    @property
    def image_ids(self) -> list[int | str]:
        return [image["id"] for image in self.images]

    @property
    def category_ids(self) -> list[int | str]:
        return [category["id"] for category in self.categories]

    @property
    def names(self) -> list[str]:
        return [category["name"] for category in self.categories]


def read_annotations(
    source: "str | Path | Mapping[str, Any] | Annotations",
    categories: Sequence[Mapping[str, Any]] | None = None,
    image_path: Callable[[Mapping[str, Any]], str] | None = None,
) -> Annotations:
    """COCO-style annotations, by the rules by which training reads them; see `read_document`.

    Args:
        source: a file, its content, or what this function gave.
    """
    if isinstance(source, Annotations):
        return source
    document, tally = read_document(source, categories, image_path)
    images = sorted(document["images"], key=lambda image: id_order(image["id"]))
    name = str(source) if isinstance(source, str | Path) else "the annotations"
    return Annotations(name, images, document["annotations"], document["categories"], tally)


def read_json(source: str | Path | Mapping[str, Any]) -> Any:
    """A JSON file, or what was read already."""
    if not isinstance(source, str | Path):
        return source
    with open(source, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source} is not valid JSON: {error}") from None


def check_records(records: Any, needed: Sequence[str], what: str) -> None:
    """
    Raises:
        ValueError: if `records` is not a list of mappings that have all of `needed`; `what` names the list.
    """
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(f"{what}: a JSON list is needed, this is a {type(records).__name__}.")
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{what}: entry {index} is not a JSON object but {quote(record)}.")
        if missing := [key for key in needed if key not in record]:
            raise ValueError(f"{what}: entry {index} has no {', '.join(missing)}.")
        for key in ("id", "image_id", "category_id"):
            if not isinstance(record.get(key), Hashable) or isinstance(record.get(key), bool):
                raise ValueError(
                    f"{what}: {key} {quote(record[key])} of entry {index} is neither a number nor a string."
                )


def numbers(values: Sequence[Any] | np.ndarray, width: int | None, what: str) -> np.ndarray:
    """Numbers of a file as float64: [K], or [K, width] from lists of that length.

    Raises:
        ValueError: naming the first value that is not a finite number; `what` says what the values are.
    """
    if not (values.ndim if hasattr(values, "ndim") else isinstance(values, list | tuple)):
        raise ValueError(f"{what}: {quote(values)} is not a list.")
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    shape = () if width is None else (width,)
    array = _numeric(values)
    if array is None or array.shape != (len(values), *shape) or not np.isfinite(array).all():
        for value in values:
            one = _numeric(value)
            if one is None or one.shape != shape or not np.isfinite(one).all():
                needed = "a finite number" if width is None else f"a list of {width} finite numbers"
                raise ValueError(f"{what} {quote(value)} is not {needed}.")
        array = np.zeros((0, *shape))
    return array


def _numeric(value: Any) -> np.ndarray | None:
    """As float64, if it consists of numbers alone and is not ragged."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None
