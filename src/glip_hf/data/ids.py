# Copyright 2026 The glip_hf authors. MIT licence.
"""Ids of images and categories: in which order they go, and which ones are the same."""

from collections.abc import Iterable
from typing import Any

from ..values_glip import integer, read_id


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
