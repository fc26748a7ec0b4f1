# Copyright 2026 The glip_hf authors. MIT licence.
"""SIGTERM as a request to save and stop, also when it is sent to the launcher."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether the run was asked to stop: `raised` is true from the first SIGTERM on."""

    def __init__(self) -> None:
        self.raised = False

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        self.raised = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM sets the flag; the previous handler is restored afterwards."""
        previous = signal.signal(signal.SIGTERM, self._raise)
        _follow_launcher()
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def _follow_launcher() -> None:
    """Ask Linux for a SIGTERM when `accelerate launch` dies.

    With a single process the launcher does not forward signals: a scheduler that ends it would orphan the run.
    `torchrun`'s agent, which starts several, does forward them.
    """
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if alone and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
