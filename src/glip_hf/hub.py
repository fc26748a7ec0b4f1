# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP on the Hub, in a directory that does not need glip_hf to load. See docs/hub.md."""

import os
from pathlib import Path
from typing import Any

from .hub_glip import CARD_NAME, TAGS, build_model_card, copy_code

__all__ = ["CARD_NAME", "TAGS", "build_model_card", "copy_code", "save_with_code"]


def save_with_code(directory: str | os.PathLike[str], model: Any, processor: Any) -> Path:
    """Write weights, processor, model card and code of a `GlipForGrounding` and its `GlipProcessor`.

    All Auto classes and the stock pipeline load the directory with `trust_remote_code=True` where glip_hf is not
    installed; where it is, they use the installed code.
    """
    model.save_pretrained(directory, with_code=True)
    processor.save_pretrained(directory, with_code=True)
    return Path(directory)
