# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP on the Hub, in a directory that does not need glip_hf to load. See docs/hub.md."""

from .hub_glip import CARD_NAME, TAGS, build_model_card, copy_code, save_with_code

__all__ = ["CARD_NAME", "TAGS", "build_model_card", "copy_code", "save_with_code"]
