# Copyright 2026 The glip_hf authors. MIT licence.
"""A JSON document read element by element, so that a file of many gigabytes is never one Python object.

`json.load` of a COCO-style file with a million images takes several gigabytes; here one element of its arrays is alive
at a time. The elements themselves are decoded by the standard library.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK_CHARACTERS = 1 << 22
_BLANK = " \t\r\n"


class UnreadableJson(ValueError):
    """The file is not a valid JSON object, or is truncated. The message names file and position."""


def stream_json(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The members of the JSON object in a file; each element of an array by itself.

    `{"info": {...}, "images": [a, b]}` gives `("info", {...}), ("images", a), ("images", b)`; an empty array gives
    nothing. NaN and Infinity are accepted, as by `json.load`.

    Raises:
        UnreadableJson: where it cannot be read; everything before has been yielded.
    """
    with open(path, encoding="utf-8-sig") as file:
        reader = _Reader(file, str(path))
        for _ in reader.elements("{}"):
            key = reader.value()
            reader.expect(":")
            if reader.peek() == "[":
                for _ in reader.elements("[]"):
                    yield key, reader.value()
            else:
                yield key, reader.value()
        reader.more(CHUNK_CHARACTERS)
        if reader.text.strip():  # as of files that were joined, of which all but the first would be lost
            raise reader.fail("more follows the JSON object: a file holds one")


class _Reader:
    """A window on the file that moves forward as values are taken from it."""

    def __init__(self, file: TextIO, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.before, self.ended = "", 0, 0, False
        self.decode = json.JSONDecoder().raw_decode

    def fail(self, what: str) -> UnreadableJson:
        return UnreadableJson(f"{self.path}: unreadable JSON at character {self.before + self.at}: {what}")

    def more(self, size: int) -> bool:
        """Read on; False at the end of the file."""
        try:
            chunk = self.file.read(size)
        except UnicodeDecodeError as error:
            raise self.fail(f"not UTF-8 ({error})") from None
        self.ended = not chunk
        self.text, self.before, self.at = self.text[self.at :] + chunk, self.before + self.at, 0
        return not self.ended

    def peek(self) -> str:
        """The next character that is not whitespace."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in _BLANK:
                at += 1
            self.at = at
            if at < len(text):
                return text[at]
            if not self.more(CHUNK_CHARACTERS):
                raise self.fail("the file ends here")

    def expect(self, characters: str) -> str:
        found = self.peek()
        if found not in characters:
            raise self.fail(f"{' or '.join(characters)} expected, found {found!r}")
        self.at += 1
        return found

    def elements(self, brackets: str) -> Iterator[None]:
        """Stop before every element between these brackets, for the caller to read."""
        self.expect(brackets[0])
        if self.peek() == brackets[1]:
            self.at += 1
            return
        while True:
            yield
            if self.expect(f",{brackets[1]}") == brackets[1]:
                return

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                # A number at the end of the window may continue after it: the 0 of `0.`, the 1.5 of `1.5e-`.
                if end < len(self.text) - 2 or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # Far from the end of the window, nothing that follows can repair it.
                hopeless = error.pos < len(self.text) - 16 and not error.msg.startswith("Unterminated string")
                if self.ended or hopeless:
                    raise self.fail(error.msg) from None
            except (RecursionError, ValueError) as error:  # brackets in brackets, an integer of thousands of digits
                raise self.fail(f"{error}"[:100]) from None
            # Doubling: an element larger than the window costs only a constant factor.
            self.more(max(CHUNK_CHARACTERS, len(self.text) - self.at))
