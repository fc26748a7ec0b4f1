# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotations in columns: collected one by one, then validated and turned into Arrow all at once.

The one validator serves the readers, which leave damaged annotations out and say how many, and `glip_hf.data.check`,
which names every one.

Letters: M annotations.
"""

import itertools
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._extras import require
from ..values_glip import counted, quote, read_box, read_flag, read_number
from .fields import Ids, id_order, is_text, read_id, read_size, read_spans
from .records import arrow_schema, pairs

DAMAGE = {
    "malformed": "a field is missing or of the wrong type",
    "nan_box": "a box has a NaN",
    "infinite_box": "a box has an infinite value",
    "empty_box": "a box has a zero or negative size",
    "normalised_box": "a box lies between 0 and 1: pixels are needed, so multiply by the image's width and height",
    "box_outside": "a box lies outside the image",
    "unknown_category": "a category that is not in the list",
    "unknown_image": "an image id that is not in the list",
    "span_empty": "a character span is empty or reversed",
    "span_outside": "a character span leaves the caption",
    "duplicate_image": "an image id that occurred before",
    "unreadable": "a file or a row of it cannot be read",
    "missing_image": "an image file is missing",
    "refused_image": "a file name leads out of the image folder, or to the file of another image",
    "broken_image": "an image cannot be decoded",
    "duplicate_annotation": "an image has the same box with the same category twice",
}
"""What a reader leaves out, and why; `box_outside` only where nothing of the box is in the image."""

IGNORED = {
    "crowd": "a region of many objects (iscrowd), which is not trained on",
    "thin_box": "a box has a side of at most one pixel, which is not trained on",
}
"""What else is not trained on."""


@dataclass(frozen=True)
class Problem:
    """One finding: its kind, the file, what in it, and the value.

    `kind` is a key of `DAMAGE` or `check.KINDS`; `where` is "annotation 17", "image 3", "line 12", ...
    """

    kind: str
    file: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}: {self.where}{f': {self.detail}' if self.detail else ''}"


_NUMBERS = frozenset((int, float))

ALLOWED_DAMAGE = 0.5
"""Share of a file's boxes that may be lost before nothing starts."""


class DamagedData(ValueError):
    """Too few boxes of a data set can be used; the message has the counts, examples and the remedy."""

    exit_code = 2
    """Of commands that it ends: the input is wrong, nothing was started."""


