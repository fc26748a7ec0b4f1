# Copyright 2026 The glip_hf authors. MIT licence.
"""Any `datasets` data set with images, boxes and either classes or a caption: from the Hub or local, stored or
streamed."""

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

from transformers.utils import logging

from ..._extras import require
from ...fetching_glip import fetch
from ...image_processing_pil_glip import open_image
from ...prompts_glip import find_phrase
from ...values_glip import integer, quote, read_box
from ..cache import TableWriter, convert_once
from ..columns import ALLOWED_DAMAGE, Columns, Tally
from ..fields import class_list, read_size
from ..images import ImageFinder, RefusedImage
from ..records import Record, record_from_row, upright_size
from .base import Captions, Source

logger = logging.get_logger(__name__)

BoxFormat = Literal["xywh", "xyxy", "xyxy_relative"]


class _UnknownCategory(ValueError):
    """A class name that is not among the names."""


@dataclass(frozen=True)
class HubColumns:
    """Where a data set keeps what.

    Attributes:
        image, objects, caption, image_id, width, height: columns. Only the first two must exist; a missing size is
            read from the image's header, a missing id is the row's number.
        box, category, area, crowd, spans, phrase: keys of `objects`, a list of dictionaries or a dictionary of lists.
            In a set with captions an object has `spans` (`[[begin, end], ...]`) or a `phrase`, which is looked up
            in the caption and must occur there once.
        box_format: "xywh" as COCO, "xyxy" (pixels, the second corner outside), or the same relative to the size.
    """

    image: str = "image"
    objects: str = "objects"
    caption: str = "caption"
    image_id: str = "image_id"
    width: str = "width"
    height: str = "height"
    box: str = "bbox"
    category: str = "category"
    area: str = "area"
    crowd: str = "iscrowd"
    spans: str = "tokens_positive"
    phrase: str = "phrase"
    box_format: BoxFormat = "xywh"

    def __post_init__(self) -> None:
        if self.box_format not in get_args(BoxFormat):
            raise ValueError(f"box_format={self.box_format!r:.60} must be one of {', '.join(get_args(BoxFormat))}.")


@dataclass(frozen=True)
class CellImages:
    """Reads the images of cells, which hold them or name their files.

    Attributes:
        finders: of the folders that local files may lie in; None for a data set that was made in memory, where the
            caller has named them.
        allow_urls: fetch what is named by a URL (within the limits of `fetching_glip`), not only from the Hub.
    """

    finders: Sequence[ImageFinder] | None
    allow_urls: bool

    def encoded(self, value: Mapping[str, Any] | None) -> bytes:
        """The encoded image of a cell; an OSError or ValueError if there is none, or it may not be read."""
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise ValueError("there is no image")
        if value["bytes"] is not None:
            return value["bytes"]
        place = self.place(value["path"])
        if place.startswith(("http://", "https://")):
            return fetch(place)
        with require("fsspec").open(place, "rb") as file:
            return file.read()

    def place(self, path: str) -> str:
        """Where a named file is. (Streams may name files on the Hub or inside archives: `zip://a.png::hf://...`.)

        Raises:
            ValueError: for a URL that is not allowed, or a file outside the folders.
        """
        within, chain, last = path.rpartition("::")
        scheme, is_url, _ = last.partition("://")
        if is_url and scheme not in ("file", "hf") and not self.allow_urls:
            raise ValueError(
                f"{quote(path)} is a URL, and none is fetched unless the data set has allow_urls: true; or store the "
                "images in the data set"
            )
        if (is_url and scheme != "file") or self.finders is None:
            return path
        refused = None
        for finder in self.finders:
            try:
                if os.path.isfile(found := finder.find(last.removeprefix("file://"))):
                    return f"{within}{chain}{found}"
            except RefusedImage as error:
                refused = refused or error
        raise refused or FileNotFoundError(f"there is no image file {quote(last)}")

    def row(self, dataset: Any, column: str, number: int) -> bytes:
        """The encoded image of a row."""
        return self.encoded(dataset[number][column])


