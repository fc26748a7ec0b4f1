# Copyright 2026 The glip_hf authors. MIT licence.
"""A saved model, and Python processes that have glip_hf, or have not."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import python
from random_glip import random_model, random_processor

import glip_hf

SOURCE = Path(glip_hf.__file__).parents[1]

# Site-packages without .pth files (an editable install is one), and no glip_hf that lies in them.
WITHOUT_GLIP_HF = """
import sys
sys.path += {site_packages!r}

class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "glip_hf":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse)
try:
    import glip_hf
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("glip_hf can be imported")
"""


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """Directory of a small model with its processor, written by `save_pretrained`."""
    directory = tmp_path_factory.mktemp("hub") / "glip-demo"
    processor = random_processor()
    processor.image_processor.size = {"shortest_edge": 128, "longest_edge": 213}
    random_model().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def run_python(tmp_path_factory) -> Callable[..., str]:
    """Run code in another process with empty caches, in an empty directory; returns what it printed.

    `installed=False`: where glip_hf is not installed. `env`: further environment variables.
    """

    def run(code: str, *arguments: str | Path, installed: bool = True, env: dict | None = None) -> str:
        home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("directory")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
        fresh = {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
        flags = []
        if installed:
            fresh["PYTHONPATH"] = str(SOURCE)
        else:
            flags = ["-I", "-S"]
            folders = [path for path in sys.path if path.endswith("site-packages")]
            code = WITHOUT_GLIP_HF.format(site_packages=folders) + code
        environment = {**inherited, **fresh, **(env or {})}
        return python(code, *arguments, flags=flags, environment=environment, cwd=directory)

    return run
