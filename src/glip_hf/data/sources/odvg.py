# Copyright 2026 The glip_hf authors. MIT licence.
"""ODVG: a line of JSON for each image, with objects of classes (detection) or regions of a caption (grounding)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...values_glip import counted, integer, quote, read_box
from ..columns import Columns
from ..fields import id_order
from ..images import ImageFinder
from .base import find_path
from .coco import CocoFile, reader


@dataclass(frozen=True)
class OdvgFile(CocoFile):
    """An ODVG file. Ids of images are the numbers of lines."""

    def entries(self, columns: Columns, for_evaluation: bool) -> Iterator[tuple[str, Any]]:
        kind = "grounding" if self.grounded else "detection"
        known = {category["id"]: category["name"] for category in self.categories or ()}
        found: dict[Any, str] = {}
        others: list[str] = []  # objects whose category is not that of their label
        unnamed = ""  # the first object without a category
        for number, row in _rows(self.path):
            where = f"line {number}"
            if isinstance(row, Exception):
                columns.note("unreadable", where, str(row), annotations=1)
                continue
            content, other = row.get(kind), row.get("detection" if self.grounded else "grounding")
            members = content.get("regions" if self.grounded else "instances") if isinstance(content, Mapping) else []
            if other is not None or not isinstance(content, Mapping | None) or not isinstance(members, list | None):
                detail = f"it is not a {kind} row as the first: a file has either" if other is not None else quote(row)
                columns.note("malformed", where, detail, annotations=1)
                continue
            sizes = {side: row.get(side) for side in ("width", "height")}
            image = {"id": number, "file_name": row.get("filename", row.get("file_name")), **sizes}
            yield "images", image | ({"caption": content and content.get("caption")} if self.grounded else {})
            for place, member in enumerate(members or ()):
                at = f"{where}, {'region' if self.grounded else 'instance'} {place}"
                if not isinstance(member, Mapping):
                    columns.note("malformed", at, quote(member), annotations=1)
                    continue
                entry = {"id": place, "image_id": number, "bbox": _xywh(member.get("bbox"))}
                if self.grounded:
                    spans, caption = member.get("tokens_positive"), content.get("caption")
                    if spans is None and isinstance(caption, str):
                        spans = find_phrase(member.get("phrase"), caption)
                    if not spans:
                        detail = f"the phrase {quote(member.get('phrase'))} is not in the caption {quote(caption)}"
                        columns.note("malformed", at, f"{detail}, and there are no tokens_positive", annotations=1)
                        continue
                    boxes = member.get("bbox")
                    several = isinstance(boxes, list) and boxes and all(isinstance(box, list) for box in boxes)
                    for box in boxes if several else [boxes]:
                        yield "annotations", {**entry, "bbox": _xywh(box), "tokens_positive": spans}
                    continue
                label, name = member.get("label"), member.get("category")
                label = name if label is None else label
                key = integer(label) if integer(label) is not None else label
                if known and isinstance(key, int | str) and key in known:
                    others += [f"{at}: {quote(name)}, label {quote(label)}"] if name not in (None, known[key]) else []
                elif known and label is not None:
                    detail = f"the label {quote(label)} is not among the {len(known)} of label_map"
                    columns.note("unknown_category", at, detail, annotations=1)
                    continue
                elif isinstance(key, int | str) and isinstance(name, str):
                    if found.setdefault(key, name) != name:
                        raise ValueError(
                            f"{self.path}: {at}: the label {quote(key)} is {quote(name)} here and {quote(found[key])} "
                            "before: correct one, or give label_map."
                        )
                else:
                    unnamed = unnamed or at
                yield "annotations", {**entry, "category_id": key}
        if others:
            columns.notes.append(
                f"{counted(len(others), 'object')} of another category than label_map has for the label (the first: "
                f"{others[0]}): the label counts."
            )
        if unnamed and not (known or found):
            raise ValueError(f"{self.path}: {unnamed} has no category: put label_map.json beside the file, or name it.")
        for key in sorted(found, key=id_order):
            yield "categories", {"id": key, "name": found[key]}


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | Exception]]:
    """Number and content of each line, or what is wrong with it."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield number, row if isinstance(row, Mapping) else ValueError(f"{quote(row)} is not an object")
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"it is not JSON ({error})")


def _xywh(box: Any) -> Any:
    """x, y, width, height of corners; what is not a box stays as it is, to be noted."""
    try:
        x, y, x2, y2 = read_box(box)
    except ValueError:
        return box
    return [x, y, round(x2 - x, 4), round(y2 - y, 4)]


def find_phrase(phrase: Any, caption: str) -> list[list[int]]:
    """The first place of a phrase, or of each of several, in a caption: `[[begin, end]]`, [] where one is not there."""
    spans = []
    for part in phrase if isinstance(phrase, list) else [phrase]:
        words = re.escape(part.strip()) if isinstance(part, str) else ""
        found = re.search(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE) if words else None
        if found is None:
            return []
        spans.append(list(found.span()))
    return spans


def odvg_file(
    annotations: str | Path,
    images: str | Path,
    label_map: str | Path | Mapping[Any, str] | None = None,
    *,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> OdvgFile:
    """A detection or a grounding set in ODVG's format; its first row tells which.

    Args:
        annotations: the `.jsonl` file. Boxes are x1, y1, x2, y2 with the far edges. Where a region has no
            `tokens_positive`, its phrase is looked for in the caption.
        images: the folder of the images.
        label_map: label -> class name of a detection set, or the JSON file with it; default the only file
            `*label_map.json` beside the annotations, else the `category` of the objects.
        data_root, allow_outside: as for `coco_file`.

    Raises:
        ValueError: for a file without rows of either kind, and a malformed label map.
    """
    path = find_path(annotations, data_root)
    kinds = (
        next((kind for kind in ("detection", "grounding") if kind in row), None)
        for _, row in _rows(path)
        if isinstance(row, Mapping)
    )
    first = next(filter(None, kinds), None)
    if first is None:
        raise ValueError(f"{path}: no row has 'detection' or 'grounding', as a file in ODVG's format.")
    categories = None
    if label_map is None and len(beside := list(path.parent.glob("*label_map.json"))) == 1:
        label_map = beside[0]
    if label_map is not None and first == "detection":
        categories = _categories(label_map, data_root)
    finders = {"": ImageFinder(find_path(images, data_root, must_exist=False), allow_outside)}
    key = {"reader": "odvg", "categories": categories}
    return OdvgFile(path, finders, key, path.stem, "all" if first == "detection" else "given", categories=categories)


read_odvg = reader(odvg_file)


def _categories(label_map: str | Path | Mapping[Any, str], data_root: str | Path | None) -> list[dict[str, Any]]:
    where, names = "label_map", label_map
    if not isinstance(label_map, Mapping):
        where = find_path(label_map, data_root)
        try:
            names = json.loads(where.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, Mapping) or not names:
        raise ValueError(f"{where}: {quote(names)} is not an object of class names by label.")
    return [{"id": label if integer(label) is None else integer(label), "name": name} for label, name in names.items()]
