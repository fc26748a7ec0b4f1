# Copyright 2026 The glip_hf authors. MIT licence.
"""One pass over data sets that names everything wrong with them, before a training run finds out."""

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..prompts_glip import MAX_TEXT_LENGTH, clean_name, positive_map
from .broken import examine_images
from .columns import DAMAGE, Columns, Problem
from .json_stream import UnreadableJson
from .records import ImageRef
from .sources import NOT_READ, READERS, find_path, resolve_spec
from .sources.coco import CocoFile, coco_file, number_categories, parse_coco
from .sources.hub import HubImages, collect
from .sources.lvis import lvis_file
from .sources.mdetr import mdetr_file
from .sources.odinw import odinw_file
from .sources.tsv import TsvFiles, load_labelmap, load_tsv_yaml, parse_tsv, read_line_list

KINDS = DAMAGE | {
    "unreadable": "a file or a row of it cannot be read",
    "missing_image": "the file of a picture is not there",
    "broken_image": "a picture cannot be decoded",
    "wrong_size": "a picture has another size than annotated",
    "key_mismatch": "rows of picture and label files do not belong together",
    "box_overhang": "a box reaches more than a pixel out of the picture and is clipped",
    "caption_too_long": "a caption is cut at the model's limit",
    "phrase_truncated": "a phrase is cut off with the end of its caption",
    "no_phrase": "a box of a caption has no words",
    "bad_area": "an area is negative, infinite or NaN",
    "empty_name": "a category's name has no letter once it is cleaned",
    "duplicate_name": "two categories have the same name once it is cleaned",
}
"""Everything `check_data` finds, and what it is."""

WARNINGS = frozenset(
    {"box_overhang", "caption_too_long", "phrase_truncated", "no_phrase", "bad_area", "empty_name", "duplicate_name"}
)
"""Kinds that training copes with; all others lose something."""

_FILES: dict[str, Callable[..., CocoFile]] = {
    "coco": coco_file,
    "lvis": lvis_file,
    "mdetr": mdetr_file,
    "odinw": odinw_file,
}


@dataclass
class DataReport:
    """What `check_data` found.

    Attributes:
        counts: kind -> how often; all of them, also beyond what `problems` holds.
        problems: the findings, of each kind at most `max_per_kind`.
        sources: name of data set -> number of `images`, `annotations`, `images_without_boxes`.
        seconds: the check took.
    """

    max_per_kind: int = 1000
    counts: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    sources: dict[str, Counter] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        """Findings that are no warnings."""
        return sum(count for kind, count in self.counts.items() if kind not in WARNINGS)

    @property
    def ok(self) -> bool:
        """Whether there is nothing but warnings."""
        return self.errors == 0

    def add(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= self.max_per_kind:
            self.problems.append(problem)

    def lines(self, examples: int = 20) -> Iterator[str]:
        """The report as text, with so many examples of each kind."""
        for name, counts in self.sources.items():
            yield (
                f"{name}: {counts['images']:,} images, {counts['annotations']:,} annotations, "
                f"{counts['images_without_boxes']:,} images without boxes"
            )
        for kind in KINDS:
            if not self.counts[kind]:
                continue
            severity = "warning" if kind in WARNINGS else "error"
            yield f"{severity}: {kind}: {self.counts[kind]:,} ({KINDS[kind]})"
            shown = [problem for problem in self.problems if problem.kind == kind][:examples]
            yield from (f"    {p.file}: {p.where}{f': {p.detail}' if p.detail else ''}" for p in shown)
            if self.counts[kind] > len(shown):
                yield f"    and {self.counts[kind] - len(shown):,} more"
        yield f"{self.errors:,} errors, {sum(self.counts.values()) - self.errors:,} warnings"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "ok": self.ok,
            "counts": dict(self.counts),
            "sources": {name: dict(counts) for name, counts in self.sources.items()},
            "problems": [vars(problem) for problem in self.problems],
            "seconds": round(self.seconds, 2),
        }


