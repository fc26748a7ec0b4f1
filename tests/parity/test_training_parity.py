"""Targets, losses and gradients equal those of the original (dropout, drop path and DropBlock off)."""

import re

import pytest
import torch
from parity.harness import TRAINING_SIZES, build_model, load_case

from glip_hf.boxes_glip import make_anchors
from glip_hf.configuration_glip import PYRAMID_STRIDES
from glip_hf.conversion.weight_map import to_original
from glip_hf.loss_glip import assign_atss, centerness_targets

LOSS_NAMES = {
    "loss_bbox": "loss_reg",
    "loss_centerness": "loss_centerness",
    "loss_token": "loss_dot_product_token",
}
# Analytically zero: adding a constant to all keys changes no softmax.
ZERO_GRADIENTS = re.compile(r"attention\.self\.key\.bias$")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TRAINING_SIZES)
def test_losses_and_gradients(name: str, attention: str) -> None:
    case = load_case(f"small_training/{name}")
    model = build_model(case.architecture, case.description["weights_seed"])
    model.set_attn_implementation(attention)
    model.zero_grad()
    outputs = model(**case.inputs(), labels=case.labels())
    for ours, theirs in LOSS_NAMES.items():
        assert outputs.loss_dict[ours].item() == pytest.approx(case.description["losses"][theirs], rel=1e-5)
    assert outputs.loss.item() == pytest.approx(case.description["loss_total"], rel=1e-5)

    outputs.loss.backward()
    gradients = to_original(
        {
            key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for key, parameter in model.named_parameters()
        }
    )
    norms = case.description["grad_norms"]
    assert len(norms) > 250
    for key, norm in norms.items():
        if norm is None:
            assert key.startswith("rpn.head.cls_logits")
        elif not ZERO_GRADIENTS.search(key):
            assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-4), key


@pytest.mark.parametrize("name", TRAINING_SIZES)
def test_assignment(name: str) -> None:
    case = load_case(f"small_training/{name}")
    height, width = case.description["padded_size_hw"]
    shapes = [(-(-height // stride), -(-width // stride)) for stride in PYRAMID_STRIDES]
    anchors = make_anchors(shapes, PYRAMID_STRIDES, 8)
    rows, owners, targets = [], [], []
    for index, label in enumerate(case.labels()):
        owner = assign_atss(anchors, [h * w for h, w in shapes], [label["boxes"]])[0]
        positive = (owner >= 0).nonzero().squeeze(1)
        rows.append(positive + index * len(anchors))
        owners.append(owner[positive])
        targets.append(centerness_targets(label["boxes"][owner[positive]], anchors[positive]))
    rows, owners, targets = torch.cat(rows), torch.cat(owners), torch.cat(targets)
    assert torch.equal(rows, case.tensors["pos_indices_flat"])
    assert torch.equal(owners, case.tensors["pos_gt_index"])
    torch.testing.assert_close(targets, case.tensors["pos_centerness_targets"], rtol=1e-5, atol=1e-6)
