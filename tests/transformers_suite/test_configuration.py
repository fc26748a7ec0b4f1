# Copyright 2026 The glip_hf authors. MIT licence.
"""Transformers' configuration suite, for GlipConfig."""

import unittest

from tiny import tiny_bert, tiny_config, tiny_swin

from glip_hf import GlipConfig

from . import suites  # noqa: F401, before the suites themselves

from transformers_tests.test_configuration_common import ConfigTester  # isort: skip


class GlipConfigTester:
    """What the suite asks of a test class's `model_tester`."""

    def get_config(self) -> GlipConfig:
        return tiny_config()


class GlipConfigTest(unittest.TestCase):
    def setUp(self) -> None:
        self.model_tester = GlipConfigTester()
        fields = {"d_model": 16, "num_blocks": 2, "group_norm_groups": 4, "fusion_hidden_size": 32, "fusion_heads": 4}
        self.config_tester = ConfigTester(
            self,
            config_class=GlipConfig,
            has_text_modality=False,  # vocab_size belongs to text_config
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            **fields,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_config_with_sub_configurations(self) -> None:
        options = {"backbone_config": tiny_swin().to_dict(), "text_config": tiny_bert().to_dict()}
        self.config_tester.inputs_dict |= options | {"max_text_length": 32}
        self.config_tester.create_and_test_config_from_and_save_pretrained_composite()
        self.config_tester.create_and_test_config_from_pretrained_custom_kwargs()
