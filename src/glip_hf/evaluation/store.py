# Copyright 2026 The glip_hf authors. MIT licence.
"""Predictions on disk while they are made: a JSON line per image, a file per process; a killed run can resume."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..runs import atomic_writer
from . import distributed

FOLDER, SETTINGS = "partial", "settings.json"


class OtherSettings(ValueError):
    """The folder holds predictions that were made with other settings."""


class PredictionStore:
    """Partial predictions of one run under `<output>/partial/`.

    Every process appends to a file of its own; process 0 also owns the files of processes a larger earlier run had.
    All processes have to make the store together.

    Args:
        output: the run's folder.
        settings: what predictions depend on (JSON); those of an earlier run have to be equal.
        fresh: discard the predictions of an earlier run.

    Raises:
        OtherSettings: naming the settings that differ.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = Path(output) / FOLDER
        self.rank, self.size = distributed.world()
        problem = None
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            problem = self._begin(json.loads(json.dumps(settings, default=str)), fresh)
        if problem := distributed.broadcast(problem):
            raise OtherSettings(problem)
        self.folder.mkdir(parents=True, exist_ok=True)  # a node of its own may lack it
        for path in self._own_files():
            _cut_broken_end(path)
        mine = [prediction["image_id"] for prediction in self.own()]
        self.done: set[int | str] = {image_id for ids in distributed.gather(mine) for image_id in ids}
        self._file = open(self._path(self.rank), "a", encoding="utf-8")

    def _begin(self, settings: dict[str, Any], fresh: bool) -> str | None:
        """Compare or write the settings; returns what is wrong, if anything."""
        path = self.folder / SETTINGS
        if fresh:
            for old in self.folder.glob("part-*.jsonl"):
                old.unlink()
            path.unlink(missing_ok=True)
        if path.is_file():
            before = json.loads(path.read_text())
            names = sorted(before.keys() | settings.keys())
            if different := [name for name in names if before.get(name) != settings.get(name)]:
                shown = ", ".join(f"{n}: {before.get(n)!r}, now {settings.get(n)!r}" for n in different)
                return (
                    f"{self.folder} holds predictions made with other settings ({shown}): choose another --output, "
                    "or start over with --fresh."
                )
        with atomic_writer(path) as file:
            json.dump(settings, file, indent=2)
        return None

    def _path(self, rank: int) -> Path:
        return self.folder / f"part-{rank:03d}.jsonl"

    def _own_files(self) -> list[Path]:
        paths = [self._path(self.rank)]
        if self.rank == 0:
            earlier = sorted(self.folder.glob("part-*.jsonl"))
            paths += [path for path in earlier if int(path.stem.split("-")[1]) >= self.size]
        return [path for path in paths if path.is_file()]

    def append(self, prediction: Mapping[str, Any]) -> None:
        """Write the prediction for one image; it survives a kill of the process."""
        self._file.write(json.dumps(prediction, separators=(",", ":")) + "\n")
        self._file.flush()

    def own(self) -> Iterator[dict[str, Any]]:
        """Predictions that this process owns: over all processes, every one exactly once."""
        for path in self._own_files():
            with open(path, encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)

    def close(self) -> None:
        self._file.close()


def _cut_broken_end(path: Path) -> None:
    """Remove a last line that a kill left incomplete."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with open(path, "r+b") as file:
            file.truncate(end)


__all__ = ["OtherSettings", "PredictionStore", "atomic_writer"]
