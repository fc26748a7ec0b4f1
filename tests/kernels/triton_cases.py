# Copyright 2026 The glip_hf authors. MIT licence.
"""Triton's kernels against the plain version. `test_cuda_deform_conv.py` runs this file in a process of its own,
because Triton reads TRITON_INTERPRET where kernels are defined: with it on CPU tensors, without it on a GPU.
"""

import math

import pytest
import torch
from torch import Tensor

from glip_hf import ops_glip
from glip_hf.kernels.triton_deform_conv import INTERPRETED, deform_conv2d_triton
from glip_hf.ops_glip import NUM_POINTS, Kernel, deform_conv2d, view_offsets_as

DEVICE = "cpu" if INTERPRETED else "cuda"

# Products of half precision are exact in float32; columns and results are rounded once each.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def outputs(height: int, width: int, stride: int) -> tuple[int, int]:
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def case(
    batch: int, channels: int, filters: int, height: int, width: int, stride: int, reach: int, dtype=torch.float32
) -> list[Tensor]:
    """Offsets up to `reach` cells, never whole: there the plain version's slope is not the kernels'; see below."""
    size = outputs(height, width, stride)
    quarter = torch.randint(1, 4, (batch, 2 * NUM_POINTS, *size)) / 4
    args = (
        torch.randn(batch, channels, height, width),
        torch.randint(-reach, reach, quarter.shape) + quarter,
        torch.rand(batch, NUM_POINTS, *size),
        torch.randn(filters, channels, 3, 3) / (NUM_POINTS * channels) ** 0.5,
        torch.randn(filters),
    )
    return [value.to(DEVICE, dtype).requires_grad_() for value in args]


def run(kernel, args: list[Tensor], stride: int, grad: Tensor) -> list[Tensor]:
    """Result and the gradients of all that ask for one."""
    out = kernel(*args, stride)
    return [out, *torch.autograd.grad(out, [a for a in args if a.requires_grad], grad.to(out.dtype))]


