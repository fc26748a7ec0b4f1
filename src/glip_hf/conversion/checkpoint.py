# Copyright 2026 The glip_hf authors. MIT licence.
"""Opens an original GLIP checkpoint safely and finds the weights inside, however wrapped."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .unpickling import Inert, PickledCheckpoint, TensorRecord, UnsafePickleError

WRAPPINGS = ("model", "state_dict")
"""Keys under which files keep the weights, in the order in which they are looked for."""
EMA_WRAPPING = "model_ema"
PREFIX = "module."
"""What multi-GPU training puts before every key."""


class CheckpointError(ValueError):
    """The file is not a checkpoint that can be read, or not one that may be read."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint file and where they were found.

    Attributes:
        tensors: original key (without `prefix`) -> tensor, in the file's order. Tensors of zip
            files are mapped from the file, not read, until they are used.
        path: the file.
        wrapping: key of the dict that held the weights ("model", "state_dict", "model_ema"); None
            if bare.
        prefix: "module." (repeated as often as it was), or "".
        beside: other top-level keys of the file (optimizer, scheduler, iteration, ...), which are
            ignored.
    """

    tensors: dict[str, Tensor]
    path: Path
    wrapping: str | None
    prefix: str
    beside: tuple[str, ...] = ()

    @property
    def is_ema(self) -> bool:
        return self.wrapping == EMA_WRAPPING


def read_checkpoint(path: str | os.PathLike[str], ema: bool = False) -> Checkpoint:
    """Reads the weights of an original checkpoint without executing anything in it.

    `torch.load(weights_only=True)` comes first. Where it gives up because of harmless objects
    beside the weights (yacs, argparse, numpy), `unpickling.PickledCheckpoint` reads the file with
    an allow-list of its own.

    Args:
        path: a `.pth` (zip or legacy pickle) or a safetensors file with original keys.
        ema: take the moving average `model_ema` instead of the weights.

    Raises:
        CheckpointError: if the file is no checkpoint (HTML, empty, cut off, a directory, ...), if
            its pickle would execute code, or if the wanted weights are not in it.
    """
    path = Path(path)
    kind = _kind_of(path)
    if kind == "safetensors":
        root: Any = _read_safetensors(path)
        read = None
    else:
        root, read = _read_pickle(path, archive=kind == "zip")
    state_dict, wrapping, beside = _unwrap(root, path, ema)
    tensors = {key: _as_tensor(key, value, read, path) for key, value in state_dict.items()}
    prefix = ""
    while tensors and all(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
        prefix += PREFIX
    return Checkpoint(tensors, path, wrapping, prefix, beside)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _kind_of(path: Path) -> str:
    """Tells "zip", "legacy" and "safetensors" by content; refuses anything else by what it is."""
    if path.is_dir():
        hint = (
            " It looks converted already: use it as a model directory."
            if (path / "config.json").is_file()
            else " Give the checkpoint file itself."
        )
        raise CheckpointError(f"{path} is a directory, not a checkpoint file.{hint}")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): download it again.")
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is cut off (a zip file without its end): download it again.")
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<")):
        raise CheckpointError(
            f"{path} is a web page (HTML or XML), not a checkpoint: the download was answered with an error or a "
            "confirmation page. Fetch the file itself."
        )
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file it stands for: run `git lfs pull`.")
    if head.startswith(b"\x1f\x8b"):
        raise CheckpointError(f"{path} is gzip-compressed: unpack it first.")
    if tarfile.is_tarfile(path):
        raise CheckpointError(f"{path} is a tar archive: unpack it and give the checkpoint inside.")
    if head.startswith(b"\x80"):
        return "legacy"
    raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file; it begins with {head[:16]!r}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut off (safetensors: {error}).") from error


def _read_pickle(path: Path, archive: bool) -> tuple[Any, PickledCheckpoint | None]:
    if archive:
        with zipfile.ZipFile(path) as file:
            names = {name.rpartition("/")[2] for name in file.namelist()}
        if "constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program, not a state dict: export model.state_dict() instead."
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is a zip file, but not one that torch.save wrote (no data.pkl).")
    try:
        return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=archive), None
    except Exception as error:
        # Whatever torch dislikes, the restricted reader decides about it and explains.
        refusal = error
    try:
        reader = PickledCheckpoint(path)
    except UnsafePickleError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except Exception as error:  # a pickle can go wrong in any way
        raise CheckpointError(
            f"{path} is damaged, cut off or no checkpoint of PyTorch ({type(error).__name__}: {error}; torch says: "
            f"{str(refusal).strip()[:200]})."
        ) from error
    return reader.root, reader


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | TensorRecord)


def _unwrap(root: Any, path: Path, ema: bool) -> tuple[Mapping[str, Any], str | None, tuple[str, ...]]:
    """(state dict, key it was under, keys beside it)."""
    if not isinstance(root, Mapping):
        kind = f"an object of class {type(root).__module__}.{type(root).__qualname__}"
        remedy = " A whole pickled module cannot be read safely: save its state_dict()."
        raise CheckpointError(f"{path} holds {kind}, not a dict of weights.{remedy}")
    names = [str(key) for key in root]
    if ema:
        if EMA_WRAPPING not in root:
            raise CheckpointError(f"{path} has no {EMA_WRAPPING!r}; its top-level keys are {_shorten(names)}.")
        wrapping: str | None = EMA_WRAPPING
    else:
        wrapping = next((key for key in WRAPPINGS if key in root and not _is_tensor(root[key])), None)
    state_dict = root if wrapping is None else root[wrapping]
    where = f"{path}" if wrapping is None else f"{path}[{wrapping!r}]"
    if isinstance(state_dict, Inert):
        kind = f"{type(state_dict).__module__}.{type(state_dict).__qualname__}"
        raise CheckpointError(f"{where} is a pickled object ({kind}), not a dict of weights: save a state_dict().")
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError(f"{where} is not a dict of weights (or an empty one).")
    wrong = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and _is_tensor(value))]
    if len(wrong) == len(state_dict):
        raise CheckpointError(f"{where} holds no weights; its keys are {_shorten(wrong)}.")
    if wrong:
        raise CheckpointError(f"{where} holds entries that are no tensors: {_shorten(wrong)}.")
    beside = () if wrapping is None else tuple(name for name in names if name != wrapping)
    return state_dict, wrapping, beside


def _as_tensor(key: str, value: Any, reader: PickledCheckpoint | None, path: Path) -> Tensor:
    if isinstance(value, TensorRecord) and reader is not None:
        try:
            return reader.tensor(value)
        except Exception as error:  # damaged storages surface only here
            raise CheckpointError(f"{path} is damaged at {key} ({type(error).__name__}: {error}).") from error
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {key} is a {value.layout}, {value.dtype} tensor on {value.device}; weights must be plain dense "
            "tensors."
        )
    return value


def _shorten(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > limit else shown


__all__ = ["Checkpoint", "CheckpointError", "read_checkpoint", "sha256_of"]
