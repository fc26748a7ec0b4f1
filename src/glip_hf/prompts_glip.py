# Copyright 2026 The glip_hf authors. MIT licence.
"""Every form of text input -> captions, character spans and positive maps. No torch in here.

There are two kinds of caption. A *detection* caption is built from class names joined by a separator; the span of each
name is noted while the caption is built, so a "car" is never found inside a "cart". A *grounding* caption is the user's
own text, with phrases given by span or, exactly, as substrings of it. `glip ground --help` says which a text is. The
behaviour is that of the original, with the exceptions said at the functions concerned.

Letters: N captions, C class names or phrases of a caption, K boxes or rows, T text tokens ([CLS] is token 0).
Spans are `[begin, end)` in Python characters of the caption.
"""

import operator
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ._compat import tokenize
from .noun_phrases_glip import noun_phrases, read_phrases, split_list
from .values_glip import in_one_line, quote

# Most tokens of a caption, [CLS] and [SEP] included; the released models were trained with this limit
MAX_TEXT_LENGTH = 256

# How captions are built from class names, with the defaults; see `make_names` and `build_prompts`
PROMPT_OPTIONS = {"separator": ". ", "prefix": None, "suffix": None, "negative_names": None, "chunk_size": None}

Span = tuple[int, int]
Offsets = Sequence[tuple[int, int]]
NameInput = str | Mapping[str, str]
# Class names; or the prompts of each: `{"helmet": ["hard hat", "safety helmet"], "person": "person"}`
NamesInput = Sequence[NameInput] | Mapping[str, NameInput | Sequence[NameInput]]
PhraseInput = str | tuple[str, int]
SpanInput = Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Name:
    """One class name on its way into a caption."""

    text: str  # what stands in the caption and owns the tokens
    label_id: int  # index of the class in the user's list
    prefix: str = ""  # text before the class name that belongs to no label
    suffix: str = ""  # the same, after it

    @property
    def full_text(self) -> str:
        return f"{self.prefix}{self.text}{self.suffix}"


@dataclass(frozen=True)
class Prompt:
    """A caption and what its characters stand for."""

    caption: str  # the text the tokenizer sees
    spans: list[list[Span]]  # for each row (class name or phrase), the spans that name it; length C
    label_ids: list[int]  # the label of each row; length C
    exact: bool = False  # rows have the tokens within their spans and no others (see `positive_map`)


@dataclass
class Query:
    """The text input for one image: its captions (several if the class names do not fit one) and its text labels."""

    prompts: list[Prompt]
    names: list[str]
    is_list: bool = False  # of class names; else phrases of a caption
    has_prompts: bool = False  # the rows are prompts of the class names, one or several for each


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The names, or the first of them, fit for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(quote(name) for name in names[:limit]) + more


# -- class names to captions -----------------------------------------------------------------------


def clean_name(name: str) -> str:
    """The class name as it stands in a caption: spaces for underscores, without an explanation in the manner of LVIS.

    Everything from the first "(" after an underscore to the last ")" is removed, then each *pair* of spaces becomes
    one, in one pass. Nothing is stripped: `"arctic_(type_of_shoe)"` becomes `"arctic "`, as the released models saw it.
    Other parentheses stay, where the original removes them: "bolt (rusty)" and "bolt (new)" are two classes.
    """
    begin, end = name.find("_("), name.rfind(")")
    name = name[: begin + 1] + name[end + 1 :] if 0 <= begin < end else name
    return name.replace("_", " ").replace("  ", " ")


def chunk(items: Sequence[Any], size: int | None) -> list[Sequence[Any]]:
    """Consecutive slices of `size` items, the last one shorter; `None` or -1 means one slice, 0 is an error."""
    if size is None or size == -1:
        return [items] if len(items) else []
    if size < 1:
        raise ValueError(f"chunk_size={size} is not possible: use a positive number, or None for one caption.")
    return [items[start : start + size] for start in range(0, len(items), size)]


