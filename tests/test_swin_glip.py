# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP's Swin: equal to Transformers' own where the two should agree, and what it does otherwise."""

import pytest
import torch
from tiny import lively, tiny_swin
from transformers import SwinBackbone

from glip_hf._compat import enable_checkpointing
from glip_hf.swin_glip import GlipSwinBackbone, shift_mask

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
    layers = [module for module in ours.modules() if hasattr(module, "shift_size")]
    assert [layer.shift_size for layer in layers] == [0, 0, 0, 2, 0]
    assert {layer.window_size for layer in layers} == {4}


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


def test_shift_mask_by_hand() -> None:
    # 4 x 4 cells in windows of 2, shifted by 1: after the roll the last row and column come from the other side.
    mask = shift_mask(2, 2, 2, 1)
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
        attended = layer.attend(layer.layernorm_before(x))[0]

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
    enable_checkpointing(ours)
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
