# Copyright 2026 The glip_hf authors. MIT licence.
"""TSV sets (Objects365 and others): tab-separated rows of base64 images and JSON labels.

Files of the set correspond row by row. A *composite* set has several files per part; its rows are numbered
consecutively, and a line list of two columns gives (file, row in it). The id of an image is the key of its row if that
is an integer and there is one label file, else the number of the row.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..._extras import load_yaml
from ...values_glip import quote
from ..cache import TableWriter, convert_once
from ..columns import Columns, Tally
from ..records import ImageRef
from .base import Captions, Source, find_path

CHUNK_ROWS = 20_000


class TsvFiles:
    """A part of a set: one or several TSV files whose rows are numbered consecutively."""

    def __init__(self, paths: list[Path], make_index: bool) -> None:
        self.paths = paths
        self.offsets = [line_index(path, make_index) for path in paths]
        self.first = np.cumsum([0, *(len(offsets) for offsets in self.offsets)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, row: int) -> tuple[str, int, int]:
        """File, byte offset and length of a row; an IndexError if there are not so many."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self.paths[0]}")
        part = int(np.searchsorted(self.first, row, side="right")) - 1
        path, offsets, row = self.paths[part], self.offsets[part], row - self.first[part]
        end = offsets[row + 1] if row + 1 < len(offsets) else path.stat().st_size
        return str(path), int(offsets[row]), int(end - offsets[row])

    def key(self, row: int) -> bytes:
        """First column of a row."""
        path, offset, length = self.locate(row)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(min(length, 4096)).split(b"\t", 1)[0]

    def rows(self) -> Iterator[tuple[int, str, int, bytes]]:
        """All rows in order: number, file, line in it, and the bytes."""
        number = 0
        for path in self.paths:
            with open(path, "rb") as file:
                for line, content in enumerate(file):
                    yield number, str(path), line, content.rstrip(b"\r\n")
                    number += 1


def line_index(path: Path, make: bool = True) -> np.ndarray:
    """Byte offset of every row, from the `.lineidx` beside the file: [rows] int64.

    A missing one is computed by reading the file once if `make` allows (and not written: the data may be read-only).

    Raises:
        FileNotFoundError: if it is missing and may not be computed.
    """
    index = path.with_suffix(".lineidx")
    if index.is_file():
        try:
            return np.array(index.read_text().split(), dtype=np.int64)
        except ValueError:
            raise ValueError(f"{index} is not a list of byte offsets, one per row of {path.name}.") from None
    if not make:
        raise FileNotFoundError(f"{path} needs its index {index.name} beside it (a byte offset per row).")
    with open(path, "rb") as file:
        ends = np.cumsum([0, *(len(line) for line in file)], dtype=np.int64)
    return ends[:-1]


def load_tsv_yaml(path: str | Path) -> dict[str, Any]:
    """A set's YAML with resolved paths: `img`, `label`, `hw` lists of files, `linelist`, `labelmap`, `imageid2idx`
    single files (None where absent), `composite` a bool.

    Raises:
        ValueError, FileNotFoundError: for missing entries and files.
    """
    path = Path(path)
    content = load_yaml(path)
    if not isinstance(content, Mapping) or not {"img", "label"} <= set(content):
        raise ValueError(f"{path}: a TSV set's YAML names at least 'img' and 'label'.")

    def find(value: Any) -> Path:
        for candidate in (Path(str(value)), path.parent / str(value)):
            if candidate.is_file():
                return candidate.absolute()
        raise FileNotFoundError(f"{path}: there is no {str(value)!r}, here or beside the YAML.")

    labelmap = content.get("labelmap") or content.get("jsondict")
    if not labelmap:
        raise ValueError(f"{path}: 'labelmap' (or 'jsondict') is missing: the class names are needed.")
    composite = bool(content.get("composite", False))
    found: dict[str, Any] = {"composite": composite, "hw": None, "labelmap": find(labelmap)}
    for key in ("img", "label", "hw"):
        if (value := content.get(key)) is not None:
            if composite and not isinstance(value, list) and Path(str(value)).suffix != ".tsv":
                value = find(value).read_text().split()  # a text file that lists the parts
            found[key] = [find(part) for part in (value if isinstance(value, list) else [value])]
    return found | {key: find(content[key]) if content.get(key) else None for key in ("linelist", "imageid2idx")}


