# Copyright 2026 The glip_hf authors. MIT licence.
"""COCO JSON, and what every COCO-shaped JSON has in common."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...prompts_glip import Name
from ..cache import TableWriter, convert_once
from ..columns import Columns, Problem
from ..json_stream import stream_json
from .base import Captions, Source, find_path, store, warn_dropped

ImagePath = Callable[[Mapping[str, Any]], str]


def read_coco(
    annotations: str | Path,
    images: str | Path,
    name: str | None = None,
    *,
    data_root: str | Path | None = None,
    drop_empty: bool = True,
    captions: Captions = "all",
    categories: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[Mapping[str, str]] | None = None,
    strict: bool = False,
    cache_dir: str | Path | None = None,
) -> Source:
    """A detection set in COCO's format.

    Crowd regions are ignored, categories numbered 1..N in order of their ids, pictures sorted by id.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` is relative to.
        name: of the data set; default: the file's.
        data_root: where relative paths begin, see `find_path`.
        drop_empty: leave out pictures without a usable box (the original's way). With False they are kept,
            as negatives.
        captions: "all" (every caption holds all names) or "sampled" (the pictures' own and some others).
        categories: `[{"id", "name"}, ...]` to use instead of the file's.
        prompts: one `{"prefix", "name", "suffix"}` a category, in order of their ids.
        strict: fail at the first damaged annotation instead of leaving it out.
        cache_dir: see `cache.convert_once`.

    Raises:
        FileNotFoundError, ValueError: for what cannot be read; the message names file and remedy.
    """
    file = coco_file(annotations, images, data_root=data_root, categories=categories)
    source = coco_source(file, name, drop_empty, captions, strict, cache_dir)
    source.prompts = class_prompts(source.names, prompts)
    return source


@dataclass(frozen=True)
class CocoFile:
    """A COCO-shaped annotation file and how it is to be read.

    Attributes:
        path: the file.
        image_path: from an image's entry to the picture's path.
        options: what shapes the result besides the file, for the cache.
        grounded: annotations have spans of their image's caption, categories mean nothing.
        keep_keys: of an image's entry, stored with it as `Record.extra`.
        categories: to use instead of the file's.
    """

    path: Path
    image_path: ImagePath
    options: Mapping[str, Any]
    grounded: bool = False
    keep_keys: Sequence[str] = ()
    categories: Sequence[Mapping[str, Any]] | None = None


def coco_file(
    annotations: str | Path,
    images: str | Path,
    *,
    data_root: str | Path | None = None,
    categories: Sequence[Mapping[str, Any]] | None = None,
) -> CocoFile:
    """How `read_coco` reads; arguments as there."""
    folder = str(find_path(images, data_root, must_exist=False))
    return CocoFile(
        find_path(annotations, data_root),
        lambda image: f"{folder}/{image['file_name']}",
        {"reader": "coco", "images": folder, "categories": list(categories) if categories else None},
        categories=categories,
    )


def coco_source(
    file: CocoFile,
    name: str | None,
    drop_empty: bool,
    captions: Captions,
    strict: bool,
    cache_dir: str | Path | None,
) -> Source:
    """The source of a COCO-shaped file; arguments as for `read_coco`."""
    name = name or file.path.stem

    def build(writer: TableWriter) -> dict[str, Any]:
        columns = Columns(str(file.path), grounded=file.grounded)
        found = parse_coco(file, columns)
        labels, names = None, {}
        if not file.grounded:
            labels, names = number_categories(file.categories or found, file.path)
        dropped: dict[str, int] = {}
        store(columns, writer, dropped, labels, labels, drop_empty, strict)
        ids = {label: category for category, label in (labels or {}).items()}
        return {"file": str(file.path), "names": names, "category_ids": ids, "dropped": dropped}

    options = dict(file.options) | {"drop_empty": drop_empty, "strict": strict}
    table, info, rows = convert_once(name, [file.path], options, build, cache_dir)
    source = Source(name, table, info, rows, captions)
    warn_dropped(name, source.dropped)
    return source


def parse_coco(file: CocoFile, columns: Columns) -> list[Mapping[str, Any]]:
    """Read a COCO-shaped file into `columns`; what it gives as categories is returned.

    Raises:
        UnreadableJson: where the file breaks off; `columns` has all that came before.
    """
    categories = []
    for key, entry in stream_json(file.path):
        if key not in ("images", "annotations", "categories"):
            continue
        if not isinstance(entry, Mapping):
            columns.problems.append(Problem("malformed", str(file.path), f"an entry of {key!r}", f"{entry!r:.100}"))
        elif key == "images":
            _add_image(columns, entry, file.image_path, file.keep_keys)
        elif key == "annotations":
            columns.add_annotation(
                entry.get("id"),
                entry.get("image_id"),
                entry.get("category_id", 1 if columns.grounded else None),
                entry.get("bbox"),
                entry.get("area"),
                entry.get("iscrowd", 0),
                entry.get("tokens_positive") or () if columns.grounded else (),
            )
        else:
            categories.append(entry)
    return categories


def _add_image(columns: Columns, entry: Mapping[str, Any], image_path: ImagePath, keep_keys: Sequence[str]) -> None:
    try:
        path = image_path(entry)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        where = f"image {entry.get('id')!r}"
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        columns.problems.append(Problem("malformed", columns.file, where, missing))
        return
    extra = {key: entry[key] for key in keep_keys if entry.get(key) is not None}
    columns.add_image(
        entry.get("id"),
        path,
        entry.get("width"),
        entry.get("height"),
        entry.get("caption", "") if columns.grounded else None,
        entry.get("tokens_positive_eval") or (),
        json.dumps(extra) if extra else "",
    )


def number_categories(
    categories: Sequence[Mapping[str, Any]], file: str | Path
) -> tuple[dict[int, int], dict[int, str]]:
    """Category id -> 1..N in order of the ids, and 1..N -> name. A `__background__` gets no number.

    Raises:
        ValueError: for entries without whole-number id and name, and for ids that occur twice.
    """
    listed = {}
    for entry in categories:
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{file}: the category {entry!r} needs a whole-number 'id' and a 'name'.")
        if entry["id"] in listed:
            raise ValueError(f"{file}: the category id {entry['id']} occurs twice.")
        listed[entry["id"]] = entry["name"]
    if not listed:
        raise ValueError(f"{file}: there are no 'categories'; a detection set needs them.")
    known = sorted(key for key, name in listed.items() if name != "__background__")
    labels = {key: number for number, key in enumerate(known, start=1)}
    return labels, {labels[key]: listed[key] for key in known}


def class_prompts(names: Mapping[int, str], prompts: Sequence[Mapping[str, str]] | None) -> dict[int, Name] | None:
    """Caption prompts by class id.

    Raises:
        ValueError: if there is not one a class.
    """
    if not prompts:
        return None
    if len(prompts) != len(names):
        raise ValueError(f"There are {len(prompts)} caption prompts for {len(names)} classes: give one each.")
    return {
        label: Name(p["name"], label, p.get("prefix") or "", p.get("suffix") or "")
        for label, p in zip(sorted(names), prompts, strict=True)
    }