@dataclass
class Tally:
    """What becomes of the annotations of a data set.

    Attributes:
        listed: annotations in the file; `kept` of them are trained on.
        crowd: sound crowd regions, which training ignores.
        thin: sound boxes with a side of at most one pixel, left out in training as in the original.
        dropped: kind of damage -> number of annotations and images left out.
        examples: kind of damage, "crowd" and "thin_box" -> the first that was found.
        notes: what may be wrong as a whole, and categories that are left out.
    """

    listed: int = 0
    kept: int = 0
    crowd: int = 0
    thin: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, columns: "Columns", thin: bool = False) -> np.ndarray:
        """Count the annotations of finished `columns`: [M] bool, which are sound and neither crowd nor thin.

        Args:
            thin: count thin boxes as kept, as in evaluation.
        """
        for problem in columns.problems:
            self.dropped[problem.kind] = self.dropped.get(problem.kind, 0) + 1
            self.examples.setdefault(problem.kind, str(problem))
        sound, crowd = columns.sound, columns.array("crowd") != 0
        narrow = ~(columns.has_extent() | thin)
        left_out = columns.damage | {"crowd": sound & crowd, "thin_box": sound & ~crowd & narrow}
        for kind, mask in left_out.items():
            if mask.any():
                self.examples.setdefault(kind, str(columns.describe(kind, int(mask.argmax()))))
                if kind in DAMAGE:
                    self.dropped[kind] = self.dropped.get(kind, 0) + int(mask.sum())
        kept = sound & ~crowd & ~narrow
        self.listed += len(kept) + columns.lost.total()
        self.crowd += int(left_out["crowd"].sum())
        self.thin += int(left_out["thin_box"].sum())
        self.kept += int(kept.sum())
        self.notes += columns.notes
        self._suspect_corners(columns, sound)
        self._note_shared_files(columns)
        return kept

    def _note_shared_files(self, columns: "Columns") -> None:
        """Note when several images of a detection set are one file: what is a box in one is background in another."""
        files = [path for path, offset in zip(columns.paths, columns.offsets) if offset < 0 and path != "-"]
        if not columns.grounded and (more := len(files) - len(set(files))):
            (path, count), *_ = Counter(files).most_common(1)
            self.notes.append(
                f"{counted(more, 'image')} of the same file as another ({count} times {quote(path)}): each counts what "
                "only another has as background. Give all boxes of a file one image id."
            )

    def _suspect_corners(self, columns: "Columns", sound: np.ndarray) -> None:
        """Note when boxes leave their images as corners do that are read as x, y, width, height."""
        low, sides = np.split(columns.array("boxes"), 2, axis=1)
        far = sound & (low + sides > columns.limits() + 1).any(1)
        if columns.xywh and far.sum() >= max(2, sound.sum() / 10) and not (sound & (low < -1).any(1)).any():
            self.notes.append(
                f"{far.sum():,} of {sound.sum():,} boxes leave their image on the right or at the bottom and none on "
                f"the other sides (the first: {columns.describe('box_overhang', int(far.argmax()))}): if they are "
                "corners x1, y1, x2, y2, write x, y, width, height; of Hub rows set columns: {box_format: xyxy}."
            )

    @property
    def lost(self) -> float:
        """The share of annotations that is lost: everything but kept and thin boxes."""
        return 1 - (self.kept + self.thin) / self.listed if self.listed else 0.0

    def describe(self, examples: bool = True) -> str:
        """The counts, with an example of each kind."""
        kinds = [
            f"{count:,} {kind}" + (f" (the first: {self.examples[kind]})" if examples else "")
            for kind, count in self._left_out()
        ]
        return f"{self.kept:,} of {self.listed:,} boxes are used" + (f"; left out: {'; '.join(kinds)}" if kinds else "")

    def _left_out(self) -> list[tuple[str, int]]:
        """What is not used and how much of it, most first."""
        counts = Counter(self.dropped | {"crowd": self.crowd, "thin_box": self.thin})
        return (+counts).most_common()

    def require_boxes(self, name: str, allow_damage: float = ALLOWED_DAMAGE, needed: bool = False) -> None:
        """The guard before a run starts.

        Args:
            allow_damage: the share of annotations that may be lost.
            needed: also refuse a file that lists no annotation.

        Raises:
            DamagedData: if no box of a file that has some is left, or more than that share is lost.
        """
        if self.kept and self.lost <= allow_damage or not (self.listed or needed):
            return
        if not self.listed:
            raise DamagedData(
                f"{name}: nothing was started: there are no annotations, and nothing can be learned without boxes. Is "
                "it the right file?"
            )
        most = self._left_out()[0][0]
        remedy = f"{most}: {(DAMAGE | IGNORED)[most]}. Repair the file (`glip check-data` names every finding)"
        if self.kept:
            share = math.ceil(100 * self.lost) / 100
            remedy += f", or go on without them: --allow-damage {share:g} (in a recipe data.allow_damage={share:g})"
        raise DamagedData(f"{name}: nothing was started: {self.describe()}. {remedy}.")


