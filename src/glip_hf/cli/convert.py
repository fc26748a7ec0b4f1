# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip convert`: a checkpoint of the original or of mmdetection to a model directory, and back."""

import argparse
import sys

from .common import UsageError, model_name

HELP = "checkpoint to a directory that from_pretrained loads, and back"
DESCRIPTION = """\
Convert a GLIP checkpoint, of the original or of mmdetection, to a model directory; see convert/README.md.
Layout and variant are recognised from the tensors, and nothing in the file is executed.
With --to a converted or trained model becomes a checkpoint again: in the layout that it came from bit for bit."""

WRAPPINGS = ("recorded", "plain", "model", "model-module")  # `conversion.WRAPPING_CHOICES`
_FORWARD = ("tokenizer", "config", "ema", "ignore", "max_shard_size", "push_to_hub")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="PTH", help="checkpoint, in any wrapping; with --to a model directory or Hub id")
    add("output", metavar="DIR", help="directory to write; with --to a file")
    add("--tokenizer", metavar="DIR|VOCAB|HUB", help="tokenizer (default: bert-base-uncased from the Hub)")
    add("--config", metavar="FILE", help="config for sizes that were not released")
    add("--ema", action="store_true", default=None, help="take the moving average of the weights")
    add("--ignore", metavar="PATTERN", action="append", help="leave out these keys of a fork (repeatable)")
    add("--max-shard-size", metavar="SIZE", help="largest weight file (default: 1GB)")
    add("--push-to-hub", metavar="USER/NAME", help="upload the result")
    add("--to", choices=("original", "mmdet"), help="write a model back, for the original code or for mmdetection")
    add_writing_arguments(parser)


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """`--wrap` and `--force`."""
    parser.add_argument("--wrap", choices=WRAPPINGS, help="on the way back, what is around the weights (recorded)")
    parser.add_argument("--force", action="store_true", help="replace an earlier result")


def run(arguments: argparse.Namespace) -> int:
    given = {name: value for name in _FORWARD if (value := getattr(arguments, name)) is not None}
    if arguments.to is not None:
        if given:
            raise UsageError(f"--{next(iter(given)).replace('_', '-')} does not go with --to")
        return write_back(arguments, model_name(arguments.checkpoint), arguments.to)
    if arguments.wrap is not None:
        raise UsageError("--wrap goes with --to original or --to mmdet")

    from transformers.utils import logging

    from ..conversion import convert_checkpoint, push_to_hub
    from ..conversion.layouts import LAYOUT_NAMES

    logging.disable_progress_bar()  # loading and saving weights takes seconds
    repository = given.pop("push_to_hub", None)
    result = convert_checkpoint(arguments.checkpoint, arguments.output, force=arguments.force, **given)
    record = result.record
    variant = f"{record.family or 'own size'}, {LAYOUT_NAMES[record.layout]}"
    print(f"{record.source_name}: {variant}, {record.dtype}, sha256 {record.source_sha256}")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"-> {result.directory}")
    if repository:
        print(f"-> {push_to_hub(result.directory, repository)}")
    return 0


def write_back(arguments: argparse.Namespace, model: str, to: str | None = None) -> int:
    """Write `model` to the file `arguments.output`, by default in the layout that it came from."""
    from transformers.utils import logging

    from ..conversion import restore_checkpoint

    logging.disable_progress_bar()
    wrapping = arguments.wrap or "recorded"
    print(f"-> {restore_checkpoint(model, arguments.output, to=to, wrapping=wrapping, force=arguments.force)}")
    return 0
