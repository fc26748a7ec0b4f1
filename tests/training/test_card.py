"""A finished run's card says what it is of, and what the Hub takes."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from glip_hf.hub_glip import build_model_card
from glip_hf.training.card import write_card
from glip_hf.training.recipe import load_recipe


def card(directory: Path, *overrides: str, history: tuple = (), **options) -> ModelCard:
    recipe = load_recipe(None, overrides)
    write_card(directory, recipe, 100, 90.0, 2, list(history), averaged=True, **options)
    return ModelCard.load(directory / "README.md")


def test_data_steps_hardware_results(tmp_path: Path) -> None:
    sources = "data.sources=[{name: flickr30k_train, copies: 2}, {format: tsv, yaml_file: o365.yaml}]"
    history = ({"step": 50, "AP": 0.1}, {"step": 100, "AP": 0.25})
    text = card(tmp_path, sources, "data.batch_size=8", history=history, measured_average=True).text
    assert "- `flickr30k_train`, copies 2" in text and "- `o365.yaml`" in text
    assert "100 optimiser steps of 8 images (800 in all) in 1.5 minutes, from random weights, mode `full`" in text
    assert "2 process(es) on CPU" in text and "averaged weights (EMA 0.999)" in text
    assert "with the averaged weights:" in text and "| AP | 0.2500 |" in text and "0.1000" not in text
    assert "batch_size: 8" in text


def test_imagenet_and_bert_weights_are_named(tmp_path: Path) -> None:
    text = card(tmp_path, "model.backbone_weights=swin.pth", "model.text_weights=bert-base-uncased").text
    assert "from backbone `swin.pth` and text encoder `bert-base-uncased`, the rest random" in text


@pytest.mark.parametrize("start", ["user/glip-tiny", "{here}", "out/model"])
def test_only_a_hub_id_is_the_base_model(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub refuses a card whose base model is a directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    start = start.format(here=tmp_path)
    found = card(tmp_path, f"model.start_from={start}")
    assert found.data.to_dict().get("base_model") == (start if start == "user/glip-tiny" else None)
    assert f"from `{start}`" in found.text


def test_names_do_not_end_what_they_stand_in(tmp_path: Path) -> None:
    name = "a`|b\n# <script>"
    text = card(tmp_path, f"data.sources=[{{format: coco, name: {json.dumps(name)}, annotations: x}}]").text
    assert "- `a'\\|b # <script>`" in text and "\n# <script>" not in text
    recipe = text[text.index("## Recipe") :]
    assert recipe.count("`" * 8) == 2


def test_titles_and_snippets_of_odd_directories() -> None:
    text = build_model_card('x"]\n## [y](z) <b>').text
    assert '# x"] ## \\[y](z) \\<b>' in text and r'from_pretrained("x\"]\n## [y](z) <b>")' in text
