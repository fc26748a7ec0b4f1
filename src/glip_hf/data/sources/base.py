# Copyright 2026 The glip_hf authors. MIT licence.
"""What all readers give: a `Source`, a sequence of `Record`s over a memory-mapped table."""

import copy
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from transformers.utils import logging

from ...prompts_glip import Name
from ...runs import sizes_digest
from ...values_glip import quote
from ..broken import find_broken
from ..cache import release_pages
from ..columns import ALLOWED_DAMAGE, Tally
from ..images import MissingImages, missing_files
from ..records import ImageRef, Record, record_from_row

logger = logging.get_logger(__name__)

Captions = Literal["given", "all", "sampled"]
"""Where captions come from: the annotations, all class names, or class names sampled per image."""

DATA_ROOTS = (".", "$DATASET", "DATASET", "OUTPUT", "data", "MODEL")
"""Where a relative path is looked for when no data root is given, in this order (the original's)."""


SIZED_IMAGES = 1000

READS_PER_RELEASE = 128
"""Records after which a process gives back the pages of its table that it has read: each record touches some 10
columns, 64 KiB at a time, so that a loader worker would soon hold all of a file of a gigabyte."""


class Source:
    """A data set: `len`, `source[i]` -> `Record`, iteration.

    Attributes:
        name: of the data set, for records and messages.
        names: class id (1..N, in order of the original ids) -> class name, never `__background__`; empty for grounding
            sets.
        category_ids: class id -> id in the annotations (an integer or text), for evaluators.
        captions: see `Captions`.
        prompts: class id -> `Name` with prefix and suffix, where the set has caption prompts.
        tally: what became of the annotations; `dropped` is its kinds of damage and their numbers.
        table: the memory-mapped `datasets.Dataset`.
        file: how its annotations are read again, where they are files (`CocoFile`).
    """

    prompts: Mapping[int, Name] | None = None
    file: Any = None
    _numbers: np.ndarray | None = None  # class id in the table -> that of this source, where they differ

    def __init__(
        self,
        name: str,
        table: Any,
        info: Mapping[str, Any],
        rows: np.ndarray | None = None,
        captions: Captions = "given",
        encoded: Callable[[int], bytes] | None = None,
    ) -> None:
        if captions not in get_args(Captions) or (captions == "given") == bool(info["names"]):
            known = "'all' or 'sampled'" if info["names"] else "'given'"
            raise ValueError(f"{info['file']}: captions={captions!r:.60} must be {known}.")
        self.name, self.table, self.info, self.captions = name, table, info, captions
        self.names: dict[int, str] = info["names"]
        self.category_ids: dict[int, int | str] = info["category_ids"]
        self.tally = Tally(**info["tally"])
        self._length, self._rows, self._encoded = len(table), rows, encoded
        self._one_row = table.with_format("arrow")
        self._mapped, self._reads = [file["filename"] for file in table.cache_files], 0
        if self.dropped:
            logger.warning(f"{info['file']}: {self.tally.describe()}. `glip check-data` names each of them.")
        for note in self.tally.notes:
            logger.warning(f"{info['file']}: {note}")

    @property
    def dropped(self) -> dict[str, int]:
        """Kind of damage -> number of annotations or images that the reader left out."""
        return self.tally.dropped

    def require_boxes(self, allow_damage: float = ALLOWED_DAMAGE, needed: bool = False) -> None:
        """Refuse damaged data before a run starts, see `Tally.require_boxes`."""
        self.tally.require_boxes(self.info["file"], allow_damage, needed)

    def __len__(self) -> int:
        return self._length if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} images, {len(self.names)} classes)"

    def row(self, index: int) -> int:
        """Row of the table behind a sample; a selection may repeat or leave out rows."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, {index} was asked for.")
        return index if self._rows is None else int(self._rows[index])

    def __getitem__(self, index: int) -> Record:
        row = self.row(index)
        values = self._one_row[row].to_pylist()[0]
        self._reads += 1
        if self._reads % READS_PER_RELEASE == 0:
            release_pages(self._mapped)
        data = self._encoded(values["offset"]) if self._encoded else None
        if data is not None:
            values["offset"] = -1
        record = record_from_row(values, self.name, self.names, data)
        if self._numbers is not None:
            record.labels = self._numbers[record.labels]
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def _column(self, name: str) -> np.ndarray:
        values = self.table.data.column(name).to_numpy()
        return values if self._rows is None else values[self._rows]

    def sizes(self) -> np.ndarray:
        """[samples, 2] int32: (height, width) of every sample, as annotated."""
        return np.stack([self._column("height"), self._column("width")], axis=1)

    def image_ids(self) -> np.ndarray:
        """[samples] int64, or object where ids are text or longer: the id of every sample's image."""
        ids = self._column("image_id")
        return ids if ids.dtype.kind == "i" else np.array([json.loads(text) for text in ids] or [0], object)[: len(ids)]

    def image_files(self) -> Iterable[ImageRef]:
        """The image of every sample, where it is a file of its own; empty where images are held otherwise."""
        if self._encoded is not None or not (self._column("offset") < 0).all():
            return []
        sizes = zip(self._column("width").tolist(), self._column("height").tolist(), strict=True)
        return (ImageRef(path, size=size) for path, size in zip(self._column("path").tolist(), sizes, strict=True))

    def without_broken(self, on_broken: str) -> "Source":
        """The samples whose image files have a header that can be read; raises as `find_broken`."""
        files = list(self.image_files())
        broken = find_broken(files, on_broken)
        return self.select([row for row, image in enumerate(files) if image.path not in broken]) if broken else self

    def select(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """The same source with only these samples, in this order; repetition is allowed."""
        part, indices = copy.copy(self), np.asarray(indices, dtype=np.int64)
        part._rows = indices if self._rows is None else np.asarray(self._rows)[indices]
        return part

    def renumbered(self, numbers: Mapping[int, int]) -> "Source":
        """The same source with other class ids: old -> new."""
        part, table = copy.copy(self), np.zeros(max(numbers, default=0) + 1, dtype=np.int64)
        table[list(numbers)] = list(numbers.values())
        part._numbers = table if self._numbers is None else table[self._numbers]
        part.names, part.category_ids = (
            {numbers[label]: value for label, value in own.items()} for own in (self.names, self.category_ids)
        )
        if self.prompts:
            part.prompts = {numbers[label]: prompt for label, prompt in self.prompts.items()}
        return part

    def few_shot(self, shots: int, shuffle_seed: int | None = None) -> "Source":
        """At least `shots` images per class, chosen by the original's rule.

        Images are visited in order (ascending id; shuffled by Python's `random.Random(shuffle_seed)` where a seed other
        than 0 is given). One is taken if any of its classes still lacks images, and then counts for all of its classes.
        """
        return self.select(few_shot_indices(self.label_sets(), shots, shuffle_seed))

    def digest(self) -> str:
        """SHA-256 of what training sees of this source: its records (not the folder of the images), class names, and
        the names and sizes of up to `SIZED_IMAGES` of its images."""
        digest = hashlib.sha256(repr((self.names, self.captions, self.prompts)).encode(errors="surrogatepass"))
        columns = self.table.data
        for name in sorted(set(columns.column_names) - {"path"}):
            for chunk in columns.column(name).chunks:
                for buffer in filter(None, chunk.buffers()):
                    digest.update(buffer)
        if self._rows is not None:
            digest.update(np.ascontiguousarray(self._rows, dtype=np.int64))
        step = max(len(self) // SIZED_IMAGES, 1)
        paths = columns.column("path").take(np.array([self.row(index) for index in range(0, len(self), step)]))
        digest.update(sizes_digest(paths.to_pylist()).encode())
        release_pages(self._mapped)
        return digest.hexdigest()

    def label_sets(self) -> list[set[int]]:
        """The class ids of every sample's boxes."""
        per_row = [set(labels) for labels in self.table.data.column("labels").to_pylist()]
        if self._numbers is not None:
            per_row = [{int(self._numbers[label]) for label in labels} for labels in per_row]
        return [per_row[self.row(index)] for index in range(len(self))]


def require_images(sources: Iterable[Source], option: str) -> None:
    """
    Args:
        option: where the user gives the folder of the images.

    Raises:
        MissingImages: for all image files of the sources that are not there.
    """
    files = dict.fromkeys(image.path for source in sources for image in source.image_files())
    if missing := missing_files(files):
        raise MissingImages(missing, len(files), option)


def few_shot_indices(label_sets: Sequence[set[int]], shots: int, shuffle_seed: int | None = None) -> list[int]:
    """The images of a few-shot set, see `Source.few_shot`."""
    if not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots={quote(shots)} must be an integer of at least 1.")
    order = list(range(len(label_sets)))
    if shuffle_seed:
        random.Random(shuffle_seed).shuffle(order)
    taken: Counter[int] = Counter()
    chosen = []
    for index in order:
        if any(taken[label] < shots for label in label_sets[index]):
            chosen.append(index)
            taken.update(label_sets[index])
    return chosen


def find_path(path: str | Path, data_root: str | Path | None = None, must_exist: bool = True) -> Path:
    """An absolute path; a relative one lies under `data_root`, or under the first of `DATA_ROOTS` that has it.

    Raises:
        FileNotFoundError: if it does not exist; the message lists the paths tried.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"{quote(path)} is not a path.")
    roots = [data_root]
    if data_root is None:
        roots = [root for root in map(os.path.expandvars, DATA_ROOTS) if not root.startswith("$")]
    # Joined with an absolute path, every root gives that path.
    tried = list(dict.fromkeys(Path(root).expanduser() / Path(path).expanduser() for root in roots))
    for candidate in tried:
        if candidate.exists():
            return candidate.absolute()
    if must_exist:
        listed = ", ".join(str(candidate) for candidate in tried)
        raise FileNotFoundError(
            f"There is no {str(path)!r}; looked for {listed}. Give data_root, the folder of the data sets, or set the "
            "environment variable DATASET."
        )
    return tried[0].absolute()
