# Copyright 2026 The glip_hf authors. MIT licence.
"""What a user may say, in all its forms, read into captions, spans and names. No torch in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .noun_phrases_glip import noun_phrases
from .prompts_glip import (
    MAX_TEXT_LENGTH,
    Prompt,
    Span,
    build_prompts,
    check_span,
    find_phrase,
    make_names,
    shorten,
)

NameInput = str | Mapping[str, str]
PhraseInput = str | tuple[str, int]
SpanInput = Sequence[int] | Sequence[Sequence[int]]

PROMPT_OPTIONS = {
    "separator": ". ",
    "prefix": None,
    "suffix": None,
    "negative_names": None,
    "chunk_size": None,
}
"""How captions are built from names, with the defaults; see `prompts_glip.build_prompts`."""


@dataclass
class Query:
    """What is asked of one picture: its captions (several if the names do not fit one) and
    names."""

    prompts: list[Prompt]
    names: list[str]


def read_text(
    text: Any,
    phrases: Any,
    spans: Any,
    pictures: int | None,
    tokenizer: Any,
    options: Mapping[str, Any],
    max_length: int | None,
) -> list[Query]:
    """The query of each picture, whatever form the text came in (see `GlipProcessor.__call__`).

    Args:
        pictures: how many there are; None if unknown (text alone), then as many as there are texts.
        options: all of `PROMPT_OPTIONS`.
        max_length: most tokens a caption of names may have; None for the model's 256.

    Raises:
        TypeError, ValueError: for text of no such form, or texts and pictures that differ in
            number.
    """
    if phrases is not None and spans is not None:
        raise ValueError("phrases and spans say the same thing in two ways: give one of them.")
    if not isinstance(text, str | list | tuple):
        raise TypeError(
            f"text is a {type(text).__name__}: give a caption (a string), a list of names, or a list of lists of names."
        )
    if len(text) == 0:
        raise ValueError(f"text is empty ({text!r}): give at least one name or a caption.")
    if isinstance(text, list | tuple):
        for index, entry in enumerate(text):
            if not isinstance(entry, str | Mapping | list | tuple):
                raise TypeError(
                    f"text[{index}] is {shorten(repr(entry))}, a {type(entry).__name__}: give "
                    "strings, or lists of strings."
                )
    given = phrases is not None or spans is not None
    shared = isinstance(text, str) or (not given and all(isinstance(entry, str | Mapping) for entry in text))
    if shared:
        texts, phrases, spans = [text], [phrases], [spans]
    else:
        texts = list(text)
        phrases = one_each("phrases", phrases, len(texts))
        spans = one_each("spans", spans, len(texts))
        if pictures is not None and pictures != len(texts):
            raise ValueError(
                f"{len(texts)} texts for {pictures} pictures: give one a picture, or one flat "
                "list of names for all of them."
            )
    queries = []
    for index, (entry, its_phrases, its_spans) in enumerate(zip(texts, phrases, spans, strict=True)):
        where = "text" if shared else f"text[{index}]"
        if isinstance(entry, str):
            queries.append(_read_caption(entry, its_phrases, its_spans, where))
        elif isinstance(entry, list | tuple) and not given:
            queries.append(_read_names(entry, where, tokenizer, options, max_length))
        else:
            wanted = "a caption (a string)" if given else "a list of names or a caption (a string)"
            raise TypeError(f"{where} is {entry!r}, a {type(entry).__name__}: give {wanted}.")
    return queries * (pictures or 1) if shared else queries


def _read_names(
    names: Sequence[NameInput],
    where: str,
    tokenizer: Any,
    options: Mapping[str, Any],
    max_length: int | None,
) -> Query:
    if not names:
        raise ValueError(f"{where} is an empty list: give at least one name.")
    separator = options["separator"]
    prompts = build_prompts(
        make_names(names, options["prefix"], options["suffix"]),
        tokenizer,
        PROMPT_OPTIONS["separator"] if separator is None else separator,
        options["negative_names"] or (),
        options["chunk_size"],
        max_length or MAX_TEXT_LENGTH,
    )
    return Query(prompts, [name if isinstance(name, str) else name["name"] for name in names])


def _read_caption(caption: str, phrases: Any, spans: Any, where: str) -> Query:
    """A caption with its phrases: given as substrings or spans, else its noun phrases, else all of
    it."""
    if not caption.strip():
        raise ValueError(f"{where} is {caption!r}: give a caption with words, or a list of names.")
    rows: list[list[Span]]
    if phrases is not None:
        rows = [[_find(caption, phrase)] for phrase in _listed_input("phrases", phrases, where)]
    elif spans is not None:
        rows = [
            [check_span(caption, part) for part in (span if _is_list_of_spans(span) else [span])]
            for span in _listed_input("spans", spans, where)
        ]
    else:
        begin = len(caption) - len(caption.lstrip())
        rows = [[span] for span in noun_phrases(caption) or [(begin, len(caption.rstrip()))]]
    names = [" ".join(caption[begin:end] for begin, end in row) for row in rows]
    return Query([Prompt(caption, rows, list(range(len(rows))))], names)


def _find(caption: str, phrase: Any) -> Span:
    text, occurrence = (phrase, None) if isinstance(phrase, str) else (None, None)
    if isinstance(phrase, list | tuple) and len(phrase) == 2 and isinstance(phrase[0], str):
        text, occurrence = phrase
    if text is None or not (occurrence is None or hasattr(occurrence, "__index__")):
        raise TypeError(f"{phrase!r} is not a phrase: give a string, or (string, occurrence counted from 0).")
    return find_phrase(caption, text, occurrence)


def _is_list_of_spans(span: Any) -> bool:
    return isinstance(span, list | tuple) and len(span) > 0 and isinstance(span[0], list | tuple)


def _listed_input(what: str, values: Any, where: str) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{what} of {where} is {values!r}: give a list.")
    if len(values) == 0:
        raise ValueError(f"{what} of {where} is empty: leave it out and noun phrases are looked for.")
    return values


def one_each(what: str, values: Any, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{what} is {shorten(repr(values))} for {count} texts: give a list with one entry each.")
    return list(values)


__all__ = [
    "PROMPT_OPTIONS",
    "NameInput",
    "PhraseInput",
    "Query",
    "SpanInput",
    "one_each",
    "read_text",
]
