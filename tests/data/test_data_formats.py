# Copyright 2026 The glip_hf authors. MIT licence.
"""Pascal VOC, YOLO and ODVG: the same samples and ground truth as the COCO version of a data set."""

import json

import pytest

from glip_hf.data.sources import build_source, coco_annotations, guess_source
from glip_hf.data.sources.coco import read_annotations
from tests.data.original_formats import coco_content

pytest.importorskip("datasets")


def test_ground_truth_of_a_coco_source_is_that_of_its_file(coco_set, tmp_path):
    content = coco_content()
    content["categories"].append({"id": 0, "name": "__background__"})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = build_source(coco_set, cache_dir=tmp_path / "cache")
    expected, found = read_annotations(coco_set["annotations"]), coco_annotations(source)
    assert (found.boxes, found.categories, found.image_ids) == (expected.boxes, expected.categories, expected.image_ids)
    source.file = None  # as of a source that is no such file: without crowd regions and images without boxes
    from_records = [{**box, "id": 0} for box in coco_annotations(source).boxes]
    sound = {image_id for image_id in source.image_ids()}
    whole = [{**box, "id": 0} for box in expected.boxes if box["image_id"] in sound and not box["iscrowd"]]
    assert from_records == [box for box in whole if min(box["bbox"][2:]) > 1]


def test_ground_truth_of_captions_is_refused(mdetr_set, tmp_path):
    with pytest.raises(ValueError, match="final_mixed.json: a set of captions has no classes"):
        coco_annotations(build_source(mdetr_set, cache_dir=tmp_path / "cache"))


def test_formats_are_told_from_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.jsonl", "a.yaml", "a.txt", "voc/Annotations/a.xml", "set/data.yaml", "photos/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert guess_source("a.json", "photos") == {"format": "coco", "annotations": "a.json", "images": "photos"}
    assert guess_source("voc/../a.jsonl") == {"format": "odvg", "annotations": "voc/../a.jsonl", "images": "voc/.."}
    assert guess_source("a.yaml", split="val") == {"format": "yolo", "annotations": "a.yaml", "split": "val"}
    assert guess_source("set") == {"format": "yolo", "annotations": "set/data.yaml"}
    assert guess_source("voc", "photos") == {"format": "voc", "annotations": "voc", "images": "photos"}
    with pytest.raises(FileNotFoundError, match="There is no 'b.json' in"):
        guess_source("b.json")
    for path, what in {"a.txt": "a file of the kind '.txt'", "photos": "a folder without XML"}.items():
        with pytest.raises(ValueError, match=rf"^{path} is {what}.* Data is a COCO file \(.json\), a YOLO data.yaml"):
            guess_source(path)