def make_names(
    names: Sequence[NameInput], prefix: str | Sequence[str] | None = None, suffix: str | Sequence[str] | None = None
) -> list[Name]:
    """The user's class names -> `Name`s, in order; the label of a class is its index in the list.

    Args:
        names: strings, which are cleaned, or dictionaries `{"prefix", "name", "suffix"}` (the caption prompts of
            ODinW), which are used as they are. `prefix` and `suffix` may be left out of them.
        prefix: text before every class name (a string), or before each (one string per name). Not cleaned.
        suffix: the same, after the class names.

    Raises:
        TypeError, ValueError: for an entry that is neither, and for a list of affixes of another length.
    """
    affixes = zip(_affixes("prefix", prefix, len(names)), _affixes("suffix", suffix, len(names)), strict=True)
    made = []
    for index, (name, (before, after)) in enumerate(zip(names, affixes, strict=True)):
        entry = {"name": clean_name(name)} if isinstance(name, str) else name
        known = isinstance(entry, Mapping) and {*entry} <= {"prefix", "name", "suffix"}
        if not known or not isinstance(entry.get("name"), str):
            raise TypeError(
                f"name {index} is {quote(name)}, a {type(name).__name__}: give a string, or a dictionary with "
                "the keys 'prefix', 'name' and 'suffix'."
            )
        before, after = before + (entry.get("prefix") or ""), (entry.get("suffix") or "") + after
        made.append(Name(entry["name"], index, before, after))
    return made


def _affixes(what: str, value: str | Sequence[str] | None, count: int) -> list[str]:
    if value is None or isinstance(value, str):
        return [value or ""] * count
    if len(value) != count:
        raise ValueError(f"{what} has {len(value)} entries for {count} names: give one per name, or one string.")
    return [entry or "" for entry in value]


def build_prompt(names: Sequence[Name], separator: str = ". ", negative_names: Sequence[str] = ()) -> Prompt:
    """One caption of all class names, then the negative ones; spans are noted as names are written.

    No separator follows the last name. Negative class names are used as they are, as in the original: they absorb
    false positives and have no row.
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
    """As few captions as hold all class names in order and stay within both limits.

    Args:
        names: of one image, at least one.
        tokenizer: a fast tokenizer of Transformers.
        separator: between class names.
        negative_names: appended to every caption.
        chunk_size: most class names per caption; None or -1 for no limit.
        max_length: most tokens per caption, special ones included.

    Raises:
        ValueError: naming the class name (or the negative ones) that does not fit a caption even alone.
    """
    limit = max_length - tokenizer.num_special_tokens_to_add()
    tail = separator + separator.join(negative_names) if negative_names else ""
    costs = count_tokens(tokenizer, [separator, tail, *(name.full_text for name in names)])
    separator_cost, tail_cost, costs = costs[0], costs[1], costs[2:]
    if tail_cost >= limit:
        raise ValueError(
            f"the {len(negative_names)} negative names take {tail_cost} tokens of the {limit} of a caption: give fewer."
        )
    for name, cost in zip(names, costs, strict=True):
        if cost + tail_cost > limit:
            raise ValueError(
                f"the name {quote(name.full_text)} has {cost} tokens, but a caption holds {limit - tail_cost} "
                f"besides its special tokens{' and negative names' if tail_cost else ''}: shorten it."
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
    groups: list[list[Name]], tokenizer: Any, separator: str, negative_names: Sequence[str], limit: int
) -> list[Prompt]:
    """Prompts of the groups.

    Where class names are not separate words (an empty separator, say) their costs do not add up; a caption that came
    out too long is then halved until it fits.
    """
    made = [build_prompt(group, separator, negative_names) for group in groups]
    prompts = []
    lengths = count_tokens(tokenizer, [prompt.caption for prompt in made])
    for group, prompt, length in zip(groups, made, lengths, strict=True):
        if length <= limit:
            prompts.append(prompt)
        elif len(group) > 1:
            halves = [group[: len(group) // 2], group[len(group) // 2 :]]
            prompts += _fit(halves, tokenizer, separator, negative_names, limit)
        else:
            raise ValueError(
                f"the name {quote(group[0].full_text)} makes a caption of {length} tokens, {limit} fit: shorten it "
                "or the negative names."
            )
    return prompts


def count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, without special ones and without truncation; a ValueError for invalid Unicode."""
    if not texts:
        return []
    for text in texts:
        check_unicode(text)
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    encoded = tokenize(tokenizer, texts, add_special_tokens=False, truncation=False, padding=False, **options)
    return [len(ids) for ids in encoded["input_ids"]]


