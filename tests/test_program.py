"""A program ends with its result, or with one line and an exit code."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glip_hf._program import explain, run_program
from glip_hf.cli import main
from glip_hf.data.broken import TooManyBrokenImages
from glip_hf.image_processing_pil_glip import UnreadableImage
from glip_hf.training.loop import NonFiniteLossError
from glip_hf.training.recipe import RecipeError

WORKER_ERROR = (
    "Caught ValueError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
    '  File "x.py", line 1, in f\n    raise ValueError("ValueError: x")\nValueError: a: image 7 is cut\n'
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("a value"), 1, "a value"),
        (RecipeError("an option"), 2, "an option"),
        (ValueError(WORKER_ERROR), 1, "a: image 7 is cut"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1, "out: No space left on device"),
        (NonFiniteLossError("the loss is not finite"), 1, "the loss is not finite"),
        (TooManyBrokenImages("101 images"), 1, "101 images"),
        (ImportError("pip install x"), 1, "pip install x"),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), 1, "this needs a: pip install a"),
        (MemoryError(), 1, "out of memory (MemoryError): use smaller batches or images"),
        (RuntimeError("CUDA out of memory. Tried\nx"), 1, "out of memory (CUDA out of memory. Tried): use smaller"),
        (RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), 1, "another process of this run ended, and so"),
        (RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. "), 1, "a loader process died (DataLo"),
        (KeyboardInterrupt(), 130, "interrupted; go on"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, said: str, capsys) -> None:
    def function() -> int:
        raise error

    assert run_program("it", function, hint="; go on") == code
    out, err = capsys.readouterr()
    assert err.startswith(f"it: {said}") and err.count("\n") == 1 and not out


@pytest.mark.parametrize("name", ["glip_hf.image_processing_pil_glip.UnreadableImage", "ValueError"])
def test_errors_of_loader_workers_are_their_last_line(name: str) -> None:
    traceback = f'Original Traceback (most recent call last):\n  File "a.py", line 1, in b\n{name}: no image: a.png\n'
    error = UnreadableImage(f"Caught UnreadableImage in DataLoader worker process 0.\n{traceback}")
    assert explain(error) == "no image: a.png"


def test_a_defect_keeps_its_traceback(capsys) -> None:
    assert explain(RuntimeError("a shape")) is None and explain(TypeError("x")) is None
    assert run_program("it", lambda: [][0]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_is_an_orderly_end(tmp_path: Path, capsys) -> None:
    def function() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            (tmp_path / "cleaned").touch()

    assert run_program("it", function) == 143
    assert capsys.readouterr().err == "it: terminated\n" and (tmp_path / "cleaned").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_output_that_no_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    assert run_program("it", lambda: print("café \udce9 \N{CAT}")) == 0
    assert raw.getvalue() == b"caf\\xe9 \\udce9 \\U0001f408\n"


def test_closed_output_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    worked = []
    assert run_program("it", lambda: worked.append(1)) == 1 and not worked
    assert "standard output is closed" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_program("it", lambda: print("x")) == 1
        assert "No space left on device" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_program("it", lambda: print("x")) == 0
    assert not capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["ground", "--help"], ["--version"]])
def test_help_on_a_full_output_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            main(arguments)
    assert end.value.code == 1 and "No space left on device" in capsys.readouterr().err


def test_the_command_line_ends_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("glip_hf.cli.info.run", lambda arguments: 1 / 0)
    assert main(["info", "x"]) == 1 and "ZeroDivisionError" in capsys.readouterr().err
    assert main(["info", "x", "--unknown"]) == 2 and "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("output", [">&-", "> /dev/full", "2>&- >&-"])
def test_real_outputs(output: str) -> None:
    command = f"{sys.executable} -m glip_hf.cli info src/glip_hf/assets/glip-scenes {output}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1


def test_control_sequences_do_not_reach_the_terminal(capsys) -> None:
    name = "cat\x1b]0;title\x07\x9b31m\r\u202edog\ud800"

    def function() -> int:
        print(name, json.dumps([name], ensure_ascii=False), "日本語\t|")
        print("10%\r20%\x1b[A", file=sys.stderr)
        sys.stderr.write("\n\x1b[A")  # as progress bars do
        raise ValueError(f"no {name}")

    assert run_program("it", function) == 1
    out, err = capsys.readouterr()
    escaped = r"cat\u001b]0;title\u0007\u009b31m\u000d\u202edog\ud800"
    assert out.startswith(f"{escaped} [") and out.endswith("日本語\t|\n")
    assert json.loads(out[len(escaped) : out.rindex("]") + 1]) == [name]
    assert err.startswith("10%\r20%\\u001b[A\n\n\x1b[A") and r"it: no cat\u001b]0;title\u0007\u009b31m" in err
