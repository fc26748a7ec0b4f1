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
from typing import Any, Protocol

import numpy as np

MAX_TEXT_LENGTH = 256
"""Tokens a caption may have, [CLS] and [SEP] included; the released models know no longer ones."""

Span = tuple[int, int]


class CharToToken(Protocol):
    """What is needed of a tokenised caption: a `tokenizers.Encoding`, or a `BatchEncoding` of
    one."""

    def char_to_token(self, char_pos: int, /) -> int | None: ...


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
        exact: rows are class names, whose spans cover the name and nothing else. Their tokens are
            looked up inside the span only; those of phrases with the original's fallbacks (see
            `span_tokens`).
    """

    caption: str
    spans: list[list[Span]]
    label_ids: list[int]
    exact: bool = False

    def row_tokens(self, encoding: CharToToken) -> list[list[int]]:
        """The tokens of each row, ascending. A row without tokens is an empty list."""
        lookup = name_tokens if self.exact else span_tokens
        return [sorted({token for begin, end in row for token in lookup(encoding, begin, end)}) for row in self.spans]


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


def _first_token(encoding: CharToToken, characters: Iterable[int]) -> int | None:
    """Token of the first of these characters that belongs to one. Before the text there is none."""
    for character in characters:
        if character >= 0 and (token := encoding.char_to_token(character)) is not None:
            return token
    return None


def span_tokens(encoding: CharToToken, begin: int, end: int) -> range:
    """Tokens of a span by the original's rule, which training and evaluation data were made with.

    First token: that of character `begin`, else `begin + 1`, else `begin + 2`; last token: that of
        `end - 1`,
    else `end - 2`, else `end - 3`. If either is missing, or they cross, the span has no tokens: no
    clipping. So a span that runs more than two characters over the end of a truncated encoding is
    lost whole, and a zero-width span inside a word is that word. A span ending at 0 crashes the
    original; here it has no tokens.
    """
    first = _first_token(encoding, range(begin, begin + 3))
    last = _first_token(encoding, range(end - 1, end - 4, -1))
    if first is None or last is None:
        return range(0)
    return range(first, last + 1)


def name_tokens(encoding: CharToToken, begin: int, end: int) -> range:
    """Tokens of a class name: those of its own characters, however many spaces surround them.

    Equal to `span_tokens` for every name of real vocabularies; it differs where that loses a name
    (three spaces at an end) or crashes (an empty first name).
    """
    first = _first_token(encoding, range(begin, end))
    if first is None:
        return range(0)
    return range(first, _first_token(encoding, range(end - 1, begin - 1, -1)) + 1)


# -- the forms a token map takes -------------------------------------------------------------------


def label_to_tokens(
    encoding: CharToToken, spans: Sequence[Sequence[Sequence[int]]], columns: int = MAX_TEXT_LENGTH
) -> list[list[int]]:
    """Tokens below `columns` of every row's spans, ascending; empty lists where there are none."""
    return [
        sorted({t for begin, end in row for t in span_tokens(encoding, begin, end) if t < columns}) for row in spans
    ]


def positive_map(
    encoding: CharToToken, spans: Sequence[Sequence[Sequence[int]]], columns: int = MAX_TEXT_LENGTH
) -> np.ndarray:
    """Which tokens each box or phrase is named by, rows normalised.

    Args:
        encoding: the tokenised caption. Truncated for training; the original evaluates with an
            untruncated one, where a span across the last column keeps its first part.
        spans: for each row a list of spans.
        columns: width of the map, whatever the length of the caption.

    Returns:
        [rows, columns] float32: 1 / (n + 1e-6) at the n tokens of a row, zero elsewhere. What the
        loss sees is `binary_map` of it.
    """
    tokens = label_to_tokens(encoding, spans, columns)
    dense = np.zeros((len(tokens), columns), dtype=np.float32)
    for row, columns_of_row in zip(dense, tokens, strict=True):
        row[columns_of_row] = 1
    return dense / (dense.sum(-1, keepdims=True) + np.float32(1e-6))


def binary_map(dense: np.ndarray) -> np.ndarray:
    """The map as the loss sees it: float32, 1.0 wherever the normalised map is not 0."""
    return (dense != 0).astype(np.float32)


def greenlight_map(encoding: CharToToken, spans: Iterable[Sequence[int]], columns: int = MAX_TEXT_LENGTH) -> np.ndarray:
    """Tokens that masked language modelling may hide: [columns] float32, 1 there and 0 elsewhere.

    A span of three elements is a stop marker: the whole vector is -1 (this caption takes no part).
    """
    mask = np.zeros(columns, dtype=np.float32)
    for span in spans:
        if len(span) == 3:
            return np.full(columns, -1, dtype=np.float32)
        mask[[token for token in span_tokens(encoding, *span) if token < columns]] = 1
    return mask


def od_label_map(
    encoding: CharToToken,
    label_to_span: Mapping[int, Sequence[int]],
    columns: int = MAX_TEXT_LENGTH,
) -> np.ndarray:
    """Class id of every token: [columns] float32, -1 where there is none; later classes overwrite
    earlier."""
    labels = np.full(columns, -1, dtype=np.float32)
    for label, (begin, end) in label_to_span.items():
        labels[[token for token in span_tokens(encoding, begin, end) if token < columns]] = label
    return labels


__all__ = [
    "MAX_TEXT_LENGTH",
    "Name",
    "Prompt",
    "Span",
    "binary_map",
    "build_prompt",
    "build_prompts",
    "check_span",
    "chunk",
    "clean_name",
    "find_phrase",
    "greenlight_map",
    "label_to_tokens",
    "make_names",
    "name_tokens",
    "od_label_map",
    "positive_map",
    "shorten",
    "span_tokens",
]
