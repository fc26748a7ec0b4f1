# Copyright 2026 The glip_hf authors. MIT licence.
"""Code in an interpreter of its own, for what only a fresh one shows. Each costs seconds: see `forked` for scripts."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# A quarter of the time of the imports, and a second of the end, which takes all modules apart.
BEGIN, END = "import gc\ngc.disable()\n", "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"


def python(
    code: str,
    *arguments: str | Path,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """What the code prints, without the white space around; it ends at once, without the handlers of an exit.
    `environment` is the whole of it, as for `subprocess.run`.

    Raises:
        AssertionError: with both its outputs, if it fails.
    """
    done = subprocess.run(
        [sys.executable, *flags, "-c", BEGIN + code + END, *map(str, arguments)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
