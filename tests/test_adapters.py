# Copyright 2026 The glip_hf authors. MIT licence.
"""What wraps or replaces linear layers finds all of them: PEFT and quantisation libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_glip import load_photo, random_model, random_processor
from tiny import tiny_inputs, tiny_labels, tiny_model
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from glip_hf import GlipForGrounding, GlipZeroShotObjectDetectionPipeline, kernels
from glip_hf.evaluation.run import fingerprints
from glip_hf.inference import GroundingEngine
from glip_hf.kernels import cpu_int8, cpu_linear

NUM_LINEAR = 74
"""Linear layers of the tiny model."""


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(**tiny_inputs()).logits.float()


def assert_close_to_the_model(found: Tensor) -> None:
    expected = logits(tiny_model())
    assert (found - expected).abs().max() < 0.6 * expected.std()


def test_all_linear_layers_are_plain() -> None:
    linears = [module for module in tiny_model().modules() if isinstance(module, nn.Linear)]
    assert len(linears) == NUM_LINEAR and {type(module) for module in linears} == {nn.Linear}


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_adapts_all_linear_layers(use_dora) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft): adapters are not tested")
    model = tiny_model()
    expected = logits(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", use_dora=use_dora, r=2)).eval()
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-4)  # adapters start at zero
    assert set(kernels.report(adapted, tiny_inputs()).values()) <= {"plain", "cpu_dyconv", "cpu_linear"}
    adapted.train()(**tiny_inputs(), labels=tiny_labels()).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("lora_B" in name for name in trained) == NUM_LINEAR
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())
    assert all(bool(p.grad.any()) for name, p in trained.items() if "lora_B" in name and "fusion" in name)
    with torch.no_grad():
        for name, p in trained.items():
            if "lora_B" in name:
                p.normal_(std=0.05)
    changed = logits(adapted.eval())
    assert not torch.allclose(changed, expected, atol=1e-3)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), changed, atol=1e-4, rtol=1e-3)


def test_adapters_that_change_are_seen() -> None:
    """By the pipeline, and by an engine that lives on, though both keep the features of texts."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft): adapters are not tested")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model, processor, photo = peft.get_peft_model(random_model(), config), random_processor(96), load_photo()
    model.add_adapter("second", config)
    base = model.eval().get_base_model()
    detector = GlipZeroShotObjectDetectionPipeline(model=base, processor=processor, device="cpu")
    engine = GroundingEngine(base, processor)

    def ask() -> tuple[list, float]:
        names = ["cat", "sofa"]
        return detector(photo, candidate_labels=names, threshold=0.0), engine.encode(names)[0].hidden.sum().item()

    found = [ask()]
    model.set_adapter("second")
    found.append(ask())
    with model.disable_adapter():
        found.append(ask())
    assert ask() == found[1]
    model.set_adapter("default")
    assert ask() == found[0]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert found[first][0] != found[second][0] and found[first][1] != found[second][1]


def test_torch_dynamic_quantisation() -> None:
    model = torch.ao.quantization.quantize_dynamic(tiny_model(), {nn.Linear})
    assert sum(type(m) is torch.ao.nn.quantized.dynamic.Linear for m in model.modules()) == NUM_LINEAR
    assert_close_to_the_model(logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(name, dtype, tmp_path, monkeypatch) -> None:
    """Quantised while loading, saved and loaded again; the kernels compute what torchao's own form does."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed (pip install torchao)")
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)
    tiny_model().save_pretrained(tmp_path / "float")
    config = TorchAoConfig(getattr(quantization, name)(), modules_to_not_convert=[])
    model = GlipForGrounding.from_pretrained(tmp_path / "float", quantization_config=config, dtype=dtype).eval()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == NUM_LINEAR and {type(m.weight) for m in linears} == {quantization.Int8Tensor}
    found, exact = logits(model), logits(tiny_model())
    read_by_kernels = torch.cpu._is_vnni_supported() or "Dynamic" not in name
    if read_by_kernels:  # the fusion's kernel quantises less than torchao's own form, whose largest error is 0.75 std
        assert_close_to_the_model(found)
    assert (found - exact).abs().mean() < 0.1 * exact.std()

    model.save_pretrained(tmp_path / "int8")
    again = GlipForGrounding.from_pretrained(tmp_path / "int8").eval()
    assert again.dtype == dtype and again.config.quantization_config.quant_type == config.quant_type
    assert torch.equal(logits(again), found)
    digests = [fingerprints(GroundingEngine(one, random_processor(96)))["weights"] for one in (model, again)]
    assert digests[0] == digests[1] != fingerprints(GroundingEngine(tiny_model(), random_processor(96)))["weights"]
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32  # of all but the quantised weights
    recast = logits(GlipForGrounding.from_pretrained(tmp_path / "int8", dtype=other).eval())

    with torch.inference_mode():
        report = kernels.report(model, tiny_inputs())
    names = {"swin_layer": "cpu_swin", "linear": "cpu_int8", "fusion": "cpu_fusion", "dyconv": "cpu_dyconv"}
    assert report == names if read_by_kernels else "plain" in report.values()
    with kernels.disable("cpu_int8"):
        expected = logits(model)
    # Not the same: what differs by rounding may be quantised differently, and the fusion's kernel quantises less.
    assert (found - exact).abs().mean() < 1.5 * (expected - exact).abs().mean()
    assert all((one - expected).abs().mean() < 0.1 * exact.std() for one in (found, recast))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_products_are_those_of_torchao(name) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed (pip install torchao)")
    layer, x = nn.Linear(96, 64), torch.randn(3, 50, 96)
    quantization.quantize_(layer, getattr(quantization, name)())
    assert cpu_int8.is_readable(layer.weight) or not torch.cpu._is_vnni_supported()
    found = cpu_linear.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)


def test_precision_of_int8(tmp_path) -> None:
    """What benchmarks/precision.py measures, on few scenes and a tiny model."""
    pytest.importorskip("torchao", reason="torchao is not installed (pip install torchao)")
    options = ["--tiny", "--threads", "1", "--runs", "1", "--scenes", "16", "--size", "64", "90", "--json"]
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "precision.py"
    result = subprocess.run(
        [sys.executable, script, "--no-record", *options], capture_output=True, text=True, check=True
    )
    figures = json.loads(result.stdout.splitlines()[-1])
    for form in ("int8", "int8_weights"):
        assert figures[f"found_by_{form}"] > 0.95 and abs(figures[f"ap_{form}"] - figures["ap_float32"]) < 0.03
        assert figures[f"memory_{form}_over_float32"] < 0.5 and figures[f"seconds_{form}"] > 0
        assert 0 < figures[f"logits_mean_change_{form}"] < figures["logits_standard_deviation"]


def test_quanto() -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="quanto is not installed (pip install optimum-quanto)")
    model = tiny_model()
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert sum(isinstance(module, quanto.QLinear) for module in model.modules()) == NUM_LINEAR
    assert_close_to_the_model(logits(model))


def test_bitsandbytes(tmp_path) -> None:
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed (pip install bitsandbytes)"
    )
    tiny_model().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[])
    model = GlipForGrounding.from_pretrained(tmp_path, quantization_config=config).eval()
    assert sum(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in model.modules()) == NUM_LINEAR
    assert_close_to_the_model(logits(model))
