# Copyright 2026 The glip_hf authors. MIT licence.
"""Several processes, as `accelerate launch` or `torchrun` start them; everything works in one process as well.

Only Python objects travel (predictions, figures), so gloo serves on every machine and no GPU memory is used.
"""

import datetime
import os
from typing import Any

import torch
from torch import distributed

TIMEOUT = datetime.timedelta(hours=24)  # a process may wait long for one that has larger pictures


def start() -> tuple[int, int]:
    """This process's rank and the number of processes; joins the group the launcher describes, once."""
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
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
