# Copyright 2026 The glip_hf authors. MIT licence.
"""COCO JSON and the formats of its shape: LVIS, and MDETR's grounding files.

`CocoFile` says how a file is to be read. `CocoFile.read` gives a `Source` (training), `CocoFile.parse` all annotations
in `Columns`, crowd regions and damaged ones included (`check-data`), `read_annotations` the sound ones for evaluators:
one parser, one validator.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np
from transformers.utils import logging

from ...image_processing_pil_glip import UnreadableImage
from ...prompts_glip import Name
from ...values_glip import in_one_line, quote
from ..cache import TableWriter, convert_once
from ..columns import Columns, Tally
from ..fields import Ids, id_order, read_id, read_name, read_size
from ..images import SHOWN, URL_FIELDS, ImageFinder, RefusedImage, missing_files
from ..json_stream import stream_json
from ..records import ImageRef, upright_size
from .base import Captions, Source, find_path

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class CocoFile:
    """A COCO-shaped annotation file and how it is to be read.

    Subclasses read other formats as if they were such a file (`voc.py`, `yolo.py`, `odvg.py`).

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
        splits: of the data set, where the format knows them.
        by_file: findings name images by their files, where the format has no ids.
    """

    by_file: ClassVar[bool] = False

    path: Path
    finders: Mapping[str, ImageFinder]
    key: Mapping[str, Any]
    name: str
    captions: Captions = "all"
    keep_keys: Sequence[str] = ()
    categories: Sequence[Mapping[str, Any]] | None = None
    prompts: Sequence[Mapping[str, str]] | None = None
    name_fields: Sequence[str] = ("file_name", *URL_FIELDS)
    splits: Sequence[str] = ()

    @property
    def grounded(self) -> bool:
        """Whether annotations have spans of their image's caption; categories mean nothing then."""
        return self.captions == "given"

    def files(self) -> Sequence[Path]:
        """What the annotations are read from."""
        return [self.path]

    def cache_key(self) -> Mapping[str, Any]:
        """What shapes the result besides these files."""
        return self.key

    def parse(
        self, columns: Columns, accepted: dict[str, list[Mapping[str, Any]]] | None = None
    ) -> list[Mapping[str, Any]]:
        """Everything into `columns`, see `parse_coco`; for evaluation with `accepted`."""
        columns.by_file = self.by_file
        entries = self.entries(columns, for_evaluation=accepted is not None)
        return parse_coco(entries, columns, self.image_path, self.keep_keys, accepted)

    def entries(self, columns: Columns, for_evaluation: bool) -> "Entries":
        """What the file holds, in COCO's form; what cannot be put into that is noted in `columns`."""
        return stream_json(self.path)

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
            columns, tally, labels, names = Columns(str(self.path), grounded=self.grounded), Tally(), None, {}
            found = self.parse(columns)
            for kind in ("refused_image", "missing_image"):
                if problems := [problem for problem in columns.problems if problem.kind == kind]:
                    listed = [f"{problem.where}: {problem.detail.removesuffix('.')}" for problem in problems]
                    raise ValueError(f"{self.path}: {in_one_line(listed, SHOWN)}.")
            if not self.grounded:
                labels, names, tally.notes = number_categories(self.categories, found, self.path, columns)
            writer.write(columns.sound_table(tally, labels, drop_empty, strict))
            if self.grounded and tally.kept and not columns.spans:
                raise ValueError(
                    f"{self.path}: none of the {tally.kept:,} boxes has a phrase (tokens_positive) to be learned: is "
                    "it a detection set, of the format coco?"
                )
            ids = {label: category for category, label in (labels or {}).items()}
            missing = missing_files(columns.paths)[:1]
            probe = [(missing or columns.paths or [""])[0], not missing]
            info = {"file": str(self.path), "names": names, "category_ids": ids, "tally": vars(tally)}
            return info | {"probe": probe}

        folders = {part: [finder.folder, finder.allow_outside] for part, finder in self.finders.items()}
        key = {**self.cache_key(), "images": folders, "drop_empty": drop_empty, "strict": strict}
        converted = convert_once(name, self.files(), key, build, cache_dir, self._is_current)
        source = Source(name, *converted, captions)
        source.prompts = class_prompts(source.names, self.prompts)
        # With new finders: the listings of large folders are not kept.
        source.file = replace(self, finders={part: replace(finder) for part, finder in self.finders.items()})
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
    read.make = make
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


