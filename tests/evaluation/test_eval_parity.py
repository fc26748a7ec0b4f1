# Copyright 2026 The glip_hf authors. MIT licence.
"""The driver reproduces the recorded detections of the original; grouping changes nothing at full size either."""

import pytest
import torch
from eval_cases import FIXTURES
from parity_cases import build_model, load_case, match_detections
from transformers import BertTokenizer

from glip_hf import GlipImageProcessorPil, GlipProcessor
from glip_hf.evaluation.driver import Detector, Options
from glip_hf.evaluation.tasks import Picture, Task, detection_task


def recorded_case(name, root, vocab):
    """A case, its model and processor, and its picture as a task with one caption."""
    case = load_case(name, root)
    about = case.description
    size = {"shortest_edge": about["input"]["min_size"], "longest_edge": about["input"]["max_size"]}
    processor = GlipProcessor(GlipImageProcessorPil(size=size), BertTokenizer(str(vocab)))
    names = about["classes"][0] if isinstance(about["classes"][0], list) else about["classes"]
    photo = about["images"][0] if "images" in about else {**about, "file": about["image"]}
    task = Task(
        "recorded", [Picture(0, str(FIXTURES / "images" / photo["file"]))], names, list(range(1, len(names) + 1))
    )
    return case, build_model(case.architecture, about["weights_seed"]), processor, task, photo


def check(case, model, processor, task, photo, aggregation, score_tolerance, share):
    (found,) = Detector(model, processor, Options(aggregation=aggregation)).predict(task)
    (height, width), (new_height, new_width) = photo["original_size_hw"], photo["resized_size_hw"]
    scale = torch.tensor([new_width / width, new_height / height] * 2)
    ours = {
        "boxes": torch.tensor(found["boxes"]) * scale,
        "scores": torch.tensor(found["scores"]),
        "labels": torch.tensor(found["labels"]),
    }
    prefix = next(
        f"det.{path}.{aggregation.upper()}{image}"
        for path in ("plain", "mdetr")
        for image in (".img0", "")
        if f"det.{path}.{aggregation.upper()}{image}.boxes" in case.tensors
    )
    recorded = {key: case.tensors[f"{prefix}.{key}"] for key in ("boxes", "scores", "labels")}
    matched, surplus = match_detections(ours, recorded, score_tolerance)
    total = len(recorded["labels"])
    assert matched >= share * total and surplus <= (1 - share) * total, f"{matched} of {total}, {surplus} more"


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
@pytest.mark.parametrize("name", ["b1", "b1_no_fusion"])
def test_small_case(shared, name, aggregation):
    vocab = shared / "data" / "tokenizer" / "vocab.txt"
    case = recorded_case(f"small_inference/{name}", FIXTURES / "parity", vocab)
    check(*case, aggregation, 1e-4, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glip_t_goldg_short", "glip_t_goldg_coco80", "glip_t_a_coco80"])
def test_full_size_case(shared, name):
    """COCO's 80 names in one caption at 800 x 1066, among others."""
    case = recorded_case(f"full/{name}", shared / "parity", shared / "data" / "tokenizer" / "vocab.txt")
    check(*case, "mean", 1e-4, 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [5, 40])
def test_full_size_grouping_changes_nothing(pictures, processor, chunk_size):
    task = detection_task("coco", pictures / "annotations.json", pictures)
    model = build_model("glip_tiny_model_o365_goldg", 0)

    def run(**options):
        detector = Detector(model, processor, Options(chunk_size=chunk_size, threshold=0.1, **options))
        return {found["image_id"]: found for found in detector.predict(task)}

    single = run(batch_size=1, pairs=1)
    for batch_size, pairs in ((3, 1), (8, 4)):
        for image_id, found in run(batch_size=batch_size, pairs=pairs).items():
            as_tensors = [
                {key: torch.tensor(one[key]) for key in ("boxes", "scores", "labels")}
                for one in (found, single[image_id])
            ]
            total = len(single[image_id]["scores"])
            assert total
            assert match_detections(*as_tensors, 1e-4) == (total, 0)
