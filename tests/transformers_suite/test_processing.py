# Copyright 2026 The glip_hf authors. MIT licence.
"""Transformers' processor suite, for GlipProcessor."""

import unittest

from transformers import BertTokenizer

from glip_hf import GlipImageProcessorPil, GlipProcessor
from glip_hf.demo import VOCABULARY

from . import suites  # noqa: F401, before the suites themselves

from transformers_tests.test_processing_common import ProcessorTesterMixin  # isort: skip


class GlipProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = GlipProcessor

    @classmethod
    def _setup_image_processor(cls) -> GlipImageProcessorPil:
        return GlipImageProcessorPil(size={"shortest_edge": 40, "longest_edge": 66})

    @classmethod
    def _setup_tokenizer(cls) -> BertTokenizer:
        return BertTokenizer(vocab=str(VOCABULARY), do_lower_case=True)

    def test_processor_text_has_no_visual(self) -> None:
        """The suite mixes samples with and without an image. GLIP grounds each text in an image, and says so."""
        processor, images = self.get_processor(), self.prepare_images_inputs(batch_size=2)
        text = [["lower newer"], ["upper older longer string"]]
        self.assertEqual(len(processor(images=images, text=text, return_tensors="pt")["input_ids"]), 2)
        with self.assertRaisesRegex(ValueError, "^2 texts for 1 "):
            processor(images=[[], images[:1]], text=text, return_tensors="pt")
