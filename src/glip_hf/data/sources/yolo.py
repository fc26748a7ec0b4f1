# Copyright 2026 The glip_hf authors. MIT licence.
"""YOLO: a `data.yaml` with class names and splits, and a text file with a row per box for each image."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..._extras import load_yaml
from ...formats import IMAGE_SUFFIXES
from ...runs import sizes_digest
from ...values_glip import counted, integer, quote, read_number
from ..columns import Columns
from ..images import ImageFinder
from ..records import ImageRef, upright_size
from .base import find_path
from .coco import CocoFile, number_images, reader

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Keys of `data.yaml` and names of folders that hold a split, and what it is called."""

_ROW = "a row is `class x y width height` or `class x y x y x y ...`"


@dataclass(frozen=True)
class YoloFile(CocoFile):
    """A split of a YOLO set.

    Attributes:
        parts: its folders of images, and text files that list images.
        keypoints: rows have keypoints after the box.
    """

    by_file = True
    parts: Sequence[Path] = ()
    keypoints: bool = False

    @cached_property  # its folders are walked once, for the digest, the files and the rows
    def listed(self) -> list[tuple[str, str]]:
        """Every image: the key of its finder, and its name in that folder; in order of lines and of names."""
        found: dict[tuple[str, str], None] = {}
        for part in self.parts:
            if part.is_dir():
                names = [
                    os.path.relpath(os.path.join(folder, name), part)
                    for folder, _, files in os.walk(part)
                    for name in files
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES
                ]
                found |= dict.fromkeys((str(part), name) for name in sorted(names))
                continue
            try:
                lines = part.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{self.path}: {part} is neither a folder of images nor a text file that lists some."
                ) from None
            for name in filter(None, map(str.strip, lines)):
                near = str(part.parent / name)  # "./a.jpg" is meant from the list's folder
                found[str(part), near if name.startswith("./") or os.path.isfile(near) else name] = None
        if not found:
            raise ValueError(f"{self.path}: there is no image in {', '.join(map(str, self.parts))}.")
        return list(found)

    def files(self) -> Sequence[Path]:
        lists = [part for part in self.parts if part.is_file()]
        labels = (self._label_file(where, name) for where, name in self.listed)
        return [self.path, *lists, *filter(None, labels)]

    def cache_key(self) -> Mapping[str, Any]:
        paths = [os.path.join(where, name) for where, name in self.listed]
        return {**self.key, "parts": list(map(str, self.parts)), "pictures": sizes_digest(paths)}

    def _label_file(self, where: str, name: str) -> Path | None:
        """The text file of an image: in `labels` in place of the last folder `images` of its path, or beside it."""
        try:
            image = Path(self.finders[where].find(name))
        except ValueError:  # refused: found again by `parse`
            return None
        return next((path for path in _label_places(image) if path.is_file()), None)

    def entries(self, columns: Columns, for_evaluation: bool) -> Iterator[tuple[str, Any]]:
        for category in self.categories or ():
            yield "categories", category
        known = {category["id"]: None for category in self.categories or ()}
        listed, outlines = self.listed, 0
        labelled: set[Path] = set()
        for image_id, (where, name) in zip(number_images([name for _, name in listed]), listed, strict=True):
            entry: dict[str, Any] = {"id": image_id, "file_name": name, "data_source": where}
            width, height = 1, 1
            try:
                with ImageRef(self.image_path(entry)).open() as image:
                    width, height = upright_size(image)
                entry |= {"width": width, "height": height}
            except (OSError, ValueError):  # noted by `parse_coco`, which opens it again for its size
                pass
            path = self._label_file(where, name)
            labelled |= {path} if path else set()
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines() if path else []
            except (OSError, ValueError) as error:
                columns.note("unreadable", str(path), f"it is not a text file of YOLO ({error})", annotations=1)
                continue
            yield "images", entry
            for number, line in enumerate(lines, start=1):
                if not (values := line.split()):
                    continue
                at = f"{path}, line {number}"
                try:
                    label, box = self._row(values)
                except ValueError as error:
                    columns.note("malformed", at, str(error), annotations=1)
                    continue
                if label not in known:
                    detail = f"class {label} is not among the {len(known)} names of {self.path.name} "
                    detail += f"({min(known)} to {max(known)}): correct the row or add the name"
                    columns.note("unknown_category", at, detail, annotations=1)
                    continue
                outlines += len(values) > 5 and not self.keypoints
                x, y, w, h = (round(side * size, 2) for side, size in zip(box, (width, height) * 2))
                yield "annotations", {"id": number, "image_id": image_id, "category_id": label, "bbox": [x, y, w, h]}
        if not labelled:
            first = self.image_path({"file_name": listed[0][1], "data_source": listed[0][0]})
            raise ValueError(
                f"{self.path}: none of {counted(len(listed), 'image')} has a label file; looked for "
                f"{' and '.join(map(str, _label_places(Path(first))))}. Labels lie in `labels` where images lie in "
                "`images`, or beside the images."
            )
        if outlines:
            columns.notes.append(f"{counted(outlines, 'row')} with an outline: the box around it is used.")
        folders = {path.parent for path in labelled} if all(part.is_dir() for part in self.parts) else set()
        beside = (path for folder in sorted(folders) if "labels" in folder.parts for path in folder.glob("*.txt"))
        if unread := sorted(path for path in beside if path not in labelled and path.name != "classes.txt"):
            columns.notes.append(
                f"{counted(len(unread), 'label file')} without an image of that name (the first: {unread[0]}): their "
                "boxes are not read."
            )

    def _row(self, values: Sequence[str]) -> tuple[int, list[float]]:
        """Class and box (x, y of the corner, width, height; fractions of the image) of a row."""
        label = integer(values[0])
        if label is None:
            raise ValueError(f"the class {quote(values[0])} is not an integer: {_ROW}")
        numbers = [read_number(value, "the value") for value in values[1 : 5 if self.keypoints else None]]
        if len(values) != 5 and not self.keypoints and (len(numbers) < 6 or len(numbers) % 2) or len(values) < 5:
            raise ValueError(f"{len(values)} values: {_ROW}")
        if max(map(abs, numbers)) > 2:
            raise ValueError(f"{quote(values[1:])} in pixels? YOLO's are fractions of the image's width and height")
        if len(numbers) == 4:
            x, y, w, h = numbers
            return label, [x - w / 2, y - h / 2, w, h]
        xs, ys = numbers[::2], numbers[1::2]
        return label, [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _label_places(image: Path) -> list[Path]:
    beside, folders = image.with_suffix(".txt"), list(image.parent.parts)
    if "images" not in folders:
        return [beside]
    last = len(folders) - 1 - folders[::-1].index("images")
    return [Path(*folders[:last], "labels", *folders[last + 1 :], beside.name), beside]


def yolo_file(
    annotations: str | Path,
    images: str | Path | None = None,
    split: str | None = None,
    *,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> YoloFile:
    """One split of a YOLO set, called "<folder>/<split>".

    An image without a label file is a negative. Coordinates become pixels, rounded to hundredths.

    Args:
        annotations: `data.yaml`, or its folder: `names` (a list, or a dictionary by number) and for each split a
            folder, a text file that lists images, or a list of these.
        images: the folder that the splits are relative to, in place of `path` in the file; without either the file's.
        split: "train", "val" or "test"; default "train", else the first that there is.
        data_root, allow_outside: as for `coco_file`; images that a text file lists lie within that folder.

    Raises:
        ValueError: for a split that the file does not have, and a malformed file.
        FileNotFoundError: for a split's folder that does not exist.
    """
    path = find_path(annotations, data_root)
    path = path / "data.yaml" if path.is_dir() else path
    settings = _load(path)
    splits = {SPLITS[key]: value for key, value in settings.items() if key in SPLITS and value}
    split = min(splits, key=lambda one: one != "train", default="train") if split is None else SPLITS.get(split, split)
    if split not in splits:
        raise ValueError(f"{path}: there is no split {split!r:.60}; it has {', '.join(splits) or 'none'}.")
    root, given = path.parent, images if images is not None else settings.get("path")
    if given is not None:
        root = next(
            (one for one in (path.parent / str(given), find_path(str(given), data_root, False)) if one.exists()), root
        )
    parts, entries = [], splits[split]
    for entry in (str(one).replace("\\", "/") for one in (entries if isinstance(entries, list) else [entries])):
        inside = Path(*(part for part in Path(entry).parts if part != "..")) if not os.path.isabs(entry) else entry
        tried = [place / one for one in (entry, inside) for place in (root, path.parent)]
        found = next((place for place in tried if place.exists()), None)
        if found is None:
            listed = ", ".join(dict.fromkeys(map(os.path.normpath, tried)))
            raise FileNotFoundError(f"{path}: there is no {entry!r} of {split!r}; looked for {listed}.")
        parts.append(Path(os.path.abspath(found)))
    finders = {}
    for part in parts:
        folder = part if part.is_dir() else root if part.is_relative_to(os.path.abspath(root)) else part.parent
        finders[str(part)] = ImageFinder(os.path.abspath(folder), allow_outside)
    return YoloFile(
        path,
        finders,
        {"reader": "yolo"},
        f"{path.parent.name}/{split}",
        categories=_categories(path, settings),
        splits=list(splits),
        parts=parts,
        keypoints="kpt_shape" in settings,
    )


read_yolo = reader(yolo_file)


def _load(path: Path) -> dict[str, Any]:
    content = load_yaml(path)
    if not isinstance(content, dict) or not SPLITS.keys() & content.keys():
        raise ValueError(f"{path}: a YOLO data file has 'names' and 'train', 'val' or 'test'; this one does not.")
    return content


def _categories(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes; a ValueError without a name for each, and for another number of them than `nc`."""
    names = settings.get("names")
    if isinstance(names, dict):
        numbered = {integer(key): name for key, name in names.items()}
    else:
        numbered = dict(enumerate(names)) if isinstance(names, list) else {}
    if not numbered or None in numbered:
        raise ValueError(f"{path}: 'names' {quote(names)} is neither a list of class names nor a dictionary by number.")
    if flags := [name for name in numbered.values() if isinstance(name, bool)]:
        raise ValueError(f"{path}: YAML reads a class name as {flags[0]}: write yes, no, on, off in quotes, as 'no'.")
    if settings.get("nc") not in (None, len(numbered)):
        raise ValueError(f"{path}: nc is {quote(settings['nc'])}, but there are {len(numbered)} names: correct one.")
    return [{"id": number, "name": name} for number, name in sorted(numbered.items())]
