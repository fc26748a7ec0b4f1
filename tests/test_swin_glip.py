# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP's Swin: equal to Transformers' own where the two should agree, and what it does otherwise."""

import pytest
import torch
from tiny import lively, tiny_swin
from transformers import SwinBackbone
from transformers.models.swin.modeling_swin import SwinDropPath

import glip_hf.swin_glip as swin
from glip_hf.swin_glip import GlipSwinBackbone, GlipSwinLayer, _shift_mask, head_rows, window_cells

SIZES = [(64, 64), (32, 32), (36, 100), (33, 70), (128, 40)]


def make_pair() -> tuple[GlipSwinBackbone, SwinBackbone]:
    ours = lively(GlipSwinBackbone(tiny_swin())).eval()
    theirs = SwinBackbone(tiny_swin()).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert report.missing_keys == ["swin.layernorm.weight", "swin.layernorm.bias"] and not report.unexpected_keys
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers_with_window_and_shift_kept(size) -> None:
    """`SwinBackbone` partitions always; a map smaller than its window is padded and still shifted."""
    ours, theirs = make_pair()
    pixels = torch.randn(2, 3, *size)
    for a, b in zip(ours(pixels).feature_maps, theirs(pixels).feature_maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_size_is_remembered() -> None:
    ours = make_pair()[0]
    pixels = {size: torch.randn(1, 3, *size) for size in SIZES}
    fresh = {size: make_pair()[0](pixels[size]).feature_maps for size in SIZES}
    for size in [*SIZES, *reversed(SIZES)]:
        for a, b in zip(ours(pixels[size]).feature_maps, fresh[size]):
            assert torch.equal(a, b)
    layers = [module for module in ours.modules() if hasattr(module, "shift")]
    assert [layer.shift for layer in layers] == [0, 0, 0, 2, 0] and {layer.window for layer in layers} == {4}


@torch.no_grad()
def test_strides_and_channels() -> None:
    ours = make_pair()[0]
    maps = ours(torch.randn(1, 3, 100, 64)).feature_maps
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 13, 8), (32, 7, 4), (64, 4, 2)]
    assert list(ours.channels) == [16, 32, 64]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_states_and_attentions_on_request(implementation) -> None:
    ours = GlipSwinBackbone._from_config(tiny_swin(), attn_implementation=implementation).eval()
    pixels = torch.randn(2, 3, 64, 64)
    quiet = ours(pixels)
    assert quiet.hidden_states is None and quiet.attentions is None
    states = ours(pixels, output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in states] == [
        (2, 8, 16, 16),
        (2, 8, 16, 16),
        (2, 16, 8, 8),
        (2, 32, 4, 4),
        (2, 64, 2, 2),
    ]
    if implementation == "eager":
        attentions = ours(pixels, output_attentions=True).attentions
        assert [x.shape[1:] for x in attentions] == [(1, 16, 16), (2, 16, 16), (2, 16, 16), (2, 16, 16)]
    assert isinstance(ours(pixels, return_dict=False), tuple)


def make_layer(shift: int, window: int = 4, **overrides) -> GlipSwinLayer:
    config = tiny_swin(window_size=window, **overrides)
    config._attn_implementation = "sdpa"
    return lively(GlipSwinLayer(config, 8, 2, 0.0, shift)).double()


PLACES = [(8, 8, 0), (8, 8, 2), (5, 9, 0), (5, 9, 2), (4, 4, 2), (3, 2, 2)]
"""Heights, widths and shifts: whole windows, padded ones, a single one, a map smaller than its window."""


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 800, 2**20])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width", "shift"), PLACES)
def test_fused_inference_equals_the_attention_module(height, width, shift, batch, block, monkeypatch) -> None:
    layer = make_layer(shift).eval()
    x = torch.randn(batch, height, width, 8, dtype=torch.float64)
    expected = x + layer._attend_plain(layer.layernorm_before(x))[0]
    expected = expected + layer.mlp(layer.layernorm_after(expected))
    monkeypatch.setattr(swin, "BLOCK_NUMBERS", block)
    monkeypatch.setattr(layer, "_attend_plain", None)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 2])
