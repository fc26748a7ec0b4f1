# Copyright 2026 The glip_hf authors. MIT licence.
"""How many (picture, caption) pairs go through the head at a time: as many as fit, found while running.

The head's memory grows with pairs x locations of the pyramid. The first pass holds one pair; what it took says how
many fit the budget, and the number doubles until it is reached. Out of memory halves it, for good.

On a CPU the automatic number is 1: the head is bound by arithmetic there, more pairs a pass cost memory and gain
nothing (docs/evaluation.md has the measurement).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SHARE = 0.8  # of the memory that is free; the rest is for fragmentation and for pictures that come


class PairBudget:
    """
    Args:
        device: where the model is.
        fixed: pairs a pass; None to find out.
        probe: gives (bytes free, peak bytes since the last call, bytes in use); default of a CUDA device.
    """

    def __init__(
        self,
        device: torch.device,
        fixed: int | None = None,
        probe: Callable[[], tuple[int, int, int]] | None = None,
    ) -> None:
        if fixed is not None and fixed < 1:
            raise ValueError(f"pairs={fixed}: at least one pair has to run at a time.")
        self.fixed = fixed
        if probe is None and device.type == "cuda":
            probe = _cuda_probe(device)
        self._probe = probe if fixed is None else None
        self._bytes = 0.0  # a pair and location, the most seen
        self._tried = 0  # the largest number of pair-locations that ran
        self._ceiling = sys.maxsize  # pair-locations that may run, after running out of memory

    def size(self, locations: int) -> int:
        """Pairs for the next pass, over pictures with so many locations."""
        limit = max(self._ceiling // locations, 1)
        if self.fixed is not None:
            return min(self.fixed, limit)
        if self._probe is None or not self._bytes:
            return 1
        free, _, _ = self._probe()
        fitting = int(SHARE * free / (self._bytes * locations))
        grown = 2 * max(self._tried // locations, 1)
        return max(min(fitting, grown, limit), 1)

    @contextmanager
    def measured(self, pairs: int, locations: int) -> Iterator[None]:
        """Around a pass of `pairs` pairs."""
        before = self._probe()[2] if self._probe else 0
        yield
        if self._probe:
            _, peak, _ = self._probe()
            self._bytes = max(self._bytes, (peak - before) / (pairs * locations), 1e-9)
        self._tried = max(self._tried, pairs * locations)

    def halve(self, pairs: int, locations: int) -> int:
        """Pairs to try after `pairs` did not fit; 0 if that was one already."""
        self._ceiling = min(self._ceiling, pairs // 2 * locations) if pairs > 1 else self._ceiling
        return pairs // 2


def _cuda_probe(device: torch.device) -> Callable[[], tuple[int, int, int]]:
    def probe() -> tuple[int, int, int]:
        in_use = torch.cuda.memory_allocated(device)
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        # What the allocator holds and does not use is free to us as well.
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - in_use
        return free, peak, in_use

    return probe


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device, or the CPU's allocator, saying that memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


__all__ = ["PairBudget", "out_of_memory"]
