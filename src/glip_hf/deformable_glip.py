# Copyright 2026 The glip_hf authors. MIT licence.
"""Modulated deformable 3x3 convolution (DCNv2, arXiv 1811.11168): one signature, one dispatch.

Letters: B maps, C channels in, D channels out, H x W map, h x w output positions, P = h * w, K = 9 taps.
"""

import torch
from torch import Tensor, nn
from transformers.utils import is_torchvision_available

TAPS = 9


def view_offsets_as(offset: Tensor, mask: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Read the memory of `offset` and `mask` as if it were shaped for a map of `height` x `width`.

    The kernel that GLIP was trained with never compared sizes: a convolution on the coarser level received the offsets
    of the finer one and took the first `18 * height * width` (and `9 * height * width`) values of each sample. Released
    weights depend on it; gradients flow into those elements only. Of equal sizes it is the identity.

    Args:
        offset: [B, 18, H, W]; mask: [B, 9, H, W].
        height, width: of the convolution's output.

    Returns:
        [B, 18, height, width] and [B, 9, height, width].
    """
    if offset.shape[-2:] == (height, width):
        return offset, mask
    positions = height * width
    return (
        offset.flatten(1)[:, : 2 * TAPS * positions].unflatten(1, (2 * TAPS, height, width)),
        mask.flatten(1)[:, : TAPS * positions].unflatten(1, (TAPS, height, width)),
    )


def _corners(offset: Tensor, mask: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Rows and weights of the four cells each tap is interpolated from.

    Returns:
        indices [B, h, w, K, 4] int64 into the flattened map and weights [B, h, w, K, 4], at least float32, bilinear
        weight times modulation; a corner outside the map has weight 0.
    """
    height, width = size
    out_height, out_width = offset.shape[-2:]
    device = offset.device
    # [B, 18, h, w] -> [B, h, w, K, 2] with (dy, dx) last; coordinates need float32 at any precision of the model
    dtype = torch.promote_types(offset.dtype, torch.float32)
    moves = offset.to(dtype).unflatten(1, (TAPS, 2)).permute(0, 3, 4, 1, 2)
    step = torch.arange(3, device=device, dtype=dtype) - 1
    row = torch.arange(out_height, device=device, dtype=dtype) * stride
    column = torch.arange(out_width, device=device, dtype=dtype) * stride
    y = moves[..., 0] + row[:, None, None] + step.repeat_interleave(3)
    x = moves[..., 1] + column[:, None] + step.repeat(3)
    y0, x0 = y.floor(), x.floor()
    ys = torch.stack([y0, y0, y0 + 1, y0 + 1], dim=-1)
    xs = torch.stack([x0, x0 + 1, x0, x0 + 1], dim=-1)
    weights = (1 - (ys - y[..., None]).abs()) * (1 - (xs - x[..., None]).abs())
    outside = (ys < 0) | (ys > height - 1) | (xs < 0) | (xs > width - 1)
    modulation = mask.to(dtype).permute(0, 2, 3, 1)[..., None]
    weights = torch.where(outside, 0, weights * modulation)
    # Before the cast: neither a far-away float nor NaN has an integer. NaN stays in the weight, so it reaches the loss.
    ys, xs = ys.nan_to_num(0).clamp(0, height - 1), xs.nan_to_num(0).clamp(0, width - 1)
    indices = ys.long() * width + xs.long()
    return indices, weights


def deform_conv2d_torch(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Plain PyTorch, any device, differentiable; see `deform_conv2d`.

    Each tap is a weighted sum of four channel rows, which is what `embedding_bag` computes: the map lies
    channels-last, so a corner is one contiguous read, and one matrix product follows. Positions are joined and split as
    *last* dimension: beside channels, `torch.export` confuses a symbolic side of one cell with a factor of theirs.
    """
    batch, channels, height, width = features.shape
    out_height, out_width = offset.shape[-2:]
    indices, weights = _corners(offset, mask, (height, width), stride)
    first_row = torch.arange(batch, device=features.device) * (height * width)
    rows = features.transpose(0, 1).flatten(1).t().contiguous()
    columns = nn.functional.embedding_bag(
        (indices + first_row[:, None, None, None, None]).reshape(-1, 4),
        rows,
        mode="sum",
        per_sample_weights=weights.reshape(-1, 4).to(rows.dtype),
    )
    kernel = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
    columns = columns.view(batch * out_height * out_width, TAPS * channels)
    out = nn.functional.linear(columns, kernel, bias)
    return out.t().unflatten(1, (batch, out_height, out_width)).transpose(0, 1)


def deform_conv2d_torchvision(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """The same through torchvision's compiled operator; see `deform_conv2d`."""
    if is_torchvision_available():  # custom code may import under such a condition only
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

    # One dtype for all operands, and coordinates that half precision cannot hold: run in float32.
    out = torchvision_deform_conv2d(
        features.float(),
        offset.float(),
        weight.float(),
        bias.float(),
        stride=stride,
        padding=1,
        mask=mask.float(),
    )
    return out.to(features.dtype)


def deform_conv2d(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Modulated deformable 3x3 convolution with padding 1.

    A tap at (y, x) is interpolated bilinearly from the map extended by zeros, so it is 0 at y <= -1, y >= H, x <= -1 or
    x >= W.

    Args:
        features: [B, C, H, W].
        offset: [B, 18, h, w] in cells; channel 2k is dy and 2k + 1 is dx of tap k, taps row-major.
        mask: [B, 9, h, w], the modulation of each tap, already in 0..1.
        weight: [D, C, 3, 3]; bias: [D].
        stride: 1 or 2.

    Returns:
        [B, D, h, w] in the dtype of `features`.

    Raises:
        ValueError: if h x w is not the size a 3x3 convolution of this stride gives.
    """
    expected = tuple((side - 1) // stride + 1 for side in features.shape[-2:])
    if tuple(offset.shape[-2:]) != expected or tuple(mask.shape[-2:]) != expected:
        raise ValueError(
            f"offset {tuple(offset.shape)} and mask {tuple(mask.shape)} must have the output's size {expected} "
            f"for a map of {tuple(features.shape[-2:])} at stride {stride}; see view_offsets_as."
        )
    use_torchvision = features.is_cuda and is_torchvision_available()
    kernel = deform_conv2d_torchvision if use_torchvision else deform_conv2d_torch
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type):
        # As in the released recipe: under autocast this operator stays in float32.
        with torch.autocast(device_type, enabled=False):
            return kernel(features.float(), offset.float(), mask.float(), weight.float(), bias.float(), stride)
    return kernel(features, offset, mask, weight, bias, stride)


__all__ = ["deform_conv2d", "deform_conv2d_torch", "deform_conv2d_torchvision", "view_offsets_as"]
