# Copyright 2026 The glip_hf authors. MIT licence.
"""Files and directories that are written whole or not at all."""

import contextlib
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from safetensors import SafetensorError

# What the messages of PyTorch's writers contain; few say why they failed
TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "write(): fd")


class NotWrittenError(OSError):
    """A file or directory could not be written; what was there before is still there."""


@contextlib.contextmanager
def replacing(output: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path for a file or directory that replaces `output` at the end and is removed on an error; see
    `writing` for errors of the disk.

    What a link leads to is replaced, not the link; a device or a pipe is written into. No file replaces a directory.
    """
    output = given = Path(output)
    is_device = _is_device(output)
    with writing(given):
        if not is_device:
            output = Path(os.path.realpath(given))
            output.parent.mkdir(parents=True, exist_ok=True)
        place = None if is_device else output.parent
        work = Path(tempfile.mkdtemp(prefix=f".{output.name[:50]}.", suffix=".partial", dir=place))
    named = given if given.is_symlink() else output  # writers go by the suffix, which what a link leads to may not have
    new, old = work / named.name, work / f"{output.name}.old"
    try:
        with writing(given):
            yield new
            if is_device:
                number = _descriptor(output)
                with open(output if number is None else number, "wb", closefd=number is None) as file:
                    file.write(new.read_bytes())
                return
            if new.is_dir():  # of files that safetensors writes only the owner can read
                mask = os.umask(0)  # of the whole process: no thread may do so while another one does
                os.umask(mask)
                for path in new.rglob("*"):
                    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            elif output.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if output.is_dir():
                os.rename(output, old)
            try:
                os.replace(new, output)
            except OSError:
                if old.exists():
                    os.rename(old, output)
                raise
    finally:
        shutil.rmtree(work)


def _descriptor(path: Path) -> int | None:
    """The number of the open file that /dev/stdout or /dev/fd/N is: behind it may be a file with content of others."""
    name = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(str(path), str(path))
    number = name.removeprefix("/dev/fd/")
    return int(number) if number != name and number.isdecimal() else None


def _is_device(path: Path) -> bool:
    # `os.path` answers for what cannot be looked at, too, where `Path` raises.
    is_other = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    return is_other or _descriptor(path) is not None


def check_place(output: str | os.PathLike[str]) -> None:
    """A `NotWrittenError` unless `replacing` can begin where `output` is going to be: asked before hours of work, by
    making a file there."""
    output = Path(output)
    if _is_device(output):
        return
    with writing(output):
        try:
            tempfile.TemporaryFile(dir=next(path for path in output.absolute().parents if path.exists())).close()
        except FileNotFoundError:  # in /proc
            raise PermissionError(errno.EACCES, "no file can be made there") from None


@contextlib.contextmanager
def replacing_text(output: str | os.PathLike[str]) -> Iterator[TextIO]:
    """The same for a text file (UTF-8), open for writing."""
    with replacing(output) as path, open(path, "w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def patient_file(path: Path) -> Iterator[BinaryIO]:
    """A file for PyTorch's writers, which hide why a write failed or, in `torch.export.save`, abort the process: its
    first `OSError` is raised at the end."""
    with _PatientFile(io.FileIO(path, "w")) as file:
        yield file
    if file.error is not None:
        raise file.error


class _PatientFile(io.BufferedWriter):
    """Keeps the first error and drops what follows."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                super().write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:  # `close` comes here, too
        if self.error is None:
            try:
                super().flush()
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def writing(output: Path, elsewhere: str = "name another place") -> Iterator[None]:
    """Errors of the system and of the writers of PyTorch, safetensors and Pillow in the block as a `NotWrittenError`
    that names `output`, the reason and the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        message = str(error)
        foreign = isinstance(error, RuntimeError) and not any(part in message for part in TORCH_WRITER)
        if foreign or isinstance(error, FileNotFoundError | NotWrittenError):
            raise
        folder = next(folder for folder in output.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(folder).free
        # Writers of PyTorch and Pillow hide the system's reason.
        reason = getattr(error, "strerror", None) or ("No space left on device" if free < 1e6 else message)
        raise NotWrittenError(
            f"{output} cannot be written: {reason} ({free / 1e6:,.0f} MB are free there). Make room, or "
            f"{elsewhere}, and start it again; nothing is left half-written."
        ) from error