def load_labelmap(path: Path) -> dict[str, int]:
    """Class name -> index: JSON `{name: index}` or `{"label_to_idx": ...}`, else text, a name per line from 1 on."""
    if "json" not in path.name:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("label_to_idx", content)
        return {name: int(index) for name, index in content.items() if name != "__background__"}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON object of numbers by class name ({error}).") from None


def read_tsv(
    yaml_file: str | Path,
    name: str | None = None,
    *,
    drop_empty: bool = False,
    captions: Captions = "sampled",
    strict: bool = False,
    data_root: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Source:
    """A detection set in the TSV files that a YAML lists (`load_tsv_yaml`).

    For the other arguments see `coco_file` and `CocoFile.read`; by default images without boxes stay.

    With `imageid2idx` the original reports height = width for every image, which breaks aspect-ratio batches; here
    sizes are those of the `hw` row with the image's key, or of the image itself.
    """
    yaml_file = find_path(yaml_file, data_root)
    parts = load_tsv_yaml(yaml_file)
    name = name or yaml_file.stem
    files = [p for key in ("label", "hw") for p in parts[key] or []]
    files += [parts[key] for key in ("labelmap", "linelist", "imageid2idx") if parts[key]]
    for path in parts["img"]:
        files.append(index := path.with_suffix(".lineidx"))
        if not index.is_file():
            line_index(path, make=False)  # says so
    options = {"reader": "tsv", "drop_empty": drop_empty, "strict": strict, "composite": parts["composite"]}

    def build(writer: TableWriter) -> dict[str, Any]:
        labels = load_labelmap(parts["labelmap"])
        tally = Tally()
        ids = {index: index for index in labels.values()}
        stored = []  # row numbers of the label file, in the order of the table
        for columns, numbers in parse_tsv(parts, labels):
            writer.write(columns.sound_table(tally, ids, strict=strict, by_id=False))
            stored += numbers
        if parts["linelist"]:
            writer.write_rows(_line_list(parts, np.array(stored, dtype=np.int64)))
        names: dict[int, str] = {}
        for text, index in labels.items():
            names.setdefault(index, text)
        return {"file": str(yaml_file), "names": names, "category_ids": ids, "tally": vars(tally)}

    source = Source(name, *convert_once(name, files, options, build, cache_dir), captions)
    if drop_empty:
        source = source.select([i for i, labels in enumerate(source.label_sets()) if labels])
    return source


def _line_list(parts: Mapping[str, Any], stored: np.ndarray) -> np.ndarray:
    """The row of the table for each line of the line list but damaged ones; `stored` has the label row of each."""
    first = TsvFiles(parts["label"], make_index=True).first
    position = np.full(first[-1], -1, dtype=np.int64)
    position[stored] = np.arange(len(stored))
    wanted = read_line_list(parts["linelist"], first)
    wrong = wanted[(wanted < 0) | (wanted >= len(position))]
    if len(wrong):
        raise ValueError(f"{parts['linelist']}: row {wrong[0]} was asked for, there are {len(position)}.")
    rows = position[wanted]
    return rows[rows >= 0]


def read_line_list(path: Path, first: np.ndarray) -> np.ndarray:
    """Row numbers over all files, from one column of them or two columns (file, row in it); every file's first row has
    the number in `first`."""
    columns = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    try:
        lines = np.array(columns or np.empty((0, 1)), dtype=np.int64)
        if lines.shape[1] > 2:
            raise ValueError
    except ValueError:
        raise ValueError(f"{path}: a line list has one or two integers per line.") from None
    if lines.shape[1] == 1:
        return lines[:, 0]
    if len(wrong := lines[(lines[:, 0] < 0) | (lines[:, 0] >= len(first) - 1), 0]):
        raise ValueError(f"{path}: file {wrong[0]} was asked for, there are {len(first) - 1}, counted from 0.")
    return first[lines[:, 0]] + lines[:, 1]


def parse_tsv(parts: Mapping[str, Any], labels: Mapping[str, int]) -> Iterator[tuple[Columns, list[int]]]:
    """The set in pieces of `CHUNK_ROWS` images, each with the numbers of its rows.

    Damaged rows are noted as problems of the piece and left out.
    """
    label_files, image_files = TsvFiles(parts["label"], True), TsvFiles(parts["img"], False)
    sizes = _Sizes(parts["hw"], image_files)
    image_rows = json.loads(parts["imageid2idx"].read_text()) if parts["imageid2idx"] else None
    seen: set[int] = set()
    columns, numbers = Columns(str(parts["label"][0]), xywh=False), []
    for number, file, line, content in label_files.rows():
        columns.file = file
        where, objects = f"line {line + 1}", ()
        try:
            key, text = content.decode().split("\t", 1)
            entry = json.loads(text)
            objects = entry.get("objects", ()) if isinstance(entry, Mapping) else entry
            if not isinstance(objects, list):
                given, objects = objects, ()
                raise ValueError(f"objects {quote(given)}")
            image_row = number if image_rows is None else int(image_rows[str(entry["img_id"])])
            path, offset, length = image_files.locate(image_row)
            height, width = sizes.find(number, image_row)
            # Several files may use the same keys.
            has_id = len(label_files.paths) == 1 and key.isascii() and key.removeprefix("-").isdigit()
            image_id = int(key) if has_id else number
        except LookupError as error:
            missing = f"no {error} in imageid2idx" if isinstance(error, KeyError) else str(error)
            columns.note("unknown_image", where, missing, len(objects))
            continue
        except (ValueError, TypeError, FileNotFoundError) as error:
            columns.note("unreadable", where, str(error), max(len(objects), 1))
            continue
        if image_id in seen:
            columns.note("duplicate_image", where, f"key {key}", len(objects))
            continue
        if not columns.add_image(image_id, path, width, height, offset=offset, length=length):
            columns.lost["malformed"] += len(objects)
            continue
        seen.add(image_id)
        numbers.append(number)
        try:
            sound = columns.add_boxes(
                image_id, [labels[thing["class"]] for thing in objects], [thing["rect"] for thing in objects]
            )
        except (KeyError, TypeError):
            sound = False
        for index, thing in enumerate(() if sound else objects):
            at = f"{where}, object {index}"
            if not isinstance(thing, Mapping):
                columns.note("malformed", at, quote(thing), annotations=1)
            elif not isinstance(name := thing.get("class"), str) or name not in labels:
                columns.note("unknown_category", at, quote(name), annotations=1)
            else:
                columns.add_annotation(None, image_id, labels[name], thing.get("rect"))
        if len(numbers) >= CHUNK_ROWS:
            yield columns, numbers
            columns, numbers = Columns(file, xywh=False), []
    if numbers or columns.problems:
        yield columns, numbers


class _Sizes:
    """Sizes of images: from the hw file where its row belongs to that image, else from the image."""

    def __init__(self, paths: list[Path] | None, images: TsvFiles) -> None:
        self.images = images
        self.rows = [content for *_, content in TsvFiles(paths, True).rows()] if paths else []

    def find(self, label_row: int, image_row: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        # Rows correspond by number; with imageid2idx this can be the row of the label or of the image.
        rows = dict.fromkeys((image_row, label_row))
        for row in rows:
            if row < len(self.rows):
                name, _, text = self.rows[row].decode().partition("\t")
                if len(rows) == 1 or name == self.images.key(image_row).decode():
                    return parse_size(text)
        image = ImageRef(*self.images.locate(image_row)).open()
        return image.height, image.width


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `[{"height": h, "width": w}]`, the dictionary alone, or `h w`."""
    if text.lstrip()[:1] in ("[", "{"):
        entry = json.loads(text)
        entry = entry[0] if isinstance(entry, list) else entry
        return int(entry["height"]), int(entry["width"])
    height, width = text.split()
    return int(height), int(width)
