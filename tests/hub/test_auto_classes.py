# Copyright 2026 The glip_hf authors. MIT licence.
"""Auto classes, model card, and what a save without code leaves out."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from random_glip import load_photo, random_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import glip_hf
from glip_hf import (
    GlipConfig,
    GlipForGrounding,
    GlipImageProcessor,
    GlipModel,
    GlipProcessor,
)
from glip_hf.hub import TAGS, build_model_card, save_with_code


def test_every_auto_class_loads_a_saved_directory(saved) -> None:
    assert type(AutoConfig.from_pretrained(saved)) is GlipConfig
    assert type(AutoImageProcessor.from_pretrained(saved)) is GlipImageProcessor
    assert type(AutoTokenizer.from_pretrained(saved)) is BertTokenizer
    processor = AutoProcessor.from_pretrained(saved)
    assert (type(processor), type(processor.image_processor)) == (GlipProcessor, GlipImageProcessor)
    model, expected = AutoModelForZeroShotObjectDetection.from_pretrained(saved), random_model()
    assert type(model) is GlipForGrounding
    state, base = model.state_dict(), AutoModel.from_pretrained(saved)
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    assert type(base) is GlipModel
    assert all(torch.equal(state[f"model.{key}"], value) for key, value in base.state_dict().items())
    made = AutoModelForZeroShotObjectDetection.from_config(AutoConfig.from_pretrained(saved))
    assert type(made) is GlipForGrounding


def test_import_is_silent_offline_and_registers_no_code(run_python) -> None:
    """A registered class would copy its code with every save. Importing again changes nothing."""
    code = """
import importlib, socket, sys
socket.socket.connect = lambda *a: sys.exit("network at import")
import glip_hf
importlib.reload(glip_hf)
public = [getattr(glip_hf, name) for name in glip_hf.__all__]
assert not [c for c in public if getattr(c, "_auto_class", None) is not None]
"""
    assert run_python(code) == ""


def test_save_without_code_names_none(saved) -> None:
    assert not list(saved.glob("*.py"))
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in (saved / name).read_text()


def test_directory_with_code_needs_no_trust_where_glip_hf_is_installed(saved, tmp_path) -> None:
    model, processor = GlipForGrounding.from_pretrained(saved), GlipProcessor.from_pretrained(saved)
    directory = save_with_code(tmp_path / "code", model, processor)
    assert not hasattr(model.config, "auto_map") and not hasattr(processor, "auto_map")
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(directory)
    its_processor = AutoProcessor.from_pretrained(directory)
    assert (type(loaded), type(its_processor)) == (GlipForGrounding, GlipProcessor)
    # What it promised there does not hold in the next directory, unless the code goes along again.
    loaded.save_pretrained(tmp_path / "plain")
    its_processor.save_pretrained(tmp_path / "plain")
    test_save_without_code_names_none(tmp_path / "plain")
    assert loaded.config.auto_map["AutoModel"] == "modeling_glip.GlipModel"


def test_code_of_another_repository_stays_named(tmp_path) -> None:
    model = random_model()
    model.config.auto_map = {"AutoModel": "user/name--modeling.Other", "AutoConfig": "local.Gone"}
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {"AutoModel": "user/name--modeling.Other"}


def test_model_card_of_a_save(tmp_path) -> None:
    model = random_model()
    model.add_model_tags("pink-sofas")
    model.save_pretrained(tmp_path / "glip-sofa")
    card = ModelCard.load(tmp_path / "glip-sofa" / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["license"] == "mit"
    assert data["pipeline_tag"] == "zero-shot-object-detection"
    assert data["tags"] == [*TAGS, "pink-sofas"]
    assert "# glip-sofa" in card.text and 'GlipForGrounding.from_pretrained("glip-sofa")' in card.text
    assert f"{model.num_parameters():,}" in card.text and "trust_remote_code" not in card.text


def test_model_card_with_code_does_without_glip_hf(saved, tmp_path) -> None:
    model, processor = GlipForGrounding.from_pretrained(saved), GlipProcessor.from_pretrained(saved)
    directory = save_with_code(tmp_path / "code", model, processor)
    text = ModelCard.load(directory / "README.md").text
    assert "trust_remote_code=True" in text and "glip_hf" not in text
    assert str(saved) not in text  # where it came from on this machine is nobody's business


def test_a_card_that_is_there_is_kept(tmp_path) -> None:
    (tmp_path / "README.md").write_text("mine")
    random_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    random_model().save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second" / "README.md").exists()


def test_card_takes_more_metadata_and_its_code_runs_as_python() -> None:
    card = build_model_card("a/b", base_model="c/d", datasets=["e/f"], license="apache-2.0")
    data = card.data.to_dict()
    assert (data["base_model"], data["datasets"], data["license"]) == ("c/d", ["e/f"], "apache-2.0")
    for with_code in (False, True):
        text = build_model_card("a/b", with_code=with_code).text
        compile(text.split("```python")[1].split("```")[0], "card", "exec")


@pytest.mark.parametrize("name", ["GlipZeroShotObjectDetectionPipeline", "GlipProcessor"])
def test_public_names(name) -> None:
    assert name in glip_hf.__all__ and hasattr(glip_hf, name)


def test_documentation_runs(saved, tmp_path, monkeypatch) -> None:
    """Every Python block of docs/hub.md but the push, which `test_hub_server.py` does."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    image = load_photo()
    variables = {
        "repo_or_dir": str(saved),
        "image": image,
        "images": [image, image.rotate(90, expand=True)],
        "thousand_names": [f"cat {number}" for number in range(200)],
        "directory": "out/glip-with-code",
    }
    for block in blocks:
        if "push_to_hub" not in block:
            exec(compile(block, "docs/hub.md", "exec"), variables)
