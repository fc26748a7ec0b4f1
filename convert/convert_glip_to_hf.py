#!/usr/bin/env python
# Copyright 2026 The glip_hf authors. MIT licence.
"""Converts a GLIP checkpoint, original or of mmdetection, to a directory that `GlipForGrounding.from_pretrained` reads.

    python convert/convert_glip_to_hf.py glip_tiny_model_o365_goldg.pth out/glip-tiny-goldg --tokenizer vocab.txt

The same as `glip convert`; see convert/README.md. Exit code 0 if converted, 1 with a message if not.
"""

import sys
from pathlib import Path

try:
    import glip_hf  # noqa: F401
except ImportError:  # run from a checkout without installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from glip_hf.cli import main as glip


def main(arguments: list[str] | None = None) -> int:
    return glip(["convert", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
