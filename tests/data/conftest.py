"""Small data sets in the original formats, made on the spot."""

import base64
import json
import os
from pathlib import Path

import pytest
from transformers import BertTokenizer

from tests.data.original_formats import SIZES, coco_content, encoded_image, save_images, write_tsv

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

VOCAB = Path(__file__).parents[1] / "fixtures" / "tokenizer" / "vocab.txt"


@pytest.fixture(scope="session")
def tokenizer():
    return BertTokenizer(str(VOCAB))


@pytest.fixture(scope="session")
def real_tokenizer(shared):
    return BertTokenizer(str(shared / "data" / "tokenizer" / "vocab.txt"))


@pytest.fixture
def coco_set(tmp_path):
    """A COCO set: keyword arguments of its spec."""
    images = save_images(tmp_path / "photos", SIZES)
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(coco_content()))
    return {"format": "coco", "annotations": str(file), "images": str(images)}


@pytest.fixture
def mdetr_set(tmp_path):
    """A grounding set of two folders: keyword arguments of its spec."""
    for folder in ("vg", "coco"):
        save_images(tmp_path / folder, SIZES[:2])
    caption = "a cat next to two dogs on the sofa . a cat ."
    content = {
        "images": [
            {
                "id": number,
                "file_name": f"{number}.png",
                "width": str(SIZES[number][0]),  # as in the Flickr30k files
                "height": str(SIZES[number][1]),
                "caption": caption,
                "data_source": source,
                "sentence_id": 4,
                "original_id": "77",
                "tokens_positive_eval": [[[0, 5]], [[14, 22], [23, 34]]],
            }
            for number, source in enumerate(["vg", "coco"])
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "bbox": [1, 2, 10, 10], "area": 100, "category_id": 1, "iscrowd": 0,
             "tokens_positive": [[0, 5], [37, 42]]},
            {"id": 2, "image_id": 0, "bbox": [5, 2, 12, 10], "area": 120, "category_id": 1, "iscrowd": 0,
             "tokens_positive": [[14, 22]]},
            {"id": 3, "image_id": 1, "bbox": [3, 3, 9, 9], "area": 81, "category_id": 1, "iscrowd": 0,
             "tokens_positive": [[23, 34]]},
        ],
        "categories": [],
    }  # fmt: skip
    file = tmp_path / "final_mixed.json"
    file.write_text(json.dumps(content))
    folders = {"vg": str(tmp_path / "vg"), "coco": str(tmp_path / "coco")}
    return {"format": "mdetr", "annotations": str(file), "images": folders}


@pytest.fixture
def tsv_set(tmp_path):
    """A TSV set: the folder with its parts and `train.yaml`."""
    folder = tmp_path / "tsv"
    folder.mkdir()
    images = [base64.b64encode(encoded_image(w, h, (i, 0, 0))).decode() for i, (w, h) in enumerate(SIZES)]
    write_tsv(folder / "img.tsv", [(str(20 + i), "between", data) for i, data in enumerate(images)])
    objects = [
        [{"class": "cat", "rect": [2, 3, 12, 15]}, {"class": "dog", "rect": [5.5, 6, 39.9, 29], "conf": 1.0}],
        [],
        [{"class": "cat", "rect": [0, 0, 63, 47]}],
        [{"class": "dog", "rect": [1, 1, 40, 40]}],
        [{"class": "dog", "rect": [1, 1, 20, 40]}],
        [{"class": "cat", "rect": [1, 1, 20, 30]}],
    ]
    labels = [json.dumps(o if i % 2 else {"objects": o, "img_id": f"p{i}"}) for i, o in enumerate(objects)]
    write_tsv(folder / "label.tsv", [(str(20 + i), text) for i, text in enumerate(labels)], index=False)
    sizes = [
        f"{h} {w}" if i % 3 == 0 else json.dumps([{"height": h, "width": w}] if i % 3 == 1 else {"height": h, "width": w})  # noqa: E501
        for i, (w, h) in enumerate(SIZES)
    ]  # fmt: skip
    write_tsv(folder / "hw.tsv", [(str(20 + i), text) for i, text in enumerate(sizes)])
    (folder / "class2ind.json").write_text(json.dumps({"cat": 1, "dog": 2}))
    (folder / "lines.tsv").write_text("0\n2\n2\n5\n")
    common = "img: img.tsv\nlabel: label.tsv\nhw: hw.tsv\nlabelmap: class2ind.json\n"
    (folder / "all.yaml").write_text(common)
    (folder / "train.yaml").write_text(common + "linelist: lines.tsv\n")
    return folder
