# Copyright 2026 The glip_hf authors. MIT licence.
"""Which things a scene holds, where they lie, and which relations hold between them.

Boxes are xyxy in integer pixels, both corners inside (`boxes_glip`): x2 is the last column that shows the thing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .config import COLORS, HELD_OUT, PATTERNS, Rng, SceneConfig
from .painting import Canvas, Cutout, Thing, cut_out
from .shapes import KINDS, NAMELESS, NOVEL_KINDS

Box = tuple[int, int, int, int]
Pair = tuple[str, str]  # colour, kind
BANDS = ("small", "medium", "large")
ATTEMPTS = 12  # positions tried for a thing


@dataclass(frozen=True)
class Plan:
    """A thing and, where its position matters, its centre relative to the size of the image."""

    thing: Thing
    centre: tuple[float, float] | None = None


def random_pair(split: str, rng: Rng) -> Pair:
    """A colour and a kind that may occur in the split."""
    if split == "unseen" and rng.chance(0.5):
        return rng.choice(sorted(HELD_OUT))
    kinds = NOVEL_KINDS if split.startswith("novel") and rng.chance(0.2) else KINDS
    return rng.choice(tuple(COLORS)), rng.choice(kinds)


def allowed(pair: Pair, split: str) -> bool:
    return split == "unseen" or pair not in HELD_OUT


def make_thing(
    pair: tuple[str, str | None], config: SceneConfig, rng: Rng, band: str | None = None, pattern: str | None = None
) -> Thing:
    """A thing of a colour and kind, without a kind a distractor; attributes that are not given are drawn."""
    color, kind = pair
    if band is None:
        band = rng.weighted_choice(BANDS, config.size_weights)
    if pattern is None:
        pattern = rng.choice(PATTERNS[1:]) if rng.chance(config.pattern_chance) else "plain"
    side = rng.uniform(*getattr(config, band)) * config.resolution
    silhouette, turn = (kind, config.rotation) if kind else (rng.choice(NAMELESS), 180)
    return Thing(kind, color, pattern, band, silhouette, side, rng.uniform(-turn, turn))


def choose_things(split: str, config: SceneConfig, rng: Rng, count: int) -> list[Thing]:
    """Named things, many of which share an attribute with another."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        pair = random_pair(split, rng)
        if pairs and rng.chance(config.kin_chance):
            kin = rng.choice(pairs)
            pair = (kin[0], pair[1]) if rng.chance(0.5) else (pair[0], kin[1])
        elif pairs and rng.chance(config.twin_chance):
            pair = rng.choice(pairs)
        if allowed(pair, split):
            pairs.append(pair)
    return [make_thing(pair, config, rng) for pair in pairs]


def compose(plans: list[Plan], config: SceneConfig, rng: Rng) -> tuple[np.ndarray, list[Thing]]:
    """Paint a scene.

    Args:
        plans: the named things. One without a centre is left out where no position is found for it.

    Returns:
        image [S, S, 3] uint8, and the things that it shows, distractors too, with their boxes, from back to front.
    """
    canvas = Canvas(config, rng)
    distractors = [
        Plan(make_thing((rng.choice(tuple(COLORS)), None), config, rng))
        for _ in range(rng.integer(*config.distractors))
    ]
    # Small things mostly come last: behind large ones they would vanish.
    order = sorted([*plans, *distractors], key=lambda plan: -plan.thing.side * rng.uniform(0.5, 1))
    placed: list[Thing] = []
    visible: list[int] = []  # pixels of each thing that may still be covered
    for plan in order:
        cutout = cut_out(plan.thing, rng)
        corner = _find_position(canvas, plan, cutout, visible, rng)
        if corner is None:
            continue
        area, patch = canvas.window(*corner, cutout.solid.shape)
        hidden = canvas.owner[area][cutout.solid[patch]]
        for other, count in enumerate(np.bincount(hidden[hidden >= 0]).tolist()):
            visible[other] -= count
        canvas.paint(plan.thing, cutout, *corner, len(placed))
        placed.append(plan.thing)
        cut_off = cutout.area - int(cutout.solid[patch].sum())
        visible.append(int(cutout.area * (1 - config.min_visible)) - cut_off)
    for index, thing in enumerate(placed):
        rows, columns = (canvas.owner == index).nonzero()
        if len(rows):
            thing.box = tuple(map(int, (columns.min(), rows.min(), columns.max(), rows.max())))
    return canvas.finish(), [thing for thing in placed if thing.box]


def _find_position(canvas: Canvas, plan: Plan, cutout: Cutout, visible: list[int], rng: Rng) -> tuple[int, int] | None:
    """Corner of the patch, (left, top), where the thing covers no other too much; None if there is none."""
    config, side = canvas.config, canvas.side
    h, w = cutout.solid.shape
    may_overlap = rng.chance(config.overlap_chance)
    may_be_cut = plan.centre is None and rng.chance(config.cut_chance)
    reach = 0.25 if may_be_cut else 0.0
    for _ in range(ATTEMPTS):
        if plan.centre is None:
            x, y = (
                rng.uniform((0.5 - reach) * n, max(side - (0.5 - reach) * n, (0.5 - reach) * n)) for n in (w - 4, h - 4)
            )
        else:
            x, y = (v * side + rng.uniform(-1, 1) for v in plan.centre)
        left, top = round(x - w / 2), round(y - h / 2)
        area, patch = canvas.window(left, top, (h, w))
        solid = cutout.solid[patch]
        if int(solid.sum()) < cutout.area * (config.min_visible + 0.1 if may_be_cut else 0.999):
            continue
        hidden = canvas.owner[area][solid]
        hidden = hidden[hidden >= 0]
        if len(hidden) and not may_overlap and plan.thing.kind:
            continue
        counts = np.bincount(hidden).tolist()
        if all(count <= visible[other] for other, count in enumerate(counts) if count):
            return left, top
    return None