def check_unicode(text: str) -> None:
    """Refuse lone surrogates, which Python makes of bytes that are not UTF-8: no tokenizer takes them."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{quote(text)} is not valid Unicode text: give it in UTF-8.")


# -- phrases in a given caption --------------------------------------------------------------------


def find_phrase(caption: str, phrase: str, occurrence: int | None = None) -> Span:
    """The span of `phrase` in `caption`, character for character (case and spaces matter); a ValueError if it is empty,
    does not occur, or is ambiguous.

    `occurrence` counts from 0 over all (overlapping and inside words too); it may be left out where there is only one.
    """
    if not phrase:
        raise ValueError(f"an empty phrase was given for the caption {quote(caption)}: leave it out.")
    begins = [match.start() for match in re.finditer(f"(?={re.escape(phrase)})", caption)]
    if not begins:
        raise ValueError(
            f"the phrase {quote(phrase)} is not in the caption {quote(caption)}: phrases match exactly, case "
            "and spaces included."
        )
    if occurrence is None and len(begins) > 1:
        contexts = [_context(caption, begin, begin + len(phrase)) for begin in begins[:5]]
        places = "; ".join(f"{i}: character {begins[i]}, {text!r}" for i, text in enumerate(contexts))
        raise ValueError(
            f"the phrase {quote(phrase)} occurs {len(begins)} times in the caption {quote(caption)} ({places}"
            f"{'; ...' if len(begins) > 5 else ''}): say which one, for example ({quote(phrase)}, 0)."
        )
    occurrence = 0 if occurrence is None else occurrence
    if not 0 <= operator.index(occurrence) < len(begins):
        raise ValueError(
            f"occurrence {occurrence} of the phrase {quote(phrase)} was asked for, but the caption "
            f"{quote(caption)} has {len(begins)}, counted from 0."
        )
    begin = begins[occurrence]
    return begin, begin + len(phrase)


def _context(caption: str, begin: int, end: int, margin: int = 12) -> str:
    left = "..." if begin > margin else ""
    right = "..." if end + margin < len(caption) else ""
    return f"{left}{caption[max(begin - margin, 0) : end + margin]}{right}"


def check_span(caption: str, span: Sequence[int]) -> Span:
    """The span as two ints, if it lies in the caption and is not empty; else a ValueError that names both."""
    try:
        begin, end = (operator.index(value) for value in span)
    except (TypeError, ValueError):
        raise ValueError(f"{quote(span)} is not a span: give [begin, end), two integers.") from None
    if not 0 <= begin < end <= len(caption):
        raise ValueError(
            f"the span [{begin}, {end}) does not lie in the caption {quote(caption)} of {len(caption)} characters: "
            "0 <= begin < end <= length is needed."
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
    span that ends more than two characters after a truncated caption is lost as a whole. This is the rule of the
    original, with two exceptions: a span that ends at 0 crashes the original and has no tokens here, and a character
    of several tokens (BERT spells a Hangul syllable as its letters) ends at its last token, not at its first.

    Args:
        offsets: offset mapping of the tokenised caption, (0, 0) for special and padding tokens. Truncated for training;
            the original evaluates with an untruncated one, where a span across the last column keeps its first part.
        spans: for each row its spans, [begin, end) in characters of the caption.
        num_tokens: T, default `len(offsets)`. Further columns are zero, columns beyond it are cut off.
        exact: the tokens that lie between `begin` and `end`, however many spaces are there, and no others. For class
            names and for phrases to look for: the same for those of real vocabularies, but none is lost or widened.
        normalize: rows sum to 1, or are 0 where a row has no tokens; the loss binarises them.

    Returns:
        [K, T] float32, 1 / (n + 1e-6) at the n tokens of a row; with `normalize=False` [K, T] bool.
    """
    owners = _character_tokens(offsets)
    tokens = np.zeros((len(spans), max(len(offsets), num_tokens or 0)), dtype=bool)
    for row, row_spans in zip(tokens, spans, strict=True):
        for begin, end in row_spans:
            first = _first_owner(owners, range(begin, end if exact else begin + 3))
            last = _first_owner(owners, range(end - 1, begin - 1 if exact else end - 4, -1))
            if first is not None and last is not None:
                row[first[0] : last[1] + 1] = True
    tokens = tokens[:, :num_tokens]
    if not normalize:
        return tokens
    dense = tokens.astype(np.float32)
    return dense / (dense.sum(-1, keepdims=True) + np.float32(1e-6))


def _character_tokens(offsets: Offsets) -> list[Span | None]:
    """The first and the last token of each character; None for spaces and what the tokenizer drops."""
    owners: list[Span | None] = [None] * max((end for _, end in offsets), default=0)
    for token, (begin, end) in enumerate(offsets):
        for character in range(begin, end):
            owner = owners[character]
            owners[character] = (token, token) if owner is None else (owner[0], token)
    return owners


def _first_owner(owners: Sequence[Span | None], characters: Iterable[int]) -> Span | None:
    """The tokens of the first of these characters that has any."""
    for character in characters:
        if 0 <= character < len(owners) and owners[character] is not None:
            return owners[character]
    return None


# -- all forms of text input -----------------------------------------------------------------------


