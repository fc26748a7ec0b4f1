# Copyright 2026 The glip_hf authors. MIT licence.
"""From the class ids of an image to a caption: its own class names among negatives, names of absent classes.

The rules are those of the released models' training. Bugs of the original that no released model depends on are fixed
here; `docs/data.md` lists them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prompts_glip import MAX_TEXT_LENGTH, Name, Prompt, build_prompt, clean_name, count_tokens, warn_of_equals

BACKGROUND = "__background__"


@dataclass(frozen=True)
class NegativeSampling:
    """How many negatives a sampled caption holds.

    Attributes:
        num_negatives: largest number of names drawn.
        full: probability of drawing that many; else the number is uniform in 1..num_negatives.
        one: probability of drawing exactly one.
        none: probability of drawing none.
        max_names: largest number of names in a caption, where positive: the image's own come first.
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
        """The number of names to draw from a pool of this size; the image's own among them do not become negatives."""
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
    """The class names without `__background__`, which is not a class."""
    return {label: name for label, name in names.items() if name != BACKGROUND}


def all_names_prompt(
    names: Mapping[int, str], separator: str = ". ", prompts: Mapping[int, Name] | None = None, opening: str = ""
) -> Prompt:
    """One caption of all class names, in order of their ids.

    Args:
        prompts: names with prefix and suffix, by id, to write instead (not cleaned).
        opening: text before the first name, e.g. `"object detection : "`.
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
    """Those of an image's classes `labels` (each once) that fit `limit` tokens, and the tokens that they take.

    Classes are visited in random order until the first that does not fit; as in the original, shorter ones after it are
    not tried. Two exceptions: a class too long for any caption is skipped (in the original it ends the visit), and a
    single class needs no room for a separator (the original loses a name of exactly `limit` tokens).

    Where not all fit, the tokens returned are more than `limit`, so that no room is left for negatives.
    """
    fitting = [label for label in labels if costs[label] - separator <= limit]
    kept, used = [], 0
    for position in rng.permutation(len(fitting)):
        label = fitting[position]
        used += costs[label]
        if used <= limit or not kept:  # a single one fits without its separator
            kept.append(label)
        if used > limit:
            break
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
    """A caption with the class names of an image and of absent classes, in random order.

    Args:
        labels: classes of the image's boxes, keys of `names`; one that is not in the prompt found no room.
        names: all classes of the set, without `__background__`.
        costs, separator_cost: tokens of each name with a separator after it, and of a separator.
    """
    positives = sorted({int(label) for label in labels})
    chosen, used = fit_positives(positives, costs, settings.max_tokens, rng, separator_cost)
    pool, room = sorted(names), settings.max_tokens - used
    count = settings.draw_count(len(pool), len(positives), rng)
    for position in rng.choice(len(pool), size=count, replace=False):
        label = pool[position]
        if label in positives:
            continue
        room -= costs[label]
        if room <= 0:
            break
        chosen.append(label)
    order = rng.permutation(len(chosen))
    return build_prompt([Name(clean_name(names[chosen[i]]), chosen[i]) for i in order], settings.separator)


class DetectionCaptions:
    """Captions for the images of a detection set.

    Args:
        names: class id -> name; a `__background__` is ignored.
        tokenizer: a fast tokenizer of Transformers.
        mode: "all" or "sampled".
        settings: separator and length of captions, and the negatives of the mode "sampled".
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
        if not prompts:
            warn_of_equals(list(self.names.values()), list(map(clean_name, self.names.values())), tokenizer)
        self.settings = settings or NegativeSampling()
        self.prompt: Prompt | None = None
        if mode == "all":
            self.prompt = all_names_prompt(self.names, self.settings.separator, prompts)
            length = count_tokens(tokenizer, [self.prompt.caption])[0]
            if length > self.settings.max_tokens:
                raise ValueError(
                    f"The {len(self.names)} class names take {length} tokens, a caption has room for "
                    f"{self.settings.max_tokens}: use captions='sampled' for this set."
                )
            return
        texts = [clean_name(name) + self.settings.separator for name in self.names.values()]
        self.separator_cost = count_tokens(tokenizer, [self.settings.separator])[0]
        self.costs = dict(zip(self.names, count_tokens(tokenizer, texts), strict=True))

    def __call__(self, labels: Sequence[int], rng: np.random.Generator) -> Prompt:
        """The prompt for an image with these classes."""
        if self.prompt is not None:
            return self.prompt
        return sample_prompt(labels, self.names, self.costs, self.settings, rng, self.separator_cost)