# -- relations -------------------------------------------------------------------------------------

RELATIONS = ("left", "right", "above", "below", "near")
FAR = 0.3  # of the image's side: what is at least so far away is not "near"


def _gap(a: Box, b: Box) -> float:
    """Pixels between two boxes along the axis that separates them most; negative for an overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def _offset(relation: str, a: Box, b: Box) -> tuple[float, float]:
    """How far a's centre lies from b's in the direction of the relation, and how far to its side."""
    dx, dy = ((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1))
    along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
    return (-along if relation in ("left", "above") else along), abs(across)


def holds(relation: str, a: Box, b: Box, config: SceneConfig) -> bool:
    """Whether the relation is evident: a lies in that direction from b, further than to the side."""
    least = config.relation_gap * config.resolution
    if relation == "near":
        return _gap(a, b) <= least
    along, across = _offset(relation, a, b)
    return along >= max(least, across)


def fails(relation: str, a: Box, b: Box, config: SceneConfig) -> bool:
    """Whether the relation is evidently false: a lies clearly on the other side of b, or far away."""
    if relation == "near":
        return _gap(a, b) >= FAR * config.resolution
    return _offset(relation, a, b)[0] <= -config.relation_gap * config.resolution


@dataclass
class Comparison:
    """Two like things, of which only `target` has the relation to `reference`."""

    relation: str
    target: Thing
    twin: Thing
    reference: Thing


def _relation_centres(relation: str, sides: tuple[float, float], rng: Rng) -> list[tuple[float, float]] | None:
    """Centres of reference, target and twin relative to the size of the image; None for a failed draw.

    Target and twin are drawn alike, each on its side: their positions tell nothing but the relation.
    """
    reference, twin = sides

    def anywhere(side: float) -> tuple[float, float]:
        return rng.uniform(side * 0.6, 1 - side * 0.6), rng.uniform(side * 0.6, 1 - side * 0.6)

    def drawn(accepts: Callable[[float, float], bool]) -> tuple[float, float] | None:
        tries = (anywhere(twin) for _ in range(3 * ATTEMPTS))
        return next(((x, y) for x, y in tries if accepts(x - rx, y - ry)), None)

    rx, ry = anywhere(reference)
    touch = (reference + twin) / 2
    if relation == "near":
        angle, distance = rng.uniform(0, 2 * math.pi), touch * rng.uniform(0.95, 1.1)
        first = rx + distance * math.cos(angle), ry + distance * math.sin(angle)
        if not all(0.6 * twin <= v <= 1 - 0.6 * twin for v in first):
            return None
        second = drawn(lambda dx, dy: max(abs(dx), abs(dy)) > touch + FAR)
    else:
        sign = -1 if relation in ("left", "above") else 1

        def beyond(dx: float, dy: float, sign: int) -> bool:
            along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
            return sign * along > max(touch * 0.9, 1.1 * abs(across))

        first = drawn(lambda dx, dy: beyond(dx, dy, sign))
        second = drawn(lambda dx, dy: beyond(dx, dy, -sign))
    return None if first is None or second is None else [(rx, ry), first, second]


def compose_relation(split: str, config: SceneConfig, rng: Rng) -> tuple[np.ndarray, list[Thing], Comparison]:
    """A scene in which only a relation distinguishes two like things: image, things, and the relation."""
    while True:
        pair, reference_pair = random_pair(split, rng), random_pair(split, rng)
        relation = rng.choice(RELATIONS)
        band = rng.weighted_choice(BANDS, (0.35, 0.55, 0.1))
        if pair == reference_pair or not (allowed(pair, split) and allowed(reference_pair, split)):
            continue
        target = make_thing(pair, config, rng, band=band)
        twin = make_thing(pair, config, rng, band=band, pattern=target.pattern)
        twin.side = target.side
        reference = make_thing(reference_pair, config, rng, band=rng.weighted_choice(BANDS, (0.2, 0.6, 0.2)))
        sides = reference.side / config.resolution, target.side / config.resolution
        centres = _relation_centres(relation, sides, rng)
        if centres is None:
            continue
        chosen = [Plan(thing, at) for thing, at in zip((reference, target, twin), centres, strict=True)]
        extra = [
            Plan(thing)
            for thing in choose_things(split, config, rng, rng.integer(0, 3))
            if (thing.color, thing.kind) not in (pair, reference_pair)
        ]
        image, things = compose([*chosen, *extra], config, rng)
        if not all(any(thing is other for other in things) for thing in (target, twin, reference)):
            continue
        if holds(relation, target.box, reference.box, config) and fails(relation, twin.box, reference.box, config):
            return image, things, Comparison(relation, target, twin, reference)
