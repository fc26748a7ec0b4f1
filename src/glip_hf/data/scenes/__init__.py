# Copyright 2026 The glip_hf authors. MIT licence.
"""Procedural scenes: images with true boxes, lists of class names and sentences, all from a seed.

    sample = make_scene("train", seed=0, index=7)
    sample.image, sample.boxes, sample.labels, sample.caption, sample.prompt.spans
    contact_sheet([make_scene("relations", 0, i) for i in range(8)]).save("sheet.png")

`shapes`: silhouettes; `config`: attributes, splits, held-out pairs, difficulty; `painting`: pixels; `layout`: positions
and relations; `wording`: captions; `sample`: the whole.
"""

from .config import COLORS, HELD_OUT, PATTERNS, SPLITS, SceneConfig
from .sample import SceneDataset, SceneSample, contact_sheet, make_scene
from .shapes import KINDS, NOVEL_KINDS
from .wording import vocabulary

__all__ = [
    "COLORS",
    "HELD_OUT",
    "KINDS",
    "NOVEL_KINDS",
    "PATTERNS",
    "SPLITS",
    "SceneConfig",
    "SceneDataset",
    "SceneSample",
    "contact_sheet",
    "make_scene",
    "vocabulary",
]
