# Copyright 2026 The glip_hf authors. MIT licence.
"""Lists of class names that are written as one text, for the command line, the pipeline and the demo."""

from .noun_phrases_glip import read_phrases, split_list


def read_list(text: str) -> list[str] | None:
    """The class names of a text that is a list by the rule of `glip ground --help`; None for a caption."""
    spans, is_list = read_phrases(text)
    return [text[begin:end] for begin, end in spans] if is_list else None


def split_names(text: str) -> list[str]:
    """The class names of a text that is said to be a list: also pieces that are not short."""
    return read_list(text) or [text[begin:end] for begin, end in split_list(text)]
