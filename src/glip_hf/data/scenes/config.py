# Copyright 2026 The glip_hf authors. MIT licence.
"""What scenes are made of: colours and patterns, splits, held-out pairs, difficulty, and random numbers."""

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .shapes import KINDS

T = TypeVar("T")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 34, 38),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (120, 50, 165),
    "pink": (248, 140, 190),
    "brown": (110, 64, 28),
    "white": (240, 240, 236),
    "black": (28, 28, 32),
}
"""RGB of each colour before jitter and lighting."""

PATTERNS = ("plain", "striped", "dotted", "checkered")

HELD_OUT = frozenset((tuple(COLORS)[(3 * k + 1) % len(COLORS)], kind) for k, kind in enumerate(KINDS))
"""(colour, kind) pairs, one per kind, that training neither shows nor mentions."""

SPLITS = {"train": 0, "detection": 1, "sentences": 2, "unseen": 3, "relations": 4, "novel_train": 5, "novel": 6}
"""First entry of every seed sequence, so that splits share no scene whatever the seeds.

train: all three families, mixed by `SceneConfig.families`; detection: lists of class names; sentences: attributes and
relations; unseen: lists about `HELD_OUT` pairs; relations: only a relation distinguishes two like things;
novel(_train): lists with `NOVEL_KINDS`.
"""


@dataclass(frozen=True)
class SceneConfig:
    """Difficulty. Lengths are relative to the image's side, ranges are inclusive.

    Attributes:
        resolution: side of the square image in pixels.
        things: number of named things to place; one that finds no position is left out.
        distractors: number of things without a name.
        small, medium, large: longer side of a thing before rotation. Captions call the first and last band "small" and
            "large"; the gaps between the bands keep that true.
        size_weights: how often each band is drawn.
        pattern_chance: probability of a pattern other than plain.
        kin_chance: probability that a thing shares the kind or colour of an earlier one; `twin_chance`: both.
        overlap_chance: probability that a thing may cover part of another.
        min_visible: share of its pixels that stays visible.
        cut_chance: probability that the image's edge may cut a thing.
        rotation: largest rotation from upright, in degrees.
        color_jitter: largest change of a colour channel, of 255.
        light: strength of uneven lighting, shadows and colour casts; 0 is flat.
        noise: standard deviation of the sensor noise, of 255.
        blur_chance: probability of an image slightly out of focus.
        list_styles: weights of lists of kinds ("star"), of colours ("red thing") and of both ("red star"). Without the
            first two, a model trained from scratch finds kinds long before it attends to colours
            (docs/pre-training.md).
        listed: probability that the name of something present is listed.
        negatives: number of absent names; `near_chance`: probability that one differs from something present in only
            one of its words.
        families: (n, weights of lists, sentences and relation sentences), the training mixture from scene n of a stream
            on. Relations come last: a model learns them in a few hundred steps, but only once it knows colours and
            kinds, and if most of its captions are about relations (docs/pre-training.md).
        relation_gap: least distance along the axis of a stated relation; also the largest between "near" things.
    """

    resolution: int = 160
    things: tuple[int, int] = (4, 9)
    distractors: tuple[int, int] = (0, 2)
    small: tuple[float, float] = (0.14, 0.17)
    medium: tuple[float, float] = (0.185, 0.24)
    large: tuple[float, float] = (0.275, 0.4)
    size_weights: tuple[float, float, float] = (0.25, 0.45, 0.3)
    pattern_chance: float = 0.35
    kin_chance: float = 0.45
    twin_chance: float = 0.12
    overlap_chance: float = 0.25
    min_visible: float = 0.8
    cut_chance: float = 0.1
    rotation: float = 20.0
    color_jitter: float = 10.0
    light: float = 0.6
    noise: float = 3.0
    blur_chance: float = 0.1
    list_styles: tuple[float, float, float] = (0.2, 0.25, 0.55)
    listed: float = 0.9
    negatives: tuple[int, int] = (2, 8)
    near_chance: float = 0.7
    families: tuple[tuple[int, tuple[float, float, float]], ...] = ((0, (0.6, 0.25, 0.15)), (16_000, (0.15, 0.15, 0.7)))
    relation_gap: float = 0.08


class Rng:
    """Random choices from a `numpy` bit stream.

    Only uniform values are drawn from it, so that scenes do not depend on how a version of numpy or Python turns them
    into choices.
    """

    BLOCK = 256

    def __init__(self, *seeds: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))
        self._values: list[float] = []

    def __call__(self) -> float:
        """Uniform in [0, 1)."""
        if not self._values:
            self._values = self._rng.random(self.BLOCK).tolist()
        return self._values.pop()

    def array(self, *shape: int) -> np.ndarray:
        """Uniform in [0, 1), float32."""
        return self._rng.random(shape, dtype=np.float32)

    def chance(self, probability: float) -> bool:
        return self() < probability

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self()

    def integer(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return low + int(self() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self() * len(items))]

    def weighted_choice(self, items: Sequence[T], weights: Sequence[float]) -> T:
        at = self() * sum(weights)
        for item, weight in zip(items, weights):
            at -= weight
            if at < 0:
                return item
        return items[-1]

    def shuffle(self, items: MutableSequence[T]) -> MutableSequence[T]:
        """In place, and returned."""
        for k in range(len(items) - 1, 0, -1):
            other = int(self() * (k + 1))
            items[k], items[other] = items[other], items[k]
        return items
