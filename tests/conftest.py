"""What all tests share: where the shared design data lie, and quiet, repeatable runs."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from locations import SHARED

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference data beside the project; a test that needs it skips, loudly, without."""
    if not (SHARED / "parity").is_dir():
        warnings.warn(
            f"reference data not found at {SHARED} (set GLIP_SHARED): skipping what only they can check",
            stacklevel=1,
        )
        pytest.skip(f"needs the recorded reference data, not found at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
