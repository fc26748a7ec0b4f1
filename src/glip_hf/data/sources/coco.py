# Copyright 2026 The glip_hf authors. MIT licence.
"""COCO JSON and the formats of its shape: LVIS, and MDETR's grounding files.

`CocoFile` says how a file is to be read. `CocoFile.read` gives a `Source` (training), `parse_coco` all annotations in
`Columns`, crowd regions and damaged ones included (`check-data`): one parser, one validator.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...prompts_glip import Name
from ..cache import TableWriter, convert_once
from ..columns import Columns
from ..images import URL_FIELDS, ImageFinder, RefusedImage, missing_files
from ..json_stream import stream_json
from ..records import ImageRef, UnreadableImage, upright_size
from .base import Captions, Source, find_path, sound_table


@dataclass(frozen=True)
class CocoFile:
    """A COCO-shaped annotation file and how it is to be read.

    Attributes:
        path: the file.
        finders: of the image folders, by `data_source` or "".
        key: what shapes the result besides the file, for the cache.
        name: default name of the data set.
        captions: default of the option.
        keep_keys: of an image's entry, stored with it as `Record.extra`.
        categories: `[{"id", "name"}, ...]` to use instead of the file's.
        prompts: a `{"prefix", "name", "suffix"}` per category, in order of their ids.
        name_fields: where an image's entry names its file, in order of preference.
    """

    path: Path
    finders: Mapping[str, ImageFinder]
    key: Mapping[str, Any]
    name: str
    captions: Captions = "all"
    keep_keys: Sequence[str] = ()
    categories: Sequence[Mapping[str, Any]] | None = None
    prompts: Sequence[Mapping[str, str]] | None = None
    name_fields: Sequence[str] = ("file_name", *URL_FIELDS)

    @property
    def grounded(self) -> bool:
        """Whether annotations have spans of their image's caption; categories mean nothing then."""
        return self.captions == "given"

    def image_path(self, image: Mapping[str, Any]) -> str:
        """The file of an image's entry, or where it should be; raises as `ImageFinder.find`."""
        part = "" if "" in self.finders else image.get("data_source")
        if part not in self.finders:
            raise ValueError(f"data_source {part!r:.100} has no folder; images= names {sorted(self.finders)}")
        return self.finders[part].find(*map(image.get, self.name_fields))

    def _is_current(self, info: Mapping[str, Any]) -> bool:
        """Whether the image folder still gives what a stored conversion found there."""
        path, existed = info["probe"]
        finders = [one for one in self.finders.values() if path.startswith(one.folder)] or self.finders.values()
        return not any(finder.has_changed(path, existed) for finder in finders)

    def read(
        self,
        name: str | None = None,
        *,
        drop_empty: bool = True,
        captions: Captions | None = None,
        strict: bool = False,
        cache_dir: str | Path | None = None,
    ) -> Source:
        """The file as a source.

        Crowd regions are ignored, categories numbered 1..N in order of their ids, images sorted by id.

        Args:
            name: of the data set; default that of the file.
            drop_empty: leave out images without a usable box (the original's way). With False they are kept, as
                negatives.
            captions: "all" (every caption holds all class names) or "sampled" (those of the image among some others).
            strict: fail at the first damaged annotation instead of leaving it out.
            cache_dir: see `cache.convert_once`.

        Raises:
            ValueError: for what cannot be read; the message names file and remedy.
        """
        name, captions = name or self.name, captions or self.captions
        if self.grounded and captions != "given":
            raise ValueError(f"{self.path}: captions={captions!r} is for detection sets; this one brings its own.")

        def build(writer: TableWriter) -> dict[str, Any]:
            columns = Columns(str(self.path), grounded=self.grounded)
            found = parse_coco(self, columns)
            for kind in ("refused_image", "missing_image"):
                if problems := [problem for problem in columns.problems if problem.kind == kind]:
                    more = f" And {len(problems) - 1} more." if len(problems) > 1 else ""
                    raise ValueError(f"{problems[0].file}: {problems[0].where}: {problems[0].detail}.{more}")
            labels, names = None, {}
            if not self.grounded:
                labels, names = number_categories(self.categories or found, self.path)
            dropped: dict[str, int] = {}
            writer.write(sound_table(columns, dropped, labels, labels, drop_empty, strict))
            ids = {label: category for category, label in (labels or {}).items()}
            missing = missing_files(columns.paths)[:1]
            probe = [(missing or columns.paths or [""])[0], not missing]
            return {"file": str(self.path), "names": names, "category_ids": ids, "dropped": dropped, "probe": probe}

        folders = {part: [finder.folder, finder.allow_outside] for part, finder in self.finders.items()}
        key = {**self.key, "images": folders, "drop_empty": drop_empty, "strict": strict}
        converted = convert_once(name, [self.path], key, build, cache_dir, self._is_current)
        source = Source(name, *converted, captions)
        source.prompts = class_prompts(source.names, self.prompts)
        return source


