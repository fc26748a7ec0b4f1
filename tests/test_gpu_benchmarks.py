# Copyright 2026 The glip_hf authors. MIT licence.
"""`benchmarks/gpu.sh` and what only it needs: its steps, their limits and failures, without a GPU."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device_parity, harness, latency
from benchmarks.launches import Launches

ROOT = Path(__file__).resolve().parents[1]

RECORDER = """#!/usr/bin/env bash
[ "$1" = -c ] && exit 0 # is there a GPU?
printf '%q ' "$@" >>"$RECORD"; echo >>"$RECORD"
case "$*" in *"$FAILING"*) echo "out of memory" >&2; exit 3 ;; esac
echo "seconds 0.1"
"""


@pytest.fixture
def script(tmp_path):
    """Run `gpu.sh` with a Python that records its arguments; returns the result and the recorded commands."""
    python, record = tmp_path / "python", tmp_path / "record"
    python.write_text(RECORDER)
    python.chmod(0o755)

    def run(failing: str = "nothing fails", **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        record.unlink(missing_ok=True)
        given = {"PYTHON": str(python), "RECORD": str(record), "FAILING": failing, "RESULTS": str(tmp_path / "rows")}
        result = subprocess.run(
            ["bash", str(ROOT / "benchmarks" / "gpu.sh")],
            env=os.environ | given | {"OUT": str(tmp_path / "out")} | variables,
            capture_output=True,
            text=True,
        )
        lines = record.read_text().splitlines() if record.exists() else []
        return result, [shlex.split(line) for line in lines]

    return run


def test_every_step_runs_and_is_told(script) -> None:
    result, commands = script()
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("failed or left out: none")
    cases = {
        (command[command.index("--case") + 1], "bfloat16" in command) for command in commands if "--case" in command
    }
    assert cases == {("three", False), ("three", True), ("coco80", False), ("coco80", True), ("lvis", True)}
    assert [command[command.index("--compile") + 1] for command in commands if "--compile" in command] == [
        "default",
        "reduce-overhead",
    ]
    assert any("benchmarks/device_parity.py" in command for command in commands)
    assert sum("benchmarks/training.py" in command for command in commands) == 2


def test_a_failure_is_named_and_the_rest_runs(script) -> None:
    whole = len(script()[1])
    result, commands = script(failing="lvis")
    assert result.returncode == 1 and len(commands) == whole
    assert "FAILED" in result.stdout and "out of memory" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("failed or left out: lvis-bfloat16")


def test_what_does_not_fit_is_left_out_and_named(script) -> None:
    result, commands = script(LIMIT="25")
    assert result.returncode == 1 and "left out, 2" in result.stdout
    names = result.stdout.splitlines()[-1].split(": ")[1].split()
    assert "coco80-compiled" in names and "three-float32" not in names
    assert not any("--compile" in command for command in commands)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do() -> None:
    result = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh")],
        env=os.environ | {"PYTHON": sys.executable, "TRY": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "TRY=1" in result.stderr


class ParsedError(Exception):
    """Raised in place of loading a model."""


def test_every_command_has_known_options(script, monkeypatch) -> None:
    def refuse(_arguments):
        raise ParsedError

    monkeypatch.setattr(harness, "load_model", refuse)
    threads = torch.get_num_threads()
    for command in script()[1]:
        if command[0] == "-m":
            assert command[1] == "pytest" and (ROOT / command[-1]).is_file()
            continue
        with pytest.raises(ParsedError):
            importlib.import_module(f"benchmarks.{Path(command[0]).stem}").main(command[1:])
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_command_runs_with_a_tiny_model(script, tmp_path) -> None:
    threads = torch.get_num_threads()
    commands = script(TRY="1")[1]
    assert len(commands) == 9
    for command in commands[1:]:
        importlib.import_module(f"benchmarks.{Path(command[0]).stem}").main(command[1:])
    torch.set_num_threads(threads)
    assert sorted(file.name for file in (tmp_path / "rows").iterdir()) == [
        "device_parity.csv",
        "latency.csv",
        "training.csv",
    ]


def test_device_parity(tmp_path, capsys) -> None:
    threads = torch.get_num_threads()
    device_parity.main(["--tiny", "--threads", "1", "--size", "64", "96", "--tokens", "9", "--results", str(tmp_path)])
    torch.set_num_threads(threads)
    printed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert "fusion=cpu_fusion" in printed["forms"]
    assert float(printed["float32_plain_logits_max"]) == 0 and float(printed["training_plain_gradient_difference"]) == 0
    assert 0 < float(printed["float32_logits_max"]) < 1e-4 and 0 < float(printed["training_gradient_difference"]) < 1e-4
    assert 1e-4 < float(printed["bfloat16_logits_max"]) < 1
    assert 1e-4 < float(printed["autocast_gradient_difference"]) < 0.3


def test_a_graph_needs_a_gpu_and_one_caption(capsys) -> None:
    for options in (["--device", "cpu"], ["--device", "cuda", "--case", "lvis"]):
        with pytest.raises(SystemExit):
            latency.main(["--tiny", "--graph", *options])
        assert "give --device cuda and one caption" in capsys.readouterr().err


def test_values_that_do_not_exist_are_stood_in_for() -> None:
    """On the meta device nothing has a value: what reads one is counted and goes on."""
    x = torch.empty(4, 5, device="meta")
    with Launches() as seen:
        assert not bool((x > 0).any())
        assert x[x > 0].shape == (3,) and (x > 0).nonzero().shape == (3, 2)
        x[x[:, 0] > 0] = torch.zeros(5, device="meta")  # of one number, PyTorch 2.15 makes a masked_fill
    assert seen.waits == {"_local_scalar_dense": 1, "index": 1, "nonzero": 1, "index_put_": 1}
    assert seen.names["gt"] == 4 and "select" not in seen.names