def compare(args: list[Tensor], stride: int, kernel=deform_conv2d_triton) -> None:
    """Everything against the plain version in float64, each in units of its own largest value."""
    out_size = (len(args[0]), len(args[3]), *args[1].shape[2:])
    grad = torch.randn(out_size, device=DEVICE).to(args[0].dtype)
    found = run(kernel, args, stride, grad)
    exact = [value.detach().double().requires_grad_(value.requires_grad) for value in args]
    expected = run(deform_conv2d, exact, stride, grad)
    names = ["result", "features", "offset", "mask", "weight", "bias"]
    names = names[:1] + [name for name, value in zip(names[1:], args) if value.requires_grad]
    for name, value, wanted in zip(names, found, expected, strict=True):
        assert value.dtype == args[0].dtype and value.shape == wanted.shape
        error = (value.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
        assert error <= TOLERANCE[args[0].dtype], f"{name} differs by {error:.1e}"


@pytest.mark.parametrize(
    ("shape", "reach"),
    [
        pytest.param((2, 3, 4, 1, 1, 1), 1, id="one cell"),
        pytest.param((1, 16, 16, 1, 9, 2), 2, id="one row, stride 2"),
        pytest.param((2, 20, 24, 5, 7, 1), 2, id="odd sides, blocks cut short"),
        pytest.param((1, 24, 20, 6, 7, 2), 3, id="stride 2"),
        pytest.param((1, 3, 4, 4, 5, 2), 40, id="far outside"),
    ],
)
def test_result_and_gradients(shape, reach) -> None:
    compare(case(*shape, reach), stride=shape[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype) -> None:
    compare(case(2, 20, 18, 3, 4, 1, 2, dtype), stride=1)


def test_only_operands_of_products_are_rounded() -> None:
    """As under autocast: offsets and modulation in float32, and their gradients."""
    args = [value.detach() for value in case(1, 20, 18, 3, 4, 1, 2)]
    args = [value.bfloat16() if i in (0, 3, 4) else value for i, value in enumerate(args)]
    args = [value.requires_grad_() for value in args]
    grad = torch.randn(1, 18, 3, 4, device=DEVICE)
    found = run(deform_conv2d_triton, args, 1, grad)
    exact = [value.detach().double().requires_grad_() for value in args]
    for i, (value, wanted) in enumerate(zip(found, run(deform_conv2d, exact, 1, grad.bfloat16()))):
        assert value.dtype == (torch.float32 if i in (2, 3) else torch.bfloat16)
        error = (value.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= TOLERANCE[torch.bfloat16]


def test_coordinates_stay_in_float32() -> None:
    # Beyond 256 bfloat16 has no odd numbers.
    compare(case(1, 3, 4, 1, 301, 2, 2, torch.bfloat16), stride=2)


def test_larger_than_a_gpu_block() -> None:
    if DEVICE == "cpu":
        pytest.skip("the interpreter's blocks are 16 wide: the other tests have several")
    for stride in (1, 2):
        compare(case(2, 256, 256, 50, 67, stride, 3), stride)


@pytest.mark.parametrize("layout", ["slices", "dense", "channels last"])
def test_memory_layouts(layout) -> None:
    """As the tower calls it: a level of joined tokens, slices of the offset convolution, memory read as another map."""
    tokens = torch.randn(2, 17, 16)
    level = tokens[:, 2:14].transpose(1, 2).unflatten(2, (3, 4))
    raw = torch.randn(2, 27, 6, 8)
    if layout == "dense":
        level, raw = level.contiguous(), raw[..., :3, :4].contiguous()
    elif layout == "channels last":
        raw = raw.contiguous(memory_format=torch.channels_last)
    offset, mask = view_offsets_as(*raw.split([18, 9], dim=1), 3, 4)
    args = [level, offset * 0.37, mask.sigmoid(), torch.randn(20, 16, 3, 3), torch.randn(20)]
    compare([value.to(DEVICE).requires_grad_() for value in args], stride=1)


@pytest.mark.parametrize("asking", [(0,), (1,), (3, 4), (2, 3)], ids=["features", "offset", "parameters", "mixed"])
def test_gradients_of_some_only(asking) -> None:
    args = [value.requires_grad_(i in asking) for i, value in enumerate(case(1, 4, 3, 3, 3, 1, 2))]
    compare(args, stride=1)


def test_borders_by_hand() -> None:
    # One cell of value 1; the centre point moves down: half way off, it counts half, one cell off nothing.
    x, weight, bias = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 3, 3), torch.zeros(1)
    weight[..., 1, 1] = 1
    for move, expected in [(0, 1), (0.5, 0.5), (-0.5, 0.5), (1, 0), (-1, 0), (1e9, 0), (-3.4e38, 0), (math.inf, 0)]:
        offset = torch.zeros(1, 18, 1, 1)
        offset[0, 8] = move
        args = [value.to(DEVICE).requires_grad_() for value in (x, offset, torch.ones(1, 9, 1, 1), weight, bias)]
        found, *grads = run(deform_conv2d_triton, args, 1, torch.ones(1, 1, 1, 1, device=DEVICE))
        assert found.item() == expected
        assert all(bool(grad.isfinite().all()) for grad in grads)


def test_a_broken_offset_does_not_hide() -> None:
    args = case(2, 3, 4, 4, 4, 1, 1)
    with torch.no_grad():
        args[1][0, 3, 1, 2] = math.nan
        out = deform_conv2d_triton(*args)
    assert bool(out[0, :, 1, 2].isnan().all()) and bool(out[1].isfinite().all())
    assert int(out.isnan().sum()) == 4


def test_at_whole_coordinates_the_slope_is_that_of_the_growing_side() -> None:
    args = case(1, 3, 4, 4, 5, 1, 1)
    args[1] = torch.zeros_like(args[1]).requires_grad_()
    beside = [value.detach().double().requires_grad_() for value in args]
    beside[1] = torch.full_like(beside[1], 1e-6).requires_grad_()
    grad = torch.randn(1, 4, 4, 5, device=DEVICE)
    found = run(deform_conv2d_triton, args, 1, grad)[2].double()
    expected = run(deform_conv2d, beside, 1, grad)[2]
    # A sampling point exactly one cell above or left of the map has nothing to learn.
    expected[:, 0:6:2, 0] = 0
    expected[:, 1::6, :, 0] = 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_operator_for_compilers() -> None:
    """Schema, shapes without data, and derivative fit together; a compiled call is one graph with one such node."""
    operator = next(op for name, op in _operators() if name.endswith("::deform_conv2d"))
    args = case(1, 4, 3, 3, 4, 1, 2)
    torch.library.opcheck(operator, (*args, 1))

    nodes = []

    def backend(graph, inputs):
        nodes.extend(node.target for node in graph.graph.nodes if "deform_conv2d" in str(node.target))
        return graph

    compare(args, 1, torch.compile(deform_conv2d_triton, backend=backend, fullgraph=True))
    assert len(nodes) == 1
    compare(args, 1, torch.compile(deform_conv2d_triton, backend="aot_eager", fullgraph=True))


def _operators():
    from torch._library.custom_ops import OPDEFS

    return [(name, definition._opoverload) for name, definition in OPDEFS.items() if "triton_deform_conv" in name]


def test_compiled_dispatch_is_one_graph(monkeypatch) -> None:
    kernel = Kernel(
        "triton",
        lambda features, *_: features.dtype == torch.float32,
        lambda plain, *args: deform_conv2d_triton(*args),
        traceable=True,
    )
    monkeypatch.setitem(ops_glip._kernels, "deform_conv2d", [kernel])
    compare(case(1, 4, 3, 3, 4, 2, 2), 2, torch.compile(deform_conv2d, backend="eager", fullgraph=True, dynamic=True))


def test_second_derivatives_are_refused() -> None:
    args = case(1, 3, 4, 2, 2, 1, 1)
    first = torch.autograd.grad(deform_conv2d_triton(*args).square().sum(), args[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()
