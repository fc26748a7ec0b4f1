# Copyright 2026 The glip_hf authors. MIT licence.
"""The textbook formulation: equal to what the original computed, and to the model (values, gradients, shapes)."""

import pytest
import torch
from parity.harness import (
    TRAINING_SIZES,
    build_model,
    compare_detections,
    compare_stages,
    format_table,
    load_case,
    record_stages,
)
from parity.test_parity import FULL, SMALL
from parity.test_training_parity import LOSS_NAMES, ZERO_GRADIENTS
from test_modeling_glip import FLOATS, assert_same
from tiny import tiny_inputs, tiny_labels, tiny_model, tiny_swin
from torch import Tensor

from benchmarks import textbook
from benchmarks.textbook import textbook_view
from glip_hf import GlipForGrounding, kernels
from glip_hf._compat import enable_checkpointing
from glip_hf.conversion.weight_map import to_original
from glip_hf.ops_glip import deform_conv2d

LONGEST = 32  # `max_text_length` of the tiny model


def rows_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {key: value[row : row + 1] for key, value in inputs.items()}


def both(inputs: dict, **overrides) -> tuple:
    """Outputs of a tiny model, fast and textbook."""
    model = tiny_model(**overrides)
    return model(**inputs), textbook_view(model)(**inputs)


# --- against the original


def run_case(name: str) -> None:
    case = load_case(name)
    model = textbook_view(build_model(case.architecture, case.description["weights_seed"]))
    ids, _ = case.input_ids()
    inputs = case.inputs()
    with torch.no_grad():
        parts = [record_stages(model, lambda n=n: model(**rows_of(inputs, n)))[1] for n in range(len(ids))]
        outputs = model(**inputs) if len(ids) > 1 else None
    stages = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert stages["text.hidden"].shape[1] == 256  # as the original: padded
    rows = compare_stages(case, stages, inner=False)
    if outputs is None:
        with torch.no_grad():
            outputs = model(**inputs)
    assert outputs.logits.shape[-1] == ids.shape[1]
    torch.testing.assert_close(
        torch.cat([stages[f"head.dot_product_logits.p{level}"] for level in range(3, 8)], 1), outputs.logits
    )
    rows += compare_detections(case, outputs)
    assert all(row.passed for row in rows), "\n" + format_table(rows, only_failed=True)


@pytest.mark.parametrize("name", SMALL)
def test_small_case(name: str) -> None:
    run_case(f"small_inference/{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL[:1])
def test_full_size_case(name: str) -> None:
    run_case(f"full/{name}")


@pytest.mark.parametrize("name", TRAINING_SIZES)
def test_losses_and_gradients_of_the_original(name: str) -> None:
    case = load_case(f"small_training/{name}")
    model = textbook_view(build_model(case.architecture, case.description["weights_seed"]))
    model.zero_grad()
    outputs = model(**case.inputs(), labels=case.labels())
    for ours, theirs in LOSS_NAMES.items():
        assert outputs.loss_dict[ours].item() == pytest.approx(case.description["losses"][theirs], rel=1e-5)
    outputs.loss.backward()
    found = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    found = to_original(found)
    norms = {key: norm for key, norm in case.description["grad_norms"].items() if norm is not None}
    assert len(norms) > 250
    for key, norm in norms.items():
        if not ZERO_GRADIENTS.search(key):
            assert found[key].norm().item() == pytest.approx(norm, rel=1e-4), key


# --- against the fast form


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        ((64, 96), {}),
        ((75, 61), {}),
        ((32, 32), {"backbone_config": tiny_swin(window_size=7)}),
        ((96, 64), {"num_blocks": 3, "fusion_heads": 2, "prompt_table_length": 12}),
    ],
    ids=["even", "odd", "one window", "prompt table"],
)
def test_equals_the_fast_form(use_fusion, size, overrides) -> None:
    inputs = tiny_inputs(height=size[0], width=size[1])
    inputs["attention_mask"][1, 5:] = 0
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    inputs["pixel_mask"] = torch.ones(2, *size, dtype=torch.int64)
    inputs["pixel_mask"][1, 20:] = 0
    inputs["positive_map"] = torch.eye(9, dtype=torch.bool)[None, 2:4].repeat(2, 1, 1)
    fast, plain = both(inputs, use_fusion=use_fusion, **overrides)
    assert list(fast) == list(plain)
    for key, value in fast.items():
        assert plain[key].shape == value.shape and plain[key].dtype == value.dtype, key
    real = inputs["attention_mask"][:, None].bool()
    plain.logits, fast.logits = plain.logits * real, fast.logits * real
    assert_same(plain, fast)
    for key in ("spatial_shapes", "image_sizes", "positive_map", "label_ids", "input_ids", "attention_mask"):
        assert torch.equal(plain[key], fast[key]), key


