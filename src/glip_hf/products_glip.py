# Copyright 2026 The glip_hf authors. MIT licence.
"""Matrix products on CPUs, by whichever of PyTorch's two libraries is faster on the machine at hand.

PyTorch multiplies float32 matrices by MKL, which keeps to vectors of 256 bits on processors that are not Intel's, and
convolves by oneDNN, which takes those of 512 bits wherever they are: on an AMD EPYC with AVX-512 the first reached 218
GFLOP/s on two cores and the second 490. A product is a convolution with a kernel of one cell, so each can do the work
of the other; the results differ by rounding.

The forward pass of training stays with MKL, as the original's did: where a tap of a deformable convolution reads is
decided by its place, and a place that rounding moves across a border shows in the gradients (of a recorded case the
norms moved by up to 1.1e-4, where MKL differs by 2e-6). Its backward pass and inference have no such borders.

Letters: M rows, K columns that are summed over, N columns of the result.
"""

import functools
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fast_path_glip import is_traced

SMALLEST_GAIN = 1.25
"""How much faster oneDNN must be at a product of `TRIAL_SIDE` to be used: far from where noise would decide."""

TRIAL_SIDE = 512
TRIALS = 15
"""With 5, a process that had to share the cores during them took the slower library for good."""

SMALLEST_SIDE = 8
"""Rows and columns from which on a product goes by oneDNN: with fewer it reads memory, however it is computed."""

FEW_ROWS, SMALLEST_WEIGHT = 64, 2**18
"""Fewer rows than the first go by oneDNN only if the weight has the second's numbers: a call takes some 30 us."""

TURNED_ROWS = 128
"""Rows up to which a weight with more rows than that is the first operand and not the second, which oneDNN brings into
an order of its own. 8 rows of 768 columns times a weight of 3,072: MKL 620 us, oneDNN 830, turned 290; 64 rows 2,410,
1,320, 830; 128 rows 4,220, 1,880, 1,590; 194 rows 5,330, 2,480, 2,350 (two cores, weights from memory)."""

PLACED_ROWS = 2048
"""Rows at a time of a result that has its place already: the library gives memory of its own, copied from the cache."""

