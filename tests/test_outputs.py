# Copyright 2026 The glip_hf authors. MIT licence.
"""The blocks of docs/outputs.md run, and the tools that they are for read the same boxes back."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from glip_hf.data.check import check_data
from glip_hf.demo import load_demo_image

PAGE = Path(__file__).resolve().parents[1] / "docs/outputs.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("outputs")
    load_demo_image().save(path / "photo.jpg", quality=95)
    return path


@pytest.fixture(scope="module")
def names(folder) -> dict[str, Any]:
    """What all blocks that need no other library leave behind."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            if "supervision" not in block:
                exec(block, found)
    assert len(found["result"]["boxes"]) >= 2
    return found


def test_coco(folder, names) -> None:
    from pycocotools.coco import COCO

    entries = COCO(folder / "coco.json").loadAnns(range(1, len(names["annotations"]) + 1))
    boxes = torch.tensor([entry["bbox"] for entry in entries])
    torch.testing.assert_close(boxes[:, :2], names["result"]["boxes"][:, :2])
    torch.testing.assert_close(boxes[:, :2] + boxes[:, 2:], names["result"]["boxes"][:, 2:])
    report = check_data([{"format": "coco", "annotations": str(folder / "coco.json"), "images": str(folder)}])
    assert report.ok and not report.refusal


def test_label_studio(folder, names) -> None:
    ((task,),) = (json.loads((folder / "label_studio.json").read_text()),)
    regions = task["predictions"][0]["result"]
    assert [region["value"]["rectanglelabels"] for region in regions] == [[n] for n in names["result"]["text_labels"]]
    width, height = names["image"].size
    left = [region["value"]["x"] * width / 100 for region in regions]
    bottom = [(region["value"]["y"] + region["value"]["height"]) * height / 100 for region in regions]
    torch.testing.assert_close(torch.tensor([left, bottom]), names["result"]["boxes"][:, [0, 3]].T)


def test_gradio(names) -> None:
    _, regions = names["annotated"]
    assert len(regions) == len(names["result"]["boxes"]) and {name for _, name in regions} <= set(names["names"])


def test_yolo_and_voc(folder, names, monkeypatch) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed (make adapters): it is not tested")
    monkeypatch.chdir(folder)
    (block,) = (block for block in BLOCKS if "supervision" in block)
    exec(block, names)
    width, height = names["image"].size
    expected = names["result"]["boxes"].numpy()
    (folder / "voc_images").mkdir()
    shutil.copy(folder / "photo.jpg", folder / "voc_images")
    read = sv.DetectionDataset
    for dataset, tolerance in (
        (read.from_yolo("yolo/images", "yolo/labels", "yolo/data.yaml"), max(width, height) * 1e-5),
        (read.from_pascal_voc("voc_images", "voc"), 1.0),  # whole pixels
    ):
        ((_, _, found),) = dataset
        order = found.xyxy[:, 0].argsort()
        assert abs(found.xyxy[order] - expected[expected[:, 0].argsort()]).max() <= tolerance
        assert {dataset.classes[label] for label in found.class_id} == set(names["result"]["text_labels"])
