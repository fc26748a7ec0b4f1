# Copyright 2026 The glip_hf authors. MIT licence.
"""Packages of the `train` extra, imported where they are needed."""

from types import ModuleType

from .._extras import require as require_extra


def require(module: str) -> ModuleType:
    """The module, or an `ImportError` that names the extra which brings it."""
    return require_extra(module, "train")
