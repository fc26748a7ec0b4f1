"""A SIGTERM asks the run to save and stop, and interrupts it where nothing comes to stop at."""

import os
import signal
import time

import pytest

from glip_hf.training import stopping


def test_a_request_waits_for_the_step_but_not_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.1)
    before = signal.getsignal(signal.SIGTERM)
    stop = stopping.StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # a long step
        assert stop.raised
    with pytest.raises(KeyboardInterrupt), (stop := stopping.StopRequest()).listening(), stop.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before
