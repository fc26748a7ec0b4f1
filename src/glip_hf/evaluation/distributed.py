# Copyright 2026 The glip_hf authors. MIT licence.
"""Several processes, as `accelerate launch` or `torchrun` start them; everything works in one process as well.

Only Python objects travel (predictions, figures), so gloo serves on every machine and no GPU memory is used.
"""

import datetime
import os
from typing import Any

import torch
from torch import distributed

from .._launch import warn_if_alone

TIMEOUT = datetime.timedelta(hours=24)  # a process may wait long for one that has larger pictures


# What torchrun and accelerate set, then what MPI's launchers do (PMI, Open MPI, MVAPICH).
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


def _number(names: tuple[str, ...], default: int) -> int:
    """The first of these environment variables that is set; MPI's alone do not mean that processes shall meet."""
    names = names if "MASTER_ADDR" in os.environ else names[:1]
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def start() -> tuple[int, int]:
    """This process's rank and the number of processes; joins the group the launcher describes, once."""
    size = _number(SIZE, 1)
    if not distributed.is_initialized() and size > 1:
        distributed.init_process_group(
            "gloo", init_method="env://", rank=_number(RANK, 0), world_size=size, timeout=TIMEOUT
        )
        if torch.cuda.is_available():
            torch.cuda.set_device(_number(LOCAL_RANK, 0) % torch.cuda.device_count())
    warn_if_alone(size)
    return world()


def world() -> tuple[int, int]:
    """Rank and number of processes, (0, 1) where nothing was started."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(value: Any) -> list[Any]:
    """`value` of every process, by rank, in every process."""
    _, size = world()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The value that process 0 has."""
    if world()[1] == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


__all__ = ["broadcast", "gather", "start", "world"]