@dataclass
class Columns:
    """Images and annotations under construction.

    Attributes:
        file: the annotation file, for messages.
        xywh: boxes come as COCO's x, y, width, height (else as xyxy with both corners inside).
        grounded: annotations carry spans of their image's caption.
        problems: findings about what is not in the columns.
        notes: what a reader has to say about the whole.
        by_file: findings name images by their files, in formats that have no ids.
        lost: annotations that are not in the columns, by kind.
        damage: kind -> [M] bool, which annotations have it; each has one kind at most, the first of this order. (Set by
            `finish`.)
    """

    file: str
    xywh: bool = True
    grounded: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_file: bool = False
    lost: Counter = field(default_factory=Counter)
    damage: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = Ids()  # in order of appearance
        self.paths: list[str] = []
        self.offsets, self.lengths = array("q"), array("q")
        self.widths, self.heights = array("i"), array("i")
        self.captions: list[str | None] = []
        self.eval_spans: list[list[list[int]]] = []
        self.extras: list[str] = []
        # Of annotations: the id, or -1 - n for the n-th of the file if it has none; the image's row; the place of the
        # category in `category_ids`.
        self.ann_ids, self.ann_images, self.categories = array("q"), array("q"), array("q")
        self.category_ids = Ids()  # as the annotations have them
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.spans, self.span_ends = array("i"), array("q")
        self._other_ids: dict[int, Any] = {}  # row -> id of an annotation that does not fit into int64
        self._waiting: dict[int, int | str] = {}  # row -> id of an image that has not come

    @property
    def ids(self) -> list[int | str]:
        """Ids of the images."""
        return self.images.values

    # -- collecting -------------------------------------------------------------------------------------

    def note(self, kind: str, where: str, detail: str = "", annotations: int = 0) -> None:
        """Add a finding about something that is left out, and with it so many annotations."""
        self.problems.append(Problem(kind, self.file, where, detail))
        if annotations:
            self.lost[kind] += annotations

    def add_image(
        self,
        image_id: Any,
        path: str,
        width: Any,
        height: Any,
        caption: str | None = None,
        eval_spans: Sequence[Any] | None = (),
        extra: str = "",
        offset: int = -1,
        length: int = -1,
    ) -> bool:
        """One image. A malformed or repeated one is noted as a problem and left out (False).

        Args:
            width, height: pixels; 0 where they are unknown.
        """
        where = f"image {quote(image_id)}"
        try:
            image_id = read_id(image_id)
            if not is_text(path) or not path:
                raise ValueError(f"file {quote(path)}")
            if image_id in self.images:
                self.note("duplicate_image", where, path)
                return False
            width, height = read_size(width, "width") or 0, read_size(height, "height") or 0
            if caption is not None and not is_text(caption):
                raise ValueError(f"caption {quote(caption)}")
            flat = [read_spans(phrase) for phrase in eval_spans or ()]
        except (TypeError, ValueError) as error:
            self.note("malformed", where, str(error))
            return False
        self.images.add(image_id)
        self.paths.append(path)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.widths.append(width)
        self.heights.append(height)
        self.captions.append(caption)
        self.eval_spans.append(flat)
        self.extras.append(extra)
        return True

    def add_annotation(
        self, ann_id: Any, image_id: Any, category: Any, box: Any, area: Any = None, crowd: Any = 0, spans: Any = ()
    ) -> bool:
        """One box; its image may still come. A malformed one is noted as a problem and left out (False)."""
        row = len(self.ann_ids)
        number = row + self.lost.total()
        try:
            image_id, category = read_id(image_id, "image_id"), read_id(category, "category_id")
            box, crowd, flat = read_box(box), read_flag(crowd), read_spans(spans)
            self.boxes.extend(box)
        except (ValueError, OverflowError) as error:
            error = f"bbox {quote(box)}" if isinstance(error, OverflowError) else error
            del self.boxes[4 * row :]
            which = f"annotation number {number}" if ann_id is None else f"annotation {quote(ann_id)}"
            self.note("malformed", f"{which} of image {quote(image_id)}", str(error), annotations=1)
            return False
        try:
            if area is None:
                area = box[2] * box[3] if self.xywh else (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
            self.areas.append(read_number(area, "area"))
        except (ValueError, OverflowError):  # found as `bad_area`: the box is what matters
            self.areas.append(math.nan)
        has_id = type(ann_id) is int and 0 <= ann_id < 2**62
        if not has_id and ann_id is not None:
            self._other_ids[row] = ann_id
        self.ann_ids.append(ann_id if has_id else -1 - number)
        self.categories.append(self.category_ids.add(category))
        self.crowd.append(crowd)
        self.spans.extend(flat)
        self.span_ends.append(len(self.spans))
        self.ann_images.append(self.images.find(image_id) if image_id in self.images else -1)
        if self.ann_images[row] < 0:
            self._waiting[row] = image_id
        return True

    def add_boxes(self, image_id: int, categories: Sequence[int], boxes: Sequence[Any]) -> bool:
        """Boxes as corners that have nothing but a category, of an image that is there: what `add_annotation` does, in
        a fraction of the time. If one is not a list of four numbers, none is added (False)."""
        if not all(type(box) is list and len(box) == 4 and _NUMBERS.issuperset(map(type, box)) for box in boxes):
            return False
        try:
            flat = array("d", itertools.chain.from_iterable(boxes))
        except OverflowError:
            return False
        count, first = len(boxes), -1 - len(self.ann_ids) - self.lost.total()
        self.areas.extend([(x1 - x0 + 1) * (y1 - y0 + 1) for x0, y0, x1, y1 in zip(*[iter(flat)] * 4, strict=True)])
        self.boxes.extend(flat)
        self.ann_ids.extend(range(first, first - count, -1))
        self.categories.extend(map(self.category_ids.add, categories))
        self.crowd.frombytes(bytes(count))
        self.span_ends.extend([len(self.spans)] * count)
        self.ann_images.extend([self.images.find(image_id)] * count)
        return True

    # -- validating -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ids)

    def array(self, name: str) -> np.ndarray:
        """A numeric column as an array that shares its memory; `boxes` [M, 4], `spans` [spans, 2]."""
        return np.asarray(getattr(self, name)).reshape({"boxes": (-1, 4), "spans": (-1, 2)}.get(name, -1))

    def finish(self, categories: Iterable[Any] | None) -> None:
        """Set `damage`, once everything is there; `categories` are the known ids, None where they mean nothing."""
        # Images of annotations that came before them, or that spell the id in another way.
        for row, image_id in list(self._waiting.items()):
            self.ann_images[row] = place = self.images.find(image_id)
            if place >= 0:
                del self._waiting[row]

        self.damage = self._find_damage(categories)

    @property
    def sound(self) -> np.ndarray:
        """[M] bool: annotations without damage."""
        return ~np.any(list(self.damage.values()), axis=0)

    def spans_of(self, row: int) -> list[tuple[int, int]]:
        """The character spans of annotation `row`."""
        return pairs(self.spans[self.span_ends[row - 1] if row else 0 : self.span_ends[row]])

    def xyxy(self) -> np.ndarray:
        """Boxes [M, 4] float32 with both corners inside, otherwise as annotated."""
        with np.errstate(over="ignore"):
            boxes = self.array("boxes").astype(np.float32)
        if self.xywh:
            boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:] - np.float32(1), 0)
        return boxes

    def has_extent(self) -> np.ndarray:
        """[M] bool: boxes with both sides above one pixel. Training, as the original, uses no other."""
        boxes = self.xyxy()
        return (boxes[:, 2:] > boxes[:, :2]).all(1)

    def limits(self) -> np.ndarray:
        """[M, 2] width and height of the image of each annotation, infinite where unknown."""
        sizes = np.stack([self.array("widths"), self.array("heights")], 1).astype(np.float64)
        sizes = np.append(np.where(sizes > 0, sizes, np.inf), [[np.inf, np.inf]], axis=0)
        return sizes[self.array("ann_images")]  # -1, no image, is the last row

    def bad_areas(self) -> np.ndarray:
        """[M] bool: areas that are not a number of square pixels."""
        areas = self.array("areas")
        return ~((areas >= 0) & np.isfinite(areas))

    def sound_areas(self) -> np.ndarray:
        """[M] float64 square pixels; that of the box where the annotated area is none."""
        boxes = self.array("boxes")
        with np.errstate(invalid="ignore", over="ignore"):
            sides = boxes[:, 2:] if self.xywh else boxes[:, 2:] - boxes[:, :2] + 1
            return np.where(self.bad_areas(), sides.prod(1), self.array("areas"))

    def category_places(self, categories: Iterable[Any]) -> np.ndarray:
        """[M] the place of the category of each annotation among these ids, -1 where it is none of them."""
        known = Ids(categories)
        places = np.array([known.find(value) for value in self.category_ids.values], dtype=np.int64)
        return places[self.array("categories")]

    def _find_damage(self, categories: Iterable[Any] | None) -> dict[str, np.ndarray]:
        raw, images = self.array("boxes"), self.array("ann_images")
        nan = np.isnan(raw).any(1)
        with np.errstate(invalid="ignore", over="ignore"):
            infinite = np.isinf(raw.astype(np.float32)).any(1)  # boxes are stored as float32
            sides = raw[:, 2:] if self.xywh else raw[:, 2:] - raw[:, :2]
            low, high = raw[:, :2], raw[:, :2] + sides
            limits = self.limits()
            small = ((raw >= 0) & (raw <= 1)).all(1) & (limits > 2).all(1)
            outside = ((high <= 0) | (low >= limits)).any(1)
        places = np.zeros(len(raw), dtype=np.int64) if categories is None else self.category_places(categories)
        found = {
            "nan_box": nan,
            "infinite_box": infinite,
            "unknown_image": images < 0,
            "unknown_category": places < 0,
            "empty_box": (sides <= 0).any(1),
            "normalised_box": small,
            "box_outside": outside,
            **(self._span_damage() if self.grounded else {}),
        }
        sound = np.ones(len(raw), dtype=bool)
        for kind, mask in found.items():
            found[kind] = mask & sound
            sound &= ~mask
        return found | {"duplicate_annotation": self._repeated(np.flatnonzero(sound), places)}

    def _repeated(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """[M] bool: which of these rows have image, category, box and spans of an earlier one."""
        keys = [*self.array("boxes")[rows].T, places[rows], self.array("crowd")[rows], self.array("ann_images")[rows]]
        order = np.lexsort(keys)
        rows = rows[order]
        same = np.append(False, np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0))[: len(rows)]
        repeated = np.zeros(len(self.ann_ids), dtype=bool)
        if not self.grounded:
            repeated[rows[same]] = True
            return repeated
        seen: set[tuple[Any, ...]] = set()
        for position in np.flatnonzero(same | np.append(same[1:], False)):
            if not same[position]:
                seen.clear()
            spans = tuple(self.spans_of(rows[position]))
            repeated[rows[position]] = spans in seen
            seen.add(spans)
        return repeated

    def _span_damage(self) -> dict[str, np.ndarray]:
        spans, ends, images = self.array("spans"), self.array("span_ends") // 2, self.array("ann_images")
        known, rows = images >= 0, np.maximum(images, 0)
        owners = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        characters = np.array([len(caption or "") for caption in self.captions] or [0])[rows]
        empty, outside = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        empty[owners[spans[:, 1] <= spans[:, 0]]] = True
        leaves = (spans[:, 0] < 0) | (spans.max(1, initial=0) > characters[owners])
        outside[owners[leaves & known[owners]]] = True
        return {"span_empty": empty & ~outside, "span_outside": outside}

    def describe(self, kind: str, row: int) -> Problem:
        """The finding that annotation `row` has damage `kind`."""
        image, given = self.ann_images[row], self.ann_ids[row]
        where = f"annotation {given}" if given >= 0 else f"annotation number {-1 - given}"
        if row in self._other_ids:
            where = f"annotation {quote(self._other_ids[row])}"
        if kind == "unknown_image":
            detail = f"image_id {quote(self._waiting[row])}"
        elif kind == "unknown_category":
            detail = f"category {quote(self.category_ids.values[self.categories[row]])}"
        elif kind == "bad_area":
            detail = f"area {self.areas[row]:g}"
        elif kind.startswith("span"):
            spans = [list(span) for span in self.spans_of(row)]
            detail = f"spans {quote(spans)}, caption of {len(self.captions[image] or '')} characters"
        else:
            box = [round(value, 3) for value in self.boxes[4 * row : 4 * row + 4]]
            size = f" in {self.widths[image]} x {self.heights[image]}" if image >= 0 and self.widths[image] else ""
            detail = f"box {box}{size}"
        if image >= 0:
            where += f" of image {quote(os.path.basename(self.paths[image]) if self.by_file else self.ids[image])}"
        return Problem(kind, self.file, where, detail)

    # -- to Arrow ---------------------------------------------------------------------------------------

    def sound_table(
        self,
        tally: Tally,
        labels: Mapping[Any, int] | None,
        drop_empty: bool = False,
        strict: bool = False,
        by_id: bool = True,
    ) -> Any:
        """What is sound as a `pyarrow.Table` of `arrow_schema`, one row per image; the rest is counted in `tally`.

        Args:
            labels: category id -> stored label, of all that are known; None where categories mean nothing stores 1.
            drop_empty: leave out images to which no box is left.
            by_id: images in ascending order of id (the original's order), else of appearance.

        Raises:
            ValueError: if `strict` and anything is damaged, naming the first damage.
        """
        pa = require("pyarrow")
        self.finish(labels)
        keep = tally.count(self)
        if strict and tally.dropped:
            kind = next(iter(tally.dropped))
            raise ValueError(f"{kind} in {tally.examples[kind]}. Repair it, or read with strict=False to leave it out.")
        integer_ids = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in self.ids)
        if integer_ids:
            ids = np.array(self.ids, np.int64)
            order = np.argsort(ids, kind="stable") if by_id else np.arange(len(ids))
        else:
            ids = np.array([json.dumps(value) for value in self.ids], dtype=object)
            order = np.arange(len(ids))
            if by_id:
                order = np.array(sorted(order, key=lambda row: id_order(self.ids[row])), dtype=np.int64)

        boxes, rows = self.xyxy(), np.flatnonzero(keep)
        image_rank = np.empty(len(ids), dtype=np.int64)
        image_rank[order] = np.arange(len(ids))
        owner = image_rank[self.array("ann_images")[rows]]
        sorting = np.argsort(owner, kind="stable")
        rows, owner = rows[sorting], owner[sorting]
        counts = np.bincount(owner, minlength=len(ids))
        if drop_empty:
            order, counts = order[counts > 0], counts[counts > 0]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        stored = np.ones(len(rows), dtype=np.int32)
        if labels is not None:
            stored = np.array([*labels.values(), 0], dtype=np.int32)[self.category_places(labels)[rows]]
        ends = np.concatenate([[0], self.array("span_ends")]).astype(np.int32)
        spans = pa.ListArray.from_arrays(ends, self.array("spans").reshape(-1)).take(pa.array(rows))
        schema, take = arrow_schema(integer_ids), order.tolist()
        columns = {
            "image_id": ids[order],
            **{name: self.array(f"{name}s")[order] for name in ("offset", "length", "width", "height")},
            "boxes": pa.ListArray.from_arrays(4 * offsets, boxes[rows].reshape(-1)),
            "labels": pa.ListArray.from_arrays(offsets, stored),
            "areas": pa.ListArray.from_arrays(offsets, self.sound_areas()[rows].astype(np.float32)),
            "path": [self.paths[i] for i in take],
            "caption": [self.captions[i] for i in take],
            "spans": pa.ListArray.from_arrays(offsets, spans),
            "eval_spans": [self.eval_spans[i] for i in take],
            "extra": [self.extras[i] for i in take],
        }
        arrays = [
            column if isinstance(column := columns[name], pa.Array) else pa.array(column, type=schema.field(name).type)
            for name in schema.names
        ]
        return pa.Table.from_arrays(arrays, schema=schema)
