"""Parameters in parts (FSDP2) change nothing: neither the steps, nor what is averaged, nor what is saved."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import IMPORTS, LAUNCH, WORKER

SHARDED = WORKER.with_name("sharded_worker.py")


def launch(worker: Path, output: Path, steps: int) -> None:
    command = [*LAUNCH, "--num_processes", "2", str(worker), str(output), f"schedule.max_steps={steps}"]
    # One library for all products: with oneDNN in backward passes the two differed by 1.2e-6, with MKL by nothing.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": IMPORTS}
    environment["NO_ONEDNN"] = "1"
    options = ["schedule.milestones=[]", "run.resume=latest"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(3,), (2, 3)], ids=["whole", "resumed"])
def test_sharded_equals_replicated(tmp_path: Path, stops: tuple[int, ...]) -> None:
    launch(WORKER, tmp_path / "whole", 3)
    for steps in stops:
        launch(SHARDED, tmp_path / "sharded", steps)
    for name in ("final/model", "final-ema/model", "checkpoints/step_00000003/optimizer"):
        whole, parts = (load_file(tmp_path / kind / f"{name}.safetensors") for kind in ("whole", "sharded"))
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)
