# Copyright 2026 The glip_hf authors. MIT licence.
"""Pascal VOC: an XML file for each image."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ...formats import IMAGE_SUFFIXES
from ...values_glip import counted, quote, read_number
from ..columns import Columns
from ..fields import class_list, read_size
from ..images import ImageFinder
from .base import find_path
from .coco import CocoFile, number_images, reader
from .yolo import SPLITS


@dataclass(frozen=True)
class VocFile(CocoFile):
    """A split of a folder of VOC files.

    Attributes:
        lists: the text files that name its images; empty if `part` does.
        part: the folder within `path` whose files belong to it.
        one_based: see `voc_file`.
    """

    by_file = True
    lists: Sequence[Path] = ()
    part: Path = Path()
    one_based: bool | None = None

    def _xml_files(self) -> list[Path]:
        return sorted(self.path.rglob("*.xml"))

    def files(self) -> Sequence[Path]:
        return [*self.lists, *self._xml_files()]

    def image_path(self, image: Mapping[str, Any]) -> str:
        """The file of an image's entry: as `filename` says, or named like the XML file."""
        stem = image["xml"].removesuffix(".xml")
        return self.finders[""].find(image["file_name"], *(stem + suffix for suffix in (".jpg", *IMAGE_SUFFIXES)))

    def _chosen(self, columns: Columns, files: Sequence[Path]) -> list[Path]:
        """The files of the split, in its order."""
        if not self.lists:
            return [file for file in files if file.is_relative_to(self.part)]
        by_stem = {str(file.relative_to(self.path).with_suffix("")): file for file in files}
        chosen: dict[Path, None] = {}
        for path in self.lists:
            for line in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
                # Lists of a class end in 1, 0 or -1; others name the images.
                names = (line, re.sub(r"\s+-?[01]$", "", line), PurePath(line).stem)
                name = next((one for one in names if one in by_stem), names[1])
                if name in by_stem:
                    chosen[by_stem[name]] = None
                else:
                    detail = f"there is no {self.path / (name + '.xml')}"
                    columns.note("unreadable", f"{path.name}, {quote(name)}", detail, annotations=1)
        return list(chosen)

    def entries(self, columns: Columns, for_evaluation: bool) -> Iterator[tuple[str, Any]]:
        files = self._xml_files()
        chosen = dict.fromkeys(self._chosen(columns, files))
        # All files are read: class names and the origin of coordinates are the same in every split.
        names, from_zero = set(), ""
        read: dict[str, _Annotation] = {}
        for file in files:
            name = str(file.relative_to(self.path))
            try:
                found = _Annotation(parse_xml(file.read_bytes()))
            except (OSError, ValueError) as error:
                if file in chosen:
                    columns.note("unreadable", name, str(error), annotations=1)
                continue
            names.update(label for label, *_ in found.objects)
            from_zero = from_zero or (name if found.has_zero else "")
            if file in chosen:
                read[name] = found
        if from_zero and self.one_based is None:
            columns.notes.append(
                f"coordinates count from 0, as {from_zero} has one; VOC's own count from 1, both corners inside "
                "(one_based: true)."
            )
        origin = int(not from_zero if self.one_based is None else self.one_based)
        categories = self.categories or [{"id": n, "name": name} for n, name in enumerate(sorted(names - {""}), 1)]
        yield from (("categories", category) for category in categories)
        ids = {category["name"]: category["id"] for category in categories}
        owners: dict[str, str] = {}
        without_size, difficult = [], 0
        names_in_order = [name for name in (str(file.relative_to(self.path)) for file in chosen) if name in read]
        for image_id, name in zip(number_images(names_in_order), names_in_order, strict=True):
            found = read[name]
            file_name = os.path.join(os.path.dirname(name), found.file_name) if found.file_name else None
            entry = {"id": image_id, "file_name": file_name, "xml": name, **found.size}
            with suppress(ValueError):  # refused: noted by `parse_coco`
                if (owner := owners.setdefault(self.image_path(entry), name)) != name:
                    columns.note("duplicate_image", name, f"{owner} is of the same image", len(found.objects))
                    continue
            without_size += [] if found.size else [name]
            yield "images", entry
            for number, (label, box, is_difficult) in enumerate(found.objects, start=1):
                where = f"{name}, object {number}"
                if isinstance(box, str) or not label:
                    columns.note("malformed", where, box if isinstance(box, str) else "it has no <name>", annotations=1)
                elif label not in ids:
                    detail = f"{quote(label)} is not among the {len(ids)} class names"
                    columns.note("unknown_category", where, detail, annotations=1)
                else:
                    difficult += is_difficult
                    x, y, x2, y2 = box[0] - origin, box[1] - origin, *box[2:]
                    box = [round(side, 4) for side in (x, y, x2 - x, y2 - y)]
                    entry = {"id": number, "image_id": image_id, "category_id": ids[label], "bbox": box}
                    yield "annotations", {**entry, "iscrowd": is_difficult and for_evaluation}
        if without_size:
            columns.notes.append(
                f"{counted(len(without_size), 'file')} without a valid <size> (the first: {without_size[0]}): it is "
                "read from the image; write <size> with <width> and <height> in pixels."
            )
        if difficult:
            columns.notes.append(
                f"{counted(difficult, 'object')} marked difficult: trained on, ignored in evaluation as VOC does."
            )


