# Copyright 2026 The glip_hf authors. MIT licence.
"""Folders that one run owns: a lock while it works, and a manifest of what its result follows from.

Training, evaluation and self-training leave results that take hours, in folders whose names have defaults. So a folder
that holds a run is not used again unless that run is resumed or replaced, and a run is resumed only with the same
inputs and settings. Inputs are compared by content, not by path or time: data may move, and files may change in place.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ._program import USAGE
from ._writing import replacing_text
from .values_glip import in_one_line, shown

try:
    import fcntl
except ImportError:  # Windows: nothing tells two runs in one folder apart there
    fcntl = None

MANIFEST, LOCK = "run.json", "run.lock"
FORMAT = 1  # of manifests; to be raised when the meaning of an entry changes

PACKAGES = (
    *("glip_hf", "torch", "transformers", "accelerate", "numpy", "pillow"),
    *("pycocotools", "faster-coco-eval"),
)
REMEDY = "--overwrite replaces it; or choose another --output-dir."

T = TypeVar("T")


class RunFolderError(ValueError):
    """A folder that this run may not use; the message is one line that says why, and what to do."""

    exit_code = USAGE


@dataclass
class Manifest:
    """What a run's result follows from.

    Attributes:
        kind: "training", "evaluation", ...
        settings: name -> JSON value; a resumed run needs equal ones.
        inputs: name -> digest of the content (`file_digest`), or a description and the digest; a resumed run needs
            equal digests.
        environment: versions, processes, matrix library (`environment`). A difference is reported and prevents nothing.
    """

    kind: str
    settings: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The manifest as it comes back from a JSON file."""
        return json.loads(json.dumps({"format": FORMAT, **asdict(self)}, default=str))

    @classmethod
    def from_json(cls, value: Any) -> "Manifest":
        """What `as_json` gave; a ValueError for anything else."""
        names = {"format": int, "kind": str, "settings": dict, "inputs": dict, "environment": dict}
        if not isinstance(value, dict) or value.keys() != names.keys():
            raise ValueError(f"it must have the keys {', '.join(names)} and no others")
        for name, kind in names.items():
            if not isinstance(value[name], kind):
                raise ValueError(f"{name}={shown(value[name])} must be of type {kind.__name__}")
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']}, this version of glip_hf reads {FORMAT}")
        return cls(**{name: value[name] for name in names if name != "format"})

    def differences(self, now: "Manifest") -> list[str]:
        """What forbids to go on with this run as `now`, one entry per difference."""
        before, after = self.as_json(), now.as_json()
        if before["kind"] != after["kind"]:
            return [f"the purpose {shown(before['kind'])}, this one has {shown(after['kind'])}"]
        found = []
        for name, one, other in _unequal(before["inputs"], after["inputs"]):
            (what, digest), (now_what, now_digest) = _described(one), _described(other)
            if digest != now_digest and what == now_what:
                found.append(f"{name} ({shown(what)}) of another content than this one")
            elif digest != now_digest:  # else only the description differs
                found.append(f"{name}={shown(what)}, this one has {shown(now_what)}")
        return found + [
            f"{name}={shown(one)}, this one has {shown(other)}"
            for name, one, other in _unequal(before["settings"], after["settings"])
            if (name, one) != ("run.precision", "auto")  # manifests once had that in place of what it came to
        ]

    def notes(self, now: "Manifest") -> list[str]:
        """Differences of the environment, which may move the last bits of a result."""
        unequal = _unequal(self.environment, now.environment)
        return [f"{name} {shown(one)} (now {shown(other)})" for name, one, other in unequal]


