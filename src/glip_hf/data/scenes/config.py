# Copyright 2026 The glip_hf authors. MIT licence.
"""What scenes are made of: words, splits, pairs kept for evaluation, difficulty, and chance."""

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
"""RGB of each colour word before jitter and lighting."""

PATTERNS = ("plain", "striped", "dotted", "checkered")

HELD_OUT = frozenset((tuple(COLORS)[(3 * k + 1) % len(COLORS)], kind) for k, kind in enumerate(KINDS))
"""(colour, kind) pairs, one a kind, that training neither shows nor mentions."""

SPLITS = {
    "train": 0,
    "detection": 1,
    "sentences": 2,
    "unseen": 3,
    "relations": 4,
    "novel_train": 5,
    "novel": 6,
}
"""First word of every seed, so no split shares a scene with another whatever the seeds.

train: all three families, mixed by `SceneConfig.families`; detection: lists of names; sentences: attributes
and relations; unseen: lists about `HELD_OUT` pairs; relations: only the relation tells two like things apart;
novel(_train): lists with `NOVEL_KINDS`.
"""


@dataclass(frozen=True)
class SceneConfig:
    """Difficulty. Lengths are fractions of the picture's side, ranges are inclusive.

    Attributes:
        resolution: side of the square picture in pixels.
        things: how many named things are tried; one that finds no place is left out.
        distractors: how many nameless ones.
        small, medium, large: sides of a thing (the longer one, upright). "small" and "large" may be
            said of the first and last band; the gaps between the bands keep the words true.
        size_weights: how often each band is drawn.
        pattern_chance: of a pattern other than plain.
        kin_chance: that a thing shares the kind or colour of an earlier one; `twin_chance`: both.
        overlap_chance: that a thing may hide part of another.
        min_visible: share of its pixels that a thing keeps.
        cut_chance: that the picture's edge may cut a thing.
        rotation: largest turn from upright, in degrees.
        color_jitter: largest change of a colour channel, of 255.
        light: strength of uneven light, shadows and colour casts; 0 is flat.
        noise: standard deviation of the sensor noise, of 255.
        blur_chance: of a picture slightly out of focus.
        list_styles: weights of lists of kinds ("star"), of colours ("red thing") and of both ("red star"). Without the
            first two, a model from nothing finds kinds alone long before it heeds colours (docs/training.md).
        listed: chance that a kind of thing present gets into the list.
        negatives: how many absent names; `near_chance`: that one differs from something present in
            one word only.
        families: (n, weights of lists, sentences and relation sentences), what training mixes from scene n of a stream
            on. Relations come last: a model learns them in a few hundred steps, but only if it knows colours and kinds
            and most of what it reads are relations (docs/training.md).
        relation_gap: least distance along the axis that a stated relation has; also the most by
            which "near" things are apart.
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
    families: tuple[tuple[int, tuple[float, float, float]], ...] = (
        (0, (0.6, 0.25, 0.15)),
        (16_000, (0.15, 0.15, 0.7)),
    )
    relation_gap: float = 0.08


class Dice:
    """Chance from a `numpy` bit stream.

    Only uniform numbers are drawn from it, so that scenes do not depend on how a version of numpy
    or Python turns them into choices.
    """

    BLOCK = 256

    def __init__(self, *words: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
        self._numbers: list[float] = []

    def __call__(self) -> float:
        """Uniform in [0, 1)."""
        if not self._numbers:
            self._numbers = self._rng.random(self.BLOCK).tolist()
        return self._numbers.pop()

    def array(self, *shape: int) -> np.ndarray:
        """Uniform in [0, 1), float32."""
        return self._rng.random(shape, dtype=np.float32)

    def chance(self, probability: float) -> bool:
        return self() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self()

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
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


__all__ = ["COLORS", "HELD_OUT", "PATTERNS", "SPLITS", "Dice", "SceneConfig"]
