# Copyright 2026 The glip_hf authors. MIT licence.
"""SIGTERM as a request to save and stop, also where it is the launcher that gets it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether somebody asked the run to stop.

    Attributes:
        raised: true from the first SIGTERM on.
    """

    def __init__(self) -> None:
        self.raised = False

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        self.raised = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM raises the flag; afterwards it means again what it meant before."""
        previous = signal.signal(signal.SIGTERM, self._raise)
        _follow_launcher()
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def _follow_launcher() -> None:
    """Ask Linux for a SIGTERM when `accelerate launch` dies.

    For a single process it waits for its child and passes no signal on: a scheduler that ends it would leave a run
    behind that nobody waits for. `torchrun`'s agent, which starts several, does pass them on.
    """
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if alone and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


__all__ = ["StopRequest"]
