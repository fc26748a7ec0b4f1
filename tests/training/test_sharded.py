"""Parameters in parts (FSDP2) change nothing: neither the steps, nor what is averaged, nor what is saved."""

import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_loop import IMPORTS, LAUNCH, WORKER


def test_sharded_equals_replicated(tmp_path: Path) -> None:
    for worker in (WORKER, WORKER.with_name("sharded_worker.py")):
        command = [*LAUNCH, "--num_processes", "2", str(worker), str(tmp_path / worker.stem), "schedule.max_steps=3"]
        # One library for all products: with oneDNN in backward passes the two differed by 1.2e-6, with MKL by nothing.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": IMPORTS}
        environment["NO_ONEDNN"] = "1"
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for name in ("final", "final-ema"):
        whole, parts = (load_file(tmp_path / f"{s}_worker" / name / "model.safetensors") for s in ("run", "sharded"))
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)
