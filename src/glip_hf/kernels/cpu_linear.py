# Copyright 2026 The glip_hf authors. MIT licence.
"""Matrix products in float32 on CPUs by the faster of PyTorch's two libraries, MKL and oneDNN.

PyTorch multiplies float32 matrices by MKL, which keeps to vectors of 256 bits on processors that are not Intel's, and
convolves by oneDNN, which takes those of 512 bits wherever they are: on an AMD EPYC with AVX-512 the first reached 218
GFLOP/s on two cores and the second 490. A product is a convolution with a 1x1 kernel, so each can do the work of the
other; the results differ by rounding. Which one serves is a fact of the processor, or of `GLIP_CPU_MATMUL`; without
the kernel `cpu_linear` it is MKL, in the products of the other kernels too.

The forward pass of training stays with MKL, as the original's did: which feature-map cells a deformable convolution
reads depends on the sampling point, and a point that rounding moves across a border shows in the gradients (of a
recorded case the norms moved by up to 1.1e-4, where MKL differs by 2e-6). Its backward pass and inference have no such
borders.

Letters: M rows, K columns that are summed over, N columns of the result.
"""

import functools
import os
import platform
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops_glip import is_enabled, is_traced, register_kernel
from .cpu_int8 import KERNEL, Int8Weight, is_readable, multiply, read_weight, supports

MATMUL_VARIABLE = "GLIP_CPU_MATMUL"  # environment variable that chooses the library: "mkl" or "onednn"

SMALLEST_SIDE = 8  # rows and columns from which on a product goes by oneDNN: smaller ones are bound by memory

# Fewer rows than the first go by oneDNN only if the weight has the second's values: a call takes some 30 us
FEW_ROWS, SMALLEST_WEIGHT = 64, 2**18

# Rows up to which a weight with more rows than that is the first operand and not the second, which oneDNN brings into a
# blocked layout. 8 rows of 768 columns times a weight of 3,072: MKL 620 us, oneDNN 830, weight first 290; 64 rows
# 2,410, 1,320, 830; 128 rows 4,220, 1,880, 1,590; 194 rows 5,330, 2,480, 2,350 (two cores, weights from memory).
TRANSPOSED_ROWS = 128

# Rows at a time of a product with `out`: the library allocates its results, which are copied from the cache
OUT_ROWS = 2048

# `product_over_rows` goes by oneDNN for multiples of the first, up to twice the second, or in blocks of the second
ROW_UNIT, SUMMED_ROWS = 64, 1024


# -- which library ---------------------------------------------------------------------------------


def onednn_available() -> bool:
    """Whether this build of PyTorch has oneDNN, lets it be called for a product, and nobody switched it off
    (`torch.backends.mkldnn.flags(enabled=False)`)."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _processor_vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor multiplies faster by oneDNN: one with AVX-512 that is not Intel's, where MKL is in use.

    Raises:
        ValueError: for a value of `GLIP_CPU_MATMUL` other than "mkl" and "onednn".
    """
    choice = os.environ.get(MATMUL_VARIABLE, "").lower()
    if choice not in ("", "mkl", "onednn"):
        raise ValueError(f"{MATMUL_VARIABLE}={choice!r} is not a known library: set it to mkl or onednn, or unset it.")
    if choice:
        return choice == "onednn"
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkl.is_available() and "AuthenticAMD" in _processor_vendor()


def settle_library(recorded: str | None = None) -> str:
    """The library that serves from here on: that of `GLIP_CPU_MATMUL`, else the one `recorded` by an earlier part of
    this run or by its main process, so that a run keeps its library on other machines too."""
    own = "onednn" if onednn_available() and onednn_is_faster() else "mkl"
    if recorded not in ("mkl", "onednn") or recorded == own or os.environ.get(MATMUL_VARIABLE):
        return own
    os.environ[MATMUL_VARIABLE] = recorded
    onednn_is_faster.cache_clear()
    return settle_library()


@functools.cache
def bfloat16_is_native() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX-512-BF16 or AMX) and PyTorch's oneDNN uses it."""
    found = supports("avx512_bf16") or supports("amx_tile")
    return found and onednn_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# Whether products stay with MKL for now; see `apply_function`
_mkl_only: ContextVar[bool] = ContextVar("mkl_only", default=False)


