# Copyright 2026 The glip_hf authors. MIT licence.
"""Products by either library are the same up to rounding, and go by oneDNN only where they may."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_inputs, tiny_model
from torch import Tensor, nn

from glip_hf import kernels
from glip_hf._compat import enable_checkpointing
from glip_hf.kernels import cpu_linear
from glip_hf.kernels.cpu_linear import FastLinear, even_blocks, linear, onednn_is_faster, pack, product_over_rows

SHAPES = [(200, 24, 40), (8, 8, 8), (2100, 16, 24), (5, 16, 24), (64, 4, 16), (64, 16, 4), (0, 16, 24), (64, 0, 16)]
SHAPES += [(12, 600, 500), (100, 24, 200), (128, 24, 129), (129, 24, 129)]
"""Rows, columns summed over, columns of the result: large enough or not, none, and few rows of a large weight."""


class FastLayer(nn.Linear):
    """A linear layer as it runs within the model."""

    def forward(self, x: Tensor) -> Tensor:
        with FastLinear():
            return super().forward(x)


def matrices(rows: int, summed: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((rows, summed), (columns, summed), (columns,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x / max(summed, 1) ** 0.5, weight, bias  # products of x and weight are of size 1


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of oneDNN is an error, though it would be faster."""

    def refuse(*_: object) -> None:
        raise AssertionError("went by oneDNN")

    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_linear, "onednn_linear", refuse)
    monkeypatch.setattr(cpu_linear, "_pointwise", refuse)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("shape", "packed"),
    [(shape, packed) for shape in SHAPES for packed in (False, True) if not (packed and 0 in shape)],
)
@torch.no_grad()
def test_linear(shape: tuple[int, int, int], packed: bool) -> None:
    x, weight, bias = matrices(*shape)
    used = pack(weight, len(x)) if packed else weight
    expected = nn.functional.linear(x, weight)
    added = torch.randn(expected.shape)
    torch.testing.assert_close(linear(x, used), expected)
    torch.testing.assert_close(linear(x, used, bias), expected + bias)
    torch.testing.assert_close(linear(x, used, added), expected + added)
    for summand in (None, bias, added):
        out = torch.full_like(expected, torch.nan)
        assert linear(x, used, summand, out) is out
        torch.testing.assert_close(out, expected if summand is None else expected + summand)


@pytest.mark.skipif(not cpu_linear.bfloat16_is_native(), reason="this processor does not multiply in bfloat16")
@pytest.mark.parametrize("shape", [(200, 24, 40), (100, 24, 200), (2100, 16, 24)])
@torch.no_grad()
def test_packed_bfloat16(shape, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (x.bfloat16() for x in matrices(*shape))
    packed, calls, pointwise = pack(weight, len(x)), [], cpu_linear._pointwise
    monkeypatch.setattr(cpu_linear, "_pointwise", lambda *args: calls.append(args) or pointwise(*args))
    exact = x.double() @ weight.double().t()
    added = torch.randn(exact.shape).bfloat16()
    for summand in (None, bias, added):
        expected = exact if summand is None else exact + summand
        for out in (None, torch.full(exact.shape, torch.nan).bfloat16()):
            found = linear(x, packed, summand, out)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.01)
    count = len(calls)
    assert count >= 6
    torch.testing.assert_close(linear(x[:9], packed).double(), exact[:9], atol=0.03, rtol=0.01)  # other rows: as it is
    assert len(calls) == count


def test_even_blocks() -> None:
    assert even_blocks(0, 8) == []
    assert even_blocks(5, 8) == [slice(0, 5)]
    assert even_blocks(16, 8) == [slice(0, 8), slice(8, 16)]
    assert even_blocks(35, 12) == [slice(0, 12), slice(12, 24), slice(23, 35)]
    assert even_blocks(5, 3) == [slice(0, 3), slice(3, 5)]  # 2 rows twice would be more than 1/16
    for count, most in ((4534, 512), (1131, 74), (7, 1), (1, 9)):
        blocks = even_blocks(count, most)
        assert {row for block in blocks for row in range(block.start, block.stop)} == set(range(count))
        assert len({block.stop - block.start for block in blocks}) == 1 and blocks[0].stop <= most


