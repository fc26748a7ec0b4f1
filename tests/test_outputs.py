# Copyright 2026 The glip_hf authors. MIT licence.
"""The blocks of docs/outputs.md run; that other tools read the files, tests/test_formats.py shows."""

import json
import re
import shlex
from pathlib import Path

import pytest

from glip_hf.cli import main
from glip_hf.demo import load_demo_image
from glip_hf.formats import FORMATS

PAGE = (Path(__file__).resolve().parents[1] / "docs/outputs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    load_demo_image().save("photos/a.jpg", quality=95)
    names: dict = {}
    for language, block in BLOCKS:
        if language == "bash":
            program, *arguments = shlex.split(block.replace("\\\n", " "))
            assert program == "glip" and main(arguments) == 0, capsys.readouterr().err
        else:
            exec(block, names)
    result = names["result"]
    assert len(result["boxes"]) >= 2 and set(result["text_labels"]) <= set(names["names"])
    assert [entry["score"] for entry in json.loads(Path("coco.json").read_text())["annotations"]] == (
        result["scores"].tolist()
    )
    (task,) = json.loads(Path("tasks.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/a.jpg" and task["predictions"][0]["result"]
    assert all(f"| `{name}` |" in PAGE for name in FORMATS)

    (documented,) = map(json.loads, re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert main(["ground", "photos/a.jpg", "--caption", "a fish", "--model", "demo", "--json", "document.json"]) == 0
    written = json.loads(Path("document.json").read_text())
    assert Path(written["model"]).parts[-3:] == Path(documented["model"]).parts[-3:]  # the rest is the machine's
    written["model"] = documented["model"]
    (shown,), (found,) = (each["photos"][0].pop("detections") for each in (documented, written))
    assert documented == written and shown.keys() == found.keys()
    assert shown.pop("box") == pytest.approx(found.pop("box"), abs=1)
    assert shown == pytest.approx(found, abs=0.02)
