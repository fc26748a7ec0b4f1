# Copyright 2026 The glip_hf authors. MIT licence.
"""What a release consists of: one version, notes, a citation, and a workflow that runs what CI runs."""

import re
from pathlib import Path

import pytest
import yaml

import glip_hf
from scripts.release_notes import CHANGELOG, main, release_notes

ROOT = Path(__file__).resolve().parents[1]
LOG = """# Changelog

## Unreleased

### Added

### Fixed

- Two
  lines.

## [0.2.0] - 2026-12-01

### Added

- A.

### Changed

* B, see ## 7.

## 0.1.0
"""


def test_notes_are_the_section_of_the_version() -> None:
    assert release_notes(LOG, "0.2.0") == "### Added\n\n- A.\n\n### Changed\n\n* B, see ## 7.\n"
    assert release_notes(LOG, "Unreleased") == "### Fixed\n\n- Two\n  lines.\n"


@pytest.mark.parametrize(
    "log, version, said",
    [
        (LOG, "0.1.0", "section of 0.1.0 in the changelog is empty"),
        (LOG, "0.2", "0 sections for 0.2 in the changelog; it has: Unreleased, 0.2.0, 0.1.0"),
        (LOG + LOG, "0.2.0", "2 sections for 0.2.0"),
        ("", "0.2.0", "0 sections"),
    ],
)
def test_a_version_without_notes_is_refused(log: str, version: str, said: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match=said):
        release_notes(log, version)
    (tmp_path / "log.md").write_text(log)
    assert main([f"v{version}" if version[0].isdigit() else version, "--changelog", str(tmp_path / "log.md")]) == 1
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1


def test_our_changelog_has_notes(capsys) -> None:
    assert main(["Unreleased"]) == 0
    notes = capsys.readouterr().out
    assert notes.startswith("### ") and notes.rstrip() in CHANGELOG.read_text(encoding="utf-8")


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == glip_hf.__version__ and citation["license"] == "MIT"
    assert not re.search(r"^version = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert 'path = "src/glip_hf/__init__.py"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in commands
