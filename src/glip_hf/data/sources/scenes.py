# Copyright 2026 The glip_hf authors. MIT licence.
"""Generated scenes as a source of captioned images: no file, no download, made when asked for."""

from collections.abc import Iterable

import numpy as np

from ...values_glip import quote
from ..columns import Tally
from ..records import ImageRef, Record
from ..scenes import SPLITS, SceneConfig, make_scene
from .base import Source

STREAM_LENGTH = 2**32
"""Scenes of a stream: no run sees one twice."""


class SceneSource(Source):
    """Scenes 0, 1, ... of a stream (see `scenes.make_scene`); a list of class names is a caption like any other."""

    def __init__(
        self,
        split: str = "train",
        length: int = STREAM_LENGTH,
        seed: int = 0,
        config: SceneConfig | None = None,
        name: str = "scenes",
    ) -> None:
        self.name, self.split, self.seed, self.config = name, split, seed, config or SceneConfig()
        self.captions, self.names, self.category_ids, self.tally = "given", {}, {}, Tally()
        self.info = {"file": name}
        self._length, self._rows = length, None

    def __getitem__(self, index: int) -> Record:
        record = make_scene(self.split, self.seed, self.row(index), self.config).record()
        record.source = self.name
        return record

    def sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self.config.resolution, dtype=np.int32)

    def image_ids(self) -> np.ndarray:
        return np.arange(len(self)) if self._rows is None else self._rows

    def image_files(self) -> Iterable[ImageRef]:
        return []

    def digest(self) -> str:
        return repr((self.split, self.seed, len(self), self.config))

    def few_shot(self, shots: int, shuffle_seed: int | None = None) -> Source:
        raise ValueError(f"{self.name}: scenes have no classes to take {shots} images of: set length= instead.")


def read_scenes(split: str = "train", length: int = 64_000, seed: int = 0, name: str = "scenes") -> SceneSource:
    """`length` generated scenes of a stream; arguments as for `scenes.make_scene`.

    Raises:
        ValueError: for an unknown split, and a length or a seed that is not a whole number.
    """
    if split not in SPLITS:
        raise ValueError(f"{name}: split={quote(split)} is unknown: choose one of {', '.join(SPLITS)}.")
    for what, value, least in (("length", length, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or not least <= value < STREAM_LENGTH:
            raise ValueError(f"{name}: {what}={quote(value)} must be a whole number of at least {least}, below 2^32.")
    return SceneSource(split, length, seed, name=name)
