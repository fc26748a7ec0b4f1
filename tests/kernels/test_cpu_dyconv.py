# Copyright 2026 The glip_hf authors. MIT licence.
"""The DyConv block of all levels at once against the block level by level, and each of its steps alone."""

import pytest
import torch
from tiny import lively, tiny_config
from torch import Tensor, nn

import glip_hf.kernels.cpu_dyconv as fused
from glip_hf import kernels
from glip_hf.kernels.cpu_dyconv import (
    LocatePoints,
    Merge,
    Moments,
    QuirkView,
    TokenConvolution,
    convolve_levels,
    is_pyramid,
    locate_points,
    make_sampling_grid,
    pyramid_plan,
    upsampled,
    upsampled_backward,
)
from glip_hf.modeling_glip import GlipDyConv
from glip_hf.ops_glip import to_pyramid, to_tokens, view_offsets_as

PYRAMIDS = [
    [(5, 7), (3, 4), (2, 2), (1, 1), (1, 1)],
    [(8, 3), (4, 2), (2, 1)],
    [(7, 6), (4, 3), (2, 2)],
    [(1, 1), (1, 1)],
]
SMALL = ((3, 4), (2, 2), (1, 1))
DOUBLE = torch.float64


def make_layer(**overrides) -> GlipDyConv:
    layer = lively(GlipDyConv(tiny_config(**overrides))).double()
    layer.offset_conv.weight.data *= 4  # some sampling points leave the feature map
    return layer


