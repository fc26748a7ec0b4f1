# Copyright 2026 The glip_hf authors. MIT licence.
"""SIGTERM as a request to save and stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
