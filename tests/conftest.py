"""What all tests share: where the shared design data lie, and quiet, repeatable runs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc

gc.disable()  # until all is collected: nearly all that imports make is kept, and the collector takes a quarter of them

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from locations import SHARED

from glip_hf.kernels import cpu_linear


def pytest_collection_finish() -> None:
    """Collections of garbage pass over what imports made: 0.4 s each otherwise, and benchmarks ask for many."""
    gc.collect()
    gc.freeze()
    gc.enable()


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


@pytest.fixture
def has_onednn() -> None:
    """Skip where oneDNN cannot be called."""
    if not cpu_linear.onednn_available():
        pytest.skip("this build of PyTorch has no oneDNN")


@pytest.fixture(params=["mkl", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Matrix products in float32 by one library, then by the other, whatever the processor."""
    if request.param == "onednn":
        request.getfixturevalue("has_onednn")
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: request.param == "onednn")
    return request.param


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    """Every test begins with the same seed, and with the number of threads that the process began with."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
