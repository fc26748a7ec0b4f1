# Copyright 2026 The glip_hf authors. MIT licence.
"""Recorded evaluator cases, and a small model with images to run over."""

import json

import pytest
from eval_cases import FIXTURES, NAMES, SIZES, recorded
from PIL import Image
from transformers import BertTokenizer

from glip_hf import GlipImageProcessorPil, GlipProcessor


@pytest.fixture(scope="session")
def flickr_case(tmp_path_factory):
    """The recorded case, and the folder of its native files."""
    case = recorded("flickr")
    folder = tmp_path_factory.mktemp("flickr30k")
    for name, text in case.pop("files").items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return case, folder


@pytest.fixture(scope="session")
def model():
    from parity.harness import build_model

    return build_model("small", 0)


@pytest.fixture(scope="session")
def processor():
    images = GlipImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return GlipProcessor(images, BertTokenizer(str(FIXTURES / "tokenizer" / "vocab.txt")))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Five images of different shapes in a folder, with a COCO file that has some boxes on them."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.open(FIXTURES / "images" / "chelsea.png").convert("RGB")
    images, boxes = [], []
    for index, (width, height) in enumerate(SIZES):
        name = f"{index}.png"
        photo.crop((10 * index, 5 * index, 10 * index + width, 5 * index + height)).save(folder / name)
        images.append({"id": 10 + index, "file_name": name, "width": width, "height": height})
        box = {"image_id": 10 + index, "category_id": 2 + index, "bbox": [5, 5, 30, 40], "area": 1200, "iscrowd": 0}
        boxes.append({"id": index + 1, **box})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder
