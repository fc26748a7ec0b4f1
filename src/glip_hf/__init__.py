# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP for Transformers: detect class names, or the phrases of a caption, in images.

Importing this package registers GLIP with the Auto classes and `pipeline("zero-shot-object-detection")`. It imports
neither torch nor Transformers: both come with the first use of what it exports, or of an Auto class (`_lazy.py`).
"""

from typing import TYPE_CHECKING, Any

from . import _lazy

if TYPE_CHECKING:
    from ._register import *
    from .pipeline import GlipZeroShotObjectDetectionPipeline

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "GlipConfig",
    "GlipForGrounding",
    "GlipGroundingOutput",
    "GlipImageFeatures",
    "GlipImageProcessor",
    "GlipImageProcessorPil",
    "GlipModel",
    "GlipModelOutput",
    "GlipPreTrainedModel",
    "GlipProcessor",
    "GlipTextFeatures",
    "GlipZeroShotObjectDetectionPipeline",
    "kernels",
]


def __getattr__(name: str) -> Any:
    return _lazy.load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_lazy.install()
