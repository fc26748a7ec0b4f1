# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip restore`: a model directory back to an original checkpoint."""

import argparse

from .common import model_name

HELP = "converted or trained model back to an original checkpoint"
DESCRIPTION = """\
Write a converted or trained model as a .pth that the original code loads; see convert/README.md.
With the conversion.json of its conversion every tensor comes back bit for bit."""

LAYOUTS = ("recorded", "plain", "model", "model-module")
"""`conversion.WRAPPING_CHOICES`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=model_name, metavar="DIR|HUB", help="model directory or Hub id")
    add("output", metavar="PTH", help="file to write")
    add("--wrap", choices=LAYOUTS, default="recorded", help="what is around the weights (%(default)s)")
    add("--force", action="store_true", help="overwrite the file")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from ..conversion import restore_checkpoint

    logging.disable_progress_bar()  # loading weights takes seconds
    path = restore_checkpoint(arguments.model, arguments.output, wrapping=arguments.wrap, force=arguments.force)
    print(f"-> {path}")
    return 0
