# Copyright 2026 The glip_hf authors. MIT licence.
"""Values of files and users in messages: cut before they are formatted (a file may hold megabytes where a number
belongs), on one line, and without control characters, which a terminal would obey."""

from typing import Any


def quote(value: Any, limit: int = 80) -> str:
    """`repr` of a value, cut to about `limit` characters."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    elif isinstance(value, list | tuple):
        shown = ", ".join(quote(item, 20) for item in value[:8])
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
    text = value[: limit + 1]
    text = text if text.isprintable() else text.encode("unicode_escape").decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
