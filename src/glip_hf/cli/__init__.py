# Copyright 2026 The glip_hf authors. MIT licence.
"""The command `glip`, one module per subcommand.

Exit codes: 0 success; 1 the request could not be carried out (no such image, no such model); 2 wrong usage. Errors in
the user's input go to stderr and name the value and the remedy. Results go to stdout, notes and progress to stderr, so
that `--json` can be piped.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from . import quick  # isort: skip  # the first, so that its exit handler is the last
from .. import __version__
from .._program import USAGE, run_program
from . import check_data, convert, demo, evaluate_options, export, ground, info, restore
from .common import UsageError

# Each has `HELP`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`, which returns the exit code
COMMANDS = {
    "ground": ground,
    "demo": demo,
    "convert": convert,
    "restore": restore,
    "info": info,
    "evaluate": evaluate_options,
    "check-data": check_data,
    "export": export,
}


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help that cannot be written is an error, which argparse passes over."""
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif code := run_program(self.prog, lambda: print(message, end="", file=file, flush=True)):
            self.exit(code)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `glip` and its subcommands; `run` of the parsed arguments carries the subcommand out."""
    parser = _Parser(prog="glip", description="Ground any phrase in any image.")
    parser.add_argument("--version", action="version", version=f"glip_hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION, formatter_class=raw)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return _run(*build_parser().parse_known_args(argv))


def program() -> NoReturn:
    """The command `glip`: `main` in a process of its own, which starts and ends faster than a user's would."""
    arguments, extra = build_parser().parse_known_args()
    quick.begin(arguments.command)
    quick.end(_run(arguments, extra))


def _run(arguments: argparse.Namespace, extra: list[str]) -> int:
    command = arguments.command

    def run() -> int:
        # argparse accepts one unbroken run of positional arguments: names after an option end up in `extra`.
        if extra and (command != "ground" or any(word.startswith("-") for word in extra)):
            raise UsageError(f"unrecognized arguments: {' '.join(extra)}; see glip {command} --help")
        if extra:
            arguments.words += extra
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
            return arguments.run(arguments)

    hint = "; the same command resumes it" if command == "evaluate" else ""
    return run_program(f"glip {command}", run, hint=hint)
