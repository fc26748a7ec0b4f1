# Copyright 2026 The glip_hf authors. MIT licence.
"""Several detection sets as one: classes match by name, whatever their ids."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import ALLOWED_DAMAGE, Columns, Tally
from ..records import ImageRef, Record
from .base import Source
from .coco import CocoFile, coco_annotations, parse_coco


class JoinedSource(Source):
    """Detection sets, one after the other; an image's id is its number among all of them, from 0.

    Class names are those of all sets, in the order of their first mention. An image has boxes of the classes of its own
    set alone, so that it belongs in a caption of these: see `parts`.

    Raises:
        ValueError: for a set with two classes of one name.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.names, known = {}, {}
        parts = []
        for source in sources:
            numbers: dict[int, int] = {}
            for label in sorted(source.names):
                key = " ".join(source.names[label].split()).lower()  # as the tokenizer reads it
                number = known.setdefault(key, len(known) + 1)
                if number in numbers.values():
                    raise ValueError(f"{source.info['file']} has two classes {source.names[label]!r}: rename one.")
                self.names.setdefault(number, source.names[label])
                numbers[label] = number
            parts.append(source.renumbered(numbers))
        self._parts, self._rows = parts, None
        self.first = np.cumsum([0, *map(len, parts)])
        self._length = int(self.first[-1])
        self.category_ids, self.captions = {number: number for number in self.names}, "all"
        self.name = " + ".join(dict.fromkeys(source.name for source in sources))
        self.info = {"file": " + ".join(str(source.info["file"]) for source in sources), "names": self.names}
        self.tally = Tally(dropped={}, notes=[note for source in sources for note in source.tally.notes])
        categories = [{"id": number, "name": name} for number, name in self.names.items()]
        self.file = _JoinedFile(Path(self.info["file"]), {}, {}, self.name, "all", categories=categories, joined=self)

    def __getitem__(self, index: int) -> Record:
        row = self.row(index)
        number = int(np.searchsorted(self.first, row, side="right")) - 1
        record = self._parts[number][row - int(self.first[number])]
        record.image_id = row
        return record

    def renumbered(self, numbers: Mapping[int, int]) -> "JoinedSource":
        joined = super().renumbered(numbers)
        joined._parts = [part.renumbered(numbers) for part in self._parts]
        return joined

    def parts(self) -> list[Source]:
        """The sets that have any of the samples, each with its own: sources with the class ids of all."""
        rows = np.arange(self._length) if self._rows is None else np.asarray(self._rows)
        chosen = [rows[(rows >= low) & (rows < high)] - low for low, high in zip(self.first, self.first[1:])]
        return [part.select(own) for part, own in zip(self._parts, chosen) if len(own)]

    def _of_all(self, values: Iterable[Any]) -> list[Any]:
        """What belongs to the samples of what belongs to all images."""
        values = list(values)
        return values if self._rows is None else [values[row] for row in self._rows]

    def sizes(self) -> np.ndarray:
        sizes = np.concatenate([part.sizes() for part in self._parts])
        return sizes if self._rows is None else sizes[self._rows]

    def image_ids(self) -> np.ndarray:
        return np.arange(self._length) if self._rows is None else np.asarray(self._rows)

    def image_files(self) -> Iterable[ImageRef]:
        return self._of_all(image for part in self._parts for image in part.image_files())

    def label_sets(self) -> list[set[int]]:
        return self._of_all(labels for part in self._parts for labels in part.label_sets())

    def require_boxes(self, allow_damage: float = ALLOWED_DAMAGE, needed: bool = False) -> None:
        for part in self._parts:
            part.require_boxes(allow_damage, needed)

    def digest(self) -> str:
        own = [*(part.digest() for part in self._parts), self.image_ids().tolist()]
        return hashlib.sha256(repr(own).encode()).hexdigest()


@dataclass(frozen=True)
class _JoinedFile(CocoFile):
    """The annotations of all sets as those of one file, crowd regions included, for evaluators."""

    joined: Any = None

    def parse(
        self, columns: Columns, accepted: dict[str, list[Mapping[str, Any]]] | None = None
    ) -> list[Mapping[str, Any]]:
        source = self.joined
        for part, first in zip(source._parts, source.first.tolist()):
            found = coco_annotations(part)
            rows = {image_id: first + row for row, image_id in enumerate(part.image_ids().tolist())}
            labels = {category: label for label, category in part.category_ids.items()}
            images = (("images", {**one, "id": rows[one["id"]]}) for one in found.images if one["id"] in rows)
            boxes = (
                ("annotations", {**one, "image_id": rows[one["image_id"]], "category_id": labels[one["category_id"]]})
                for one in found.boxes
                if one["image_id"] in rows
            )
            for entries in (images, boxes):
                parse_coco(entries, columns, None, (), accepted)
        return self.categories
