# Copyright 2026 The glip_hf authors. MIT licence.
"""GlipModel and GlipForGrounding: what comes out, what it depends on, and how they are built, loaded and run."""

import math
import weakref

import numpy as np
import pytest
import torch
from random_glip import load_photo, random_model, random_processor
from tiny import lively, make_processor, tiny_bert, tiny_config, tiny_inputs, tiny_labels, tiny_model, tiny_swin
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig

from glip_hf import GlipForGrounding, GlipImageProcessor, GlipModel
from glip_hf._compat import enable_checkpointing
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.modeling_glip import GlipFeaturePyramid, drop_block
from glip_hf.outputs_glip import pair_captions

LOCATIONS = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1
"""Of an image of 64 x 96 pixels, over strides 8 to 128."""

FLOATS = ("logits", "bbox_regression", "centerness_logits", "pred_boxes")


def assert_same(found, expected, keys=FLOATS, atol=1e-5, rtol=1e-4) -> None:
    for key in keys:
        torch.testing.assert_close(
            found[key], expected[key], atol=atol, rtol=rtol, msg=lambda m, key=key: f"{key}: {m}"
        )


# --- what comes out


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
def test_shapes_and_types(use_fusion) -> None:
    outputs = tiny_model(use_fusion=use_fusion)(**tiny_inputs())
    assert outputs.logits.shape == (2, LOCATIONS, 9)
    assert outputs.bbox_regression.shape == outputs.pred_boxes.shape == (2, LOCATIONS, 4)
    assert outputs.centerness_logits.shape == (2, LOCATIONS)
    assert outputs.spatial_shapes.tolist() == [[[8, 12], [4, 6], [2, 3], [1, 2], [1, 1]]] * 2
    assert outputs.image_sizes.tolist() == [[64, 96]] * 2
    # [CLS] and [SEP] belong to no class
    assert outputs.positive_map.tolist() == [[[0] + [1] * 7 + [0]]] * 2 and outputs.label_ids.tolist() == [[0]] * 2
    for key in ("spatial_shapes", "image_sizes", "positive_map", "label_ids"):
        assert outputs[key].dtype == torch.int64
    for key in ("loss", "original_sizes", "image_indices", "hidden_states", "attentions"):
        assert getattr(outputs, key) is None


@torch.no_grad()
def test_without_fusion_the_text_is_the_encoders_zero_at_padding() -> None:
    model, inputs = tiny_model(use_fusion=False).model, tiny_inputs()
    inputs["attention_mask"][1, 6:] = 0
    outputs, features = model(**inputs), model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    expected = features.last_hidden_state * inputs["attention_mask"][..., None]
    assert torch.equal(outputs.text_last_hidden_state, expected) and not bool(expected[1, 6:].any())


@torch.no_grad()
def test_states_nobody_asked_for_are_not_kept() -> None:
    model, inputs, states = tiny_model(), tiny_inputs(), []
    handle = model.model.tower["blocks"][0].register_forward_hook(lambda *args: states.append(weakref.ref(args[-1][0])))
    for asked, alive in ((False, False), (True, True)):
        outputs = model(**inputs, output_hidden_states=asked)
        assert (states[-1]() is not None) == alive
    handle.remove()
    assert outputs.hidden_states[1] is states[-1]()


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
def test_what_others_hold_is_not_overwritten(use_fusion) -> None:
    model, inputs = tiny_model(use_fusion=use_fusion), tiny_inputs()
    image = model.get_image_features(inputs.pop("pixel_values"))
    given, kept = image.last_hidden_state.clone(), []
    plain = model(**inputs, image_features=image)
    states = model.model(**inputs, image_features=image, output_hidden_states=True).hidden_states
    assert torch.equal(image.last_hidden_state, given) and torch.equal(states[0], given)
    assert len({state.data_ptr() for state in states}) == len(states)
    handles = [
        block.register_forward_hook(lambda module, args, output: kept.append(output[0]))
        for block in model.model.tower["blocks"]
    ]
    hooked = model(**inputs, image_features=image)
    for handle in handles:
        handle.remove()
    for one, other in zip(kept, states[1:], strict=True):
        torch.testing.assert_close(one, other)
    assert_same(plain, hooked)


