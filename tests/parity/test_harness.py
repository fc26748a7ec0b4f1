"""The harness tells models apart, fails what it does not see, and says what it cannot read."""

import json
from dataclasses import replace

import pytest
import torch
from locations import FIXTURES
from parity.architectures import ARCHITECTURES, architecture_to_config, recorded_config
from parity.harness import CaseError, build_model, compare_case, format_table, load_case, match_detections
from parity.recorded_case import write_case

from glip_hf import GlipConfig


@pytest.fixture
def build():
    """`build_model`, whose models are then not shared with other tests."""
    build_model.cache_clear()
    yield build_model
    build_model.cache_clear()


@pytest.mark.parametrize("name", ["small", "small_a"])
def test_a_model_agrees_with_itself_and_a_changed_one_does_not(tmp_path, build, name):
    model = build(name, 0)
    write_case(tmp_path / "case", model)
    rows = compare_case(model, load_case(tmp_path / "case"))
    stages = {row.stage for row in rows}
    assert all(row.passed and row.difference == 0 for row in rows)
    expected = {"swin.stage1", "swin.stage4", "fpn.p7", "text.hidden", "block1.dyconv.p3"}
    expected |= {"block0.dyconv.branch0.p3", "head.dot_product_logits.p5", "anchors.p3"}
    assert expected <= stages
    assert ("block1.fuse.p6" in stages) is (name == "small")
    table = format_table(rows)
    assert f"{len(rows)} of {len(rows)} within tolerance" in table and "FAILED" not in table

    with torch.no_grad():
        model.model.neck.p7_conv.bias += 0.01
    rows = compare_case(model, load_case(tmp_path / "case"))
    failed = {row.stage for row in rows if not row.passed}
    assert "fpn.p7" in failed and not any(stage.startswith(("swin", "text")) for stage in failed)
    assert "fpn.p6" not in format_table(rows, only_failed=True)


def test_stages_that_were_not_seen_fail(tmp_path, build):
    model = build("small_a", 0)
    write_case(tmp_path / "case", model)
    case = load_case(tmp_path / "case")
    case.tensors["block7.dyconv.p3"] = torch.zeros(1)
    case.tensors["fpn.p3"] = case.tensors["fpn.p3"][:, :1]
    rows = {row.stage: row for row in compare_case(model, case)}
    assert not rows["block7.dyconv.p3"].passed and rows["block7.dyconv.p3"].note == "not seen"
    assert not rows["fpn.p3"].passed and "is not" in rows["fpn.p3"].note


def test_inner_stages_are_skipped_on_request(tmp_path, build):
    model = build("small_a", 0)
    write_case(tmp_path / "case", model)
    case = load_case(tmp_path / "case")
    every, outer = ({row.stage for row in compare_case(model, case, inner=inner)} for inner in (True, False))
    skipped = every - outer
    assert outer < every and "swin.stage1" in skipped
    assert all(stage == "swin.stage1" or ".branch" in stage or ".offset_mask" in stage for stage in skipped)


def test_matching_of_detections_by_hand():
    def detections(*rows):
        boxes, scores, labels = zip(*rows) if rows else ((), (), ())
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(labels),
        }

    none = detections()
    a, b = ([0, 0, 9, 9], 0.9, 1), ([0, 0, 9, 9], 0.9, 2)
    near = ([0, 0.04, 9, 9], 0.9, 1)
    far = ([0, 0.06, 9, 9], 0.9, 1)
    dim = ([0, 0, 9, 9], 0.8, 1)
    assert match_detections(none, none, 1e-5) == (0, 0, 0.0)
    assert match_detections(detections(a), none, 1e-5)[:2] == (0, 1)
    assert match_detections(none, detections(a, b), 1e-5)[:2] == (2, 0)
    assert match_detections(detections(b, a), detections(a, b), 1e-5)[:2] == (0, 0)
    assert match_detections(detections(near), detections(a), 1e-5)[:2] == (0, 0)
    for wrong in (far, dim, b):
        assert match_detections(detections(wrong), detections(a), 1e-5)[:2] == (1, 1)
    assert match_detections(detections(a, a), detections(a), 1e-5)[:2] == (0, 1)


def test_cases_that_cannot_be_read(tmp_path):
    with pytest.raises(CaseError, match="not a recorded case"):
        load_case(tmp_path / "absent")
    case = replace(load_case("full/glip_l_320"), images=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"full_chelsea\.png"):
        case.inputs()


def test_pixels_are_bgr_and_padded():
    case = load_case("small_inference/b1")
    pixels = case.inputs()["pixel_values"]
    height, width = case.resized_sizes[0]
    assert pixels.shape == (1, 3, *case.description["padded_size_hw"])
    assert pixels[..., height:, :].abs().max() == 0 and pixels[..., width:].abs().max() == 0
    assert pixels[:, 2].sum() > pixels[:, 0].sum()  # the cat is red: red is last


def test_architectures_that_the_model_does_not_cover():
    entries = json.loads(ARCHITECTURES.read_text())
    entry = entries["small"]
    with pytest.raises(ValueError, match=r"does not cover: fpn\.use_gn"):
        architecture_to_config({**entry, "fpn": {**entry["fpn"], "use_gn": True}})
    with pytest.raises(KeyError, match="channels"):
        architecture_to_config({**entry, "head": {k: v for k, v in entry["head"].items() if k != "channels"}})


def test_architectures_survive_as_json(tmp_path):
    config = recorded_config("small")
    (tmp_path / "small.json").write_text(config.to_json_string(use_diff=False))
    assert GlipConfig.from_json_file(tmp_path / "small.json").to_dict() == config.to_dict()
    assert (config.fusion_heads, config.text_config.num_attention_heads, config.d_model) == (4, 4, 64)


def test_every_recorded_case_has_an_architecture():
    names = {load_case(path).architecture for path in FIXTURES.glob("parity/*/*.json")}
    assert names <= set(json.loads(ARCHITECTURES.read_text())) and len(names) >= 4
