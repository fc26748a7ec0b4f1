# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip info`: variant, sizes and configuration of a model."""

import argparse
import json

from .common import model_name

HELP = "variant, sizes and configuration of a model"
DESCRIPTION = """\
Describe a converted model (directory or Hub id) or an original checkpoint.
No weights are loaded, and nothing in a checkpoint is executed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=model_name, metavar="DIR|HUB|PTH", help="`demo` is the model of the package")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from .. import kernels
    from ..inspection import describe
    from .common import choose_device

    facts = describe(arguments.source)
    config = facts.pop("config")
    device = choose_device("auto")
    facts["dtype_auto"] = f"{kernels.fastest_dtype(device)} on {device.type}".removeprefix("torch.")
    if arguments.json:
        print(json.dumps({**facts, "config": config}, ensure_ascii=False))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {count:,}" for part, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name.replace('_', ' ') + ':':22}{'-' if value in (None, '') else value}")
    print("config:")
    print("\n".join(f"  {line}" for line in json.dumps(config, indent=2).splitlines()))
    return 0