@torch.no_grad()
def test_states_and_attentions_on_request() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(x.shape) for x in outputs.hidden_states] == [(2, LOCATIONS, 16)] * 3
    assert [tuple(x.shape) for x in outputs.attentions] == [(2, 4, LOCATIONS, 9)] * 2
    assert [tuple(x.shape) for x in outputs.text_attentions] == [(2, 4, 9, LOCATIONS)] * 2
    assert torch.equal(outputs.hidden_states[0], model.get_image_features(inputs["pixel_values"]).last_hidden_state)
    some = model(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert some[1] is None and torch.equal(some[0], outputs.hidden_states[0]) and some[2] is not None
    assert isinstance(model(**inputs, return_dict=False), tuple)


@torch.no_grad()
def test_features_have_their_own_states() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.set_attn_implementation("eager")
    image = model.get_image_features(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
    assert len(image.hidden_states) == 5 and len(image.attentions) == 4
    assert image.pooler_output.shape == (2, 16)
    torch.testing.assert_close(image.pooler_output, torch.stack([x.mean(0) for x in image.last_hidden_state]))
    assert [x.shape[-2:] for x in image.feature_maps] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    text = model.get_text_features(inputs["input_ids"], output_hidden_states=True, output_attentions=True)
    assert len(text.hidden_states) == 3 and len(text.attentions) == 2


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_image_features_take_all_that_the_image_processor_gives(whole) -> None:
    model = tiny_model() if whole else tiny_model().model
    inputs = GlipImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})(
        np.zeros((50, 70, 3), np.uint8), return_tensors="pt"
    )
    assert "original_sizes" in inputs
    features = model.get_image_features(**inputs)
    expected = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
    assert torch.equal(features.pooler_output, expected.pooler_output)
    assert torch.equal(features.image_sizes, expected.image_sizes)


@torch.no_grad()
def test_the_base_model_takes_all_that_the_processor_gives() -> None:
    model = tiny_model(text_config=tiny_bert(vocab_size=2000)).model
    inputs = make_processor()(torch.rand(3, 40, 60), ["cat", "dog"], chunk_size=1, return_tensors="pt")
    assert model(**inputs).last_hidden_state.shape[0] == len(inputs["label_ids"]) == 2


@torch.no_grad()
def test_boxes_are_relative_to_the_unpadded_image() -> None:
    model, inputs = tiny_model(), tiny_inputs(1)
    whole = model(**inputs)
    mask = torch.zeros(1, 64, 96, dtype=torch.int64)
    mask[:, :32, :48] = 1
    part = model(**inputs, pixel_mask=mask)
    assert part.image_sizes.tolist() == [[32, 48]]
    torch.testing.assert_close(part.pred_boxes, whole.pred_boxes * 2)
    assert torch.equal(part.logits, whole.logits)


# --- what it depends on


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_caption_padding_changes_nothing(use_fusion, implementation) -> None:
    model, inputs = tiny_model(use_fusion=use_fusion), tiny_inputs()
    model.set_attn_implementation(implementation)
    expected = model(**inputs)
    for to in (10, 20, model.config.max_text_length):
        padded = inputs | {
            key: torch.nn.functional.pad(inputs[key], (0, to - 9)) for key in ("input_ids", "attention_mask")
        }
        outputs = model(**padded)
        assert_same(outputs, expected, FLOATS[1:])
        torch.testing.assert_close(outputs.logits[..., :9], expected.logits, atol=1e-5, rtol=1e-4)
        assert outputs.positive_map[..., 9:].sum() == 0 and torch.equal(
            outputs.positive_map[..., :9], expected.positive_map
        )


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
def test_batched_equals_single(use_fusion) -> None:
    model, inputs = tiny_model(use_fusion=use_fusion), tiny_inputs(3)
    inputs["attention_mask"][1, 5:] = 0
    inputs["pixel_mask"] = torch.ones(3, 64, 96, dtype=torch.int64)
    inputs["pixel_mask"][2, 40:] = 0
    batch = model(**inputs)
    for n in range(3):
        single = model(**{key: value[n : n + 1] for key, value in inputs.items()})
        assert_same({key: batch[key][n : n + 1] for key in FLOATS}, single)


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
def test_eager_equals_sdpa(use_fusion) -> None:
    model, inputs = tiny_model(use_fusion=use_fusion), tiny_inputs()
    inputs["attention_mask"][1, 5:] = 0
    found = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        configs = (model.config, model.config.backbone_config, model.config.text_config)
        assert {config._attn_implementation for config in configs} == {implementation}
        found[implementation] = model(**inputs)
    assert_same(found["sdpa"], found["eager"])


