# Copyright 2026 The glip_hf authors. MIT licence.
"""Every script of examples/ and convert/ runs, as its header says, on a small random model."""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from forked import run
from parity.recorded_case import write_case
from random_glip import PHOTO, random_model, save_random_model
from training.coco_images import write_rectangles

from glip_hf.conversion.weight_map import to_original
from glip_hf.demo import VOCABULARY

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("examples", "convert")
QUICK = ["run.evaluate_every=0", "run.trackers=[]", "data.workers=0", "run.checkpoint_every=2"]
COCO = ["--train", "photos/annotations.json", "--images", "photos"]

# script -> command lines to run one after the other in a directory that holds `model/` (a small random model),
# `original.pth` (the same in the original's format), `sizes/` (its config), `photos/` with COCO annotations.json, and
# `pairs.parquet` of images and captions, and `case.json`, recorded from the model itself.
RUNS: dict[str, list[list[str]]] = {
    "examples/ground_photo.py": [
        ["--save", "scene.png"],
        [
            "--model",
            "model",
            "--text",
            "two cats on a pink sofa",
            "--threshold",
            "0",
            "--save",
            "caption.png",
        ],
    ],
    "convert/convert_glip_to_hf.py": [
        [
            "original.pth",
            "converted",
            "--config",
            "sizes",
            "--tokenizer",
            str(VOCABULARY),
        ],
    ],
    "convert/convert_hf_to_glip.py": [["model", "back.pth"]],
    "convert/verify.py": [["model", "case.json"]],
    "examples/pretrain.py": [
        ["--output-dir", "pretrained", "--max-steps", "2", "--set", *QUICK, "data.batch_size=2"],
        ["--output-dir", "pretrained", "--max-steps", "3", "--resume", "latest", "--set", *QUICK, "data.batch_size=2"],
    ],
    "examples/finetune.py": [
        ["--model", "model", *COCO, "--mode", "prompt", "--output-dir", "tuned", "--max-steps", "2"],
    ],
    "examples/evaluate.py": [
        ["coco", "--model", "model", "--annotations", "photos/annotations.json", "--images", "photos", "--output",
         "evaluated", "--limit", "2"],
    ],
    "examples/label_captions.py": [
        ["--teacher", "model", "--input", "pairs.parquet", "--output", "labelled", "--threshold", "0.1"],
    ],
    "examples/label_captions_ray.py": [
        ["--teacher", "model", "--input", "pairs.parquet", "--output", "labelled-ray", "--threshold", "0.1"],
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("examples")
    model = random_model()
    save_random_model(path / "model")
    torch.save({"model": to_original(model.state_dict(), model.config.anchor_scale)}, path / "original.pth")
    model.config.save_pretrained(path / "sizes")
    (path / "photos").mkdir()
    write_rectangles(path / "photos")
    photo = PHOTO.read_bytes()
    table = {"image": [{"bytes": photo, "path": "photo.jpg"}] * 2, "caption": ["two cats on a pink sofa", "a lamp"]}
    parquet.write_table(pyarrow.table(table), path / "pairs.parquet")
    write_case(path / "case", model)
    return path


def scripts() -> list[str]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def test_every_script_is_run() -> None:
    assert set(RUNS) == set(scripts())


@pytest.mark.parametrize("script", scripts())
def test_script_runs(directory: Path, script: str) -> None:
    if script == "examples/label_captions_ray.py":
        pytest.importorskip("ray", reason="Ray is not installed: `make ray` runs this script")
    for arguments in RUNS[script]:
        done = run(ROOT / script, arguments, os.environ | {"PYTHONPATH": str(ROOT / "src")}, directory)
        assert done.returncode == 0, f"{script} {arguments}\n{done.stdout}"
        if script == "examples/ground_photo.py":
            assert "--model" in arguments or "dotted yellow cross" in done.stdout
        for option, value in zip(arguments, arguments[1:]):
            if option == "--save":
                assert (directory / value).is_file()


@pytest.mark.parametrize(
    ("code", "returncode", "said"),
    [
        ("print(sys.argv[1:], os.environ['A'], os.getcwd())", 0, "['1', '--x'] b {cwd}\n"),
        ("sys.exit('no file')", 1, "no file\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("os.system('echo from a child; echo $A >&2')", 0, "from a child\nb\n"),
    ],
)
def test_forked_scripts_end_as_scripts_do(code: str, returncode: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"import os, sys\nassert __name__ == '__main__'\n{code}\n")
    done = run(tmp_path / "script.py", ["1", "--x"], os.environ | {"A": "b"}, tmp_path)
    assert done.returncode == returncode and done.stdout.endswith(said.format(cwd=tmp_path)), done.stdout


@pytest.mark.parametrize("script", [s for s in scripts() if s.startswith("examples/")])
def test_example_opens_with_cost_command_and_result_and_is_short(script: str) -> None:
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    head = "\n".join(lines[:20])
    assert len(lines) < 150
    assert "Cost:" in head and script in head and ("Result:" in head or "Expected" in head)
