# Copyright 2026 The glip_hf authors. MIT licence.
"""The shipped model: small enough, as good on fresh scenes as its card says, and right on the example image."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from glip_hf import GlipConfig, GlipForGrounding, GlipProcessor
from glip_hf.boxes_glip import box_iou
from glip_hf.data.scene_metrics import evaluate_scenes
from glip_hf.demo import (
    DEMO_CAPTION,
    DEMO_IMAGE,
    DEMO_MODEL,
    DEMO_NAMES,
    VOCABULARY,
    demo_model,
    demo_processor,
    load_demo_image,
    scenes_config,
)

ROOT = Path(__file__).resolve().parents[1]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "scripts" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCENE = load_script("draw_scene.py").scene()


@pytest.fixture(scope="module")
def model() -> GlipForGrounding:
    return demo_model()


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return demo_processor()


def detect(model: GlipForGrounding, processor: GlipProcessor, text: str | list[str]) -> dict:
    inputs = processor(images=load_demo_image(), text=text, return_tensors="pt")
    with torch.inference_mode():
        return processor.post_process_grounded_object_detection(model(**inputs), inputs, threshold=0.4)[0]


def overlap(found: dict, label: str, color: str, kind: str, number: int = 0) -> torch.Tensor:
    """IoU of each detection of a label with one thing of the scene."""
    things = [thing for thing in SCENE.things if (thing.color, thing.kind) == (color, kind)]
    boxes = found["boxes"][[k for k, name in enumerate(found["text_labels"]) if name == label]]
    return box_iou(boxes, torch.tensor([things[number].box], dtype=torch.float32))[:, 0]


def test_class_names_are_found_and_an_absent_one_is_not(model, processor) -> None:
    found = detect(model, processor, list(DEMO_NAMES))
    assert set(found["text_labels"]) == {"fish", "green star", "yellow cross"}
    assert overlap(found, "fish", "orange", "fish").max() > 0.8
    assert overlap(found, "green star", "green", "star").max() > 0.8
    assert overlap(found, "yellow cross", "yellow", "cross", 0).max() > 0.8
    assert overlap(found, "yellow cross", "yellow", "cross", 1).max() > 0.8


@pytest.mark.parametrize(("side", "number"), [("left", 0), ("right", 1)])
def test_a_relation_decides_between_two_like_things(model, processor, side, number) -> None:
    caption = DEMO_CAPTION.replace("left", side)
    found = detect(model, processor, caption)
    cross, fish = "the dotted yellow cross", "a fish"
    assert found["text_labels"][:2] in ([cross, fish], [fish, cross])
    best = found["text_labels"].index(cross)
    assert set(found["text_labels"]) == {cross, fish}
    assert overlap(found, cross, "yellow", "cross", number)[0] > 0.8
    assert found["scores"][best] > 0.6
    assert overlap(found, fish, "orange", "fish").max() > 0.8


def test_finds_phrases_of_fresh_scenes(model, processor) -> None:
    assert evaluate_scenes(model, processor, num_scenes=32, seed=99, splits=["sentences"])["recall1"] > 0.85


@pytest.mark.slow
def test_as_good_as_its_card_says(model, processor) -> None:
    figures = evaluate_scenes(model, processor, num_scenes=300, seed=99)
    assert figures["ap50"] == pytest.approx(0.964, abs=0.01)
    assert figures["ap"] == pytest.approx(0.806, abs=0.01)
    assert figures["recall1"] == pytest.approx(0.926, abs=0.01)
    assert figures["unseen_ap50"] == pytest.approx(0.976, abs=0.01)
    assert figures["relation_recall1"] == pytest.approx(0.960, abs=0.02)


def test_small_and_of_the_default_recipe(model) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) <= 4_000_000
    assert (DEMO_MODEL / "model.safetensors").stat().st_size <= 16_000_000
    assert scenes_config().to_dict() == GlipConfig(**scenes_config().to_dict()).to_dict()  # as a recipe makes it


def test_vocabulary_knows_our_words_and_spells_the_others(processor) -> None:
    words = VOCABULARY.read_text(encoding="utf-8").split()
    assert len(words) == len(set(words))
    tokenizer = processor.tokenizer
    for text in (DEMO_CAPTION, *DEMO_NAMES, "zyzzyva 42!", "Caf\u00e9"):
        assert tokenizer.unk_token not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("remote control") == ["remote", "control"]


@pytest.mark.parametrize(
    ("script", "draw", "path", "size", "tolerance"),
    [
        ("draw_scene.py", "draw_scene", DEMO_IMAGE, (480, 480), 0),
        ("draw_photo.py", "draw_photo", ROOT / "tests/fixtures/images/photo.jpg", (640, 480), 4),  # JPEG of quality 88
    ],
)
def test_images_are_reproduced_by_our_scripts(script, draw, path, size, tolerance) -> None:
    drawn = np.asarray(getattr(load_script(script), draw)(), dtype=float)
    with Image.open(path) as stored:
        assert stored.size == size
        assert abs(drawn - np.asarray(stored.convert("RGB"), dtype=float)).mean() <= tolerance
    assert path.stat().st_size < 500_000


def test_drawn_predictions(tmp_path, monkeypatch) -> None:
    script = load_script("draw_predictions.py")
    monkeypatch.setattr(script, "EACH", 1)
    monkeypatch.setattr("sys.argv", ["draw_predictions.py", str(tmp_path / "new")])
    script.main()
    with Image.open(tmp_path / "new" / "scenes.png") as sheet, Image.open(tmp_path / "new" / "grounded.png") as image:
        assert sheet.height > 4 * sheet.width  # four splits below each other
        assert image.size == load_demo_image().size
