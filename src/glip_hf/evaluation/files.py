# Copyright 2026 The glip_hf authors. MIT licence.
"""Result files as users have them: errors name the position and the value of what is wrong."""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..values_glip import quote


def read_json(source: str | Path | Mapping[str, Any]) -> Any:
    """A JSON file, or what was read already."""
    if not isinstance(source, str | Path):
        return source
    with open(source, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source} is not valid JSON: {error}") from None


def check_records(records: Any, needed: Sequence[str], what: str, first: int = 0) -> None:
    """Raise a ValueError unless `records` is a list of mappings that have all of `needed`; `what` names the list, and
    `first` is the index in it of the first record."""
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(f"{what}: a JSON list is needed, this is a {type(records).__name__}.")
    for index, record in enumerate(records, first):
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
