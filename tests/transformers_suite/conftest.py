# Copyright 2026 The glip_hf authors. MIT licence.
"""Repeatable inputs, and a report that ends with every reason for a skip."""

import os
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed_inputs() -> None:
    """The suites draw their inputs from all three generators; tests/conftest.py seeds PyTorch's."""
    random.seed(0)
    np.random.seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """No progress letter for each of ten thousand subtests that pass; what they skip is counted below."""
    if isinstance(report, pytest.SubtestReport) and report.passed:
        return "subtests passed", "", ""
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if "TRANSFORMERS_SUITES" not in os.environ:
        return
    reports = [*terminalreporter.stats.get("skipped", []), *terminalreporter.stats.get("subtests skipped", [])]
    reasons = Counter(re.sub("^Skipped: ", "", report.longrepr[2]) for report in reports)
    terminalreporter.section("skips by reason")
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"{number:4d}  {reason}")
