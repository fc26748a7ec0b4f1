"""Runs in real processes: killed, stopped, with NaN, doubled."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from forked import Forked
from tensorboard.backend.event_processing import event_accumulator

from glip_hf import GlipForGrounding
from glip_hf.data import SequentialBatchSampler
from glip_hf.runs import Manifest
from glip_hf.training.batches import per_process
from glip_hf.training.checkpoints import CheckpointError, candidates, find_checkpoints, write_checkpoint
from glip_hf.training.loop import Run
from glip_hf.training.recipe import RecipeError, load_recipe

WORKER = Path(__file__).with_name("run_worker.py")
IMPORTS = os.pathsep.join([str(WORKER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
RUN = Manifest("training", {}).as_json()
# Despite its name the only option of accelerate that starts several processes on CPUs without MPI.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]


def start(output: Path, *overrides: str, processes: int = 1, **environment: str) -> subprocess.Popen | Forked:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": IMPORTS,
        **environment,
    }
    if processes == 1:
        return Forked(WORKER, [str(output), *overrides], environment)
    return subprocess.Popen(
        [*LAUNCH, "--num_processes", str(processes), str(WORKER), str(output), *overrides],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen | Forked) -> str:
    text, _ = process.communicate(timeout=300)
    return text


def run(output: Path, *overrides: str, processes: int = 1, **environment: str) -> dict[str, dict[str, torch.Tensor]]:
    process = start(output, *overrides, processes=processes, **environment)
    text = finish(process)
    assert process.returncode == 0, text
    (end,) = output.glob("end_*.pt")
    return torch.load(end)


def run_group(output: Path, *overrides: str, **environment: str) -> dict[str, dict[str, torch.Tensor]]:
    """Two processes with the environment that a launcher makes, and without its 15 seconds of imports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group = [start(output, *overrides, RANK=rank, LOCAL_RANK=rank, **environment) for rank in "01"]
    texts = [finish(process) for process in group]
    assert [process.returncode for process in group] == [0, 0], "".join(texts)
    (end,) = output.glob("end_*.pt")
    return torch.load(end)