def reader(make: Callable[..., CocoFile]) -> Callable[..., Source]:
    """A function that takes the arguments of `make` and those of `CocoFile.read`, and returns the source."""
    makes, reads = (list(inspect.signature(function).parameters.values()) for function in (make, CocoFile.read))
    options = {parameter.name for parameter in reads[1:]}
    positional = sum(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in makes)

    def read(*arguments: Any, **keywords: Any) -> Source:
        how = {key: keywords.pop(key) for key in options & keywords.keys()}
        if len(arguments) == positional + 1 and "name" not in how:
            *arguments, how["name"] = arguments
        return make(*arguments, **keywords).read(**how)

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in reads[1:]]
    read.__signature__ = inspect.Signature(makes + keywords, return_annotation=Source)
    read.__name__ = f"read_{make.__name__.removesuffix('_file')}"
    read.__doc__ = f"{make.__doc__}\nIt is read at once: see `CocoFile.read` for the other arguments."
    return read


def _finder(images: str | Path, data_root: str | Path | None, allow_outside: bool) -> ImageFinder:
    return ImageFinder(find_path(images, data_root, must_exist=False), allow_outside)


def coco_file(
    annotations: str | Path,
    images: str | Path,
    *,
    data_root: str | Path | None = None,
    categories: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[Mapping[str, str]] | None = None,
    allow_outside: bool = False,
) -> CocoFile:
    """A detection set in COCO's format.

    Args:
        annotations: the JSON file.
        images: the folder of the images; how a `file_name` or a URL is looked for in it, see `ImageFinder`.
        data_root: where relative paths begin, see `find_path`.
        categories, prompts: see `CocoFile`.
        allow_outside: read images outside the folder, too.
    """
    path = find_path(annotations, data_root)
    key = {"reader": "coco", "categories": list(categories) if categories else None}
    finders = {"": _finder(images, data_root, allow_outside)}
    return CocoFile(path, finders, key, path.stem, categories=categories, prompts=prompts)


read_coco = reader(coco_file)


def lvis_file(
    annotations: str | Path, images: str | Path, *, data_root: str | Path | None = None, allow_outside: bool = False
) -> CocoFile:
    """A detection set in LVIS's format; arguments as for `coco_file`.

    An image lies in `images` under the path of its `coco_url` (`train2017/000000000009.jpg`), as LVIS splits COCO's
    images anew; where there is no `coco_url`, under `file_name`. What the annotations say about negative and not
    exhaustively annotated categories is in `Record.extra`, by original id.
    """
    path = find_path(annotations, data_root)
    finders = {"": _finder(images, data_root, allow_outside)}
    keep_keys = ("neg_category_ids", "not_exhaustive_category_ids")
    fields = ("coco_url", "file_name")
    return CocoFile(path, finders, {"reader": "lvis"}, path.stem, "sampled", keep_keys, name_fields=fields)