class HubData:
    """A data set of `datasets`, stored or streamed, and how its rows become columns of ours.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, or what `datasets.load_dataset` takes (a Hub id, a folder,
            "parquet" with `data_files=`).
        name: of the data set.
        columns: where the data set keeps what, if not where `HubColumns` says.
        names: of the classes 0, 1, ... Default: those of the `ClassLabel` feature, else, in a stored data set, all the
            texts that occur. The attribute is class id (1..N) -> name: None until collected, empty with captions.
        captions: "given", "all" or "sampled"; default "given" where there is a caption column (`grounded`), else "all".
        allow_outside, allow_urls: read images that the data set names outside its folder, or by URL (`CellImages`).
        split, load_options: passed to `load_dataset`.
    """

    def __init__(
        self,
        dataset: Any,
        name: str | None = None,
        *,
        columns: HubColumns | Mapping[str, str] | None = None,
        names: Sequence[str] | None = None,
        captions: Captions | None = None,
        split: str = "train",
        allow_outside: bool = False,
        allow_urls: bool = False,
        **load_options: Any,
    ) -> None:
        self.name = name or (dataset if isinstance(dataset, str) else "dataset")
        finders = None
        if isinstance(dataset, str):
            folders = _folders(dataset, load_options)
            finders = [ImageFinder(folder, allow_outside) for folder in folders]
            try:
                dataset = require("datasets").load_dataset(dataset, split=split, **load_options)
            except (ImportError, OSError):  # which say what is not there
                raise
            except Exception as error:  # its own error has the reason as its cause
                raise ValueError(f"{self.name}: datasets cannot load it: {error.__cause__ or error}") from error
        self.fingerprint: str | None = getattr(dataset, "_fingerprint", None)  # of what is stored; None for a stream
        dataset = dataset.with_format(None)  # rows as Python's own lists and dictionaries
        if not isinstance(columns, HubColumns):
            known = HubColumns.__dataclass_fields__
            if unknown := [key for key in columns or {} if key not in known]:
                raise ValueError(f"{self.name}: columns has no {quote(unknown[0])}, but {', '.join(known)}.")
            columns = HubColumns(**(columns or {}))
        present = dataset.column_names or ()
        for needed in (columns.image, columns.objects):
            if needed not in present:
                raise ValueError(
                    f"The data set has no column {needed!r} but {', '.join(sorted(present)) or 'none known'}: say "
                    "with columns= which hold the image and the objects."
                )
        if names is None and dataset.features is not None:
            feature = dataset.features[columns.objects]
            feature = feature if isinstance(feature, Mapping) else getattr(feature, "feature", {})
            category = feature.get(columns.category) if isinstance(feature, Mapping) else None
            names = getattr(getattr(category, "feature", category), "names", None)
        if names is not None:
            names = dict(enumerate(class_list(names, f"{self.name}: names"), start=1))
        self.dataset, self.columns, self.grounded = dataset, columns, columns.caption in present
        self.names: dict[int, str] | None = {} if self.grounded else names
        self.captions: Captions = captions or ("given" if self.grounded else "all")
        self.images = CellImages(finders, allow_urls)

    @property
    def labels(self) -> dict[int, int] | None:
        """The known categories by themselves, as `Columns` takes them; None in a grounding set."""
        return None if self.grounded else {label: label for label in self.names}

    def encoded_images(self) -> Callable[[int], bytes]:
        """Encoded images of a stored data set by row number."""
        return partial(self.images.row, self._cells, self.columns.image)

    @cached_property
    def _cells(self) -> Any:
        """The column of images of a stored data set, not decoded."""
        column = self.columns.image
        return self.dataset.select_columns([column]).cast_column(column, require("datasets").Image(decode=False))

    def require_allowed(self) -> None:
        """Raise a ValueError for the first cell of a stored data set that names an image which may not be read."""
        cells = self.dataset.data.column(self.columns.image)  # no image is read
        if not require("pyarrow").types.is_struct(cells.type):
            return
        for chunk in cells.chunks:  # together they may be larger than memory
            held, paths = chunk.field("bytes"), chunk.field("path")
            for number in held.is_null().to_numpy(False).nonzero()[0] if held.null_count else ():
                if (path := paths[int(number)].as_py()) is not None:
                    with suppress(FileNotFoundError):  # a broken image, like others
                        self.images.place(path)

    def collect(self) -> Columns:
        """All annotations of a stored data set, and `names` where they were not known."""
        c = self.columns
        if self.names is None:
            texts, other = set(), None
            for row in self.dataset.select_columns([c.objects]):
                for value in (thing.get(c.category) for thing in _objects(row[c.objects])[0]):
                    if isinstance(value, str):
                        texts.add(value)
                    elif other is None:
                        other = value
            self.names = dict(enumerate(sorted(texts), start=1))
            if not texts and other is not None:
                raise ValueError(
                    f"the categories of {self.name} are numbers ({quote(other)}, ...) without names: give the names in "
                    "the order of the numbers, names=[...], that of 0 first."
                )
        wanted = [c.objects, c.caption, c.image_id, c.width, c.height]  # an image is read where its size is missing
        rows = self.dataset.select_columns([name for name in wanted if name in self.dataset.column_names])
        collected = Columns(self.name, grounded=self.grounded)
        for number, row in enumerate(rows):
            self.add(collected, row, number)
        return collected

    def add(self, collected: Columns, row: Mapping[str, Any], number: int) -> None:
        """Add a row to `collected`."""
        c, where = self.columns, f"row {number}"
        image_id = number if row.get(c.image_id) is None else row[c.image_id]
        objects, damage = _objects(row[c.objects])
        if damage:
            collected.note("malformed", where, damage, len(objects))
            return
        try:
            width, height = read_size(row.get(c.width), "width"), read_size(row.get(c.height), "height")
            if width is None or height is None:
                cell = row[c.image] if c.image in row else self._cells[number][c.image]
                with open_image(io.BytesIO(self.images.encoded(cell))) as image:
                    width, height = upright_size(image)
        except Exception as error:  # decoders raise almost anything on damaged files
            collected.note("broken_image", where, str(error), len(objects))
            return
        caption = row.get(c.caption) or "" if self.grounded else None
        path = f"{collected.file}[{number}]"
        if not collected.add_image(image_id, path, width, height, caption, offset=number):
            collected.lost["malformed"] += len(objects)
            return
        for number_in_row, thing in enumerate(objects):
            try:
                box, spans = thing.get(c.box), self._spans(thing, caption) if self.grounded else ()
                if c.box_format != "xywh":
                    scale = (width, height) if c.box_format == "xyxy_relative" else (1, 1)
                    x, y, right, bottom = (side * pixels for side, pixels in zip(read_box(box), scale * 2))
                    box = [x, y, right - x, bottom - y]
                category = 1 if self.grounded else self._category(thing.get(c.category))
            except (KeyError, ValueError, TypeError) as error:
                kind = "unknown_category" if isinstance(error, _UnknownCategory) else "malformed"
                collected.note(kind, f"{where}, object {number_in_row}", str(error), annotations=1)
                continue
            collected.add_annotation(None, image_id, category, box, thing.get(c.area), thing.get(c.crowd), spans)

    def _category(self, value: Any) -> Any:
        """The category, 1..N, of a class name or a number 0..N-1."""
        if isinstance(value, str):
            for label, name in self.names.items():
                if name == value:
                    return label
        number = integer(value)
        if number is not None and 0 <= number < len(self.names):
            return number + 1
        if number is not None or isinstance(value, str):
            raise _UnknownCategory(f"category {quote(value)}, and there are {len(self.names)} names")
        return value  # refused when it is added

    def _spans(self, thing: Mapping[str, Any], caption: str) -> Any:
        if thing.get(self.columns.spans) is not None:
            return thing[self.columns.spans]
        return [find_phrase(caption, thing[self.columns.phrase])]


