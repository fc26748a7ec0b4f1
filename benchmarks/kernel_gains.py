# Copyright 2026 The glip_hf authors. MIT licence.
"""The gain of each kernel in the whole model: what `kernels.py --model` measures."""

import argparse
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness, latency, training
from benchmarks.harness import Variant
from benchmarks.peak_memory import peak_memory
from glip_hf import kernels

BATCH = 2
"""Images per training step."""

TRAINING_SIZE = (480, 640)


def make_run(arguments: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, str], dict[str, Any]]:
    """A run of the model, the form that serves each of its operations, and the sizes, for the record."""
    case, model = latency.CASES[arguments.case], harness.load_model(arguments)
    height, width = arguments.size or (TRAINING_SIZE if arguments.train else case.size)
    sizes = {"case": arguments.case, "train": arguments.train, "size": f"{height}x{width}", "tokens": case.tokens[0]}
    if arguments.train:
        inputs = training.training_inputs(model.train(), height, width, BATCH, case.tokens[0])
        run = functools.partial(training.train_step, model, training.make_optimizer(model), arguments, inputs)
        return run, kernels.report(model, inputs), sizes
    model = model.to(getattr(torch, arguments.dtype))
    pixels, captions = latency.case_inputs(case, height, width, model)
    with torch.no_grad():
        forms = kernels.report(model, pixels | captions[0])
    return functools.partial(latency.run_fast, model, pixels, captions, case.max_detections), forms, sizes


def without(run: Callable[[], Any], chosen: tuple[str, ...] | None) -> Variant:
    """A run with some kernels off: those chosen, all for an empty tuple, none for None."""

    def switched() -> Any:
        with contextlib.nullcontext() if chosen is None else kernels.disable(*chosen):
            return run()

    return Variant(switched)


def served_operations(forms: dict[str, str]) -> dict[str, list[str]]:
    """The operations that each kernel serves, of those that serve any.

    Raises:
        SystemExit: if none does.
    """
    served: dict[str, list[str]] = {}
    for operation, form in forms.items():
        for name in kernels.names():
            if name in form.replace(",", " ").split():
                served.setdefault(name, []).append(operation)
    if not served:
        raise SystemExit(f"no kernel serves this model on this machine (is GLIP_KERNELS=0 set?): {forms}")
    return served


def make_variants(run: Callable[[], Any], served: dict[str, list[str]]) -> dict[str, Variant]:
    """The run with all kernels on, with each one off, and with all off."""
    return {"on": without(run, None), **{name: without(run, (name,)) for name in served}, "all": without(run, ())}


def measure_gains(arguments: argparse.Namespace) -> None:
    """Time the model with and without each kernel that serves it, and without any."""
    run, forms, sizes = make_run(arguments)
    served = served_operations(forms)
    variants = make_variants(run, served)
    memory = peak_memory(variants, arguments, warm_up=arguments.train)
    times, rates = harness.time_variants(variants, arguments, max(arguments.warmup, int(arguments.train)))
    rows = []
    for name in [*served, "all"]:
        row = {**sizes, "kernel": name, "operations": " ".join(served.get(name, forms))}
        row |= {"seconds_on": times["on"].median, "seconds_off": times[name].median}
        row |= {"gain": times[name].median / times["on"].median - 1}
        row |= {"gain_cpu": times[name].median_cpu / times["on"].median_cpu - 1}
        if memory is not None:
            row |= {"peak_memory_mib_on": memory["on"].peak, "peak_memory_mib_off": memory[name].peak}
        rows.append(row | {"gemm_gflop_s": rates.gemm / 1e9, "copy_gb_s": rates.copy / 1e9})
    print(f"{'kernel off':26} {'seconds on':>12} {'seconds off':>12} {'gain':>7} {'CPU gain':>9}  operations")
    for row in rows:
        print(
            f"{row['kernel']:26} {row['seconds_on']:12.4g} {row['seconds_off']:12.4g} {row['gain']:7.1%} "
            f"{row['gain_cpu']:9.1%}  {row['operations']}"
        )
    harness.finish(arguments, "kernel_gains", rows, {row["kernel"]: row for row in rows})
