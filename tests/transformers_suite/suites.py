# Copyright 2026 The glip_hf authors. MIT licence.
"""Makes Transformers' test package importable as `transformers_tests`, with stand-ins for what it lacks.

The source distribution carries the common suites, but not all that they import. Each stand-in below provides just what
a suite reads at import, or what its tests need from us.
"""

import os
import sys
import types
from typing import Any

import pytest
import transformers
from locations import FIXTURES
from transformers.models.auto import modeling_auto

FOLDER = os.environ.get("TRANSFORMERS_SUITES")
if FOLDER is None:  # ordinary pytest
    pytest.skip(
        "Transformers' common suites run in their own step: make suites (or python tests/transformers_suite/run.py)",
        allow_module_level=True,
    )


def stand_in(name: str, **contents: Any) -> None:
    """Register a module that the distribution lacks."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


class ExportTesterMixin:
    """Without tests: exporting GLIP is tested in tests/test_export.py."""


class GenerationTesterMixin:
    """Without tests: GLIP does not generate. The model suite checks that no tester of such a model inherits this."""


def local_image(url: str) -> str:
    """Our photo in place of any image of the Hub: no test here compares with recorded values of theirs."""
    return str(FIXTURES / "images" / "photo.jpg")


class TransformersWithGlip(types.ModuleType):
    """`transformers` as it would be with GLIP in it: the suites look classes up by name."""

    def __getattr__(self, name: str) -> Any:
        import glip_hf

        return getattr(glip_hf if hasattr(glip_hf, name) else transformers, name)


stand_in("transformers_tests.exporters.test_export", ExportTesterMixin=ExportTesterMixin)
stand_in("transformers_tests.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
# Values for fields of any configuration; ConfigTester tries them on configurations without sub-configurations only.
stand_in("transformers_tests.utils.test_configuration_utils", config_common_kwargs={})
stand_in("fetch_hub_objects_for_ci", url_to_local_path=local_image)
transformers.utils.direct_transformers_import = lambda path, file="__init__.py": TransformersWithGlip("transformers")
modeling_auto.MODEL_MAPPING_NAMES["glip"] = "GlipModel"  # how the model suite tells a base model from one with a loss
sys.path.insert(0, FOLDER)