def read_hub(
    dataset: Any,
    name: str | None = None,
    *,
    drop_empty: bool = True,
    strict: bool = False,
    cache_dir: str | Path | None = None,
    **load_options: Any,
) -> Source:
    """A data set of `datasets`, stored on this machine. (To stream one, see `HubStream`.)

    Args:
        dataset, name, load_options: see `HubData`.
        drop_empty, strict, cache_dir: see `CocoFile.read`.

    Class 0 of the data set has the number 1 here; `category_ids` leads back.
    """
    data = HubData(dataset, name, **load_options)
    if data.fingerprint is None:
        raise ValueError(f"{data.name} is a stream: read it with HubStream, or as the single source of a recipe.")
    data.require_allowed()

    def build(writer: TableWriter) -> dict[str, Any]:
        collected, tally = data.collect(), Tally()
        writer.write(collected.sound_table(tally, data.labels, drop_empty, strict, by_id=False))
        ids = {label: label - 1 for label in data.names}
        return {"file": data.name, "names": data.names, "category_ids": ids, "tally": vars(tally)}

    key = {
        "reader": "hub",
        "data": data.fingerprint,
        "columns": vars(data.columns),
        "names": None if data.names is None else list(data.names.values()),
        "drop_empty": drop_empty,
        "strict": strict,
    }
    stored = convert_once(data.name, [], key, build, cache_dir)
    return Source(data.name, *stored, data.captions, data.encoded_images())


