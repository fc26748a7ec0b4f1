# Copyright 2026 The glip_hf authors. MIT licence.
"""Every code block of README.md runs, in order, in one directory, as a reader would run it.

The stand-ins: `photo.jpg` is our photo, and `glip_tiny_model_o365_goldg.pth` is the demonstration
model in the original's format, for which the converter needs to be told sizes and vocabulary.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_glip import PHOTO, random_model

from glip_hf.conversion.weight_map import to_original
from glip_hf.demo import ASSETS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
IN_CI = "<!-- run by .ci/run in a fresh environment -->"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKPOINT = "glip_tiny_model_o365_goldg.pth"


def blocks() -> list[tuple[str, str]]:
    """(language, code) of each block that is run here."""
    found = []
    for match in BLOCK.finditer(README):
        if README[: match.start()].rstrip().endswith(IN_CI):
            continue
        assert match[1] in ("python", "bash"), f"a block of {match[1] or 'no language'} is run by nobody"
        found.append((match[1], match[2]))
    return found


@pytest.fixture(scope="module")
def readers_directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    shutil.copy(PHOTO, path / "photo.jpg")
    for name in ("convert", "examples"):
        (path / name).symlink_to(ROOT / name)
    model = random_model()
    torch.save({"model": to_original(model.state_dict(), model.config.anchor_scale)}, path / CHECKPOINT)
    model.config.save_pretrained(path / "sizes")
    return path


def test_there_are_blocks_and_ci_runs_the_rest() -> None:
    assert {language for language, _ in blocks()} == {"python", "bash"}
    assert README.count(IN_CI) == 1
    assert IN_CI in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_every_block_runs(readers_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_directory)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT / "src")}
    namespace: dict = {}
    for language, code in blocks():
        if language == "python":
            exec(compile(code, "README.md", "exec"), namespace)
            continue
        small = f"{CHECKPOINT} --config sizes --tokenizer {ASSETS / 'vocab.txt'}"
        script = code.replace(f"{CHECKPOINT} ", f"{small} ")
        if shutil.which("glip", path=environment["PATH"]) is None:  # the package is on the path, not installed
            script = re.sub(r"^glip ", f"{sys.executable} -m glip_hf.cli ", script, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (readers_directory / "annotated.png").is_file()


def test_relative_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_checkpoints_in_the_table_are_presets() -> None:
    from glip_hf.configuration_glip import PRESETS

    named = re.findall(r"^\| `(glip_\w+)`", README, re.MULTILINE)
    assert named and set(named) <= set(PRESETS)
