# Copyright 2026 The glip_hf authors. MIT licence.
"""Modulated deformable 3x3 convolution (DCNv2, arXiv 1811.11168): one signature, one dispatch.

Letters: B maps, C channels in, D channels out, H x W map, h x w output positions, P = h * w, K = 9 taps, R rows of C
channels: the cells of all maps, channels-last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import is_torchvision_available, is_triton_available

from .fast_path_glip import is_traced, plain_backward, shape_constants
from .products_glip import PackedWeight, apply_function, linear, pack, product_over_rows

TAPS = 9
COLUMN_BLOCK = 512
"""Output positions whose 9 taps are gathered at a time on a CPU: the product then reads them from its cache."""

LOCATED_BLOCK = 8192
"""Output positions whose taps are located at a time in inference; a multiple of `COLUMN_BLOCK`."""

KEPT_COLUMNS = 24 << 20
"""Bytes of gathered taps that are kept for the backward pass; more are gathered again, in blocks of this size."""


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
    below, right = y - y0, x - x0
    weights = torch.stack([1 - below, 1 - below, below, below], dim=-1)
    weights = weights * torch.stack([1 - right, right, 1 - right, right], dim=-1)
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


class TapGrid(NamedTuple):
    """Where the unmoved taps of P positions lie: constants of the sizes. Positions may belong to different maps."""

    base: Tensor
    """[P, K, 2] float32: row and column of each tap in its map."""
    limit: Tensor
    """[P, K, 2] float32: height and width of that map."""
    width: Tensor
    """[P, 1] int32: its width."""
    start: Tensor
    """[P, 1] int32: the row of R where it starts."""


def make_tap_grid(height: int, width: int, stride: int, start: int, device: torch.device) -> TapGrid:
    """The grid of a 3x3 convolution with padding 1 over a map of `height` x `width` that starts at row `start`."""
    step = torch.arange(3, device=device) - 1
    step = torch.stack([step.repeat_interleave(3), step.repeat(3)], dim=-1)  # [K, (dy, dx)]
    y = torch.arange(0, height, stride, device=device)
    x = torch.arange(0, width, stride, device=device)
    centre = torch.stack([y[:, None].expand(-1, len(x)), x.expand(len(y), -1)], dim=-1).reshape(-1, 1, 2)
    base = (centre + step).float()
    limit = torch.tensor([height, width], device=device, dtype=torch.float32).expand_as(base).contiguous()
    width_of, start_of = (torch.full((len(base), 1), x, dtype=torch.int32, device=device) for x in (width, start))
    return TapGrid(base, limit, width_of, start_of)


tap_grid = shape_constants(maxsize=64)(make_tap_grid)
"""The same, kept."""


class LocateTaps(torch.autograd.Function):
    """The four cells each tap is interpolated from, and their weights: bilinear share times modulation."""

    @staticmethod
    def forward(ctx: Any, moves: Tensor, mask: Tensor, grid: TapGrid, picture_rows: int) -> tuple[Tensor, Tensor]:
        """
        Args:
            moves: [B, P, K, 2], (dy, dx), at least float32; mask: [B, P, K].
            picture_rows: rows of R that each of the B pictures has.

        Returns:
            rows [B, P, K, 4] int32 and weights [B, P, K, 4]; a cell outside the map has weight 0.
        """
        place = moves + grid.base
        # What lies further away than one cell counts nothing; the clamp lets NaN pass, so it reaches the loss.
        place = torch.minimum(place.clamp_(min=-2), grid.limit)
        low = place.floor()
        high = low + 1
        high_share = place.sub_(low)
        low_share = 1 - high_share
        last = grid.limit - 1
        low_cell, high_cell = (torch.minimum(end.clamp(min=0), last) for end in (low, high))
        low_inside, high_inside = low == low_cell, high == high_cell
        low_share.mul_(low_inside)
        high_share.mul_(high_inside)
        # Bounded once more: NaN is no integer, and whatever the cast makes of it must be a row.
        low_cell, high_cell = (cell.int().clamp_(min=0) for cell in (low_cell, high_cell))
        start = (
            grid.start + picture_rows * torch.arange(len(moves), device=moves.device, dtype=torch.int32)[:, None, None]
        )
        rows = low_cell.new_empty(*mask.shape, 4)
        weights = low_share.new_empty(*mask.shape, 4)
        for i, (cell, share) in enumerate(((low_cell, low_share), (high_cell, high_share))):
            row, part = cell[..., 0] * grid.width + start, share[..., 0] * mask
            for j, (cell, share) in enumerate(((low_cell, low_share), (high_cell, high_share))):
                torch.add(row, cell[..., 1], out=rows[..., 2 * i + j])
                torch.mul(part, share[..., 1], out=weights[..., 2 * i + j])
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(low_inside, high_inside, low_share, high_share, mask)
        return rows, weights

    @staticmethod
    @plain_backward
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        low_inside, high_inside, low_share, high_share, mask = ctx.saved_tensors
        top, bottom, left, right = low_share[..., 0], high_share[..., 0], low_share[..., 1], high_share[..., 1]
        grad_top = left * grad[..., 0] + right * grad[..., 1]
        grad_bottom = left * grad[..., 2] + right * grad[..., 3]
        grad_left = top * grad[..., 0] + bottom * grad[..., 2]
        grad_right = top * grad[..., 1] + bottom * grad[..., 3]
        grad_mask = top * grad_top + bottom * grad_bottom
        # A share grows by what the other loses, unless its cell lies outside. Between cells the slope jumps: at a cell
        # it is that of the cells after it.
        grad_moves = torch.stack([grad_bottom, grad_right], -1).mul_(high_inside)
        grad_moves -= torch.stack([grad_top, grad_left], -1).mul_(low_inside)
        grad_moves *= mask[..., None]
        return grad_moves, grad_mask, None, None


def _gather_taps(source: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The taps [n, C] of rows and weights [n, 4]: four rows of `source` each, weighted and summed."""
    return nn.functional.embedding_bag(rows, source, mode="sum", per_sample_weights=weights)


