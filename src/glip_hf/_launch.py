# Copyright 2026 The glip_hf authors. MIT licence.
"""What the launcher asked for and what it started."""

import functools
import os
import signal
import threading
import time
import warnings
from pathlib import Path

# What torchrun and accelerate add to the environment of the processes that they start
LAUNCHED = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}

GRACE = 25.0  # seconds that a process has to save and stop after its launcher is gone; torchrun itself gives 30


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


@functools.cache
def follow_launcher() -> None:
    """End this process, started by torchrun or accelerate, when its launcher is gone: it would go on alone for ever.

    It first gets a SIGTERM, by which a training run saves and stops, and after `GRACE` seconds it is ended.
    """
    launcher = os.getppid()
    # accelerate's variables may also be a user's own, for a run that is meant to outlive its shell.
    if "TORCHELASTIC_RUN_ID" not in os.environ and not (LAUNCHED & os.environ.keys() and _is_launcher(launcher)):
        return
    # Orphans become children of process 1, which a container may also start as the launcher itself.
    orphaned = launcher == 1 and "TORCHELASTIC_RUN_ID" in os.environ and not _is_launcher(launcher)

    def watch() -> None:
        while os.getppid() == launcher and not orphaned:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_launcher(process: int) -> bool:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # not Linux
        return True
    return any(name in command for name in (b"torchrun", b"accelerate", b"torch.distributed"))


def threads_asked_for() -> int | None:
    """`OMP_NUM_THREADS`, if the user set it: accelerate and torchrun give each process one thread where it is unset.

    What tells the two apart is the environment that the launcher was started in; where the system does not show it, one
    thread under a launcher is taken for the launcher's.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text == "1" and LAUNCHED & os.environ.keys():
        try:
            launcher = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        except OSError:  # not Linux
            return None
        if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in launcher):
            return None
    return int(text) if text.isdecimal() and int(text) else None
