# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip convert`: an original checkpoint to a model directory."""

import argparse
import sys

HELP = "original checkpoint to a directory that from_pretrained loads"
DESCRIPTION = """\
Convert an original GLIP checkpoint to a model directory; see convert/README.md.
The variant is recognised from the tensors, and nothing in the file is executed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="PTH", help="original checkpoint, in any wrapping")
    add("output", metavar="DIR", help="directory to write")
    add("--tokenizer", metavar="DIR|VOCAB|HUB", help="tokenizer (default: bert-base-uncased from the Hub)")
    add("--config", metavar="FILE", help="config for sizes that were not released")
    add("--ema", action="store_true", help="take the moving average of the weights")
    add("--force", action="store_true", help="replace an earlier conversion")
    add("--max-shard-size", metavar="SIZE", help="largest weight file (default: 1GB)")
    add("--push-to-hub", metavar="USER/NAME", help="upload the result")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from ..conversion import convert_checkpoint, push_to_hub

    logging.disable_progress_bar()  # loading and saving weights takes seconds
    names = ("tokenizer", "config", "ema", "force", "max_shard_size")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    result = convert_checkpoint(arguments.checkpoint, arguments.output, **given)
    record = result.record
    print(f"{record.source_name}: {record.family or 'own size'}, {record.dtype}, sha256 {record.source_sha256}")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"-> {result.directory}")
    if arguments.push_to_hub:
        print(f"-> {push_to_hub(result.directory, arguments.push_to_hub)}")
    return 0
