# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip restore`: `glip convert --to` the layout that a model came from."""

import argparse

from .common import model_name
from .convert import add_writing_arguments, write_back

HELP = "a model back to the checkpoint that it came from: glip convert --to"
DESCRIPTION = """\
Write a converted or trained model back as the checkpoint that it came from: `glip convert MODEL PTH --to LAYOUT`.
With the conversion.json of its conversion every tensor comes back bit for bit."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=model_name, metavar="DIR|HUB", help="model directory or Hub id")
    parser.add_argument("output", metavar="PTH", help="file to write")
    add_writing_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return write_back(arguments, arguments.model)
