# Copyright 2026 The glip_hf authors. MIT licence.
"""Modulated deformable convolution against a scalar loop, and the memory quirk the released weights depend on."""

import math

import pytest
import torch
from torch import Tensor

import glip_hf.kernels.cpu_dyconv as cpu_dyconv
from glip_hf.kernels.cpu_dyconv import make_sampling_grid, sampled_product
from glip_hf.ops_glip import NUM_POINTS, deform_conv2d, view_offsets_as


def sampled_deform_conv2d(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """The form within the DyConv kernel for CPUs, on a single feature map."""
    out = sampled_product(
        features.flatten(2).transpose(1, 2).contiguous(),
        offset.unflatten(1, (NUM_POINTS, 2)).permute(0, 3, 4, 1, 2).flatten(1, 2),
        mask.permute(0, 2, 3, 1).flatten(1, 2),
        make_sampling_grid(*features.shape[-2:], stride, 0, features.device),
        weight,
        bias,
    )
    return out.transpose(1, 2).unflatten(2, offset.shape[-2:])


FORMS = [deform_conv2d, sampled_deform_conv2d]


def scalar_loop(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """One value at a time, as the definition reads."""
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, len(weight), *offset.shape[-2:], dtype=x.dtype)
    for b in range(batch):
        for i in range(offset.shape[2]):
            for j in range(offset.shape[3]):
                column = torch.zeros(channels, 3, 3, dtype=x.dtype)
                for point in range(NUM_POINTS):
                    y = i * stride - 1 + point // 3 + offset[b, 2 * point, i, j].item()
                    z = j * stride - 1 + point % 3 + offset[b, 2 * point + 1, i, j].item()
                    if not (-1 < y < height and -1 < z < width):
                        continue
                    top, left = math.floor(y), math.floor(z)
                    for row in (top, top + 1):
                        for col in (left, left + 1):
                            if 0 <= row < height and 0 <= col < width:
                                share = (1 - abs(y - row)) * (1 - abs(z - col)) * mask[b, point, i, j]
                                column[:, point // 3, point % 3] += share * x[b, :, row, col]
                out[b, :, i, j] = (weight * column).sum((1, 2, 3)) + bias
    return out


def case(height: int, width: int, stride: int, spread: float, batch: int = 2, dtype=torch.float64):
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    return (
        torch.randn(batch, 3, height, width, dtype=dtype),
        torch.randn(batch, 2 * NUM_POINTS, rows, columns, dtype=dtype) * spread,
        torch.rand(batch, NUM_POINTS, rows, columns, dtype=dtype),
        torch.randn(4, 3, 3, 3, dtype=dtype),
        torch.randn(4, dtype=dtype),
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (5, 4), (4, 5)])
@pytest.mark.parametrize("spread", [0.0, 0.7, 4.0], ids=["none", "near", "far"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_scalar_loop(form, size, stride, spread) -> None:
    args = case(*size, stride, spread)
    torch.testing.assert_close(form(*args, stride), scalar_loop(*args, stride), rtol=1e-12, atol=1e-12)


def in_small_blocks(monkeypatch) -> None:
    """Several blocks of positions, none of them kept for the backward pass."""
    monkeypatch.setattr(cpu_dyconv, "COLUMN_BLOCK", 5)
    monkeypatch.setattr(cpu_dyconv, "KEPT_COLUMNS", 3 * NUM_POINTS * 3 * 8)


@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_agree(stride, monkeypatch) -> None:
    args = case(7, 6, stride, 1.5)
    plain = deform_conv2d(*args, stride)
    torch.testing.assert_close(sampled_deform_conv2d(*args, stride), plain, rtol=1e-12, atol=1e-12)
    in_small_blocks(monkeypatch)
    torch.testing.assert_close(sampled_deform_conv2d(*args, stride), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", ["one block", "small blocks"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_kernels_agree(stride, blocks, monkeypatch) -> None:
    if blocks == "small blocks":
        in_small_blocks(monkeypatch)
    args = [value.requires_grad_() for value in case(5, 6, stride, 1.5)]
    found, expected = (kernel(*args, stride) for kernel in (sampled_deform_conv2d, deform_conv2d))
    weight = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad((out * weight).sum(), args) for out in (found, expected)))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", FORMS)
def test_gradient_of_points_without_offset(kernel) -> None:
    """Where training may start: a sampling point on a cell learns from the difference to the next one."""
    x, weight, bias = torch.tensor([[[[2.0, 5.0, 11.0]]]]), torch.zeros(1, 1, 3, 3), torch.zeros(1)
    weight[..., 1, :] = 1
    offset = torch.zeros(1, 18, 1, 3, requires_grad=True)
    kernel(x, offset, torch.ones(1, 9, 1, 3), weight, bias).sum().backward()
    left, middle, right = offset.grad[0, [7, 9, 11], 0].tolist()
    assert middle == [3, 6, -11]  # the next cell of the last one is outside: 0
    assert left == [2, 3, 6] and right == [6, -11, 0]


def test_columns_are_kept_only_while_they_are_small(monkeypatch) -> None:
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    def kept() -> bool:
        sizes.clear()
        args = [value.requires_grad_() for value in case(6, 6, 1, 1.0)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            sampled_deform_conv2d(*args)
        return 2 * 36 * NUM_POINTS * 3 in sizes

    assert kept()
    in_small_blocks(monkeypatch)
    assert not kept()


def test_many_rows_are_sorted_with_wider_numbers() -> None:
    # Beyond 2^15 rows; the last one belongs to the second map.
    source = torch.randn(2, 2**15, 2, dtype=torch.float64).requires_grad_()
    grid = make_sampling_grid(2, 2**14, 1, 0, source.device)
    grid = type(grid)(*(part[-3:] for part in grid))
    moves, mask = (
        torch.zeros(2, 3, NUM_POINTS, 2, dtype=torch.float64),
        torch.ones(2, 3, NUM_POINTS, dtype=torch.float64),
    )
    kernel = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    sampled_product(source, moves, mask, grid, kernel, torch.zeros(1, dtype=torch.float64)).sum().backward()
    # Ones over the last three columns of two rows: sampling points that see them are 1, 2, 3 and 2 in a row, twice
    expected = torch.zeros(2, 2**14)
    expected[:, -4:] = torch.tensor([1, 2, 3, 2])
    assert torch.equal(source.grad, expected.flatten()[:, None].expand(2, -1, 2).double())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_without_offsets_it_is_a_convolution(stride, form) -> None:
    x, offset, mask, weight, bias = case(6, 5, stride, 0.0)
    plain = torch.nn.functional.conv2d(x, weight, bias, stride, padding=1)
    torch.testing.assert_close(form(x, offset, torch.ones_like(mask), weight, bias, stride), plain)


@pytest.mark.parametrize("form", FORMS)
def test_borders_by_hand(form) -> None:
    # One cell of value 1; the centre point moves down: half way off, it counts half, one cell off nothing.
    x, weight, bias = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 3, 3), torch.zeros(1)
    weight[..., 1, 1] = 1
    for move, expected in [(0, 1), (0.5, 0.5), (-0.5, 0.5), (1, 0), (-1, 0), (1e9, 0), (-3.4e38, 0)]:
        offset = torch.zeros(1, 18, 1, 1)
        offset[0, 8] = move
        assert form(x, offset, torch.ones(1, 9, 1, 1), weight, bias).item() == expected


def test_a_broken_offset_does_not_hide() -> None:
    x, offset, mask, weight, bias = case(4, 4, 1, 0.5)
    offset[0, 3, 1, 2] = math.nan
    for kernel in FORMS:
        out = kernel(x, offset, mask, weight, bias)
        assert bool(out[0, :, 1, 2].isnan().all()) and bool(out[1].isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(stride, form) -> None:
    args = [value.requires_grad_() for value in case(3, 4, stride, 0.6, batch=1)]
    assert torch.autograd.gradcheck(lambda *a: form(*a, stride), args, eps=1e-6, atol=1e-6)


def test_the_memory_quirk_reads_the_first_values() -> None:
    offset = torch.arange(2 * 18 * 4 * 6).view(2, 18, 4, 6)
    mask = torch.arange(2 * 9 * 4 * 6).view(2, 9, 4, 6)
    small_offset, small_mask = view_offsets_as(offset, mask, 2, 3)
    assert small_offset.shape == (2, 18, 2, 3) and small_mask.shape == (2, 9, 2, 3)
    for b in range(2):
        assert small_offset[b].flatten().tolist() == list(range(b * 432, b * 432 + 108))
        assert small_mask[b].flatten().tolist() == list(range(b * 216, b * 216 + 54))
    # Channel 1 of the coarse map is what follows channel 0 in memory: row 1 of channel 0 of the fine one.
    assert small_offset[0, 1, 0].tolist() == [6, 7, 8]


def test_equal_sizes_are_left_alone() -> None:
    offset, mask = torch.rand(1, 18, 3, 3), torch.rand(1, 9, 3, 3)
    same_offset, same_mask = view_offsets_as(offset, mask, 3, 3)
    assert same_offset is offset and same_mask is mask


def test_the_quirk_ignores_the_memory_layout_of_its_input() -> None:
    offset = torch.rand(2, 18, 4, 6)
    mask = torch.rand(2, 9, 4, 6)
    plain = view_offsets_as(offset, mask, 2, 3)
    other = view_offsets_as(
        offset.contiguous(memory_format=torch.channels_last), mask.contiguous(memory_format=torch.channels_last), 2, 3
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, other))


@pytest.mark.parametrize("form", FORMS)
def test_the_quirk_backward(form) -> None:
    x, _, _, weight, bias = case(2, 3, 1, 0.0, batch=2)
    offset = (torch.randn(2, 18, 4, 6, dtype=torch.float64) * 0.5).requires_grad_()
    mask = torch.rand(2, 9, 4, 6, dtype=torch.float64).requires_grad_()

    def convolve(offset: Tensor, mask: Tensor) -> Tensor:
        return form(x, *view_offsets_as(offset, mask, 2, 3), weight, bias)

    assert torch.autograd.gradcheck(convolve, (offset, mask))
    convolve(offset, mask).square().sum().backward()
    for grad, used in ((offset.grad, 18 * 6), (mask.grad, 9 * 6)):
        flat = grad.flatten(1)
        assert bool((flat[:, :used] != 0).any()) and not bool((flat[:, used:] != 0).any())


def test_wrong_sizes_are_refused() -> None:
    x, offset, mask, weight, bias = case(4, 4, 1, 0.0)
    with pytest.raises(ValueError, match="view_offsets_as"):
        deform_conv2d(x, offset, mask, weight, bias, stride=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_exact_coordinates(dtype, form) -> None:
    # Beyond 2048 (256 in bfloat16) half precision has no odd numbers: positions must not be computed in it.
    x = torch.randn(1, 2, 1, 300)
    offset, mask = torch.full((1, 18, 1, 300), 0.25), torch.ones(1, 9, 1, 300)
    weight, bias = torch.randn(2, 2, 3, 3), torch.randn(2)
    exact = form(x, offset, mask, weight, bias)
    half = form(*(value.to(dtype) for value in (x, offset, mask, weight, bias)))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.05)


def test_autocast_stays_in_float32() -> None:
    args = case(6, 5, 1, 0.8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = deform_conv2d(*args)
    assert out.dtype == torch.float32
    assert torch.equal(out, deform_conv2d(*args))
