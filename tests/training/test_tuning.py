"""Tuning modes: the right parameters move, all others stay bit for bit, and a prompt table travels alone."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from random_glip import load_photo, random_config, random_model, random_processor
from safetensors.torch import load_file

from glip_hf import GlipConfig, GlipForGrounding
from glip_hf.cli.common import load_model
from glip_hf.conversion import ConversionError
from glip_hf.conversion.variants import infer_fields
from glip_hf.conversion.weight_map import to_original, to_ours
from glip_hf.inference import GroundingEngine
from glip_hf.inspection import describe
from glip_hf.prompt_table_glip import config_hash
from glip_hf.training.recipe import ModelRecipe, RecipeError
from glip_hf.training.start import start_model
from glip_hf.training.tuning import LINEAR, trained_names, tune

PHOTO = load_photo().resize((128, 96))


def training_batch() -> dict:
    boxes = [{"bbox": [10, 10, 50, 60], "category_id": 0}, {"bbox": [60, 30, 50, 40], "category_id": 1}]
    return random_processor()(
        images=PHOTO,
        text=["cat", "pink sofa"],
        annotations={"image_id": 0, "annotations": boxes},
        size={"shortest_edge": 96},
        return_tensors="pt",
    )


def train(model: GlipForGrounding, steps: int = 2, lr: float = 1e-2) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    batch = training_batch()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def logits(model: GlipForGrounding) -> torch.Tensor:
    batch = training_batch()
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("mode", ["head", "linear", "prompt"])
def test_only_what_the_mode_names_moves(mode: str) -> None:
    model = random_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = set(tune(model, mode))
    assert trained == set(trained_names(model))
    train(model)
    for name, value in model.state_dict().items():
        if name not in trained:
            assert torch.equal(value, before[name]), name
    moved = {n for n in trained if n not in before or not torch.equal(model.state_dict()[n], before[n])}
    assert moved == trained


def test_full_trains_all_but_what_never_is() -> None:
    model = random_model()
    frozen = {name for name, _ in model.named_parameters()} - set(tune(model, "full"))
    assert frozen and all(n.startswith(("head.class_logits.", "model.backbone.swin.layernorm.")) for n in frozen)


def test_linear_probe_is_the_originals() -> None:
    names = tune(random_model(), "linear")
    assert set(names) == {
        "head.bbox_pred.weight",
        "head.bbox_pred.bias",
        "head.centerness.weight",
        "head.centerness.bias",
        "head.text_projection.weight",
        "head.text_projection.bias",
        "head.log_scale",
        "head.bias_lang",
        "head.bias0",
    }
    assert all(name.startswith(LINEAR) for name in names)


def test_frozen_parts_run_in_evaluation_mode() -> None:
    model = random_model()
    tune(model, "head")
    model.train()
    assert not any(
        m.training for part in ("backbone", "neck", "text_model") for m in getattr(model.model, part).modules()
    )
    assert model.model.tower["blocks"][0].fusion.training and model.head.training
    tune(model, "prompt")
    model.train()
    batch = training_batch()
    torch.testing.assert_close(model(**batch).loss, model(**batch).loss, rtol=0, atol=0)  # nothing drops anything
    assert not model.model.tower["blocks"].training
    model = random_model().train()
    assert model.model.backbone.training and model.model.neck.training  # full training is untouched


def test_unknown_mode_and_misplaced_options() -> None:
    with pytest.raises(RecipeError, match="prefix.*full, head, linear, prompt, lora"):
        tune(random_model(), "prefix")
    with pytest.raises(RecipeError, match="takes no r; that is for lora"):
        tune(random_model(), "prompt", r=4)
    with pytest.raises(RecipeError, match="tuning.mode=full takes no prompt_length=3; that is for prompt"):
        tune(random_model(), prompt_length=3)


# -- the prompt table ------------------------------------------------------------------------------


@pytest.mark.parametrize("use_fusion", [True, False])
def test_a_fresh_table_changes_nothing_and_row_t_acts_on_token_t(use_fusion: bool) -> None:
    config = GlipConfig(**{**random_config().to_dict(), "use_fusion": use_fusion})
    model = GlipForGrounding(config).eval()
    plain = logits(model)
    table = model.add_prompt_table(12)
    assert table.shape == (12, config.text_config.hidden_size)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    with torch.no_grad():
        table[2] = torch.linspace(-3, 3, table.shape[1])
    changed = (logits(model) - plain).abs().amax((0, 1)) > 1e-6
    if use_fusion:
        assert changed.all()  # through the image, every token
    else:
        assert changed.nonzero().flatten().tolist() == [2]
    with torch.no_grad():
        table[2] = 0
        table[11] = 1  # a row behind the caption
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.remove_prompt_table()
    assert model.config.prompt_table_length == 0
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)


def test_the_table_alone_travels_to_any_base_of_the_same_width(tmp_path: Path) -> None:
    model = random_model()
    tune(model, "prompt")
    train(model)
    model.save_prompt_table(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompt_table.json", "prompt_table.safetensors"]
    (stored,) = load_file(tmp_path / "prompt_table.safetensors").values()
    assert stored.shape == (256, 32) and stored.abs().sum() > 0
    info = json.loads((tmp_path / "prompt_table.json").read_text())
    assert (info["length"], info["text_width"]) == (256, 32)
    assert info["base_config_hash"] == config_hash(random_config())

    other = random_model()
    other.load_prompt_table(tmp_path)
    # Two ways of computing: what is being trained must be differentiable.
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=1e-5)

    deeper = GlipForGrounding(GlipConfig(**{**random_config().to_dict(), "num_blocks": 1}))
    deeper.load_prompt_table(tmp_path)
    assert torch.equal(deeper.model.prompt_table, stored)


def test_a_table_says_which_caption_it_belongs_to() -> None:
    model, processor = random_model(), random_processor(96)
    processor.class_names = ["cat", "sofa"]
    engine = GroundingEngine(model, processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.tokenize(["sofa"])
        model.add_prompt_table(16)
        engine.tokenize(["Cat", "sofa"])
    for other in (["sofa", "cat"], ["cat"]):
        with pytest.warns(
            UserWarning, match="table belongs to a caption of 'cat', 'sofa', in this order: for other text"
        ):
            engine.tokenize(other)


def test_a_table_of_another_width_is_refused(tmp_path: Path) -> None:
    model = random_model()
    model.add_prompt_table(4)
    model.save_prompt_table(tmp_path)
    config = random_config().to_dict()
    config["text_config"]["hidden_size"] = 64
    with pytest.raises(ValueError, match=r"\(4, 32\) does not fit a text encoder of width 64"):
        GlipForGrounding(GlipConfig(**config)).load_prompt_table(tmp_path)
    with pytest.raises(ValueError, match="no prompt table"):
        random_model().save_prompt_table(tmp_path)
    with pytest.raises(OSError):
        random_model().load_prompt_table(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        model.add_prompt_table(0)
    with pytest.raises(ValueError, match="prompt_table_length=4"):
        logits(model)  # the caption has six tokens


def test_a_model_with_its_table_is_saved_whole(tmp_path: Path) -> None:
    model = random_model()
    table = model.add_prompt_table(16)
    torch.nn.init.normal_(table)
    model.save_pretrained(tmp_path)
    again = GlipForGrounding.from_pretrained(tmp_path)
    assert again.config.prompt_table_length == 16 and torch.equal(again.model.prompt_table, table)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_a_configured_table_is_zero_after_loading_a_base_without_one(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    model = GlipForGrounding.from_pretrained(tmp_path, prompt_table_length=8)
    assert model.model.prompt_table.shape == (8, 32) and not model.model.prompt_table.any()


# -- adapters --------------------------------------------------------------------------------------


def test_lora(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model = random_model()
    model.save_pretrained(tmp_path / "base")
    model = GlipForGrounding.from_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = tune(model, "lora", r=4)
    assert names and all("lora_" in name for name in names)
    for part in ("backbone", "text_model", "tower"):
        assert any(f"model.{part}" in name for name in names), part
    train(model)
    for name, value in model.state_dict().items():
        key = name.replace(".base_layer", "")
        if key in before:
            assert torch.equal(value, before[key]), name
    model.save_pretrained(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    again = GlipForGrounding.from_pretrained(tmp_path / "base")
    plain = logits(again)
    again.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(model))
    assert not torch.allclose(logits(again), plain)

    random_processor(96).save_pretrained(tmp_path / "base")
    from_folder, processor = load_model(str(tmp_path / "adapter"))  # as the command line does
    torch.testing.assert_close(logits(from_folder), logits(model))
    assert processor.image_processor.size == random_processor(96).image_processor.size
    facts = describe(str(tmp_path / "adapter"))
    assert (facts["tuned"], facts["base"]) == ("adapter", str(tmp_path / "base"))
    # A table on top of it would name the base alone, and what is saved after `full` be the adapter again.
    merge = r"adapter has an adapter alone, for .*base: save peft.PeftModel.*merge_and_unload\(\) with save_pretrained"
    with pytest.raises(ConversionError, match=merge):
        start_model(ModelRecipe(start_from=str(tmp_path / "adapter")))


def test_a_prompt_table_converts_both_ways() -> None:
    model = random_model()
    torch.nn.init.normal_(model.add_prompt_table(1000))
    original = to_original(model.state_dict())
    assert torch.equal(original["rpn.tunable_linear.weight"], model.model.prompt_table)
    assert infer_fields(original)["prompt_table_length"] == 1000
    assert torch.equal(to_ours(original)["model.prompt_table"], model.model.prompt_table)