def _scatter_taps(taps: Tensor, rows: Tensor, weights: Tensor, size: int) -> Tensor:
    """The transpose of `_gather_taps`: [n, C] to [size, C]. Sorted by row, it is a gather too."""
    rows = rows.flatten()
    # Sorting takes half of the time; numbers of two bytes take half as long to sort.
    order = (rows.short() if size < 2**15 else rows).sort().indices
    count = torch.bincount(rows, minlength=size)
    return nn.functional.embedding_bag(
        order.int() >> 2,
        taps,
        (count.cumsum(0) - count).int(),
        mode="sum",
        per_sample_weights=weights.flatten().index_select(0, order),
    )


def _multiply_taps(
    source: Tensor, rows: Tensor, weights: Tensor, kernel: Tensor | PackedWeight, bias: Tensor, out: Tensor
) -> None:
    """Taps of rows and weights [P * K, 4], gathered `COLUMN_BLOCK` positions at a time, times the kernel: to `out`."""
    step = COLUMN_BLOCK * TAPS
    for some_rows, some_weights, place in zip(rows.split(step), weights.split(step), out.split(COLUMN_BLOCK)):
        taps = _gather_taps(source, some_rows, some_weights)
        linear(taps.view(-1, TAPS * source.shape[1]), kernel, bias, place)


