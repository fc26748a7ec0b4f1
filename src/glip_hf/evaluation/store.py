# Copyright 2026 The glip_hf authors. MIT licence.
"""Predictions on disk while they are made: a JSON line per image, a file per process; a killed run can resume."""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._writing import replacing, writing
from ..kernels.cpu_linear import settle_library
from ..runs import Manifest, claim, environment, on_main
from . import distributed

FOLDER = "partial"
PARTS = "part-[0-9][0-9][0-9].jsonl"
CHECKSUM = ',"crc":"%08x"}\n'
"""How a line ends: CRC-32 of what comes before. A line without it was cut, or changed since."""

CHECKSUM_BYTES = len(CHECKSUM % 0)


class PredictionStore:
    """Partial predictions of one run under `<output>/partial/`, and the run's manifest in `<output>`.

    Every process appends to a file of its own; process 0 also owns the files of processes a larger earlier run had.
    All processes have to make the store together. Until `close` no other run may use the folder.

    Args:
        output: the run's folder.
        settings, inputs: what predictions depend on (see `runs.Manifest`); those of an earlier run have to be equal.
        fresh: discard the predictions of an earlier run.

    Attributes:
        done: image id -> digest of what the image was (`input`), of all predictions that are there.
        broken: path -> reason, of images that were left out because they cannot be read.

    Raises:
        RunFolderError: if another run uses the folder, or one of other settings or inputs left it.
    """

    def __init__(
        self,
        output: str | Path,
        settings: Mapping[str, Any],
        fresh: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(output) / FOLDER
        self.rank, self.size = distributed.world()
        manifest = Manifest("evaluation", dict(settings), dict(inputs or {}), environment(self.size, settle_library()))
        made = [f"{FOLDER}/{PARTS}", "metrics.json", "predictions.json"]
        remedy = "--fresh replaces it; or choose another --output."
        claimed = on_main(
            lambda: claim(output, manifest, made, resume=True, overwrite=fresh, remedy=remedy),
            self.rank == 0,
            distributed.broadcast,
        )
        self._lock, before = claimed or (None, None)
        if before and (notes := before.notes(manifest)):
            distributed.tell(f"{output} was begun with {', '.join(notes)}: the last digits may differ")
        # The whole run takes the library of matrix products that it began with.
        settle_library(distributed.broadcast((before or manifest).environment.get("matmul")))
        self.folder.mkdir(parents=True, exist_ok=True)
        found = [_repair(path) for path in self._own_files()]
        if damaged := sum(distributed.gather(sum(count for _, count in found))):
            distributed.tell(f"{self.folder} has damaged predictions ({damaged}): they are computed again")
        known = {image_id: digest for own, _ in found for image_id, digest in own.items()}
        self.done: dict[int | str, str] = distributed.merge(known)
        self.broken: dict[str, str] = {}
        self._file = open(self._path(self.rank), "a", encoding="utf-8", newline="\n")

    def _path(self, rank: int) -> Path:
        return self.folder / f"part-{rank:03d}.jsonl"

    def _own_files(self) -> list[Path]:
        paths = [self._path(self.rank)]
        if self.rank == 0:
            paths += [path for path in sorted(self.folder.glob(PARTS)) if int(path.stem.split("-")[1]) >= self.size]
        return [path for path in paths if path.is_file()]

    def append(self, prediction: Mapping[str, Any]) -> None:
        """Write the prediction for one image; it survives a kill of the process. `input` is the digest in `done`."""
        text = json.dumps(prediction, separators=(",", ":"))[:-1]
        with writing(self._path(self.rank)):
            self._file.write(text + CHECKSUM % zlib.crc32(text.encode()))
            self._file.flush()

    def own(self) -> Iterator[dict[str, Any]]:
        """Predictions that this process owns: over all processes, every one exactly once."""
        for path in self._own_files():
            with open(path, "rb") as file:
                for line in file:
                    prediction = json.loads(line)
                    yield {name: value for name, value in prediction.items() if name not in ("input", "crc")}

    def close(self) -> None:
        """Give the folder up."""
        self._file.close()
        if self._lock is not None:
            self._lock.release()


def _repair(path: Path) -> tuple[dict[int | str, str], int]:
    """Reduce a file to its whole lines, one per image: their `done`, and how many lines were damaged.

    A last line that a kill left incomplete does not count as damaged.
    """
    done: dict[int | str, str] = {}
    kept: list[tuple[int, int]] = []  # begin and end in the file
    damaged = end = 0
    with open(path, "rb") as file:
        for line in file:
            begin, end = end, end + len(line)
            text = line[:-CHECKSUM_BYTES]
            if line[-CHECKSUM_BYTES:] != (CHECKSUM % zlib.crc32(text)).encode():
                damaged += line.endswith(b"\n")
            elif (prediction := json.loads(line))["image_id"] not in done:
                done[prediction["image_id"]] = prediction.get("input", "")
                kept.append((begin, end))
    if sum(end - begin for begin, end in kept) < end:
        with replacing(path) as new, open(new, "wb") as target, open(path, "rb") as file:
            for begin, end in kept:
                file.seek(begin)
                target.write(file.read(end - begin))
    return done, damaged
