import pytest
import torch
from checkpoints import ARCHITECTURES, VOCAB, small_state
from convert.recorded_case import write_case
from locations import FIXTURES

from glip_hf import GlipForGrounding
from glip_hf.conversion.variants import load_config
from glip_hf.conversion.verify import (
    CaseError,
    compare_case,
    format_table,
    load_case,
    match_detections,
    prepare_picture,
)
from glip_hf.conversion.weight_map import to_ours


def build(name: str, seed: int) -> GlipForGrounding:
    original = small_state(name, seed)
    config = load_config(f"{ARCHITECTURES}:{name}", original)
    return GlipForGrounding.from_pretrained(None, config=config, state_dict=to_ours(original)).eval()


@pytest.mark.parametrize("name", ["small", "small_a"])
def test_a_model_agrees_with_itself_and_a_changed_one_does_not(tmp_path, name):
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


def test_stages_that_were_not_seen_fail(tmp_path):
    model = build("small_a", 0)
    write_case(tmp_path / "case", model)
    case = load_case(tmp_path / "case")
    case.tensors["block7.dyconv.p3"] = torch.zeros(1)
    [row] = [row for row in compare_case(model, case) if row.stage == "block7.dyconv.p3"]
    assert not row.passed and row.note == "not seen"


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
    assert match_detections(none, none, 1e-5) == (0, 0.0)
    assert match_detections(detections(a), none, 1e-5)[0] == 1
    assert match_detections(none, detections(a, b), 1e-5)[0] == 2
    assert match_detections(detections(b, a), detections(a, b), 1e-5)[0] == 0
    assert match_detections(detections(near), detections(a), 1e-5)[0] == 0
    for wrong in (far, dim, b):
        assert match_detections(detections(wrong), detections(a), 1e-5)[0] == 2
    assert match_detections(detections(a, a), detections(a), 1e-5)[0] == 1


def test_cases_that_cannot_be_read(tmp_path):
    with pytest.raises(CaseError, match="not a reference case"):
        load_case(tmp_path / "absent")
    with pytest.raises(CaseError, match=r"x\.png"):
        prepare_picture(tmp_path / "x.png", (4, 4), {})


def test_prepared_pictures_are_bgr_and_padded():
    recipe = {
        "pixel_mean_bgr": [103.53, 116.28, 123.675],
        "pixel_std_bgr": [57.375, 57.12, 58.395],
        "size_divisibility": 32,
    }
    pixels = prepare_picture(FIXTURES / "images" / "chelsea.png", (40, 60), recipe)
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels[..., 40:, :].abs().max() == 0 and pixels[..., 60:].abs().max() == 0
    assert pixels[:, 2].sum() > pixels[:, 0].sum()  # the cat is red: red is last


@pytest.mark.parametrize("case", ["b1", "b2", "b1_no_fusion"])
def test_recorded_small_cases(shared, case):
    reference = load_case(shared / "parity" / "small_inference" / case)
    name = reference.info["config"].removeprefix("keys/").removesuffix(".json")
    rows = compare_case(build(name, reference.info["weights_seed"]), reference)
    assert len(rows) > 60 and any(row.stage.startswith("det") for row in rows)
    assert all(row.passed for row in rows), "\n" + format_table(rows, only_failed=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["glip_t_goldg_short", "glip_t_a_coco80", "glip_t_goldg_coco80", "glip_l_320"])
def test_recorded_full_cases(shared, case):
    reference = load_case(shared / "parity" / "full" / case)
    name = reference.info["config"].removeprefix("keys/").removesuffix(".json")
    rows = compare_case(build(name, reference.info["weights_seed"]), reference)
    assert len(rows) > 60 and any(row.note == "statistics" for row in rows)
    assert all(row.passed for row in rows), "\n" + format_table(rows, only_failed=True)


def test_scripts(tmp_path, capsys, monkeypatch):
    """The three scripts in a row, as the README tells it."""
    import importlib.util
    from pathlib import Path

    def script(name):
        path = Path(__file__).parents[2] / "convert" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"script_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(name, *arguments):
        code = script(name).main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    source, out = tmp_path / "x.pth", tmp_path / "out"
    original = small_state("small_a")
    torch.save({"model": original}, source)
    options = ["--tokenizer", VOCAB, "--config", ARCHITECTURES]
    code, text, _ = run("convert_glip_to_hf", source, out, *options)
    assert code == 0 and f"-> {out}" in text and "sha256" in text
    code, _, error = run("convert_glip_to_hf", source, out, *options)
    assert code == 1 and error.startswith("glip convert: ") and "--force" in error
    pushed = []
    monkeypatch.setattr("glip_hf.conversion.push_to_hub", lambda *a: pushed.append(a) or "https://x")
    code, *_ = run("convert_glip_to_hf", source, out, *options, "--force", "--push-to-hub", "me/glip")
    assert code == 0
    assert pushed == [(out, "me/glip")]

    model = GlipForGrounding.from_pretrained(out).eval()
    write_case(tmp_path / "case", model)
    code, text, _ = run("verify", out, tmp_path / "case.json")
    assert code == 0 and "within tolerance" in text
    with torch.no_grad():
        model.head.bias0 += 1
    model.save_pretrained(tmp_path / "changed")
    code, text, _ = run("verify", tmp_path / "changed", tmp_path / "case.json", "--only-failed")
    assert code == 1 and "FAILED" in text
    code, _, error = run("verify", out, tmp_path / "absent.json")
    assert code == 1 and "not a reference case" in error

    code, text, _ = run("convert_hf_to_glip", out, tmp_path / "back.pth")
    assert code == 0
    assert all(torch.equal(x, original[k]) for k, x in torch.load(tmp_path / "back.pth")["model"].items())
    code, _, error = run("convert_hf_to_glip", out, tmp_path / "back.pth")
    assert code == 1 and "exists" in error
