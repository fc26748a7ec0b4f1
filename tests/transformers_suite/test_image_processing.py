# Copyright 2026 The glip_hf authors. MIT licence.
"""Transformers' image processor suite, for both backends; the torchvision one skips without torchvision."""

import os
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import is_torchvision_available

from glip_hf import GlipImageProcessor, GlipImageProcessorPil, image_processing_glip
from glip_hf.image_processing_pil_glip import common_padded_size, resized_size

from . import suites  # noqa: F401, before the suites themselves

from transformers_tests.test_image_processing_common import (  # isort: skip
    ImageProcessingTester,
    ImageProcessingTestMixin,
)

WITHOUT_TORCHVISION = "import sys; sys.modules['torchvision'] = None; import glip_hf"
BACKENDS = {"pil": GlipImageProcessorPil, "torchvision": GlipImageProcessor}


class GlipImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: Any, **kwargs: Any) -> None:
        kwargs.setdefault("size", {"shortest_edge": 40, "longest_edge": 66})
        kwargs.setdefault("size_divisor", 32)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {name: BACKENDS[name] for name in self.parent.backends}

    def expected_output_image_shape(self, images: list) -> tuple[int, int, int]:
        """Resized by the original's rule, which rounds otherwise than Transformers', and padded to multiples of 32."""
        sizes = [image.size[::-1] if isinstance(image, Image.Image) else image.shape for image in images]
        sizes = [size[:2] if size[-1] == self.num_channels else size[-2:] for size in sizes]
        resized = [resized_size(*size, self.size) for size in sizes]
        return self.num_channels, *common_padded_size(resized, self.size_divisor)


class GlipImageProcessorPilTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = GlipImageProcessingTester
    backends = ("pil",)
    test_cast_dtype = True

    def test_pil_can_run_without_torchvision(self) -> None:
        """In a process that has imported glip_hf: `AutoImageProcessor` does not know GLIP otherwise."""
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "sitecustomize.py").write_text(WITHOUT_TORCHVISION, encoding="utf-8")
            path = os.pathsep.join([directory, os.environ.get("PYTHONPATH", "")])
            with patch.dict(os.environ, {"PYTHONPATH": path}):
                super().test_pil_can_run_without_torchvision()

    def test_new_models_require_torchvision_backend(self) -> None:
        """There is one, whether or not this environment has torchvision."""
        self.assertTrue(issubclass(image_processing_glip.GlipImageProcessor, TorchvisionBackend))


@unittest.skipUnless(is_torchvision_available(), "torchvision is not installed: its backend is NOT tested in this run")
class GlipImageProcessorTest(GlipImageProcessorPilTest):
    backends = ("pil", "torchvision")