def check_data(
    specs: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any],
    data_root: str | Path | None = None,
    *,
    images: Literal["decode", "header", "none"] = "decode",
    tokenizer: Any = None,
    max_text_length: int = MAX_TEXT_LENGTH,
    num_threads: int | None = None,
    max_per_kind: int = 1000,
) -> DataReport:
    """Examine data sets as they are in their files; nothing is converted, cached or changed.

    Args:
        specs: one or several data sets, each as `build_source` takes them.
        data_root: where relative paths begin.
        images: "decode" reads every picture whole (each once), "header" its beginning only, which finds missing
            files and wrong sizes, "none" leaves them alone.
        tokenizer: a fast tokenizer, to find captions and phrases that are cut off; None leaves that out.
        max_text_length: tokens a caption may have.
        num_threads: that decode; default the number of cores.
        max_per_kind: findings of a kind that the report holds; all are counted.

    Raises:
        ValueError: for specs that name no data set or format. Everything else is a finding.
    """
    if isinstance(specs, str | Mapping):
        specs = [specs]
    report, begun = DataReport(max_per_kind), time.monotonic()
    for spec in specs:
        resolved = resolve_spec(spec)
        reader = resolved["format"]
        resolved = {key: value for key, value in resolved.items() if key not in NOT_READ}
        name = resolved.get("name") or str(
            resolved.get("annotations") or resolved.get("task") or resolved.get("yaml_file") or reader
        )
        counts = report.sources.setdefault(name, Counter())
        checked: dict[ImageRef, Any] = {}
        try:
            for columns, categories, load in _pieces(reader, resolved, data_root, report):
                for problem in _examine(columns, categories):
                    report.add(problem)
                counts["images"] += len(columns)
                counts["annotations"] += len(columns.ann_ids)
                owners = np.frombuffer(columns.ann_images, dtype=np.int64)
                counts["images_without_boxes"] += len(columns) - len(np.unique(owners[owners >= 0]))
                if tokenizer is not None:
                    for problem in _check_captions(columns, tokenizer, max_text_length):
                        report.add(problem)
                if images != "none":
                    for problem in _check_images(columns, load, images == "decode", num_threads, checked):
                        report.add(problem)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # What stops the reading of a whole set: a missing annotation file, a YAML without its parts, ...
            report.add(Problem("unreadable", name, "data set", f"{type(error).__name__}: {error}"))
    report.seconds = time.monotonic() - begun
    return report


Piece = tuple[Columns, Iterable[int] | None, Callable[[ImageRef], ImageRef] | None]


def _pieces(reader: str, spec: dict[str, Any], data_root: str | Path | None, report: DataReport) -> Iterator[Piece]:
    """A data set as columns, whole or in pieces: with the known categories, and how to find a picture's bytes."""
    if reader == "tsv":
        parts = load_tsv_yaml(find_path(spec["yaml_file"], data_root))
        labels = load_labelmap(parts["labelmap"])
        for problem in _check_tsv(parts):
            report.add(problem)
        for columns, _ in parse_tsv(parts, labels):
            yield columns, None, None
    elif reader == "hub":
        known = inspect.signature(collect).parameters
        load_options = {k: v for k, v in spec.items() if k not in inspect.signature(READERS["hub"]).parameters}
        columns, dataset, image_column, labels = collect(
            **{key: value for key, value in spec.items() if key in known}, **load_options
        )
        encoded = HubImages(dataset, image_column)
        yield columns, labels, lambda ref: ImageRef(ref.path, data=encoded(ref.offset))
    elif reader != "scenes":  # generated: nothing can be wrong
        make = _FILES[reader]
        known = inspect.signature(make).parameters
        file = make(**({"data_root": data_root} | {key: value for key, value in spec.items() if key in known}))
        columns = Columns(str(file.path), grounded=file.grounded)
        found = None
        try:
            found = parse_coco(file, columns)
        except UnreadableJson as error:
            report.add(Problem("unreadable", str(file.path), "file", str(error)))
        categories = None
        if not file.grounded and (file.categories or found):
            try:
                categories, names = number_categories(file.categories or found, file.path)
                ids = {label: category for category, label in categories.items()}
                for problem in _check_names(str(file.path), {ids[label]: name for label, name in names.items()}):
                    report.add(problem)
            except ValueError as error:
                report.add(Problem("malformed", str(file.path), "categories", str(error)))
        elif not file.grounded and found is not None:
            report.add(Problem("malformed", str(file.path), "categories", "there are none"))
        yield columns, categories, None


def _examine(columns: Columns, categories: Iterable[int] | None) -> Iterator[Problem]:
    """What is wrong with annotations, by themselves and against their pictures' sizes."""
    columns.finish()
    yield from columns.problems
    damage = columns.annotation_damage(categories)
    damage.pop("unknown_image")  # among the problems already
    hurt = np.zeros(len(columns.ann_ids), dtype=bool)
    for kind, mask in damage.items():
        hurt |= mask
        yield from (columns.describe(kind, int(row)) for row in np.flatnonzero(mask))
    images = np.frombuffer(columns.ann_images, dtype=np.int64)
    sound = ~hurt & (images >= 0)
    boxes = columns.xyxy()[sound]
    widths, heights = (np.frombuffer(c, dtype=np.int32)[images[sound]] for c in (columns.widths, columns.heights))
    # With both corners inside, the last pixel is width - 1; one more pixel is rounding in the annotation.
    over = (boxes[:, :2] < -1).any(1) | (boxes[:, 2] > widths) | (boxes[:, 3] > heights)
    rows = np.flatnonzero(sound)[over]
    yield from (columns.describe("box_overhang", int(row)) for row in rows)
    areas = np.frombuffer(columns.areas, dtype=np.float32)
    for row in np.flatnonzero(~hurt & ~((areas >= 0) & np.isfinite(areas))):
        problem = columns.describe("bad_area", int(row))
        yield Problem(problem.kind, problem.file, problem.where, f"area {areas[row]:g}")
    if columns.grounded:
        counts = np.diff(np.frombuffer(columns.span_ends, dtype=np.int64), prepend=0)
        yield from (columns.describe("no_phrase", int(row)) for row in np.flatnonzero(~hurt & (counts == 0)))


