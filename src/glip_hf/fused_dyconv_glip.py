# Copyright 2026 The glip_hf authors. MIT licence.
"""A DyConv block on the tokens of all levels at once, for CPUs: what `GlipDyConv` computes, in few passes.

* Every cell's offsets come from one matrix product over all levels and a sum of nine of its parts.
* Three deformable convolutions, one a kernel, take all levels; the maps are never copied out of the tokens.
* GroupNorm and scale attention multiply and shift whole channels of a level. So do their means, which are all the scale
  attention and the Dynamic ReLU look at: from the first two moments of what a convolution gave, everything up to the
  result is known, and one pass makes it.

Letters: B pictures, A cells of all levels, finest first, row-major; L levels; D channels; K = 9 taps; Q cells that a
kernel answers for (all levels, all but the finest, all but the finest); S = 3 * L - 2 segments, the levels of each
kernel: conv_mid's, conv_low's, conv_high's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .deformable_glip import TAPS, TapGrid, make_tap_grid, sampled_product
from .fast_path_glip import plain_backward, shape_constants
from .products_glip import apply_function, linear, onednn_available, product_over_rows

MERGE_BLOCK = 1024
"""Cells that are averaged, and merged in the last pass, at a time."""

ROW_NUMBERS = 16
"""Numbers in a cache line, float32."""


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6, in 0..1."""
    return nn.functional.relu6(x + 3) / 6


def to_tokens(pyramid: Sequence[Tensor]) -> Tensor:
    """Levels [B, D, H_i, W_i] to tokens [B, A, D], finest first, row-major."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)


def to_pyramid(tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Inverse of `to_tokens`; the levels are channels-last views."""
    sizes = [height * width for height, width in spatial_shapes]
    return [
        level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(tokens.split(sizes, dim=1), spatial_shapes)
    ]


class PyramidPlan(NamedTuple):
    """Constants of the sizes of a pyramid's levels."""

    sizes: tuple[int, ...]
    """Cells of each level."""
    neighbours: Tensor
    """[A, K] int32: (1 + cell) * K + tap, the product that tap `tap` of each cell reads; 0 beyond the map."""
    readers: Tensor
    """[A, K] int32: 1 + the cell that reads a cell as its tap, 0 for none."""
    grids: tuple[TapGrid, TapGrid, TapGrid]
    """Of conv_mid, conv_low and conv_high."""
    quirk: Tensor
    """[Q * 27] int64: where in [A * 27] conv_high finds its offsets and masks; see `view_offsets_as`."""
    raised_average: Tensor
    """[L - 1, Q]: the mean of conv_high's answer *after* its enlargement to the finer level."""
    corners: tuple[Tensor, Tensor]
    """Rows [A - cells of the coarsest level, 4] int32 and weights: bilinear enlargement of each level to the finer."""
    corners_back: tuple[Tensor, Tensor, Tensor]
    """The reverse as bags: int32 members, their first [Q], weights."""
    join: Tensor
    """[L, S]: 1 where a segment is a candidate of a level."""


