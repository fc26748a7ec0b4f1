#!/usr/bin/env python
# Copyright 2026 The glip_hf authors. MIT licence.
"""Writes a converted or trained GLIP back as a .pth that the original code loads.

    python convert/convert_hf_to_glip.py out/glip-tiny-goldg back.pth

With the conversion.json of the conversion every tensor of the source comes back bit for bit, in its
order; without it the standard layout is written. Exit code 0 if written, 1 with a message if not.
"""

import argparse
import sys
from pathlib import Path

try:
    import glip_hf  # noqa: F401
except ImportError:  # run from a checkout without installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from glip_hf.conversion import WRAPPING_CHOICES, restore_checkpoint


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model directory or Hub id")
    parser.add_argument("output", help=".pth to write")
    parser.add_argument("--wrap", choices=WRAPPING_CHOICES, default="recorded", help="layout (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    options = parser.parse_args(arguments)
    try:
        path = restore_checkpoint(options.model, options.output, wrapping=options.wrap, force=options.force)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"-> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
