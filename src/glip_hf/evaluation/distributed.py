# Copyright 2026 The glip_hf authors. MIT licence.
"""Several processes through accelerate, as `accelerate launch` or `torchrun` start them; one process needs nothing.

Only Python objects travel (predictions, metrics), so gloo serves on every machine and no GPU memory is used.
"""

import datetime
import os
import warnings
from typing import Any

import torch
from torch import distributed

from .._extras import require
from .._launch import follow_launcher, warn_if_alone

TIMEOUT = datetime.timedelta(hours=24)  # a process may wait long for one that has larger images
# What torchrun and accelerate set, then what MPI's launchers do (PMI, Open MPI, MVAPICH).
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start() -> tuple[int, int]:
    """This process's rank and the number of processes; joins the group the launcher describes, once.

    MPI's variables without `MASTER_ADDR`, as a batch system sets them, do not mean that processes form a group.
    """
    size = next((int(os.environ[name]) for name in SIZE if name in os.environ), 1)
    if size > 1 and "MASTER_ADDR" in os.environ and not distributed.is_initialized():
        state = require("accelerate", "eval").PartialState(cpu=True, backend="gloo", timeout=TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())
    warn_if_alone(size)
    follow_launcher()
    return world()


def world() -> tuple[int, int]:
    """Rank and number of processes, (0, 1) where nothing was started."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(value: Any) -> list[Any]:
    """`value` of every process, by rank, in every process."""
    return require("accelerate.utils", "eval").gather_object([value]) if world()[1] > 1 else [value]


def merge(own: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionaries of all processes in one, in every process; of equal keys that of the lowest rank counts."""
    return {key: value for part in reversed(gather(own)) for key, value in part.items()}


def broadcast(value: Any) -> Any:
    """The value that process 0 has."""
    return require("accelerate.utils", "eval").broadcast_object_list([value])[0] if world()[1] > 1 else value


def tell(message: str) -> None:
    """A warning, from process 0 alone."""
    if world()[0] == 0:
        warnings.warn(message, stacklevel=3)