read_lvis = reader(lvis_file)


def mdetr_file(
    annotations: str | Path,
    images: str | Path | Mapping[str, str | Path],
    *,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> CocoFile:
    """A grounding set in MDETR's format.

    Args:
        annotations: `final_flickr_separateGT_*.json`, `final_mixed_train.json`, `final_mixed_train_no_coco.json`,
            `final_refexp_val.json`, ...
        images: the folder of the images. For the mixed files a folder for each `data_source`:
            `{"vg": "gqa/images", "coco": "coco/train2014"}`.
        data_root, allow_outside: as for `coco_file`.

    `Record.eval_spans` holds `tokens_positive_eval`; `Record.extra` what there is of `sentence_id`, `original_img_id`,
    `original_id`, `data_source`.
    """
    folders = images if isinstance(images, Mapping) else {"": images}
    finders = {part: _finder(folder, data_root, allow_outside) for part, folder in folders.items()}
    path = find_path(annotations, data_root)
    keep_keys = ("sentence_id", "original_img_id", "original_id", "data_source")
    return CocoFile(path, finders, {"reader": "mdetr"}, path.stem, "given", keep_keys)


read_mdetr = reader(mdetr_file)


def parse_coco(file: CocoFile, columns: Columns) -> list[Mapping[str, Any]]:
    """Read a COCO-shaped file into `columns` and return its categories.

    Raises:
        UnreadableJson: where the file breaks off; `columns` has everything before.
    """
    categories = []
    for key, entry in stream_json(file.path):
        if key not in ("images", "annotations", "categories"):
            continue
        if not isinstance(entry, Mapping):
            columns.note("malformed", f"an entry of {key!r}", f"{entry!r:.100}")
        elif key == "images":
            _add_image(columns, entry, file)
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


def _add_image(columns: Columns, entry: Mapping[str, Any], file: CocoFile) -> None:
    where, width, height = f"image {entry.get('id')!r:.100}", entry.get("width"), entry.get("height")
    try:
        path = file.image_path(entry)
        if _is_missing(width) or _is_missing(height):
            with ImageRef(path).open() as image:
                width, height = upright_size(image)
    except (OSError, TypeError, ValueError) as error:
        kinds = {RefusedImage: "refused_image", FileNotFoundError: "missing_image", UnreadableImage: "broken_image"}
        columns.note(kinds.get(type(error), "malformed"), where, str(error))
        return
    extra = {key: entry[key] for key in file.keep_keys if entry.get(key) is not None}
    columns.add_image(
        entry.get("id"),
        path,
        width,
        height,
        entry.get("caption", "") if columns.grounded else None,
        entry.get("tokens_positive_eval") or (),
        json.dumps(extra) if extra else "",
    )


def _is_missing(side: Any) -> bool:
    """Whether a width or height is none: absent, null, empty, 0, -1, NaN. (What is not a number is damage.)"""
    try:
        return side is None or side == "" or not float(side) >= 1
    except (TypeError, ValueError, OverflowError):
        return False


def number_categories(
    categories: Sequence[Mapping[str, Any]], file: str | Path
) -> tuple[dict[int, int], dict[int, str]]:
    """Category id -> 1..N in order of the ids, and 1..N -> name. `__background__` is not numbered.

    Raises:
        ValueError: for entries without an integer id and a name, and for ids that occur twice.
    """
    listed = {}
    for entry in categories:
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{file}: the category {entry!r} needs an integer 'id' and a 'name'.")
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
        ValueError: if there is not one per class.
    """
    if not prompts:
        return None
    if len(prompts) != len(names):
        raise ValueError(f"There are {len(prompts)} caption prompts for {len(names)} classes: give one each.")
    return {
        label: Name(p["name"], label, p.get("prefix") or "", p.get("suffix") or "")
        for label, p in zip(sorted(names), prompts, strict=True)
    }
