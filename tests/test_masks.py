# Copyright 2026 The glip_hf authors. MIT licence.
"""Masks for boxes: what the SAM model gives for each box, whatever the batch; in results, pipeline, drawings and JSON.

The models are tiny and random: they show that boxes go in and masks come out right, not that masks are good.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tiny import lively
from transformers import (
    AutoModelForMaskGeneration,
    AutoProcessor,
    BertConfig,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamModel,
    SamProcessor,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.utils import is_torchvision_available

from glip_hf import GlipZeroShotObjectDetectionPipeline
from glip_hf.cli import main
from glip_hf.demo import DEMO_IMAGE, DEMO_NAMES, demo_model, demo_processor, load_demo_image
from glip_hf.formats import encode_mask
from glip_hf.masks import BoxSegmenter
from glip_hf.visualize import draw_detections, label_color

BOXES = [[10, 20, 120, 200], [5.5, 3.25, 40, 60], [0, 0, 299, 199], [150, 100, 200, 180], [250, 10, 290, 50]]
DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def save_sam(folder: Path, hq: bool = False) -> str:
    """A random SAM of 64 x 64 pixels, about 50 KB."""
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        "output_channels": 16, "num_pos_feats": 8, "mlp_dim": 32, "window_size": 4, "global_attn_indexes": [1],
        "initializer_range": 0.02,
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    config_class, model_class, processor_class = SamConfig, SamModel, SamProcessor
    decoder = dict(DECODER)
    if hq:
        config_class, model_class, processor_class, decoder["vit_dim"] = SamHQConfig, SamHQModel, SamHQProcessor, 16
    config = config_class(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    side = {"height": 64, "width": 64}
    images = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size=side,
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    torch.manual_seed(0)
    lively(model_class(config)).save_pretrained(folder)
    processor_class(images).save_pretrained(folder)
    return str(folder)


def save_sam2(folder: Path) -> str:
    """A random SAM 2 of 64 x 64 pixels; its image processor exists for torchvision alone."""
    from transformers import Sam2Config, Sam2Model, Sam2Processor
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    backbone = {
        "hidden_size": 8, "image_size": [64, 64], "query_stride": [2, 2], "num_query_pool_stages": 3,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads": 1,
        "num_attention_heads_per_stage": [1, 2, 2, 2], "window_size_per_stage": [4, 4, 4, 4],
        "window_positional_embedding_background_size": [4, 4], "global_attention_blocks": [3],
    }  # fmt: skip
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
        "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16, "num_feature_levels": 3,
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    torch.manual_seed(0)
    lively(Sam2Model(config)).save_pretrained(folder)
    Sam2Processor(Sam2ImageProcessor(size={"height": 64, "width": 64}), target_size=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> str:
    return save_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return load_demo_image().resize((300, 200))


def by_hand(folder: str, image: Image.Image, boxes: list) -> torch.Tensor:
    """As Transformers documents it, all boxes at once."""
    model, processor = AutoModelForMaskGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=image, input_boxes=[boxes], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs, multimask_output=False)
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    return processor.post_process_masks(outputs.pred_masks, *sizes)[0][:, 0]


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
def test_masks_are_those_of_the_model(kind, tmp_path, image) -> None:
    if kind == "sam2" and not is_torchvision_available():
        pytest.skip("SAM 2's image processor needs torchvision")
    folder = save_sam2(tmp_path) if kind == "sam2" else save_sam(tmp_path, hq=kind == "sam_hq")
    expected = by_hand(folder, image, BOXES)
    segmenter = BoxSegmenter.from_pretrained(folder)
    assert expected.shape == (5, 200, 300) and len({int(mask.sum()) for mask in expected}) == 5
    for segmenter.boxes_per_pass in (16, 2, 1):
        masks = segmenter(image, torch.tensor(BOXES))
        assert masks.dtype == torch.bool
        assert (masks != expected).float().mean() < 1e-4  # a logit of almost 0 may round to either side
    segmenter.model.bfloat16()
    assert segmenter(image, BOXES).shape == (5, 200, 300)


def test_no_boxes_any_image_and_one_encoding(sam, image, tmp_path) -> None:
    segmenter, encoded = BoxSegmenter.from_pretrained(sam), []
    segmenter.model.vision_encoder.register_forward_hook(lambda *_: encoded.append(1))
    segmenter.boxes_per_pass = 2
    for empty in (torch.zeros(0, 4), []):
        assert segmenter(image, empty).shape == (0, 200, 300)
    assert not encoded
    masks = segmenter(image, BOXES)
    assert len(encoded) == 1
    image.save(tmp_path / "image.png")
    turned = Image.open(tmp_path / "image.png").transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    for same in (
        tmp_path / "image.png",
        str(tmp_path / "turned.png"),
        np.asarray(image),
        torch.tensor(np.asarray(image)),
    ):
        assert torch.equal(segmenter(same, BOXES), masks)


def test_boxes_that_are_none(sam, image) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="box 1 is .*: its corners must be finite"):
            BoxSegmenter.from_pretrained(sam)(image, [BOXES[0], [0, 0, value, 9]])


def test_deep_grey_images_are_seen_as_glip_sees_them(sam, image) -> None:
    segmenter, grey = BoxSegmenter.from_pretrained(sam), image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)  # PIL's own conversion makes it white
    assert deep.mode == "I;16" and torch.equal(segmenter(deep, BOXES), segmenter(grey, BOXES))


def test_other_models_are_refused(tmp_path, sam) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'bert', which makes no masks from boxes: name one of SAM or SAM 2"):
        BoxSegmenter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="boxes_per_pass=0 must be at least 1"):
        BoxSegmenter(torch.nn.Identity(), None, boxes_per_pass=0)


def test_pipeline(sam) -> None:
    segmenter, image = BoxSegmenter.from_pretrained(sam), load_demo_image()
    detector = GlipZeroShotObjectDetectionPipeline(model=demo_model(), processor=demo_processor(), device="cpu")
    options: dict[str, Any] = {"candidate_labels": list(DEMO_NAMES), "threshold": 0.4}
    plain, found = detector(image, **options), detector(image, segmenter=segmenter, **options)
    assert len(found) >= 4 and [{k: v for k, v in one.items() if k != "mask"} for one in found] == plain
    assert all(one["mask"].size == image.size for one in found)
    tiled = detector([image.crop((0, 0, 170, 160))], segmenter=segmenter, tile=160, **options)
    assert tiled[0] and all(one["mask"].size == (170, 160) for one in tiled[0])
    with pytest.raises(
        TypeError, match=r"segmenter='facebook/sam' must be a BoxSegmenter: BoxSegmenter.from_pretrained"
    ):
        detector(image, segmenter="facebook/sam", **options)
    drawn = draw_detections(image, found)
    assert drawn != draw_detections(image, plain)


def test_command_writes_masks(sam, tmp_path, capsys) -> None:
    command = ["ground", str(DEMO_IMAGE), "--names", *DEMO_NAMES, "--model", "demo", "--masks", sam]
    assert main([*command, "--json", "--save", str(tmp_path / "drawn.png")]) == 0
    (photo,) = json.loads(capsys.readouterr().out)["photos"]
    found = photo["detections"]
    masks = BoxSegmenter.from_pretrained(sam)(DEMO_IMAGE, [one["box"] for one in found])
    assert len(found) >= 4
    for one, mask in zip(found, masks.numpy()):
        rle = coco_mask.frPyObjects(one["mask"], *one["mask"]["size"])
        assert (coco_mask.decode(rle) != mask).mean() < 1e-3  # boxes in JSON are rounded
    assert Image.open(tmp_path / "drawn.png").size == (480, 480)
    assert main(["ground", str(DEMO_IMAGE), "fish", "--model", "demo", "--masks", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"--masks {tmp_path}: cannot be loaded" in error and len(error.strip().splitlines()) == 1
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam.pt").touch()
    (shutil.copytree(sam, tmp_path / "cut") / "model.safetensors").write_bytes(b"cut")
    hints = {
        "cut": "cut: cannot be loaded (Error while deserializing header",
        "sma": f"did you mean {tmp_path / 'sam'}?",
        "sam/none": "is named USER/NAME",
        "sam.pt": "name its folder",
    }
    for name, words in hints.items():
        assert main(["ground", str(DEMO_IMAGE), "fish", "--model", "demo", "--masks", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err
    (tmp_path / "clip.mp4").touch()
    assert main(["ground", str(tmp_path / "clip.mp4"), "fish", "--model", "demo", "--masks", sam]) == 2
    assert "--masks is for images" in capsys.readouterr().err


def test_a_mask_model_that_fails_loses_its_image_alone(sam, tmp_path, capsys, monkeypatch) -> None:
    """Whatever another model raises, and none of what was found in other images is lost."""
    own = BoxSegmenter.__call__

    def failing(segmenter: BoxSegmenter, image: Image.Image, boxes: torch.Tensor) -> torch.Tensor:
        if image.width == 400:
            raise RuntimeError("expected scalar type Half but found Float\nsomewhere")
        return own(segmenter, image, boxes)

    monkeypatch.setattr(BoxSegmenter, "__call__", failing)
    for number, width in enumerate((480, 400, 480)):
        load_demo_image().crop((0, 0, width, 480)).save(tmp_path / f"{number}.png")
    output = tmp_path / "found.csv"
    command = ["ground", str(tmp_path), "--names", *DEMO_NAMES, "--model", "demo", "--masks", sam]
    assert main([*command, "--format", "csv", "--output", str(output)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"1.png: --masks {sam} failed (RuntimeError: expected scalar type Half but found Float)" in line
    with open(output) as file:
        rows = list(csv.DictReader(file))
    assert {row["file_name"] for row in rows} == {"0.png", "2.png"} and all(row["mask"] for row in rows)


def test_formats_without_a_place_for_masks_say_so(sam, tmp_path, capsys) -> None:
    command = ["ground", str(DEMO_IMAGE), "fish", "--model", "demo", "--masks", sam, "--format", "voc"]
    assert main([*command, "--output", str(tmp_path / "voc"), "--save", str(tmp_path / "a.png")]) == 0
    assert "--format voc has no place for what --masks gives: only the drawings" in capsys.readouterr().err
    assert (tmp_path / "a.png").is_file() and list((tmp_path / "voc").iterdir())


# -- drawing ---------------------------------------------------------------------------------------


def disc(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, list])
def test_masks_are_tinted_and_outlined(form) -> None:
    grey, mask = Image.new("RGB", (120, 80), (128, 128, 128)), disc(80, 120, 60, 40, 20)
    result = {"boxes": [[40, 20, 80, 60]], "labels": [3], "masks": form(mask[None])}
    before = np.asarray(draw_detections(grey, {k: v for k, v in result.items() if k != "masks"}))
    after = np.asarray(draw_detections(grey, result))
    changed = (before != after).any(-1)
    near = disc(80, 120, 60, 40, 21)
    assert not (changed & ~near).any() and changed[disc(80, 120, 60, 40, 17)].mean() > 0.9
    tint = np.array(label_color(3))
    assert np.abs(after[40, 60] - (0.55 * 128 + 0.45 * tint)).max() <= 1.5
    assert mask[26, 46] and (after[26, 46] == tint).all()  # the line
    assert (np.asarray(grey) == 128).all()  # the image itself is as it was


def test_masks_that_do_not_fit() -> None:
    grey, boxes = Image.new("RGB", (30, 20)), [[1, 2, 3, 4]]
    with pytest.raises(ValueError, match="1 boxes but 2 masks"):
        draw_detections(grey, {"boxes": boxes, "masks": np.zeros((2, 20, 30), bool)})
    with pytest.raises(ValueError, match=r"shape \(30, 20\) is not one of an image of \(20, 30\)"):
        draw_detections(grey, {"boxes": boxes, "masks": np.zeros((1, 30, 20), bool)})
    empty = draw_detections(grey, {"boxes": [], "masks": np.zeros((0, 20, 30), bool)})
    assert np.asarray(empty).max() == 0


def test_rle_is_what_pycocotools_reads() -> None:
    for mask in (disc(13, 17, 5, 6, 4), np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        rle = encode_mask(mask)
        assert (coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])) == mask).all()
