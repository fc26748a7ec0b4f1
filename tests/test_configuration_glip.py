# Copyright 2026 The glip_hf authors. MIT licence.
"""GlipConfig: every error names the field, every preset and every form of sub-configurations works."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_bert, tiny_config, tiny_swin
from transformers import AutoConfig, BertConfig, ConvNextConfig, ResNetConfig, RobertaConfig, SwinConfig

from glip_hf import PRESETS, GlipConfig, GlipForGrounding

NOT_NEGATIVE = (
    "focal_alpha",
    "focal_gamma",
    "token_loss_weight",
    "bbox_loss_weight",
    "centerness_loss_weight",
    "offset_initializer_range",
)
POSITIVE = (
    "d_model",
    "num_blocks",
    "fusion_hidden_size",
    "fusion_heads",
    "group_norm_groups",
    "dynamic_relu_reduction",
    "anchor_scale",
    "atss_top_k",
)


def refusal(**overrides) -> str:
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        tiny_config(**overrides)
    return str(caught.value)


@pytest.mark.parametrize("field", POSITIVE)
@pytest.mark.parametrize("value", [0, -2])
def test_counts_are_positive(field, value) -> None:
    message = refusal(**{field: value})
    assert field in message and f"must be greater or equal to 1, got {value}" in message


@pytest.mark.parametrize("field", ["num_class_channels", "dropblock_prob", "fusion_dropout", *NOT_NEGATIVE])
def test_never_negative(field) -> None:
    message = refusal(**{field: -1})
    assert field in message and "-1" in message


@pytest.mark.parametrize("field", ["dropblock_prob", "fusion_dropout"])
@pytest.mark.parametrize("value", [1, 1.5])
def test_probabilities_stay_below_one(field, value) -> None:
    message = refusal(**{field: value})
    assert field in message and f"smaller than 1, got {value}" in message


@pytest.mark.parametrize(("field", "value"), [("clamp_value", 0), ("group_norm_eps", -1e-5), ("focal_alpha", 1.5)])
def test_ranges(field, value) -> None:
    message = refusal(**{field: value})
    assert field in message and f"got {value}" in message


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_prior_probability_is_strictly_between(value) -> None:
    message = refusal(prior_probability=value)
    assert "prior_probability" in message and f"greater than 0 and smaller than 1, got {value}" in message


@pytest.mark.parametrize(
    ("field", "divisor", "values"),
    [
        ("d_model", "group_norm_groups", {"group_norm_groups": 5, "dynamic_relu_reduction": 1}),
        ("d_model", "dynamic_relu_reduction", {"dynamic_relu_reduction": 3}),
        ("fusion_hidden_size", "fusion_heads", {"fusion_heads": 5}),
    ],
)
def test_widths_are_divisible(field, divisor, values) -> None:
    message = refusal(**values)
    assert field in message and divisor in message and "divisible" in message


@pytest.mark.parametrize("value", [0, 2, -3])
def test_dropped_squares_have_a_centre(value) -> None:
    assert "dropblock_size" in refusal(dropblock_size=value)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (tiny_swin(out_indices=[3, 4]), ["2 feature maps", "out_indices"]),
        (tiny_swin(out_indices=[1, 2, 3, 4]), ["4 feature maps", "out_indices"]),
        (tiny_swin(out_indices=[1, 2, 3]), ["stage1", "out_indices=[2, 3, 4]"]),
        (tiny_swin(patch_size=2), ["patch_size"]),
        (tiny_swin(use_absolute_embeddings=True), ["use_absolute_embeddings"]),
        (BertConfig(), ["bert", "AutoBackbone"]),
    ],
    ids=["two maps", "four maps", "wrong stages", "patch size", "one size", "not a backbone"],
)
def test_backbone_refusals(backbone, words) -> None:
    message = refusal(backbone_config=backbone)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RobertaConfig(), ["roberta", "BertConfig"]),
        (tiny_bert(is_decoder=True), ["is_decoder"]),
        (tiny_bert(add_cross_attention=True, is_decoder=True), ["add_cross_attention"]),
        (tiny_bert(max_position_embeddings=16), ["max_text_length", "max_position_embeddings"]),
    ],
    ids=["not bert", "decoder", "cross attention", "too few positions"],
)
def test_text_refusals(text, words) -> None:
    message = refusal(text_config=text)
    assert all(word in message for word in words), message


def test_captions_hold_a_token() -> None:
    assert "max_text_length" in refusal(max_text_length=2)


@pytest.mark.parametrize(("field", "value"), [("d_model", "256"), ("use_fusion", 1.5), ("clamp_value", "big")])
def test_types_are_checked(field, value) -> None:
    assert field in refusal(**{field: value})


def test_default_is_glip_t() -> None:
    config = GlipConfig()
    assert config.backbone_config.model_type == "swin" and config.text_config.model_type == "bert"
    assert config.backbone_config.out_features == ["stage2", "stage3", "stage4"]
    assert config.to_dict() == GlipConfig.from_preset("glip_tiny_model_o365_goldg").to_dict()
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (256, 8, 6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name) -> None:
    config = GlipConfig.from_preset(name)
    large = "large" in name
    assert config.backbone_config.embed_dim == (192 if large else 96)
    assert config.backbone_config.window_size == (12 if large else 7)
    assert config.backbone_config.drop_path_rate == (0.4 if large else 0.2)
    assert config.num_blocks == (8 if large else 6)
    assert config.use_fusion == ("glip_a" not in name)


def test_preset_fields_can_be_changed_and_stay_apart() -> None:
    first = GlipConfig.from_preset("glip_large_model", num_blocks=2)
    first.backbone_config.embed_dim = 1
    assert first.num_blocks == 2
    assert GlipConfig.from_preset("glip_large_model").backbone_config.embed_dim == 192


def test_the_textbook_formulation_is_elsewhere(tmp_path) -> None:
    """`reference=True`, of earlier versions, is refused by every way in; False is dropped."""
    config = tiny_config(reference=False)
    assert "reference" not in config.to_dict()
    GlipForGrounding(config).save_pretrained(tmp_path)
    GlipForGrounding.from_pretrained(tmp_path, reference=False)
    for build in (
        lambda: tiny_config(reference=True),
        lambda: GlipConfig.from_preset("glip_tiny_model_o365_goldg", reference=True),
        lambda: GlipConfig.from_pretrained(tmp_path, reference=True),
        lambda: GlipForGrounding.from_pretrained(tmp_path, reference=True),
    ):
        with pytest.raises(ValueError, match=r"reference=True .* textbook_view\(model\) of benchmarks/textbook.py"):
            build()


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="glip_tiny_model_o365_goldg"):
        GlipConfig.from_preset("glip_huge")


@pytest.mark.parametrize(
    "backbone",
    [
        ResNetConfig(out_indices=[2, 3, 4]),
        ConvNextConfig(out_indices=[2, 3, 4]),
        tiny_swin().to_dict(),
        SwinConfig(out_features=["stage2", "stage3", "stage4"]),
    ],
    ids=["resnet", "convnext", "dict", "out_features"],
)
def test_other_backbones_and_dicts(backbone) -> None:
    config = tiny_config(backbone_config=backbone)
    assert len(config.backbone_config.out_features) == 3


def test_round_trip(tmp_path) -> None:
    config = tiny_config(fusion_init_gamma=0.25, use_fusion=False)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "glip"
    for loaded in (GlipConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is GlipConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_sub_config_of_a_saved_config(tmp_path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).vocab_size == tiny_bert().vocab_size
    assert SwinConfig.from_pretrained(tmp_path).embed_dim == tiny_swin().embed_dim
