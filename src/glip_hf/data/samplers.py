# Copyright 2026 The glip_hf authors. MIT licence.
"""Which samples form a batch: batches of one aspect group, the same for every number of processes, resumable.

A sample is known by its key `(epoch, index)`; a dataset that takes keys needs no `set_epoch`, so workers may persist,
and prefetch, across the end of an epoch.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
Incomplete = Literal["drop", "keep", "wrap"]


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """Group of each image from its (height, width): 1 if it is at least as high as wide, else 0; [samples] int8."""
    sizes = np.asarray(sizes)
    return (sizes[:, 0] >= sizes[:, 1]).astype(np.int8)


def grouped_batches(
    order: Sequence[int] | np.ndarray, groups: np.ndarray, batch_size: int, incomplete: Incomplete = "drop"
) -> np.ndarray:
    """Samples taken in this order, in batches of one group each; the batches in the order of their first samples.

    Args:
        groups: group of every sample (indexed by sample).
        incomplete: what becomes of a group's last batch if it is not full: "drop" it, "keep" it, or "wrap" it, i.e.
            fill it from the beginning of the group.

    Returns:
        [batches, batch_size] int64; a batch that was kept ends in -1 where it has no sample. (One array: a Python
        object for each of a million batches would take a gigabyte.)
    """
    order = np.asarray(order, dtype=np.int64)
    group_of = np.asarray(groups)[order]
    batches, firsts = [np.empty((0, batch_size), np.int64)], [np.empty(0, np.int64)]
    for group in np.unique(group_of):
        positions = np.flatnonzero(group_of == group)
        if incomplete == "drop":
            positions = positions[: len(positions) // batch_size * batch_size]
        members, missing = order[positions], -len(positions) % batch_size
        fill = np.resize(members, missing) if incomplete == "wrap" else np.full(missing, -1)
        batches.append(np.concatenate([members, fill]).reshape(-1, batch_size))
        firsts.append(positions[::batch_size])
    return np.concatenate(batches)[np.argsort(np.concatenate(firsts))]


def contiguous_shard(order: Sequence[int], rank: int, world_size: int) -> np.ndarray:
    """One process's block of an order, equally long for all: the order wraps around at its end."""
    length = -(-len(order) // world_size)
    return np.resize(np.asarray(order), length * world_size)[rank * length : (rank + 1) * length]


class GroupedBatchSampler(Sampler):
    """Batches of keys for `DataLoader(batch_sampler=...)`, endless or for a number of batches.

    Every epoch is a permutation drawn from (seed, epoch), cut into batches of one aspect group each.

    How processes share it (`shard`):

    * "strided", the default: batches of `batch_size * world_size` are formed and process r takes the samples
      `r * batch_size` to `(r + 1) * batch_size` of each. All processes have equally many batches, and two processes
      together see what one sees with twice the batch size.
    * "contiguous", as in the original: the permutation is cut into one block per process, and each forms its own
      batches. The numbers of batches may differ; all processes end an epoch at the smallest.

    Args:
        groups: aspect group of every sample: an array (see `aspect_groups`), a function of the epoch that returns one,
            or a number of samples that form a single group.
        batch_size: samples per batch and process.
        seed: of the run.
        shuffle: otherwise samples keep their order.
        incomplete: see `grouped_batches`.
        rank, world_size: this process, and the number of processes.
        num_batches: total number of batches, from the beginning of the run; None for no end.
    """

    def __init__(
        self,
        groups: np.ndarray | int | Callable[[int], np.ndarray],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        incomplete: Incomplete = "drop",
        rank: int = 0,
        world_size: int = 1,
        shard: Literal["strided", "contiguous"] = "strided",
        num_batches: int | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size={batch_size}, rank={rank}, world_size={world_size} are not valid.")
        if incomplete not in ("drop", "keep", "wrap") or shard not in ("strided", "contiguous"):
            raise ValueError(f"There is no incomplete={incomplete!r} with shard={shard!r}.")
        if incomplete == "keep" and world_size > 1:
            raise ValueError("incomplete='keep' would give processes batches of different sizes: use 'drop' or 'wrap'.")
        if isinstance(groups, int):
            groups = np.zeros(groups, dtype=np.int8)
        self.groups = groups if callable(groups) else (lambda epoch: groups)
        self.batch_size, self.seed, self.shuffle, self.incomplete = batch_size, seed, shuffle, incomplete
        self.rank, self.world_size, self.shard = rank, world_size, shard
        self.num_batches = num_batches
        self._position = (0, 0, 0)  # epoch, batches taken in it, batches taken in all
        self._cached: tuple[int, np.ndarray] = (-1, np.empty((0, batch_size)))
        self._length = (-1, 0)  # epoch, batches of this process in it

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """This process's batches of indices in one epoch, see `grouped_batches`; a ValueError if there is none."""
        if self._cached[0] == epoch:
            return self._cached[1]
        groups = self.groups(epoch)
        order = np.arange(len(groups))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch, 0x5A]).permutation(len(groups))
        if self.shard == "strided":
            whole = grouped_batches(order, groups, self.batch_size * self.world_size, self.incomplete)
            start = self.rank * self.batch_size
            batches = whole[:, start : start + self.batch_size].copy()
        else:
            shards = [contiguous_shard(order, rank, self.world_size) for rank in range(self.world_size)]
            each = [grouped_batches(shard, groups, self.batch_size, self.incomplete) for shard in shards]
            batches = each[self.rank][: min(map(len, each))]
        self._check(len(batches), groups)
        self._cached = (epoch, batches)
        return batches

    def epoch_length(self, epoch: int) -> int:
        """Number of batches of this process in one epoch; raises as `epoch_batches`.

        The groups alone decide it where processes take turns, so a run that resumes in a late epoch does not draw the
        permutations of all before.
        """
        if self.shard == "contiguous":
            return len(self.epoch_batches(epoch))
        if self._length[0] != epoch:
            groups, size = self.groups(epoch), self.batch_size * self.world_size
            more = 0 if self.incomplete == "drop" else size - 1
            length = int(((np.unique(groups, return_counts=True)[1] + more) // size).sum())
            self._check(length, groups)
            self._length = (epoch, length)
        return self._length[1]

    def _check(self, length: int, groups: np.ndarray) -> None:
        if not length:
            raise ValueError(
                f"{len(groups)} samples in {len(np.unique(groups))} aspect groups give no full batch of "
                f"{self.batch_size} for {self.world_size} processes: use a smaller batch or incomplete='wrap'."
            )

    def __len__(self) -> int:
        """Total number of batches, if there is an end; else those of the current epoch."""
        return self.epoch_length(self.epoch) if self.num_batches is None else self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        """Batches from the position on. Only `advance` and `load_state_dict` move the position itself, since loaders
        prefetch batches."""
        epoch, batch, total = self._position
        while self.num_batches is None or total < self.num_batches:
            for indices in self.epoch_batches(epoch)[batch:]:
                if self.num_batches is not None and total >= self.num_batches:
                    return
                total += 1
                yield [(epoch, index) for index in indices.tolist() if index >= 0]
            epoch, batch = epoch + 1, 0

    # -- position ---------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._position[0]

    def advance(self, batches: int = 1) -> None:
        """Move the position forward, by batches that have been used."""
        epoch, batch, total = self._position
        batch, total = batch + batches, total + batches
        while batch >= (length := self.epoch_length(epoch)):
            epoch, batch = epoch + 1, batch - length
        self._position = (epoch, batch, total)

    def state_dict(self) -> dict[str, Any]:
        """The position in the run, the same for all processes."""
        epoch, batch, total = self._position
        return {
            "epoch": epoch,
            "batch": batch,
            "total": total,
            "seed": self.seed,
            "samples": len(self.groups(epoch)),
            "batch_size": self.batch_size * self.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: if data, seed or total batch size changed, so that the position stands for other samples.
        """
        now = self.state_dict() | {"samples": len(self.groups(state["epoch"]))}
        for key in ("seed", "samples", "batch_size"):
            if now[key] != state[key]:
                raise ValueError(
                    f"The checkpoint's run had {key} {state[key]}, this one has {now[key]}: the order of samples "
                    "differs. Resume with the same data, seed and batch size * processes, or start a new run."
                )
        self._position = (state["epoch"], state["batch"], state["total"])


class SequentialBatchSampler(Sampler):
    """Batches of consecutive keys of one endless epoch: micro-batch m of the run holds the samples from
    `m * batch_size * world_size` on, of which each process takes its slice, as with `GroupedBatchSampler`.

    Args:
        batch_size: samples per batch and process.
        rank, world_size: this process, and how many there are.
        epoch_samples: samples that count as one pass over the data.
    """

    def __init__(self, batch_size: int, *, rank: int = 0, world_size: int = 1, epoch_samples: int = 0) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.epoch_samples = epoch_samples
        self._position = 0

    def __len__(self) -> int:
        """Batches per pass, at least 1."""
        return max(self.epoch_samples // (self.batch_size * self.world_size), 1)

    def __iter__(self) -> Iterator[list[Key]]:
        for number in itertools.count(self._position):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield [(0, index) for index in range(start, start + self.batch_size)]

    def advance(self, batches: int = 1) -> None:
        """Move the position forward, by batches that have been used."""
        self._position += batches
