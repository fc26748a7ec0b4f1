# Copyright 2026 The glip_hf authors. MIT licence.
"""Scripts in real processes that start in milliseconds.

Importing torch, Transformers and Accelerate takes most of a short script's time (4.8 of 5.5 s of CPU time). Here a
server process imports them once for each process of pytest and forks one child for each script. The child has its own
environment, working directory and output, and ends by itself, by an exception or by a signal, as a script does. What a
fresh interpreter does differently (its imports and options) is not seen here: tests/test_lazy.py starts fresh ones.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PATHS = [TESTS.parent / "src", TESTS, TESTS.parent]
PRELOADED = [
    "no_collector",
    "glip_hf.evaluation.run",
    "glip_hf.training.finetuning",
    "glip_hf.training.loop",
    "glip_hf.training.self_training",
    "forked",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    yield
    os.environ.clear()
    os.environ.update(before)


class Forked:
    """What `subprocess.Popen` is to a command: a Python script that runs, with both its outputs in one text.

    Args:
        script: path of the script; arguments: its command line; cwd: where it runs.
        environment: its environment, whole. The number of threads is one whatever it says.
    """

    def __init__(
        self, script: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self.output = tempfile.NamedTemporaryFile(prefix="forked_", suffix=".txt")
        arguments = (str(script), list(arguments), dict(environment), str(cwd or os.getcwd()), self.output.name)
        self.process = _context.Process(target=_execute, args=arguments)
        # The server takes its imports and its number of threads from the environment in which it starts.
        with _environment(PYTHONPATH=os.pathsep.join(map(str, PATHS)), OMP_NUM_THREADS="1"):
            multiprocessing.forkserver.ensure_running()
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen` has it: None while it runs, -n after signal n."""
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Its output, once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it still runs after `timeout` seconds; it is killed.
        """
        self.process.join(timeout)
        if self.returncode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        with self.output:
            return Path(self.output.name).read_text(encoding="utf-8"), None


def run(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, timeout: float = 600
) -> subprocess.CompletedProcess:
    """The same to its end; `stdout` holds both outputs."""
    process = Forked(script, arguments, environment, cwd)
    text, _ = process.communicate(timeout)
    return subprocess.CompletedProcess([script, *arguments], process.returncode, text, "")


def _execute(script: str, arguments: list[str], environment: dict[str, str], cwd: str, output: str) -> None:
    """In the child."""
    if missing := set(PRELOADED) - set(sys.modules):
        raise RuntimeError(f"the server could not import {', '.join(sorted(missing))}")
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(descriptor, "w", encoding="utf-8", closefd=False) for descriptor in (1, 2))
    gc.freeze()  # what the server imported is kept
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    paths = [str(Path(script).parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:0] = filter(None, paths)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