def assert_equal(first: dict, second: dict) -> None:
    for part in ("model", "average"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("uninterrupted")
    return output, run(output)


def test_finished_run(uninterrupted: tuple[Path, dict]) -> None:
    output, _ = uninterrupted
    assert [path.name for path in find_checkpoints(output / "checkpoints")] == [
        f"step_0000000{step}" for step in (2, 4, 6)
    ]
    card = (output / "final-ema" / "README.md").read_text()
    assert "6 optimiser steps of 4 images" in card and "averaged weights" in card
    model, info = GlipForGrounding.from_pretrained(output / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.d_model == 32


@pytest.mark.parametrize("step", [3, 5])
def test_killed_and_resumed_equals_uninterrupted(uninterrupted: tuple[Path, dict], tmp_path: Path, step: int) -> None:
    killed = start(tmp_path, KILL_AT=str(step))
    finish(killed)
    assert killed.returncode == -signal.SIGKILL
    assert find_checkpoints(tmp_path / "checkpoints")
    assert_equal(run(tmp_path, "run.resume=latest", STRAY="1"), uninterrupted[1])


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """Two processes and their launcher, killed twice, also while they write a checkpoint."""
    options = ["schedule.max_steps=12", "run.checkpoint_every=1", "run.resume=latest"]
    expected = run(tmp_path / "whole", *options, processes=2)
    rng, output, step = random.Random(0), tmp_path / "killed", 0
    for _ in range(2):
        launcher = start(output, *options, processes=2)
        step += rng.randint(1, 3)
        while not list(output.glob(f"checkpoints/step_*{step}*")):
            assert launcher.poll() is None, launcher.stdout.read()
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
            process.kill()
        launcher.communicate()
    assert_equal(run(output, *options, processes=2), expected)


def test_sigterm_saves_and_exits_cleanly(uninterrupted: tuple[Path, dict], tmp_path: Path) -> None:
    process = start(tmp_path, "run.checkpoint_every=0", TERM_AT="2")
    text = finish(process)
    assert process.returncode == 0, text
    assert all(name in text for name in ("token=", "bbox=", "centerness=", "lr=", "img/s=", "GB="))
    assert "asked to stop" in text and not (tmp_path / "final").exists()
    (saved,) = find_checkpoints(tmp_path / "checkpoints")
    assert saved.name == "step_00000003"
    for end in tmp_path.glob("end_*.pt"):
        end.unlink()
    assert_equal(run(tmp_path, "run.resume=latest"), uninterrupted[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_the_launcher_reaches_the_run(tmp_path: Path, processes: int) -> None:
    """`accelerate launch` passes no signal on to a single process; of several it ends the loaders' workers too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": IMPORTS}
    launch = [*LAUNCH, "--num_processes", "2"] if processes == 2 else LAUNCH[:3]
    launcher = subprocess.Popen(
        [*launch, str(WORKER), str(tmp_path), "run.checkpoint_every=0", "schedule.max_steps=100000"],
        env=environment | {"WORKERS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in launcher.stdout:
        if "img/s=" in line:  # on its way
            break
    launcher.send_signal(signal.SIGTERM)
    text = launcher.stdout.read()  # to its end: the run holds the pipe too
    assert "asked to stop" in text, text
    assert find_checkpoints(tmp_path / "checkpoints")


def test_a_changed_order_of_samples_is_refused(uninterrupted: tuple[Path, dict]) -> None:
    output, _ = uninterrupted
    resume = f"run.resume={output / 'checkpoints' / 'step_00000002'}"
    process = start(output.with_name("other"), resume, "data.batch_size=8", "schedule.max_steps=8")
    text = finish(process)
    assert process.returncode != 0 and "data.batch_size=4, this one has 8" in text


def test_the_recipe_holds_where_the_launcher_differs(uninterrupted: tuple[Path, dict], tmp_path: Path) -> None:
    """accelerate would update the weights in every second step only, and count all of them."""
    asked = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}
    process = start(tmp_path, "run.precision=no", **asked)
    text = finish(process)
    assert process.returncode == 0, text
    assert "run.precision=no, not ACCELERATE_MIXED_PRECISION=bf16" in text
    assert "run.gradient_accumulation=1, not ACCELERATE_GRADIENT_ACCUMULATION_STEPS=2" in text
    assert_equal(torch.load(tmp_path / "end_6.pt"), uninterrupted[1])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator does what is asked for")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "the launcher asks for FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "the launcher asks for DEEPSPEED"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16 needs an accelerator"),
    ],
)
def test_what_a_cpu_would_silently_not_do_is_refused(tmp_path: Path, variable: str, value: str, message: str) -> None:
    process = start(tmp_path, **{variable: value})
    text = finish(process)
    assert process.returncode == 2 and message in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_the_precision_of_its_launcher(tmp_path: Path) -> None:
    run(tmp_path, "schedule.max_steps=2", ACCELERATE_MIXED_PRECISION="bf16")
    process = start(tmp_path, "run.resume=latest")
    text = finish(process)
    assert process.returncode != 0 and "run.precision=bf16, this one has no" in text
    manifest = Manifest.from_json(json.loads((tmp_path / "run.json").read_text()))
    before = replace(manifest, settings={**manifest.settings, "run.precision": "auto"})
    assert not before.differences(manifest), "a run of an earlier version, whose manifest says auto, goes on"


def test_a_compiled_run_saves_the_plain_model(uninterrupted: tuple[Path, dict], tmp_path: Path) -> None:
    """Names of its checkpoints, too: a run may be resumed with the compiler or without it."""
    compiled = {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "WRAP_ONLY": "1"}
    run(tmp_path, "schedule.max_steps=4", "schedule.milestones=[]", **compiled)
    (tmp_path / "end_4.pt").unlink()
    run(tmp_path, "schedule.milestones=[]", "run.resume=latest")


def test_trackers_and_schedules_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    def started(*overrides: str) -> None:
        recipe = load_recipe(None, [f"run.output_dir={tmp_path}", *overrides])
        Run(recipe, None, None, lambda accelerator: None)

    with pytest.raises(RecipeError, match="wandbb is unknown or not installed"):
        started("run.trackers=[wandbb]")
    for override in ("schedule.name=plateau", "tuning.early_stopping=2"):
        with pytest.raises(RecipeError, match="follow a validation AP"):
            started("run.evaluate_every=1", override)


def test_a_repository_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    process = start(tmp_path, "run.push_to_hub=user/a b", HF_HUB_OFFLINE="1")
    text = finish(process)
    assert process.returncode == 2 and "Traceback" not in text
    assert "run_worker: run.push_to_hub=user/a b: the repository cannot be created (Repo id must" in text
    assert "nothing was started" in text and not list(tmp_path.glob("losses_*"))


def test_nonfinite_loss_stops_with_the_batch(tmp_path: Path) -> None:
    process = start(tmp_path, NAN_AT="1", WORKERS="2")  # the workers do not hold the exit
    text = finish(process)
    assert process.returncode == 1 and "Traceback" not in text
    assert "run_worker: the loss is not finite at step 1" in text and "image-4" in text
    (saved,) = tmp_path.glob("nonfinite_*.pt")
    batch = torch.load(saved)["batch"]
    assert batch["sample_ids"][0] == "image-4" and batch["pixel_values"].isnan().any()


def test_nonfinite_loss_may_be_skipped(tmp_path: Path) -> None:
    end = run(tmp_path, "run.on_nonfinite=zero", NAN_AT="1")
    assert all(value.isfinite().all() for value in end["model"].values())


def test_nonfinite_gradient_stops_or_is_skipped(tmp_path: Path) -> None:
    process = start(tmp_path / "stop", BREAK_AT="1")
    assert "the gradient is not finite at step 1" in finish(process) and process.returncode != 0
    end = run(tmp_path / "zero", "run.on_nonfinite=zero", BREAK_AT="1")
    assert all(value.isfinite().all() for value in end["model"].values())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Losses are normalised over all processes; here one of two never sees a box."""
    options = ["schedule.max_steps=3", "run.ema_decay=0.9"]
    one = run(tmp_path / "one", *options, NO_DROPOUT="1")
    # with a tracker, whose end is also the end of what processes can say to each other
    options += ["run.trackers=[tensorboard]", "run.log_every=1"]
    two = run_group(tmp_path / "two", *options, NO_DROPOUT="1")
    (whole,) = (json.loads(path.read_text()) for path in (tmp_path / "one").glob("losses_*.json"))
    parts = [json.loads(path.read_text()) for path in sorted((tmp_path / "two").glob("losses_*.json"))]
    assert len(parts) == 2  # really two processes
    assert (tmp_path / "two" / "final" / "model.safetensors").is_file()
    assert all(step["loss_bbox"] == 0 for step in parts[1]) and all(step["loss_bbox"] > 0 for step in parts[0])
    for step, shares in zip(whole, zip(*parts), strict=True):
        for name, value in step.items():
            # The norm is that of the reduced gradient, the same on both; a loss is the mean of the two shares.
            assert sum(share[name] for share in shares) / 2 == pytest.approx(value, rel=2e-4), name
    logged = event_accumulator.EventAccumulator(str(next((tmp_path / "two").rglob("events.*")))).Reload()
    assert [event.value for event in logged.Scalars("loss")] == pytest.approx(
        [step["loss"] for step in whole], rel=2e-4
    )
    for name, value in one["model"].items():
        # Adam's first steps are sign-like: rounding of a near-zero gradient moves a weight by up to the learning rate.
        close = (value - two["model"][name]).abs() <= 1e-5
        assert close.float().mean() > 0.995, name


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    """Of the two micro-batches of a step the second has no box, and the losses' normalisers are those of both."""
    options = ["schedule.max_steps=3"]
    one = run(tmp_path / "one", *options, NO_DROPOUT="1")
    two = run(tmp_path / "two", *options, "run.gradient_accumulation=2", NO_DROPOUT="1")
    steps = [json.loads((tmp_path / name / "losses_0.json").read_text()) for name in ("one", "two")]
    for whole, parts in zip(*steps, strict=True):
        assert parts == pytest.approx(whole, rel=2e-4)
    for name, value in one["model"].items():
        close = (value - two["model"][name]).abs() <= 1e-5
        assert close.float().mean() > 0.995, name


def test_shards_are_the_parts_of_a_batch() -> None:
    samplers = [SequentialBatchSampler(6), *(SequentialBatchSampler(2, rank=r, world_size=3) for r in range(3))]
    for sampler in samplers:
        sampler.advance(5)
    whole, *shards = map(iter, samplers)
    for number in range(5, 8):
        batch = next(whole)
        assert batch == [key for shard in shards for key in next(shard)]
        assert batch == [(0, index) for index in range(6 * number, 6 * number + 6)]


def test_batch_size_must_divide() -> None:
    assert per_process(64, 2, 4) == 8
    with pytest.raises(RecipeError, match="not divisible by 3 processes"):
        per_process(64, 1, 3)


def test_checkpoints_are_whole_or_unseen(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "state.json").write_text("x")

    def broken(folder: Path) -> None:
        save(folder)
        raise KeyboardInterrupt

    def newest(resume: str) -> str:
        return candidates(resume, tmp_path)[0][0].name

    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, 2, save, True, lambda: None, RUN)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 4, 2, broken, True, lambda: None)
    assert newest("latest") == "step_00000003"
    write_checkpoint(tmp_path, 4, 2, save, True, lambda: None, RUN)
    assert not list(tmp_path.glob("*.unfinished"))
    assert candidates("latest", tmp_path / "nowhere") == ([], [])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        candidates(str(tmp_path / "step_9"), tmp_path)
