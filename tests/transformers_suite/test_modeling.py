# Copyright 2026 The glip_hf authors. MIT licence.
"""Transformers' model suite, for GlipModel and GlipForGrounding, each with and without fusion."""

import tempfile
import unittest
from typing import Any

from tiny import tiny_config, tiny_inputs, tiny_labels

from glip_hf import GlipConfig, GlipForGrounding, GlipModel

from . import suites  # noqa: F401, before the suites themselves

from transformers_tests.test_modeling_common import ModelTesterMixin  # isort: skip


class GlipModelTester:
    """Small configurations and inputs, under the names that the suite asks for."""

    is_training = True
    batch_size = 2
    seq_length = key_length = 9  # tokens
    encoder_seq_length = 96 + 24 + 6 + 2 + 1  # locations of all levels of the pyramid, for 64 x 96 pixels
    num_hidden_layers = 2  # blocks of the tower
    num_attention_heads = 4
    hidden_size = 16

    def __init__(self, use_fusion: bool) -> None:
        self.use_fusion = use_fusion

    def get_config(self) -> GlipConfig:
        return tiny_config(use_fusion=self.use_fusion)

    def prepare_config_and_inputs_for_common(self) -> tuple[GlipConfig, dict[str, Any]]:
        return self.get_config(), tiny_inputs(self.batch_size, length=self.seq_length)


class GlipModelSuite(ModelTesterMixin):
    """What the four suites share; a subclass names the model class and whether it fuses."""

    use_fusion = True
    _is_composite = True  # backbone_config and text_config
    additional_model_inputs = ["input_ids", "attention_mask"]
    test_can_init_all_missing_weights_before_2023 = True  # runs a test that is skipped by the date of a model's file
    # The suite expects the backbone's width; the pyramid projects to d_model (tests/test_modeling_glip.py).
    skip_test_image_features_output_shape = True

    def setUp(self) -> None:
        self.model_tester = GlipModelTester(self.use_fusion)

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is GlipForGrounding:
            inputs["labels"] = tiny_labels(len(inputs["pixel_values"]), inputs["input_ids"].shape[1])
        return inputs

    def _image_features_get_expected_num_attentions(self, model_tester: Any = None) -> int:
        return len(self.model_tester.get_config().backbone_config.depths)

    def _image_features_get_expected_num_hidden_states(self, model_tester: Any = None) -> int:
        return len(self.model_tester.get_config().backbone_config.depths) + 1

    def test_sdpa_can_dispatch_composite_models(self) -> None:
        """As in the suite, which knows other names for the two encoders."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as directory:
                model.save_pretrained(directory)
                for requested, expected in ((None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
                    options = {} if requested is None else {"attn_implementation": requested}
                    loaded = model_class.from_pretrained(directory, **options).base_model
                    for part in (loaded, loaded.backbone, loaded.text_model):
                        self.assertEqual(part.config._attn_implementation, expected)


class WithoutFusion:
    """Swin and BERT attend, so `has_attentions` holds; but no attention of the model's own reaches its output."""

    use_fusion = False

    def test_attention_outputs(self) -> None:
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            outputs = model_class._from_config(config, attn_implementation="eager")(**inputs, output_attentions=True)
            self.assertIsNone(outputs.attentions)

    def test_retain_grad_hidden_states_attentions(self) -> None:
        self.has_attentions = False  # for this test: gradients of the hidden states only
        super().test_retain_grad_hidden_states_attentions()


class GlipModelTest(GlipModelSuite, unittest.TestCase):
    all_model_classes = (GlipModel,)


class GlipModelWithoutFusionTest(WithoutFusion, GlipModelSuite, unittest.TestCase):
    all_model_classes = (GlipModel,)


class GlipForGroundingTest(GlipModelSuite, unittest.TestCase):
    all_model_classes = (GlipForGrounding,)


class GlipForGroundingWithoutFusionTest(WithoutFusion, GlipModelSuite, unittest.TestCase):
    all_model_classes = (GlipForGrounding,)
