"""Where a run starts: ImageNet Swin and BERT weights in every form, another GLIP, frozen stages."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from random_glip import random_config, random_model, save_random_model
from transformers import BertModel, SwinForImageClassification, SwinModel

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.conversion import ConversionError
from glip_hf.conversion.weight_map import to_original
from glip_hf.training.recipe import ModelRecipe, RecipeError
from glip_hf.training.start import (
    freeze_stages,
    image_limits,
    load_backbone_weights,
    load_text_weights,
    start_model,
)


def backbone_tensors(model: GlipForGrounding) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.model.backbone.state_dict().items() if not k.startswith("hidden_states_norms")}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys() and first
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def other_model() -> GlipForGrounding:
    """`random_model` with other weights."""
    model = random_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


def original_swin(model: GlipForGrounding) -> dict[str, torch.Tensor]:
    """What Swin's authors ship: the names of their classifier, with its head, last norm and buffers."""
    tensors = to_original(model.state_dict(), model.config.anchor_scale)
    ours = {key.partition("backbone.body.")[2]: v for key, v in tensors.items() if ".language_" not in f".{key}"}
    ours = {key: v for key, v in ours.items() if key and not re.match(r"norm\d\.", key)}
    assert "patch_embed.proj.weight" in ours and "layers.0.blocks.0.attn.qkv.weight" in ours
    rest = ("norm.weight", "norm.bias", "head.weight", "head.bias", "layers.0.blocks.1.attn_mask")
    return ours | {name: torch.ones(5) for name in rest}


@pytest.mark.parametrize("wrap", [lambda tensors: {"model": tensors}, dict])
def test_original_swin_checkpoint(wrap, tmp_path: Path) -> None:
    wanted, model = other_model(), random_model()
    torch.save(wrap(original_swin(wanted)), tmp_path / "swin.pth")
    norms = {k: v.clone() for k, v in model.model.backbone.state_dict().items() if k.startswith("hidden_states_norms")}
    load_backbone_weights(model.model.backbone, str(tmp_path / "swin.pth"))
    assert_same(backbone_tensors(model), backbone_tensors(wanted))
    assert all(torch.equal(value, model.model.backbone.state_dict()[name]) for name, value in norms.items())


@pytest.mark.parametrize("kind", [SwinModel, SwinForImageClassification])
def test_swin_and_bert_of_transformers(kind: type, tmp_path: Path) -> None:
    config = random_config()
    swin = kind(config.backbone_config)
    swin.save_pretrained(tmp_path / "swin")
    bert = BertModel(config.text_config, add_pooling_layer=False)
    bert.save_pretrained(tmp_path / "bert")
    model = random_model()
    load_backbone_weights(model.model.backbone, str(tmp_path / "swin"))
    load_text_weights(model.model.text_model, str(tmp_path / "bert"))
    encoder = getattr(swin, "swin", swin)
    loaded = {k.removeprefix("swin."): v for k, v in backbone_tensors(model).items()}
    assert_same(loaded, {k: v for k, v in encoder.state_dict().items() if k in loaded})
    assert_same(model.model.text_model.state_dict(), bert.state_dict())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, config = random_model(), random_config()
    config.backbone_config.embed_dim *= 2
    SwinModel(config.backbone_config).save_pretrained(tmp_path / "swin")
    with pytest.raises(RecipeError, match="does not fit the configured Swin"):
        load_backbone_weights(model.model.backbone, str(tmp_path / "swin"))
    torch.save({"model": {"conv1.weight": torch.ones(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(RecipeError, match="is not a Swin checkpoint: unknown keys conv1.weight"):
        load_backbone_weights(model.model.backbone, str(tmp_path / "resnet.pth"))
    config.text_config.hidden_size *= 2
    BertModel(config.text_config).save_pretrained(tmp_path / "bert")
    with pytest.raises(RecipeError, match="does not fit text_config"):
        load_text_weights(model.model.text_model, str(tmp_path / "bert"))


def test_start_from_another_glip(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    model, processor = start_model(ModelRecipe(start_from=str(tmp_path), config={"mlm_loss_weight": 0.5}))
    assert model.config.mlm_loss_weight == 0.5 and model.auxiliary.mlm_decoder is not None
    for name, value in random_model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert processor.image_processor.size["shortest_edge"] == 320
    (tmp_path / "images").mkdir()
    with pytest.raises(ConversionError, match="images: no config.json in there; glip convert writes one"):
        start_model(ModelRecipe(start_from=str(tmp_path / "images")))


def test_presets_need_a_vocabulary() -> None:
    with pytest.raises(RecipeError, match="needs model.tokenizer"):
        start_model(ModelRecipe(preset="glip_tiny_model_o365_goldg"))
    with pytest.raises(RecipeError, match="'glip_x' is unknown: scenes, "):
        start_model(ModelRecipe(preset="glip_x"))


@pytest.mark.parametrize("stages", [-1, 0, 1, 2])
def test_frozen_stages(stages: int) -> None:
    """GLIP-L trains with the patch embedding and the first stage frozen, which is 1 here."""
    model = random_model()
    freeze_stages(model, stages)
    frozen = {name for name, p in model.model.backbone.named_parameters() if not p.requires_grad}
    starts = ["swin.embeddings."] * (stages >= 0) + [f"swin.encoder.layers.{i}." for i in range(max(stages, 0))]
    expected = {name for name, _ in model.model.backbone.named_parameters() if name.startswith(tuple(starts))}
    assert frozen == (expected if starts else set())


def test_more_frozen_stages_than_there_are() -> None:
    with pytest.raises(RecipeError, match="model.frozen_stages=5: this backbone has 4 stages"):
        freeze_stages(random_model(), 5)


@pytest.mark.parametrize(
    ("size", "limits", "larger"),
    [
        ({"shortest_edge": 320, "longest_edge": 533}, (320, 533), (640, 1066)),
        ({"shortest_edge": 320}, (320, None), (640, None)),
        ({"height": 200, "width": 100}, (100, 200), (640, 1280)),
        ({"max_height": 100, "max_width": 100}, (100, 100), (640, 640)),
    ],
)
def test_image_limits(size: dict[str, int], limits: tuple, larger: tuple) -> None:
    for wanted, image_size in ((limits, 0), (larger, 640)):
        found = image_limits(size, image_size)
        assert (found["shortest_edge"], found.get("longest_edge")) == wanted


def test_the_image_size_of_a_recipe_is_the_processors(tmp_path: Path) -> None:
    start = str(save_random_model(tmp_path / "model"))
    _, processor = start_model(ModelRecipe(start_from=start, image_size=96))
    processor.save_pretrained(tmp_path / "saved")
    saved = GlipProcessor.from_pretrained(tmp_path / "saved")
    assert dict(saved.image_processor.size) == {"shortest_edge": 96, "longest_edge": 160}
    made = saved(images=Image.new("RGB", (400, 300)), return_tensors="pt")
    assert made["pixel_mask"].sum() == 96 * 128
    assert dict(start_model(ModelRecipe(start_from=start))[1].image_processor.size)["shortest_edge"] == 320
