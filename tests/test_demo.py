# Copyright 2026 The glip_hf authors. MIT licence.
"""The demonstration model is the same on every build, loads like any other, finds something."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.demo import (
    ASSETS,
    DEMO_CAPTION,
    DEMO_NAMES,
    DEMO_PHOTO,
    build_demo_model,
    demo_model,
    demo_processor,
    load_demo_photo,
)

ROOT = Path(__file__).resolve().parents[1]


def test_weights_are_the_same_on_every_build_and_leave_the_seed_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = demo_model().state_dict(), demo_model().state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_directory_loads_and_computes_the_same(tmp_path) -> None:
    directory = build_demo_model(tmp_path / "model")
    model = GlipForGrounding.from_pretrained(directory).eval()
    inputs = GlipProcessor.from_pretrained(directory)(
        images=load_demo_photo(), text=list(DEMO_NAMES), return_tensors="pt"
    )
    expected = demo_processor()(images=load_demo_photo(), text=list(DEMO_NAMES), return_tensors="pt")
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, demo_model()(**inputs).logits)


@pytest.mark.parametrize("text", [list(DEMO_NAMES), DEMO_CAPTION], ids=["names", "sentence"])
def test_something_is_found(text) -> None:
    processor = demo_processor()
    inputs = processor(images=load_demo_photo(), text=text, return_tensors="pt")
    with torch.inference_mode():
        outputs = demo_model()(**inputs)
    result = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.0)[0]
    assert len(result["scores"]) >= 5
    width, height = load_demo_photo().size
    assert (result["boxes"] >= 0).all()
    assert (result["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_vocabulary_knows_our_words_and_spells_the_others() -> None:
    words = (ASSETS / "vocab.txt").read_text(encoding="utf-8").split()
    assert len(words) == len(set(words))
    tokenizer = demo_processor().tokenizer
    for text in (DEMO_CAPTION, *DEMO_NAMES, "zyzzyva 42!", "Caf\u00e9"):
        assert tokenizer.unk_token not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("remote control") == ["remote", "control"]


def test_photo_is_the_one_that_our_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw_demo_photo", ROOT / "scripts/draw_demo_photo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = np.asarray(script.draw_photo(), dtype=float)
    with Image.open(DEMO_PHOTO) as photo:
        shipped = np.asarray(photo.convert("RGB"), dtype=float)
    assert drawn.shape == shipped.shape == (480, 640, 3)
    assert abs(drawn - shipped).mean() < 4  # JPEG of quality 88 on a noisy picture
    assert DEMO_PHOTO.stat().st_size < 150_000
