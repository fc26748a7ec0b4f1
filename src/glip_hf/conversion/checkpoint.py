# Copyright 2026 The glip_hf authors. MIT licence.
"""Reads an original GLIP checkpoint safely and finds the weights in it."""

import os
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .unpickling import MAX_PICKLE_BYTES, MAX_PICKLE_FILE, Inert, UnsafePickleError, load_pickle

# Keys under which files keep the weights, in the order in which they are looked for
WRAPPINGS = ("model", "state_dict")
EMA_WRAPPING, MMENGINE_EMA = "model_ema", "ema_state_dict"
PREFIX = "module."  # what multi-GPU training prepends to every key
MAX_TENSORS, MAX_KEY = 20_000, 500  # of GLIP-L there are 1,900, with names of at most 100 characters
OTHER_FILES = {
    b"<": "a web page (HTML or XML), not a checkpoint: the download was answered with an error or a confirmation page. "
    "Fetch the file itself.",
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for: run `git lfs pull`.",
    b"\x1f\x8b": "gzip-compressed: unpack it first.",
}


class CheckpointError(ValueError):
    """The file cannot be read as a checkpoint, or must not be."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint file and where they were found.

    Attributes:
        tensors: original key (without `prefix`) -> tensor, in the file's order. Tensors of zip files are mapped from
            the file, not read, until they are used.
        path: the file.
        wrapping: key of the dict that held the weights ("model", "state_dict", "model_ema"); None if bare.
        prefix: "module." (repeated as often as it was), or "".
        beside: other top-level keys of the file (optimizer, scheduler, iteration, ...), which are ignored.
        layout, foreign, remedy, ignored: what `layouts.locate` found: whose names the file has ("original" or "mmdet"),
            keys that are not GLIP's (in the file's names) with their shapes and the options that leave them out, and
            those that were left out.
        classes: class names that mmengine recorded in `meta["dataset_meta"]`, if any.
    """

    tensors: dict[str, Tensor]
    path: Path
    wrapping: str | None
    prefix: str
    beside: tuple[str, ...] = ()
    layout: str = "original"
    foreign: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    remedy: str = ""
    ignored: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def is_ema(self) -> bool:
        return self.wrapping == EMA_WRAPPING


def read_checkpoint(path: str | os.PathLike[str], ema: bool = False) -> Checkpoint:
    """Reads the weights of an original checkpoint without executing anything in it; see `unpickling`.

    Args:
        path: a `.pth` (zip or legacy pickle) or a safetensors file with original keys.
        ema: take the moving average `model_ema` instead of the weights.

    Raises:
        CheckpointError: if the file is not a checkpoint (HTML, empty, cut off, a directory, ...), if its pickle would
            execute code, or if the wanted weights are not in it.
    """
    path = Path(path)
    state_dict, wrapping, beside = _unwrap(root := _read(path), path, ema)
    tensors = {key: _as_tensor(key, value, path) for key, value in state_dict.items()}
    prefix = ""
    while all(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
        prefix += PREFIX
    return Checkpoint(tensors, path, wrapping, prefix, beside, classes=_classes(root))


def _kind_of(path: Path) -> str:
    """The format by content: zip, legacy or safetensors; an error that says what else it is."""
    if path.is_dir():
        hint = "Give the checkpoint file itself."
        if (path / "config.json").is_file():
            hint = "It looks converted already: use it as a model directory, or write it back (--to)."
        raise CheckpointError(f"{path} is a directory, not a checkpoint file. {hint}")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): download it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_PICKLE_BYTES:
        return "safetensors"
    for beginning, problem in OTHER_FILES.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            raise CheckpointError(f"{path} is {problem}")
    if tarfile.is_tarfile(path):
        raise CheckpointError(f"{path} is a tar archive: unpack it and give the checkpoint inside.")
    if head.startswith(b"\x80"):
        return "legacy"
    raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file; it begins with {head[:16]!r}.")


