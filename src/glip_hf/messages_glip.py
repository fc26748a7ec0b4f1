# Copyright 2026 The glip_hf authors. MIT licence.
"""Values of files and users in messages: cut before they are formatted (a file may hold megabytes where a number
belongs), on one line, and without control characters, which a terminal would obey."""

import re
from collections.abc import Sequence
from typing import Any

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys, that change the direction of what follows, or that are none."""


def escape(text: str, keep: str = "") -> str:
    """The text with control characters written as in JSON: `\\u001b`."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def quote(value: Any, limit: int = 80) -> str:
    """`repr` of a value, cut to about `limit` characters."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    elif isinstance(value, list | tuple):
        if limit <= 0:  # deep within lists
            return "..."
        shown = ", ".join(quote(item, min(20, limit - 5)) for item in value[:8])
        return f"[{shown}{', ...' if len(value) > 8 else ''}]"[:limit]
    elif isinstance(value, dict):
        return f"an object with the keys {quote(list(value), limit)}"
    elif isinstance(value, int) and value.bit_length() > 300:  # Python refuses to format long integers
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def shown(value: Any, limit: int = 100) -> str:
    """The same with text as it is, without quotation marks."""
    if not isinstance(value, str):
        return quote(value, limit)
    text = escape(value[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def in_one_line(texts: Sequence[str], limit: int = 3) -> str:
    """The first few texts, and how many more there are."""
    more = len(texts) - limit
    return "; ".join(texts[:limit]) + (f"; and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,000 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
