# Copyright 2026 The glip_hf authors. MIT licence.
"""Micro-batches of a run as a function of (seed, number): the same after a resume, for any number of workers.

Micro-batch m of a run holds samples m * G .. (m + 1) * G - 1 of a fixed order, G pictures over all processes; process r
of P takes the r-th of P equal parts. One process with G pictures sees what P processes see together.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .recipe import RecipeError


class TrainingBatches(Protocol):
    """What the loop learns from."""

    def steps_per_epoch(self) -> int:
        """Micro-batches of one pass over the data, the same on every process."""

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches from number `start` of the run on, without end.

        Each holds keyword arguments of `GlipForGrounding.forward` (tensors on the CPU, `labels` a list of dicts) and
        `sample_ids`, a list that names the samples.
        """


def per_process(batch_size: int, accumulation: int, processes: int) -> int:
    """Pictures of a process's micro-batch.

    Raises:
        RecipeError: if `batch_size` cannot be divided.
    """
    if batch_size % (accumulation * processes):
        raise RecipeError(
            f"data.batch_size={batch_size} is not divisible by {processes} processes x "
            f"run.gradient_accumulation={accumulation}: change one of them."
        )
    return batch_size // (accumulation * processes)


def outlive_sigterm(worker_id: int) -> None:
    """`worker_init_fn`: go on until the run itself stops.

    Launchers and schedulers send SIGTERM to all processes of a group. A worker that died of it would bring down the run
    before it has saved; one whose run has died sees that for itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ShardSampler(Sampler[list[int]]):
    """Sample numbers of this process's micro-batches, from number `start` on, without end.

    Args:
        order: gives the sample numbers of global micro-batch m.
        rank, processes: this process and how many there are.
    """

    def __init__(self, order: Callable[[int], Sequence[int]], rank: int, processes: int, start: int) -> None:
        self.order, self.rank, self.processes, self.start = order, rank, processes, start

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            samples = list(self.order(number))
            size = len(samples) // self.processes
            yield samples[self.rank * size : (self.rank + 1) * size]
            number += 1


class LoaderBatches:
    """`TrainingBatches` from a map-style data set.

    Args:
        dataset: sample number to sample; must not depend on anything else.
        order: see `ShardSampler`.
        steps: micro-batches of one pass.
        collate: list of samples to a batch.
        workers: loader processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Callable[[int], Sequence[int]],
        steps: int,
        collate: Callable[[list[Any]], dict[str, Any]],
        rank: int,
        processes: int,
        workers: int = 0,
    ) -> None:
        self.dataset, self.order, self.steps, self.collate = dataset, order, steps, collate
        self.rank, self.processes, self.workers = rank, processes, workers

    def steps_per_epoch(self) -> int:
        return self.steps

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=ShardSampler(self.order, self.rank, self.processes, start),
                collate_fn=self.collate,
                num_workers=self.workers,
                worker_init_fn=outlive_sigterm,
                # Its own generator: a loader otherwise draws its workers' seed from the global one, which
                # would shift every later dropout of a resumed run.
                generator=torch.Generator().manual_seed(start),
            )
        )


__all__ = ["LoaderBatches", "ShardSampler", "TrainingBatches", "outlive_sigterm", "per_process"]