@torch.no_grad()
def test_deterministic_and_without_memory() -> None:
    model, small, large = (
        tiny_model(),
        tiny_inputs(1, height=32, width=64),
        tiny_inputs(1, height=96, width=64, length=5),
    )
    first = model(**small), model(**large)
    again = model(**large), model(**small)
    assert_same(again[1], first[0], atol=0, rtol=0)
    assert_same(again[0], first[1], atol=0, rtol=0)


@torch.no_grad()
def test_an_image_is_encoded_once_for_many_captions() -> None:
    model, calls = tiny_model(), []
    model.model.backbone.register_forward_hook(lambda *_: calls.append("image"))
    model.model.text_model.register_forward_hook(lambda *_: calls.append("text"))
    inputs = tiny_inputs(1, 5)
    many = model(**inputs)
    assert calls == ["image", "text"] and many.image_indices.tolist() == [0] * 5
    for n in range(5):
        single = model(**{key: value[n : n + 1] if len(value) == 5 else value for key, value in inputs.items()})
        assert_same({key: many[key][n : n + 1] for key in FLOATS}, single)


def test_groups_of_pairs_equal_all_at_once() -> None:
    model = tiny_model()
    inputs = tiny_inputs(2, 5) | {"image_indices": torch.tensor([1, 0, 0, 1, 1])}
    together = model(**inputs, output_hidden_states=[-1])  # with gradients: one group
    with torch.no_grad():
        grouped = model(**inputs, output_hidden_states=[-1])
    assert_same(grouped, together)
    assert grouped.hidden_states[:2] == together.hidden_states[:2] == (None, None)
    assert grouped.image_indices.tolist() == [1, 0, 0, 1, 1] and len(grouped.image_sizes) == 5


@torch.no_grad()
def test_one_caption_for_many_images() -> None:
    model = tiny_model()
    inputs = tiny_inputs(3, 1) | {"positive_map": torch.eye(9, dtype=torch.bool)[None, 2:4]}
    outputs = model(**inputs)
    assert outputs.logits.shape == (3, LOCATIONS, 9) and outputs.positive_map.shape == (3, 2, 9)
    assert outputs.label_ids.tolist() == [[0, 1]] * 3 and outputs.image_indices is None