def _read(path: Path) -> Any:
    """The object in a file, tensors on the CPU."""
    kind = _kind_of(path)
    try:
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        if kind == "zip":
            _check_archive(path)
        return load_pickle(path, archive=kind == "zip")
    except CheckpointError:
        raise
    except UnsafePickleError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged file can go wrong in any way
        reason = f"{type(error).__name__}: {error}".strip()
        raise CheckpointError(
            f"{path} is damaged, cut off or not a PyTorch checkpoint ({reason:.300}): fetch it again."
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses TorchScript, which `torch.load` would run, and what is read whole and unpacks to more than it should."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    is_script = any(entry.filename.endswith("constants.pkl") for entry in entries)
    if not is_script:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is a compressed zip file, which PyTorch does not write: unpack it first.")
        for entry in entries:
            if "/data/" not in entry.filename and entry.file_size > MAX_PICKLE_FILE:
                raise CheckpointError(
                    f"{path}: {entry.filename:.100} has {entry.file_size:,} bytes, more than any history of training; "
                    "where it was made, save the weights alone: torch.save({'model': checkpoint['model']}, path)."
                )
        # By torch's own reader as well, since `torch.load` runs what that one takes for TorchScript.
        is_script = torch._C.PyTorchFileReader(os.fspath(path)).has_record("constants.pkl")
    if is_script:
        raise CheckpointError(f"{path} is a TorchScript program, not a state dict: export model.state_dict() instead.")


def verify_checksums(path: Path) -> None:
    """Raise a CheckpointError if the contents of a zip file differ from their checksums. Other formats have none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # All are 0 in files that were saved without.
        damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged:.100} differs from its checksum. Fetch the file again.")


def _classes(root: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that mmengine recorded, none if they are not there or not a list of names."""
    value: Any = root
    for key in ("meta", "dataset_meta", "classes"):
        if isinstance(value, Inert) and value.elements:  # a ConfigDict was called with its contents
            value = value.elements[0]
        value = value.get(key) if isinstance(value, Mapping) else None
    names = tuple(value) if isinstance(value, list | tuple) else ()
    valid = all(isinstance(name, str) and 0 < len(name.strip()) and len(name) <= MAX_KEY for name in names)
    return names if valid and len(names) <= MAX_TENSORS else ()


def _is_tensor(value: Any) -> bool:
    """Tensors, and stand-ins of those that are not plain and dense, which `_as_tensor` refuses."""
    return isinstance(value, Tensor) or (isinstance(value, Inert) and type(value).__module__ == "torch._utils")


def _unwrap(root: Any, path: Path, ema: bool) -> tuple[Mapping[str, Any], str | None, tuple[str, ...]]:
    """(state dict, key it was under, keys beside it)."""
    if not isinstance(root, Mapping):
        remedy = " A whole pickled module cannot be read safely: save its state_dict()."
        raise CheckpointError(f"{path} holds an object of class {_class_of(root)}, not a dict of weights.{remedy}")
    names = [str(key) for key in root]
    if ema:
        if EMA_WRAPPING not in root:
            if MMENGINE_EMA in root and "state_dict" in root:
                raise CheckpointError(
                    f"{path}: mmengine saves the moving average as 'state_dict' itself (and the weights that are not "
                    f"averaged as {MMENGINE_EMA!r}): convert without --ema."
                )
            raise CheckpointError(f"{path} has no {EMA_WRAPPING!r}; its top-level keys are {shorten(names)}.")
        wrapping: str | None = EMA_WRAPPING
    else:
        wrapping = next((key for key in WRAPPINGS if key in root and not _is_tensor(root[key])), None)
    state_dict = root if wrapping is None else root[wrapping]
    where = f"{path}" if wrapping is None else f"{path}[{wrapping!r}]"
    if isinstance(state_dict, Inert):
        kind = _class_of(state_dict)
        raise CheckpointError(f"{where} is a pickled object ({kind}), not a dict of weights: save a state_dict().")
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError(f"{where} is not a dict of weights (or an empty one).")
    wrong = [
        str(key)
        for key, value in state_dict.items()
        if not (isinstance(key, str) and len(key) <= MAX_KEY and _is_tensor(value))
    ]
    if len(wrong) == len(state_dict):
        raise CheckpointError(f"{where} holds no weights; its keys are {shorten(wrong)}.")
    if wrong:
        raise CheckpointError(f"{where} holds entries that are not tensors: {shorten(wrong)}.")
    if len(state_dict) > MAX_TENSORS:
        raise CheckpointError(f"{where} holds {len(state_dict):,} tensors, but a GLIP has at most {MAX_TENSORS:,}.")
    beside = () if wrapping is None else tuple(name for name in names if name != wrapping)
    return state_dict, wrapping, beside


def _as_tensor(key: str, value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor):
        kind = _class_of(value)
    elif value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        kind = f"{value.layout}, {value.dtype} tensor on {value.device}"
    elif value.numel() > value.untyped_storage().nbytes() // value.itemsize:
        # A stride of 0 asks for more memory than the file has bytes.
        raise CheckpointError(f"{path}: {key} of shape {list(value.shape)} exceeds its storage.")
    else:
        return value.detach()
    raise CheckpointError(f"{path}: {key} is a {kind}; weights must be plain dense tensors.")


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"[:100]


def shorten(names: Iterable[str], limit: int = 12) -> str:
    """The first names of a list, and how many there are."""
    names = [f"{name[:100]}..." if len(name) > 103 else name for name in names]
    shown = ", ".join(names[:limit]) or "none"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > limit else shown
