# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotations in columns: collected one by one, then validated and turned into Arrow all at once.

The one validator serves the readers, which leave damaged annotations out and say how many, and `glip_hf.data.check`,
which names every one.

Letters: M annotations.
"""

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._extras import require
from .records import arrow_schema, pairs

DAMAGE = {
    "malformed": "a field is missing or of the wrong type",
    "nan_box": "a box has a NaN",
    "infinite_box": "a box has an infinite value",
    "empty_box": "a box has a zero or negative size",
    "box_outside": "a box lies outside the image",
    "unknown_category": "a category that is not in the list",
    "unknown_image": "an image id that is not in the list",
    "span_empty": "a character span is empty or reversed",
    "span_outside": "a character span leaves the caption",
    "duplicate_image": "an image id that occurred before",
    "duplicate_annotation": "an annotation id that occurred before",
}
"""What a reader leaves out, and why; `box_outside` only where nothing of the box is in the image."""


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
        return f"{self.file}: {self.where}: {self.kind}{f' ({self.detail})' if self.detail else ''}"


@dataclass
class Columns:
    """Images and annotations under construction.

    Attributes:
        file: the annotation file, for messages.
        xywh: boxes come as COCO's x, y, width, height (else as xyxy with both corners inside).
        grounded: annotations carry spans of their image's caption.
    """

    file: str
    xywh: bool = True
    grounded: bool = False
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids: list[Any] = []  # of the images, in order of appearance
        self.index: dict[Any, int] = {}  # image id -> row
        self.paths: list[str] = []
        self.offsets, self.lengths = array("q"), array("q")
        self.widths, self.heights = array("i"), array("i")
        self.captions: list[str | None] = []
        self.eval_spans: list[list[list[int]]] = []
        self.extras: list[str] = []
        self.ann_ids, self.ann_images, self.categories = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("f"), array("f"), array("b")
        self.spans, self.span_ends = array("i"), array("q")
        self._waiting: list[tuple[int, Any]] = []

    # -- collecting -------------------------------------------------------------------------------------

    def note(self, kind: str, where: str, detail: str = "") -> None:
        """Add a finding."""
        self.problems.append(Problem(kind, self.file, where, detail))

    def add_image(
        self,
        image_id: Any,
        path: str,
        width: Any,
        height: Any,
        caption: str | None = None,
        eval_spans: Sequence[Sequence[Sequence[int]]] = (),
        extra: str = "",
        offset: int = -1,
        length: int = -1,
    ) -> bool:
        """One image. A malformed or repeated one is noted as a problem and left out (False)."""
        where = f"image {image_id!r}"
        try:
            if not isinstance(image_id, int | str) or not isinstance(path, str) or not path:
                raise TypeError(f"id {image_id!r}, file {path!r}")
            if image_id in self.index:
                self.note("duplicate_image", where, path)
                return False
            width, height = int(width), int(height)  # the Flickr30k files have them as strings
            if width < 1 or height < 1:
                raise ValueError(f"{width} x {height} pixels")
            if caption is not None and not isinstance(caption, str):
                raise TypeError(f"caption {caption!r}")
            flat = [[int(value) for span in phrase for value in span] for phrase in eval_spans]
        except (TypeError, ValueError, OverflowError) as error:
            self.note("malformed", where, str(error))
            return False
        self.index[image_id] = len(self.ids)
        self.ids.append(image_id)
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
        self,
        ann_id: Any,
        image_id: Any,
        category: Any,
        box: Sequence[float],
        area: float | None = None,
        crowd: Any = 0,
        spans: Sequence[Sequence[int]] = (),
    ) -> None:
        """One box; its image may still come. A malformed one is noted as a problem and left out."""
        count, span_count = len(self.ann_ids), len(self.spans)
        try:
            self.boxes.extend(box)
            if len(self.boxes) != 4 * count + 4:
                raise ValueError(f"box {box!r}")
            for begin, end in spans:
                self.spans.append(begin)
                self.spans.append(end)
            self.categories.append(category)
            if crowd not in (0, 1, None):
                raise ValueError(f"iscrowd {crowd!r}")
            self.crowd.append(bool(crowd))
            if area is None:
                area = box[2] * box[3] if self.xywh else (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
            self.areas.append(area)
            image = self.index.get(image_id, -1)
        except (TypeError, ValueError, OverflowError, IndexError) as error:
            for column in (self.categories, self.crowd, self.areas):
                del column[count:]
            del self.boxes[4 * count :], self.spans[span_count:]
            self.note("malformed", f"annotation {ann_id!r} of image {image_id!r}", str(error))
            return
        self.ann_ids.append(ann_id if isinstance(ann_id, int) else -1)
        self.ann_images.append(image)
        self.span_ends.append(len(self.spans))
        if image < 0:
            self._waiting.append((count, image_id))

    # -- validating -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ids)

    def array(self, name: str) -> np.ndarray:
        """A numeric column as an array that shares its memory; `boxes` [M, 4], `spans` [spans, 2]."""
        return np.asarray(getattr(self, name)).reshape({"boxes": (-1, 4), "spans": (-1, 2)}.get(name, -1))

    def finish(self) -> None:
        """Find the images of annotations that came before them; note those that never came."""
        for row, image_id in self._waiting:
            self.ann_images[row] = self.index.get(image_id, -1)
            if self.ann_images[row] < 0:
                self.note("unknown_image", self._where(row), f"image_id {image_id!r}")
        self._waiting.clear()

    def _where(self, row: int) -> str:
        given = self.ann_ids[row]
        return f"annotation {given}" if given >= 0 else f"annotation number {row}"

    def spans_of(self, row: int) -> list[tuple[int, int]]:
        """The character spans of annotation `row`."""
        return pairs(self.spans[self.span_ends[row - 1] if row else 0 : self.span_ends[row]])

    def xyxy(self) -> np.ndarray:
        """Boxes [M, 4] float32 with both corners inside, otherwise as annotated."""
        boxes = self.array("boxes").copy()
        if self.xywh:
            boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:] - np.float32(1), 0)
        return boxes

    def annotation_damage(self, categories: Collection[int] | None) -> dict[str, np.ndarray]:
        """For each kind of damage an annotation can have, which have it: [M] bool. Call `finish` first.

        Args:
            categories: the known category ids; None where they mean nothing.
        """
        raw, images = self.array("boxes"), self.array("ann_images")
        known = images >= 0
        rows = np.where(known, images, 0)
        nan, infinite = np.isnan(raw).any(1), np.isinf(raw).any(1)
        finite = ~nan & ~infinite
        with np.errstate(invalid="ignore"):
            sides = raw[:, 2:] if self.xywh else raw[:, 2:] - raw[:, :2]
            empty = finite & (sides <= 0).any(1)
            outside = np.zeros(len(raw), dtype=bool)
            if len(self):
                limits = np.stack([self.array("widths"), self.array("heights")], 1)[rows]
                low, high = raw[:, :2], raw[:, :2] + sides
                outside = finite & ~empty & known & ((high <= 0) | (low >= limits)).any(1)
        unknown = np.zeros(len(raw), dtype=bool)
        if categories is not None:
            unknown = ~np.isin(self.array("categories"), list(categories))
        ids = self.array("ann_ids")
        repeated = np.ones(len(raw), dtype=bool)
        repeated[np.unique(ids, return_index=True)[1]] = False
        found = {
            "nan_box": nan,
            "infinite_box": infinite & ~nan,
            "empty_box": empty,
            "box_outside": outside,
            "unknown_category": unknown,
            "unknown_image": ~known,
            "duplicate_annotation": repeated & (ids >= 0),
        }
        return found | (self._span_damage(rows, known) if self.grounded else {})

    def _span_damage(self, rows: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
        spans, ends = self.array("spans"), self.array("span_ends") // 2
        owners = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        characters = np.array([len(caption or "") for caption in self.captions] or [0])[rows]
        empty, outside = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        empty[owners[spans[:, 1] <= spans[:, 0]]] = True
        leaves = (spans[:, 0] < 0) | (spans.max(1, initial=0) > characters[owners])
        outside[owners[leaves & known[owners]]] = True
        return {"span_empty": empty & ~outside, "span_outside": outside}

    def describe(self, kind: str, row: int, detail: str | None = None) -> Problem:
        """The finding that annotation `row` has damage `kind`; `detail` replaces the default one."""
        image = self.ann_images[row]
        if detail is None and kind == "unknown_category":
            detail = f"category {self.categories[row]}"
        elif detail is None and kind.startswith("span"):
            spans = [list(span) for span in self.spans_of(row)]
            detail = f"spans {spans}, caption of {len(self.captions[image] or '')} characters"
        elif detail is None:
            box = [round(value, 3) for value in self.boxes[4 * row : 4 * row + 4]]
            detail = f"box {box}" + (f" in {self.widths[image]} x {self.heights[image]}" if image >= 0 else "")
        owner = f" of image {self.ids[image]!r}" if image >= 0 else ""
        return Problem(kind, self.file, self._where(row) + owner, detail)

    # -- to Arrow ---------------------------------------------------------------------------------------

    def to_table(
        self, keep: np.ndarray, labels: Mapping[int, int] | None = None, drop_empty: bool = False, by_id: bool = True
    ) -> Any:
        """A `pyarrow.Table` of `arrow_schema`, one row per image.

        Args:
            keep: [M] bool, annotations to store. Those without extent (a side of at most one pixel, in COCO's
                measure) are left out as well, as in the original.
            labels: category id -> stored label; None stores 1.
            drop_empty: leave out images to which no box is left.
            by_id: images in ascending order of id (the original's order), else of appearance.
        """
        pa = require("pyarrow")
        integer_ids = all(isinstance(value, int) for value in self.ids)
        ids = np.array(self.ids, np.int64) if integer_ids else np.array([str(value) for value in self.ids], object)

        boxes = self.xyxy()
        rows = np.flatnonzero(keep & (boxes[:, 2:] > boxes[:, :2]).all(1))
        order = np.argsort(ids, kind="stable") if by_id else np.arange(len(ids))
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
            known, positions = np.unique(self.array("categories")[rows], return_inverse=True)
            stored = np.array([labels[int(c)] for c in known], dtype=np.int32)[positions]
        ends = np.concatenate([[0], self.array("span_ends")]).astype(np.int32)
        spans = pa.ListArray.from_arrays(ends, self.array("spans").reshape(-1)).take(pa.array(rows))
        schema, take = arrow_schema(integer_ids), order.tolist()
        columns = {
            "image_id": ids[order],
            **{name: self.array(f"{name}s")[order] for name in ("offset", "length", "width", "height")},
            "boxes": pa.ListArray.from_arrays(4 * offsets, boxes[rows].reshape(-1)),
            "labels": pa.ListArray.from_arrays(offsets, stored),
            "areas": pa.ListArray.from_arrays(offsets, self.array("areas")[rows]),
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