# --- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixel_values": None}, "neither of pixel_values and image_features"),
        ({"input_ids": None}, "neither of input_ids and text_features"),
        ({"image_features": object()}, "both of pixel_values and image_features"),
        ({"image_indices": torch.zeros(3, dtype=torch.int64)}, "3 entries for 2 captions"),
        ({"image_indices": torch.tensor([0, -1])}, r"image_indices=\[0, -1\] must be from 0 to 1"),
        ({"image_indices": torch.tensor([0, 2])}, r"image_indices=\[0, 2\] must be from 0 to 1"),
        ({"image_indices": torch.tensor([True, False])}, "must be a tensor with an index per caption"),
        ({"pixel_values": torch.zeros(3, 64, 96)}, r"pixel_values has the shape \(3, 64, 96\): it must be"),
        ({"pixel_values": torch.zeros(2, 1, 64, 96)}, r"it must be \(1 or more, 3, 1 or more, 1 or more\)"),
        ({"pixel_values": torch.zeros(0, 3, 64, 96)}, "pixel_values has the shape"),
        ({"pixel_values": torch.zeros(2, 3, 64, 96, dtype=torch.uint8)}, "pixel_values are torch.uint8"),
        ({"pixel_mask": torch.ones(2, 64, 95)}, r"pixel_mask has the shape .* it must be \(2, 64, 96\)"),
        ({"input_ids": torch.zeros(0, 9, dtype=torch.int64)}, r"input_ids has the shape \(0, 9\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, r"input_ids has the shape \(2, 0\)"),
        ({"input_ids": torch.zeros(9, dtype=torch.int64)}, r"input_ids has the shape \(9,\)"),
        ({"input_ids": torch.zeros(2, 9)}, "input_ids are torch.float32"),
        ({"input_ids": torch.full((2, 9), 60)}, "vocabulary has 60 entries: the tokenizer"),
        ({"input_ids": torch.full((2, 9), -1)}, "input_ids go from -1"),
        ({"attention_mask": torch.ones(2, 8)}, "attention_mask has the shape"),
    ],
)
def test_inputs_that_do_not_fit(change, words) -> None:
    for model in (tiny_model(), tiny_model().model):
        with pytest.raises(ValueError, match=words):
            model(**tiny_inputs() | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positive_map": torch.ones(2, 9)}, r"positive_map has the shape \(2, 9\)"),
        ({"positive_map": torch.ones(2, 3, 8)}, r"positive_map .* it must be \(2, 3, 9\)"),
        ({"positive_map": torch.ones(3, 3, 9)}, r"positive_map .* it must be \(2, 3, 9\)"),
        ({"label_ids": torch.zeros(2, 2)}, r"label_ids .* it must be \(2, 1\)"),
        ({"original_sizes": torch.tensor([64, 96])}, r"original_sizes .* it must be \(2, 2\)"),
        ({"original_sizes": torch.tensor([[64, 96]])}, r"original_sizes .* it must be \(2, 2\)"),
    ],
)
def test_maps_and_sizes_that_do_not_fit(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_model()(**tiny_inputs() | change)


@pytest.mark.parametrize("name", ["pixel_values", "input_ids", "attention_mask", "positive_map", "original_sizes"])
@pytest.mark.parametrize("as_given", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_inputs_that_are_no_tensors(name, as_given) -> None:
    inputs = tiny_inputs() | {"positive_map": torch.ones(2, 1, 9), "original_sizes": torch.tensor([[64, 96]] * 2)}
    with pytest.raises(TypeError, match=rf'{name} is a (list|ndarray), not a tensor: .*return_tensors="pt"'):
        tiny_model()(**inputs | {name: as_given(inputs[name])})


def test_features_that_are_none() -> None:
    inputs = tiny_inputs()
    del inputs["pixel_values"]
    inputs.pop("pixel_mask", None)
    with pytest.raises(TypeError, match="image_features is a Tensor: give what get_image_features returned"):
        tiny_model()(**inputs, image_features=torch.zeros(2, 9, 16))
    with pytest.raises(ValueError, match="image_indices=1 must be a tensor"):
        tiny_model()(**tiny_inputs(), image_indices=1)


def test_misspelt_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="positive_maps"):
        tiny_model()(**tiny_inputs(), positive_maps=torch.ones(2, 1, 9))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pixels_take_the_dtype_of_the_model(dtype) -> None:
    model, inputs = tiny_model().to(dtype), tiny_inputs()
    expected = model(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
    assert torch.equal(model(**inputs).logits, expected.logits) and expected.logits.dtype == dtype


def test_pairs_that_do_not_fit() -> None:
    for images, captions in ((0, 1), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match=f"{captions} captions for {images} images: give at least one of each"):
            pair_captions(images, captions, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="3 captions for 2 images: pass image_indices"):
        tiny_model()(**tiny_inputs(2, 3))
    device = torch.device("cpu")
    assert pair_captions(2, 2, None, device) == (None, None)
    assert pair_captions(1, 3, None, device)[0].tolist() == [0, 0, 0]
    assert pair_captions(3, 1, None, device)[1].tolist() == [0, 0, 0]


def test_long_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="33 tokens exceed max_text_length=32: split"):
        tiny_model()(**tiny_inputs(length=33))


# --- backbones

BACKBONES = {
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], out_indices=[2, 3, 4]),
}


@pytest.mark.parametrize("name", ["resnet", "convnext"])
@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
def test_any_backbone_with_the_right_strides(name, size) -> None:
    model = GlipForGrounding(tiny_config(backbone_config=BACKBONES[name])).eval()
    outputs = model(**tiny_inputs(height=size[0], width=size[1]), labels=tiny_labels())
    assert outputs.spatial_shapes[0, :3].tolist() == [[math.ceil(s / stride) for s in size] for stride in (8, 16, 32)]
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.model.backbone.parameters() if p.requires_grad)


@torch.no_grad()
def test_a_backbone_that_cuts_odd_sides_says_so() -> None:
    model = GlipForGrounding(tiny_config(backbone_config=BACKBONES["convnext"])).eval()
    with pytest.raises(ValueError, match="sides that are multiples of 32"):
        model(**tiny_inputs(height=75, width=61))


@torch.no_grad()
@pytest.mark.parametrize(
    "backbone",
    [
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3]
        ),
        Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, out_indices=[2, 3, 4]),
    ],
    ids=["too fine", "one stride"],
)
def test_wrong_strides_are_refused(backbone) -> None:
    model = GlipForGrounding(tiny_config(backbone_config=backbone)).eval()
    with pytest.raises(ValueError, match="out_indices that give strides 8, 16 and 32"):
        model(**tiny_inputs(height=56, width=84))


# --- initial values