def read_text(
    text: Any,
    phrases: Any,
    spans: Any,
    num_images: int | None,
    tokenizer: Any,
    options: Mapping[str, Any],
    max_length: int | None,
    keep_captions: bool = False,
) -> list[Query]:
    """The query of each image, whatever form the text came in (see `GlipProcessor.__call__`).

    Args:
        num_images: None if unknown (text alone): as many as there are texts.
        options: all of `PROMPT_OPTIONS`.
        max_length: most tokens of a caption of class names; None for the model's 256.
        keep_captions: a text that is a list is its own caption, to the letter; else it is the caption of its items,
            which may be several.

    Raises:
        TypeError, ValueError: for text of no such form, or different numbers of texts and images.
    """
    if phrases is not None and spans is not None:
        raise ValueError("phrases and spans are two ways to say the same thing: give one of them.")
    one_name = isinstance(text, Mapping) and isinstance(text.get("name"), str)  # with its prefix and suffix
    if one_name or not isinstance(text, str | list | tuple | Mapping):
        raise TypeError(
            f"text is a {type(text).__name__}: give a caption, a list of names, or a list of lists of them."
        )
    if len(text) == 0:
        raise ValueError(f"text is empty ({text!r}): give at least one name or a caption.")
    for index, entry in enumerate(text):
        if not isinstance(entry, str | Mapping | list | tuple):
            raise TypeError(
                f"text[{index}] is {quote(entry)}, a {type(entry).__name__}: give strings or lists of them."
            )
    given = phrases is not None or spans is not None
    shared = isinstance(text, str | Mapping) or not (given or any(map(are_names, text)))
    if shared:
        texts, phrases, spans = [text], [phrases], [spans]
    else:
        texts = list(text)
        phrases, spans = one_each("phrases", phrases, len(texts)), one_each("spans", spans, len(texts))
        if num_images is not None and num_images != len(texts):
            raise ValueError(
                f"{len(texts)} texts for {num_images} images: give one per image, or one flat list of names for all."
            )
    queries = []
    for index, (entry, its_phrases, its_spans) in enumerate(zip(texts, phrases, spans, strict=True)):
        where = "text" if shared else f"text[{index}]"
        if isinstance(entry, str):
            query = _read_caption(entry, its_phrases, its_spans, where)
            if query.is_list and not keep_captions:
                query = _read_names(query.names, where, tokenizer, options, max_length)
            queries.append(query)
        elif (entry is text or are_names(entry)) and not given:
            if not isinstance(entry, Mapping):
                _warn_of_lists(entry, where, several=shared and num_images == len(entry) > 1)
            queries.append(_read_names(entry, where, tokenizer, options, max_length))
        else:
            wanted = "a caption (a string)" if given else "a list of names or a caption (a string)"
            raise TypeError(f"{where} is {quote(entry)}, a {type(entry).__name__}: give {wanted}.")
    return queries * (num_images or 1) if shared else queries


def are_names(entry: Any) -> bool:
    """Whether an entry of a list is class names itself: a list, or a dictionary with a list of prompts."""
    values = entry.values() if isinstance(entry, Mapping) else [entry]
    return any(isinstance(value, list | tuple) for value in values)


def _read_names(
    names: NamesInput, where: str, tokenizer: Any, options: Mapping[str, Any], max_length: int | None
) -> Query:
    if not names:
        raise ValueError(f"{where} is an empty list: give at least one name.")
    labels, has_prompts = list(names), isinstance(names, Mapping)
    prompts_of = {label: [own] if isinstance(own, str) else own for label, own in names.items()} if has_prompts else {}
    for label, own in prompts_of.items():
        if not isinstance(label, str) or not isinstance(own, list | tuple) or not own:
            raise TypeError(f"{where} has {quote(own)} for the name {quote(label)}: give a list of its prompts.")
    names = [prompt for own in prompts_of.values() for prompt in own] if has_prompts else names
    made = make_names(names, options["prefix"], options["suffix"])
    if has_prompts:
        label_ids = [index for index, own in enumerate(prompts_of.values()) for _ in own]
        made = [replace(name, label_id=label) for name, label in zip(made, label_ids, strict=True)]
    separator = PROMPT_OPTIONS["separator"] if options["separator"] is None else options["separator"]
    negative_names, max_length = options["negative_names"] or (), max_length or MAX_TEXT_LENGTH
    prompts = build_prompts(made, tokenizer, separator, negative_names, options["chunk_size"], max_length)
    names = [name if isinstance(name, str) else name["name"] for name in names]
    warn_of_equals(names, [name.full_text for name in made], tokenizer)
    return Query(prompts, labels if has_prompts else names, is_list=True, has_prompts=has_prompts)


