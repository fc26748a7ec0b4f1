#!/usr/bin/env python
# Copyright 2026 The glip_hf authors. MIT licence.
"""Writes a converted or trained GLIP back as the .pth that it came from, of the original code or of mmdetection.

    python convert/convert_hf_to_glip.py out/glip-tiny-goldg back.pth

With the conversion.json of the conversion every tensor of the source comes back bit for bit, in its
order; without it the standard layout is written. The same as `glip restore`; exit code 0 if written, 1 with a message
if not.
"""

import sys
from pathlib import Path

try:
    import glip_hf  # noqa: F401
except ImportError:  # run from a checkout without installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from glip_hf.cli import main as glip


def main(arguments: list[str] | None = None) -> int:
    return glip(["restore", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
