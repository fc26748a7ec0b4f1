# Copyright 2026 The glip_hf authors. MIT licence.
"""Loader processes that neither end before their run nor outlive it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader, Dataset

PR_SET_PDEATHSIG = 1
PATIENCE = 3.0
"""Seconds that workers have to end by themselves, all together."""


def read_batches(dataset: Dataset, num_workers: int = 0, **options: Any) -> Iterator[Any]:
    """Batches that are not None; the workers of the `DataLoader` end when this iterator or the program ends."""
    batches = iter(DataLoader(dataset, num_workers=num_workers, worker_init_fn=_follow_run, **options))
    if not num_workers:
        yield from (batch for batch in batches if batch is not None)
        return
    # At the program's end before multiprocessing's own turn, which would wait for them.
    end = Finalize(None, _end_workers, (batches,), exitpriority=10)
    try:
        yield from (batch for batch in batches if batch is not None)
    except (ConnectionError, EOFError) as error:  # PyTorch says so of those alone that die between two batches
        raise RuntimeError("DataLoader worker (one of them) died while it handed over a batch") from error
    finally:
        end()


def _follow_run(worker_id: int) -> None:
    """`worker_init_fn`: go on until the run itself stops, and not longer.

    Launchers and schedulers send SIGTERM to all processes of a group. A worker that died of it would bring down the run
    before it has saved. One that outlives a killed run would hold its connections open: the other processes would wait
    for it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # PyTorch moves a batch to shared memory in a thread whose errors are only printed: the run would wait for ever.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)
    if sys.platform == "linux":  # elsewhere the loader itself looks every few seconds
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_process().pid:  # the run died before, or the parent is a fork server, which stays
        threading.Thread(target=_end_after, args=(parent_process(),), daemon=True).start()


def _end_after(run: Any) -> None:
    run.join()
    os._exit(1)


def _end_worker(error: Exception, batch: Any) -> None:
    print(f"a loader worker cannot hand over its batch: {error}. Is shared memory (/dev/shm) full?", file=sys.stderr)
    os._exit(1)


def _end_workers(batches: Any) -> None:
    """End the workers of a loader's iterator: those that are in the middle of a sample are killed.

    PyTorch alone waits five seconds for each, and Python's exit for ever, as they ignore SIGTERM.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    # PyTorch's handler takes a worker that we kill for a failure.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
    ending = threading.Thread(target=batches._shutdown_workers, daemon=True)
    ending.start()
    ending.join(PATIENCE)
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()  # not os.kill: the thread may see it end meanwhile
            worker.join()
    ending.join(PATIENCE)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
