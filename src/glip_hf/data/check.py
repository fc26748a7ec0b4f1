# Copyright 2026 The glip_hf authors. MIT licence.
"""One pass over data sets that names everything wrong with them, before a training run finds out."""

import inspect
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._compat import tokenize
from ..prompts_glip import MAX_TEXT_LENGTH, clean_name, positive_map
from ..values_glip import counted, quote
from .broken import examine_images
from .columns import ALLOWED_DAMAGE, DAMAGE, Columns, Problem, Tally
from .dataset import build_mixture
from .json_stream import UnreadableJson
from .records import ImageRef
from .sources import FILES, NOT_READ, find_path, require_images, resolve_spec
from .sources.base import logger as sources_logger
from .sources.coco import CocoFile, number_categories
from .sources.hub import HubData
from .sources.tsv import TsvFiles, load_labelmap, load_tsv_yaml, parse_tsv, read_line_list

KINDS = DAMAGE | {
    "wrong_size": "an image has another size than annotated",
    "turned_photo": "a photo is annotated as it is stored, not upright as its EXIF orientation shows it, and used so",
    "key_mismatch": "rows of image and label files do not belong together",
    "box_overhang": "a box reaches more than a pixel out of the image and is clipped",
    "caption_too_long": "a caption is cut at the model's limit",
    "phrase_truncated": "a phrase is cut off with the end of its caption",
    "no_phrase": "a box of a caption has no phrase",
    "bad_area": "an area is negative, infinite or NaN",
    "empty_name": "a category's name has no letter once it is cleaned",
    "duplicate_name": "two categories have the same name once it is cleaned",
}
"""Everything `check_data` finds, and what it is."""

WARNINGS = frozenset(
    {"box_overhang", "caption_too_long", "phrase_truncated", "no_phrase", "bad_area", "empty_name", "duplicate_name"}
)
"""Kinds that training copes with; all others lose something."""


