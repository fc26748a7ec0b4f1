# Copyright 2026 The glip_hf authors. MIT licence.
"""Two processes of `accelerate launch examples/evaluate.py`: each image once, equal metrics, kill and resume."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from accelerate import PartialState
from eval_cases import evaluate
from scene_sets import (
    BENCHMARKS,
    IDS,
    ODINW_SETS,
    assert_each_once,
    assert_same_predictions,
    command,
    environment,
    image_sizes,
    launch,
    launcher,
    stored,
    write_scenes,
)

from glip_hf.demo import demo_model, demo_processor
from glip_hf.evaluation import distributed

# One benchmark with every chunk size: all that fit, 40, and 5.
OPTIONS = {"coco": [], "lvis": ["--chunk-size", "40"], "flickr": [], "refcoco": [], "odinw": ["--chunk-size", "5"]}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    demo_model().save_pretrained(folder)
    demo_processor(shortest_edge=96).save_pretrained(folder)
    return str(folder)


def figures(output):
    """Every number that metrics.json holds, of data sets as well."""
    metrics = json.loads((output / "metrics.json").read_text())
    found = {name: value for name, value in metrics.items() if isinstance(value, float)}
    for name, of_set in metrics.get("sets", {}).items():
        found |= {f"{name}/{key}": value for key, value in of_set.items()}
    return found, metrics["run"]


@pytest.mark.parametrize(
    "benchmark", [pytest.param(name, marks=[] if name == "lvis" else pytest.mark.slow) for name in BENCHMARKS]
)
def test_two_processes_equal_one(benchmark, scenes, model, tmp_path):
    """Batch 3 in two processes against batch 1 in this one, over an odd number of images."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert evaluate(command(benchmark, scenes, model, one, *OPTIONS[benchmark])) == 0
    launch(2, command(benchmark, scenes, model, two, "--batch-size", "3", *OPTIONS[benchmark]))
    sets = ODINW_SETS if benchmark == "odinw" else {"": IDS}
    if benchmark == "refcoco":
        sets = {"": [f"{image_id}.png" for image_id in IDS]}
    for name, ids in sets.items():
        assert_each_once(two / name, ids, 2)
        (alone,) = stored(one / name)
        together = [prediction for share in stored(two / name) for prediction in share]
        assert_same_predictions(together, alone, image_sizes(scenes))
    expected, run_of_one = figures(one)
    found, run_of_two = figures(two)
    assert (run_of_one["processes"], run_of_two["processes"]) == (1, 2)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(found) >= 8


@pytest.mark.slow
def test_kill_and_resume(scenes, model, tmp_path):
    """Both processes and their launcher die in the middle; a second launch computes what is missing, no more."""
    arguments = command("coco", scenes, model, tmp_path / "run", "--chunk-size", "1")
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen([*launcher(2), *arguments], env=environment(), stdout=log, stderr=log)
    until = time.monotonic() + 300
    while not all(lines := read_lines(tmp_path / "run")) or len(lines) < 2:
        if process.poll() is not None or time.monotonic() > until:
            break
        time.sleep(0.005)
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait(timeout=60)
    before = read_lines(tmp_path / "run")
    assert 2 <= sum(map(len, before)) < len(IDS), (tmp_path / "log.txt").read_text()

    launch(2, arguments)
    after = read_lines(tmp_path / "run")
    for kept, now in zip(before, after):
        assert now[: len(kept)] == kept
    assert_each_once(tmp_path / "run", IDS, 2)
    assert evaluate(command("coco", scenes, model, tmp_path / "whole", "--chunk-size", "1")) == 0
    found = [prediction for share in stored(tmp_path / "run") for prediction in share]
    assert_same_predictions(found, stored(tmp_path / "whole")[0], image_sizes(scenes))
    assert figures(tmp_path / "run")[0] == pytest.approx(figures(tmp_path / "whole")[0], abs=1e-6)


@pytest.mark.slow
def test_kills_at_random_moments(scenes, model, tmp_path):
    """Of one process, wherever it is: the end is that of a run nobody disturbed, to the bit."""
    random = np.random.default_rng(0)
    arguments = command("coco", scenes, model, tmp_path / "killed", "--chunk-size", "8")
    evaluate_apart = [sys.executable, "-m", "glip_hf.cli", "evaluate"]
    whole = command("coco", scenes, model, tmp_path / "whole", "--chunk-size", "8")
    begin = time.monotonic()
    subprocess.run([*evaluate_apart, *whole], check=True, env=environment(), capture_output=True)
    needed = time.monotonic() - begin
    for _ in range(3):
        process = subprocess.Popen([*evaluate_apart, *arguments], env=environment(), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=needed * random.uniform(0.2, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*evaluate_apart, *arguments], check=True, env=environment(), capture_output=True)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def assert_same_end(one, other):
    """Every file that does not say when, where and how it was made."""
    for name in ("predictions.json", "per_class.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    first, second = (json.loads((output / "metrics.json").read_text()) for output in (one, other))
    assert first | {"run": None} == second | {"run": None}


def read_lines(output):
    """Whole lines of each process's file."""
    files = sorted((output / "partial").glob("part-*.jsonl"))
    return [[line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] for path in files]


# -- what launchers tell their processes -----------------------------------------------------------


LAUNCHER_VARIABLES = (
    *distributed.SIZE,
    *("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"),
    *("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@pytest.fixture
def plain(monkeypatch):
    """An environment without a launcher's variables, which is restored whatever accelerate adds to it."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    PartialState._reset_state()
    yield monkeypatch
    PartialState._reset_state()


def test_accelerate_on_cpus_without_mpi_is_told(plain, recwarn):
    """`accelerate launch --cpu --num_processes 2` starts one process: it says so, not half of the figures twice."""
    assert distributed.start() == (0, 1)
    assert not recwarn
    plain.setenv("ACCELERATE_USE_CPU", "True")
    assert distributed.start() == (0, 1)
    assert not recwarn  # one process was asked for
    plain.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(UserWarning, match="single process.*--multi_gpu --num_processes"):
        assert distributed.start() == (0, 1)


@pytest.mark.parametrize("names", [("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")])
def test_mpi_launchers(plain, monkeypatch, names):
    """`accelerate launch --cpu --mpirun_hostfile`: rank and size come in MPI's variables, with accelerate's address."""
    joined = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: joined.update(k))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    for name, value in zip(names, "15"):
        plain.setenv(name, value)
    distributed.start()
    assert not joined  # a batch system's MPI without an address: every process on its own
    plain.setenv("MASTER_ADDR", "127.0.0.1")
    distributed.start()
    assert (joined["rank"], joined["world_size"], joined["backend"]) == (1, 5, "gloo")