@pytest.mark.parametrize(("flags", "expected"), [((), False), (("avx512_bf16",), True), (("amx_tile",), True)])
def test_native_bfloat16_is_a_fact_of_the_processor(flags, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in flags, raising=False)
    monkeypatch.setattr(cpu_linear, "onednn_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert cpu_linear.bfloat16_is_native.__wrapped__() == expected
    monkeypatch.setattr(cpu_linear, "onednn_available", lambda: False)
    assert not cpu_linear.bfloat16_is_native.__wrapped__()


@pytest.mark.usefixtures("library")
@torch.no_grad()
def test_linear_of_more_dimensions() -> None:
    x, weight, bias = matrices(60, 16, 24)
    torch.testing.assert_close(
        linear(x.view(3, 4, 5, 16), weight, bias), nn.functional.linear(x, weight, bias).view(3, 4, 5, 24)
    )
    torch.testing.assert_close(linear(x[0], weight, bias), nn.functional.linear(x[0], weight, bias))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_product_over_rows(shape: tuple[int, int, int]) -> None:
    x, weight, _ = matrices(*shape)
    y = torch.randn(len(x), len(weight))
    tolerance = {"atol": 1e-4, "rtol": 1e-5}  # sums of up to 2,100 products
    for first, second in ((x, y), (y, x)):
        expected = first.t() @ second
        torch.testing.assert_close(product_over_rows(first, second), expected, **tolerance)
        total = torch.randn(expected.shape)
        sums = total + expected
        assert product_over_rows(first, second, total) is total
        torch.testing.assert_close(total, sums, **tolerance)


@pytest.mark.usefixtures("library")
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    transposed=st.booleans(),
    cut=st.booleans(),
    same=st.booleans(),
)
@torch.no_grad()
def test_matrices_however_they_lie(sizes: tuple[int, int, int], transposed: bool, cut: bool, same: bool) -> None:
    x, weight, bias = matrices(*sizes)
    y = torch.randn(sizes[0], sizes[2])

    def laid(matrix: Tensor) -> Tensor:
        if same:  # as the gradient of a sum: strides of 0
            matrix = torch.tensor(0.5).expand_as(matrix)
        elif transposed:
            matrix = matrix.t().contiguous().t()
        return torch.cat([matrix, matrix], dim=1)[:, : matrix.shape[1]] if cut else matrix

    x, weight, y = laid(x), laid(weight), laid(y)
    torch.testing.assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(product_over_rows(x, y), x.t() @ y, atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "wanted", [(True, True, True), (False, True, True), (True, False, False), (False, True, False)]
)
def test_gradients(wanted: tuple[bool, ...]) -> None:
    values = [x.requires_grad_(grad) for x, grad in zip(matrices(60, 16, 24), wanted)]
    values[0] = values[0].view(3, 20, 16)
    asked = [x for x, grad in zip(values, wanted) if grad]
    found = torch.autograd.grad(linear(*values).sin().sum(), asked)
    expected = torch.autograd.grad(nn.functional.linear(*values).sin().sum(), asked)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("library")