def number_images(files: Sequence[str]) -> list[int]:
    """Ids for a format that has none: of `000017.jpg` 17, as in COCO's files, where the name of every file is another
    number; else 1, 2, ... in this order."""
    stems = [PurePath(file).stem for file in files]
    if all(stem.isascii() and stem.isdigit() and len(stem) < 19 for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


Entries = Iterable[tuple[str, Any]]
"""Lists of a file with one element each, as `stream_json` yields them."""


def parse_coco(
    entries: Entries,
    columns: Columns,
    image_path: Callable[[Mapping[str, Any]], str] | None,
    keep_keys: Sequence[str] = (),
    accepted: dict[str, list[Mapping[str, Any]]] | None = None,
) -> list[Mapping[str, Any]]:
    """Read a COCO-shaped file into `columns` and return its categories.

    Args:
        image_path, keep_keys: see `CocoFile`; without `image_path` no image needs a file or a size.
        accepted: is given the entries behind the rows of `columns`, under "images" and "annotations".

    Raises:
        UnreadableJson: where the file breaks off; `columns` has everything before.
    """
    categories = []
    for key, entry in entries:
        if key not in ("images", "annotations", "categories") or entry is None:
            continue
        if not isinstance(entry, Mapping):
            columns.note("malformed", f"an entry of {key!r}", quote(entry), annotations=key == "annotations")
        elif key == "categories":
            categories.append(entry)
        elif key == "images":
            if _add_image(columns, entry, image_path, keep_keys, accepted is None) and accepted is not None:
                accepted[key].append(entry)
        elif entry.get("bbox") is None and entry.get("segmentation"):
            where = f"annotation {quote(entry.get('id'))} of image {quote(entry.get('image_id'))}"
            columns.note("malformed", where, "a segmentation but no bbox: write the box around it", annotations=1)
        else:
            added = columns.add_annotation(
                entry.get("id"),
                entry.get("image_id"),
                1 if columns.grounded else entry.get("category_id"),
                entry.get("bbox"),
                entry.get("area"),
                entry.get("iscrowd"),
                entry.get("tokens_positive") if columns.grounded else (),
            )
            if added and accepted is not None:
                accepted[key].append(entry)
    return categories


def _add_image(
    columns: Columns,
    entry: Mapping[str, Any],
    image_path: Callable[[Mapping[str, Any]], str] | None,
    keep_keys: Sequence[str],
    needs_file: bool,
) -> bool:
    where, width, height = f"image {quote(entry.get('id'))}", entry.get("width"), entry.get("height")
    try:
        path = image_path(entry) if image_path else "-"
        if image_path and None in (read_size(width, "width"), read_size(height, "height")):
            with ImageRef(path).open() as image:
                width, height = upright_size(image)
    except (OSError, TypeError, ValueError) as error:
        kinds = {RefusedImage: "refused_image", FileNotFoundError: "missing_image", UnreadableImage: "broken_image"}
        if needs_file:
            columns.note(kinds.get(type(error), "malformed"), where, str(error))
            return False
        path = "-"
    extra = {key: entry[key] for key in keep_keys if entry.get(key) is not None}
    return columns.add_image(
        entry.get("id"),
        path,
        width,
        height,
        (entry.get("caption") or "") if columns.grounded else None,
        entry.get("tokens_positive_eval"),
        json.dumps(extra) if extra else "",
    )


@dataclass(frozen=True)
class Annotations:
    """A detection set without what is damaged, with the file's own ids, crowd regions and float64 boxes.

    Attributes:
        name: the file, for messages.
        images: in order of their ids; all of their fields, `id`, `width` and `height` in one form, None where a size is
            missing.
        boxes: `id` 1..M, `image_id` and `category_id` exactly as in the other two lists, `bbox`, `area`, `iscrowd`,
            `ignore`; of a grounding set also `spans`, the [begin, end) characters of its image's caption.
        categories: `id` and `name` in one form.
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
    source: "str | Path | Mapping[str, Any] | CocoFile | Annotations",
    categories: Sequence[Mapping[str, Any]] | None = None,
    image_path: Callable[[Mapping[str, Any]], str] | None = None,
    grounded: bool = False,
) -> Annotations:
    """A detection set for evaluators, or (`grounded`) a set in MDETR's format, whose categories mean nothing.

    What is damaged is left out by the same rules as in training. The given document is not changed.

    Args:
        source: the file, its content, how it is to be read, or what this function gave.
        categories: to use in place of the file's.
        image_path: see `CocoFile`; where sizes are missing they are read from that file, if it can be read.

    Raises:
        ValueError: for what is not such a file at all, and for categories without a valid id and name.
    """
    if isinstance(source, Annotations):
        return source
    is_path, is_file = isinstance(source, str | Path), isinstance(source, CocoFile)
    name = str(source.path if is_file else source) if is_path or is_file else "the annotations"
    if not is_path and not is_file and not isinstance(source, Mapping):
        raise ValueError(f"{name}: {quote(source)} is not a JSON object with images, annotations and categories.")
    columns, tally = Columns(name, grounded=grounded), Tally()
    accepted: dict[str, list[Mapping[str, Any]]] = {"images": [], "annotations": []}
    if is_file:
        categories, found = categories or source.categories, source.parse(columns, accepted)
    else:
        entries = stream_json(source) if is_path else _members(source)
        found = parse_coco(entries, columns, image_path, (), accepted)
    labels, names = {}, {}
    if not grounded:
        labels, names, tally.notes = number_categories(categories, found, name, columns)
    columns.finish(None if grounded else labels)
    tally.count(columns, thin=True)
    if grounded:  # a caption may speak of a crowd
        tally.kept, tally.crowd = tally.kept + tally.crowd, 0
    for note in tally.notes:
        logger.warning(f"{name}: {note}")
    ids, boxes, areas = [*labels, None], columns.array("boxes"), columns.sound_areas()
    owners, places = columns.array("ann_images"), columns.category_places(labels)
    annotations = [
        {
            "id": number,
            "image_id": columns.ids[owners[row]],
            "category_id": ids[places[row]],
            "bbox": boxes[row].tolist(),
            "area": float(areas[row]),
            "iscrowd": int(columns.crowd[row]),
            "ignore": int(bool(columns.crowd[row] or accepted["annotations"][row].get("ignore"))),
            **({"spans": columns.spans_of(row)} if grounded else {}),
        }
        for number, row in enumerate(np.flatnonzero(columns.sound).tolist(), start=1)
    ]
    images = []
    for row, entry in enumerate(accepted["images"]):
        size = {"width": columns.widths[row] or None, "height": columns.heights[row] or None}
        images.append({**entry, "id": columns.ids[row], **size})
    listed = [] if grounded else categories or found
    by_id = {read_id(entry["id"]): entry for entry in listed if read_id(entry["id"]) in labels}
    kept = [{**by_id[key], "id": key, "name": names[label]} for key, label in labels.items()]
    return Annotations(name, sorted(images, key=lambda image: id_order(image["id"])), annotations, kept, tally)


def coco_annotations(source: Source) -> Annotations:
    """What evaluators take, of any detection source: a file's as `read_annotations` gives them (all of its images),
    of other sources (`hub`, `tsv`, `scenes`) the boxes of their records.

    Raises:
        ValueError: for a grounding set.
    """
    if not source.names:
        raise ValueError(f"{source.info['file']}: a set of captions has no classes that COCO's metrics could count.")
    if source.file is not None:
        return read_annotations(source.file)
    images, boxes = [], []
    for record in source:
        images.append({"id": record.image_id, "width": record.width, "height": record.height})
        for (x, y, x2, y2), label, area in zip(record.boxes.tolist(), record.labels.tolist(), record.areas.tolist()):
            box = {"bbox": [x, y, x2 - x + 1, y2 - y + 1], "area": area}
            boxes.append({"image_id": record.image_id, "category_id": source.category_ids[label], **box})
    categories = [{"id": source.category_ids[label], "name": name} for label, name in source.names.items()]
    return read_annotations({"images": images, "annotations": boxes, "categories": categories}, categories)


def _members(document: Mapping[str, Any]) -> Entries:
    for key, value in document.items():
        yield from ((key, entry) for entry in (value if isinstance(value, Sequence | np.ndarray) else [value]))


BACKGROUND = ("__background__", "_background_", "background")


def number_categories(
    chosen: Sequence[Mapping[str, Any]] | None,
    found: Sequence[Mapping[str, Any]],
    file: str | Path,
    columns: Columns,
) -> tuple[dict[int | str, int], dict[int, str], list[str]]:
    """Category id -> 1..N in order of the ids, 1..N -> name, and a note for each category that is left out.

    Not numbered are `__background__` and, where no annotation has them, other spellings of it and a category that is
    only the supercategory of others, which exporters write as the root of the list.

    Args:
        chosen: categories to use in place of those found in the file; none of them is left out.
        columns: with the annotations.

    Raises:
        ValueError: for entries without a valid id and name, and for ids with two names.
    """
    listed: dict[int | str, str] = {}
    supercategories: dict[int | str, str] = {}
    for entry in chosen or found:
        entry = entry if isinstance(entry, Mapping) else {}
        try:
            key, name = read_id(entry.get("id")), read_name(entry.get("name"))
        except ValueError as error:
            raise ValueError(
                f"{file}: the category {quote(entry.get('name'))} with the id {quote(entry.get('id'))} has {error}: "
                "each needs an 'id', an integer or text, and a 'name'."
            ) from None
        if listed.setdefault(key, name) != name:
            raise ValueError(f"{file}: the category id {key!r} stands for {listed[key]!r:.60} and for {name!r:.60}.")
        supercategories.setdefault(key, str(entry.get("supercategory") or "none"))
    if not listed:
        unread = f" Left out: {columns.problems[0]}" if columns.problems else ""
        raise ValueError(f"{file}: there are no 'categories'; a detection set needs them.{unread}")
    places, keys = Ids(listed), list(listed)
    annotated = keys if chosen else columns.category_ids.values
    used = {keys[place] for value in annotated if (place := places.find(value)) >= 0}
    parents, notes, known = Counter(supercategories.values()), [], []
    for key, name in listed.items():
        is_parent = parents[name] > (supercategories[key] == name)
        # Of a file without annotations it is not known which are used: there, only the root of all is left out.
        is_root = is_parent and (annotated or supercategories[key].lower() == "none")
        if key not in used and (is_root or name.lower() in BACKGROUND[1:]):
            what = "the supercategory of others" if is_root else "the background"
            notes.append(f"category {quote(key)}, {quote(name)}, is left out: {what}, and no annotation has it.")
        elif name != BACKGROUND[0]:
            known.append(key)
    labels = {key: number for number, key in enumerate(sorted(known, key=id_order), start=1)}
    return labels, {labels[key]: listed[key] for key in labels}, notes


def class_prompts(names: Mapping[int, str], prompts: Sequence[Mapping[str, str]] | None) -> dict[int, Name] | None:
    """Caption prompts by class id; a ValueError if there is not one per class."""
    if not prompts:
        return None
    if not all(isinstance(prompt, Mapping) and isinstance(prompt.get("name"), str) for prompt in prompts):
        raise ValueError(f"Caption prompts have a 'name', and may have 'prefix' and 'suffix'; got {quote(prompts)}.")
    if len(prompts) != len(names):
        raise ValueError(f"There are {len(prompts)} caption prompts for {len(names)} classes: give one each.")
    return {
        label: Name(p["name"], label, p.get("prefix") or "", p.get("suffix") or "")
        for label, p in zip(sorted(names), prompts, strict=True)
    }
