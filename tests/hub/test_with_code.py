# Copyright 2026 The glip_hf authors. MIT licence.
"""A directory with code loads where glip_hf is not installed, and computes the same."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from random_glip import PHOTO
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import glip_hf
from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.hub import save_with_code
from glip_hf.hub_glip import AUTO_CONFIG, AUTO_IMAGE_PROCESSOR, AUTO_PROCESSOR

from .loading import LOAD, check

PACKAGE = Path(glip_hf.__file__).parent
FLAT_FILES = sorted([PACKAGE / "_compat.py", *PACKAGE.glob("*_glip.py")])
AGAIN = """
model.save_pretrained("again")
processor.save_pretrained("again")
second = AutoModelForZeroShotObjectDetection.from_pretrained("again", **trust).eval()
inputs = AutoProcessor.from_pretrained("again", **trust)(
    images=image, text=["cat", "remote control"], return_tensors="pt"
)
with torch.inference_mode():
    assert torch.equal(second(**inputs).logits, outputs.logits)
"""


def test_loads_and_computes_the_same_without_glip_hf(saved, run_python, tmp_path) -> None:
    model, processor = GlipForGrounding.from_pretrained(saved), GlipProcessor.from_pretrained(saved)
    directory = save_with_code(tmp_path / "glip-code", model, processor)
    assert [path.name for path in sorted(directory.glob("*.py"))] == [path.name for path in FLAT_FILES]
    results = tmp_path / "results.pt"
    run_python(LOAD + AGAIN, directory, PHOTO, results, installed=False)
    check(torch.load(results), saved)


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.stem)
def test_flat_files_import_each_other_and_the_required_packages_only(path) -> None:
    """Transformers refuses custom code that needs more, and finds only `from .module import`."""
    tree = ast.parse(path.read_text())
    relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert all(n.level == 1 and re.fullmatch(r"\w+_glip|_compat", n.module or "") for n in relative)
    found = {Path(file).stem for file in get_relative_import_files(path)}
    assert {n.module for n in relative} <= found
    packages = {"torch", "numpy", "PIL", "transformers", "huggingface_hub", "safetensors"}
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= packages


def test_auto_maps_name_existing_classes_and_reach_all_flat_files() -> None:
    maps = AUTO_CONFIG | AUTO_IMAGE_PROCESSOR | AUTO_PROCESSOR
    names = [name for value in maps.values() for name in ([value] if isinstance(value, str) else value)]
    reached = set()
    for name in names:
        module, cls = name.split(".")
        path = Path(glip_hf.__file__).parent / f"{module}.py"
        assert re.search(rf"^class {cls}\b", path.read_text(), re.MULTILINE)
        reached |= {path.name, *(Path(file).name for file in get_relative_import_files(path))}
    assert reached == {path.name for path in FLAT_FILES}