class SampledProduct(torch.autograd.Function):
    """Taps gathered from channels-last rows and multiplied by the kernel, without the 9 times larger matrix of taps
    where that is large."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, rows: Tensor, weights: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """
        Args:
            source: [R, C].
            rows: [P, K, 4] int32; weights: [P, K, 4] in the dtype of `source`.
            kernel: [D, K * C], taps outermost; bias: [D].

        Returns:
            [P, D].
        """
        positions = len(rows)
        size = kernel.shape[1]
        rows, weights = rows.view(-1, 4), weights.view(-1, 4)
        columns = None
        if positions * size * source.element_size() <= KEPT_COLUMNS:
            columns = _gather_taps(source, rows, weights).view(-1, size)
            out = linear(columns, kernel, bias)
        else:
            out = source.new_empty(positions, len(kernel))
            _multiply_taps(source, rows, weights, kernel, bias, out)
        ctx.save_for_backward(source, rows, weights, kernel, columns)
        return out

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, rows, weights, kernel, columns = ctx.saved_tensors
        for_source, _, for_weights, for_kernel, for_bias = ctx.needs_input_grad
        positions, channels = len(grad), source.shape[1]
        block = max(1, KEPT_COLUMNS // (kernel.shape[1] * source.element_size()))
        if columns is not None:
            block = max(1, positions)
        grad_source = torch.zeros_like(source) if for_source else None
        grad_weights = torch.empty_like(weights) if for_weights else None
        grad_kernel = torch.zeros_like(kernel) if for_kernel else None
        for start in range(0, positions, block):
            some = slice(start, start + block)
            taps = slice(start * TAPS, (start + block) * TAPS)
            grad_taps = linear(grad[some], kernel.t()).view(-1, channels)
            if for_kernel:
                gathered = columns
                if gathered is None:
                    gathered = _gather_taps(source, rows[taps], weights[taps]).view(-1, kernel.shape[1])
                product_over_rows(grad[some], gathered, grad_kernel)
                gathered = None
            if for_weights:
                entry = torch.arange(grad_taps.shape[0] * 4, dtype=torch.int32, device=grad.device)
                flat = rows[taps].flatten()
                # The dot products of each tap with its four rows
                grad_weights[taps] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad_taps, source, flat, entry[::4].contiguous(), entry >> 2, 0
                ).view(-1, 4)
            if for_source:
                scattered = _scatter_taps(grad_taps, rows[taps], weights[taps], len(source))
                grad_source = scattered if block >= positions else grad_source.add_(scattered)
        if grad_weights is not None:
            grad_weights = grad_weights.view(-1, TAPS, 4)
        return grad_source, None, grad_weights, grad_kernel, grad.sum(0) if for_bias else None, None


def sampled_product(source: Tensor, moves: Tensor, mask: Tensor, grid: TapGrid, kernel: Tensor, bias: Tensor) -> Tensor:
    """The deformable convolution of B pictures' rows: [B, P, D].

    Args:
        source: [B, rows of a picture, C]; moves: [B, P, K, 2]; mask: [B, P, K]; kernel: [D, C, 3, 3]; bias: [D].
    """
    batch, picture_rows = source.shape[:2]
    precision = torch.promote_types(moves.dtype, torch.float32)
    moves, mask = moves.to(precision), mask.to(precision)
    kernel = kernel.permute(0, 2, 3, 1).flatten(1)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (source, moves, mask, kernel, bias)):
        rows, weights = LocateTaps.apply(moves, mask, grid, picture_rows)
        weights = weights.flatten(0, 1).to(source.dtype)
        out = apply_function(SampledProduct, source.flatten(0, 1), rows.flatten(0, 1), weights, kernel, bias)
        return out.unflatten(0, (batch, -1))
    out = source.new_empty(batch, mask.shape[1], len(kernel))
    packed = pack(kernel, COLUMN_BLOCK)
    for picture in range(batch):
        for start in range(0, mask.shape[1], LOCATED_BLOCK):
            some = slice(start, start + LOCATED_BLOCK)
            own = slice(picture, picture + 1)
            here = TapGrid(*(part[some] for part in grid))
            rows, weights = LocateTaps.apply(moves[own, some], mask[own, some], here, picture_rows)
            weights = weights.view(-1, 4).to(source.dtype)
            _multiply_taps(source[picture], rows.view(-1, 4), weights, packed, bias, out[picture, some])
    return out


def deform_conv2d_cpu(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Plain PyTorch as fast as a CPU gets it, in little memory; see `deform_conv2d`."""
    height, width = features.shape[-2:]
    out = sampled_product(
        features.flatten(2).transpose(1, 2).contiguous(),
        offset.unflatten(1, (TAPS, 2)).permute(0, 3, 4, 1, 2).flatten(1, 2),
        mask.permute(0, 2, 3, 1).flatten(1, 2),
        tap_grid(height, width, stride, 0, features.device),
        weight,
        bias,
    )
    return out.transpose(1, 2).unflatten(2, offset.shape[-2:])


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


def choose_kernel(features: Tensor) -> Callable[..., Tensor]:
    """The version for these features: on CUDA Triton's or else torchvision's; on a CPU, unless traced, its own; the
    plain one elsewhere (MPS)."""
    if features.is_cuda and is_triton_available():
        from .triton_glip import deform_conv2d_triton, triton_runs

        if triton_runs(features):
            return deform_conv2d_triton
    if features.is_cuda and is_torchvision_available():
        return deform_conv2d_torchvision
    if features.device.type == "cpu" and not is_traced():
        return deform_conv2d_cpu
    return deform_conv2d_torch


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
    kernel = choose_kernel(features)
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type):
        # As in the released recipe: under autocast this operator stays in float32.
        with torch.autocast(device_type, enabled=False):
            return kernel(features.float(), offset.float(), mask.float(), weight.float(), bias.float(), stride)
    return kernel(features, offset, mask, weight, bias, stride)


__all__ = [
    "deform_conv2d",
    "deform_conv2d_cpu",
    "deform_conv2d_torch",
    "deform_conv2d_torchvision",
    "make_tap_grid",
    "sampled_product",
    "tap_grid",
    "view_offsets_as",
]
