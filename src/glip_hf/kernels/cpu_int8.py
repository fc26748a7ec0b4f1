# Copyright 2026 The glip_hf authors. MIT licence.
"""torchao's int8 weights on CPUs: what the kernels, which read the weights of modules, do in place of calling them.

`Int8DynamicActivationInt8WeightConfig` multiplies int8 by int8, each row of the input quantised by its largest value.
torchao's own form of it takes some ten passes over the input before the product; this one takes five, in blocks that a
cache holds, and one primitive of oneDNN on the weight as it is stored: bringing it into oneDNN's blocked layout takes
as long as hundreds of rows, and keeping both takes twice the memory. `Int8WeightOnlyConfig` saves memory: a weight is
made floating point when a module runs.

Letters: M rows, K columns that are summed over, N columns of the result.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops_glip import is_enabled, is_traced

KERNEL = "cpu_int8"

RANGE = 127.5  # what the largest value of a row is scaled to, by torchao's rule: rounded to -128 or, clamped, 127

ROW_BLOCK = 2048  # rows that are quantised and multiplied at a time

# Columns or rows of a weight below which products in bfloat16, where the processor has them, take less time than
# quantising their input: CPU time of a layer of Swin at 800 x 1066 with 96, 192, 384 and 768 channels 124, 100, 85 and
# 79 ms in bfloat16, 162, 102, 66 and 55 ms in int8 (float32 231, 176, 153 and 155)
NARROW = 256


class Int8Weight(NamedTuple):
    """A weight for products with inputs that are quantised too."""

    values: Tensor  # [N, K] int8
    scale: Tensor  # [N] float32


def _is_int8(weight: Tensor) -> bool:
    """Whether this is torchao's class: there is none before something imported torchao."""
    torchao = sys.modules.get("torchao.quantization")
    return torchao is not None and type(weight) is getattr(torchao, "Int8Tensor", None)


def supports(feature: str) -> bool:
    """Whether this processor has instructions, and PyTorch knows of them."""
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", bool)())


def is_readable(weight: Tensor) -> bool:
    """Whether kernels may compute with this weight of torchao's: int8 with a scale per row, on a CPU, in inference.
    What quantises the input must be nothing, or the symmetric largest value of a row on a processor with VNNI."""
    if not _is_int8(weight) or torch.is_grad_enabled() or is_traced() or not is_enabled(KERNEL):
        return False
    if weight.device.type != "cpu" or weight.dim() != 2 or list(weight.block_size) != [1, weight.shape[1]]:
        return False
    if any(getattr(weight, name, weight) is not None for name in ("act_pre_scale", "act_quant_scale")):
        return False  # static scales, or another version of torchao
    if weight.act_quant_kwargs is None:
        return True
    options = weight.act_quant_kwargs
    per_row = type(options.granularity).__name__ == "PerRow" and options.mapping_type.name == "SYMMETRIC"
    return per_row and not options.reduce_range and supports("vnni")


def read_weight(weight: Tensor, dtype: torch.dtype) -> Tensor | Int8Weight:
    """What `cpu_linear.linear` takes for a weight [N, K] and inputs of this dtype: itself, or the values of an int8
    one, in floating point where only the weight is quantised or int8 does not pay."""
    if isinstance(weight, Int8Weight) or not is_readable(weight):
        return weight
    narrow = dtype == torch.bfloat16 and min(weight.shape) < NARROW and supports("avx512_bf16")
    if weight.act_quant_kwargs is None or narrow:
        return dense(weight, dtype)
    return Int8Weight(weight.qdata, weight.scale.flatten().float())


def dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight [N, K], an int8 one in floating point: its own dtype is that of the model when it was quantised."""
    return weight.qdata.float().mul_(weight.scale).to(dtype) if is_readable(weight) else weight


def join(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | Int8Weight:
    """Several weights [N_i, K] as one of all rows."""
    read = [read_weight(weight, dtype) for weight in weights]
    if all(isinstance(weight, Int8Weight) for weight in read):
        return Int8Weight(*(torch.cat(parts) for parts in zip(*read)))
    return torch.cat([dense(weight, dtype) for weight in weights])


def multiply(x: Tensor, weight: Int8Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` in int8, in the dtype of `x`.

    Args:
        x: [..., K]; bias: [N], or of the shape of the result.
        out: [M, N], where to put the result.
    """
    rows = x.reshape(-1, weight.values.shape[1])
    result = x.new_empty(len(rows), len(weight.values)) if out is None else out
    summand = None if bias is None else bias.float()
    for start in range(0, len(rows), ROW_BLOCK):
        block = slice(start, start + ROW_BLOCK)
        part = rows[block].float()
        # Two passes of `amax` and `amin` take a third of the time of one of `aminmax`.
        scale = torch.maximum(part.amax(1, keepdim=True), part.amin(1, keepdim=True).neg_()) / RANGE
        scale.clamp_(min=torch.finfo(torch.float32).eps)
        values = torch.mul(part, scale.reciprocal()).round_().clamp_(max=127).to(torch.int8)
        product = torch._int_mm(values, weight.values.t()).float().mul_(scale)
        if summand is None:
            torch.mul(product, weight.scale, out=result[block])
        else:
            some = summand if summand.dim() == 1 else summand[block]
            torch.addcmul(some, product, weight.scale, out=result[block])
    return result.view(*x.shape[:-1], len(weight.values)) if out is None else out