def check_initial_values(model: GlipForGrounding) -> None:
    config, parameters = model.config, dict(model.named_parameters())
    for name, p in parameters.items():
        assert bool(p.isfinite().all()), name
        fan_in = p[0].numel() if p.dim() > 1 else 1
        default = 1 / math.sqrt(fan_in)
        part = name.split(".")
        if "norm" in name.lower() and p.dim() == 1:
            assert bool((p == float(name.endswith("weight"))).all()), name
        elif "fusion" in part:
            if "gamma" in name:
                assert torch.equal(p, torch.full_like(p, 1 / config.num_blocks)), name
            elif name.endswith("bias"):
                assert not bool(p.any()), name
            else:
                xavier = math.sqrt(6 / sum(p.shape))
                assert xavier * 0.9 < p.abs().max() <= xavier * 1.0001, name
        elif "neck" in part or ("dyconv" in part and "conv" in part):
            bound = math.sqrt(3) * default if "neck" in part else default
            assert not bool(p.any()) if name.endswith("bias") else bound * 0.9 < p.abs().max() <= bound * 1.0001, name
        elif "scale_attention" in part or name.startswith(("head.bbox_pred", "head.centerness")):
            assert not bool(p.any()) if name.endswith("bias") else 0.005 < p.std() < 0.02, name
        elif name.startswith(("head.log_scale", "head.bias_lang")):
            assert not bool(p.any()), name
        elif name == "head.bias0":
            assert p.item() == pytest.approx(-math.log(99))
        elif "level_scales" in part:
            assert p.item() == 1
        elif "text_layer" in part:
            assert not bool(p.any()) if name.endswith("bias") else 0.01 < p.std() < 0.03, name
        elif p.dim() > 1 and ({"offset_conv", "dynamic_relu"} & set(part) or "text_projection" in name):
            assert default * 0.9 < p.abs().max() <= default * 1.0001, name
        elif "backbone" in part and p.dim() > 1 and "projection" not in name:
            assert 0.01 < p.std() < 0.03, name
    assert bool(parameters["head.text_projection.bias"].any())


def test_initial_values() -> None:
    check_initial_values(GlipForGrounding(tiny_config()))


def test_initial_values_of_missing_weights(tmp_path) -> None:
    """`from_pretrained` builds on the meta device; what the file lacks must get its proper start."""
    check_initial_values(GlipForGrounding.from_pretrained(None, config=tiny_config(), state_dict={}))

    body = tiny_model(seed=5).model
    body.save_pretrained(tmp_path)
    model, report = GlipForGrounding.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] and all(key.startswith("head.") for key in report["missing_keys"])
    for key, value in body.state_dict().items():
        assert torch.equal(model.state_dict()[f"model.{key}"], value), key
    assert model.head.bias0.item() == pytest.approx(-math.log(99))
    assert bool((model.head.bbox_pred.bias == 0).all())


def test_taps_may_start_in_their_places() -> None:
    for block in GlipForGrounding(tiny_config(offset_initializer_range=0.0)).model.tower["blocks"]:
        assert not block.dyconv.offset_conv.weight.any() and not block.dyconv.offset_conv.bias.any()
        assert block.dyconv.conv_mid.conv.weight.std() > 0


def test_initial_gamma_and_prior() -> None:
    model = GlipForGrounding(tiny_config(fusion_init_gamma=0.75, prior_probability=0.5))
    fusion = model.model.tower["blocks"][1].fusion
    assert fusion.gamma_vision.unique().tolist() == fusion.gamma_text.unique().tolist() == [0.75]
    assert model.head.bias0.item() == 0


