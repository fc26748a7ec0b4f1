# Copyright 2026 The glip_hf authors. MIT licence.
"""Compiled models: the same results, four graphs whatever the sizes, and results that stay as they are.

Graphs run as they were traced. Inductor's own code takes 6 minutes to make even for a tiny model, too long for a test:
`benchmarks/latency.py --compile default` makes it, and prints how far its logits are from the model's.
"""

import pytest
import torch
from test_modeling_glip import assert_same
from tiny import tiny_inputs, tiny_model, tiny_swin

from glip_hf import GlipForGrounding, compilation
from glip_hf.compilation import MODES, compile_for_inference

SIZES = [(320, 352, 9), (256, 416, 5)]
"""Height and width of the image, tokens of the caption. Not square, and no side a whole
number of windows or within one: each of these is a graph of its own."""


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compilable() -> GlipForGrounding:
    return tiny_model(num_blocks=2, backbone_config=tiny_swin(window_size=7))


def assert_features_serve(model, compiled, sizes) -> None:
    """Encoded once each and put together: as the plain model in one go."""
    for height, width, length in sizes:
        inputs = tiny_inputs(1, height=height, width=width, length=length)
        expected = model(**inputs)
        image = compiled.get_image_features(inputs["pixel_values"], return_dict=True)
        text = compiled.get_text_features(inputs["input_ids"], return_dict=True)
        assert_same(compiled(image_features=image, text_features=text), expected)


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_each_for_all_sizes() -> None:
    """For images, captions, blocks and the head: whatever the sizes, and however many blocks there are."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = compilable()
    assert_features_serve(model, compile_for_inference(model, backend=backend), SIZES)
    assert len(graphs) == 4


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_results_of_recorded_graphs_are_copies(monkeypatch, mode) -> None:
    """A CUDA graph gives the same memory at every run: stood in for by a compiler whose functions do."""
    steps, memory = [], {}

    def held(value, *key):
        if isinstance(value, torch.Tensor):
            return memory.setdefault(key, value.clone()).copy_(value)
        if isinstance(value, dict):
            return type(value)(**{name: held(item, *key, name) for name, item in value.items()})
        return tuple(held(item, *key, i) for i, item in enumerate(value)) if isinstance(value, tuple) else value

    def compiler(function, **_):
        key = function.__name__, id(function.__self__)
        return lambda *args, **kwargs: held(function(*args, **kwargs), *key)

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compilation, "_check_compiler", lambda device: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    model = tiny_model()
    compiled = compile_for_inference(model, mode)
    first, second = (tiny_inputs(seed=seed) for seed in (0, 1))
    images = [compiled.get_image_features(one["pixel_values"], return_dict=True) for one in (first, second)]
    texts = [compiled.get_text_features(one["input_ids"], return_dict=True) for one in (first, second)]
    found = [compiled(image_features=image, text_features=text) for image, text in zip(images, texts)]
    if mode == "default":
        assert torch.equal(found[0].logits, found[1].logits) and not steps
    else:
        for outputs, inputs in zip(found, (first, second)):
            assert_same(outputs, model(**inputs))
        assert len(steps) == 6


def test_the_model_itself_stays_plain(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(compilation, "_check_compiler", lambda device: None)
    model = tiny_model()
    compiled = compile_for_inference(model)
    plain, fast = (list(one.model.tower["blocks"]) for one in (model, compiled))
    assert not any(block._compiled_call_impl for block in plain) and all(block._compiled_call_impl for block in fast)
    assert not vars(model).keys() & {"forward", "get_image_features", "get_text_features"}
    assert compiled.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(compiled.parameters(), model.parameters()))


def test_what_cannot_be_compiled_is_refused(monkeypatch) -> None:
    with pytest.raises(ValueError, match="mode='fast' is unknown: default, reduce-overhead"):
        compile_for_inference(tiny_model(), "fast")
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        compile_for_inference(tiny_model().train())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match=r"no-such-compiler is not there: .* CXX"):
        compile_for_inference(tiny_model())
