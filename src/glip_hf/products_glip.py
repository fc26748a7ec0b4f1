# Copyright 2026 The glip_hf authors. MIT licence.
"""Matrix products on CPUs, by whichever of PyTorch's two libraries is faster on the machine at hand.

PyTorch multiplies float32 matrices by MKL, which keeps to vectors of 256 bits on processors that are not Intel's, and
convolves by oneDNN, which takes those of 512 bits wherever they are: on an AMD EPYC with AVX-512 the first reached 218
GFLOP/s on two cores and the second 490. A product is a convolution with a kernel of one cell, so each can do the work
of the other; the results differ by rounding.

Letters: M rows, K columns that are summed over, N columns of the result.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .fast_path_glip import is_traced
from .reference_glip import GlipReferencePart

SMALLEST_GAIN = 1.25
"""How much faster oneDNN must be at a product of `TRIAL_SIDE` to be used: far from where noise would decide."""

TRIAL_SIDE = 512
TRIALS = 5

SMALLEST_ROWS = 8
"""Rows from which on a product goes by oneDNN, which brings the other matrix into an order of its own first: on two
cores 20 rows of 768 times 768 columns took 120 us and 174, 194 rows 530 us and 1,150."""

SMALLEST_COLUMNS = 8
"""The same for columns: a product with few of them reads memory, however it is computed."""

PLACED_ROWS = 2048
"""Rows at a time of a result that has its place already: the library gives memory of its own, copied from the cache."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` of [M, K], [N, K] and [N] by oneDNN, through the operator that `torch.compile` puts in the
    place of linear layers on CPUs."""
    if not (weight.is_mkldnn or weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # rows of strides 0, as gradients of sums have them, took minutes
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@functools.cache
def _gain(threads: int) -> float:
    """How many times faster oneDNN is than MKL at a product of matrices of `TRIAL_SIDE`, with so many threads."""
    x, weight = (torch.full((TRIAL_SIDE, TRIAL_SIDE), 0.5) for _ in range(2))
    forms = (lambda: nn.functional.linear(x, weight), lambda: onednn_linear(x, weight))
    with torch.inference_mode():
        seconds = [[_seconds(form) for form in forms] for _ in range(1 + TRIALS)][1:]
    native, onednn = map(min, zip(*seconds))
    return native / onednn


def onednn_available() -> bool:
    """Whether this build of PyTorch has oneDNN and lets it be called for a product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_pays() -> bool:
    """Whether products in float32 go by oneDNN: measured once for each number of threads, in some 20 ms."""
    return onednn_available() and _gain(torch.get_num_threads()) >= SMALLEST_GAIN


def _may_leave_mkl(*matrices: Tensor) -> bool:
    """Whether products of these matrices go by oneDNN, if they are not too small. Not those of tensors of other kinds
    (quantised, distributed), which bring products of their own."""
    return (
        all(type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" for x in matrices)
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and onednn_pays()
    )


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def pack(weight: Tensor, rows: int) -> Tensor:
    """`weight` [N, K] for several calls of `linear` with `rows` rows each, without gradients: in oneDNN's own order
    where that is used. Nothing but `linear` can read it then."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows) if _may_leave_mkl(weight) else weight


class LinearByOneDNN(torch.autograd.Function):
    """`nn.functional.linear` whose products, those of the backward pass too, go by the faster library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_x = linear(grad, weight.t()) if for_x else None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        grad_weight = product_over_rows(grad, x) if for_weight else None
        return grad_x, grad_weight, grad.sum(0) if for_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` by the faster library.

    Args:
        x: [..., K]; weight: [N, K], or what `pack` made of it.
        bias: [N], or of the shape of the result: whatever is to be added to it.
        out: [M, N], where to put the result (not with gradients); `x` is [M, K] then.
    """
    plain = out is None and (bias is None or bias.dim() == 1)
    if not weight.is_mkldnn:
        large = x.numel() >= SMALLEST_ROWS * x.shape[-1] and min(weight.shape) >= SMALLEST_COLUMNS
        fast = large and _may_leave_mkl(x, weight)
        if plain and not fast:
            return nn.functional.linear(x, weight, bias)
        if _wants_gradient(x, weight, bias):
            return LinearByOneDNN.apply(x, weight, bias) if plain else x @ weight.t() + bias
        if not fast:
            return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    rows = x.flatten(0, -2)
    if plain:
        return onednn_linear(rows, weight, bias).view(*x.shape[:-1], -1)
    out = x.new_empty(len(x), len(weight)) if out is None else out
    for start in range(0, len(rows), PLACED_ROWS):
        some = slice(start, start + PLACED_ROWS)
        if bias is not None and bias.dim() > 1:
            torch.add(onednn_linear(rows[some], weight), bias[some], out=out[some])
        else:
            out[some] = onednn_linear(rows[some], weight, bias)
    return out


def product_over_rows(x: Tensor, y: Tensor, total: Tensor | None = None) -> Tensor:
    """x^T y of [M, N] and [M, K]: [N, K]; with `total` [N, K] it is added to that, in place."""
    fast = min(*x.shape, *y.shape) >= SMALLEST_COLUMNS and _may_leave_mkl(x, y) and not _wants_gradient(x, y)
    if not fast:
        return x.t() @ y if total is None else total.addmm_(x.t(), y)
    # The first operand must be turned in memory, the second not: let that be the smaller one.
    if x.shape[1] <= y.shape[1]:
        product = onednn_linear(x.t(), y.t())
    else:
        product = onednn_linear(y.t(), x.t()).t()
    return product if total is None else total.add_(product)


class GlipLinear(GlipReferencePart, nn.Linear):
    """`nn.Linear` by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        if self.reference:
            return super().forward(x)
        return linear(x, self.weight, self.bias)


def speed_up_linears(module: nn.Module) -> None:
    """Make every plain `nn.Linear` within a module that was built elsewhere a `GlipLinear`."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = GlipLinear


__all__ = [
    "GlipLinear",
    "linear",
    "onednn_available",
    "onednn_linear",
    "onednn_pays",
    "pack",
    "product_over_rows",
    "speed_up_linears",
]