def warn_of_equals(names: Sequence[str], texts: Sequence[str], tokenizer: Any) -> None:
    """Warn of class names whose texts are the same to the tokenizer, which ignores capitals, accents and spaces."""
    normalizer, groups = tokenizer.backend_tokenizer.normalizer, {}
    for name, text in zip(names, texts, strict=True):
        text = " ".join((normalizer.normalize_str(text) if normalizer else text).split())
        groups.setdefault(text, []).append(name)
    same = [
        f"{listed(list(dict.fromkeys(group)))} (as {quote(text)}, {len(group)} times)"
        for text, group in groups.items()
        if text and len(group) > 1
    ]
    if same:
        warnings.warn(
            f"class names that read the same in the caption: {in_one_line(same, 5)}. The model cannot tell them apart: "
            "leave all but one out, or use other words.",
            UserWarning,
            stacklevel=5,
        )


def _warn_of_lists(names: Sequence[NameInput], where: str, several: bool) -> None:
    """Warn of class names that read like a list or (`several`: one for each image) a caption, as other models take
    them."""
    split = {}
    for name in names:
        if isinstance(name, str):
            pieces = [name[begin:end] for begin, end in split_list(name)]
            if pieces and pieces != [name.strip()] or several and len(noun_phrases(name)) > 1:
                split[name] = pieces
    if split:
        name, pieces = next(iter(split.items()))
        more = f" (and {len(split) - 1} more)" if len(split) > 1 else ""
        hint = "If the full stop is not part of it, leave it out. " if name.rstrip().endswith(".") else ""
        hint = f"If it holds several, give each on its own: {quote(pieces)}. " if len(pieces) > 1 else hint
        warnings.warn(
            f"{where} is a list of class names, so {quote(name)}{more} is looked for as one of them. {hint}"
            "If each text belongs to one image, give class names for each, [[...], [...]], or captions with "
            "phrases=[None, ...].",
            UserWarning,
            stacklevel=4,
        )


def _read_caption(caption: str, phrases: Any, spans: Any, where: str) -> Query:
    """A caption with its phrases: given as substrings or spans, else the items of a list or its noun phrases, else all
    of it."""
    if not caption.strip():
        raise ValueError(f"{where} is {quote(caption)}: give a caption with words, or a list of names.")
    check_unicode(caption)
    rows: list[list[Span]] = []
    is_list = False
    if phrases is not None:
        rows = [[_find(caption, phrase)] for phrase in _check_list("phrases", phrases, where)]
    elif spans is not None:
        for span in _check_list("spans", spans, where):
            several = isinstance(span, list | tuple) and len(span) > 0 and isinstance(span[0], list | tuple)
            rows.append([check_span(caption, part) for part in (span if several else [span])])
    else:
        found, is_list = read_phrases(caption)
        if len(found) < 2 and not noun_phrases(caption):
            warnings.warn(
                f"no noun phrase was found in the caption {quote(caption)}: all of it is looked for as one phrase. "
                "Give phrases=[...], or a list of class names in place of the caption, to say what to look for.",
                UserWarning,
                stacklevel=4,
            )
        begin = len(caption) - len(caption.lstrip())
        rows = [[span] for span in found or [(begin, len(caption.rstrip()))]]
    names = [" ".join(caption[begin:end] for begin, end in row) for row in rows]
    # Spans that begin or end in spaces are read as the original reads them: it loses some.
    exact = all(caption[begin:end] == caption[begin:end].strip() for row in rows for begin, end in row)
    return Query([Prompt(caption, rows, list(range(len(rows))), exact)], names, is_list)


def _find(caption: str, phrase: Any) -> Span:
    text, occurrence = phrase if isinstance(phrase, list | tuple) and len(phrase) == 2 else (phrase, None)
    if not isinstance(text, str) or not (occurrence is None or hasattr(occurrence, "__index__")):
        raise TypeError(f"{quote(phrase)} is not a phrase: give a string, or (string, occurrence counted from 0).")
    return find_phrase(caption, text, occurrence)


def _check_list(what: str, values: Any, where: str) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{what} of {where} is {quote(values)}: give a list.")
    if len(values) == 0:
        raise ValueError(f"{what} of {where} is empty: leave it out, and the noun phrases of the caption are used.")
    return values


def one_each(what: str, values: Any, count: int) -> list[Any]:
    """A list with an entry per text, of None where `values` is None; a list of another length is a ValueError."""
    if values is None:
        return [None] * count
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{what} is {quote(values)} for {count} texts: give a list with one entry each.")
    return list(values)
