"""The model reproduces what the original computed, stage by stage, down to the detections.

Small cases run from fixtures; whole recorded tensors and the large cases come from the shared parity folder. Tolerances
are those of its README, which measured the original's own noise.
"""

from dataclasses import replace

import pytest
import torch
from parity.harness import Case, build_model, compare_case, compare_stages, format_table, load_case, record_stages

from glip_hf import GlipForGrounding

SMALL = ["b1", "b2", "b1_no_fusion"]
FULL = ["glip_t_goldg_short", "glip_t_goldg_coco80", "glip_t_a_coco80", "glip_l_320"]


def model_of(case: Case, attention: str = "sdpa") -> GlipForGrounding:
    model = build_model(case.architecture, case.description["weights_seed"])
    model.set_attn_implementation(attention)
    return model


def check(case: Case, attention: str = "sdpa", inner: bool = False) -> list[str]:
    """Compares everything that is recorded of a case; the names of the stages."""
    rows = compare_case(model_of(case, attention), case, inner=inner)
    assert all(row.passed for row in rows), "\n" + format_table(rows, only_failed=True)
    stages = [row.stage for row in rows]
    for stage in ("head.bbox_reg.", "head.centerness.", "head.dot_product_logits", "det.forward"):
        assert any(name.startswith(stage) for name in stages)
    assert sum(name.startswith("det") for name in stages) >= 6
    return stages


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SMALL)
def test_small_case(name: str, attention: str) -> None:
    check(load_case(f"small_inference/{name}"), attention)


@pytest.mark.parametrize("inner", [False, True], ids=["", "inner"])
@pytest.mark.parametrize("name", SMALL)
def test_small_case_every_value(name: str, inner: bool, shared) -> None:
    case = load_case(f"small_inference/{name}", shared / "parity")
    assert len(check(case, inner=inner)) > (60 if inner else 40)
    torch.testing.assert_close(case.pixels()["pixel_values"], case.tensors["pixel_values"], atol=1e-5, rtol=1e-5)


def test_small_case_padded_to_256(shared) -> None:
    """The original pads each caption to 256; so may a user, and nothing changes at the real tokens."""
    case = load_case("small_inference/b2", shared / "parity")
    padded = replace(case, description={**case.description, "token_counts": [256, 256]}).inputs()
    assert padded["input_ids"].shape == (2, 256)
    model = model_of(case)
    _, stages = record_stages(model, lambda: model(**padded))
    rows = compare_stages(case, stages, inner=False)
    assert all(row.passed for row in rows), "\n" + format_table(rows, only_failed=True)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [False, True], ids=["", "inner"])
@pytest.mark.parametrize("name", FULL)
def test_full_size_case(name: str, inner: bool, shared) -> None:
    assert len(check(load_case(f"full/{name}", shared / "parity"), inner=inner)) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glip_t_goldg_short", "glip_t_a_coco80", "glip_l_320"])
def test_full_size_case_from_fixture(name: str) -> None:
    check(load_case(f"full/{name}"))