def _check_names(file: str, names: Mapping[int, str]) -> Iterator[Problem]:
    """Names, by category id, that no caption can tell apart or that no box can be found by."""
    first: dict[str, int] = {}
    for category, name in names.items():
        cleaned = clean_name(name).strip().lower()
        if not any(letter.isalnum() for letter in cleaned):
            yield Problem("empty_name", file, f"category {category}", repr(name))
        elif (other := first.setdefault(cleaned, category)) != category:
            yield Problem("duplicate_name", file, f"category {category}", f"{name!r}, as of category {other}")


def _check_tsv(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """What can be wrong between the files of a TSV set."""
    labels, pictures = TsvFiles(parts["label"], True), TsvFiles(parts["img"], False)
    if parts["linelist"]:
        wanted = read_line_list(parts["linelist"], labels.first)
        for line in np.flatnonzero((wanted < 0) | (wanted >= len(labels))):
            detail = f"row {wanted[line]} of {len(labels)}"
            yield Problem("unreadable", str(parts["linelist"]), f"line {line + 1}", detail)
    if parts["imageid2idx"]:
        return
    for number, file, line, content in labels.rows():
        if number >= len(pictures):
            break
        path, offset, length = pictures.place(number)
        with open(path, "rb") as handle:
            handle.seek(offset)
            found = handle.read(min(length, 1024)).split(b"\t", 1)[0]
        expected = content.split(b"\t", 1)[0]
        if found != expected:
            detail = f"key {expected[:60]!r}, but {found[:60]!r} in {path}"
            yield Problem("key_mismatch", file, f"line {line + 1}", detail)


def _check_images(
    columns: Columns,
    load: Callable[[ImageRef], ImageRef] | None,
    decode: bool,
    threads: int | None,
    checked: dict[ImageRef, Any],
) -> Iterator[Problem]:
    """What is wrong with pictures. One that several entries name is opened once."""
    refs = [ImageRef(*place) for place in zip(columns.paths, columns.offsets, columns.lengths, strict=True)]
    checked.update(examine_images((ref for ref in refs if ref not in checked), decode, threads, load))
    for row, (image_id, ref) in enumerate(zip(columns.index, refs, strict=True)):
        size = checked[ref]
        where = f"image {image_id!r}, {ref}"
        annotated = (columns.widths[row], columns.heights[row])
        if isinstance(size, Exception):
            kind = "missing_image" if isinstance(size, FileNotFoundError) else "broken_image"
            yield Problem(kind, columns.file, where, str(size))
        elif size != annotated:
            detail = f"it has {size[0]} x {size[1]} pixels, annotated are {annotated[0]} x {annotated[1]}"
            yield Problem("wrong_size", columns.file, where, detail)


def _check_captions(columns: Columns, tokenizer: Any, limit: int) -> Iterator[Problem]:
    """Captions that are cut, and phrases that go with what is cut off."""
    if not columns.grounded:
        return
    ends = np.frombuffer(columns.span_ends, dtype=np.int64)
    owners = np.frombuffer(columns.ann_images, dtype=np.int64)
    for row, (image_id, caption) in enumerate(zip(columns.index, columns.captions, strict=True)):
        if len(caption) < limit - 2:  # a token has at least one character
            continue
        tokens = len(tokenizer(caption, truncation=False, verbose=False)["input_ids"])
        if tokens <= limit:
            continue
        detail = f"{tokens} tokens, {limit} fit: {clean_name(caption)[:60]!r}..."
        yield Problem("caption_too_long", columns.file, f"image {image_id!r}", detail)
        offsets = tokenizer(caption, truncation=True, max_length=limit, verbose=False).encodings[0].offsets
        for annotation in np.flatnonzero(owners == row):
            flat = columns.spans[(ends[annotation - 1] if annotation else 0) : ends[annotation]].tolist()
            spans = list(zip(flat[::2], flat[1::2], strict=True))
            if spans and not positive_map(offsets, [spans]).any():
                yield columns.describe("phrase_truncated", int(annotation))
