"""Whatever ends a part of a run ends all of it, within seconds, with a message and an exit code."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from test_loop import IMPORTS, LAUNCH, WORKER

from glip_hf.training.checkpoints import find_checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]
LIMIT = 30
"""Seconds that a run has to end after what happens to it."""


class Started:
    """A run with two loader workers per process, in steps without end; `what` names what is to happen in step 3."""

    def __init__(self, output: Path, processes: int, **what: str) -> None:
        self.output, self.log = output, output.with_suffix(".log")
        launch = [*LAUNCH, "--num_processes", str(processes)] if processes > 1 else [sys.executable]
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": IMPORTS, "WORKERS": "2"}
        self.processes = processes
        with open(self.log, "w") as log:
            self.launcher = subprocess.Popen(
                [*launch, str(WORKER), str(output), "schedule.max_steps=100000", f"run.checkpoint_every={4}"],
                env={**os.environ, **environment, **what},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(_prepare, is_full=output.name == "full"),
            )

    def text(self) -> str:
        return self.log.read_text()

    def under_way(self) -> "Started":
        while "img/s=" not in self.text() and self.launcher.poll() is None:
            time.sleep(0.1)
        return self

    def tree(self) -> list[tuple[int, int]]:
        """(process, parent) of everything that belongs to the run, launcher included, and lives."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    command = (folder / "cmdline").read_bytes()
                    state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if str(self.output).encode() in command and state != "Z":
                    found.append((int(folder.name), int(parent)))
        return sorted(found)

    def ranks(self) -> list[int]:
        if self.processes == 1:
            return [self.launcher.pid]
        return [process for process, parent in self.tree() if parent == self.launcher.pid]

    def workers(self) -> list[int]:
        return [process for process, parent in self.tree() if parent in self.ranks()]

    def ends(self, limit: float = LIMIT) -> str:
        """What it said, once all of it has ended."""
        begun = time.monotonic()
        while self.tree():
            assert time.monotonic() - begun < limit, f"{self.tree()} of {self.launcher.pid} still run: {self.text()}"
            time.sleep(0.1)
        self.launcher.wait(LIMIT)
        return self.text()


def _prepare(is_full: bool) -> None:
    """A run obeys SIGINT, whatever this process inherited; on a full disk no file grows beyond the first checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if is_full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    made = []

    def start(processes: int, name: str = "run", **what: str) -> Started:
        made.append(Started(tmp_path / name, processes, **what))
        return made[-1]

    yield start
    for run in made:
        for process, _ in run.tree():
            os.kill(process, signal.SIGKILL)
        run.launcher.wait()


def test_an_error_of_one_process(started: Callable[..., Started]) -> None:
    """The other one waits for it in a collective operation, or in its loader."""
    text = (run := started(2, FAIL_AT="3").under_way()).ends()
    assert run.launcher.returncode == 1
    assert "run_worker: image-15 is no image" in text and "another process of this run ended" in text


def test_a_killed_process(started: Callable[..., Started]) -> None:
    """Its workers hold the connections that the other one waits on."""
    run = started(2).under_way()
    os.kill(run.ranks()[0], signal.SIGKILL)
    assert "another process of this run ended" in run.ends() and run.launcher.returncode == 1


def test_a_killed_launcher(started: Callable[..., Started]) -> None:
    run = started(2).under_way()
    os.kill(run.launcher.pid, signal.SIGKILL)
    assert "asked to stop: saved" in run.ends()
    assert find_checkpoints(run.output / "checkpoints")


def test_a_launcher_killed_at_the_start(started: Callable[..., Started]) -> None:
    """Its processes, which are importing, are orphans already when they first look."""
    run = started(2)
    while len(run.ranks()) < 2:
        time.sleep(0.05)
    os.kill(run.launcher.pid, signal.SIGKILL)
    run.ends(3 * LIMIT)  # imports included


def test_an_interruption_in_the_middle_of_a_sample(started: Callable[..., Started]) -> None:
    run = started(1, HANG_AT="3").under_way()
    time.sleep(1)
    run.launcher.send_signal(signal.SIGINT)
    assert "run_worker: interrupted" in run.ends() and run.launcher.returncode == 130


def test_a_request_to_stop_while_no_data_comes(started: Callable[..., Started]) -> None:
    run = started(1, HANG_AT="3").under_way()
    time.sleep(1)
    run.launcher.send_signal(signal.SIGTERM)
    assert "run_worker: interrupted" in run.ends() and run.launcher.returncode == 130


def test_a_killed_worker(started: Callable[..., Started]) -> None:
    run = started(1).under_way()
    os.kill(run.workers()[0], signal.SIGKILL)
    assert "run_worker: a loader process died" in run.ends() and run.launcher.returncode == 1


def test_a_full_disk(started: Callable[..., Started]) -> None:
    text = (run := started(1, "full", WORKERS="0").under_way()).ends()
    assert run.launcher.returncode == 1 and "Traceback" not in text
    assert "cannot be written: " in text and "File too large" in text
    assert not list((run.output / "checkpoints").iterdir())
