# Copyright 2026 The glip_hf authors. MIT licence.
"""Which things a scene holds and where they lie, and what relations hold between them.

Boxes are xyxy in whole pixels, both ends included (`boxes_glip`): x2 is the last column that shows
the thing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .config import COLORS, HELD_OUT, PATTERNS, Dice, SceneConfig
from .painting import Canvas, Cutout, Thing, cut_out
from .shapes import KINDS, NAMELESS, NOVEL_KINDS

Box = tuple[int, int, int, int]
Pair = tuple[str, str]  # colour, kind
BANDS = ("small", "medium", "large")
ATTEMPTS = 12  # places tried for a thing, and scenes tried for a relation


@dataclass(frozen=True)
class Plan:
    """A thing and, where its place matters, its centre in fractions of the picture."""

    thing: Thing
    centre: tuple[float, float] | None = None


def random_pair(split: str, dice: Dice) -> Pair:
    """A colour and a kind that may occur in the split."""
    if split == "unseen" and dice.chance(0.5):
        return dice.pick(sorted(HELD_OUT))
    kinds = KINDS
    if split.startswith("novel"):
        kinds = NOVEL_KINDS if dice.chance(0.2) else KINDS
    return dice.pick(tuple(COLORS)), dice.pick(kinds)


def allowed(pair: Pair, split: str) -> bool:
    return split == "unseen" or pair not in HELD_OUT


def make_thing(
    pair: tuple[str, str | None],
    config: SceneConfig,
    dice: Dice,
    band: str | None = None,
    pattern: str | None = None,
) -> Thing:
    """A thing of a colour and kind; no kind makes a distractor. What is not given is drawn."""
    color, kind = pair
    if band is None:
        band = dice.weighted(BANDS, config.size_weights)
    if pattern is None:
        pattern = dice.pick(PATTERNS[1:]) if dice.chance(config.pattern_chance) else "plain"
    side = dice.between(*getattr(config, band)) * config.resolution
    turn = config.rotation if kind else 180
    silhouette = kind or dice.pick(NAMELESS)
    return Thing(kind, color, pattern, band, silhouette, side, dice.between(-turn, turn))


def choose_things(split: str, config: SceneConfig, dice: Dice, count: int) -> list[Thing]:
    """Named things, many of which share a word with another."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        pair = random_pair(split, dice)
        if pairs and dice.chance(config.kin_chance):
            kin = dice.pick(pairs)
            pair = (kin[0], pair[1]) if dice.chance(0.5) else (pair[0], kin[1])
        elif pairs and dice.chance(config.twin_chance):
            pair = dice.pick(pairs)
        if allowed(pair, split):
            pairs.append(pair)
    return [make_thing(pair, config, dice) for pair in pairs]


def _boxes(canvas: Canvas, placed: Iterable[tuple[Thing, tuple[slice, slice]]]) -> None:
    """Give every thing the bounding box of the pixels that show it."""
    for index, (thing, (ys, xs)) in enumerate(placed):
        seen = canvas.owner[ys, xs] == index
        rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
        if len(rows):
            thing.box = (
                int(xs.start + columns[0]),
                int(ys.start + rows[0]),
                int(xs.start + columns[-1]),
                int(ys.start + rows[-1]),
            )


def compose(plans: list[Plan], config: SceneConfig, dice: Dice) -> tuple[np.ndarray, list[Thing]]:
    """Paint a scene.

    Args:
        plans: the named things. One without a centre is left out when no place is found for it.

    Returns:
        picture [S, S, 3] uint8, and the things that are in it, nameless ones too, their boxes set, from back to front.
    """
    canvas = Canvas(config, dice)
    nameless = [
        Plan(make_thing((dice.pick(tuple(COLORS)), None), config, dice)) for _ in range(dice.whole(*config.distractors))
    ]
    # Small things mostly come last: in front of large ones, else they would vanish behind them.
    order = sorted([*plans, *nameless], key=lambda plan: -plan.thing.side * dice.between(0.5, 1))
    placed: list[tuple[Thing, tuple[slice, slice]]] = []
    visible: list[int] = []  # pixels of each thing that may still be hidden
    for plan in order:
        cutout = cut_out(plan.thing, dice)
        corner = _find_place(canvas, plan, cutout, visible, dice)
        if corner is None:
            continue
        left, top = corner
        picture, patch = canvas.window(left, top, cutout.solid.shape)
        hidden = canvas.owner[picture][cutout.solid[patch]]
        for other, count in enumerate(np.bincount(hidden[hidden >= 0], minlength=0).tolist()):
            visible[other] -= count
        canvas.paint(plan.thing, cutout, left, top, len(placed))
        placed.append((plan.thing, picture))
        cut_off = cutout.area - int(cutout.solid[patch].sum())
        visible.append(int(cutout.area * (1 - config.min_visible)) - cut_off)
    _boxes(canvas, placed)
    return canvas.finish(), [thing for thing, _ in placed if thing.box]


def _find_place(canvas: Canvas, plan: Plan, cutout: Cutout, visible: list[int], dice: Dice) -> tuple[int, int] | None:
    """Corner of the patch, (left, top), where the thing hides no other too much; None if none."""
    config, side = canvas.config, canvas.side
    h, w = cutout.solid.shape
    may_overlap = dice.chance(config.overlap_chance)
    may_be_cut = plan.centre is None and dice.chance(config.cut_chance)
    reach = 0.25 if may_be_cut else 0.0
    for _ in range(ATTEMPTS):
        if plan.centre is None:
            x, y = (
                dice.between((0.5 - reach) * n, max(side - (0.5 - reach) * n, (0.5 - reach) * n))
                for n in (w - 4, h - 4)
            )
        else:
            x, y = (v * side + dice.between(-1, 1) for v in plan.centre)
        left, top = round(x - w / 2), round(y - h / 2)
        picture, patch = canvas.window(left, top, (h, w))
        solid = cutout.solid[patch]
        if int(solid.sum()) < cutout.area * (config.min_visible + 0.1 if may_be_cut else 0.999):
            continue
        hidden = canvas.owner[picture][solid]
        hidden = hidden[hidden >= 0]
        if len(hidden) and not may_overlap and plan.thing.kind:
            continue
        counts = np.bincount(hidden).tolist()
        if all(count <= visible[other] for other, count in enumerate(counts) if count):
            return left, top
    return None


