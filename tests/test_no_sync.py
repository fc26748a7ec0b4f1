# Copyright 2026 The glip_hf authors. MIT licence.
"""What a GPU's host would wait for, found without a GPU: on the meta device no size depends on a value, and a tensor of
another device cannot take part. So a pass that comes to its end has not left its device, and the values it read are
counted."""

import pytest
import torch
import transformers
from packaging import version
from tiny import tiny_config, tiny_inputs, tiny_labels

from benchmarks.launches import Launches
from glip_hf import GlipForGrounding
from glip_hf.modeling_glip import GlipTextFeatures

LOCATIONS = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1  # of the pyramid of an image of 64 x 96


def on_meta(images):
    with torch.device("meta"):
        model = GlipForGrounding(tiny_config())
    inputs = {name: value.to("meta") for name, value in tiny_inputs(images).items()}
    tokens = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    return model, inputs, tokens


asks_for_masks = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.15"),
    reason=f"Transformers {transformers.__version__} asks whether a mask masks anything (before 5.15)",
)


@asks_for_masks
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_shapes_on_the_meta_device(dtype) -> None:
    """Of counters of FLOPs and estimates of memory, whose autocast does not know this device."""
    model, inputs, tokens = on_meta(2)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs = model.eval()(**inputs, **tokens)
    assert outputs.logits.device.type == "meta" and outputs.logits.shape == (2, LOCATIONS, 9)
    assert outputs.pred_boxes.shape == (2, LOCATIONS, 4)
    outputs.logits.sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


@asks_for_masks
@pytest.mark.parametrize("train", [False, True])
def test_forward_reads_no_value_and_stays_on_its_device(train, monkeypatch):
    """From the text features on; in training the backward pass, too."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # it does not know the meta device
    model, inputs, tokens = on_meta(2)
    hidden = torch.empty(*tokens["input_ids"].shape, 24, device="meta", requires_grad=train)
    with torch.set_grad_enabled(train), Launches() as seen:
        text_features = GlipTextFeatures(last_hidden_state=hidden, **tokens)
        outputs = model.train(train)(**inputs, text_features=text_features)
        assert {value.device.type for value in outputs.values() if isinstance(value, torch.Tensor)} == {"meta"}
        if train:
            (outputs.pred_boxes.sum() + outputs.logits.sum()).backward()
            assert hidden.grad is not None
    assert not seen.waits.total()


@asks_for_masks
def test_encoding_captions_reads_no_value():
    model, _, tokens = on_meta(3)
    with Launches() as seen:
        assert model.get_text_features(**tokens).last_hidden_state.is_meta
    assert not seen.waits.total()


def test_the_loss_reads_two_values():
    """Whether all labels are finite, and which locations are positive, of all images at once."""
    model = GlipForGrounding(tiny_config()).train()
    for images in (1, 4):
        inputs, labels = tiny_inputs(images), tiny_labels(images)
        with Launches() as without:
            model(**inputs)
        with Launches() as seen:
            assert model(**inputs, labels=labels).loss.requires_grad
        assert seen.waits.total() - without.waits.total() == 2, seen.waits