ROW_UNIT, SUMMED_ROWS = 64, 1024
"""`product_over_rows` goes by oneDNN for multiples of the first, up to twice the second, or in blocks of the second."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` of [M, K], [N, K] and [N] by oneDNN.

    As a convolution, whose code for each shape it meets takes 0.06 MiB. Of the operator that `torch.compile` puts in
    the place of linear layers it is 0.6 MiB (oneDNN keeps the last 1,024), so that is for `pack` and `_turned_product`,
    which meet few shapes.
    """
    if weight.is_mkldnn:
        return _pointwise(x, weight, bias)
    if len(x) <= TURNED_ROWS < len(weight):
        out = _convolve(weight, x, None).t()
        return out.contiguous() if bias is None else torch.add(out, bias, out=x.new_empty(out.shape))
    return _convolve(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    as_map = x.contiguous().view(1, x.shape[0], 1, x.shape[1]).permute(0, 3, 1, 2)
    kernel = weight.contiguous()[:, :, None, None]
    # Not `conv2d`: that one sends single pictures to MKL where there is one thread.
    out = torch.mkldnn_convolution(as_map, kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return out.permute(0, 2, 3, 1).view(x.shape[0], weight.shape[0])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def _turned_product(x: Tensor, y: Tensor) -> Tensor:
    """x^T y of [M, N] and [M, K] by oneDNN."""
    # The first operand must be turned in memory, the second not: let that be the smaller one.
    if x.shape[1] <= y.shape[1]:
        return _pointwise(x.t(), y.contiguous().t())
    return _pointwise(y.t(), x.contiguous().t()).t()


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
    """Whether this build of PyTorch has oneDNN, lets it be called for a product, and nobody switched it off
    (`torch.backends.mkldnn.flags(enabled=False)`)."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_pays() -> bool:
    """Whether products in float32 go by oneDNN: measured once for each number of threads, in some 40 ms."""
    return onednn_available() and _gain(torch.get_num_threads()) >= SMALLEST_GAIN


_kept: ContextVar[bool] = ContextVar("kept", default=False)
"""Whether products stay with MKL for now; see `apply_function`."""


def _may_leave_mkl(*matrices: Tensor) -> bool:
    """Whether products of these matrices go by oneDNN, if they are not too small. Not those of tensors of other kinds
    (quantised, distributed), which bring products of their own."""
    return (
        all(type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" for x in matrices)
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and not _kept.get()
        and onednn_pays()
    )


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; where gradients are on, the products of its forward pass stay with MKL. The function
    itself cannot tell: within `forward` they are off."""
    token = _kept.set(torch.is_grad_enabled())
    try:
        return function.apply(*args)
    finally:
        _kept.reset(token)


class PackedWeight(NamedTuple):
    """A weight [N, K] as it is, and in oneDNN's own order for products of so many rows."""

    plain: Tensor
    packed: Tensor
    rows: int


def pack(weight: Tensor, rows: int) -> Tensor | PackedWeight:
    """`weight` [N, K] for several calls of `linear`, most of them with `rows` rows, without gradients: in oneDNN's own
    order for those, where that is used. Nothing but `linear` can read it then."""
    if torch.is_grad_enabled() or not _may_leave_mkl(weight):
        return weight
    return PackedWeight(weight, torch.ops.mkldnn._reorder_linear_weight(weight, rows), rows)


class TrainedLinear(torch.autograd.Function):
    """`nn.functional.linear` whose backward pass goes by the faster library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_x = linear(grad, weight.t()) if for_x else None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        grad_weight = product_over_rows(grad, x) if for_weight else None
        return grad_x, grad_weight, grad.sum(0) if for_bias else None


def _is_large(rows: int, weight: Tensor) -> bool:
    """Whether so many rows times a weight are worth a call of oneDNN."""
    return min(rows, *weight.shape) >= SMALLEST_SIDE and (rows >= FEW_ROWS or weight.numel() >= SMALLEST_WEIGHT)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` by the faster library; where a gradient is asked for, only its backward pass.

    Args:
        x: [..., K]; weight: [N, K], or what `pack` made of it.
        bias: [N], or of the shape of the result: whatever is to be added to it.
        out: [M, N], where to put the result (not with gradients); `x` is [M, K] then.
    """
    plain = out is None and (bias is None or bias.dim() == 1)
    count = x.numel() // max(x.shape[-1], 1)
    if isinstance(weight, PackedWeight):
        weight = weight.packed if count == weight.rows else weight.plain
    if not weight.is_mkldnn:
        fast = _may_leave_mkl(x, weight) and _is_large(count, weight)
        if torch.is_grad_enabled():
            if fast and plain and any(part is not None and part.requires_grad for part in (x, weight, bias)):
                return TrainedLinear.apply(x, weight, bias)
            fast = False
        if not fast:
            if plain:
                return nn.functional.linear(x, weight, bias)
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
    rows = len(x)
    large = rows >= ROW_UNIT and min(x.shape[1], y.shape[1]) >= SMALLEST_SIDE
    if torch.is_grad_enabled() or not large or not _may_leave_mkl(x, y):
        return x.t() @ y if total is None else total.addmm_(x.t(), y)
    if total is None:
        total = x.new_zeros(x.shape[1], y.shape[1])
    step = rows if rows % ROW_UNIT == 0 and rows <= 2 * SUMMED_ROWS else SUMMED_ROWS
    for some, other in zip(x.split(step), y.split(step)):
        if len(some) == step:
            total += _turned_product(some, other)
        else:  # a number of rows that may not come again is not worth the code
            total.addmm_(some.t(), other)
    return total


class GlipLinear(nn.Linear):
    """`nn.Linear` by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def speed_up_linears(module: nn.Module) -> None:
    """Make every plain `nn.Linear` within a module that was built elsewhere a `GlipLinear`."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = GlipLinear


__all__ = [
    "GlipLinear",
    "apply_function",
    "linear",
    "onednn_available",
    "onednn_linear",
    "onednn_pays",
    "pack",
    "product_over_rows",
    "speed_up_linears",
]
