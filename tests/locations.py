"""Where the tests' data lie."""

import os
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"

SHARED = Path(os.environ.get("GLIP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
"""Recorded reference data beside the project; may be absent."""
