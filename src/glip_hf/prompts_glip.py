# Copyright 2026 The glip_hf authors. MIT licence.
"""From names and phrases to captions, character spans and token maps. No torch in here.

Two kinds of caption exist. A *detection* caption is built from class names joined by a separator;
each name's span is noted while the caption is built, so a "car" is never found inside a "cart". A
*grounding* caption is the user's own sentence, with phrases given by span or, exactly, as
substrings of it.

Letters: N captions, C classes or phrases a caption, T text tokens ([CLS] is token 0).
Spans are `[begin, end)` in Python characters of the caption.

The behaviour is that of the original (specification, section 9; goldens in `../shared/data`) except
where the original crashes or silently loses a name, which is said at the function concerned.
"""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_TEXT_LENGTH = 256
"""Tokens a caption may have, [CLS] and [SEP] included; the released models know no longer ones."""

Span = tuple[int, int]
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Name:
    """One class name on its way into a caption.

    Attributes:
        text: what stands in the caption and owns the tokens.
        label_id: the class's index in the user's list.
        prefix, suffix: words around the name that own no label.
    """

    text: str
    label_id: int
    prefix: str = ""
    suffix: str = ""

    @property
    def full_text(self) -> str:
        return f"{self.prefix}{self.text}{self.suffix}"


@dataclass(frozen=True)
class Prompt:
    """A caption and what its characters stand for.

    Attributes:
        caption: the text the tokenizer sees.
        spans: for each row (class or phrase), the spans that name it; length C.
        label_ids: the label of each row; length C.
        exact: rows are class names, whose spans cover the name and nothing else (see `positive_map`).
    """

    caption: str
    spans: list[list[Span]]
    label_ids: list[int]
    exact: bool = False


# -- names to captions -----------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """The name as it stands in a caption: no parenthesised part, spaces for underscores.

    From the first "(" to the last ")" everything goes, then each *pair* of spaces becomes one, in
    one pass. Nothing is stripped: `"arctic_(type_of_shoe)"` becomes `"arctic "`, as the released
    models saw it.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def chunk(items: Sequence[Any], size: int | None) -> list[Sequence[Any]]:
    """Consecutive slices of `size` items, the last one shorter; `None` or -1 means one slice.

    Raises:
        ValueError: if `size` is 0 or below -1.
    """
    if size is None or size == -1:
        return [items] if len(items) else []
    if size < 1:
        raise ValueError(f"chunk_size={size} is not possible: use a positive number, or None for one caption.")
    return [items[start : start + size] for start in range(0, len(items), size)]


def make_names(
    names: Sequence[str | Mapping[str, str]],
    prefix: str | Sequence[str] | None = None,
    suffix: str | Sequence[str] | None = None,
) -> list[Name]:
    """User's names -> `Name`s, in order; the label of a name is its place in the list.

    Args:
        names: strings, which are cleaned, or dictionaries `{"prefix", "name", "suffix"}` (the
            caption prompts of ODinW), which are taken to the letter. `prefix` and `suffix` may be
            left out of them.
        prefix: text before every name (a string), or before each (one string a name). Not cleaned.
        suffix: the same, after the names.

    Raises:
        TypeError: for an entry that is neither.
        ValueError: for a list of affixes of another length than the names.
    """
    made = []
    before, after = _affixes("prefix", prefix, len(names)), _affixes("suffix", suffix, len(names))
    for index, name in enumerate(names):
        if isinstance(name, str):
            made.append(Name(clean_name(name), index, before[index], after[index]))
        elif isinstance(name, Mapping) and isinstance(name.get("name"), str):
            inner = [name.get("prefix") or "", name.get("suffix") or ""]
            made.append(Name(name["name"], index, before[index] + inner[0], inner[1] + after[index]))
        else:
            raise TypeError(
                f"name {index} is {name!r}, a {type(name).__name__}: give a string, or a "
                "dictionary with the keys 'prefix', 'name' and 'suffix'."
            )
    return made


def _affixes(what: str, value: str | Sequence[str] | None, count: int) -> list[str]:
    if value is None or isinstance(value, str):
        return [value or ""] * count
    if len(value) != count:
        raise ValueError(f"{what} has {len(value)} entries for {count} names: give one a name, or one string.")
    return [entry or "" for entry in value]


def build_prompt(names: Sequence[Name], separator: str = ". ", negative_names: Sequence[str] = ()) -> Prompt:
    """One caption of all names, then the negative ones; spans are noted as names are written.

    No separator follows the last name. Negative names are written to the letter, as the original
    does: they soak up false positives and own no row.
    """
    caption, spans = "", []
    for name in names:
        if spans:
            caption += separator
        begin = len(caption) + len(name.prefix)
        spans.append([(begin, begin + len(name.text))])
        caption += name.full_text
    caption = separator.join([caption, *negative_names] if spans else negative_names)
    return Prompt(caption, spans, [name.label_id for name in names], exact=True)