@dataclass
class DataReport:
    """What `check_data` found.

    Attributes:
        counts: kind -> number of findings, also beyond what `problems` holds.
        problems: the findings, of each kind at most `max_per_kind`.
        sources: name of data set -> number of `images`, `annotations`, `images_without_boxes`.
        tallies: name of data set -> what becomes of its annotations.
        refusal: why a run with this data would not start; "" if it would.
        seconds: the check took.
    """

    max_per_kind: int = 1000
    counts: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    sources: dict[str, Counter] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    refusal: str = ""
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        """Findings that are not warnings."""
        return sum(count for kind, count in self.counts.items() if kind not in WARNINGS)

    @property
    def ok(self) -> bool:
        """Whether there are only warnings."""
        return self.errors == 0

    def add(self, problems: Problem | Iterable[Problem]) -> None:
        """Count findings, and keep them while there is room."""
        for problem in [problems] if isinstance(problems, Problem) else problems:
            self.counts[problem.kind] += 1
            if self.counts[problem.kind] <= self.max_per_kind:
                self.problems.append(problem)

    def lines(self, examples: int = 20) -> Iterator[str]:
        """The report as text, with so many examples of each kind."""
        for name, counts in self.sources.items():
            images, boxes = counted(counts["images"], "image"), counted(counts["annotations"], "annotation")
            yield f"{name}: {images}, {boxes}, {counts['images_without_boxes']:,} without boxes"
            yield f"    {self.tallies[name].describe(examples=False)}"
            yield from (f"    note: {note}" for note in self.tallies[name].notes)
        for kind in KINDS:
            if not (count := self.counts[kind]):
                continue
            yield f"{'warning' if kind in WARNINGS else 'error'}: {kind}: {count:,} ({KINDS[kind]})"
            shown = [problem for problem in self.problems if problem.kind == kind][:examples]
            yield from (f"    {p.file}: {p.where}{f': {p.detail}' if p.detail else ''}" for p in shown)
            if count > len(shown):
                yield f"    and {count - len(shown):,} more"
        yield f"No run would start: {self.refusal}" if self.refusal else "A run would start."
        numbers = {"error": self.errors, "warning": sum(self.counts.values()) - self.errors}
        yield ", ".join(counted(number, what) for what, number in numbers.items())

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "ok": self.ok,
            "starts": not self.refusal,
            "refusal": self.refusal,
            "tallies": {name: vars(tally) for name, tally in self.tallies.items()},
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
    start: Callable[[str], Any] | None = None,
    allow_damage: float = ALLOWED_DAMAGE,
) -> DataReport:
    """Examine data sets as they are in their files, then build them as a run does, with a cache of its own.

    Args:
        specs: one or several data sets, each as `build_source` takes them.
        data_root: where relative paths begin.
        images: "decode" decodes every image (each once), "header" reads headers only, which finds missing files and
            wrong sizes, "none" leaves them alone.
        tokenizer: a fast tokenizer, to find captions and phrases that are cut off; None skips that.
        max_text_length: tokens a caption may have.
        num_threads: threads that decode; default the number of cores.
        max_per_kind: findings of a kind that the report holds; all are counted.
        start: builds the data of a run, given a cache folder; default `build_mixture` of the specs.
        allow_damage: the share of the annotations of a data set that may be lost.

    Raises:
        ValueError: for specs that name no data set or format. Everything else is a finding.
    """
    specs = [specs] if isinstance(specs, str | Mapping) else specs
    report, begun = DataReport(max_per_kind), time.monotonic()
    for spec in specs:
        resolved = resolve_spec(spec)
        reader = resolved["format"]
        resolved = {key: value for key, value in resolved.items() if key not in NOT_READ}
        name = str(next((resolved[k] for k in ("name", "annotations", "task", "yaml_file") if resolved.get(k)), reader))
        counts, tally = report.sources.setdefault(name, Counter()), report.tallies.setdefault(name, Tally())
        checked: dict[ImageRef, Any] = {}
        try:
            for columns, categories, load in _pieces(reader, resolved, data_root, report):
                columns.finish(categories)
                tally.count(columns)
                report.add(_check_annotations(columns))
                counts["images"] += len(columns)
                counts["annotations"] += len(columns.ann_ids)
                owners = columns.array("ann_images")
                counts["images_without_boxes"] += len(columns) - len(np.unique(owners[owners >= 0]))
                if tokenizer is not None and columns.grounded:
                    report.add(_check_captions(columns, tokenizer, max_text_length))
                if images != "none":
                    report.add(_check_images(columns, load, images == "decode", num_threads, checked))
        except (OSError, ValueError, KeyError, TypeError) as error:
            # What stops the reading of a whole set: a missing annotation file, a YAML without its parts, ...
            report.add(Problem("unreadable", name, "data set", f"{type(error).__name__}: {error}"))
    with tempfile.TemporaryDirectory(prefix="glip-check-") as cache:
        level = sources_logger.level
        sources_logger.setLevel(logging.ERROR)  # the report has it all
        try:
            if start is None:
                mixture = build_mixture(specs, data_root, cache, length=1, allow_damage=allow_damage)
                if images != "none":
                    require_images(mixture.sources, "--images")
            else:
                start(cache)
        except (OSError, ValueError, KeyError, TypeError) as error:
            report.refusal = str(error)
        finally:
            sources_logger.setLevel(level)
    report.seconds = time.monotonic() - begun
    return report


Piece = tuple[Columns, Collection[int] | None, Callable[[ImageRef], ImageRef] | None]


def _pieces(reader: str, spec: dict[str, Any], data_root: str | Path | None, report: DataReport) -> Iterator[Piece]:
    """A data set as columns, whole or in pieces: with the known categories, and how to find an image's bytes."""
    if reader == "tsv":
        parts = load_tsv_yaml(find_path(spec["yaml_file"], spec.get("data_root", data_root)))
        labels = load_labelmap(parts["labelmap"])
        report.add(_check_tsv(parts))
        yield from ((columns, None, None) for columns, _ in parse_tsv(parts, labels))
    elif reader == "hub":
        unused = ("drop_empty", "strict", "cache_dir")
        data = HubData(**{key: value for key, value in spec.items() if key not in unused})
        columns, encoded = data.collect(), data.encoded_images()
        yield columns, data.labels, lambda ref: ImageRef(ref.path, data=encoded(ref.offset))
    elif reader in FILES:  # generated scenes have nothing to check
        known = inspect.signature(FILES[reader]).parameters
        options = {"data_root": data_root} | {key: value for key, value in spec.items() if key in known}
        file = FILES[reader](**options)
        columns, found = Columns(str(file.path), grounded=file.grounded), None
        try:
            found = file.parse(columns)
        except UnreadableJson as error:
            report.add(Problem("unreadable", str(file.path), "file", str(error)))
        yield columns, None if file.grounded else _check_categories(file, found, columns, report), None


