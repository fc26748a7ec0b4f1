# Copyright 2026 The glip_hf authors. MIT licence.
"""The Swin layer's kernel for CPUs against the layer as it is written, and each of its steps alone."""

from contextlib import nullcontext

import pytest
import torch
from tiny import lively, tiny_swin
from transformers.models.swin.modeling_swin import SwinDropPath

import glip_hf.kernels.cpu_swin as swin
from glip_hf import kernels
from glip_hf.kernels.cpu_swin import (
    attend,
    attend_with_gradients,
    attention_weights,
    head_rows,
    sorted_windows,
    window_cells,
)
from glip_hf.ops_glip import select_kernel
from glip_hf.swin_glip import REGION_PENALTY, GlipSwinLayer


def make_layer(shift: int, window: int = 4, **overrides) -> GlipSwinLayer:
    config = tiny_swin(window_size=window, **overrides)
    config._attn_implementation = "sdpa"
    return lively(GlipSwinLayer(config, 8, None, 2, 0.0, shift)).double()


SIZES = [(8, 8, 0), (8, 8, 2), (5, 9, 0), (5, 9, 2), (4, 4, 2), (3, 2, 2)]
"""Heights, widths and shifts: whole windows, padded ones, a single one, a feature map smaller than its window."""


@torch.no_grad()
@pytest.mark.parametrize("table", [0, 2**20])
@pytest.mark.parametrize("block", [1, 800, 2**20])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width", "shift"), SIZES)
def test_fused_inference_equals_the_attention_module(height, width, shift, batch, block, table, monkeypatch) -> None:
    layer = make_layer(shift).eval()
    x = torch.randn(batch, height, width, 8, dtype=torch.float64)
    with kernels.disable():
        expected = layer(x)[0]
    given = x.clone()
    monkeypatch.setattr(swin, "BLOCK_VALUES", block)
    monkeypatch.setattr(swin, "TABLE_VALUES", table)
    monkeypatch.setattr(layer, "attend", None)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, given)


@torch.no_grad()
@pytest.mark.parametrize("table", [0, 2**20])
@pytest.mark.parametrize("shift", [0, 2])
def test_fused_inference_in_half_precision(shift, table, monkeypatch) -> None:
    monkeypatch.setattr(swin, "TABLE_VALUES", table)
    layer = make_layer(shift).eval()
    x = torch.randn(2, 5, 9, 8)
    expected = layer(x.double())[0]
    monkeypatch.setattr(layer, "attend", None)
    found = layer.bfloat16()(x.bfloat16())[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights(masked) -> None:
    query, key = torch.randn(2, 12, 16, 8).unbind()  # 2 images of 3 windows, 2 heads
    position_bias, mask = torch.randn(2, 16, 16), torch.zeros(3, 16, 16)
    mask[..., 5:] = REGION_PENALTY
    mask[0] = REGION_PENALTY  # one and the same penalty changes nothing
    added = (position_bias + masked * mask[:, None]).repeat(2, 1, 1, 1).flatten(0, 1)
    expected = (query @ key.transpose(1, 2) * 0.3 + added).double().softmax(-1)
    found = attention_weights(query, key, position_bias, mask if masked else None, 0.3)
    torch.testing.assert_close(found, expected.float())
    tiny = torch.finfo(torch.float32).tiny
    assert not masked or not ((found > 0) & (found < tiny)).any()  # denormal values are slow
    mask = mask[:1].expand_as(mask) if masked else None
    same = attention_weights(query, key, position_bias[:1].expand_as(position_bias), mask, 0.3)
    assert torch.equal(same[0], found[0])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("level", [0, 60, -60, 2000, -2000])
@torch.no_grad()
def test_attention_without_a_softmax(level, dtype, tolerance) -> None:
    """Also where exponentials overflow or vanish, next to what a mask keeps apart."""
    parts = torch.randn(3, 4, 2, 16, 8, dtype=torch.float64).to(dtype)
    added = torch.randn(2, 16, 16, dtype=torch.float64)
    added[1, :, 5:] = -torch.inf
    query, key, value = parts.double()
    expected = (query @ key.transpose(2, 3) * 0.3 + added).softmax(-1) @ value
    out = torch.empty_like(parts[0])
    # What all scores have in common does not change the weights; in half precision it leaves too little of the rest.
    half = dtype in (torch.bfloat16, torch.float16)
    attend(parts, (added + (0 if half else level)).to(dtype), 0.3, out)
    tolerance = max(tolerance, torch.finfo(dtype).eps * (0 if half else abs(level)))  # scores of 2000 are rounded so
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    attend(parts, (added + level).to(dtype), 0.3, out)
    assert bool(out.isfinite().all()) and bool((out.abs() <= 1.01 * value.abs().max()).all())


@torch.no_grad()
def test_attention_shows_what_is_not_a_number() -> None:
    parts, out = torch.randn(3, 2, 2, 16, 8), torch.empty(2, 2, 16, 8)
    parts[0, 0, 1, 3] = torch.nan
    attend(parts, torch.zeros(2, 16, 16), 0.3, out)
    assert out.isnan().any(-1).nonzero().tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("height", "width", "shift"), SIZES)
