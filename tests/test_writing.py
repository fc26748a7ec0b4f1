"""Files and directories that are written whole or not at all, whatever the disk says."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from glip_hf._writing import NotWrittenError, patient_file, replacing, replacing_text
from glip_hf.data.cache import TableWriter, convert_once

LARGE = torch.zeros(500_000)


def with_torch(path: Path) -> None:
    with patient_file(path) as file:
        torch.save({"large": LARGE}, file)


def with_torch_by_name(path: Path) -> None:
    torch.save({"large": LARGE}, path)


def with_export(path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(700, 700), (torch.zeros(1, 700),))
    with patient_file(path) as file:
        torch.export.save(program, file)


def with_pillow(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)).save(path, "PNG")


def into_a_directory(path: Path) -> None:
    path.mkdir()
    (path / "first.json").write_text("{}")
    save_file({"large": LARGE}, path / "model.safetensors")


WRITERS = [
    with_torch,
    with_torch_by_name,
    with_export,
    with_pillow,
    into_a_directory,
    lambda path: save_file({"large": LARGE}, path),
    lambda path: path.write_text("x" * 2_000_000),
]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 MB; a full disk fails at the same calls."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("existing", [False, True])
def test_what_does_not_fit_leaves_nothing(write, existing: bool, tmp_path: Path, small_files: None) -> None:
    output = tmp_path / "deep" / "out.bin"
    if existing:
        output.parent.mkdir()
        output.write_text("earlier")
    with pytest.raises(NotWrittenError, match="out.bin cannot be written: .* Make room, or name another place"):
        with replacing(output) as path:
            write(path)
    assert [item.name for item in output.parent.iterdir()] == (["out.bin"] if existing else [])
    assert not existing or output.read_text() == "earlier"


@pytest.mark.parametrize("write", [with_torch, with_export, with_pillow, into_a_directory])
def test_what_fits_takes_the_place(write, tmp_path: Path) -> None:
    output = tmp_path / "out.bin"
    for _ in range(2):
        with replacing(output) as path:
            write(path)
    assert [item.name for item in tmp_path.iterdir()] == ["out.bin"]
    if write is with_torch:
        assert torch.equal(torch.load(output)["large"], LARGE)


def test_the_cache_of_annotations_is_whole_or_absent(tmp_path: Path, small_files: None) -> None:
    def build(writer: TableWriter) -> dict[str, str]:
        writer.write(pa.table({"text": [str(number) * 20 for number in range(100_000)]}))
        return {"file": "annotations.json"}

    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(NotWrittenError, match="name another cache folder in GLIP_DATA_CACHE"):
        convert_once("a", [tmp_path / "annotations.json"], {}, build, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("a shape"), KeyError("x"), FileNotFoundError("other.json"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing_text(tmp_path / "out.txt") as file:
            file.write("half")
            raise error
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWrittenError, match="file/out.txt cannot be written: (Not a directory|File exists)"):
        with replacing_text(tmp_path / "file" / "out.txt"):
            pass


def test_a_pipe_is_written_into(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        with replacing_text(tmp_path / "pipe") as file:
            file.write("found")
        assert read.result() == "found"
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_a_full_device_is_an_error_and_stays_a_device(tmp_path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(NotWrittenError, match="No space left"), replacing_text(tmp_path / "full") as file:
        file.write("found")
    assert (tmp_path / "full").is_symlink() and not os.path.isfile("/dev/full")


def test_what_a_link_leads_to_is_replaced(tmp_path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with replacing_text(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_writers_see_the_suffix_of_a_link(tmp_path) -> None:
    (tmp_path / "blob").touch()
    (tmp_path / "link.png").symlink_to("blob")
    with replacing(tmp_path / "link.png") as new:
        assert new.suffix == ".png"
        new.write_text("new")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "blob").read_text() == "new"


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_stdout_that_is_a_file_keeps_what_is_before_and_after(tmp_path, mode) -> None:
    code = "from glip_hf._writing import check_place, replacing_text\nprint('before', flush=True)\n"
    code += "check_place('/dev/stdout')\nwith replacing_text('/dev/stdout') as file:\n    file.write('found\\n')\n"
    code += "print('after')"
    (tmp_path / "log").write_text("earlier\n")
    with open(tmp_path / "log", mode) as log:
        log.seek(0, os.SEEK_END)
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text().split() == ["earlier", "before", "found", "after"]


def test_no_file_replaces_a_directory(tmp_path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "kept").touch()
    with pytest.raises(NotWrittenError, match="Is a directory"), replacing_text(tmp_path / "directory") as file:
        file.write("new")
    assert (tmp_path / "directory" / "kept").is_file() and len(list(tmp_path.iterdir())) == 1
