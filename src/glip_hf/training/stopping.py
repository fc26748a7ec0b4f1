# Copyright 2026 The glip_hf authors. MIT licence.
"""SIGTERM as a request to save and stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .._launch import GRACE


class StopRequest:
    """Whether the run was asked to stop: `raised` is true from the first SIGTERM on."""

    def __init__(self) -> None:
        self.raised = self._is_waiting = self._is_over = False

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over:
            raise KeyboardInterrupt
        if not self.raised:
            timer = threading.Timer(GRACE, self._end_if_waiting)
            timer.daemon = True
            timer.start()
        self.raised = True

    def _end_if_waiting(self) -> None:
        """The step whose end would save and stop the run does not begin."""
        if self._is_waiting:
            self._is_over = True
            os.kill(os.getpid(), signal.SIGTERM)  # not SIGINT, which a shell has its background jobs ignore

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may never come, such as data: a SIGTERM then interrupts the run after `GRACE` seconds."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM sets the flag; the previous handler is restored afterwards."""
        previous = signal.signal(signal.SIGTERM, self._raise)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
