# Copyright 2026 The glip_hf authors. MIT licence.
"""Optional dependencies, imported when they are used."""

import importlib
from types import ModuleType


def require(module: str, extra: str = "train") -> ModuleType:
    """Import `module`, which the extra `extra` of this package installs.

    Raises:
        ImportError: that names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module.partition('.')[0]}: pip install 'glip_hf[{extra}]'") from error
