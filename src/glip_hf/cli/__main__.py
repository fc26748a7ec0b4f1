# Copyright 2026 The glip_hf authors. MIT licence.
"""`python -m glip_hf.cli`, where the package is importable but not installed."""

from . import program

program()
