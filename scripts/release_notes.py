# Copyright 2026 The glip_hf authors. MIT licence.
"""Print the notes of one release: its section of CHANGELOG.md, without the heading.

    python scripts/release_notes.py 0.1.0 > notes.md
    python scripts/release_notes.py Unreleased

A version without a section, or whose section is empty, is an error that names the versions that have one.
"""

import argparse
import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"
HEADING = re.compile(r"^## \[?([^\s\]]+)\]?.*\n", re.MULTILINE)


def release_notes(changelog: str, version: str) -> str:
    """The section of `version` ("Unreleased" is one) of a changelog in the format of keepachangelog.com, as Markdown.

    Headings without an entry are left out.

    Raises:
        ValueError: if there is no such section, if there are two, or if it has no entry.
    """
    _, *parts = HEADING.split(changelog)
    names, sections = parts[::2], parts[1::2]
    if names.count(version) != 1:
        raise ValueError(f"{names.count(version)} sections for {version} in the changelog; it has: {', '.join(names)}")
    groups = re.split(r"^(?=### )", sections[names.index(version)], flags=re.MULTILINE)
    entries = [group.strip() for group in groups if re.search(r"^[-*] \S", group, re.MULTILINE)]
    if not entries:
        raise ValueError(f"the section of {version} in the changelog is empty: write down what changed")
    return "\n\n".join(entries) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the notes of one release from CHANGELOG.md.")
    parser.add_argument("version", help='a version, such as 0.1.0, or "Unreleased"')
    parser.add_argument("--changelog", type=Path, default=CHANGELOG, help="another file in the same format")
    options = parser.parse_args(arguments)
    try:
        print(release_notes(options.changelog.read_text(encoding="utf-8"), options.version.removeprefix("v")), end="")
    except (OSError, ValueError) as error:
        print(f"release_notes.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
