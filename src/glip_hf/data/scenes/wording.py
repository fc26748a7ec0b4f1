# Copyright 2026 The glip_hf authors. MIT licence.
"""What is said of a scene: lists of names, and sentences whose phrases are true and clear."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...prompts_glip import Prompt, Span, build_prompt, make_names
from .config import COLORS, HELD_OUT, Dice, SceneConfig
from .layout import RELATIONS, Riddle, allowed, holds
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
ATTRIBUTES = ("band", "pattern", "color")  # in the order they are spoken; the kind follows
ATTRIBUTE_CHANCES = {"band": 0.3, "pattern": 0.35, "color": 0.7}
PLURALS = {
    "fish": "fish",
    "cross": "crosses",
    "butterfly": "butterflies",
}


@dataclass
class Wording:
    """A caption and what its rows point at.

    Attributes:
        prompt: caption and spans, one row a phrase or name.
        things: the things of each row; empty for a name that is absent.
        by_relation: the row that only a relation decides, if there is one.
    """

    prompt: Prompt
    things: list[list[Thing]]
    by_relation: int | None = None


def plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


# -- lists of names --------------------------------------------------------------------------------


def _near_miss(pair: tuple[str, str], kinds: Sequence[str], dice: Dice) -> tuple[str, str]:
    """One of the two words changed."""
    color, kind = pair
    return (dice.pick(tuple(COLORS)), kind) if dice.chance(0.5) else (color, dice.pick(kinds))


def list_names(things: list[Thing], split: str, config: SceneConfig, dice: Dice) -> Wording:
    """A shuffled list of names present and absent: all kinds, all colours ("red thing"), or all both ("red star").

    Every thing that a listed name fits belongs to it, of `things` also nameless ones, which have colours.
    """
    novel = split.startswith("novel")
    kinds = (*KINDS, *NOVEL_KINDS) if novel else KINDS
    style = "pairs" if split == "unseen" else dice.weighted(("kinds", "colors", "pairs"), config.list_styles)
    present = list(dict.fromkeys((t.color, t.kind) for t in things if t.kind))
    # dict.fromkeys and not set(): its order does not depend on the hash seed
    if style == "kinds":
        here = list(dict.fromkeys(kind for _, kind in present))
        absent = dice.shuffle([kind for kind in kinds if kind not in here])
    elif style == "colors":
        here = list(dict.fromkeys(f"{t.color} thing" for t in things))
        absent = dice.shuffle([f"{color} thing" for color in COLORS if f"{color} thing" not in here])
    else:
        here = [" ".join(pair) for pair in present]
        absent = []
    wanted = [name for name in here if dice.chance(config.listed)]
    if not wanted and here and dice.chance(0.8):
        wanted = [dice.pick(here)]
    count = dice.whole(*config.negatives)
    while style == "pairs" and len(absent) < count:
        pair = dice.pick(tuple(COLORS)), dice.pick(kinds)
        if split == "unseen" and dice.chance(0.3):
            pair = dice.pick(sorted(HELD_OUT))
        elif dice.chance(config.near_chance):
            pair = _near_miss(dice.pick(present), kinds, dice) if present else pair
        name = " ".join(pair)
        if allowed(pair, split) and pair not in present and name not in absent:
            absent.append(name)
    names = dice.shuffle([*wanted, *absent[:count]])
    prompt = build_prompt(make_names(names))
    rows = [[t for t in things if name in (t.kind, f"{t.color} thing", f"{t.color} {t.kind}")] for name in names]
    return Wording(prompt, rows)


# -- sentences -------------------------------------------------------------------------------------


class _Writer:
    """A caption in the making: spans are noted as phrases are written."""

    def __init__(self, opening: str) -> None:
        self.caption = opening
        self.spans: list[list[Span]] = []
        self.things: list[list[Thing]] = []

    def say(self, text: str) -> None:
        self.caption += text

    def name(self, phrase: str, things: list[Thing]) -> None:
        begin = len(self.caption)
        self.caption += phrase
        self.spans.append([(begin, len(self.caption))])
        self.things.append(things)

    def wording(self, by_relation: int | None = None) -> Wording:
        prompt = Prompt(self.caption, self.spans, list(range(len(self.spans))))
        return Wording(prompt, self.things, by_relation)


def matching(things: list[Thing], like: Thing, attributes: Sequence[str]) -> list[Thing]:
    """The things that share these attributes and the kind with `like`."""
    return [
        t for t in things
        if t.kind == like.kind and all(getattr(t, a) == getattr(like, a) for a in attributes)
    ]  # fmt: skip


def _sayable(thing: Thing, attribute: str) -> bool:
    return not (attribute == "band" and thing.band == "medium")


def _attributes(things: list[Thing], thing: Thing, count: int, dice: Dice) -> list[str] | None:
    """Attributes that `count` things have, this one included; None if words cannot do it."""
    usable = [a for a in ATTRIBUTES if _sayable(thing, a)]
    chosen = [
        a for a in usable
        if dice.chance(ATTRIBUTE_CHANCES[a] * (0.3 if getattr(thing, a) == "plain" else 1))
    ]  # fmt: skip
    for more in dice.shuffle([a for a in usable if a not in chosen]):
        if len(matching(things, thing, chosen)) == count:
            break
        chosen.append(more)
    if len(matching(things, thing, chosen)) != count:
        return None
    return [a for a in ATTRIBUTES if a in chosen]


def _phrase(thing: Thing, attributes: Sequence[str], dice: Dice, definite: float = 0.5) -> str:
    words = [*(getattr(thing, a) for a in attributes), thing.kind]
    if dice.chance(definite):
        article = "the"
    else:
        article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _clause(writer: _Writer, things: list[Thing], used: list[Thing], config: SceneConfig, dice: Dice) -> list[Thing]:
    """Write one clause about things not used yet; returns the things it names, perhaps none."""
    fresh = [t for t in things if not any(t is u for u in used)]
    if not fresh:
        return []
    thing = dice.pick(fresh)
    group = matching(things, thing, ())
    if 2 <= len(group) and dice.chance(0.5):
        attributes = ["color"] if len(matching(things, thing, ["color"])) >= 2 else []
        group = matching(things, thing, attributes)
        if len(group) in NUMBERS and not any(t is u for t in group for u in used):
            words = [NUMBERS[len(group)], *(getattr(thing, a) for a in attributes)]
            writer.name(" ".join([*words, plural(thing.kind)]), group)
            return group
    attributes = _attributes(things, thing, 1, dice)
    if attributes is None:
        return []
    others = [t for t in fresh if t is not thing]
    if others and dice.chance(0.65):
        other = dice.pick(others)
        told = _attributes(things, other, 1, dice)
        true = [r for r in RELATIONS if holds(r, thing.box, other.box, config)]
        if told is not None and true:
            _relate(writer, thing, attributes, dice.pick(true), other, told, dice)
            return [thing, other]
    writer.name(_phrase(thing, attributes, dice), [thing])
    return [thing]


def _relate(
    writer: _Writer, thing: Thing, attributes: list[str], relation: str, other: Thing,
    told: list[str], dice: Dice,
) -> None:  # fmt: skip
    writer.name(_phrase(thing, attributes, dice), [thing])
    writer.say(f" {dice.pick(RELATION_WORDS[relation])} ")
    writer.name(_phrase(other, told, dice, definite=0.8), [other])


def tell(things: list[Thing], config: SceneConfig, dice: Dice) -> Wording | None:
    """One to three clauses; None if nothing could be said without doubt."""
    writer, used = _Writer(dice.pick(OPENINGS)), []
    for _ in range(dice.whole(1, 3)):
        mark = len(writer.caption)
        if used:
            writer.say(dice.pick(JOINTS))
        named = _clause(writer, things, used, config, dice)
        if not named:
            writer.caption = writer.caption[:mark]
        used += named
    return _closed(writer, dice).wording() if used else None


def _closed(writer: _Writer, dice: Dice) -> _Writer:
    if dice.chance(0.3):
        writer.say(".")
    return writer


def tell_riddle(things: list[Thing], riddle: Riddle, config: SceneConfig, dice: Dice) -> Wording | None:
    """A sentence whose first phrase fits two things, of which the relation picks one.

    None if words cannot say it.
    """
    attributes = _attributes(things, riddle.target, 2, dice)
    told = _attributes(things, riddle.reference, 1, dice)
    if attributes is None or told is None:
        return None
    writer = _Writer(dice.pick(OPENINGS))
    _relate(writer, riddle.target, attributes, riddle.relation, riddle.reference, told, dice)
    if dice.chance(0.3):
        mark = len(writer.caption)
        writer.say(dice.pick(JOINTS))
        used = [riddle.target, riddle.twin, riddle.reference]
        if not _clause(writer, things, used, config, dice):
            writer.caption = writer.caption[:mark]
    return _closed(writer, dice).wording(by_relation=0)


def vocabulary() -> list[str]:
    """Every word the scenes speak, sorted."""
    words = {*COLORS, *KINDS, *NOVEL_KINDS, *map(plural, (*KINDS, *NOVEL_KINDS)), *NUMBERS.values()}
    words |= {"striped", "dotted", "checkered", "plain", "small", "large", "thing", "a", "an", "the"}
    for text in (*OPENINGS, *JOINTS, *(w for words_ in RELATION_WORDS.values() for w in words_)):
        words |= set(text.replace(",", " ").split())
    return sorted(words)


__all__ = [
    "RELATION_WORDS",
    "Wording",
    "list_names",
    "matching",
    "plural",
    "tell",
    "tell_riddle",
    "vocabulary",
]