def build_prompts(
    names: Sequence[Name],
    tokenizer: Any,
    separator: str = ". ",
    negative_names: Sequence[str] = (),
    chunk_size: int | None = None,
    max_length: int = MAX_TEXT_LENGTH,
) -> list[Prompt]:
    """As few captions as hold all names in order and stay within both limits.

    Args:
        names: of one picture, at least one.
        tokenizer: a fast tokenizer of Transformers.
        separator: between names.
        negative_names: appended to every caption.
        chunk_size: most names a caption; None or -1 for no limit.
        max_length: most tokens a caption, special ones included.

    Raises:
        ValueError: naming the name (or the negative names) that alone do not fit a caption.
    """
    limit = max_length - tokenizer.num_special_tokens_to_add()
    costs = _count_tokens(tokenizer, [separator, *(name.full_text for name in names)])
    separator_cost, costs = costs[0], costs[1:]
    tail = separator + separator.join(negative_names) if negative_names else ""
    tail_cost = _count_tokens(tokenizer, [tail])[0]
    if tail_cost >= limit:
        raise ValueError(
            f"the {len(negative_names)} negative names take {tail_cost} tokens of the {limit} a "
            "caption has: give fewer."
        )
    for name, cost in zip(names, costs, strict=True):
        if cost + tail_cost > limit:
            raise ValueError(
                f"the name {shorten(name.full_text)!r} has {cost} tokens, but a caption holds "
                f"{limit - tail_cost} besides its special tokens"
                f"{' and negative names' if tail_cost else ''}: shorten it."
            )

    groups: list[list[Name]] = []
    for part in chunk(list(zip(names, costs, strict=True)), chunk_size):
        used = limit + 1  # full: the first name of a part opens a caption
        for name, cost in part:
            used += separator_cost + cost
            if used > limit:
                groups.append([])
                used = tail_cost + cost
            groups[-1].append(name)
    return _fit(groups, tokenizer, separator, negative_names, limit)


