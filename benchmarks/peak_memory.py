# Copyright 2026 The glip_hf authors. MIT licence.
"""Peak memory of the variants of a benchmark, each in a process of its own.

A forked child runs one variant and nothing else: `VmHWM` of /proc/self/status is reset after the model is loaded and
freed memory is returned to the system, and read at the end. A child starts with the pages of its parent, so the model
counts as if it were loaded there (`ru_maxrss` cannot be reset). Forking is safe as long as the parent has run nothing
in parallel: children run first, while the parent keeps to one thread. On CUDA it is the peak of the allocator, in the
process itself. Systems other than Linux have no figures.
"""

import argparse
import ctypes
import gc
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import MIB, Variant, say


@dataclass
class Memory:
    """MiB. peak: the maximum during the run, weights and libraries included; before: the part of it from before."""

    peak: float
    before: float


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (maximum since `reset_peak`) of this process, MiB. Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def reset_peak() -> float:
    """Reset the peak; returns what is resident now, MiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def _measured(variant: Variant, warm_up: bool) -> Memory:
    variant.prepare()
    if warm_up:
        variant.run()
    before = reset_peak()
    variant.run()
    return Memory(resident_mib("VmHWM"), before)


def _in_a_child(variant: Variant, threads: int, warm_up: bool, limit: float) -> Memory:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(threads)
            memory = _measured(variant, warm_up)
            os.write(writing, json.dumps([memory.peak, memory.before]).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], limit)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"the child that measures memory did not finish within {limit:.0f} s.")
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    if not report:
        raise RuntimeError(f"the child that measures memory ended with status {status}: see above.")
    return Memory(*json.loads(report))


def peak_memory(
    variants: dict[str, Variant],
    arguments: argparse.Namespace,
    warm_up: bool = False,
    limit: float = 3600,
) -> dict[str, Memory] | None:
    """Peak memory of each variant; see the top of this file. The median by peak of `--memory-runs` children.

    Args:
        warm_up: run the variant once in each child before the peak is reset, so that what a first run allocates for
            good counts as there before.
        limit: seconds per child.

    Returns:
        None where it was not requested or cannot be measured.

    Raises:
        RuntimeError: if PyTorch has more than one thread already, or a child fails.
    """
    if arguments.memory_runs < 1:
        return None
    found = {}
    if arguments.device.startswith("cuda"):
        for name, variant in variants.items():
            variant.prepare()
            if warm_up:
                variant.run()
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / MIB
            variant.run()
            found[name] = Memory(torch.cuda.max_memory_allocated() / MIB, before)
        return found
    if arguments.device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    if torch.get_num_threads() != 1:
        raise RuntimeError("measure memory before torch.set_num_threads: a child of a parallel process may hang.")
    for name, variant in variants.items():
        runs = [_in_a_child(variant, arguments.threads, warm_up, limit) for _ in range(arguments.memory_runs)]
        found[name] = sorted(runs, key=lambda memory: memory.peak)[len(runs) // 2]
        say(f"memory of {name}: peak {found[name].peak:.0f} MiB, {found[name].before:.0f} MiB before")
    return found


def memory_figures(memory: dict[str, Memory] | None, fast: str = "fast", other: str = "reference") -> dict[str, float]:
    """The peaks of two variants and the ratio of the first to the second; `beyond` excludes what was there before."""
    if memory is None:
        return {}
    figures: dict[str, float] = {}
    for name, suffix in ((fast, ""), (other, f"_{other}")):
        if name in memory:
            figures[f"peak_memory_mib{suffix}"] = memory[name].peak
            figures[f"peak_beyond_mib{suffix}"] = memory[name].peak - memory[name].before
    if other in memory:
        figures["peak_memory_ratio"] = memory[fast].peak / memory[other].peak
        figures["peak_beyond_ratio"] = figures["peak_beyond_mib"] / figures[f"peak_beyond_mib_{other}"]
    return figures
