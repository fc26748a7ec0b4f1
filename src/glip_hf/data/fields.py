# Copyright 2026 The glip_hf authors. MIT licence.
"""Fields of annotation files: text, ids, spans, sizes and names, each in one form; see `values_glip`."""

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ..values_glip import integer, quote, read_number


def is_text(value: Any) -> bool:
    """Whether a value is text that can be stored: JSON can spell half a surrogate pair, which is not a character."""
    return isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def read_id(value: Any, what: str = "id") -> int | str:
    """An id: an integer, an integral float as an integer, or text as it is."""
    if type(value) is int:
        return value
    if isinstance(value, Real) and (number := integer(value)) is not None:
        return number
    if is_text(value) and value.strip():
        return value
    raise ValueError(f"{what} {quote(value)}" if value is not None else f"no {what}")


def read_spans(value: Any) -> list[int]:
    """Spans `[[begin, end), ...]` of a caption as one flat list; flat ones are taken as pairs, None is no span."""
    if value is None or value == () or value == []:
        return []
    try:
        flat = [number for pair in value for number in (pair if isinstance(pair, list | tuple) else (pair,))]
        odd = len(flat) % 2 or any(isinstance(pair, list | tuple) and len(pair) != 2 for pair in value)
        whole = flat if all(type(number) is int for number in flat) else [integer(number) for number in flat]
    except TypeError:
        odd, whole = True, []
    if odd or isinstance(value, str | dict) or None in whole or any(abs(number) > 2**31 - 1 for number in whole):
        raise ValueError(f"tokens_positive {quote(value)}")
    return whole


def read_size(value: Any, what: str) -> int | None:
    """Pixels of a side of an image, maybe in text; None if missing, 0 or negative; a ValueError for no number."""
    number = 0.0 if value is None or value == "" else read_number(value, what)
    return int(number) if math.isfinite(number) and 1 <= number < 2**31 else None


def read_name(value: Any) -> str:
    """The name of a category; of a number its digits."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = integer(value)
        return str(value if number is None else number)
    if not is_text(value):
        raise ValueError(f"name {quote(value)}" if value is not None else "no name")
    return value


def class_list(names: Any, what: str) -> list[str]:
    """Class names that a user gives, as a list or by their numbers from 0 on (`{0: cat, 1: dog}`).

    Raises:
        ValueError: for anything else; `what` begins the message.
    """
    listed = names
    if isinstance(names, Mapping):
        by_number = {integer(key): name for key, name in names.items()}
        listed = [by_number.get(number) for number in range(len(names))]
    if isinstance(listed, list | tuple) and listed and all(map(is_text, listed)):
        return list(listed)
    raise ValueError(f"{what} {quote(names)} is not a list of class names, such as [cat, dog].")


def id_order(value: int | str) -> tuple[bool, int, str]:
    """The sort key of ids: numbers in ascending order (also those in text), then text."""
    number = integer(value)
    return (True, 0, value) if number is None else (False, number, str(value))


class Ids:
    """Ids as places 0, 1, ... An id is found as it is written, or by its number where one id alone has it: 7, 7.0 and
    "7" are the same, unless there are both 7 and "7".

    Attributes:
        values: the ids, each as `read_id` gives it.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.values: list[int | str] = []
        self._places: dict[int | str, int] = {}
        self._spelled: dict[int, int] = {}  # number -> place of the only text that spells it, -1 of several
        for value in values:
            self.add(read_id(value))

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, value: int | str) -> bool:
        return value in self._places

    def add(self, value: int | str) -> int:
        """The place of an id, a new one if it was not there as it is written."""
        place = self._places.setdefault(value, len(self.values))
        if place == len(self.values):
            self.values.append(value)
            if isinstance(value, str) and (number := integer(value)) is not None:
                self._spelled[number] = -1 if number in self._spelled else place
        return place

    def find(self, value: int | str) -> int:
        """The place of an id, -1 if it is not there."""
        place = self._places.get(value)
        if place is None:
            number = value if isinstance(value, int) else integer(value)
            place = -1 if number is None else self._places.get(number, self._spelled.get(number, -1))
        return place
