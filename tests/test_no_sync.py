# Copyright 2026 The glip_hf authors. MIT licence.
"""What a GPU's host would wait for, found without a GPU: on the meta device no size depends on a value, and a tensor of
another device cannot take part. So a pass that comes to its end has not left its device, and the values it read are
counted."""

import pytest
import torch
from tiny import tiny_config, tiny_inputs, tiny_labels
from torch.utils._python_dispatch import TorchDispatchMode

from glip_hf import GlipForGrounding
from glip_hf.modeling_glip import GlipTextFeatures

SYNCHRONISE = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")


class Synchronisations(TorchDispatchMode):
    """Counts the operations whose result, or its size, the host has to wait for. On the meta device every value is
    False, and sizes that depend on values are errors."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation.overloadpacket.__name__
        if name.startswith(("index", "_index")) and len(arguments) > 1 and isinstance(arguments[1], list | tuple):
            self.count += any(one is not None and one.dtype == torch.bool for one in arguments[1])
        self.count += name in SYNCHRONISE
        if name == "_local_scalar_dense" and arguments[0].is_meta:
            return False
        return operation(*arguments, **keywords or {})


def on_meta(images):
    with torch.device("meta"):
        model = GlipForGrounding(tiny_config())
    inputs = {name: value.to("meta") for name, value in tiny_inputs(images).items()}
    tokens = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    return model, inputs, tokens


@pytest.mark.parametrize("train", [False, True])
def test_forward_reads_one_value_and_stays_on_its_device(train, monkeypatch):
    """From the text features on; in training the backward pass, too. The value is Transformers' question whether the
    attention mask masks anything."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # it does not know the meta device
    model, inputs, tokens = on_meta(2)
    hidden = torch.empty(*tokens["input_ids"].shape, 24, device="meta", requires_grad=train)
    with torch.set_grad_enabled(train), Synchronisations() as seen:
        text_features = GlipTextFeatures(last_hidden_state=hidden, **tokens)
        outputs = model.train(train)(**inputs, text_features=text_features)
        assert {value.device.type for value in outputs.values() if isinstance(value, torch.Tensor)} == {"meta"}
        if train:
            (outputs.pred_boxes.sum() + outputs.logits.sum()).backward()
            assert hidden.grad is not None
    assert seen.count <= 1


def test_encoding_captions_reads_one_value():
    """The same question, for all captions of the batch."""
    model, _, tokens = on_meta(3)
    with Synchronisations() as seen:
        assert model.get_text_features(**tokens).last_hidden_state.is_meta
    assert seen.count <= 1


def test_synchronisations_of_the_loss_are_few():
    """Measured: 2 for each image (its labels are checked), and 9 in all besides."""
    model = GlipForGrounding(tiny_config()).train()
    for images in (1, 4):
        with Synchronisations() as seen:
            assert model(**tiny_inputs(images), labels=tiny_labels(images)).loss.isfinite()
        assert 0 < seen.count - 1 <= 9 + 2 * images  # one by the assertion
