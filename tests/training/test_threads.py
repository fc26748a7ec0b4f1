# Copyright 2026 The glip_hf authors. MIT licence.
"""How many threads a training process takes on a CPU: what the user asked for, not what a launcher filled in."""

import os
import subprocess
import sys

import pytest

from glip_hf._launch import threads_asked_for

LAUNCHER = """
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as accelerate and torchrun do
os.environ["TORCHELASTIC_RUN_ID"] = "none"
code = "from glip_hf._launch import threads_asked_for; print(threads_asked_for())"
print(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
"""


@pytest.mark.parametrize("value, asked", [("3", 3), ("1", 1), ("", None), ("0", None), ("many", None), ("4,2", None)])
def test_without_a_launcher(monkeypatch, value, asked) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_asked_for() == asked
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_asked_for() is None


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="shows no environments of processes")
@pytest.mark.parametrize("value", [None, "1", "3"])
def test_under_a_launcher(value) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if value is None else {"OMP_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", LAUNCHER], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(value), done.stderr
