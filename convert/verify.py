#!/usr/bin/env python
# Copyright 2026 The glip_hf authors. MIT licence.
"""Compares a converted model with recorded tensors of the original implementation, stage by stage.

    python convert/verify.py out/small ../shared/parity/small_inference/b1

The model must carry the weights the case was recorded with. Exit code 0 if every stage is within
tolerance, 1 if not.
"""

import argparse
import sys
from pathlib import Path

try:
    import glip_hf  # noqa: F401
except ImportError:  # run from a checkout without installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from parity.harness import compare_case, format_table, load_case

from glip_hf import GlipForGrounding
from glip_hf.conversion import model_directory


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model directory or Hub id")
    parser.add_argument("cases", nargs="+", help="CASE.json (its CASE.safetensors beside it)")
    parser.add_argument("--images", help="folder of the images (default: ../images beside the case's folder)")
    parser.add_argument("--attention", default=None, help="attn_implementation: eager or sdpa")
    parser.add_argument("--only-failed", action="store_true", help="list only what is out of tolerance")
    options = parser.parse_args(arguments)
    try:
        model = GlipForGrounding.from_pretrained(
            model_directory(options.model), dtype=torch.float32, attn_implementation=options.attention
        ).eval()
        passed = True
        for path in options.cases:
            case = load_case(path, ".", options.images)
            rows = compare_case(model, case)
            if not rows:
                raise ValueError(f"{path} records nothing that could be compared.")
            passed &= all(row.passed for row in rows)
            print(f"{path}\n{format_table(rows, only_failed=options.only_failed)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
