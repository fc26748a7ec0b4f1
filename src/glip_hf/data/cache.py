# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotations turned into Arrow once, then memory-mapped by every process that reads them.

A conversion is identified by the content of its files and the options that shape it. The first process converts (the
others, also of other nodes on a shared disk, wait at a lock) and puts the finished folder in place with one rename, so
an interrupted conversion leaves nothing that looks finished.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import require
from .._writing import writing
from .columns import Tally

FORMAT_VERSION = 3
"""To be raised when the stored columns, or the meaning of one, change."""

_SAMPLE_BYTES = 1 << 20
ROWS_PER_BATCH = 1000
_MADV_DONTNEED = 4  # of <sys/mman.h> in Linux


def fingerprint(files: Sequence[str | Path], options: Mapping[str, Any]) -> str:
    """24 hexadecimal digits that change with the files or the options.

    Of a file its size, its modification time (ns), and one mebibyte each of its beginning, middle and end are hashed: a
    gigabyte need not be read to find that nothing changed.
    """
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, options], sort_keys=True, default=str).encode())
    for path in files:
        status = os.stat(path)
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        with open(path, "rb") as file:
            for start in sorted({0, status.st_size // 2, max(status.st_size - _SAMPLE_BYTES, 0)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:24]


class TableWriter:
    """Writes tables of records, one after the other, into one Arrow file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._writer, self._schema, self.rows = folder, None, None, 0

    def write(self, table: Any) -> None:
        if self._writer is None:
            datasets, arrow_writer = require("datasets"), require("datasets.arrow_writer")
            self._schema = table.schema
            self._writer = arrow_writer.ArrowWriter(
                path=str(self.folder / "records.arrow"), features=datasets.Features.from_arrow_schema(table.schema)
            )
        elif table.schema != self._schema:
            raise ValueError("Some parts have integers as image ids and some have text: make them all of one kind.")
        self.rows += len(table)
        self._writer.write_table(table, ROWS_PER_BATCH)

    def write_rows(self, rows: np.ndarray) -> None:
        """The record of each sample of the set (a line list): [samples] int64."""
        np.save(self.folder / "rows.npy", rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.finalize()


def convert_once(
    name: str,
    files: Sequence[str | Path],
    options: Mapping[str, Any],
    build: Callable[[TableWriter], dict[str, Any]],
    cache_dir: str | Path | None = None,
    is_current: Callable[[Mapping[str, Any]], bool] = lambda info: True,
) -> tuple[Any, dict[str, Any], np.ndarray | None]:
    """The converted annotations, from the cache or made now.

    Args:
        name: beginning of the folder's name, for people who look into the cache.
        files, options: everything that the conversion reads, and everything else that shapes it.
        build: writes the tables and returns what is stored beside them (JSON).
        cache_dir: default `$GLIP_DATA_CACHE`, or `glip_hf` in the cache of `datasets`.
        is_current: from what `build` returned earlier, whether its conversion may still be used.

    Returns:
        A memory-mapped `datasets.Dataset`, what `build` returned, and the line list if there is one (memory-mapped).
    """
    datasets, filelock = require("datasets"), require("filelock")
    cache_dir = cache_dir or os.environ.get("GLIP_DATA_CACHE") or f"{datasets.config.HF_DATASETS_CACHE}/glip_hf"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]
    folder = Path(cache_dir) / f"{safe}-{fingerprint(files, options)}"

    def stored() -> dict[str, Any] | None:
        if not (folder / "info.json").is_file():
            return None
        # JSON keys are text; ours are integers.
        return json.loads((folder / "info.json").read_text(), object_pairs_hook=_integer_keys)

    if (info := stored()) is None or not is_current(info):
        with writing(folder, "name another cache folder in GLIP_DATA_CACHE"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{folder}.lock"):
                if (info := stored()) is None or not is_current(info):  # another process may have converted meanwhile
                    shutil.rmtree(folder, ignore_errors=True)
                    _build(folder, build)
                    info = stored()
    rows = folder / "rows.npy"
    table = datasets.Dataset.from_file(str(folder / "records.arrow"))
    return table, info, np.load(rows, mmap_mode="r") if rows.is_file() else None


def release_pages(files: Sequence[str | Path]) -> None:
    """Take memory-mapped files out of this process's resident memory. Their pages stay in the system's cache: the next
    access finds them there. Without effect on other systems than Linux."""
    if sys.platform != "linux":
        return
    paths = {os.path.realpath(file) for file in files}
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        *fields, path = line.split(maxsplit=5)
        if path in paths and "w" not in fields[1]:  # never written to: nothing can be lost
            start, end = (int(number, 16) for number in fields[0].split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _build(folder: Path, build: Callable[[TableWriter], dict[str, Any]]) -> None:
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        writer = TableWriter(work)
        info = build(writer)
        writer.close()
        if not writer.rows:
            raise ValueError(
                f"{info['file']}: no usable image is left: {Tally(**info['tally']).describe()}. `glip check-data` "
                "names what is wrong. (In recipes, `drop_empty: false` keeps images without boxes.)"
            )
        (work / "info.json").write_text(json.dumps(info))
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _integer_keys(items: list[tuple[str, Any]]) -> dict:
    return {int(key) if key.lstrip("-").isdigit() else key: value for key, value in items}
