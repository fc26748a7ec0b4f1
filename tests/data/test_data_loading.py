"""Loader processes end with their run, whatever they are doing."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fresh import BEGIN
from torch.utils.data import Dataset

from glip_hf.data import loading
from glip_hf.data.loading import read_batches


class Numbers(Dataset):
    """0, 1, 2, ...: `hangs` never comes, `fails` is an error."""

    def __init__(self, hangs: int = -1, fails: int = -1, none: int = -1) -> None:
        self.hangs, self.fails, self.none = hangs, fails, none

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor | None:
        if index == self.hangs:
            time.sleep(1000)
        if index == self.fails:
            raise ValueError(f"number {index} is broken")
        return None if index == self.none else torch.tensor(index)


@pytest.fixture(autouse=True)
def no_worker_stays():
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("hangs", [-1, 5])
def test_closing_ends_the_workers(hangs: int, persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PATIENCE", 0.3)
    batches = read_batches(Numbers(hangs), 2, batch_size=None, persistent_workers=persistent)
    assert [int(next(batches)) for _ in range(3)] == [0, 1, 2]
    workers = multiprocessing.active_children()
    os.kill(workers[0].pid, signal.SIGTERM)  # as schedulers send it to everyone: it goes on
    if hangs < 0:
        assert int(next(batches)) == 3
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 2
    assert not any(worker.is_alive() for worker in workers)


def test_a_worker_may_end_by_itself_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = multiprocessing.get_context("fork").Process(target=int)
    worker.start()
    worker.join()
    monkeypatch.setattr(worker, "is_alive", lambda: True)  # as it was a moment ago
    loading._end_workers(SimpleNamespace(_workers=[worker], _shutdown_workers=lambda: None))
    assert worker.exitcode == 0


def test_an_error_ends_the_workers() -> None:
    with pytest.raises(ValueError, match="number 3 is broken"):
        list(read_batches(Numbers(fails=3), 2, batch_size=None))


def test_a_dead_worker_is_an_error() -> None:
    batches = read_batches(Numbers(hangs=9), 2, batch_size=None)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)


class Large(Dataset):
    """Batches for which there is no shared memory."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return torch.zeros(100_000)


def test_full_shared_memory_is_an_error(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(read_batches(Large(), 1, batch_size=None, multiprocessing_context="fork"))  # its stderr is ours
    assert "cannot hand over its batch: " in capfd.readouterr().err


@pytest.mark.slow
def test_workers_of_a_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14's way to start them: the run is not their parent."""
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("forkserver", force=True)
    batches = read_batches(Numbers(), 1, batch_size=None)
    assert int(next(batches)) == 0
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_none_is_left_out(workers: int) -> None:
    batches = read_batches(Numbers(none=1), workers, batch_size=None)
    assert [int(next(batches)) for _ in range(3)] == [0, 2, 3]
    batches.close()


def killed(method: str) -> None:
    """A run whose second worker hangs; it prints their process ids, and is killed."""
    batches = read_batches(Numbers(hangs=2), 2, batch_size=None, multiprocessing_context=method)
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")
@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_of_a_killed_process_end(method: str) -> None:
    """They hold its connections open: while they live, the other processes of the run wait for it."""
    run = [sys.executable, "-c", f"{BEGIN}from test_data_loading import killed; killed({method!r})"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), *sys.path])
    ended = subprocess.run(run, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    workers = ended.stdout.split()
    assert ended.returncode == -signal.SIGKILL
    assert len(workers) == 2
    for worker in map(int, workers):
        for _ in range(40):
            if _gone(worker):
                break
            time.sleep(0.05)
        assert _gone(worker)


def _gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
