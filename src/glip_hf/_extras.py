# Copyright 2026 The glip_hf authors. MIT licence.
"""Optional dependencies, imported when they are used."""

import importlib
from types import ModuleType


def require(module: str, extra: str = "train") -> ModuleType:
    """Import a module; an ImportError names the extra of this package that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        package = {"yaml": "pyyaml"}.get(package, package.replace("_", "-"))
        raise ImportError(
            f"this needs {package}, of the extra `{extra}`: pip install '.[{extra}]' in the clone of glip_hf."
        ) from error
