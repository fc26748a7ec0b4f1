# Copyright 2026 The glip_hf authors. MIT licence.
"""Kernels of the deformable convolution on CUDA: Triton's run in the interpreter (or on a GPU) and compiled for GPUs
that are not there; which kernel serves a call.

The comparisons themselves are in `triton_cases.py`. TRITON_INTERPRET must stand in the environment before Triton is
imported and holds for the whole process, so they run in one of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fresh import python
from transformers.utils import is_triton_available

try:
    from glip_hf.kernels import cuda_deform_conv, triton_deform_conv
except RuntimeError as error:
    pytest.skip(f"Triton before 3.3 cannot be imported without a GPU: {error}", allow_module_level=True)
from benchmarks.triton_resources import KERNELS, SHARED_KIB, compile_kernel, resources
from glip_hf.kernels.triton_deform_conv import deform_conv2d_triton
from glip_hf.ops_glip import select_kernel

CASES = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(
    not is_triton_available(), reason="triton is not installed (pip install triton): its kernels are not tested"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: kernels ran interpreted only")


def run_cases(interpreted: bool) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": str(int(interpreted)), "CUDA_LAUNCH_BLOCKING": "1"},
        cwd=CASES.parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.slow
@needs_triton
def test_kernels_in_the_interpreter() -> None:
    run_cases(interpreted=True)


@needs_triton
@needs_cuda
def test_kernels_on_cuda() -> None:
    run_cases(interpreted=False)


@needs_triton
@pytest.mark.parametrize("capability", [80, *(pytest.param(one, marks=pytest.mark.slow) for one in (89, 90, 100))])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_a_gpu(name, capability) -> None:
    """A100, L40, H100 and B200: bfloat16 goes to the matrix units, and next to nothing is spilled from registers."""
    tuner = getattr(triton_deform_conv, name)
    binary = compile_kernel(tuner, tuner.configs[1], "bf16", capability)
    used = resources(binary)
    assert re.search("wgmma|mma.sync|tcgen05", binary.asm["ptx"])
    assert 0 < used.registers <= 255 and used.spilled <= 64 and used.shared <= SHARED_KIB[capability] << 10, used


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("element", "capability"), [("bf16", 90), ("fp32", 80)])
@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_compiles(name, element, capability) -> None:
    """And fits into shared memory; of those for half precision some may be too large in float32."""
    tuner = getattr(triton_deform_conv, name)
    shared = [resources(compile_kernel(tuner, config, element, capability)).shared for config in tuner.configs]
    fitting = sum(size <= SHARED_KIB[capability] << 10 for size in shared)
    assert fitting >= (len(shared) if element == "bf16" else len(shared) // 2), shared


# --- dispatch


def cuda_features(**changes):
    """What the dispatch looks at, of a tensor on a GPU that need not be there."""
    return SimpleNamespace(**{"is_cuda": True, "dtype": torch.float32, "device": torch.device("cuda", 0)} | changes)


def chosen(features) -> str | None:
    """The kernel of the deformable convolution for these features, None for its plain form."""
    kernel = select_kernel("deform_conv2d", features)
    return kernel and kernel.name


@pytest.fixture
def machine(monkeypatch):
    """Pretend a GPU's machine: `machine(triton=..., torchvision=..., capability=...)`."""

    def pretend(triton: bool = True, torchvision: bool = True, capability: tuple[int, int] = (8, 0)) -> None:
        for module in (cuda_deform_conv, triton_deform_conv):
            monkeypatch.setattr(module, "is_triton_available", lambda: triton)
        monkeypatch.setattr(cuda_deform_conv, "is_torchvision_available", lambda: torchvision)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)

    return pretend


@pytest.mark.parametrize(
    ("pretended", "changes", "expected"),
    [
        ({}, {}, "triton_deform_conv"),
        ({}, {"dtype": torch.bfloat16}, "triton_deform_conv"),
        ({"torchvision": False}, {}, "triton_deform_conv"),
        ({"capability": (9, 0)}, {}, "triton_deform_conv"),
        ({"triton": False}, {}, "torchvision_deform_conv"),
        ({"capability": (7, 5)}, {}, "torchvision_deform_conv"),
        ({}, {"dtype": torch.float64}, "torchvision_deform_conv"),
        ({"triton": False, "torchvision": False}, {}, None),
        ({}, {"is_cuda": False, "device": torch.device("mps")}, None),
        ({}, {"is_cuda": False, "device": torch.device("cpu")}, None),
    ],
)
def test_dispatch(machine, pretended, changes, expected) -> None:
    machine(**pretended)
    assert chosen(cuda_features(**changes)) == expected


@pytest.mark.parametrize(
    ("half", "expected"),
    [(None, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
    ids=["no autocast", "bfloat16", "float16"],
)
def test_autocast_rounds_operands_of_products_only(half, expected, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(triton_deform_conv, "deform_conv2d_triton", lambda *args: taken.extend(args))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: half is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: half)
    args = [torch.zeros(1, dtype=torch.float16) for _ in range(5)]
    cuda_deform_conv.triton_deform_conv(None, *args, 2)
    coordinates = torch.float16 if half is None else torch.float32
    assert [one.dtype for one in taken[:5]] == [expected, coordinates, coordinates, expected, expected]
    assert taken[5] == 2


def test_reproducible_sums_need_another_kernel(machine) -> None:
    machine()
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen(cuda_features()) == "torchvision_deform_conv"
    finally:
        torch.use_deterministic_algorithms(False)


def test_compilers_see_through_the_dispatch(machine) -> None:
    machine()

    def add(x: torch.Tensor) -> torch.Tensor:
        from glip_hf.kernels.triton_deform_conv import triton_runs

        capable = triton_deform_conv._is_capable(0) and not torch.are_deterministic_algorithms_enabled()
        return x + (1 if capable and not triton_runs(x) else 2)

    torch.compiler.reset()
    assert torch.compile(add, backend="eager", fullgraph=True)(torch.zeros(1)).item() == 1


def test_wrong_input_is_refused(monkeypatch) -> None:
    args = [torch.zeros(1, *shape) for shape in ((2, 3, 3), (18, 3, 3), (9, 3, 3))]
    args += [torch.zeros(2, 2, 3, 3), torch.zeros(2)]
    monkeypatch.setattr(triton_deform_conv, "is_triton_available", lambda: True)
    with pytest.raises(ValueError, match="torch.float32 on cpu.*deform_conv2d"):
        deform_conv2d_triton(*args)
    with pytest.raises(ValueError, match="float64"):
        deform_conv2d_triton(*(value.double() for value in args))
    monkeypatch.setattr(triton_deform_conv, "is_triton_available", lambda: False)
    with pytest.raises(ImportError, match="pip install triton"):
        deform_conv2d_triton(*args)


def test_imports_without_triton() -> None:
    """Machines without Triton import the package, and the file itself."""
    code = "import sys; sys.modules['triton'] = None\n"
    code += "import transformers.utils as u; u.is_triton_available = lambda: False\n"
    code += "from glip_hf.kernels.triton_deform_conv import deform_conv2d_triton"
    python(code, environment=os.environ | {"PYTHONPATH": "src"}, cwd=CASES.parents[2])
