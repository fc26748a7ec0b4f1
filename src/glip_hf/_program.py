# Copyright 2026 The glip_hf authors. MIT licence.
"""How a program ends: with its result, or with one line and an exit code, whatever happened."""

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from ._launch import follow_launcher
from .values_glip import escape

OK, FAILURE, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# Parts of what PyTorch says in a process whose partner ended
SECONDARY = ("closed by peer", "reset by peer", "gloo/", "NCCL", "Broken pipe", "recvValue failed")


class _Escaping:
    """A text stream that no control character reaches: text of files and users cannot command the terminal."""

    def __init__(self, stream: TextIO, keep: str) -> None:
        self._stream, self._keep = stream, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        is_move = not text.replace("\x1b[A", "").strip("\n")  # of progress bars, to the one above
        self._stream.write(text if is_move else escape(text, self._keep))
        return len(text)


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, so that what is half-written is removed."""


def run_program(name: str, function: Callable[[], int | None], hint: str = "") -> int:
    """Call a function that prints its result, and end in order: errors become one line on stderr.

    An error whose class has an `exit_code` ends the program with it, others with 1.

    Args:
        name: of the program, which begins the line.
        function: returns an exit code, or None for success.
        hint: what to do after an interruption.

    Returns:
        The exit code.
    """
    follow_launcher()  # first of all: what follows imports for seconds
    if sys.stderr is None:  # closed
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        print(f"{name}: standard output is closed, there is no place for the result", file=sys.stderr)
        return FAILURE
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a class name, not every terminal shows every character
        sys.stdout.reconfigure(errors="backslashreplace")
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Escaping(sys.stdout, "\n\t"), _Escaping(sys.stderr, "\n\t\r")
    try:
        with _terminable():
            code = function() or OK
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, `head` for example, has seen enough
        _drop_output()
        return OK
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        print(f"{name}: {'terminated' if terminated else 'interrupted'}{hint}", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except Exception as error:
        if (message := explain(error)) is None:
            traceback.print_exc()
        else:
            print(f"{name}: {message}", file=sys.stderr)
        _drop_output()
        return getattr(error, "exit_code", FAILURE)
    finally:
        sys.stdout, sys.stderr = streams


def explain(error: Exception) -> str | None:
    """The message of an error that input, disk, memory or another process caused; None for a defect of the program."""
    message = str(error).strip() or type(error).__name__
    if "DataLoader worker process" in message:  # followed by the worker's traceback, whose end is the error
        message = re.split(r"\n[\w.]+: ", message)[-1].strip()
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return f"out of memory ({message.splitlines()[0]}): use smaller batches or images"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(__package__):
        package = error.name.partition(".")[0]
        return f"this needs {package}: pip install {package}, or the extra that has it (README.md, Install)"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RuntimeError):
        if any(part in message for part in SECONDARY):
            return f"another process of this run ended, and so does this one ({message.splitlines()[0][:100]})"
        if message.startswith("DataLoader worker ("):
            return f"a loader process died ({message.splitlines()[0]}), maybe for lack of memory: use fewer workers"
    ours = type(error).__module__.partition(".")[0] == __package__
    return message if ours or isinstance(error, ValueError | OSError | ImportError) else None


def leave(code: int) -> NoReturn:
    """End the process; after an error at once, since a broken process group or a thread may hold the regular exit."""
    if code:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`, unless the program handles it in another way."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drop_output() -> None:
    """What cannot be written any more shall not fail again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
