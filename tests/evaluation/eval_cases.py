# Copyright 2026 The glip_hf authors. MIT licence.
"""The recorded evaluator cases, and what the small images of these tests show."""

import gzip
import json
from pathlib import Path
from typing import Any

from glip_hf.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ["cat", "remote control", "sofa", "dog", "person", "bicycle", "car", "bus", "bird", "horse", "bear", "cup"]
SIZES = [(120, 80), (90, 90), (80, 120), (120, 80), (100, 70)]  # width, height; the fifth is padded like the first


def recorded(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FIXTURES / "evaluation" / f"{name}.json.gz").read_bytes()))


def evaluate(arguments: list[str]) -> int:
    """The exit code of `glip evaluate`."""
    return main(["evaluate", *arguments])