class _Annotation:
    """What is read of a file: the image's name and size, and of each object class, corners (or what is wrong with
    them) and whether it is difficult."""

    def __init__(self, root: Element) -> None:
        if root.tag != "annotation":
            raise ValueError(f"it is <{root.tag:.60}>, not VOC's <annotation>")
        self.file_name = os.path.basename(_text(root, "filename").replace("\\", "/"))
        sides = {side: _text(root, f"size/{side}") for side in ("width", "height")}
        try:
            self.size = sides if all(read_size(value, side) for side, value in sides.items()) else {}
        except ValueError:
            self.size = {}
        self.objects: list[tuple[str, list[float] | str, bool]] = []
        self.has_zero = False
        for thing in root.iter("object"):
            corners = {side: _text(thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")}
            box: list[float] | str = f"its <bndbox> has {quote(list(corners.values()))} as xmin, ymin, xmax, ymax"
            with suppress(ValueError):
                box = [read_number(value) for value in corners.values()]
                self.has_zero |= 0 <= min(box[:2]) < 1
            is_difficult = _text(thing, "difficult").lower() in ("1", "true")
            self.objects.append((_text(thing, "name"), box, is_difficult))


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def parse_xml(content: bytes) -> Element:
    """The root of a document without a document type, which is where entities come from.

    Raises:
        ValueError: for another, and for what is not XML.
    """

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type (<!DOCTYPE>), which is not read: remove it")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:  # the latter of an encoding that Python does not know
        raise ValueError(f"it is not XML: {error}") from None


def voc_file(
    annotations: str | Path,
    images: str | Path | None = None,
    split: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    one_based: bool | None = None,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> VocFile:
    """One split of a Pascal VOC set, called "<folder>/<split>".

    Args:
        annotations: the folder: with `Annotations`, `JPEGImages` and `ImageSets/Main` (VOC's own), or with the XML
            files and images in it, or in a folder for each split.
        images: the folder of the images; default `JPEGImages` or `images` beside the annotations, else their own. An
            image is called as `filename` says, or like its XML file.
        split: the list of `ImageSets/Main`, or the folder; default "train", else "trainval", or all where there is
            neither. The folder of a split may be given as well as that of all.
        class_names: in their order; default those of all splits, sorted.
        one_based: whether pixels count from 1 and both corners are inside, as in VOC's own files. Default yes, unless a
            coordinate is 0: then they count from 0 and `xmax` and `ymax` are the far edges, as other tools write.
        data_root, allow_outside: as for `coco_file`.

    Raises:
        ValueError: for a split that there is not, and a folder without XML files.
    """
    class_names = class_names and class_list(class_names, "class_names")
    if one_based not in (None, False, True):
        raise ValueError(f"one_based={quote(one_based)} must be true or false.")
    root = find_path(annotations, data_root)
    if root.is_file():
        raise ValueError(f"{root} is a file: give the folder of the XML files.")
    part, alone = SPLITS.get(root.name), False
    if (
        part
        and split in (None, root.name, part)
        and any(_has_xml(root.parent / other) for other in SPLITS if other != root.name)
    ):
        root, split, alone = root.parent, part, True  # with the class names and the origin of all splits
    folder = next((root / name for name in ("Annotations", "annotations") if (root / name).is_dir()), root)
    top = root.parent if folder == root and root.name.lower() == "annotations" else root
    lists = {
        path.stem: path for where in ("ImageSets", "ImageSets/Main") for path in sorted(top.glob(f"{where}/*.txt"))
    }
    parts = {}
    if not lists:
        parts = {path.name: path for path in sorted(folder.iterdir()) if _has_xml(path)}
    known = {SPLITS.get(name, name): path for name, path in (lists | parts).items()}
    if split is None:
        split = next((name for name in ("train", "trainval") if name in known), None)
    split = split and SPLITS.get(split, split)
    if split and split not in known:
        raise ValueError(f"{root}: there is no split {split!r:.60}; it has {quote(list(known)) if known else 'none'}.")
    if folder == root and (years := sorted(str(path.parent) for path in root.glob("*/ImageSets"))):
        raise ValueError(f"{root} has no annotations of its own: give one of {', '.join(years)}.")
    if not _has_xml(folder):
        raise ValueError(f"{folder}: there is no XML file.")
    if images is None:
        images = next((top / name for name in ("JPEGImages", "images", "Images") if (top / name).is_dir()), folder)
    return VocFile(
        folder,
        {"": ImageFinder(find_path(images, data_root, must_exist=False), allow_outside)},
        {"reader": "voc", "split": split, "one_based": one_based, "class_names": class_names},
        f"{root.name}/{split}" if split else root.name,
        categories=class_names and [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        splits=[] if alone else list(known),
        lists=[known[split]] if split and lists else [],
        part=known[split] if split and parts else folder,
        one_based=one_based,
    )


def _has_xml(folder: Path) -> bool:
    return any(True for _ in folder.rglob("*.xml"))


read_voc = reader(voc_file)