# -- relations -------------------------------------------------------------------------------------

RELATIONS = ("left", "right", "above", "below", "near")
FAR = 0.3  # of the picture's side: what is at least so far away is not "near"


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _gap(a: Box, b: Box) -> float:
    """Pixels between two boxes along the axis that parts them most; negative for an overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def _advance(relation: str, a: Box, b: Box) -> tuple[float, float]:
    """How far a's centre lies from b's in the relation's direction, and how far to its side."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    along, across = {
        "left": (bx - ax, by - ay),
        "right": (ax - bx, by - ay),
        "above": (by - ay, bx - ax),
        "below": (ay - by, bx - ax),
    }[relation]
    return along, abs(across)


def holds(relation: str, a: Box, b: Box, config: SceneConfig) -> bool:
    """Whether everyone would say it: a lies in that direction from b, more than to the side."""
    least = config.relation_gap * config.resolution
    if relation == "near":
        return _gap(a, b) <= least
    along, across = _advance(relation, a, b)
    return along >= max(least, across)


def fails(relation: str, a: Box, b: Box, config: SceneConfig) -> bool:
    """Whether nobody would say it: a lies clearly on the other side of b, or far away."""
    if relation == "near":
        return _gap(a, b) >= FAR * config.resolution
    return _advance(relation, a, b)[0] <= -config.relation_gap * config.resolution


@dataclass
class Riddle:
    """Two like things, of which only one has the relation to a third."""

    relation: str
    target: Thing
    twin: Thing
    reference: Thing


def _riddle_centres(relation: str, sides: tuple[float, float], dice: Dice) -> list[tuple[float, float]] | None:
    """Centres of reference, target and twin in fractions of the picture; None for a bad throw.

    Target and twin are thrown alike, each on its side: their places tell nothing but the relation.
    """
    reference, twin = sides

    def anywhere(side: float) -> tuple[float, float]:
        return dice.between(side * 0.6, 1 - side * 0.6), dice.between(side * 0.6, 1 - side * 0.6)

    def thrown(test: Callable[[float, float], bool]) -> tuple[float, float] | None:
        for _ in range(3 * ATTEMPTS):
            x, y = anywhere(twin)
            if test(x - rx, y - ry):
                return x, y
        return None

    rx, ry = anywhere(reference)
    touch = (reference + twin) / 2
    if relation == "near":
        angle, distance = dice.between(0, 2 * math.pi), touch * dice.between(0.95, 1.1)
        first = rx + distance * math.cos(angle), ry + distance * math.sin(angle)
        if not all(0.6 * twin <= v <= 1 - 0.6 * twin for v in first):
            return None
        second = thrown(lambda dx, dy: max(abs(dx), abs(dy)) > touch + FAR)
    else:
        axis = 0 if relation in ("left", "right") else 1
        sign = -1 if relation in ("left", "above") else 1

        def beyond(dx: float, dy: float, sign: int) -> bool:
            along, across = (dx, dy) if axis == 0 else (dy, dx)
            return sign * along > max(touch * 0.9, 1.1 * abs(across))

        first = thrown(lambda dx, dy: beyond(dx, dy, sign))
        second = thrown(lambda dx, dy: beyond(dx, dy, -sign))
    return None if first is None or second is None else [(rx, ry), first, second]


def compose_riddle(split: str, config: SceneConfig, dice: Dice) -> tuple[np.ndarray, list[Thing], Riddle]:
    """A scene in which only a relation tells two like things apart.

    Returns:
        picture, things, and which of them the relation is about.
    """
    while True:
        pair, reference_pair = random_pair(split, dice), random_pair(split, dice)
        relation = dice.pick(RELATIONS)
        band = dice.weighted(BANDS, (0.35, 0.55, 0.1))
        if pair == reference_pair or not (allowed(pair, split) and allowed(reference_pair, split)):
            continue
        target = make_thing(pair, config, dice, band=band)
        twin = make_thing(pair, config, dice, band=band, pattern=target.pattern)
        twin.side = target.side
        reference = make_thing(reference_pair, config, dice, band=dice.weighted(BANDS, (0.2, 0.6, 0.2)))
        sides = reference.side / config.resolution, target.side / config.resolution
        centres = _riddle_centres(relation, sides, dice)
        if centres is None:
            continue
        chosen = [Plan(thing, at) for thing, at in zip((reference, target, twin), centres, strict=True)]
        extra = [
            Plan(thing)
            for thing in choose_things(split, config, dice, dice.whole(0, 3))
            if (thing.color, thing.kind) not in (pair, reference_pair)
        ]
        image, things = compose([*chosen, *extra], config, dice)
        if not all(any(thing is other for other in things) for thing in (target, twin, reference)):
            continue
        if holds(relation, target.box, reference.box, config) and fails(relation, twin.box, reference.box, config):
            return image, things, Riddle(relation, target, twin, reference)


__all__ = [
    "BANDS",
    "RELATIONS",
    "Box",
    "Plan",
    "Riddle",
    "allowed",
    "choose_things",
    "compose",
    "compose_riddle",
    "fails",
    "holds",
    "random_pair",
]
