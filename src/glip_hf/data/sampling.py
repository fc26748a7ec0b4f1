# Copyright 2026 The glip_hf authors. MIT licence.
"""From a detection picture's class ids to a caption: its own names among names that are not there.

The rules are those the released models were trained with (specification, section 9). Where the original does
something that no released model depends on, we do right; `docs/data.md` lists these cases.

Letters: K boxes of a picture, C classes in a caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prompts_glip import MAX_TEXT_LENGTH, Name, Prompt, build_prompt, clean_name

BACKGROUND = "__background__"


@dataclass(frozen=True)
class NegativeSampling:
    """How many absent classes a sampled caption names.

    Attributes:
        num_negatives: most names drawn.
        full: probability of drawing that many; else the number is uniform in 1..num_negatives.
        one: probability of drawing exactly one.
        none: probability of drawing none.
        max_names: most names in a caption, where positive: the negatives get what the picture's own leave.
        separator: between names.
        max_tokens: tokens of a caption besides [CLS] and [SEP].
    """

    num_negatives: int = 85
    full: float = 0.5
    one: float = 0.0
    none: float = 0.0
    max_names: int = -1
    separator: str = ". "
    max_tokens: int = MAX_TEXT_LENGTH - 2

    def __post_init__(self) -> None:
        chances = (self.full, self.one, self.none)
        if min(chances) < 0 or sum(chances) > 1:
            raise ValueError(f"full, one and none are probabilities of exclusive cases, got {chances}.")
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives={self.num_negatives} must be at least 0.")

    def draw_count(self, pool: int, positives: int, rng: np.random.Generator) -> int:
        """How many names to draw from a pool of so many; those of the picture among them do not count."""
        most = min(self.num_negatives, pool)
        if self.max_names > 0:
            most = min(most, max(self.max_names - positives, 0))
        chance = rng.random()
        if chance < self.none or most == 0:
            return 0
        if chance < self.none + self.one:
            return 1
        if chance < self.none + self.one + self.full:
            return most
        return int(rng.integers(1, most + 1))


def without_background(names: Mapping[int, str]) -> dict[int, str]:
    """The names but `__background__`, which is no class: nothing in a picture is called that."""
    return {label: name for label, name in names.items() if name != BACKGROUND}


def all_names_prompt(
    names: Mapping[int, str],
    separator: str = ". ",
    prompts: Mapping[int, Name] | None = None,
    opening: str = "",
) -> Prompt:
    """One caption of all names, in order of their ids.

    Args:
        prompts: names with prefix and suffix, by id, to write instead (not cleaned).
        opening: words before the first name, e.g. `"object detection : "`.
    """
    listed = []
    for label in sorted(names):
        name = prompts[label] if prompts else Name(clean_name(names[label]), label)
        prefix = name.prefix if listed else opening + name.prefix
        listed.append(Name(name.text, label, prefix, name.suffix))
    return build_prompt(listed, separator)


def fit_positives(
    labels: Sequence[int], costs: Mapping[int, int], limit: int, rng: np.random.Generator, separator: int = 1
) -> tuple[list[int], int]:
    """The classes of a picture that fit a caption, and the tokens they take.

    Classes are visited in random order. At the first that does not fit, the visit ends, as in the original, where
    shorter ones behind it are not tried either. Two exceptions: a class too long for any caption is passed over
    (in the original it would end the visit), and a class alone needs no room for a separator behind it (the
    original loses a name of exactly `limit` tokens).

    Args:
        labels: the classes, each once.
        costs: tokens of each class's name with a separator behind it.
        limit: tokens of a caption without special ones.
        separator: tokens of a separator.

    Returns:
        the classes kept, in order of the visit, and the tokens of them all. More than `limit` means that not all
        fitted: the class that did not is counted, so that no room is left for negatives.
    """
    fitting = [label for label in labels if costs[label] - separator <= limit]
    kept, used = [], 0
    for position in rng.permutation(len(fitting)):
        label = fitting[position]
        used += costs[label]
        if used > limit:
            if not kept:  # alone, and just without its separator
                kept = [label]
            break
        kept.append(label)
    if len(fitting) < len(labels):
        used = max(used, limit + 1)
    return kept, used


def sample_prompt(
    labels: Sequence[int],
    names: Mapping[int, str],
    costs: Mapping[int, int],
    settings: NegativeSampling,
    rng: np.random.Generator,
    separator_cost: int = 1,
) -> Prompt:
    """A caption with the names of a picture and of classes that are not in it, in random order.

    Args:
        labels: classes of the picture's boxes; repetition is allowed, all must be in `names`.
        names: all classes of the set, without `__background__`.
        costs: tokens of each name with a separator behind it.
        settings: see `NegativeSampling`.
        rng: everything random comes from it.

    Returns:
        a prompt with a row per name; a class of `labels` that is not among its `label_ids` found no room.
    """
    positives = sorted({int(label) for label in labels})
    kept, used = fit_positives(positives, costs, settings.max_tokens, rng, separator_cost)
    pool = sorted(names)
    count = settings.draw_count(len(pool), len(positives), rng)
    own, chosen = set(positives), list(kept)
    room = settings.max_tokens - used
    for position in rng.choice(len(pool), size=count, replace=False):
        label = pool[position]
        if label in own:
            continue
        room -= costs[label]
        if room <= 0:
            break
        chosen.append(label)
    order = rng.permutation(len(chosen))
    return build_prompt([Name(clean_name(names[chosen[i]]), chosen[i]) for i in order], settings.separator)


class DetectionCaptions:
    """Captions for the pictures of one detection set.

    Args:
        names: class id -> name; a `__background__` is ignored.
        tokenizer: a fast tokenizer of Transformers.
        mode: "all" or "sampled".
        settings: for both modes the separator and the room, for "sampled" the rest.
        prompts: see `all_names_prompt`; for "all" only.

    Raises:
        ValueError: if all names do not fit one caption in the mode "all".
    """

    def __init__(
        self,
        names: Mapping[int, str],
        tokenizer: Any,
        mode: str = "sampled",
        settings: NegativeSampling | None = None,
        prompts: Mapping[int, Name] | None = None,
    ) -> None:
        if mode not in ("all", "sampled"):
            raise ValueError(f"captions={mode!r} must be 'all' or 'sampled' for a detection set.")
        self.names = without_background(names)
        self.settings = settings or NegativeSampling()
        self.prompt: Prompt | None = None
        if mode == "all":
            self.prompt = all_names_prompt(self.names, self.settings.separator, prompts)
            length = _lengths(tokenizer, [self.prompt.caption])[0]
            if length > self.settings.max_tokens:
                raise ValueError(
                    f"The {len(self.names)} names take {length} tokens, a caption has room for "
                    f"{self.settings.max_tokens}: use captions='sampled' for this set."
                )
            return
        texts = [clean_name(name) + self.settings.separator for name in self.names.values()]
        self.separator_cost = _lengths(tokenizer, [self.settings.separator])[0]
        self.costs = dict(zip(self.names, _lengths(tokenizer, texts), strict=True))

    def __call__(self, labels: Sequence[int], rng: np.random.Generator) -> Prompt:
        """The prompt for a picture with these classes."""
        if self.prompt is not None:
            return self.prompt
        return sample_prompt(labels, self.names, self.costs, self.settings, rng, self.separator_cost)


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]