def _cell(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Row-major number of cell (y, x), -1 beyond the map."""
    return torch.where((y >= 0) & (y < height) & (x >= 0) & (x < width), y * width + x, -1)


def _linear_weights(fine: int, coarse: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bilinear enlargement with aligned corners: lower neighbour int64 and share of the upper float64, both [fine]."""
    place = torch.arange(fine, device=device, dtype=torch.float64) * ((coarse - 1) / max(fine - 1, 1))
    low = place.floor().clamp(max=max(coarse - 2, 0))
    return low.long(), place - low


@shape_constants(maxsize=8)
def pyramid_plan(shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> PyramidPlan:
    """Constants for levels of these heights and widths, each half the one before, rounded up; at least two.

    Averages and weights are made for sums in `dtype`, float32 or float64.
    """
    sizes = tuple(height * width for height, width in shapes)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    cells, readers, grids, quirk, corners, shares = [], [], ([], [], []), [], [], []
    step = torch.arange(3, device=device) - 1
    dy, dx = step.repeat_interleave(3), step.repeat(3)
    channel = torch.arange(3 * TAPS, device=device)
    for i, (height, width) in enumerate(shapes):
        index = torch.arange(sizes[i], device=device)
        y, x = index[:, None] // width, index[:, None] % width
        for sign, found in ((1, cells), (-1, readers)):
            cell = _cell(y + sign * dy, x + sign * dx, height, width)
            found.append(torch.where(cell < 0, -1, cell + starts[i]))
        grids[0].append(make_tap_grid(height, width, 1, starts[i], device))
        if i == 0:
            continue
        fine_height, fine_width = shapes[i - 1]
        grids[1].append(make_tap_grid(fine_height, fine_width, 2, starts[i - 1], device))
        grids[2].append(make_tap_grid(height, width, 1, starts[i], device))
        # Value f of the coarser [18 or 9, h, w] is value f of the finer [18 or 9, H, W]. Masks follow the offsets.
        first = torch.where(channel < 2 * TAPS, 0, 2 * TAPS)
        flat = (channel - first) * sizes[i] + index[:, None]
        source = (starts[i - 1] + flat % sizes[i - 1]) * 3 * TAPS + first + flat // sizes[i - 1]
        quirk.append(source.flatten())
        (top, down), (left, right) = (
            _linear_weights(fine, coarse, device) for fine, coarse in zip(shapes[i - 1], shapes[i])
        )
        bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
        start = starts[i] - sizes[0]
        rows = torch.stack([row[:, None] * width + column for row in (top, bottom) for column in (left, end)], dim=-1)
        share = torch.stack([a[:, None] * b for a in (1 - down, down) for b in (1 - right, right)], dim=-1)
        corners.append(rows.flatten(0, 1) + start)
        shares.append(share.flatten(0, 1))

    answered = starts[-1] - sizes[0]
    neighbours = torch.cat(cells)
    neighbours = torch.where(neighbours < 0, 0, (1 + neighbours) * TAPS + torch.arange(TAPS, device=device))
    corners, shares = torch.cat(corners), torch.cat(shares)
    order = corners.flatten().argsort(stable=True)
    count = torch.bincount(corners.flatten(), minlength=answered)
    # Of each weight of the enlargement: the level it is for, and its part of that level's mean
    level_of = torch.arange(len(sizes) - 1, device=device).repeat_interleave(torch.tensor(sizes[:-1], device=device))
    parts = shares / torch.tensor(sizes[:-1], device=device)[level_of, None]
    raised = torch.zeros(len(sizes) - 1, answered, device=device, dtype=shares.dtype)
    raised.index_put_((level_of[:, None], corners), parts, accumulate=True)
    shares = shares.to(dtype)
    eye = torch.eye(len(sizes), device=device, dtype=dtype)
    return PyramidPlan(
        sizes,
        neighbours.int(),
        (1 + torch.cat(readers)).int(),
        tuple(TapGrid(*(torch.cat(parts) for parts in zip(*grid))) for grid in grids),
        torch.cat(quirk),
        raised.to(dtype),
        (corners.int(), shares),
        ((order // 4).int(), (count.cumsum(0) - count).int(), shares.flatten()[order]),
        torch.cat([eye, eye[:, 1:], eye[:, :-1]], dim=1),
    )


def _of_pictures(index: Tensor, pictures: int, stride: int) -> Tensor:
    """An index [A, K] of one picture's rows to [B * A, K] of all pictures' rows, `stride` a picture; 0 is none's."""
    if pictures == 1:
        return index
    first = torch.arange(pictures, dtype=torch.int32, device=index.device)[:, None, None] * stride
    return torch.where(index > 0, index + first, 0).flatten(0, 1)


class TokenConvolution(torch.autograd.Function):
    """A plain 3x3 convolution of all levels: one product for all taps, then every cell sums the nine it reads."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, plan: PyramidPlan) -> Tensor:
        """[B, A, D], [O, D, 3, 3] and [O] to [B, A, O]."""
        batch, cells, _ = tokens.shape
        # Rows of whole cache lines: with 9 * 27 columns the product took 46 ms, with 9 * 32 it took 31 (18,134 cells).
        outputs = len(weight)
        kernel = nn.functional.pad(weight.permute(2, 3, 0, 1), (0, 0, 0, -outputs % ROW_NUMBERS)).flatten(0, 2)
        products = tokens.new_empty(1 + batch * cells, len(kernel))
        products[0] = 0
        linear(tokens.flatten(0, 1), kernel, out=products[1:])
        rows = _of_pictures(plan.neighbours, batch, cells * TAPS)
        out = nn.functional.embedding_bag(rows, products.view(-1, len(kernel) // TAPS), mode="sum")
        out = out[:, :outputs]
        ctx.save_for_backward(tokens, weight)
        ctx.plan = plan
        return out.add_(bias).unflatten(0, (batch, cells))

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        batch, cells, _ = tokens.shape
        rows = _of_pictures(ctx.plan.readers, batch, cells)
        table = nn.functional.pad(grad.flatten(0, 1), (0, 0, 1, 0))
        grad_products = nn.functional.embedding(rows, table).flatten(1)  # [B * A, K * O]
        grad_tokens = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_tokens = linear(grad_products, weight.permute(1, 2, 3, 0).flatten(1)).view_as(tokens)
        if ctx.needs_input_grad[1]:
            grad_weight = product_over_rows(tokens.flatten(0, 1), grad_products)
            grad_weight = grad_weight.unflatten(1, (3, 3, -1)).permute(3, 0, 1, 2)
        return grad_tokens, grad_weight, grad.sum((0, 1)), None


def convolve_levels(tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """What `TokenConvolution` computes, level by level and without gradients: by oneDNN in 5.7 ms in place of 7.7
    (18,134 cells) and in an eighth of the memory. PyTorch's own convolution takes 47 ms."""
    outputs = len(weight)
    # A kernel of whole cache lines here too: with 27 outputs 6.3 ms.
    pad = -outputs % ROW_NUMBERS
    weight = nn.functional.pad(weight, (0, 0) * 3 + (0, pad)).contiguous(memory_format=torch.channels_last)
    bias = nn.functional.pad(bias, (0, pad))
    answers = [nn.functional.conv2d(level, weight, bias, padding=1) for level in to_pyramid(tokens, shapes)]
    return to_tokens([answer[:, :outputs] for answer in answers])


class QuirkView(torch.autograd.Function):
    """The offsets and masks that conv_high reads, [B, A, 27] to [B, Q, 27]."""

    @staticmethod
    def forward(ctx: Any, moves: Tensor, plan: PyramidPlan) -> Tensor:
        ctx.plan, ctx.shape = plan, moves.shape
        return moves.flatten(1)[:, plan.quirk].unflatten(1, (-1, moves.shape[2]))

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad_moves = grad.new_zeros(ctx.shape)
        grad_moves.flatten(1).index_copy_(1, ctx.plan.quirk, grad.flatten(1))  # no two cells read the same number
        return grad_moves, None


class Moments(torch.autograd.Function):
    """Mean and mean square of every channel of every level."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """[B, Q, D], levels of `sizes` cells one after the other, to [B, levels, D] twice."""
        ctx.save_for_backward(x)
        ctx.sizes = sizes
        mean = x.new_zeros(len(x), len(sizes), x.shape[2])
        square = torch.zeros_like(mean)
        for i, level in enumerate(x.split(sizes, dim=1)):
            for some in level.split(MERGE_BLOCK, dim=1):
                mean[:, i] += some.sum(1)
                square[:, i] += some.square().sum(1)
        count = x.new_tensor(sizes)[:, None]
        return mean.div_(count), square.div_(count)

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad_mean: Tensor, grad_square: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = torch.empty_like(x)
        for i, (level, place) in enumerate(zip(x.split(ctx.sizes, dim=1), grad.split(ctx.sizes, dim=1))):
            size = ctx.sizes[i]
            torch.addcmul(grad_mean[:, i, None] / size, level, grad_square[:, i, None] * (2 / size), out=place)
        return grad, None


def enlarged(x: Tensor, plan: PyramidPlan, cells: slice) -> Tensor:
    """Cells `cells` of all levels but the coarsest, interpolated from the next coarser one: [B, Q, D] to [B, n, D]."""
    rows, weights = (part[cells] for part in plan.corners)
    picture = torch.arange(len(x), device=x.device, dtype=torch.int32)[:, None, None]
    out = nn.functional.embedding_bag(
        (rows + picture * x.shape[1]).flatten(0, 1),
        x.flatten(0, 1),
        mode="sum",
        per_sample_weights=weights.expand(len(x), -1, -1).flatten(0, 1),
    )
    return out.unflatten(0, (len(x), -1))


def enlarged_back(grad: Tensor, plan: PyramidPlan) -> Tensor:
    """The transpose of `enlarged` of all cells: [B, A - cells of the coarsest, D] to [B, Q, D]."""
    members, first, weights = plan.corners_back
    picture = torch.arange(len(grad), device=grad.device, dtype=torch.int32)[:, None]
    out = nn.functional.embedding_bag(
        (members + picture * grad.shape[1]).flatten(),
        grad.flatten(0, 1),
        (first + picture * len(members)).flatten(),
        mode="sum",
        per_sample_weights=weights.expand(len(grad), -1).flatten(),
    )
    return out.unflatten(0, (len(grad), -1))


class Merge(torch.autograd.Function):
    """The weighted sum of a level's candidates and the maximum of two linear pieces of it.

    conv_high's answer is enlarged on the way, a block at a time, again in the backward pass.
    """

    @staticmethod
    def _parts(plan: PyramidPlan) -> list[tuple[int, slice, list[tuple[int, int, slice]]]]:
        """Of each block: level, its cells, and (kernel, segment, where) of each candidate."""
        parts, start, last = [], 0, len(plan.sizes) - 1
        for level, size in enumerate(plan.sizes):
            for first in range(start, start + size, MERGE_BLOCK):
                end = min(first + MERGE_BLOCK, start + size)
                cells = slice(first, end)
                candidates = [(0, level, cells)]
                if level > 0:
                    finest = plan.sizes[0]
                    candidates.append((1, last + level, slice(first - finest, end - finest)))
                if level < last:
                    candidates.append((2, 2 * last + 1 + level, cells))
                parts.append((level, cells, candidates))
            start += size
        return parts

    @staticmethod
    def _read(sources: Sequence[Tensor], kernel: int, cells: slice, plan: PyramidPlan) -> Tensor:
        """A candidate [B, n, D]."""
        return enlarged(sources[2], plan, cells) if kernel == 2 else sources[kernel][:, cells]

    @staticmethod
    def forward(
        ctx: Any,
        mid: Tensor,
        low: Tensor,
        high: Tensor,
        scale: Tensor,
        shift: Tensor,
        theta: Tensor,
        plan: PyramidPlan,
        out: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            mid: [B, A, D]; low, high: [B, Q, D]: what the convolutions gave.
            scale: [B, S, D], factor of each segment; shift: [B, L, D], added to each level.
            theta: [B, L, 4, D]: slope, offset, slope, offset of the two pieces.
            out: [B, A, D], where to put the result; there is no backward pass then. By default it takes the place of
                `mid` where no gradient is asked for.

        Returns:
            [B, A, D].
        """
        ctx.save_for_backward(mid, low, high, scale, shift, theta)
        ctx.plan = plan
        # Without a backward pass `mid` is of no use but here, and fresh memory costs more than the sum itself.
        if out is None:
            out = torch.empty_like(mid) if any(ctx.needs_input_grad) else mid
        sources = mid, low, high
        for level, cells, candidates in Merge._parts(plan):
            merged = shift[:, level, None]
            for kernel, segment, where in candidates:
                merged = torch.addcmul(merged, Merge._read(sources, kernel, where, plan), scale[:, segment, None])
            slope1, offset1, slope2, offset2 = theta[:, level, :, None].unbind(1)
            first, second = torch.addcmul(offset1, merged, slope1), torch.addcmul(offset2, merged, slope2)
            torch.maximum(first, second, out=out[:, cells])
        return out

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *sources, scale, shift, theta = ctx.saved_tensors
        plan = ctx.plan
        grads = [torch.empty_like(source) for source in sources[:2]]
        grads.append(grad.new_empty(len(grad), len(plan.corners[0]), grad.shape[2]))
        grad_scale, grad_shift, grad_theta = (torch.zeros_like(x) for x in (scale, shift, theta))
        for level, cells, candidates in Merge._parts(plan):
            merged = shift[:, level, None]
            read = [Merge._read(sources, kernel, where, plan) for kernel, _, where in candidates]
            for candidate, (_, segment, _) in zip(read, candidates):
                merged = torch.addcmul(merged, candidate, scale[:, segment, None])
            slope1, offset1, slope2, offset2 = theta[:, level, :, None].unbind(1)
            # 1 where the first piece is larger, 0 where the second is, and half at a tie, as `torch.maximum` has it
            share = torch.addcmul(offset1 - offset2, merged, slope1 - slope2).sign_().add_(1).mul_(0.5)
            one = share.mul_(grad[:, cells])
            two = grad[:, cells] - one
            for piece, part in enumerate((one, two)):
                grad_theta[:, level, 2 * piece] += (part * merged).sum(1)
                grad_theta[:, level, 2 * piece + 1] += part.sum(1)
            grad_merged = one.mul_(slope1).addcmul_(two, slope2)
            grad_shift[:, level] += grad_merged.sum(1)
            for candidate, (kernel, segment, where) in zip(read, candidates):
                grad_scale[:, segment] += (grad_merged * candidate).sum(1)
                torch.mul(grad_merged, scale[:, segment, None], out=grads[kernel][:, where])
        grads[2] = enlarged_back(grads[2], plan)
        return *grads, grad_scale, grad_shift, grad_theta, None, None


def fits(shapes: list[tuple[int, int]]) -> bool:
    """Whether these levels form a pyramid: at least two, each half the one before, rounded up."""
    pairs = zip(shapes, shapes[1:])
    return len(shapes) > 1 and all(-(-a // 2) == b for fine, coarse in pairs for a, b in zip(fine, coarse))


def fused_dyconv(layer: Any, tokens: Tensor, shapes: list[tuple[int, int]], overwrite: bool = False) -> Tensor:
    """All levels [B, A, D] to the same shape; `layer` is a `GlipDyConv`, `shapes` the heights and widths.

    With `overwrite` (not with gradients) the result takes the place of `tokens`.
    """
    # Means of squares of half precision are of no use: all but the products is in float32 at least.
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    plan = pyramid_plan(tuple((int(height), int(width)) for height, width in shapes), tokens.device, dtype)
    branches = (layer.conv_mid, layer.conv_low, layer.conv_high)
    finest, levels = plan.sizes[0], len(plan.sizes)
    counts = (levels, levels - 1, levels - 1)
    overwrite = overwrite and tokens.dtype == dtype and tokens.is_contiguous()
    offsets = layer.offset_conv.weight, layer.offset_conv.bias
    if torch.is_grad_enabled() or not onednn_available():
        moves = apply_function(TokenConvolution, tokens, *offsets, plan)
    else:
        moves = convolve_levels(tokens, *offsets, shapes)
    moves = (moves, moves[:, finest:], QuirkView.apply(moves, plan))
    answers = [
        sampled_product(
            tokens,
            move[..., : 2 * TAPS].unflatten(2, (TAPS, 2)),
            move[..., 2 * TAPS :].sigmoid(),
            grid,
            branch.conv.weight,
            branch.conv.bias,
        )
        for branch, move, grid in zip(branches, moves, plan.grids)
    ]
    answers = [answer.to(dtype) for answer in answers]
    moments = [Moments.apply(answer, plan.sizes[-count:]) for answer, count in zip(answers, counts)]
    mean, square = (torch.cat(parts, dim=1) for parts in zip(*moments))
    raised = plan.raised_average.expand(len(tokens), -1, -1) @ answers[2]

    # GroupNorm as factor and summand of each segment's channels
    weight, bias = (
        torch.cat([parameter.to(dtype).expand(count, -1) for parameter, count in zip(parameters, counts)])
        for parameters in zip(*((branch.norm.weight, branch.norm.bias) for branch in branches))
    )
    norm = layer.conv_mid.norm
    group_mean, group_square = (x.unflatten(2, (norm.num_groups, -1)).mean(3, keepdim=True) for x in (mean, square))
    deviation = (group_square - group_mean.square()).clamp(min=0) + norm.eps
    scale = weight.unflatten(1, (norm.num_groups, -1)) * deviation.rsqrt()
    shift = bias - (scale * group_mean).flatten(2)
    scale = scale.flatten(2)

    # Scale attention from the means of the normalised, enlarged candidates; the mean of candidates and its own mean
    mean = scale * torch.cat([mean[:, : 2 * levels - 1], raised], dim=1) + shift
    attention = layer.scale_attention
    score = nn.functional.linear(mean, attention.weight.flatten(1).to(dtype), attention.bias.to(dtype))
    join = plan.join
    share = hard_sigmoid(score.relu()) / (join.sum(1) @ join)[:, None]
    scale, shift, mean = share * scale, join @ (share * shift), join @ (share * mean)
    theta = layer.dynamic_relu.pieces(mean.to(tokens.dtype)).to(dtype)
    return Merge.apply(*answers, scale, shift, theta, plan, tokens if overwrite else None).to(tokens.dtype)


__all__ = ["fits", "fused_dyconv", "hard_sigmoid", "pyramid_plan", "to_pyramid", "to_tokens"]