def test_fused_inference_in_half_precision(shift, monkeypatch) -> None:
    layer = make_layer(shift).eval()
    x = torch.randn(2, 5, 9, 8)
    expected = layer(x.double())[0]
    monkeypatch.setattr(layer, "_attend_plain", None)
    found = layer.bfloat16()(x.bfloat16())[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_shares(masked) -> None:
    query, key = torch.randn(2, 12, 16, 8).unbind()  # 2 pictures of 3 windows, 2 heads
    position_bias, mask = torch.randn(2, 16, 16), torch.zeros(3, 16, 16)
    mask[..., 5:] = swin.REGION_PENALTY
    mask[0] = swin.REGION_PENALTY  # one and the same penalty changes nothing
    added = (position_bias + masked * mask[:, None]).repeat(2, 1, 1, 1).flatten(0, 1)
    expected = (query @ key.transpose(1, 2) * 0.3 + added).double().softmax(-1)
    found = swin.attention_shares(query, key, position_bias, mask if masked else None, 0.3)
    torch.testing.assert_close(found, expected.float())
    tiny = torch.finfo(torch.float32).tiny
    assert not masked or not ((found > 0) & (found < tiny)).any()  # denormal numbers are slow
    mask = mask[:1].expand_as(mask) if masked else None
    same = swin.attention_shares(query, key, position_bias[:1].expand_as(position_bias), mask, 0.3)
    assert torch.equal(same[0], found[0])


def test_inference_overwrites_only_what_nobody_else_holds(monkeypatch) -> None:
    ours, pixels = make_pair()[0], torch.randn(2, 3, 36, 64)
    layer = ours.swin["encoder"]["layers"][2].blocks[0]
    infer, overwrites = GlipSwinLayer._infer, []
    monkeypatch.setattr(
        GlipSwinLayer, "_infer", lambda self, x, overwrite: (overwrites.append(overwrite), infer(self, x, overwrite))[1]
    )
    kept = []
    with torch.no_grad():
        states = ours(pixels, output_hidden_states=True)
        handle = layer.register_forward_hook(lambda module, args, output: kept.append((args[0], output[0])))
        hooked = ours(pixels)
        handle.remove()
        assert not any(overwrites)
        overwritten = ours(pixels)
        assert all(overwrites[-5:]) and len(overwrites) == 15
        assert torch.equal(layer(kept[0][0])[0], kept[0][1])
    for result in (hooked, overwritten):
        for one, other in zip(result.feature_maps, states.feature_maps, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("block", [1, 700])
@pytest.mark.parametrize("size", [(36, 64), (33, 58)])
def test_patches_and_merging_in_strips(size, block, monkeypatch) -> None:
    ours, pixels = make_pair()[0], torch.randn(2, 3, *size)
    whole = ours(pixels)  # with gradients nothing goes in strips
    monkeypatch.setattr(swin, "BLOCK_NUMBERS", block)
    with torch.no_grad():
        for one, other in zip(ours(pixels).feature_maps, whole.feature_maps, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("height", "width", "shift"), PLACES)
def test_fused_training_equals_the_attention_module(height, width, shift, qkv_bias) -> None:
    layer = make_layer(shift, qkv_bias=qkv_bias)
    x = torch.randn(2, height, width, 8, dtype=torch.float64, requires_grad=True)
    found, expected = layer._attend_fused(x), layer._attend_plain(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *layer.attention.parameters()]
    weight = torch.randn_like(x)
    pairs = zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reason", ["hook", "adapter", "dropout", "half precision", "eager", "autocast"])
def test_otherwise_the_attention_module_is_called(reason, monkeypatch) -> None:
    layer = make_layer(2, attention_probs_dropout_prob=0.1 if reason == "dropout" else 0.0).train()
    attention = layer.attention
    x, calls = torch.randn(1, 5, 5, 8, dtype=torch.float64), []
    monkeypatch.setattr(layer, "_attend_plain", lambda x: (calls.append(1), (x, None))[1])
    layer(x)
    assert len(calls) == (reason == "dropout")
    if reason == "hook":
        attention.k_proj.register_forward_hook(lambda *_: None)
    elif reason == "adapter":
        attention.q_proj = torch.nn.Sequential(attention.q_proj)
    elif reason == "half precision":
        layer, x = layer.bfloat16(), x.bfloat16()
    elif reason == "eager":
        attention.config._attn_implementation = "eager"
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"):
        layer(x)
    assert calls == [1]


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("block", [40, 2**20], ids=["many blocks", "one block"])
def test_recomputed_feed_forward(block, rate, monkeypatch) -> None:
    layer = make_layer(0).train()
    if rate:
        layer.drop_path = SwinDropPath(rate)
    x = torch.randn(3, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *layer.mlp.parameters(), *layer.layernorm_after.parameters()], torch.randn_like(x)

    def run(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        monkeypatch.setattr(layer, "_may_recompute", lambda _: recompute)
        monkeypatch.setattr(swin, "BLOCK_NUMBERS", block)
        out = layer(x)[0]
        return [out, *torch.autograd.grad((out * weight).sum(), inputs)]

    for a, b in zip(run(True), run(False)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reason", [None, "small", "wide", "dropout", "adapter", "hook"])
def test_what_is_recomputed(reason, monkeypatch) -> None:
    layer, x = make_layer(0).train(), torch.randn(1, 4, 4, 8, dtype=torch.float64)
    monkeypatch.setattr(swin, "BLOCK_NUMBERS", 4 * x.numel() - (reason != "small"))
    if reason == "wide":
        monkeypatch.setattr(swin, "RECOMPUTED_WIDTH", 7)
    elif reason == "dropout":
        layer.dropout.p = 0.1
    elif reason == "adapter":
        layer.mlp.fc2 = torch.nn.Sequential(layer.mlp.fc2)
    elif reason == "hook":
        layer.mlp.fc1.register_forward_hook(lambda *_: None)
    assert layer._may_recompute(x) == (reason is None)
    with torch.no_grad():
        assert not layer._may_recompute(x)


def test_windows_by_hand() -> None:
    # A map of 3 x 2 in windows of 2: padded to 4 x 2, row 3 does not exist.
    cells, places = window_cells(3, 2, 2, 0, torch.device("cpu"))
    assert cells.tolist() == [0, 1, 2, 3, 4, 5, -1, -1] and places.tolist() == [0, 1, 2, 3, 4, 5]
    # Shifted by one: row 1 comes first, column 1 before column 0.
    cells, places = window_cells(3, 2, 2, 1, torch.device("cpu"))
    assert cells.tolist() == [3, 2, 5, 4, -1, -1, 1, 0] and places.tolist() == [7, 6, 1, 0, 3, 2]


def test_few_sizes_are_kept() -> None:
    for side in range(1, 80):
        head_rows(1, side, 1, 2, 0, 1, torch.device("cpu"))
    assert head_rows.cache_info().currsize == head_rows.cache_info().maxsize == 32
    assert window_cells.cache_info().currsize == window_cells.cache_info().maxsize == 64


def test_no_denormal_weights_in_training() -> None:
    """exp(-100) is one, and each costs as much as a hundred other numbers: twice the time of a step."""
    layer = make_layer(2).float()
    x = torch.randn(1, 8, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        layer._attend_fused(x)
    weights = next(value for value in kept if value.shape[1:] == (16, 16))
    assert bool((weights == 0).any()) and bool((weights[weights > 0] >= torch.finfo(torch.float32).tiny).all())


def test_shift_mask_by_hand() -> None:
    # A map of 4 x 4 in windows of 2, shifted by 1: after the roll the last row and column come from the other side.
    mask = _shift_mask(2, 2, 2, 1)
    assert mask.shape == (4, 4, 4)
    assert bool((mask[0] == 0).all())
    apart = [[0, -100, 0, -100], [-100, 0, -100, 0], [0, -100, 0, -100], [-100, 0, -100, 0]]
    assert mask[1].tolist() == apart  # the right window: columns belong to different sides
    assert int((mask[3] == 0).sum()) == 4  # the corner window: every cell alone


def test_stochastic_depth_grows_and_acts_on_both_branches() -> None:
    config = tiny_swin(drop_path_rate=0.4, depths=[1, 1, 2, 1])
    ours = lively(GlipSwinBackbone(config))
    layers = [layer for stage in ours.swin["encoder"]["layers"] for layer in stage.blocks]
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])

    layer = layers[-1].train()
    layer.drop_path.drop_prob = 0.5
    x = torch.randn(256, 2, 2, config.embed_dim * 8)
    with torch.no_grad():
        out = layer(x)[0]
        attended = layer._attend_plain(layer.layernorm_before(x))[0]

        def forward(a: float, b: float) -> torch.Tensor:
            y = x + a * attended
            return y + b * layer.mlp(layer.layernorm_after(y))

        outcomes = [forward(a, b) for a in (0, 2) for b in (0, 2)]
    matches = torch.stack([torch.isclose(out, o, rtol=1e-3, atol=1e-3).flatten(1).all(1) for o in outcomes])
    assert bool((matches.sum(0) == 1).all())
    assert bool((matches.sum(1) > 30).all())  # 64 of each expected


def test_gradient_checkpointing_changes_nothing() -> None:
    ours = lively(GlipSwinBackbone(tiny_swin())).train()
    pixels = torch.randn(1, 3, 64, 64)

    def gradients() -> list[torch.Tensor]:
        loss = sum(x.square().sum() for x in ours(pixels).feature_maps)
        return list(torch.autograd.grad(loss, list(ours.parameters())))

    plain = gradients()
    ours.activation_checkpointing_enable()
    for a, b in zip(gradients(), plain):
        torch.testing.assert_close(a, b)


def test_every_parameter_is_used() -> None:
    ours = lively(GlipSwinBackbone(tiny_swin()))
    sum(x.square().sum() for x in ours(torch.randn(1, 3, 64, 64)).feature_maps).backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


def test_initial_values() -> None:
    # Wide enough for statistics.
    ours = GlipSwinBackbone(tiny_swin(embed_dim=32, num_heads=[2, 2, 4, 4]))
    for name, parameter in ours.named_parameters():
        if name.endswith("bias"):
            assert bool((parameter == 0).all()) or "projection" in name, name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        elif "projection" not in name:
            assert 0.015 < parameter.std() < 0.025 and parameter.abs().max() < 2.01, name
