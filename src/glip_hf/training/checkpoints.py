# Copyright 2026 The glip_hf authors. MIT licence.
"""Checkpoints of a run: written atomically, the latest few kept."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

NAME = re.compile(r"step_(\d{8})")
UNFINISHED = ".unfinished"


def find_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def resolve_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `resume` names: `latest` (None if there is none yet) or a directory.

    Raises:
        FileNotFoundError: for a directory that does not exist.
    """
    if not resume:
        return None
    if resume == "latest":
        return next(reversed(find_checkpoints(folder)), None)
    path = Path(resume)
    if not path.is_dir():
        raise FileNotFoundError(f"run.resume={resume}: no such checkpoint; 'latest' is the newest in {folder}.")
    return path


def write_checkpoint(
    folder: Path, step: int, keep: int, save: Callable[[Path], None], is_main: bool, wait: Callable[[], None]
) -> Path:
    """Write a checkpoint that is either complete or not there, whenever the run is killed, then delete the oldest.

    Args:
        keep: number of checkpoints that stay.
        save: writes this process's part into a directory; called by every process.
        is_main: whether this process renames and deletes directories.
        wait: barrier over all processes.
    """
    target = folder / f"step_{step:08d}"
    unfinished = target.with_name(target.name + UNFINISHED)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(abandoned)
        unfinished.mkdir()
    wait()
    save(unfinished)
    wait()
    if is_main:
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        for old in find_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    wait()
    return target
