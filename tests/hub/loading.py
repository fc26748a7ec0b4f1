# Copyright 2026 The glip_hf authors. MIT licence.
"""Code that loads a model by every Auto class and stores what came out, and what should have."""

from contextlib import nullcontext
from pathlib import Path

import torch
from random_glip import load_photo

from glip_hf import GlipForGrounding, GlipProcessor, kernels

LOAD = """
import sys
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor,
    AutoTokenizer, pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

source, photo, results = sys.argv[1:]
trust = {"trust_remote_code": True}
image = Image.open(photo)
config = AutoConfig.from_pretrained(source, **trust)
base = AutoModel.from_pretrained(source, **trust)
model = AutoModelForZeroShotObjectDetection.from_pretrained(source, **trust).eval()
processor = AutoProcessor.from_pretrained(source, **trust)
image_processor = AutoImageProcessor.from_pretrained(source, **trust)
tokenizer = AutoTokenizer.from_pretrained(source, **trust)
found = [type(x).__name__ for x in (config, base, model, processor, processor.image_processor)]
inputs = processor(images=image, text=["cat", "remote control"], return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
boxes = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.3)[0]
detector = pipeline("zero-shot-object-detection", model=source, device="cpu", **trust)
torch.save(
    {
        "classes": found,
        "image_processor": type(image_processor).__name__.removesuffix("Pil"),
        "modules": sorted(m for m in sys.modules if m.startswith("transformers_modules")),
        "logits": outputs.logits,
        "boxes": boxes["boxes"],
        "pipeline": detector(image, candidate_labels=["cat"], threshold=0.3),
    },
    results,
)
"""


def expected(saved: Path, plain: bool) -> dict[str, torch.Tensor]:
    """What the saved model computes in this process; `plain` without kernels, which do not travel with the code."""
    model, processor = GlipForGrounding.from_pretrained(saved), GlipProcessor.from_pretrained(saved)
    inputs = processor(images=load_photo(), text=["cat", "remote control"], return_tensors="pt")
    with torch.inference_mode(), kernels.disable() if plain else nullcontext():
        outputs = model.eval()(**inputs)
    found = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.3)[0]
    return {"logits": outputs.logits, "boxes": found["boxes"]}


def check(results: dict, saved: Path) -> None:
    """Hold what `LOAD` stored against `expected`."""
    classes = ["GlipConfig", "GlipModel", "GlipForGrounding", "GlipProcessor"]
    assert results["classes"][:4] == classes
    assert results["classes"][4].removesuffix("Pil") == results["image_processor"] == "GlipImageProcessor"
    assert any(module.endswith(".modeling_glip") for module in results["modules"])
    for key, value in expected(saved, plain=True).items():
        torch.testing.assert_close(results[key], value, rtol=0, atol=1e-5)
    assert results["pipeline"] and results["pipeline"][0]["label"] == "cat"
