# Copyright 2026 The glip_hf authors. MIT licence.
"""Transformers' pipeline suite, for GlipForGrounding in `pipeline("zero-shot-object-detection")`."""

import json
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

from random_glip import PHOTO, random_model, random_processor
from transformers import pipeline

from glip_hf import GlipForGrounding

from . import suites

# Like Transformers' folder of tiny models: read when the suite is imported.
MODELS = tempfile.TemporaryDirectory()
SUMMARY = {"GlipForGrounding": {"tokenizer_classes": ["BertTokenizer"], "processor_classes": ["GlipImageProcessorPil"]}}
(Path(MODELS.name) / "reports").mkdir()
(Path(MODELS.name) / "reports" / "tiny_model_summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")

with patch.dict(os.environ, {"TRANSFORMERS_TINY_MODEL_PATH": MODELS.name}):
    from transformers_tests.test_pipeline_mixin import PipelineTesterMixin


class ZeroShotObjectDetectionPipelineTests:
    """Stand-in for the task's test, which the distribution lacks: the stock pipeline and what it must return."""

    LABELS = ["cat", "yellow cross", "remote control"]

    def get_test_pipeline(self, model: Any, tokenizer: Any, dtype: str, **processors: Any) -> tuple[Any, list[dict]]:
        detector = pipeline("zero-shot-object-detection", model=model, tokenizer=tokenizer, dtype=dtype, **processors)
        return detector, [{"image": str(PHOTO), "candidate_labels": self.LABELS}]

    def run_pipeline_test(self, detector: Any, examples: list[dict]) -> None:
        found = detector(examples[0], threshold=0.0)
        assert found
        scores = [entry["score"] for entry in found]
        assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] <= 1
        for entry in found:
            assert entry.keys() == {"score", "label", "box"} and entry["label"] in self.LABELS
            assert all(isinstance(entry["box"][side], int) for side in ("xmin", "ymin", "xmax", "ymax"))


suites.stand_in(
    "tests.pipelines.test_pipelines_zero_shot_object_detection",
    ZeroShotObjectDetectionPipelineTests=ZeroShotObjectDetectionPipelineTests,
)


class GlipPipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"zero-shot-object-detection": GlipForGrounding}

    @classmethod
    def setUpClass(cls) -> None:
        directory = Path(MODELS.name) / "glip" / "GlipForGrounding"
        processor = random_processor(128)
        random_model().save_pretrained(directory)
        for part in (processor.tokenizer, processor.image_processor):
            part.save_pretrained(directory)


for _name in dir(GlipPipelineTest):  # 45 tests of other tasks, each of which the suite would skip
    if _name.startswith("test_pipeline_") and "zero_shot_object_detection" not in _name:
        setattr(GlipPipelineTest, _name, None)