def _unequal(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _described(given: Any) -> tuple[Any, Any]:
    """What an input is called, and its digest."""
    if isinstance(given, list) and len(given) == 2:
        return given[0], given[1]
    return (None, None) if given is None else ("file", given)


# -- inputs and environment ------------------------------------------------------------------------


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, independent of its name and time; an OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sizes_digest(paths: Sequence[str | Path]) -> str:
    """SHA-256 of the names and sizes of files, -1 for missing ones: tells folders of images apart, reading none."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.path.getsize(path)
        except (OSError, ValueError):
            size = -1
        digest.update(f"{os.path.basename(path)}\0{size}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def path_digest(path: str | Path) -> str:
    """`file_digest`, or of a folder (a model) SHA-256 of the names and contents of its files but the README."""
    path = Path(path)
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".md"):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def environment(processes: int = 1, matmul: str | None = None) -> dict[str, Any]:
    """Versions, and what else may move the last bits of a result, such as `matmul`, the library of matrix products on
    CPUs (`kernels.cpu_linear.settle_library`)."""
    found: dict[str, Any] = {"python": platform.python_version(), "processes": processes, "matmul": matmul}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


# -- the folder ------------------------------------------------------------------------------------

_held: dict[Path, "FolderLock"] = {}  # locks of this process, which the operating system would give it twice


class FolderLock:
    """Exclusive use of a folder by this process, until `release` or its end, whatever ends it; a RunFolderError names
    process and machine that use the folder.

    A record lock (`fcntl.lockf`) on `run.lock`: unlike `flock` it is not inherited by the workers of a data loader, who
    may outlive a killed run for seconds, and it holds between machines that share a disk. On file systems without locks
    nothing is locked.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._file: TextIO | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            resolved = self.folder.resolve()
            if resolved in _held:
                raise RunFolderError(self._in_use(f"this process ({os.getpid()})"))
            self._file = open(self.folder / LOCK, "a+", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise RunFolderError(f"{folder} cannot be written to ({reason}): choose another output folder.") from error
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            self._file.seek(0)
            owner = " ".join(self._file.read(200).split()) or "another process"
            self._file.close()
            raise RunFolderError(self._in_use(owner)) from None
        except OSError:
            pass  # no locks on this file system: as before there were any
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._file.flush()
        _held[resolved] = self
        self._resolved = resolved

    def _in_use(self, owner: str) -> str:
        return f"{self.folder} is in use by {owner}: wait for it, stop it, or choose another output folder."

    def release(self) -> None:
        """Give the folder up; again is harmless."""
        if _held.pop(self._resolved, None) is not None and self._file is not None:
            self._file.close()


def claim(
    folder: str | Path,
    manifest: Manifest,
    made: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    remedy: str = REMEDY,
) -> tuple[FolderLock, Manifest | None]:
    """Lock a folder for a run and write the run's manifest into it; of several processes one does this (`on_main`).

    Args:
        made: glob patterns of what such a run leaves in its folder; if any is there, the folder is used.
        resume: go on with the run that is there, if it has the same settings and inputs; if none is, begin.
        overwrite: delete what is there of `made`.
        remedy: for messages, what the user can do with a folder that cannot be used.

    Returns:
        the lock, and the manifest of the run that is resumed (None for a new one).

    Raises:
        RunFolderError: if another process uses the folder; if it is used, and neither to be resumed nor to be
            overwritten; if it belongs to a run of other settings or inputs, or of another kind. Nothing has been
            changed then.
    """
    folder = Path(folder)
    lock = FolderLock(folder)
    try:
        used = sorted({str(path.relative_to(folder)) for pattern in made for path in folder.glob(pattern)})
        try:
            before = read_manifest(folder, remedy)
        except RunFolderError:
            if not overwrite:
                raise
            before = None
        different = before.differences(manifest) if before else []
        if used and not overwrite:
            names = ", ".join(used[:5])
            if not resume:
                raise RunFolderError(
                    f"{folder} holds an earlier run ({names}): --resume latest goes on with it; {remedy}"
                )
            if before is None:
                raise RunFolderError(
                    f"{folder} holds results without {MANIFEST} ({names}), of something else or an older glip_hf: no "
                    f"run goes on with them. {remedy}"
                )
            if different:
                raise RunFolderError(
                    f"{folder} holds a run with {in_one_line(different)}: give it what it began with; {remedy}"
                )
        elif before and before.kind != manifest.kind and not used:
            raise RunFolderError(f"{folder} holds a run with {different[0]}: choose another folder.")
        for name in used if overwrite else ():
            remove(folder / name)
        with replacing_text(folder / MANIFEST) as file:
            json.dump(manifest.as_json(), file, indent=1)
    except BaseException:
        lock.release()
        raise
    return lock, before if used and not overwrite else None


def read_manifest(folder: str | Path, remedy: str = REMEDY) -> Manifest | None:
    """The manifest in a folder, None if there is none; a RunFolderError if it is damaged."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is damaged ({shown(str(error))}): what the run in this folder was made with is unknown. {remedy}"
        ) from error


def remove(path: Path) -> None:
    """Delete a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def on_main(action: Callable[[], T], is_main: bool, share: Callable[[Any], Any]) -> T | None:
    """What `action` gives in the main process, None in the others; if it fails, all of them do, with the message of its
    `OSError` or `ValueError`.

    `share` gives every process the main one's value (`evaluation.distributed.broadcast`).
    """
    result, problem = None, None
    if is_main:
        try:
            result = action()
        except (OSError, ValueError) as error:
            problem = str(error)
    if (problem := share(problem)) is not None:
        raise RunFolderError(problem)
    return result
