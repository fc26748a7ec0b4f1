"""Run folders: one owner at a time, a manifest, and no second run over the first."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from glip_hf.runs import FolderLock, Manifest, RunFolderError, claim, file_digest, on_main, read_manifest, sizes_digest

MADE = ("results/part_?", "final")
FIRST = Manifest("training", {"seed": 0, "optimizer.lr": 1e-4}, {"data": "a" * 64}, {"torch": "2", "processes": 2})


def begin(folder: Path, manifest: Manifest = FIRST, resume: bool = False, overwrite: bool = False) -> Manifest | None:
    lock, before = claim(folder, manifest, MADE, resume=resume, overwrite=overwrite)
    lock.release()
    return before


@pytest.fixture
def used(tmp_path: Path) -> Path:
    begin(tmp_path / "out")
    (tmp_path / "out" / "results").mkdir()
    (tmp_path / "out" / "results" / "part_1").write_text("hours of work")
    (tmp_path / "out" / "mine.txt").write_text("of the user")
    return tmp_path / "out"


def test_a_folder_without_results_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "slurm-1.log").write_text("")
    assert begin(tmp_path / "out") is None
    assert begin(tmp_path / "out", replace(FIRST, settings={"seed": 1})) is None  # the first made nothing
    assert read_manifest(tmp_path / "out").settings == {"seed": 1}


def test_a_used_folder_is_refused_resumed_or_replaced(used: Path) -> None:
    with pytest.raises(RunFolderError, match=r"earlier run \(results/part_1\).*--resume latest.*--overwrite.*--output"):
        begin(used)
    assert begin(used, resume=True) == FIRST
    assert begin(used, overwrite=True) is None
    assert not list((used / "results").iterdir()) and (used / "mine.txt").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(FIRST, settings=FIRST.settings | {"seed": 1}), "with seed=0, this one has 1: give"),
        (replace(FIRST, settings={"seed": 0}), "optimizer.lr=0.0001, this one has None"),
        (replace(FIRST, inputs={"data": "b" * 64}), r"data \(file\) of another content than this one"),
        (replace(FIRST, inputs={}), "data=file, this one has None"),
        (replace(FIRST, inputs={"data": ["a.json", "b" * 64]}), "data=file, this one has a.json"),
        (replace(FIRST, kind="evaluation"), "the purpose training, this one has evaluation"),
        (replace(FIRST, settings=FIRST.settings | {"seed": "\x1b[2J" + "x" * 10**7}), r"this one has \\u001b\[2Jxxx"),
        (replace(FIRST, settings={str(n): n for n in range(99)}), "and 98 more"),
    ],
)
def test_other_settings_or_inputs_are_refused_by_name(used: Path, changed: Manifest, named: str) -> None:
    before = {path: path.read_bytes() for path in used.rglob("*") if path.is_file() and path.name != "run.lock"}
    with pytest.raises(RunFolderError, match=named) as error:
        begin(used, changed, resume=True)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in before}


def test_the_same_content_under_another_name_is_the_same(used: Path) -> None:
    assert begin(used, replace(FIRST, inputs={"data": ["moved/data.json", "a" * 64]}), resume=True) == FIRST


def test_another_environment_is_told_and_no_obstacle(used: Path) -> None:
    now = replace(FIRST, environment={"torch": "3", "processes": 2})
    assert begin(used, now, resume=True).notes(now) == ["torch 2 (now 3)"]


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", "5", '{"format": 1}', "[" * 100_000, "\x00\xff", json.dumps(FIRST.as_json() | {"more": 1}),
     json.dumps(FIRST.as_json() | {"format": 2}), json.dumps(FIRST.as_json() | {"settings": []})],
    ids=range(11),
)  # fmt: skip
def test_a_damaged_manifest_is_named(used: Path, text: str) -> None:
    (used / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"run\.json is damaged.*--overwrite") as error:
        begin(used, resume=True)
    assert len(str(error.value)) < 600
    begin(used, overwrite=True)


def test_a_folder_of_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Also where nothing of this kind is in it yet, and with --overwrite: its manifest would be lost."""
    begin(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="the purpose training, this one has evaluation: choose another"):
            begin(tmp_path, replace(FIRST, kind="evaluation"), resume=True, overwrite=overwrite)
    assert read_manifest(tmp_path) == FIRST


def test_a_run_of_an_older_version_is_not_resumed(used: Path) -> None:
    (used / "run.json").unlink()
    with pytest.raises(RunFolderError, match="older glip_hf.*--overwrite"):
        begin(used, resume=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/nowhere")):
        with pytest.raises(RunFolderError, match=f"{folder} cannot be written to .*: choose another"):
            begin(folder)


HOLDER = """
import os, sys, time
from glip_hf.runs import FolderLock
FolderLock(sys.argv[1])
if os.fork() == 0:  # a worker of a data loader, which outlives its killed parent for a while
    time.sleep(5)
else:
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_living_process_is_refused_and_that_of_a_dead_one_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            pid = int(holder.stdout.readline())
            with pytest.raises(RunFolderError, match=f"in use by process {pid} on .*since.*choose another"):
                FolderLock(tmp_path)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        lock = FolderLock(tmp_path)
        with pytest.raises(RunFolderError, match="in use by this process"):
            FolderLock(tmp_path)
        lock.release()
        lock.release()
        FolderLock(tmp_path).release()


def test_every_process_raises_what_the_main_one_found() -> None:
    heard = []

    def fail() -> None:
        raise RunFolderError("taken")

    with pytest.raises(RunFolderError, match="taken"):
        on_main(fail, True, lambda value: heard.append(value) or value)
    assert heard == ["taken"]
    with pytest.raises(RunFolderError, match="taken"):
        on_main(fail, False, lambda value: "taken")
    assert on_main(lambda: 5, True, lambda value: value) == 5
    assert on_main(lambda: 5, False, lambda value: None) is None


def test_digests_follow_content_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * 3000)
    second.write_bytes(b"x" * 3000)
    os.utime(second, (0, 0))
    assert file_digest(first) == file_digest(second)
    for change in (b"y" + b"x" * 2999, b"x" * 2999 + b"y", b"x" * 2999):
        second.write_bytes(change)
        assert file_digest(second) != file_digest(first)
    assert sizes_digest([first]) != sizes_digest([second]) != sizes_digest([second, tmp_path / "none"])
