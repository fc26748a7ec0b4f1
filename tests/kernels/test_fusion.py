# Copyright 2026 The glip_hf authors. MIT licence.
"""The absorbed two-way attention through SDPA and in blocks, and the plain layer, against the paper's equations."""

import pytest
import torch
from tiny import lively, tiny_config
from torch import Tensor

import glip_hf.kernels.fusion as fusion
from benchmarks.launches import Launches
from glip_hf import kernels
from glip_hf.kernels.fusion import (
    AttendInBlocks,
    RepeatableDropout,
    absorb,
    attend_in_blocks,
    attend_sdpa,
    attend_sdpa_dropout,
)
from glip_hf.modeling_glip import GlipFusionLayer
from glip_hf.ops_glip import select_kernel

PATHS = ["eager", "sdpa", "absorbed", "blocks"]
LENGTHS = (7, 4)
"""Real tokens of the two captions."""


@pytest.fixture
def take():
    """Make layers take a path of `PATHS`: the plain form with one of two attention implementations, or a kernel."""
    disabled = []

    def choose(path: str) -> None:
        names = {"sdpa": (), "absorbed": ("cpu_fusion",)}.get(path)
        if names is not None:
            disabled.append(kernels.disable(*names))

    yield choose
    for one in disabled:
        one.__exit__()


