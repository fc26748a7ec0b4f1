# Copyright 2026 The glip_hf authors. MIT licence.
"""What the launcher asked for and what it started."""

import os
import warnings


def warn_if_alone(num_processes: int) -> None:
    """Say so where `accelerate launch --cpu --num_processes N` silently started one process.

    Without MPI, accelerate's launcher for CPUs starts one whatever N; it then sets `MASTER_ADDR`, which it does not for
    N = 1.
    """
    if num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        warnings.warn(
            "this is a single process: `accelerate launch --cpu` starts several only with MPI (--mpirun_hostfile). "
            "Use `accelerate launch --multi_gpu --num_processes N`, which needs no GPU, or `torchrun`.",
            stacklevel=3,
        )