def _check_categories(
    file: CocoFile, found: Sequence[Mapping[str, Any]] | None, columns: Columns, report: DataReport
) -> Collection[int] | None:
    """The known category ids, if there are valid ones. `found`: the file's categories, None if it breaks off."""
    if not file.categories and found is None:
        return None
    try:
        categories, names, notes = number_categories(file.categories, found, file.path, columns)
    except ValueError as error:
        report.add(Problem("malformed", str(file.path), "categories", str(error)))
        return None
    list(report.tallies.values())[-1].notes += notes
    first: dict[str, int] = {}
    for category, label in categories.items():
        where, cleaned = f"category {category}", clean_name(names[label]).strip().lower()
        if not any(letter.isalnum() for letter in cleaned):  # nothing to find a box by
            report.add(Problem("empty_name", str(file.path), where, repr(names[label])))
        elif (other := first.setdefault(cleaned, category)) != category:
            detail = f"{names[label]!r}, as of category {other}"
            report.add(Problem("duplicate_name", str(file.path), where, detail))
    return categories


def _check_annotations(columns: Columns) -> Iterator[Problem]:
    """What is wrong with annotations, by themselves and against the sizes of their images."""
    yield from columns.problems
    sound, boxes = columns.sound, columns.xyxy()
    # With both corners inside, the last pixel is width - 1; one more pixel is rounding in the annotation.
    overhang = (boxes[:, :2] < -1).any(1) | (boxes[:, 2:] > columns.limits()).any(1)
    found = columns.damage | {"box_overhang": sound & overhang, "bad_area": sound & columns.bad_areas()}
    if columns.grounded:
        found["no_phrase"] = sound & (np.diff(columns.array("span_ends"), prepend=0) == 0)
    for kind, mask in found.items():
        yield from (columns.describe(kind, int(row)) for row in np.flatnonzero(mask))


def _check_tsv(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """What can be wrong between the files of a TSV set."""
    labels, images = TsvFiles(parts["label"], True), TsvFiles(parts["img"], False)
    if parts["linelist"]:
        wanted = read_line_list(parts["linelist"], labels.first)
        for line in np.flatnonzero((wanted < 0) | (wanted >= len(labels))):
            detail = f"row {wanted[line]} of {len(labels)}"
            yield Problem("unreadable", str(parts["linelist"]), f"line {line + 1}", detail)
    if parts["imageid2idx"]:
        return
    for number, file, line, content in labels.rows():
        if number >= len(images):
            break
        found, expected = images.key(number), content.split(b"\t", 1)[0]
        if found != expected:
            detail = f"key {expected[:60]!r}, but {found[:60]!r} in {images.locate(number)[0]}"
            yield Problem("key_mismatch", file, f"line {line + 1}", detail)


def _check_images(
    columns: Columns,
    load: Callable[[ImageRef], ImageRef] | None,
    decode: bool,
    threads: int | None,
    checked: dict[ImageRef, Any],
) -> Iterator[Problem]:
    """What is wrong with images. One that several entries name is opened once."""
    refs = [ImageRef(*place) for place in zip(columns.paths, columns.offsets, columns.lengths, strict=True)]
    checked.update(examine_images((ref for ref in refs if ref not in checked), decode, threads, load))
    for row, (image_id, ref) in enumerate(zip(columns.ids, refs, strict=True)):
        sizes, annotated = checked[ref], (columns.widths[row], columns.heights[row])
        where = f"image {quote(image_id)}, {ref}"
        if isinstance(sizes, Exception):
            kind = "missing_image" if isinstance(sizes, FileNotFoundError) else "broken_image"
            yield Problem(kind, columns.file, where, str(sizes))
        elif sizes[0] != annotated:
            (width, height), stored = sizes
            detail = f"it has {width} x {height} pixels, annotated are {annotated[0]} x {annotated[1]}"
            yield Problem("turned_photo" if stored == annotated else "wrong_size", columns.file, where, detail)


def _check_captions(columns: Columns, tokenizer: Any, limit: int) -> Iterator[Problem]:
    """Captions that are cut, and phrases that go with what is cut off."""
    owners = columns.array("ann_images")
    for row, (image_id, caption) in enumerate(zip(columns.ids, columns.captions, strict=True)):
        if len(caption) < limit - 2:  # a token has at least one character
            continue
        offsets = tokenize(tokenizer, caption, truncation=False, verbose=False).encodings[0].offsets
        if len(offsets) <= limit:
            continue
        detail = f"{len(offsets)} tokens, {limit} fit: {clean_name(caption)[:60]!r}..."
        yield Problem("caption_too_long", columns.file, f"image {image_id!r}", detail)
        for annotation in np.flatnonzero(owners == row):
            spans = columns.spans_of(annotation)
            # Truncation puts [SEP] in the last place.
            if spans and not positive_map(offsets[: limit - 1], [spans]).any():
                yield columns.describe("phrase_truncated", int(annotation))