def make_tokens(shapes, batch: int = 2, channels: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    cells = sum(height * width for height, width in shapes)
    return torch.randn(batch, cells, channels, generator=generator, dtype=DOUBLE)


def plain(layer: GlipDyConv, tokens: Tensor, shapes) -> Tensor:
    with kernels.disable():
        return layer(tokens, shapes)


def plan_of(shapes):
    return pyramid_plan(tuple(shapes), torch.device("cpu"), DOUBLE)


@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_equals_the_block_level_by_level(shapes, batch, block, monkeypatch) -> None:
    monkeypatch.setattr(fused, "MERGE_BLOCK", block)
    layer, tokens = make_layer(), make_tokens(shapes, batch).requires_grad_()
    found, expected = layer(tokens, shapes), plain(layer, tokens, shapes)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(found)
    inputs = [tokens, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_inference_leaves_its_input_as_it_is(shapes, batch, monkeypatch) -> None:
    monkeypatch.setattr(fused, "COLUMN_BLOCK", 3)
    monkeypatch.setattr(fused, "LOCATED_BLOCK", 6)
    layer, tokens = make_layer(), make_tokens(shapes, batch)
    given, expected = tokens.clone(), plain(layer, tokens, shapes)
    torch.testing.assert_close(layer(tokens, shapes), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(tokens, given)


@torch.no_grad()
@pytest.mark.parametrize("located", [32, 8192])
def test_all_products_of_a_convolution_have_one_shape(located, monkeypatch) -> None:
    """That for which its kernel was packed: 164 positions of conv_mid and 47 of the others, no multiples of it."""
    monkeypatch.setattr(fused, "COLUMN_BLOCK", 16)
    monkeypatch.setattr(fused, "LOCATED_BLOCK", located)
    shapes, rows, multiply = [(13, 9), (7, 5), (4, 3)], [], fused.linear
    layer, tokens = make_layer().float(), make_tokens(shapes).float()
    expected = plain(layer, tokens, shapes)
    monkeypatch.setattr(fused, "linear", lambda x, *rest: rows.append(len(x)) or multiply(x, *rest))
    torch.testing.assert_close(layer(tokens, shapes), expected, rtol=1e-4, atol=1e-4)
    assert set(rows) == {15, 16}


def test_the_kernel_is_the_form_that_runs(monkeypatch) -> None:
    layer, tokens = make_layer(), make_tokens(SMALL)
    monkeypatch.setattr(type(layer.conv_mid), "forward", lambda *_: pytest.fail("level by level"))
    layer(tokens, SMALL)


@pytest.mark.parametrize("reason", ["hook", "adapter"])
def test_otherwise_it_goes_level_by_level(reason) -> None:
    layer, tokens, calls = make_layer(), make_tokens(SMALL), []
    expected = layer(tokens, SMALL)
    if reason == "hook":
        layer.conv_mid.register_forward_hook(lambda *_: calls.append(1))
    else:

        class Adapter(nn.Module):
            def __init__(self, base: nn.Module) -> None:
                super().__init__()
                self.base = base

            def forward(self, x: Tensor) -> Tensor:
                calls.append(1)
                return self.base(x)

        layer.offset_conv = Adapter(layer.offset_conv)
    torch.testing.assert_close(layer(tokens, SMALL), expected)
    assert len(calls) == 3


def test_a_single_level_has_no_neighbours() -> None:
    layer, tokens = make_layer(), make_tokens([(4, 4)])
    torch.testing.assert_close(layer(tokens, [(4, 4)]), plain(layer, tokens, [(4, 4)]))


def test_what_is_a_pyramid() -> None:
    assert all(is_pyramid(shapes) for shapes in PYRAMIDS)
    assert not is_pyramid([(4, 4)]) and not is_pyramid([(4, 4), (2, 3)]) and not is_pyramid([(5, 4), (2, 2)])


def test_few_plans_are_kept() -> None:
    for side in range(2, 14):
        plan_of([(side, 2), (-(-side // 2), 1)])
    assert pyramid_plan.cache_info().currsize == pyramid_plan.cache_info().maxsize == 8
    assert plan_of([(13, 2), (7, 1)]) is plan_of([(13, 2), (7, 1)])


@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_token_convolution(shapes) -> None:
    tokens, conv = make_tokens(shapes, channels=3), nn.Conv2d(3, 5, 3, padding=1).double()
    found = TokenConvolution.apply(tokens, conv.weight, conv.bias, plan_of(shapes))
    torch.testing.assert_close(found, to_tokens([conv(level) for level in to_pyramid(tokens, shapes)]))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_convolution_level_by_level(shapes, dtype) -> None:
    tokens, conv = make_tokens(shapes, channels=3).to(dtype), nn.Conv2d(3, 5, 3, padding=1, dtype=dtype)
    with torch.no_grad():
        found = convolve_levels(tokens, conv.weight, conv.bias, shapes)
        torch.testing.assert_close(found, to_tokens([conv(level) for level in to_pyramid(tokens, shapes)]))


@pytest.mark.parametrize("onednn", [False, True])
@torch.no_grad()
def test_inference_convolves_by_what_is_there(onednn, monkeypatch) -> None:
    layer, tokens = make_layer(), make_tokens(SMALL)
    expected = plain(layer, tokens, SMALL)
    monkeypatch.setattr(fused, "onednn_available", lambda: onednn)
    monkeypatch.setattr(fused.TokenConvolution if onednn else fused, "apply" if onednn else "convolve_levels", None)
    torch.testing.assert_close(layer(tokens, SMALL), expected)


def test_gradients_of_the_token_convolution() -> None:
    args = [make_tokens(SMALL, channels=2), torch.randn(3, 2, 3, 3, dtype=DOUBLE), torch.randn(3, dtype=DOUBLE)]
    args = [value.requires_grad_() for value in args]
    assert torch.autograd.gradcheck(lambda *a: TokenConvolution.apply(*a, plan_of(SMALL)), args)


@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_the_quirk_of_all_levels(shapes) -> None:
    moves = make_tokens(shapes, channels=27)
    levels = to_pyramid(moves, shapes)
    expected = []
    for level, (height, width) in zip(levels, shapes[1:]):
        expected.append(torch.cat(view_offsets_as(level[:, :18], level[:, 18:], height, width), dim=1))
    assert torch.equal(QuirkView.apply(moves, plan_of(shapes)), to_tokens(expected))


def test_gradients_of_the_quirk() -> None:
    moves = make_tokens(SMALL, batch=1, channels=27).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: QuirkView.apply(x, plan_of(SMALL)), [moves])


@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_moments(shapes) -> None:
    tokens, plan = make_tokens(shapes), plan_of(shapes)
    mean, square = Moments.apply(tokens, plan.sizes)
    for i, level in enumerate(to_pyramid(tokens, shapes)):
        torch.testing.assert_close(mean[:, i], level.mean((2, 3)))
        torch.testing.assert_close(square[:, i], level.square().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_moments_of_half_precision_are_float32(dtype) -> None:
    tokens, plan = (2 + make_tokens(SMALL)).to(dtype), plan_of(SMALL)
    found, expected = Moments.apply(tokens, plan.sizes), Moments.apply(tokens.double(), plan.sizes)
    torch.testing.assert_close(found, tuple(x.float() for x in expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_points_are_located_as_with_gradients(stride) -> None:
    grid = make_sampling_grid(5, 2, stride, 3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    offset = 4 * torch.randn(1, len(grid.base), 9, 2, generator=generator)
    offset[0, 0, :5] = torch.tensor([[-1.0, 0], [0, -1], [1e30, 0], [0, -torch.inf], [0.5, torch.inf]])
    mask = torch.rand(offset.shape[:3], generator=generator)
    values = torch.randn(3 + 10, generator=generator)
    sums = []
    for rows, weights in (locate_points(offset, mask, grid), LocatePoints.apply(offset, mask, grid, 0)):
        assert rows.dtype == torch.int32 and 3 <= rows.min() and rows.max() < 3 + 10
        sums.append((values[rows.long()] * weights).sum(-1))
    torch.testing.assert_close(*sums)
    offset[0, 1, 0, 1] = torch.nan
    rows, weights = locate_points(offset, mask, grid)
    assert weights[0, 1, 0].isnan().any() and 3 <= rows.min() and rows.max() < 3 + 10


def test_gradients_of_the_moments() -> None:
    tokens = make_tokens(SMALL, channels=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Moments.apply(x, plan_of(SMALL).sizes), [tokens])


@pytest.mark.parametrize("shapes", PYRAMIDS)
def test_upsampling(shapes) -> None:
    plan = plan_of(shapes)
    tokens = make_tokens(shapes[1:], channels=3)
    expected = [
        nn.functional.interpolate(level, size=size, mode="bilinear", align_corners=True)
        for level, size in zip(to_pyramid(tokens, shapes[1:]), shapes)
    ]
    expected_tokens = to_tokens(expected)
    for cells in (slice(0, None), slice(1, 4)):
        torch.testing.assert_close(upsampled(tokens, plan, cells), expected_tokens[:, cells])
    means = torch.stack([level.mean((2, 3)) for level in expected], dim=1)
    torch.testing.assert_close(plan.upsampled_mean @ tokens, means)


def test_the_transpose_of_the_upsampling() -> None:
    plan, tokens = plan_of(SMALL), make_tokens(SMALL[1:], channels=2)
    large = upsampled(tokens, plan, slice(0, None))
    other = torch.randn(large.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    torch.testing.assert_close((large * other).sum(), (tokens * upsampled_backward(other, plan)).sum())


def merge_arguments(channels: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    cells = [height * width for height, width in SMALL]
    shapes = [(sum(cells),), (sum(cells[1:]),), (sum(cells[1:]),), (7,), (3,), (3, 4)]
    return [torch.randn(2, *shape, channels, generator=generator, dtype=DOUBLE) for shape in shapes]


@pytest.mark.parametrize("block", [5, 1024])
def test_gradients_of_the_merge(block, monkeypatch) -> None:
    monkeypatch.setattr(fused, "MERGE_BLOCK", block)
    args = [value.requires_grad_() for value in merge_arguments()]
    assert torch.autograd.gradcheck(lambda *a: Merge.apply(*a, plan_of(SMALL)), args)


def test_a_tie_of_the_two_pieces_shares_the_gradient() -> None:
    args = merge_arguments()
    args[5][:, :, 2:] = args[5][:, :, :2]
    args = [value.requires_grad_() for value in args]
    Merge.apply(*args, plan_of(SMALL)).sum().backward()
    torch.testing.assert_close(args[5].grad[:, :, :2], args[5].grad[:, :, 2:])


def test_autocast_stays_in_float32() -> None:
    layer, tokens = make_layer().float(), make_tokens(SMALL).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(tokens, SMALL)
    assert torch.equal(out, layer(tokens, SMALL)) and out.dtype == torch.float32
    out.sum().backward()
    assert bool(tokens.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype) -> None:
    layer, tokens = make_layer(), make_tokens(PYRAMIDS[0])
    exact = layer(tokens, PYRAMIDS[0])
    out = layer.to(dtype)(tokens.to(dtype), PYRAMIDS[0])
    assert out.dtype == dtype
    assert (out.double() - exact).abs().mean() < 0.03 * exact.abs().mean() * (4 if dtype is torch.bfloat16 else 1)


def test_frozen_parts_get_no_gradient() -> None:
    layer, tokens = make_layer(), make_tokens(SMALL)
    layer.requires_grad_(False)
    layer.conv_low.conv.weight.requires_grad_()
    layer(tokens, SMALL).sum().backward()
    assert bool(layer.conv_low.conv.weight.grad.any())
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["conv_low.conv.weight"]
