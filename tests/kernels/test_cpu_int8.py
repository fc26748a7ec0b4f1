# Copyright 2026 The glip_hf authors. MIT licence.
"""Products with torchao's int8 weights: the arithmetic, and which weights the kernels read. With torchao itself:
tests/test_adapters.py."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from glip_hf import kernels
from glip_hf.kernels import cpu_int8, cpu_linear, guards
from glip_hf.kernels.cpu_int8 import Int8Weight, dense, is_readable, join, multiply, read_weight


class Int8Tensor(Tensor):
    """What the kernels read of torchao's class."""


def per_row(symmetric: bool = True, reduce_range: bool = False, granularity: str = "PerRow") -> SimpleNamespace:
    mapping = SimpleNamespace(name="SYMMETRIC" if symmetric else "ASYMMETRIC")
    return SimpleNamespace(granularity=type(granularity, (), {})(), mapping_type=mapping, reduce_range=reduce_range)


def quantised(rows: int = 6, columns: int = 32, seed: int = 0, dynamic: bool = True, **attributes) -> Int8Tensor:
    generator = torch.Generator().manual_seed(seed)
    qdata = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    weight = torch.zeros(rows, columns).as_subclass(Int8Tensor)
    values = {
        "qdata": qdata,
        "scale": torch.rand(rows, 1, generator=generator) + 0.5,
        "block_size": [1, columns],
        "act_pre_scale": None,
        "act_quant_scale": None,
        "act_quant_kwargs": per_row() if dynamic else None,
    }
    for name, value in (values | attributes).items():
        setattr(weight, name, value)
    return weight


@pytest.fixture(autouse=True)
def _torchao(monkeypatch: pytest.MonkeyPatch):
    """A torchao that has the class, on a processor with VNNI, without gradients."""
    monkeypatch.setitem(sys.modules, "torchao.quantization", SimpleNamespace(Int8Tensor=Int8Tensor))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    with torch.no_grad():
        yield


def whole_numbers(*shape: int) -> Tensor:
    """Multiples of 1/4 up to 127/4: quantised without an error, except for the first of a row, 127.5/4."""
    x = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(3)).float()
    x[..., 0] = 127.5
    return x / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32,), (1, 32), (5, 32), (2, 7, 32), (0, 32)])
def test_what_needs_no_rounding_is_exact(shape, dtype, monkeypatch) -> None:
    monkeypatch.setattr(cpu_int8, "ROW_BLOCK", 4)  # so that some are several blocks, the last one smaller
    weight, x, bias = read_weight(quantised(), torch.float32), whole_numbers(*shape).to(dtype), torch.arange(6.0)
    weight.values[:, 0] = 0
    expected = (x.double() @ weight.values.double().t() * weight.scale.double() + bias).to(dtype)
    found = multiply(x, weight, bias.to(dtype))
    assert found.dtype == dtype and found.shape == (*shape[:-1], 6)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(multiply(x, weight) + bias, expected.float(), rtol=tolerance, atol=tolerance)


def test_result_goes_where_it_is_wanted() -> None:
    weight, x, summand = read_weight(quantised(), torch.float32), torch.randn(5, 32), torch.randn(5, 6)
    out = torch.empty(5, 6)
    assert cpu_linear.linear(x, weight, summand, out) is out
    torch.testing.assert_close(out, multiply(x, weight) + summand)


def test_rows_do_not_depend_on_each_other() -> None:
    weight, x = read_weight(quantised(), torch.float32), torch.randn(9, 32) * torch.logspace(-3, 3, 9)[:, None]
    together = multiply(x, weight)
    assert torch.equal(together, torch.cat([multiply(row[None], weight) for row in x]))
    error = (together - x @ (weight.values * weight.scale[:, None]).t()).norm(dim=1) / together.norm(dim=1)
    assert 0 < error.max() < 0.02
    x[3, 5] = torch.nan
    changed = multiply(x, weight)
    assert changed[3].isnan().all() and torch.equal(changed[4:], together[4:])


def test_a_row_of_zeros() -> None:
    weight, bias = read_weight(quantised(), torch.float32), torch.arange(6.0)
    assert torch.equal(multiply(torch.zeros(2, 32), weight, bias), bias.expand(2, -1))


def test_weights_alone_are_quantised() -> None:
    weight, x = quantised(dynamic=False), torch.randn(5, 32)
    values = weight.qdata.float() * weight.scale
    assert torch.equal(read_weight(weight, torch.float32), values) and torch.equal(dense(weight, torch.float32), values)
    torch.testing.assert_close(cpu_linear.linear(x, weight), x @ values.t())
    x = x.bfloat16()  # of a model whose other weights were cast later
    torch.testing.assert_close(cpu_linear.linear(x, weight), x @ values.bfloat16().t())


def test_narrow_weights_multiply_in_bfloat16(monkeypatch) -> None:
    weight, wide = quantised(), quantised(256, 256)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert torch.equal(read_weight(weight, torch.bfloat16), dense(weight, torch.bfloat16))
    assert isinstance(read_weight(weight, torch.float32), Int8Weight)
    assert isinstance(read_weight(wide, torch.bfloat16), Int8Weight)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert isinstance(read_weight(weight, torch.bfloat16), Int8Weight)


def test_several_weights_as_one() -> None:
    first, second, plain = quantised(4), quantised(3, seed=1), torch.randn(2, 32)
    joined = join([first, second], torch.float32)
    assert isinstance(joined, Int8Weight) and torch.equal(joined.values, torch.cat([first.qdata, second.qdata]))
    x = torch.randn(5, 32)
    parts = torch.cat([cpu_linear.linear(x, weight) for weight in (first, second)], dim=1)
    assert torch.equal(cpu_linear.linear(x, joined), parts)
    assert torch.equal(join([first, plain], torch.float32), torch.cat([dense(first, torch.float32), plain]))
    assert torch.equal(join([plain, plain], torch.float32), torch.cat([plain, plain]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"act_quant_kwargs": per_row(symmetric=False)},
        {"act_quant_kwargs": per_row(reduce_range=True)},
        {"act_quant_kwargs": per_row(granularity="PerTensor")},
        {"act_quant_scale": torch.ones(1)},
        {"act_pre_scale": torch.ones(32)},
        {"block_size": [6, 32]},
        {"block_size": [1, 8]},
    ],
)
def test_other_ways_of_quantising_are_left_to_torchao(attributes) -> None:
    assert not is_readable(quantised(**attributes))


def test_when_weights_are_left_to_torchao(monkeypatch) -> None:
    weight = quantised()
    assert is_readable(weight) and not is_readable(torch.zeros(6, 32))
    with torch.enable_grad():
        assert not is_readable(weight)
    with kernels.disable("cpu_int8"):
        assert not is_readable(weight)
        assert read_weight(weight, torch.float32) is weight and dense(weight, torch.float32) is weight
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not is_readable(weight) and is_readable(quantised(dynamic=False))
    monkeypatch.delitem(sys.modules, "torchao.quantization")
    assert not is_readable(quantised(dynamic=False))


def test_kernels_read_them() -> None:
    module = nn.Sequential(nn.Linear(32, 6))
    weight = quantised()
    module[0].weight = nn.Parameter(weight, requires_grad=False)
    vars(module[0].weight).update(vars(weight))
    parts = {"0": nn.Linear}
    assert type(module[0].weight) is Int8Tensor
    assert guards.parts_are_plain(module, parts)
    with kernels.disable("cpu_int8"):
        assert not guards.parts_are_plain(module, parts)
