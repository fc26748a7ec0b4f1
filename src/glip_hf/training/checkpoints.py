# Copyright 2026 The glip_hf authors. MIT licence.
"""Checkpoints of a run: safetensors and JSON, complete or absent, with checksums, the latest few kept.

`step_00000002/` holds tensors as `*.safetensors`, everything else as `state.json`, and `checkpoint.json`, which is
written last: the checksum of each file and the manifest of the run. Nothing in a checkpoint is unpickled, so that one
from elsewhere cannot run code. (DeepSpeed's own part is read by PyTorch's restricted unpickler.)
"""

import importlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils import patch_environment
from pydantic import NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from .._writing import writing
from ..runs import Manifest, RunFolderError, file_digest
from ..values_glip import in_one_line, shown
from .recipe import Section

NAME = re.compile(r"step_(\d{8,})")
UNFINISHED = ".unfinished"
MANIFEST, STATE = "checkpoint.json", "state.json"
LARGEST_JSON = 256 << 20
"""Bytes. A run's history takes a kilobyte per evaluation."""

OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""


class CheckpointError(RunFolderError):
    """A checkpoint that cannot be resumed; the message is one line that says what is wrong with it."""


class CheckpointManifest(Section):
    """`checkpoint.json`.

    Attributes:
        number: of the checkpoint among those written to its folder. A run that goes back writes later checkpoints of
            earlier steps.
        files: name -> SHA-256.
        run: the manifest of the run (`runs.Manifest.as_json`).
    """

    format: Literal[1] = 1
    step: NonNegativeInt
    number: NonNegativeInt
    files: dict[str, str]
    run: dict[str, Any]


Model = TypeVar("Model", bound=Section)


# -- finding ---------------------------------------------------------------------------------------


def find_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, in the order in which they were written; last those whose manifest cannot be read."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
    numbers = {path: _number(path) for path in found}
    return sorted(found, key=lambda path: (math.inf if numbers[path] is None else numbers[path], path.name))


def _number(path: Path) -> int | None:
    try:
        return read_manifest(path).number
    except CheckpointError:
        return None


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint; a CheckpointError if it is missing or damaged."""
    if not (path / MANIFEST).exists():
        older = " (an older glip_hf wrote it)" if any(path.glob("custom_checkpoint_*.pkl")) else ""
        raise CheckpointError(f"the directory has no {MANIFEST}{older}")
    manifest = read_json(path / MANIFEST, CheckpointManifest)
    if (name := NAME.fullmatch(path.name)) and int(name[1]) != manifest.step:
        raise CheckpointError(f"{MANIFEST} is of step {manifest.step}")
    return manifest


def verify(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint whose files are all as they were written; else a CheckpointError that names one."""
    manifest = read_manifest(path)
    try:
        Manifest.from_json(manifest.run)
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST}: run: {error}") from error
    if unlisted := sorted({STATE, *(file.name for file in path.glob("*.safetensors"))} - manifest.files.keys()):
        raise CheckpointError(f"{MANIFEST} does not list {shown(unlisted[0])}")
    for name, expected in manifest.files.items():
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or not (path / name).is_file():
            raise CheckpointError(f"{shown(name)} is missing")
        try:
            found = file_digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{shown(name)} cannot be read ({error.strerror})") from error
        if found != expected:
            raise CheckpointError(f"{shown(name)} has another content than was written")
    return manifest


