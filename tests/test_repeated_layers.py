# Copyright 2026 The glip_hf authors. MIT licence.
"""Rows of equal layers in exported graphs: traced once, each with its own weights; test_export.py has whole models."""

import pytest
import torch
from tiny import tiny_bert, tiny_inputs, tiny_model, tiny_swin
from torch import nn

pytest.importorskip("transformers.exporters.utils", reason="it needs a later PyTorch", exc_type=ImportError)

from glip_hf import GlipForGrounding
from glip_hf import export as export_module
from glip_hf.export import PARTS, GlipGraph, export_onnx
from glip_hf.repeated_layers import RepeatedLayers, traced_once


def rows(model: GlipForGrounding) -> dict[str, int]:
    """Layers that are traced of each row which is traced once."""
    with traced_once(model, GlipGraph(model)):
        return {one.name: len(one.traced) for one in model.modules() if isinstance(one, RepeatedLayers)}


@pytest.mark.slow
@torch.no_grad()
def test_copies_have_their_own_weights(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    monkeypatch.setattr(export_module, "PARTS", {"text": PARTS["text"]})
    traced: list[nn.Module] = []
    monkeypatch.setattr(RepeatedLayers, "_mark", watch(RepeatedLayers._mark, traced))
    model = tiny_model(text_config=tiny_bert(num_hidden_layers=3), num_blocks=1)
    path = export_onnx(model, tmp_path) / "text.onnx"
    assert len(set(traced)) == 1, "one row, in which one layer ran"
    assert len(model.model.text_model.encoder.layer) == 3, "the model is as it was"
    session = export_module.OnnxRuntime(path, 1, torch.float32, None)
    for length in (4, 9):
        tokens = {name: value for name, value in tiny_inputs(2, length=length).items() if name in PARTS["text"][0]}
        tokens["token_type_ids"] = torch.zeros_like(tokens["input_ids"])
        (found,) = session.run(["text"], {name: value.numpy() for name, value in tokens.items()})
        expected = model.get_text_features(**tokens).last_hidden_state
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    written = onnx.load(path, load_external_data=False)
    assert {entry.domain for entry in written.opset_import} == {""}
    names = [node.name for node in written.graph.node]
    assert len(set(names)) == len(names)


def watch(original, seen):
    def mark(self, *arguments):
        seen.append(self)
        return original(self, *arguments)

    return mark


def test_which_rows_are_traced_once() -> None:
    deep = tiny_model(num_blocks=3, backbone_config=tiny_swin(depths=[2, 2, 6, 3], drop_path_rate=0.2))
    assert rows(deep) == {"tower": 1, "text": 1, "stage2": 2}
    assert rows(tiny_model(num_blocks=1, text_config=tiny_bert(num_hidden_layers=1))) == {}
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "out_indices": [2, 3, 4]}
    assert rows(tiny_model(num_blocks=1, backbone_config=resnet)) == {"text": 1}


@pytest.mark.parametrize("change", ["weight", "class", "scaling", "buffer"])
def test_layers_that_differ_are_all_traced(change) -> None:
    model = tiny_model(num_blocks=1)
    layer = model.model.text_model.encoder.layer[1]
    if change == "weight":
        layer.output.dense.register_parameter("lora", nn.Parameter(torch.ones(2)))
    elif change == "class":
        layer.output.dense = nn.Sequential(layer.output.dense)
    elif change == "scaling":
        layer.attention.self.scaling *= 2
    else:
        layers = model.model.text_model.encoder.layer
        for value, one in enumerate(layers):
            one.register_buffer("shift", torch.tensor(float(value)))
    assert rows(model) == {}


def test_the_model_is_put_back_after_an_error() -> None:
    model = tiny_model()
    before = list(model.modules())
    with pytest.raises(RuntimeError, match="stopped"), traced_once(model, GlipGraph(model)):
        raise RuntimeError("stopped")
    assert list(model.modules()) == before
