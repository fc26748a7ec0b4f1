# Copyright 2026 The glip_hf authors. MIT licence.
"""The blocks of docs/tools.md run with the real libraries, section by section, and give the model's own detections.

`make tools` has the libraries that the development environment lacks, `scripts/fiftyone.sh` FiftyOne.
"""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import pipeline

from glip_hf.cli import main
from glip_hf.demo import load_demo_image

PAGE = (Path(__file__).resolve().parents[1] / "docs/tools.md").read_text(encoding="utf-8")
SHARED, *_SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
SECTIONS = {section.partition("\n")[0]: section for section in _SECTIONS}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder, names = tmp_path_factory.mktemp("tools"), {"__name__": "__main__"}
    load_demo_image().save(folder / "photo.jpg", quality=95)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(SHARED, names)
    assert {*names["result"]["text_labels"]} == {"yellow cross", "fish"}
    return folder, names


@pytest.fixture
def names(shared, monkeypatch) -> dict[str, Any]:
    """What the first block of the page defines, in its folder."""
    monkeypatch.chdir(shared[0])
    return dict(shared[1])


def run(section: str, names: dict[str, Any]) -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert blocks
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/tools.md", "exec"), names)
        else:
            program, *arguments = shlex.split(block)
            assert program == "glip" and main(arguments) == 0


def run_section(title: str, names: dict[str, Any], *modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            where = "scripts/fiftyone.sh" if "fiftyone" in modules else "make tools"
            pytest.skip(f"{module} is not installed ({where}): the section {title} is not tested")
    run(SECTIONS[title], names)


def found_by_pipeline(names: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Results of a pipeline are those of the model."""
    expected = names["result"]
    assert [found["label"] for found in results] == expected["text_labels"]
    torch.testing.assert_close(
        torch.tensor([found["score"] for found in results]), expected["scores"], atol=1e-4, rtol=0
    )
    boxes = torch.tensor([[found["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for found in results])
    assert (boxes - expected["boxes"]).abs().max() < 1.01  # whole pixels


def test_each_section_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(SECTIONS) == 9 and all(f'run_section("{title}"' in source for title in SECTIONS)


def test_supervision(names) -> None:
    run_section("supervision", names, "supervision")
    expected, detections = names["result"], names["detections"]
    assert np.array_equal(detections.xyxy, expected["boxes"].numpy())
    assert np.array_equal(detections.confidence, expected["scores"].numpy())
    assert list(detections["class_name"]) == expected["text_labels"]
    changed = np.array(names["image"]) != np.array(names["Image"].open("photo.jpg"))
    assert len(names["sure"]) and changed.any() and Path("annotated.png").is_file()


def test_fiftyone(names) -> None:
    run_section("FiftyOne", names, "fiftyone", "torchvision")
    expected, sample = names["result"], names["dataset"].first()
    found = sorted(sample["glip"].detections, key=lambda detection: -detection.confidence)
    assert [detection.label for detection in found] == expected["text_labels"]
    width, height = names["Image"].open("photo.jpg").size
    boxes = torch.tensor([detection.bounding_box for detection in found]) * torch.tensor([width, height] * 2)
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected["boxes"], atol=0.5, rtol=0)

    from fiftyone.utils.transformers import get_model_type

    assert get_model_type(names["model"]) == "zero-shot-image-classification"  # as the page says
    assert get_model_type(names["model"], "zero-shot-object-detection") == "zero-shot-object-detection"


def test_gradio(names) -> None:
    run_section("Gradio", names, "gradio")
    path, objects = names["page"].fn("photo.jpg", "yellow cross, fish")
    expected = names["result"]
    assert path == "photo.jpg"
    assert [label for _, label in objects] == [
        f"{name} {score:.2f}" for name, score in zip(expected["text_labels"], expected["scores"].tolist())
    ]
    assert (torch.tensor([box for box, _ in objects]) - expected["boxes"]).abs().max() < 1.01  # whole pixels
    stock = pipeline("zero-shot-object-detection", model="glip")
    with pytest.raises(ValueError, match="Unsupported transformers pipeline type"):  # as the page says
        names["gr"].Interface.from_pipeline(stock)


@pytest.mark.slow
def test_trainer(names) -> None:
    before = names["demo_model"]().state_dict()
    run_section("Trainer", names, "accelerate")
    after = names["trained"].state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert sum(not torch.equal(before[name], after[name].cpu()) for name in before) > 100


def test_peft(names, capsys) -> None:
    run_section("PEFT", names, "peft")
    layers = sum(isinstance(module, nn.Linear) for module in names["model"].modules())
    assert sum("lora_B" in name for name, _ in names["adapted"].named_parameters()) == layers
    written = capsys.readouterr().out  # an adapter starts at zero: the base model's detections
    for score, label in zip(names["result"]["scores"].tolist(), names["result"]["text_labels"]):
        assert score < 0.4 or re.search(rf"{score:.2f} .* {label}", written)
    assert not list(Path("adapter").glob("model*.safetensors"))


def test_torchao(names) -> None:
    run_section("torchao", names, "torchao")
    weights = [module.weight for module in names["quantized"].modules() if isinstance(module, nn.Linear)]
    assert weights and all(type(weight) not in (nn.Parameter, torch.Tensor) for weight in weights)
    assert Path("glip-int8/model.safetensors").stat().st_size < 0.5 * Path("glip/model.safetensors").stat().st_size
    expected, names["model"] = names["result"], names["quantized"]
    found = names["ground"]("photo.jpg")
    assert found["text_labels"][:2] == expected["text_labels"][:2]
    torch.testing.assert_close(found["boxes"][:2], expected["boxes"][:2], atol=5, rtol=0)


@pytest.mark.slow
def test_datasets(names) -> None:
    run_section("datasets", names, "datasets")
    assert len(names["found"]) == 2
    for objects in names["found"]["objects"]:
        found_by_pipeline(names, objects)
    with torch.inference_mode():
        outputs = names["model"](**names["inputs"])
    results = names["processor"].post_process_grounded_object_detection(outputs, threshold=0.3)
    for found in results:
        torch.testing.assert_close(found["boxes"], names["result"]["boxes"], atol=1e-2, rtol=0)


def test_device_map(names) -> None:
    run_section("device_map", names, "accelerate")
    found = names["processor"].post_process_grounded_object_detection(names["outputs"], names["inputs"], threshold=0.3)
    torch.testing.assert_close(found[0]["boxes"].cpu(), names["result"]["boxes"], atol=1e-2, rtol=0)


def test_thread_pools(names) -> None:
    run_section("Thread pools", names)
    assert len(names["results"]) == 8
    for found in names["results"]:
        assert found["text_labels"] == names["result"]["text_labels"]
        torch.testing.assert_close(found["boxes"], names["result"]["boxes"])
