# Copyright 2026 The glip_hf authors. MIT licence.
"""A program as a user writes it, for type checkers: `scripts/release_check.sh` checks it, nothing runs it."""

from collections.abc import Iterator
from typing import Any, assert_type

from PIL.Image import Image

from glip_hf import (
    PRESETS,
    GlipConfig,
    GlipForGrounding,
    GlipGroundingOutput,
    GlipImageProcessor,
    GlipImageProcessorPil,
    GlipModel,
    GlipProcessor,
    GlipZeroShotObjectDetectionPipeline,
    __version__,
    kernels,
)
from glip_hf.demo import load_demo_image
from glip_hf.inference import Detections, Grounded, GroundingEngine, GroundingOptions, Request
from glip_hf.visualize import draw_detections


def ground(directory: str, names: list[str]) -> Image:
    """The example of README.md: every line with the type that an editor shows."""
    model = GlipForGrounding.from_pretrained(directory)
    assert_type(model, GlipForGrounding)
    processor = GlipProcessor.from_pretrained(directory)
    assert_type(processor, GlipProcessor)
    image = load_demo_image()
    assert_type(image, Image)
    inputs = processor(images=image, text=names, return_tensors="pt", padding=True, chunk_size=10)
    outputs: GlipGroundingOutput = model(**inputs.to(model.device, model.dtype))
    results = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.4)
    assert_type(results, list[dict[str, Any]])
    return draw_detections(image, results[0])


def ways_to_say_it(processor: GlipProcessor, image: Image) -> None:
    caption = "two cats on a pink sofa"
    processor(images=image, text="cat. remote control.", return_tensors="pt")
    processor(images=image, text=caption, phrases=["cats", "pink sofa"], return_tensors="pt")
    processor(images=image, text=caption, spans=[[4, 8], [14, 23]], return_tensors="pt")
    processor(images=[image, image], text=[["cat"], ["sofa", "lamp", "plant"]], return_tensors="pt")
    processor(images=[image, image], text=["a cat", "a lamp on a table"], phrases=[None, None], return_tensors="pt")
    processor(text=["cat"], return_tensors="pt")


def many(model: GlipForGrounding, processor: GlipProcessor, paths: list[str]) -> Iterator[Detections]:
    engine = GroundingEngine(model, processor, GroundingOptions(threshold=0.4, batch_size=4))
    for grounded in engine.ground(Request(path, ["cat"]) for path in paths):
        assert_type(grounded, Grounded)
        yield grounded.detections[0]


def build() -> GlipModel:
    config = GlipConfig(**PRESETS["glip_tiny_model_o365_goldg"])
    processors: tuple[type, ...] = (GlipImageProcessor, GlipImageProcessorPil, GlipZeroShotObjectDetectionPipeline)
    print(__version__, config.d_model, processors)
    with kernels.disable():
        return GlipModel(config)
