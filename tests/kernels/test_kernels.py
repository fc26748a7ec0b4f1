# Copyright 2026 The glip_hf authors. MIT licence.
"""The switch: kernels on equals kernels off, for each and for all, and what turns them on and off."""

import os
import re
import threading
from pathlib import Path

import pytest
import torch
from fresh import python
from tiny import tiny_inputs, tiny_labels, tiny_model
from torch import Tensor, nn

from glip_hf import GlipForGrounding, kernels, ops_glip
from glip_hf.kernels import cpu_linear
from glip_hf.ops_glip import operation, register_kernel

ON_CPU = ["cpu_linear", "cpu_int8", "cpu_swin", "cpu_fusion", "cpu_dyconv", "absorbed_fusion"]
FLOATS = ("logits", "bbox_regression", "centerness_logits", "pred_boxes")


@pytest.fixture(autouse=True)
def _all_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)
    kernels.enable()
    yield
    kernels.enable()


def only(name: str) -> kernels.disable:
    """A context in which one kernel is on."""
    return kernels.disable(*(other for other in kernels.names() if other != name))


def still_model(**overrides) -> GlipForGrounding:
    """In training mode, without anything random."""
    model = tiny_model(fusion_dropout=0.0, dropblock_prob=0.0, **overrides)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model: GlipForGrounding) -> dict[str, Tensor]:
    model.zero_grad()
    model(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        error = (found[name] - grad).norm() / grad.norm().clamp(min=1e-3)
        assert error < 1e-4, f"{name}: {error:.1e}"


def test_names() -> None:
    assert set(kernels.names()) == {*ON_CPU, "triton_deform_conv", "torchvision_deform_conv"}


@torch.no_grad()
@pytest.mark.parametrize("use_fusion", [True, False])
@pytest.mark.parametrize("name", [*ON_CPU, "all"])
def test_on_equals_off_in_inference(name, use_fusion) -> None:
    model, inputs = tiny_model(use_fusion=use_fusion), tiny_inputs(3, height=70, width=90)
    inputs["attention_mask"][1, 5:] = 0
    with kernels.disable():
        expected = model(**inputs)
    if name == "all":
        found = model(**inputs)
    else:
        with only(name):
            found = model(**inputs)
    for key in FLOATS:
        torch.testing.assert_close(
            found[key], expected[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", [*ON_CPU, "all"])
def test_on_equals_off_in_gradients(name) -> None:
    model = still_model()
    with kernels.disable():
        expected = gradients(model)
    if name == "all":
        found = gradients(model)
    else:
        with only(name):
            found = gradients(model)
    assert_same_gradients(found, expected)


@torch.no_grad()
def test_report() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    usual = {"swin_layer": "cpu_swin", "linear": "cpu_linear", "fusion": "cpu_fusion", "dyconv": "cpu_dyconv"}
    assert kernels.report(model, inputs) == usual
    with kernels.disable("cpu_fusion"):
        assert kernels.report(model, inputs) == usual | {"fusion": "absorbed_fusion"}
    with kernels.disable():
        assert set(kernels.report(model, inputs).values()) == {"plain"}
    handle = model.model.tower["blocks"][0].dyconv.offset_conv.register_forward_hook(lambda *_: None)
    report = kernels.report(model, inputs)
    handle.remove()
    assert report == usual | {"dyconv": "plain (1), cpu_dyconv (1)", "deform_conv2d": "plain"}


def test_disable_and_enable() -> None:
    def on() -> set[str]:
        return set(kernels.names()) - ops_glip._disabled

    everything = set(kernels.names())
    kernels.disable("cpu_swin")
    assert on() == everything - {"cpu_swin"}
    with kernels.disable("cpu_dyconv"), kernels.disable():
        assert on() == set()
    assert on() == everything - {"cpu_swin"}
    kernels.disable()
    kernels.enable("cpu_swin")
    assert on() == {"cpu_swin"}
    kernels.enable()
    assert on() == everything
    for call in (kernels.disable, kernels.enable):
        with pytest.raises(ValueError, match="no kernel is named 'cpu_swim': choose from .*cpu_swin"):
            call("cpu_swim")


def test_overlapping_disables_do_not_undo_each_other() -> None:
    """As two threads interleave, and two threads that do."""
    first, second = kernels.disable(), kernels.disable("cpu_swin")
    first.__exit__()
    assert ops_glip._disabled == {"cpu_swin"}
    second.__exit__()
    second.__exit__()
    assert not ops_glip._disabled
    with second:  # once more
        assert ops_glip._disabled == {"cpu_swin"}
    assert not ops_glip._disabled
    seen: list[bool] = []

    def work() -> None:
        for _ in range(200):
            with kernels.disable("cpu_dyconv"):
                seen.append(ops_glip.is_enabled("cpu_dyconv"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(seen) and len(seen) == 800 and not ops_glip._disabled


def test_environment_variable() -> None:
    """Read when the package is first imported, here by two children of a process that has imported Transformers."""
    code = """
import os
import transformers.modeling_utils
for value in ("0", "1"):
    if not os.fork():
        os.environ["GLIP_KERNELS"] = value
        from tiny import tiny_inputs, tiny_model
        from glip_hf import kernels
        print(kernels.report(tiny_model(), tiny_inputs())["dyconv"], flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent / "src")])
    assert python(code, environment=os.environ | {"PYTHONPATH": path}).split() == ["plain", "cpu_dyconv"]


def test_a_kernel_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_glip, "_kernels", {})

    @operation("double")
    def double(x: Tensor) -> Tensor:
        """Twice x."""
        return 2 * x

    @register_kernel("double", "for_pairs", lambda x: len(x) == 2)
    def for_pairs(plain, x: Tensor) -> Tensor:
        return plain(x) + 1

    assert double(torch.ones(1)).tolist() == [2] and double(torch.ones(2)).tolist() == [3, 3]
    assert double.plain(torch.ones(2)).tolist() == [2, 2] and double.__doc__ == "Twice x."
    traced = torch.compile(double, backend="eager", fullgraph=True)
    assert traced(torch.ones(2)).tolist() == [2, 2]  # it did not say that it may be recorded
    with pytest.raises(ValueError, match="'double' has a kernel named 'for_pairs' already"):
        register_kernel("double", "for_pairs", lambda x: True)(for_pairs)


def test_model_files_hold_the_plain_mathematics_only() -> None:
    shelf = Path(ops_glip.__file__).parent
    words = re.compile(r"is_traced|overwrite|reference|may_fuse|is_compiling|onednn|device\.type|\.kernels")
    for name in ("modeling_glip.py", "swin_glip.py"):
        lines = (shelf / name).read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if words.search(line)] == [], name
