# Copyright 2026 The glip_hf authors. MIT licence.
"""Values of files and users: read in one form, by readers and evaluators alike, and shown in messages.

`null` is a missing value. Numbers may come as text, ids as integers, integral floats or text of any length. What has
one meaning is converted; for the rest a function raises a `ValueError` that names the value: cut before it is formatted
(a file may hold megabytes where a number belongs), on one line, without control characters that a terminal obeys.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

# Characters that a terminal obeys, that change the direction of what follows, or lone surrogates
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,000 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


# Of other models that ground text, and what they are here
_OTHERS_ARGUMENTS = {
    "box_threshold": "here it is 'threshold', the lowest score of a detection.",
    "conf": "here it is 'threshold', the lowest score of a detection.",
    "iou": "here it is 'nms_threshold', the IoU above which NMS suppresses.",
    "iou_threshold": "here it is 'nms_threshold', the IoU above which NMS suppresses.",
    "text_threshold": "leave it out: a detection's label is the class name or phrase that it scored for, whole.",
}


def refuse_unknown(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError for the first keyword argument that is not known, with the closest known name."""
    known = sorted(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            hint = _OTHERS_ARGUMENTS.get(name, hint)
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}: {hint}")


def check_number(name: str, value: Any, least: float = -math.inf, whole: bool = False) -> float:
    """The value of an option that is one number, as a Python number; a TypeError for anything but one number (a whole
    one), a ValueError for NaN, or less than `least`."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of NumPy or PyTorch
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"{name}={quote(value)} must be one {'whole ' if whole else ''}number.")
    if not value >= least:  # nor is NaN
        wanted = {-math.inf: "be a number", 0: "not be negative"}.get(least, f"be at least {least}")
        raise ValueError(f"{name}={value} must {wanted}.")
    return value


_NUMBERS = frozenset((int, float))
_INTEGER = re.compile(r"([+-]?(?:0|[1-9][0-9]*))(?:\.0+)?")  # "007" may be a name: it is not the number 7
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def read_number(value: Any, what: str = "number") -> float:
    """A number, or the number that a text spells; NaN and infinity are numbers."""
    if type(value) in _NUMBERS or (isinstance(value, Real) and not isinstance(value, bool)):
        number = value
    elif isinstance(value, str) and value.isascii() and "_" not in value:
        number = value.strip()
    else:
        raise ValueError(f"{what} {quote(value)}" if value is not None else f"no {what}")
    try:
        return float(number)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} {quote(value)}") from None


def read_box(value: Any) -> Sequence[float]:
    """The four numbers of a box, as they are (text that spells them too)."""
    if type(value) is list and len(value) == 4 and _NUMBERS.issuperset(map(type, value)):
        return value
    listed = value
    if isinstance(value, str) and value.lstrip()[:1] == "[" and len(value) < 1000:
        try:
            listed = json.loads(value)
        except ValueError:
            listed = None
    if hasattr(listed, "tolist"):  # an array
        listed = listed.tolist()
    if not isinstance(listed, list | tuple) or len(listed) != 4:
        raise ValueError(f"bbox {quote(value)}" if value is not None else "no bbox")
    try:
        return [read_number(number, "") for number in listed]
    except ValueError:
        raise ValueError(f"bbox {quote(value)}") from None


def read_flag(value: Any, what: str = "iscrowd") -> bool:
    """0 or 1, also as a boolean or text; a missing value is 0."""
    if value is None or value is False or value is True:
        return bool(value)
    if isinstance(value, Real):
        if value in (0, 1) or value != value:  # pandas writes missing values as NaN
            return value == 1
    elif isinstance(value, str) and (flag := _FLAGS.get(value.strip().lower().removesuffix(".0"))) is not None:
        return flag
    raise ValueError(f"{what} {quote(value)}")


def integer(value: Any) -> int | None:
    """The integer that a number or a text like "7" or "7.0" stands for; None for the rest."""
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value.strip())
        return int(match[1]) if match and len(match[1]) < 400 else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if value == value and abs(value) != math.inf and value == int(value) else None
