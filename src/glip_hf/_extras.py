# Copyright 2026 The glip_hf authors. MIT licence.
"""Optional dependencies, imported when they are used."""

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any


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


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file; a ValueError for what is not YAML, and for a key that a mapping has twice, of which
    YAML would take the last."""
    yaml = require("yaml")

    class UniqueKeys(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: str | None) -> Any:
            node = super().compose_mapping_node(anchor)
            for key, count in Counter(str(key.value) for key, _ in node.value).items():
                if count > 1:
                    raise ValueError(f"it has {key!r:.60} twice in one section: leave one.")
            return node

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8-sig"), UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
