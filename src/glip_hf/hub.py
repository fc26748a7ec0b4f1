# Copyright 2026 The glip_hf authors. MIT licence.
"""A whole model for the Hub, in a directory that needs no glip_hf to load. See docs/hub.md."""

import os
from pathlib import Path

from .hub_glip import CARD_NAME, TAGS, build_model_card, copy_code
from .modeling_glip import GlipForGrounding
from .processing_glip import GlipProcessor


def save_with_code(directory: str | os.PathLike[str], model: GlipForGrounding, processor: GlipProcessor) -> Path:
    """Write weights, processor, model card and code.

    All Auto classes and the stock pipeline load the directory with `trust_remote_code=True` where
    glip_hf is not installed; where it is, they use the installed code.

    Returns:
        the directory.
    """
    model.save_pretrained(directory, with_code=True)
    processor.save_pretrained(directory, with_code=True)
    return Path(directory)


__all__ = ["CARD_NAME", "TAGS", "build_model_card", "copy_code", "save_with_code"]