@torch.no_grad()
def test_captions_of_different_lengths() -> None:
    """Two captions in a batch, and each alone."""
    inputs = tiny_inputs()
    inputs["attention_mask"][0, 4:] = 0
    fast, plain = both(inputs)
    model = textbook_view(tiny_model())
    for row, length in ((0, 4), (1, 9)):
        torch.testing.assert_close(plain.logits[row, :, :length], fast.logits[row, :, :length], atol=1e-5, rtol=1e-4)
        one = rows_of(inputs, row)
        one = {key: value[:, :length] if value.ndim == 2 else value for key, value in one.items()}
        alone = model(**one)
        assert alone.logits.shape[-1] == length
        torch.testing.assert_close(alone.logits[0], plain.logits[row, :, :length], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("images", "captions", "indices"), [(1, 3, None), (3, 1, None), (2, 3, [1, 0, 1])], ids=["1:3", "3:1", "pairs"]
)
def test_pairings(images, captions, indices) -> None:
    inputs = tiny_inputs(images, captions)
    if indices is not None:
        inputs["image_indices"] = torch.tensor(indices)
    fast, plain = both(inputs)
    assert list(fast) == list(plain)
    assert_same(plain, fast)


@torch.no_grad()
def test_states_and_attentions() -> None:
    inputs = tiny_inputs() | {"output_attentions": True, "output_hidden_states": True}
    fast, plain = both(inputs)
    for key in ("hidden_states", "attentions", "text_attentions"):
        assert len(plain[key]) == len(fast[key])
        for a, b in zip(plain[key], fast[key]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_features_may_be_given() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    inputs["attention_mask"][1, 5:] = 0
    expected, expected_body = model(**inputs), model.model(**inputs)
    tokens = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    fast_image, fast_text = model.get_image_features(inputs["pixel_values"]), model.get_text_features(**tokens)
    model = textbook_view(model)
    image, text = model.get_image_features(inputs["pixel_values"]), model.get_text_features(**tokens)
    assert text.last_hidden_state.shape == fast_text.last_hidden_state.shape
    torch.testing.assert_close(image.last_hidden_state, fast_image.last_hidden_state, atol=1e-5, rtol=1e-4)
    outputs = model(image_features=image, text_features=text)
    real = inputs["attention_mask"][:, None]
    torch.testing.assert_close(outputs.logits * real, expected.logits * real, atol=1e-5, rtol=1e-4)
    assert_same(outputs, expected, FLOATS[1:])
    for body in (model.model(**inputs), model.model(image_features=image, **tokens)):
        torch.testing.assert_close(body.last_hidden_state, expected_body.last_hidden_state, atol=1e-5, rtol=1e-4)
        assert body.text_last_hidden_state.shape == expected_body.text_last_hidden_state.shape


@torch.no_grad()
def test_everything_is_computed_again_for_every_pair() -> None:
    model, calls = textbook_view(tiny_model()), []
    model.model.backbone.register_forward_hook(lambda *_: calls.append("image"))
    model.model.text_model.register_forward_hook(lambda *given: calls.append(given[2].last_hidden_state.shape[1]))
    for block in model.model.tower["blocks"]:
        block.text_layer.register_forward_hook(lambda *given: calls.append(given[1][0].shape[1]))
    model(**tiny_inputs(1, 3))
    assert calls == ["image", LONGEST, LONGEST, LONGEST] * 3


def test_refusals() -> None:
    model = textbook_view(tiny_model(prompt_table_length=6))
    with pytest.raises(ValueError, match="exceeds prompt_table_length=6"):
        model(**tiny_inputs())
    with pytest.raises(ValueError, match="33 tokens exceed max_text_length=32"):
        model(**tiny_inputs(length=33))
    with pytest.raises(ValueError, match="3 captions for 2 images"):
        model(**tiny_inputs(2, 3))
    with pytest.raises(ValueError, match="3 captions for 2 images"):
        model.model(**tiny_inputs(2, 3))


# --- training


def gradients(model: GlipForGrounding, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_fusion", [True, False])
def test_gradients_equal_in_double_precision(use_fusion) -> None:
    """Nothing is approximated: what remains is rounding, 1e-9 of the largest gradient of a parameter."""
    model = tiny_model(use_fusion=use_fusion, prompt_table_length=LONGEST).double()
    inputs = tiny_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    inputs["attention_mask"][1, 7:] = 0
    pulls, found = {}, []
    for form in (model, textbook_view(model)):
        outputs = form(**inputs)
        outputs.logits = outputs.logits * inputs["attention_mask"][:, None]
        for key in FLOATS[:3]:
            pulls.setdefault(key, torch.randn_like(outputs[key]))
        found.append(gradients(model, sum((pulls[key] * outputs[key]).sum() for key in pulls)))
    fast, plain = found
    assert fast.keys() == plain.keys() and len(fast) > 100
    for name, gradient in fast.items():
        scale = max(float(gradient.abs().max()), 1e-3)  # biases of keys have none but rounding noise
        assert float((plain[name] - gradient).abs().max()) < 1e-9 * scale, name


@pytest.mark.parametrize("use_fusion", [True, False])
def test_losses_and_gradients_equal(use_fusion) -> None:
    model = tiny_model(use_fusion=use_fusion, soft_token_loss_weight=0.5, contrastive_loss_weight=0.5)
    inputs = tiny_inputs()
    inputs["attention_mask"][1, 7:] = 0
    losses, found = [], []
    for form in (model, textbook_view(model)):
        outputs = form(**inputs, labels=tiny_labels())
        losses.append(outputs.loss_dict)
        found.append(gradients(model, outputs.loss))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name].norm(), gradient.norm(), rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step(checkpointing) -> None:
    """With everything random switched on: finite, and a gradient for whatever has one in the fast form."""
    model = tiny_model(mlm_loss_weight=1.0, mask_token_id=3, backbone_config=tiny_swin(drop_path_rate=0.2)).train()
    inputs = tiny_inputs() | {"labels": tiny_labels()}
    expected = gradients(model, model(**inputs).loss)
    model = textbook_view(model)
    if checkpointing:
        enable_checkpointing(model)
    outputs = model(**inputs)
    found = gradients(model, outputs.loss)
    assert "loss_mlm" in outputs.loss_dict and outputs.logits.shape[-1] == 9
    assert bool(outputs.loss.isfinite()) and found.keys() == expected.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_dropout_of_the_fusion() -> None:
    """Both attention matrices lose entries, and the mean over many draws is what it is without."""
    model = textbook_view(tiny_model(fusion_dropout=0.5))
    layer = model.model.tower["blocks"][0].fusion
    vision, text, mask = torch.randn(1, 20, 16), torch.randn(1, 6, 24), torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        still = layer(vision, text, mask)[:2]
        layer.train()
        draws = layer(*(x.expand(2000, *x.shape[1:]) for x in (vision, text, mask)))[:2]
    for noisy, expected in zip(draws, still):
        assert float(noisy.std(0).mean()) > 0.01
        torch.testing.assert_close(noisy.mean(0), expected[0], atol=0.05, rtol=0)


# --- the deformable convolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 12), (7, 5), (1, 1), (1, 6)])
def test_deformable_convolution(stride, size) -> None:
    features = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    height, width = ((side - 1) // stride + 1 for side in size)
    offset = (3 * torch.randn(2, 18, height, width, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(2, 9, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    inputs = (features, offset, mask, weight, bias)
    expected, found = deform_conv2d(*inputs, stride), textbook.deform_conv2d(*inputs, stride)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, pull), torch.autograd.grad(expected, inputs, pull)):
        torch.testing.assert_close(ours, theirs)


def test_deformable_convolution_without_offsets_is_a_convolution() -> None:
    features, weight, bias = torch.randn(1, 4, 6, 7), torch.randn(5, 4, 3, 3), torch.randn(5)
    found = textbook.deform_conv2d(features, torch.zeros(1, 18, 6, 7), torch.ones(1, 9, 6, 7), weight, bias)
    expected = torch.nn.functional.conv2d(features, weight, bias, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_offsets_of_a_finer_level_are_read_as_memory() -> None:
    features, weight, bias = torch.randn(1, 4, 3, 4), torch.randn(5, 4, 3, 3), torch.randn(5)
    offset, mask = torch.randn(1, 18, 6, 7), torch.rand(1, 9, 6, 7)
    found = textbook.deform_conv2d(features, offset, mask, weight, bias)
    own = offset.flatten()[: 18 * 12].view(1, 18, 3, 4), mask.flatten()[: 9 * 12].view(1, 9, 3, 4)
    assert torch.equal(found, textbook.deform_conv2d(features, *own, weight, bias))


# --- the view


@torch.no_grad()
def test_the_model_stays_as_it_is() -> None:
    """Its results, mode, attention, checkpointing and hooks are its own; the parameters are the same objects."""
    model, inputs = tiny_model(), tiny_inputs()
    expected, names = model(**inputs), dict(model.named_parameters())
    view = textbook_view(model)
    assert {name: id(p) for name, p in view.named_parameters()} == {name: id(p) for name, p in names.items()}
    hooked = []
    for part in view.modules():
        if part not in (view, view.model):
            part.register_forward_hook(lambda *given: hooked.append(type(given[0]).__name__))
    enable_checkpointing(view.train())
    configs = (model.config, model.config.backbone_config, model.config.text_config)
    assert {config._attn_implementation for config in configs} == {"sdpa"}
    assert not any(part.training or getattr(part, "gradient_checkpointing", False) for part in model.modules())
    found = model(**inputs)
    assert not hooked and all(torch.equal(found[key], expected[key]) for key in FLOATS)
    view.eval()(**inputs)
    assert len(hooked) > 20


def test_no_module_of_a_view_runs_code_of_the_model() -> None:
    view = textbook_view(tiny_model(contrastive_loss_weight=0.5))
    view.auxiliary = None  # losses are the model's own
    found = {type(part) for part in view.modules()} - {torch.nn.ModuleDict, torch.nn.ModuleList}
    assert {kind.__module__ for kind in found} == {"benchmarks.textbook"}
    assert not kernels.report(view, tiny_inputs()), "an operation of the model ran"


@torch.no_grad()
def test_a_view_follows_the_weights(tmp_path) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    view = textbook_view(model)
    model.add_prompt_table(9).fill_(0.5)
    model.load_state_dict(tiny_model(seed=1, prompt_table_length=9).state_dict())
    assert_same(view(**inputs), model(**inputs))
