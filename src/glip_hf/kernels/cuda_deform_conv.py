# Copyright 2026 The glip_hf authors. MIT licence.
"""The deformable convolution on CUDA: by Triton, or else by torchvision's compiled operator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_torchvision_available, is_triton_available

from ..ops_glip import register_kernel


def _accepts_triton(features: Tensor, *_args: Any) -> bool:
    if not (features.is_cuda and is_triton_available()):
        return False
    from .triton_deform_conv import triton_runs

    return triton_runs(features)


@register_kernel("deform_conv2d", "triton_deform_conv", _accepts_triton, traceable=True)
def triton_deform_conv(
    _plain: Callable[..., Any],
    features: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
) -> Tensor:
    """`ops_glip.deform_conv2d`, without the matrix of columns: not yet measured on a GPU.

    Under autocast to bfloat16 only the operands of the products are rounded. In float32 they would not go to the matrix
    units, and take several times as long as the rest of a training step: an estimate from vendors' peaks.
    """
    from .triton_deform_conv import deform_conv2d_triton

    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        dtype = half if half == torch.bfloat16 else torch.float32  # float16 has no room for gradients
        offset, mask = offset.float(), mask.float()
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    return deform_conv2d_triton(features, offset, mask, weight, bias, stride)


def _accepts_torchvision(features: Tensor, *_args: Any) -> bool:
    return features.is_cuda and is_torchvision_available()


@register_kernel("deform_conv2d", "torchvision_deform_conv", _accepts_torchvision, traceable=True)
def torchvision_deform_conv(
    _plain: Callable[..., Any],
    features: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
) -> Tensor:
    """`ops_glip.deform_conv2d`: one dtype for all operands, and coordinates that half precision cannot hold, so it runs
    in float32."""
    from torchvision.ops import deform_conv2d

    out = deform_conv2d(
        features.float(), offset.float(), weight.float(), bias.float(), stride=stride, padding=1, mask=mask.float()
    )
    return out if torch.is_autocast_enabled("cuda") else out.to(features.dtype)
