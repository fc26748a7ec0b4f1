# Copyright 2026 The glip_hf authors. MIT licence.
"""Types of command-line arguments."""

import argparse


def positive(text: str) -> int:
    """A whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: for any other; argparse reports what is no number.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


__all__ = ["positive"]
