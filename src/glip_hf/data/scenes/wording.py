# Copyright 2026 The glip_hf authors. MIT licence.
"""Captions of a scene: lists of class names, and sentences whose phrases are true and unambiguous."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...prompts_glip import Prompt, Span, build_prompt, make_names
from .config import COLORS, HELD_OUT, Rng, SceneConfig
from .layout import RELATIONS, Comparison, allowed, holds
from .painting import Thing
from .shapes import KINDS, NOVEL_KINDS

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("near", "next to", "beside"),
}
OPENINGS = ("", "", "", "look at ", "find ", "a picture of ", "we see ", "this picture shows ")
JOINTS = (" and ", ", ", " and also ", ", then ")
NUMBERS = {2: "two", 3: "three", 4: "four"}
ATTRIBUTE_CHANCES = {"band": 0.3, "pattern": 0.35, "color": 0.7}  # in the order they are spoken; the kind follows
PLURALS = {"fish": "fish", "cross": "crosses", "butterfly": "butterflies"}


@dataclass
class Wording:
    """A caption and the things that its phrases name."""

    prompt: Prompt  # caption and spans, one row per phrase or class name
    things: list[list[Thing]]  # of each row; empty for a class name that is absent
    by_relation: int | None = None  # the row that only a relation decides


def plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


# -- lists of class names --------------------------------------------------------------------------


def list_names(things: list[Thing], split: str, config: SceneConfig, rng: Rng) -> Wording:
    """A shuffled list of class names present and absent: kinds ("star"), colours ("red thing") or both ("red star").

    A name's boxes are those of all `things` that it fits, also of distractors, which have colours.
    """
    kinds = (*KINDS, *NOVEL_KINDS) if split.startswith("novel") else KINDS
    style = "pairs" if split == "unseen" else rng.weighted_choice(("kinds", "colors", "pairs"), config.list_styles)
    # dict.fromkeys and not set(): its order does not depend on the hash seed
    present = list(dict.fromkeys((t.color, t.kind) for t in things if t.kind))
    if style == "kinds":
        here = list(dict.fromkeys(kind for _, kind in present))
        absent = rng.shuffle([kind for kind in kinds if kind not in here])
    elif style == "colors":
        here = list(dict.fromkeys(f"{t.color} thing" for t in things))
        absent = rng.shuffle([f"{color} thing" for color in COLORS if f"{color} thing" not in here])
    else:
        here, absent = [" ".join(pair) for pair in present], []
    wanted = [name for name in here if rng.chance(config.listed)]
    if not wanted and here and rng.chance(0.8):
        wanted = [rng.choice(here)]
    count = rng.integer(*config.negatives)
    while style == "pairs" and len(absent) < count:
        pair = rng.choice(tuple(COLORS)), rng.choice(kinds)
        if split == "unseen" and rng.chance(0.3):
            pair = rng.choice(sorted(HELD_OUT))
        elif rng.chance(config.near_chance) and present:  # a present pair with one of its two words changed
            color, kind = rng.choice(present)
            pair = (rng.choice(tuple(COLORS)), kind) if rng.chance(0.5) else (color, rng.choice(kinds))
        name = " ".join(pair)
        if allowed(pair, split) and pair not in present and name not in absent:
            absent.append(name)
    names = rng.shuffle([*wanted, *absent[:count]])
    rows = [[t for t in things if name in (t.kind, f"{t.color} thing", f"{t.color} {t.kind}")] for name in names]
    return Wording(build_prompt(make_names(names)), rows)


# -- sentences -------------------------------------------------------------------------------------


class _Writer:
    """A caption under construction: spans are noted as phrases are written."""

    def __init__(self, opening: str) -> None:
        self.caption = opening
        self.spans: list[list[Span]] = []
        self.things: list[list[Thing]] = []

    def name(self, phrase: str, things: list[Thing], before: str = "") -> None:
        """Write `before`, which names nothing, and a phrase for these things."""
        self.caption += before
        self.spans.append([(len(self.caption), len(self.caption) + len(phrase))])
        self.caption += phrase
        self.things.append(things)

    def close(self, rng: Rng, by_relation: int | None = None) -> Wording:
        if rng.chance(0.3):
            self.caption += "."
        return Wording(Prompt(self.caption, self.spans, list(range(len(self.spans)))), self.things, by_relation)


def matching(things: list[Thing], like: Thing, attributes: Sequence[str]) -> list[Thing]:
    """The things that share these attributes and the kind with `like`."""
    return [t for t in things if all(getattr(t, a) == getattr(like, a) for a in ("kind", *attributes))]


def _attributes(things: list[Thing], thing: Thing, count: int, rng: Rng) -> list[str] | None:
    """Attributes that exactly `count` things share, this one included; None if there are none."""
    usable = [a for a in ATTRIBUTE_CHANCES if a != "band" or thing.band != "medium"]
    rarely = {"pattern": 0.3} if thing.pattern == "plain" else {}
    chosen = [a for a in usable if rng.chance(ATTRIBUTE_CHANCES[a] * rarely.get(a, 1))]
    for more in rng.shuffle([a for a in usable if a not in chosen]):
        if len(matching(things, thing, chosen)) == count:
            break
        chosen.append(more)
    if len(matching(things, thing, chosen)) != count:
        return None
    return [a for a in ATTRIBUTE_CHANCES if a in chosen]


def _phrase(thing: Thing, attributes: Sequence[str], rng: Rng, definite: float = 0.5) -> str:
    words = [*(getattr(thing, a) for a in attributes), thing.kind]
    article = "the" if rng.chance(definite) else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _clause(
    writer: _Writer, joint: str, things: list[Thing], used: list[Thing], config: SceneConfig, rng: Rng
) -> list[Thing]:
    """Write `joint` and a clause about things not used yet; returns the things it names, perhaps none."""
    fresh = [t for t in things if not any(t is u for u in used)]
    if not fresh:
        return []
    thing = rng.choice(fresh)
    group = matching(things, thing, ())
    if 2 <= len(group) and rng.chance(0.5):
        attributes = ["color"] if len(matching(things, thing, ["color"])) >= 2 else []
        group = matching(things, thing, attributes)
        if len(group) in NUMBERS and not any(t is u for t in group for u in used):
            words = [NUMBERS[len(group)], *(getattr(thing, a) for a in attributes)]
            writer.name(" ".join([*words, plural(thing.kind)]), group, joint)
            return group
    attributes = _attributes(things, thing, 1, rng)
    if attributes is None:
        return []
    others = [t for t in fresh if t is not thing]
    if others and rng.chance(0.65):
        other = rng.choice(others)
        told = _attributes(things, other, 1, rng)
        true = [r for r in RELATIONS if holds(r, thing.box, other.box, config)]
        if told is not None and true:
            _relate(writer, thing, attributes, rng.choice(true), other, told, rng, joint)
            return [thing, other]
    writer.name(_phrase(thing, attributes, rng), [thing], joint)
    return [thing]


def _relate(
    writer: _Writer, thing: Thing, attributes: list[str], relation: str, other: Thing,
    told: list[str], rng: Rng, joint: str = "",
) -> None:  # fmt: skip
    writer.name(_phrase(thing, attributes, rng), [thing], joint)
    relation = rng.choice(RELATION_WORDS[relation])
    writer.name(_phrase(other, told, rng, definite=0.8), [other], f" {relation} ")


def describe(things: list[Thing], config: SceneConfig, rng: Rng) -> Wording | None:
    """One to three clauses; None if nothing unambiguous could be said."""
    writer, used = _Writer(rng.choice(OPENINGS)), []
    for _ in range(rng.integer(1, 3)):
        used += _clause(writer, rng.choice(JOINTS) if used else "", things, used, config, rng)
    return writer.close(rng) if used else None


def describe_relation(things: list[Thing], comparison: Comparison, config: SceneConfig, rng: Rng) -> Wording | None:
    """A sentence whose first phrase fits two things, of which the relation picks one; None if words cannot say it."""
    attributes = _attributes(things, comparison.target, 2, rng)
    told = _attributes(things, comparison.reference, 1, rng)
    if attributes is None or told is None:
        return None
    writer = _Writer(rng.choice(OPENINGS))
    _relate(writer, comparison.target, attributes, comparison.relation, comparison.reference, told, rng)
    if rng.chance(0.3):
        used = [comparison.target, comparison.twin, comparison.reference]
        _clause(writer, rng.choice(JOINTS), things, used, config, rng)
    return writer.close(rng, by_relation=0)


def vocabulary() -> list[str]:
    """Every word of the captions, sorted."""
    words = {*COLORS, *KINDS, *NOVEL_KINDS, *map(plural, (*KINDS, *NOVEL_KINDS)), *NUMBERS.values()}
    words |= {"striped", "dotted", "checkered", "plain", "small", "large", "thing", "a", "an", "the"}
    for text in (*OPENINGS, *JOINTS, *(phrase for phrases in RELATION_WORDS.values() for phrase in phrases)):
        words |= set(text.replace(",", " ").split())
    return sorted(words)