def make_layer(path: str = "eager", **overrides) -> GlipFusionLayer:
    config = tiny_config(**overrides)
    config._attn_implementation = "eager" if path == "eager" else "sdpa"
    return lively(GlipFusionLayer(config)).double().eval()


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    vision = torch.randn(2, 37, 16, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)
    return vision, text, torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def textbook(layer: GlipFusionLayer, vision: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The equations of the paper, every projection made, head after head."""
    vision, text = layer.norm_vision(vision), layer.norm_text(text)
    heads, width = layer.num_heads, layer.head_size

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, width)).transpose(1, 2)

    def project(linear: torch.nn.Linear, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, linear.weight, linear.bias)

    query, key = split(project(layer.query_vision, vision)), split(layer.key_text(text))
    scores = query @ key.transpose(2, 3) * width**-0.5
    to_text = scores.masked_fill(~mask[:, None, None], -9e15).softmax(-1)
    to_image = scores.transpose(2, 3).softmax(-1)
    dv = (to_text @ split(layer.value_text(text))).transpose(1, 2).flatten(2)
    dl = (to_image @ split(project(layer.value_vision, vision))).transpose(1, 2).flatten(2)
    return (
        vision + layer.gamma_vision * project(layer.out_vision, dv),
        text + layer.gamma_text * layer.out_text(dl),
    )


def written_out(
    vision: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, text_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Absorbed attention with both matrices written out: image side [B, N, D], text side [B, H, T, D], row sums of the
    text side's weights [B, H, T], attention of the image [B, H, N, T] and of the caption [B, H, T, N]."""
    scores = torch.einsum("bnd,bhtd->bhnt", vision, keys) + key_bias[:, :, None]
    image = scores.masked_fill(~text_mask[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)
    caption = scores.transpose(2, 3).softmax(-1)
    image_side, text_side = (
        torch.einsum("bhnt,bhtd->bnd", image, values),
        torch.einsum("bhtn,bnd->bhtd", caption, vision),
    )
    return image_side, text_side, caption.sum(-1), image, caption


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("block", [8, 37, 1024], ids=["many blocks", "one block", "wide block"])
def test_equals_the_textbook(path, block, take, monkeypatch) -> None:
    take(path)
    monkeypatch.setattr(fusion, "BLOCK_SCORES", block * 2 * 4 * 7)
    monkeypatch.setattr(fusion, "MIN_BLOCK", 1)
    layer, inputs = make_layer(path), make_inputs()
    expected = textbook(layer, *inputs)
    new_vision, new_text, *attentions = layer(*inputs)
    assert attentions == [None, None]
    torch.testing.assert_close(new_vision, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new_text, expected[1], rtol=1e-10, atol=1e-10)


def test_in_place_only_on_tensors_of_its_own(take) -> None:
    take("blocks")
    layer, inputs = make_layer("blocks"), make_inputs()
    given, expected = [x.clone() for x in inputs], layer(*inputs)
    kept = []
    with torch.no_grad():
        found = layer(*inputs)
        hook = layer.norm_vision.register_forward_hook(lambda module, args, output: kept.append(output))
        hooked = layer(*inputs)
        hook.remove()
        own = layer.norm_vision(inputs[0])
        keys, bias, values, _ = absorb(layer, layer.norm_text(inputs[1]))
        result = attend_in_blocks(own, keys, bias, values, inputs[2], in_place=True)[0]
    assert result.data_ptr() == own.data_ptr()
    assert all(torch.equal(one, other) for one, other in zip(inputs, given))
    torch.testing.assert_close(kept[0], layer.norm_vision(inputs[0]))
    for one, other in zip(found[:2], expected):
        assert torch.equal(one, other)
    for one, other in zip(hooked[:2], expected):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("path", "dropout", "form"),
    [
        ("eager", 0.0, "plain"),
        ("sdpa", 0.0, "plain"),
        ("absorbed", 0.0, "absorbed_fusion"),
        ("absorbed", 0.1, "absorbed_fusion"),
        ("blocks", 0.0, "cpu_fusion"),
        ("blocks", 0.1, "cpu_fusion"),
    ],
)
def test_every_path_is_taken(path, dropout, form, take) -> None:
    take(path)
    layer = make_layer(path, fusion_dropout=dropout).train(dropout > 0)
    kernel = select_kernel("fusion", layer, *make_inputs())
    assert ("plain" if kernel is None else kernel.name) == form


@pytest.mark.parametrize("part", ["query_vision", "value_vision", "out_vision", "key_text", "value_text", "out_text"])
def test_every_projection_is_called_where_it_is_watched(part) -> None:
    layer, inputs, calls = make_layer("blocks"), make_inputs(), []
    expected = layer(*inputs)
    getattr(layer, part).register_forward_hook(lambda *_: calls.append(part))
    for one, other in zip(layer(*inputs)[:2], expected):
        torch.testing.assert_close(one, other)
    assert calls == [part]


@pytest.mark.parametrize("block", [8, 1024], ids=["many blocks", "wide block"])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_equal_the_textbook(path, block, take, monkeypatch) -> None:
    take(path)
    monkeypatch.setattr(fusion, "BLOCK_SCORES", block * 2 * 4 * 7)
    monkeypatch.setattr(fusion, "MIN_BLOCK", 1)
    layer, (vision, text, mask) = make_layer(path), make_inputs()
    weights = [torch.randn_like(vision), torch.randn_like(text)]

    def gradients(forward) -> list[Tensor]:
        v, t = vision.clone().requires_grad_(), text.clone().requires_grad_()
        new = forward(v, t, mask)[:2]
        loss = sum((a * b).sum() for a, b in zip(new, weights))
        return list(torch.autograd.grad(loss, [v, t, *layer.parameters()]))

    found, expected = gradients(layer), gradients(lambda *args: textbook(layer, *args))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_attentions_are_distributions() -> None:
    layer, inputs = make_layer("sdpa"), make_inputs()
    *states, image, caption = layer(*inputs, output_attentions=True)
    assert image.shape == (2, 4, 37, 7) and caption.shape == (2, 4, 7, 37)
    torch.testing.assert_close(image.sum(-1), torch.ones(2, 4, 37, dtype=torch.float64))
    torch.testing.assert_close(caption.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
    assert bool((image[1, ..., LENGTHS[1] :] == 0).all())
    for state, expected in zip(states, layer(*inputs)[:2]):
        torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("path", PATHS)
def test_padding_of_the_caption_changes_nothing(path, take) -> None:
    take(path)
    layer, (vision, text, mask) = make_layer(path), make_inputs()
    padded = layer(vision, text, mask)
    alone = layer(vision[1:], text[1:, : LENGTHS[1]], mask[1:, : LENGTHS[1]])
    torch.testing.assert_close(padded[0][1:], alone[0])
    torch.testing.assert_close(padded[1][1:, : LENGTHS[1]], alone[1])


def test_dropout_leaves_the_bias_of_the_values_right() -> None:
    """Rows of dropped weights do not sum to 1: what the value bias adds is their sum."""
    layer, (vision, text, mask) = make_layer("blocks", fusion_dropout=0.4).train(), make_inputs()
    normed_vision, normed_text = layer.norm_vision(vision), layer.norm_text(text)
    keys, key_bias, values, _ = absorb(layer, normed_text)
    torch.manual_seed(3)
    _, gathered, row_sums = attend_in_blocks(normed_vision, keys, key_bias, values, mask, 0.4)
    assert not torch.allclose(row_sums, torch.ones_like(row_sums), atol=0.05)

    torch.manual_seed(3)
    new_text = layer(vision, text, mask)[1]
    # The dropped weights themselves, gathered before the projection of the values.
    weight, bias = (x.unflatten(0, (4, -1)) for x in (layer.value_vision.weight, layer.value_vision.bias))
    heads = torch.einsum("bhtd,hed->bthe", gathered, weight) + row_sums.transpose(1, 2)[..., None] * bias
    torch.testing.assert_close(new_text, normed_text + layer.gamma_text * layer.out_text(heads.flatten(2)))


def arguments() -> tuple[list[Tensor], Tensor]:
    """Small arguments of an attention in double precision, and the mask of the caption."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 5, 3), (2, 2, 3, 3), (2, 2, 3), (2, 2, 3, 3)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return values, torch.arange(3) < torch.tensor((3, 2))[:, None]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("block", "residual"), [(2, True), (5, False)])
def test_gradients_of_blocks(dropout, block, residual) -> None:
    values, mask = arguments()

    def attend(*args: Tensor) -> tuple[Tensor, ...]:
        return AttendInBlocks.apply(*args, mask, dropout, 7, block, residual)

    assert torch.autograd.gradcheck(attend, values)


def test_dropout_of_blocks_is_that_of_the_matrices() -> None:
    (vision, keys, bias, values), mask = arguments()
    found = AttendInBlocks.apply(vision, keys, bias, values, mask, 0.4, 11, 5, False)
    *_, image, caption = written_out(vision, keys, bias, values, mask)
    # Of both attentions of the first pair, then of the second; as they lie in a block: [N, H * T]
    dropping = RepeatableDropout(0.4, 11, torch.device("cpu"))
    masks = torch.stack([dropping.mask(torch.empty(5, 6, dtype=torch.float64)) for _ in range(4)]).unflatten(0, (2, 2))
    masks = masks.unflatten(3, (2, 3)).transpose(2, 3)  # [B, 2, H, N, T]
    assert not torch.equal(masks[:, 0], masks[:, 1])
    image, caption = image * masks[:, 0], caption * masks[:, 1].transpose(2, 3)
    torch.testing.assert_close(found[0], torch.einsum("bhnt,bhtd->bnd", image, values))
    torch.testing.assert_close(found[1], torch.einsum("bhtn,bnd->bhtd", caption, vision))
    torch.testing.assert_close(found[2], caption.sum(-1))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_of_sdpa_is_that_of_the_matrices(dropout) -> None:
    """Results and gradients: SDPA, written out on CPUs where weights are dropped, draws what `dropout` draws."""
    arguments_, mask = arguments()
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 5, 3), (2, 2, 3, 3), (2, 2, 3))]

    def with_gradients(attend) -> list[Tensor]:
        torch.manual_seed(5)
        found = attend(*arguments_)
        loss = sum((one * weight).sum() for one, weight in zip(found, weights))
        return [*found, *torch.autograd.grad(loss, arguments_)]

    def expected(vision: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        *_, image, caption = written_out(vision, keys, bias, values, mask)
        image = torch.nn.functional.dropout(image, dropout)
        caption = torch.nn.functional.dropout(caption, dropout)
        image_side = torch.einsum("bhnt,bhtd->bnd", image, values)
        return image_side, torch.einsum("bhtn,bnd->bhtd", caption, vision), caption.sum(-1)

    found = with_gradients(lambda *args: attend_sdpa_dropout(*args, mask, dropout))
    assert not torch.allclose(found[2], torch.ones_like(found[2])) if dropout else True
    for one, other in zip(found, with_gradients(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_pairs_are_one_batch_on_an_accelerator() -> None:
    """Of the kernels launched forward and backward in training, none is launched once per pair."""
    layer = GlipFusionLayer(tiny_config(fusion_dropout=0.1)).to("meta").train()

    def launched(pairs: int) -> int:
        layer.zero_grad()
        vision = torch.empty(pairs, 37, 16, device="meta", requires_grad=True)
        text = torch.empty(pairs, 7, 24, device="meta", requires_grad=True)
        with Launches() as seen:
            new = layer(vision, text, torch.ones(pairs, 7, dtype=torch.bool, device="meta"))
            (new[0].sum() + new[1].sum()).backward()
        return seen.names.total()

    assert select_kernel("fusion", layer, torch.empty(1, 1, 16, device="meta"), None, None).name == "absorbed_fusion"
    assert launched(2) == launched(5)


def test_masks_of_dropout() -> None:
    like = torch.empty(333, 1001)
    first, second = (RepeatableDropout(0.1, 5, like.device) for _ in range(2))
    masks = [first.mask(like) for _ in range(2)]
    assert all(torch.equal(mask, second.mask(like)) for mask in masks)
    assert not torch.equal(*masks) and not torch.equal(masks[0], RepeatableDropout(0.1, 6, like.device).mask(like))
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0, 1 / 0.9], abs=1e-4)
        # Everywhere alike: over all, and in every column by itself, five standard deviations at most
        assert mask.mean().item() == pytest.approx(1, abs=5 * (1 / 9 / mask.numel()) ** 0.5)
        assert (mask.mean(0) - 1).abs().max() < 5 * (1 / 9 / len(mask)) ** 0.5
    assert RepeatableDropout(0.0, 5, like.device).mask(like) is None


def test_dropout_follows_the_global_seed() -> None:
    layer, inputs = make_layer("blocks", fusion_dropout=0.3).train(), make_inputs()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer(*inputs)[0]

    first = run(1)
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))
    assert not torch.equal(first, layer(*inputs)[0])


def test_blocks_keep_nothing_of_the_size_of_the_scores() -> None:
    (vision, keys, bias, values), mask = arguments()
    vision = torch.randn(2, 4000, 3, dtype=torch.float64, requires_grad=True)
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend_in_blocks(vision, keys, bias, values, mask, 0.1)
    assert max(sizes) == vision.numel()  # scores: twice as many


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("path", ["absorbed", "blocks"])
def test_autocast_trains(path, dropout, take) -> None:
    take(path)
    layer, (vision, text, mask) = make_layer(path, fusion_dropout=dropout).float().train(), make_inputs()
    vision, text = vision.float().requires_grad_(), text.float()
    with torch.autocast("cpu", torch.bfloat16):
        new_vision, new_text, *_ = layer(vision, text, mask)
        loss = new_vision.float().square().mean() + new_text.float().square().mean()
    assert new_vision.dtype == torch.float32  # the visual tokens themselves are not rounded
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in (vision, *layer.parameters()))


@pytest.mark.parametrize("path", ["eager", "absorbed", "blocks"])
def test_dropout_is_right_on_average(path, take) -> None:
    take(path)
    layer, inputs = make_layer(path, fusion_dropout=0.2), make_inputs()
    still = layer(*inputs)[:2]
    layer.train()
    with torch.no_grad():
        noisy = [layer(*inputs)[:2] for _ in range(400)]
    for index in range(2):
        mean = torch.stack([new[index] for new in noisy]).mean(0)
        spread = torch.stack([new[index] for new in noisy]).std(0).mean()
        assert (mean - still[index]).abs().mean() < 0.1 * spread + 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_huge_scores_stay_finite(path, take) -> None:
    take(path)
    layer, (vision, text, mask) = make_layer(path).float(), make_inputs()
    layer.query_vision.weight.data *= 1e4
    new = layer(vision.float(), text.float(), mask)[:2]
    assert all(bool(state.isfinite().all()) for state in new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0], ids=["alike", "rising", "far apart"])
def test_blocks_are_exact_for_any_range_of_scores(scale, dtype) -> None:
    """Later blocks far above the first, locations where every token lies far below its highest score, tokens far below
    all others."""
    vision, text, mask = make_inputs()
    keys, bias, values, _ = absorb(make_layer(), text)
    vision[:, :8] *= 0.1
    keys, bias = keys * scale, bias * scale
    bias[:, :, 3] -= 40 * scale
    exact = written_out(vision, keys, bias, values, mask)[:3]
    args = [value.to(dtype) for value in (vision, keys, bias, values)]
    found = AttendInBlocks.apply(*args, mask, 0.0, 0, 8, False)
    # A score of 1,000 is known to 6e-5 in float32.
    scores = torch.einsum("bnd,bhtd->bhnt", vision, keys).detach().abs().amax()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6 + 4e-7 * float(scores)
    for one, other in zip(found, exact):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


def test_a_level_is_raised_before_its_factor_is_lost() -> None:
    """The second token's factor is exp(-100), no normal float32; in the second block its score makes up for it."""
    vision = torch.eye(2).repeat_interleave(8, 0)[None]
    keys = torch.tensor([[0.0, 0.0], [0.0, 85.0]])[None, None]
    values = torch.tensor([[0.0, 0.0], [1e6, 0.0]])[None, None]
    bias, mask = torch.tensor([0.0, -100.0])[None, None], torch.ones(1, 2, dtype=torch.bool)
    found = AttendInBlocks.apply(vision, keys, bias, values, mask, 0.0, 0, 8, False)
    exact = written_out(*(x.double() for x in (vision, keys, bias, values)), mask)
    torch.testing.assert_close(found[0].double(), exact[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_paths_agree(dtype) -> None:
    vision, text, mask = make_inputs()
    keys, bias, values, _ = absorb(make_layer(), text)
    args = [value.to(dtype) for value in (vision, keys, bias, values)]
    exact = attend_sdpa(vision, keys, bias, values, mask)
    # Without the visual tokens themselves, whose size would hide the difference
    for found in (attend_sdpa(*args, mask), AttendInBlocks.apply(*args, mask, 0.0, 0, 8, False)[:2]):
        for a, b in zip(found, exact):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, atol=0.06, rtol=0.06)
