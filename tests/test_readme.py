# Copyright 2026 The glip_hf authors. MIT licence.
"""Every code block of README.md runs, in order, in one directory, as a reader would run it.

What stands in for a reader's files: `photo.jpg` is the test image, and `glip_tiny_model_o365_goldg.pth` a small random
model in the original's format, for which the converter needs to be told sizes and vocabulary. Blocks that begin with a
comment `<!-- run by ... -->` run elsewhere, which is checked here.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_glip import PHOTO, random_model, save_random_model
from test_examples import RUNS

from glip_hf.conversion.weight_map import to_original
from glip_hf.demo import ASSETS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "run by .ci/run in a fresh environment"
COMMANDS = "both run by .ci/run"
EXAMPLES = "run with small data by tests/test_examples.py"
BLOCK = re.compile(r"^(?:<!-- ([^>]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKPOINT = "glip_tiny_model_o365_goldg.pth"


def blocks(run_by: str = "") -> list[tuple[str, str]]:
    """(language, code) of each block that runs here, or in another place."""
    found = [match.groups("") for match in BLOCK.finditer(README)]
    assert {marker for marker, _, _ in found} == {"", INSTALL, COMMANDS, EXAMPLES}
    assert {language for _, language, _ in found} == {"python", "bash"}
    return [(language, code) for marker, language, code in found if marker == run_by]


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


def test_ci_runs_the_install_block_and_both_commands() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    ((_, commands),) = blocks(COMMANDS)
    assert len(blocks(INSTALL)) == 1 and f"<!-- {INSTALL} -->" in ci
    for command in ("make demo", "make test"):
        assert command in ci and re.search(f"^{command} ", commands, re.MULTILINE)


def test_examples_run_the_scripts_and_options_of_the_other_blocks() -> None:
    commands = [line for _, code in blocks(EXAMPLES) for line in code.splitlines() if "examples/" in line]
    assert len(commands) == 3
    for command in commands:
        script = re.search(r"examples/\w+\.py", command)[0]
        tested = {argument for arguments in RUNS[script] for argument in arguments}
        assert set(re.findall(r"--[\w-]+", command)) <= tested, command


def test_main_example_in_half_precision(readers_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands: only the loaded model has another dtype."""
    monkeypatch.chdir(readers_directory)
    directory = save_random_model(readers_directory / "random")
    (code,) = [code for _, code in blocks() if "repo_or_dir =" in code]
    code = code.replace('"out/glip-tiny-goldg"', repr(str(directory)))
    code = code.replace("from_pretrained(repo_or_dir).eval()", 'from_pretrained(repo_or_dir, dtype="bfloat16").eval()')
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["outputs"].logits.dtype == namespace["model"].dtype == torch.bfloat16
    assert not namespace["outputs"].logits.requires_grad, "gradients double the memory"
    assert len(namespace["result"]["boxes"])


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


def test_architecture_names_every_module_and_no_other() -> None:
    text, package = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), ROOT / "src" / "glip_hf"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert [name for name in modules | packages if f"`{name}`" not in text] == []
    paths = {name for name in re.findall(r"`([\w/]+(?:\.py|/))`", text)}
    assert [path for path in paths if not (package / path).exists() and not (ROOT / path).exists()] == []


def test_checkpoints_in_the_table_are_presets() -> None:
    from glip_hf.configuration_glip import PRESETS

    named = re.findall(r"^\| `(glip_\w+)`", README, re.MULTILINE)
    assert named and set(named) <= set(PRESETS)