def test_fused_training_equals_the_attention_module(height, width, shift, qkv_bias) -> None:
    layer = make_layer(shift, qkv_bias=qkv_bias)
    x = torch.randn(2, height, width, 8, dtype=torch.float64, requires_grad=True)
    found, expected = attend_with_gradients(layer, x), layer.attend(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *layer.attention.parameters()]
    weight = torch.randn_like(x)
    pairs = zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


REASONS = ["hook", "adapter", "dropout", "half precision", "eager", "autocast", "mlp adapter", "mlp hook"]


@pytest.mark.parametrize("reason", [*REASONS, "dropout hook", "drop_path hook"])
def test_otherwise_the_layer_runs_as_written(reason) -> None:
    layer = make_layer(2, attention_probs_dropout_prob=0.1 if reason == "dropout" else 0.0).train()
    attention = layer.attention
    x = torch.randn(1, 5, 5, 8, dtype=torch.float64)
    assert (select_kernel("swin_layer", layer, x) is None) == (reason == "dropout")
    if reason == "hook":
        attention.k_proj.register_forward_hook(lambda *_: None)
    elif reason == "adapter":
        attention.q_proj = torch.nn.Sequential(attention.q_proj)
    elif reason == "half precision":
        layer, x = layer.bfloat16(), x.bfloat16()
    elif reason == "eager":
        attention.config._attn_implementation = "eager"
    elif reason == "mlp adapter":
        layer.mlp.fc2 = torch.nn.Sequential(layer.mlp.fc2)
    elif reason == "mlp hook":
        layer.mlp.fc1.register_forward_hook(lambda *_: None)
    elif reason.startswith("drop") and reason.endswith("hook"):
        layer.get_submodule(reason.split()[0]).register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"):
        assert select_kernel("swin_layer", layer, x) is None
        layer(x)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("block", [40, 4 * 3 * 4 * 5 * 8 - 1], ids=["many blocks", "few blocks"])
def test_recomputed_feed_forward(block, rate, monkeypatch) -> None:
    layer = make_layer(0).train()
    if rate:
        layer.drop_path = SwinDropPath(rate)
    x = torch.randn(3, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *layer.mlp.parameters(), *layer.layernorm_after.parameters()], torch.randn_like(x)

    def run(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        with nullcontext() if recompute else kernels.disable():
            out = layer(x)[0]
        return [out, *torch.autograd.grad((out * weight).sum(), inputs)]

    monkeypatch.setattr(swin, "BLOCK_VALUES", block)
    for a, b in zip(run(True), run(False)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reason", [None, "small", "wide"])
def test_what_is_recomputed(reason, monkeypatch) -> None:
    layer, x = make_layer(0).train(), torch.randn(1, 4, 4, 8, dtype=torch.float64)
    monkeypatch.setattr(swin, "BLOCK_VALUES", 4 * x.numel() - (reason != "small"))
    if reason == "wide":
        monkeypatch.setattr(swin, "RECOMPUTED_WIDTH", 7)
    calls, apply_function = [], swin.apply_function
    monkeypatch.setattr(
        swin, "apply_function", lambda function, *args: calls.append(function) or apply_function(function, *args)
    )
    layer(x)
    assert (swin.FeedForward in calls) == (reason is None)


def test_windows_by_hand() -> None:
    # A feature map of 3 x 2 in windows of 2: padded to 4 x 2, row 3 does not exist.
    cells, slots = window_cells(3, 2, 2, 0, torch.device("cpu"))
    assert cells.tolist() == [0, 1, 2, 3, 4, 5, -1, -1] and slots.tolist() == [0, 1, 2, 3, 4, 5]
    # Shifted by one: row 1 comes first, column 1 before column 0.
    cells, slots = window_cells(3, 2, 2, 1, torch.device("cpu"))
    assert cells.tolist() == [3, 2, 5, 4, -1, -1, 1, 0] and slots.tolist() == [7, 6, 1, 0, 3, 2]


def test_windows_of_one_mask_lie_side_by_side() -> None:
    cells, slots, counts = sorted_windows(5, 6, 2, 1, torch.device("cpu"))
    pattern = swin.pattern_of_window(3, 3, None)
    assert counts == tuple(pattern.bincount().tolist()) == (4, 2, 2, 1)
    by_cell, _ = window_cells(5, 6, 2, 1, torch.device("cpu"))
    assert torch.equal(cells, by_cell.view(-1, 4)[[0, 1, 3, 4, 2, 5, 6, 7, 8]])
    assert torch.equal(cells.flatten()[slots], torch.arange(30))
    assert sorted_windows(5, 6, 2, 0, torch.device("cpu"))[2] == (9, 0, 0, 0)


def test_few_sizes_are_kept() -> None:
    for side in range(1, 80):
        head_rows(1, side, 1, 2, 0, 1, torch.device("cpu"))
    assert head_rows.cache_info().currsize == head_rows.cache_info().maxsize == 32
    assert window_cells.cache_info().currsize == window_cells.cache_info().maxsize == 64


def test_no_denormal_weights_in_training() -> None:
    """exp(-100) is one, and each costs as much as a hundred other values: twice the time of a step."""
    layer = make_layer(2).float()
    x = torch.randn(1, 8, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        attend_with_gradients(layer, x)
    weights = next(value for value in kept if value.shape[1:] == (16, 16))
    assert bool((weights == 0).any()) and bool((weights[weights > 0] >= torch.finfo(torch.float32).tiny).all())