def test_gradients_of_gradients() -> None:
    def twice(function: object) -> tuple[Tensor, ...]:
        values = [x.requires_grad_() for x in matrices(60, 16, 24)]
        first = torch.autograd.grad(function(*values).sin().sum(), values, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), values)

    torch.testing.assert_close(twice(linear), twice(nn.functional.linear), atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("never")
@torch.no_grad()
def test_only_plain_float32_goes_by_onednn() -> None:
    x, weight, bias = matrices(200, 24, 40)

    class Special(Tensor):
        pass

    expected = nn.functional.linear(x, weight, bias)
    with pytest.raises(AssertionError, match="went by oneDNN"):
        linear(x, weight, bias)
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert type(linear(x, weight.as_subclass(Special))) is Special
    assert linear(x.to("meta"), weight.to("meta")).shape == expected.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert product_over_rows(x, x).shape == (24, 24)
    assert pack(weight.double(), 10).dtype == torch.float64
    assert type(pack(weight.bfloat16().as_subclass(Special), 10)) is Special
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(linear(x, weight, bias), expected)
    with kernels.disable("cpu_linear"):
        torch.testing.assert_close(linear(x, weight, bias), expected)
    layer = FastLayer(24, 40)
    with pytest.raises(AssertionError, match="went by oneDNN"):
        layer(x)
    graph = torch.export.export(layer, (x,)).graph
    assert torch.ops.aten.linear.default in [node.target for node in graph.nodes]


@pytest.mark.parametrize(
    ("choice", "capability", "vendor", "expected"),
    [
        ("", "AVX512", "vendor_id\t: AuthenticAMD", True),
        ("", "AVX2", "vendor_id\t: AuthenticAMD", False),
        ("", "AVX512", "vendor_id\t: GenuineIntel", False),
        ("mkl", "AVX512", "vendor_id\t: AuthenticAMD", False),
        ("OneDNN", "AVX2", "", True),
    ],
)
def test_the_library_is_a_fact_of_the_processor(choice, capability, vendor, expected, monkeypatch) -> None:
    monkeypatch.setenv(cpu_linear.MATMUL_VARIABLE, choice)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_linear, "_processor_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn_is_faster.__wrapped__() == expected


def test_an_unknown_library_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(cpu_linear.MATMUL_VARIABLE, "blis")
    with pytest.raises(ValueError, match="GLIP_CPU_MATMUL='blis' is not a known library: set it to mkl or onednn"):
        onednn_is_faster.__wrapped__()


def test_linear_layers_are_plain_and_their_hooks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), []
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    layer = model.model.text_model.encoder.layer[0].intermediate.dense
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        model(**tiny_inputs())
    handle.remove()
    assert calls == [1]


@pytest.mark.usefixtures("has_onednn")
def test_the_model_is_the_same_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), []
    inputs = tiny_inputs()
    counted = cpu_linear.onednn_linear
    monkeypatch.setattr(cpu_linear, "onednn_linear", lambda *args: calls.append(args) or counted(*args))
    logits = {}
    for onednn in (False, True):
        monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda onednn=onednn: onednn)
        with torch.inference_mode():
            logits[onednn] = model(**inputs).logits
        assert bool(calls) == onednn
    torch.testing.assert_close(*logits.values(), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("never")
def test_the_forward_pass_of_training_stays_with_mkl() -> None:
    """Where sampling points read must not depend on the machine's libraries; the backward pass may."""
    x, weight, bias = matrices(256, 24, 40)
    out = linear(x, weight.requires_grad_(), bias)
    with pytest.raises(AssertionError, match="went by oneDNN"):
        out.sum().backward()

    model, inputs = tiny_model(), tiny_inputs()
    model(**inputs)
    with torch.inference_mode(), pytest.raises(AssertionError, match="went by oneDNN"):
        model(**inputs)


@pytest.mark.usefixtures("library")
@torch.no_grad()
def test_every_way_to_call_a_linear_function() -> None:
    x, weight, bias = matrices(100, 24, 40)
    with FastLinear():
        found = [nn.functional.linear(input=x, weight=weight, bias=bias), nn.functional.linear(x, weight[0])]
    torch.testing.assert_close(found, [nn.functional.linear(x, weight, bias), nn.functional.linear(x, weight[0])])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_linear_layers_within_gradient_checkpointing(use_reentrant: bool) -> None:
    grads = []
    for checkpointing in (False, True):
        model = tiny_model(fusion_dropout=0.0)
        if checkpointing:
            enable_checkpointing(model, {"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.model.neck.drop_prob = 0.0
        for layer in model.model.text_model.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        model(**tiny_inputs()).logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