@torch.no_grad()
def test_save_and_load(tmp_path) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path)
    loaded, report = GlipForGrounding.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    # Products round by where their operands lie in memory: on some processors the last bit of a result differs.
    assert_same(loaded(**inputs), model(**inputs), atol=1e-5, rtol=1e-5)
    body = GlipModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in model.model.state_dict().items())
    found, expected = body(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- regularisation


def test_drop_block_statistics() -> None:
    x = torch.ones(64, 3, 40, 50)
    torch.manual_seed(1)
    dropped = drop_block(x, 0.3, 3)
    assert torch.equal(dropped[:, 0], dropped[:, 1])  # all channels of an image share their squares
    assert not torch.equal(dropped[0], dropped[1])
    kept = dropped[:, 0] != 0
    # A cell stays if none of 9 neighbours is a seed of probability 0.3 / 9 (fewer at the borders).
    assert kept[:, 1:-1, 1:-1].float().mean().item() == pytest.approx((1 - 0.3 / 9) ** 9, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=1e-4)
    assert dropped[dropped != 0].unique().numel() == 1
    holes = torch.nn.functional.max_pool2d((~kept).float()[:, None], 3, 1, 1)
    assert torch.equal(drop_block(x, 0.0, 3), x) and bool((holes >= (~kept).float()[:, None]).all())


def test_drop_block_of_everything_stays_finite() -> None:
    assert not bool(drop_block(torch.ones(1, 2, 2, 2), 8.99, 3).any())


def test_drop_block_hits_p3_and_p4_only() -> None:
    neck = lively(GlipFeaturePyramid(tiny_config(dropblock_prob=0.5), [4, 4, 4]))
    maps = tuple(torch.randn(2, 4, s, s) for s in (16, 8, 4))
    with torch.no_grad():
        still, noisy = neck.eval()(maps), neck.train()(maps)
    assert [torch.equal(a, b) for a, b in zip(still, noisy)] == [False, False, True, True, True]


# --- precision, memory, compilers


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision(dtype, implementation) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    model.set_attn_implementation(implementation)
    expected = model(**inputs)
    outputs = model.to(dtype)(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
    assert outputs.logits.dtype == dtype and outputs.pred_boxes.dtype == torch.float32
    spread = expected.logits.std().item()
    assert (outputs.logits.float() - expected.logits).abs().mean() < 0.1 * spread


@torch.no_grad()
def test_autocast() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    assert outputs.pred_boxes.dtype == torch.float32
    assert (outputs.logits.float() - expected.logits).abs().mean() < 0.1 * expected.logits.std()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(use_reentrant) -> None:
    inputs, found = tiny_inputs(), []
    for checkpointing in (False, True):
        model = tiny_model(fusion_dropout=0.0, dropblock_prob=0.0)
        model.config.text_config.hidden_dropout_prob = 0.0
        if checkpointing:
            enable_checkpointing(model, {"use_reentrant": use_reentrant})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()(**inputs, labels=tiny_labels()).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@torch.no_grad()
def test_offloaded_to_disk(tmp_path) -> None:
    """Weights come when a module is called: none may be read behind a module's back."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: device_map cannot be tested")
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path / "model")
    loaded = GlipForGrounding.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert {p.device.type for p in loaded.parameters()} == {"meta"}
    assert_same(loaded(**inputs), model(**inputs))


def test_an_engine_over_weights_on_the_disk(tmp_path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed: device_map cannot be tested")
    model, requests = random_model(), [Request(load_photo(), ["cat", "sofa"]), Request(load_photo(), ["lamp"])]
    model.save_pretrained(tmp_path)
    loaded = GlipForGrounding.from_pretrained(tmp_path, device_map={"": "disk"})
    assert loaded.device.type == "meta"
    found = []
    for one in (model, loaded):
        engine = GroundingEngine(one, random_processor(96), GroundingOptions(threshold=0.05))
        assert engine.device.type == "cpu"
        found.append([result.detections[0]["scores"] for result in engine.ground(requests)])
    for expected, scores in zip(*found, strict=True):
        assert len(expected)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(
    torch.__version__ < "2.7", reason="Dynamo of PyTorch 2.6 cannot trace how Transformers finds a dtype"
)
def test_no_graph_breaks() -> None:
    model, inputs = tiny_model(num_blocks=1), tiny_inputs()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(compiled(**inputs), model(**inputs))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic) -> None:
    model = tiny_model(num_blocks=1, backbone_config=tiny_swin(window_size=7))
    inputs = tiny_inputs(2, height=320, width=320)
    auto = torch.export.Dim.AUTO
    shapes = {"pixel_values": {2: auto, 3: auto}, "input_ids": {1: auto}, "attention_mask": {1: auto}}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes if dynamic else None).module()
    sizes = [(320, 320, 9), (256, 416, 5)] if dynamic else [(320, 320, 9)]
    for height, width, length in sizes:
        other = tiny_inputs(2, height=height, width=width, length=length, seed=1)
        assert_same(program(**other), model(**other))


def test_a_replica_has_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nn.DataParallel` makes them: their weights are plain tensors."""
    model, inputs = tiny_model().eval(), tiny_inputs()
    expected = model(**inputs).logits
    monkeypatch.setattr(model.model.backbone, "parameters", lambda recurse=True: iter(()))
    assert torch.equal(model(**inputs).logits, expected)