class HubStream(HubData):
    """A data set of `datasets` that is read as it comes: iterating gives `Record`s, one pass.

    Args:
        dataset, name, load_options: see `HubData`; the class names are needed unless the data set has a
            `ClassLabel` feature or captions.
        drop_empty: skip images without usable boxes.
        allow_damage: the share of the annotations that may be lost.

    What is damaged is left out, counted in `tally` and told once per kind (by the process that reads it); images that
    cannot be read are passed to `on_broken`, if it is set.
    """

    on_broken: Callable[[str], None] | None = None
    prompts = None

    def __init__(
        self,
        dataset: Any,
        name: str | None = None,
        *,
        drop_empty: bool = True,
        allow_damage: float = ALLOWED_DAMAGE,
        **load_options: Any,
    ) -> None:
        super().__init__(dataset, name, **load_options | {"streaming": True})
        if self.names is None:
            raise ValueError(f"{self.name}: a streamed detection set needs names=, the names of its classes 0, 1, ...")
        self.dataset = self.dataset.cast_column(self.columns.image, require("datasets").Image(decode=False))
        self.drop_empty, self.allow_damage, self.tally = drop_empty, allow_damage, Tally()

    @property
    def dropped(self) -> dict[str, int]:
        """Kind of damage -> number of annotations or images left out so far."""
        return self.tally.dropped

    def check(self, rows: int = 64) -> None:
        """Refuse damaged data by the first rows: a DamagedData error if too few of their boxes can be used."""
        collected, tally = Columns(self.name, grounded=self.grounded), Tally()
        for number, row in enumerate(itertools.islice(self.dataset, rows)):
            self.add(collected, row, number)
        collected.finish(self.labels)
        tally.count(collected)
        for note in tally.notes:
            logger.warning(f"{self.name}: {note}")
        tally.require_boxes(f"{self.name}, first {rows} rows", self.allow_damage)

    def records(self, dataset: Any) -> Iterator[Record]:
        """Records of the rows of `dataset`, this one or a part of it; DamagedData when too many boxes are lost."""
        for number, row in enumerate(dataset):
            collected = Columns(self.name, grounded=self.grounded)
            self.add(collected, row, number)
            known = set(self.dropped)
            table = collected.sound_table(self.tally, self.labels, self.drop_empty)
            for kind in self.dropped.keys() - known:
                logger.warning(f"{self.name}: what is damaged like this is left out: {self.tally.examples[kind]}")
            if self.tally.listed >= 100:
                self.tally.require_boxes(self.name, self.allow_damage)
            broken = [str(problem) for problem in collected.problems if problem.kind == "broken_image"]
            if len(table):
                values = table.to_pylist()[0] | {"offset": -1, "length": -1}
                try:
                    image = self.images.encoded(row[self.columns.image])
                except (OSError, ValueError) as error:
                    self.dropped["broken_image"] = self.dropped.get("broken_image", 0) + 1
                    broken.append(f"{values['path']}, image {values['image_id']!r}: {error}")
                else:
                    yield record_from_row(values, self.name, self.names, image)
            if self.on_broken is not None:
                for what in broken:
                    self.on_broken(what)

    def __iter__(self) -> Iterator[Record]:
        return self.records(self.dataset)


def _folders(dataset: str, load_options: Mapping[str, Any]) -> list[str]:
    """The folders whose files the rows of a data set of this name may name: those of its own, and caches of the Hub."""
    files = load_options.get("data_files") or []
    files = [file for part in (files.values() if isinstance(files, Mapping) else [files]) for file in _listed(part)]
    own = [dataset, load_options.get("data_dir"), *(os.path.dirname(str(file).split("*")[0]) or "." for file in files)]
    caches = [require("datasets").config.HF_DATASETS_CACHE, require("huggingface_hub.constants").HF_HUB_CACHE]
    return [str(folder) for folder in own if folder and os.path.isdir(folder)] + [str(cache) for cache in caches]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _objects(value: Any) -> tuple[list[dict[str, Any]], str]:
    """Objects as dictionaries, from either form that `datasets` stores them in, and what is wrong with all of them."""
    if isinstance(value, Mapping):
        lists = {key: items for key, items in value.items() if isinstance(items, list | tuple)}
        lengths = {key: len(items) for key, items in lists.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{length} {key}" for key, length in lengths.items())
            return [{}] * max(lengths.values()), f"the lists of its objects differ in length: {counts}"
        return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)], ""
    objects = list(value or ())
    if not all(isinstance(thing, Mapping) for thing in objects):
        return [{}] * len(objects), f"its objects are {quote(objects)}, without the names of fields"
    return objects, ""