def _fit(
    groups: list[list[Name]],
    tokenizer: Any,
    separator: str,
    negative_names: Sequence[str],
    limit: int,
) -> list[Prompt]:
    """Prompts of the groups.

    Where words run together (an empty separator, say) the costs of names do not add up; a caption
    that came out too long is then cut in two until it fits.
    """
    made = [build_prompt(group, separator, negative_names) for group in groups]
    prompts = []
    lengths = _count_tokens(tokenizer, [prompt.caption for prompt in made])
    for group, prompt, length in zip(groups, made, lengths, strict=True):
        if length <= limit:
            prompts.append(prompt)
        elif len(group) > 1:
            halves = [group[: len(group) // 2], group[len(group) // 2 :]]
            prompts += _fit(halves, tokenizer, separator, negative_names, limit)
        else:
            raise ValueError(
                f"the name {shorten(group[0].full_text)!r} makes a caption of {length} tokens, "
                f"{limit} fit: shorten it or the negative names."
            )
    return prompts


def _count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, without special ones and without truncation."""
    encoded = tokenizer(
        texts, add_special_tokens=False, truncation=False, padding=False, verbose=False,
        return_attention_mask=False, return_token_type_ids=False,
    )  # fmt: skip
    return [len(ids) for ids in encoded["input_ids"]]


def shorten(text: str, limit: int = 80) -> str:
    """The text, or its beginning, fit for an error message."""
    return text if len(text) <= limit else f"{text[:limit]}..."


# -- phrases in a given caption --------------------------------------------------------------------


def find_phrase(caption: str, phrase: str, occurrence: int | None = None) -> Span:
    """Where `phrase` stands in `caption`, character for character (case matters, spaces count).

    Args:
        occurrence: which one, counted from 0 over all occurrences (overlapping and inside words
            too); may be left out where there is only one.

    Raises:
        ValueError: if the phrase is empty, is not there, is there more than once without
            `occurrence`, or not that often.
    """
    if not phrase:
        raise ValueError(f"an empty phrase was given for the caption {shorten(caption)!r}: leave it out.")
    begins, at = [], caption.find(phrase)
    while at >= 0:
        begins.append(at)
        at = caption.find(phrase, at + 1)
    if not begins:
        raise ValueError(
            f"the phrase {phrase!r} is not in the caption {caption!r}: phrases are matched to the "
            "letter, capitals and spaces included."
        )
    if occurrence is None:
        if len(begins) > 1:
            listed = "; ".join(
                f"{index}: character {begin}, {_context(caption, begin, begin + len(phrase))!r}"
                for index, begin in enumerate(begins)
            )
            raise ValueError(
                f"the phrase {phrase!r} occurs {len(begins)} times in the caption {caption!r} "
                f"({listed}): say which one, for example ({phrase!r}, 0)."
            )
        occurrence = 0
    if not 0 <= operator.index(occurrence) < len(begins):
        raise ValueError(
            f"occurrence {occurrence} of the phrase {phrase!r} was asked for, but the caption "
            f"{caption!r} has {len(begins)}, counted from 0."
        )
    begin = begins[occurrence]
    return begin, begin + len(phrase)


def _context(caption: str, begin: int, end: int, margin: int = 12) -> str:
    left = "..." if begin > margin else ""
    right = "..." if end + margin < len(caption) else ""
    return f"{left}{caption[max(begin - margin, 0) : end + margin]}{right}"


def check_span(caption: str, span: Sequence[int]) -> Span:
    """The span as two ints, if it lies in the caption and is not empty.

    Raises:
        ValueError: naming span and caption, otherwise.
    """
    try:
        begin, end = (operator.index(value) for value in span)
    except (TypeError, ValueError):
        raise ValueError(f"{span!r} is not a span: give [begin, end), two whole numbers.") from None
    if not 0 <= begin < end <= len(caption):
        raise ValueError(
            f"the span [{begin}, {end}) does not lie in the caption {shorten(caption)!r} of "
            f"{len(caption)} characters: 0 <= begin < end <= length is needed."
        )
    return begin, end


# -- spans to tokens -------------------------------------------------------------------------------


def positive_map(
    offsets: Offsets,
    spans: Sequence[Sequence[Sequence[int]]],
    num_tokens: int | None = None,
    *,
    exact: bool = False,
    normalize: bool = True,
) -> np.ndarray:
    """The tokens that stand for each class name, phrase or box (a row).

    First token of a span: that of character `begin`, else of `begin + 1`, else of `begin + 2`; last token: that of
    `end - 1`, else of `end - 2`, else of `end - 3`. If either is missing or they cross, the span has no tokens, so a
    span that ends more than two characters after a truncated caption is lost as a whole, and a zero-width span inside a
    word is that word. This is the original's rule, which training and evaluation data were made with. A span that ends
    at 0 crashes the original; here it has no tokens.

    Args:
        offsets: offset mapping of the tokenised caption, (0, 0) for special and padding tokens. Truncated for
            training; the original evaluates with an untruncated one, where a span across the last column keeps its
            first part.
        spans: for each row its spans, [begin, end) in characters of the caption.
        num_tokens: T, default `len(offsets)`. Further columns are zero, columns beyond it are cut off.
        exact: look for tokens between `begin` and `end` only, however many spaces are there. For class names, whose
            spans cover the name and nothing else: the same for names of real vocabularies, but no name is lost.
        normalize: rows sum to 1, or are 0 where a row has no tokens; the loss binarises them.

    Returns:
        [K, T] float32, 1 / (n + 1e-6) at the n tokens of a row; with `normalize=False` [K, T] bool.
    """
    owners = _character_tokens(offsets)
    tokens = np.zeros((len(spans), max(len(offsets), num_tokens or 0)), dtype=bool)
    for row, row_spans in zip(tokens, spans, strict=True):
        for begin, end in row_spans:
            first = _first_token(owners, range(begin, end if exact else begin + 3))
            last = _first_token(owners, range(end - 1, begin - 1 if exact else end - 4, -1))
            if first is not None and last is not None:
                row[first : last + 1] = True
    tokens = tokens[:, :num_tokens]
    if not normalize:
        return tokens
    dense = tokens.astype(np.float32)
    return dense / (dense.sum(-1, keepdims=True) + np.float32(1e-6))


def _character_tokens(offsets: Offsets) -> list[int | None]:
    """The (first) token of each character; None for spaces and what the tokenizer drops."""
    owners: list[int | None] = [None] * max((end for _, end in offsets), default=0)
    for token, (begin, end) in reversed(list(enumerate(offsets))):
        owners[begin:end] = [token] * (end - begin)
    return owners


def _first_token(owners: Sequence[int | None], characters: Iterable[int]) -> int | None:
    """Token of the first of these characters that has one."""
    for character in characters:
        if 0 <= character < len(owners) and owners[character] is not None:
            return owners[character]
    return None


def greenlight_map(offsets: Offsets, spans: Iterable[Sequence[int]], num_tokens: int | None = None) -> np.ndarray:
    """Tokens that masked language modelling may hide: [T] float32, 1 there and 0 elsewhere.

    A span of three elements is a stop marker: the whole vector is -1 (this caption takes no part).
    """
    spans = list(spans)
    if any(len(span) == 3 for span in spans):
        return np.full(len(offsets) if num_tokens is None else num_tokens, -1, dtype=np.float32)
    return positive_map(offsets, [spans], num_tokens, normalize=False)[0].astype(np.float32)


def od_label_map(
    offsets: Offsets, label_to_span: Mapping[int, Sequence[int]], num_tokens: int | None = None
) -> np.ndarray:
    """Class id of every token: [T] float32, -1 where there is none; later classes overwrite earlier ones."""
    rows = positive_map(offsets, [[span] for span in label_to_span.values()], num_tokens, normalize=False)
    labels = np.full(rows.shape[1], -1, dtype=np.float32)
    for label, row in zip(label_to_span, rows, strict=True):
        labels[row] = label
    return labels


__all__ = [
    "MAX_TEXT_LENGTH",
    "Name",
    "Offsets",
    "Prompt",
    "Span",
    "build_prompt",
    "build_prompts",
    "check_span",
    "chunk",
    "clean_name",
    "find_phrase",
    "greenlight_map",
    "make_names",
    "od_label_map",
    "positive_map",
    "shorten",
]
