# Copyright 2026 The glip_hf authors. MIT licence.
"""What `glip_hf` exports, but the pipeline; importing this module registers the kernels and the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # above, it may ask for torchvision
from transformers.utils import is_torchvision_available

from . import kernels  # they register themselves
from .configuration_glip import PRESETS, GlipConfig
from .image_processing_pil_glip import GlipImageProcessorPil
from .modeling_glip import (
    GlipForGrounding,
    GlipGroundingOutput,
    GlipImageFeatures,
    GlipModel,
    GlipModelOutput,
    GlipPreTrainedModel,
    GlipTextFeatures,
)
from .processing_glip import GlipProcessor

_image_processors = {"pil": GlipImageProcessorPil}
if is_torchvision_available():
    from .image_processing_glip import GlipImageProcessor

    _image_processors["torchvision"] = GlipImageProcessor
else:
    GlipImageProcessor = GlipImageProcessorPil

AutoConfig.register("glip", GlipConfig, exist_ok=True)
AutoModel.register(GlipConfig, GlipModel, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(GlipConfig, GlipForGrounding, exist_ok=True)
AutoImageProcessor.register(GlipConfig, image_processor_classes=_image_processors, exist_ok=True)
AutoProcessor.register(GlipConfig, GlipProcessor, exist_ok=True)

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
    "kernels",
]