def candidates(resume: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Whole checkpoints that `resume` stands for, best first, and what is wrong with those before them.

    Args:
        resume: `latest`, which goes back to older ones where the newest are damaged, or a directory.

    Raises:
        CheckpointError: if there are checkpoints, and none is whole; if the directory is missing or damaged.
    """
    if resume != "latest" and not Path(resume).is_dir():
        raise CheckpointError(f"run.resume={shown(resume)}: no such checkpoint; 'latest' is the newest in {folder}.")
    whole, damaged = [], []
    for path in [Path(resume)] if resume != "latest" else reversed(find_checkpoints(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            damaged.append(f"{path}: {error}")
        else:
            whole.append(path)
    if damaged and not whole:
        raise no_whole_one(damaged, folder)
    return whole, damaged


def no_whole_one(damaged: list[str], folder: Path) -> CheckpointError:
    """The error for checkpoints of which none can be resumed."""
    return CheckpointError(
        f"no checkpoint to resume: {in_one_line(damaged)}. Resume another one with run.resume=DIR (see {folder}), or "
        "start anew with run.overwrite=true (--overwrite)."
    )


# -- writing ---------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path,
    step: int,
    keep: int,
    save: Callable[[Path], None],
    is_main: bool,
    wait: Callable[[], None],
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint that is either complete or not there, whenever the run is killed, then delete the oldest.

    Args:
        keep: number of checkpoints that stay: those that were written last, whatever their steps.
        save: writes this process's part into a directory; called by every process.
        is_main: whether this process renames and deletes directories.
        wait: barrier over all processes.
        run: the manifest of the run.

    Raises:
        NotWrittenError: if the disk is full or read-only; nothing half-written is left under a checkpoint's name.
    """
    target = folder / f"step_{step:08d}"
    unfinished = target.with_name(target.name + UNFINISHED)
    if is_main:
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            for abandoned in folder.glob(f"*{UNFINISHED}"):
                shutil.rmtree(abandoned)
            unfinished.mkdir()
    wait()
    try:
        with writing(target):
            save(unfinished)
            wait()
            if is_main:
                _finish(unfinished, target, step, run or {})
    except BaseException:
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if is_main:
        numbered = [path for path in find_checkpoints(folder) if _number(path) is not None]
        for old in numbered[:-keep]:
            _remove(old)
    wait()
    return target


def _finish(unfinished: Path, target: Path, step: int, run: Mapping[str, Any]) -> None:
    """Add the manifest, and give the checkpoint its name."""
    written = sorted(path for path in unfinished.rglob("*") if path.is_file())
    files = {path.relative_to(unfinished).as_posix(): file_digest(path) for path in written}
    numbers = [number for path in find_checkpoints(target.parent) if (number := _number(path)) is not None]
    manifest = CheckpointManifest(step=step, number=max(numbers, default=-1) + 1, files=files, run=dict(run))
    write_json(unfinished / MANIFEST, manifest)
    if target.exists():
        _remove(target)
    unfinished.rename(target)


def _remove(path: Path) -> None:
    """Delete a checkpoint; killed meanwhile, it leaves what the next one clears away."""
    doomed = path.with_name(f"{path.name}.old{UNFINISHED}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def write_json(path: Path, value: Section) -> None:
    """Write what `read_json` reads; numbers come back to the last bit."""
    path.write_text(json.dumps(value.model_dump(), indent=1), encoding="utf-8")


def read_json(path: Path, kind: type[Model]) -> Model:
    """A section that `write_json` wrote.

    Raises:
        CheckpointError: for values of other types and for unknown keys.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path.name} is larger than {LARGEST_JSON:,} bytes")
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path.name}: {shown(where)}: {shown(first['msg'])}") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON ({shown(str(error))})") from error


# -- tensors ---------------------------------------------------------------------------------------


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], is_main: bool) -> None:
    """Write `NAME.safetensors`; a collective operation where tensors are sharded, and the main process writes."""
    whole = {}
    for key, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if is_main:
            whole[key] = full.detach().cpu().contiguous()
    if is_main:
        save_file(whole, folder / f"{name}.safetensors")


def read_tensors(path: Path, name: str, expected: Mapping[str, Tensor], partly: bool = False) -> dict[str, Tensor]:
    """The tensors of `NAME.safetensors`, on the CPU.

    Args:
        expected: tensors of the same names, shapes and types.
        partly: some of them may be missing.

    Raises:
        CheckpointError: naming the first tensor that is unknown, missing, or of another shape or type.
    """
    file = path / f"{name}.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file.name} cannot be read ({shown(str(error))})") from error
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{file.name} has an unknown tensor {shown(unknown[0])} ({len(unknown)} in all)")
    if not partly and (missing := sorted(expected.keys() - tensors.keys())):
        raise CheckpointError(f"{file.name} lacks the tensor {missing[0]} ({len(missing)} in all)")
    for key, value in tensors.items():
        if (value.shape, value.dtype) != (expected[key].shape, expected[key].dtype):
            found, wanted = (f"{list(x.shape)} of {x.dtype}" for x in (value, expected[key]))
            raise CheckpointError(f"{file.name}: {key} is {found}, this model has {wanted}")
    return tensors


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into one that may be sharded; a collective operation then."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What AdamW remembers as `PARAMETER:KIND`, by the names in its groups."""
    state = optimizer.state
    named = [(name, state[parameter]) for name, parameter in _named(optimizer) if parameter in state]
    return {f"{name}:{kind}": value for name, kinds in named for kind, value in kinds.items()}


def expected_optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors of the shapes and types that `optimizer_tensors` will have."""
    return {
        f"{name}:{kind}": torch.empty((), device="meta") if kind == "step" else parameter
        for name, parameter in _named(optimizer)
        for kind in OPTIMIZER_STATE
    }


def put_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore `optimizer_tensors`; parameters without any have not been updated yet."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(_named(optimizer)):
        for kind in OPTIMIZER_STATE:
            value = tensors.get(f"{name}:{kind}")
            if value is None:
                continue
            if kind != "step" and isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            state.setdefault(index, {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


# -- DeepSpeed -------------------------------------------------------------------------------------

DEEPSPEED = "deepspeed"
DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
"""What DeepSpeed's checkpoints hold besides tensors and plain values."""


@contextmanager
def restricted_unpickling() -> Iterator[None]:
    """`torch.load` with `weights_only=True` whatever its caller says, and the classes that DeepSpeed needs."""
    allowed = [
        getattr(importlib.import_module(module), name) for module, names in DEEPSPEED_CLASSES.items() for name in names
    ]
    with patch_environment(torch_force_weights_only_load="1"), torch.serialization.safe_globals(allowed):
        yield