def _may_use_onednn(*matrices: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether products of these matrices go by oneDNN, if they are not too small. Not those of tensors of other kinds
    (quantised, distributed), which bring products of their own. In bfloat16 PyTorch itself multiplies by oneDNN."""
    return (
        all(type(x) in (Tensor, nn.Parameter) and x.dtype == dtype and x.device.type == "cpu" for x in matrices)
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and not _mkl_only.get()
        and is_enabled("cpu_linear")
        and onednn_available()
        and (bfloat16_is_native() if dtype == torch.bfloat16 else onednn_is_faster())
    )


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; where gradients are on, the products of its forward pass stay with MKL. The function
    itself cannot tell: within `forward` they are off."""
    token = _mkl_only.set(torch.is_grad_enabled())
    try:
        return function.apply(*args)
    finally:
        _mkl_only.reset(token)


# -- products by oneDNN ----------------------------------------------------------------------------


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` of [M, K], [N, K] and [N] by oneDNN.

    As a convolution, whose code for each shape it meets takes 0.06 MiB. Of the operator that `torch.compile` puts in
    the place of linear layers it is 0.6 MiB (oneDNN keeps the last 1,024), so that is for `pack` and
    `_onednn_transposed_product`, which meet few shapes.
    """
    if weight.is_mkldnn:
        return _pointwise(x, weight, bias)
    if len(x) <= TRANSPOSED_ROWS < len(weight):
        out = _convolve(weight, x, None).t()
        return out.contiguous() if bias is None else torch.add(out, bias, out=x.new_empty(out.shape))
    return _convolve(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    image = x.contiguous().view(1, x.shape[0], 1, x.shape[1]).permute(0, 3, 1, 2)
    kernel = weight.contiguous()[:, :, None, None]
    # Not `conv2d`: that one sends single images to MKL where there is one thread.
    out = torch.mkldnn_convolution(image, kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return out.permute(0, 2, 3, 1).view(x.shape[0], weight.shape[0])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def _onednn_transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """x^T y of [M, N] and [M, K] by oneDNN."""
    # The first operand must be transposed in memory, the second not: let that be the smaller one.
    if x.shape[1] <= y.shape[1]:
        return _pointwise(x.t(), y.contiguous().t())
    return _pointwise(y.t(), x.contiguous().t()).t()


class PackedWeight(NamedTuple):
    """A weight [N, K] as it is, and in oneDNN's blocked layout for products of so many rows."""

    plain: Tensor
    packed: Tensor
    rows: int


def pack(weight: Tensor | Int8Weight, rows: int) -> Tensor | PackedWeight | Int8Weight:
    """`weight` [N, K] for several calls of `linear`, most of them with `rows` rows, without gradients: in oneDNN's
    blocked layout for those, where that is used. Nothing but `linear` can read it then."""
    if isinstance(weight, Int8Weight):
        return weight
    dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    if torch.is_grad_enabled() or not _may_use_onednn(weight, dtype=dtype):
        return weight
    return PackedWeight(weight, torch.ops.mkldnn._reorder_linear_weight(weight, rows), rows)


def even_blocks(count: int, most: int) -> list[slice]:
    """Slices of one length, at most `most`, that together cover `count` rows, so that products meet one shape and may
    be packed for it. The last reaches back into the one before, or is shorter where that would be more than 1/16 of
    all rows."""
    step = -(-count // max(1, -(-count // most)))
    blocks = [slice(start, min(start + step, count)) for start in range(0, count, step or 1)]
    if blocks and 16 * (-count % step) <= count:
        blocks[-1] = slice(count - step, count)
    return blocks


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


def linear(
    x: Tensor, weight: Tensor | PackedWeight | Int8Weight, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`nn.functional.linear` by the faster library; where a gradient is asked for, only its backward pass.

    Args:
        x: [..., K]; weight: [N, K], what `pack` made of it, or an int8 weight.
        bias: [N], or of the shape of the result: whatever is to be added to it.
        out: [M, N], where to put the result (not with gradients); `x` is [M, K] then.
    """
    plain = out is None and (bias is None or bias.dim() == 1)
    count = x.numel() // max(x.shape[-1], 1)
    if isinstance(weight, PackedWeight):
        weight = weight.packed if count == weight.rows else weight.plain
    weight = read_weight(weight, x.dtype)
    if isinstance(weight, Int8Weight):
        return multiply(x, weight, bias, out)
    if not weight.is_mkldnn:
        fast = _may_use_onednn(x, weight) and _is_large(count, weight)
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
    for start in range(0, len(rows), OUT_ROWS):
        some = slice(start, start + OUT_ROWS)
        if bias is not None and bias.dim() > 1:
            torch.add(onednn_linear(rows[some], weight), bias[some], out=out[some])
        else:
            out[some] = onednn_linear(rows[some], weight, bias)
    return out


def product_over_rows(x: Tensor, y: Tensor, total: Tensor | None = None) -> Tensor:
    """x^T y of [M, N] and [M, K]: [N, K]; with `total` [N, K] it is added to that, in place."""
    rows = len(x)
    large = rows >= ROW_UNIT and min(x.shape[1], y.shape[1]) >= SMALLEST_SIDE
    if torch.is_grad_enabled() or not large or not _may_use_onednn(x, y):
        return x.t() @ y if total is None else total.addmm_(x.t(), y)
    if total is None:
        total = x.new_zeros(x.shape[1], y.shape[1])
    step = rows if rows % ROW_UNIT == 0 and rows <= 2 * SUMMED_ROWS else SUMMED_ROWS
    for some, other in zip(x.split(step), y.split(step)):
        if len(some) == step:
            total += _onednn_transposed_product(some, other)
        else:  # a number of rows that may not come again is not worth the code
            total.addmm_(some.t(), other)
    return total


# -- the linear layers of a module -----------------------------------------------------------------


class FastLinear(TorchFunctionMode):
    """While active, `nn.functional.linear` is `linear`: every `nn.Linear` within takes the faster library, called as it
    is, with its hooks and adapters."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_linear_of_matrices if function is nn.functional.linear else function)(*args, **(kwargs or {}))


def _linear_of_matrices(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear`, its arguments by name or position; of vectors as PyTorch computes it."""
    if weight.dim() != 2 or input.dim() < 2:
        return nn.functional.linear(input, weight, bias)
    return linear(input, weight, bias)


def _accepts(module: nn.Module, *_args: Any, **_kwargs: Any) -> bool:
    # With gradients, checkpointing may compute a layer again outside the mode, and saved tensors would differ.
    parameter = next(module.parameters(), None)
    return not torch.is_grad_enabled() and parameter is not None and _may_use_onednn(parameter)


def _accepts_int8(module: nn.Module, *_args: Any, **_kwargs: Any) -> bool:
    return "torchao" in sys.modules and any(is_readable(parameter) for parameter in module.parameters())


@register_kernel("linear", "cpu_linear", _accepts)
@register_kernel("linear", KERNEL, _accepts_int8)
def _with_fast_linear(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Any forward, its linear layers by the faster library."""
    with FastLinear():
        return plain(*args, **kwargs)
