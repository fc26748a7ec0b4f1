# Copyright 2026 The glip_hf authors. MIT licence.
"""A DyConv block on the tokens of all levels at once, for CPUs: what `GlipDyConv` computes, in few passes.

* Every location's offsets come from one matrix product over all levels and a sum of nine of its parts.
* Three deformable convolutions, one per kernel, take all levels; feature maps are never copied out of the tokens.
* GroupNorm and scale attention multiply and shift whole channels of a level. So do their means, which are all that the
  scale attention and the Dynamic ReLU look at: from the first two moments of a convolution's output, everything up to
  the result is known, and one pass makes it.

Letters: B images, A locations of all levels, finest first, row-major; L levels; C = D channels; K = 9 sampling points;
R rows of C channels; P output positions of a convolution; Q locations that a kernel has outputs for (all levels,
all but the finest, all but the finest); S = 3 * L - 2 segments, the levels of each kernel: conv_mid's, conv_low's,
conv_high's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modeling_glip import (
    GlipDeformableConv,
    GlipDeformableKernel,
    GlipDyConv,
    GlipDynamicReLU,
    hard_sigmoid,
)
from ..ops_glip import NUM_POINTS, once_differentiable, register_kernel, shape_constants, to_pyramid, to_tokens
from .cpu_linear import PackedWeight, apply_function, even_blocks, linear, onednn_available, pack, product_over_rows
from .guards import is_cpu_float, parts_are_plain

# Output positions whose 9 sampling points are gathered at a time: the product then reads them from a CPU's cache. A
# DyConv in float32 takes 387 ms with 512, 375 with this, 377 with 2,048, 479 with 4,608; in bfloat16 200 up to 2,048.
COLUMN_BLOCK = 1024

# Output positions whose sampling points are located at a time in inference; a multiple of `COLUMN_BLOCK`
LOCATED_BLOCK = 8192

# Bytes of gathered values that are kept for the backward pass; more are gathered again, in blocks of this size
KEPT_COLUMNS = 24 << 20

MERGE_BLOCK = 1024  # locations that are merged in the last pass at a time

CACHE_LINE = 16  # values in a cache line, float32

PARTS = {
    "offset_conv": nn.Conv2d,
    "scale_attention": nn.Conv2d,
    "dynamic_relu": GlipDynamicReLU,
    **{name: GlipDeformableConv for name in ("conv_high", "conv_mid", "conv_low")},
    **{f"{name}.conv": GlipDeformableKernel for name in ("conv_high", "conv_mid", "conv_low")},
    **{f"{name}.norm": nn.GroupNorm for name in ("conv_high", "conv_mid", "conv_low")},
}

# -- deformable convolution on rows ----------------------------------------------------------------


class SamplingGrid(NamedTuple):
    """Where the sampling points of P positions lie without offsets: constants of the sizes. Positions may belong to
    different feature maps."""

    base: Tensor  # [P, K, 2] float32: row and column of each sampling point in its map
    limit: Tensor  # [P, K, 2] float32: height and width of that map
    width: Tensor  # [P, 1] int32: its width
    start: Tensor  # [P, 1] int32: the row of R where it starts


def make_sampling_grid(height: int, width: int, stride: int, start: int, device: torch.device) -> SamplingGrid:
    """The grid of a 3x3 convolution with padding 1 over a map of `height` x `width` that starts at row `start`."""
    step = torch.arange(3, device=device) - 1
    step = torch.stack([step.repeat_interleave(3), step.repeat(3)], dim=-1)  # [K, (dy, dx)]
    y = torch.arange(0, height, stride, device=device)
    x = torch.arange(0, width, stride, device=device)
    centre = torch.stack([y[:, None].expand(-1, len(x)), x.expand(len(y), -1)], dim=-1).reshape(-1, 1, 2)
    base = (centre + step).float()
    limit = torch.tensor([height, width], device=device, dtype=torch.float32).expand_as(base).contiguous()
    width_of, start_of = (torch.full((len(base), 1), x, dtype=torch.int32, device=device) for x in (width, start))
    return SamplingGrid(base, limit, width_of, start_of)


class LocatePoints(torch.autograd.Function):
    """The four cells that each sampling point is interpolated from, and their weights: bilinear times modulation."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, mask: Tensor, grid: SamplingGrid, image_rows: int) -> tuple[Tensor, Tensor]:
        """
        Args:
            offset: [B, P, K, 2], (dy, dx), at least float32; mask: [B, P, K].
            image_rows: rows of R that each of the B images has.

        Returns:
            rows [B, P, K, 4] int32 and weights [B, P, K, 4]; a cell outside the map has weight 0.
        """
        point = offset + grid.base
        # What lies further away than one cell counts nothing; the clamp lets NaN pass, so it reaches the loss.
        point = torch.minimum(point.clamp_(min=-2), grid.limit)
        low = point.floor()
        high = low + 1
        high_share = point.sub_(low)
        low_share = 1 - high_share
        last = grid.limit - 1
        low_cell, high_cell = (torch.minimum(end.clamp(min=0), last) for end in (low, high))
        low_inside, high_inside = low == low_cell, high == high_cell
        low_share.mul_(low_inside)
        high_share.mul_(high_inside)
        # Bounded once more: NaN has no integer value, and whatever the cast makes of it must be a row.
        low_cell, high_cell = (cell.int().clamp_(min=0) for cell in (low_cell, high_cell))
        start = (
            grid.start + image_rows * torch.arange(len(offset), device=offset.device, dtype=torch.int32)[:, None, None]
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
    @once_differentiable
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
        grad_offset = torch.stack([grad_bottom, grad_right], -1).mul_(high_inside)
        grad_offset -= torch.stack([grad_top, grad_left], -1).mul_(low_inside)
        grad_offset *= mask[..., None]
        return grad_offset, grad_mask, None, None


def locate_points(offset: Tensor, mask: Tensor, grid: SamplingGrid) -> tuple[Tensor, Tensor]:
    """What `LocatePoints` computes for one image, without gradients and in half of its time, where no side of a map is
    a single cell. Both cells lie inside the map always; the weight of each is 1 - its distance, at least 0."""
    point = offset + grid.base
    low = point.floor().clamp_(min=0)
    torch.minimum(low, grid.limit - 2, out=low)
    cell = low.int().clamp_(min=0)  # NaN as in `LocatePoints`
    near = point.sub_(low)
    far = near - 1
    for share in (near, far):
        share.abs_().neg_().add_(1).clamp_(min=0)
    row = torch.addcmul(cell[..., 1] + grid.start, cell[..., 0], grid.width)
    rows, weights = row.new_empty(*row.shape, 4), far.new_empty(*row.shape, 4)
    for i, down in enumerate((near, far)):
        part = down[..., 0] * mask
        for j, across in enumerate((near, far)):
            torch.add(row, j, out=rows[..., 2 * i + j])
            torch.mul(part, across[..., 1], out=weights[..., 2 * i + j])
        row += grid.width
    return rows, weights


def _gather_points(source: Tensor, rows: Tensor, weights: Tensor, first: Tensor | None = None) -> Tensor:
    """Values [n, C] at sampling points of rows and weights [n, 4]: four rows of `source` each, weighted and summed.
    `first` is where each point starts in the flattened rows, if at hand: 0, 4, 8, ..."""
    if first is None:
        return nn.functional.embedding_bag(rows, source, mode="sum", per_sample_weights=weights)
    return nn.functional.embedding_bag(rows.flatten(), source, first, mode="sum", per_sample_weights=weights.flatten())


def _scatter_points(values: Tensor, rows: Tensor, weights: Tensor, size: int) -> Tensor:
    """The transpose of `_gather_points`: [n, C] to [size, C]. Sorted by row, it is a gather too."""
    rows = rows.flatten()
    # Sorting takes half of the time; integers of two bytes take half as long to sort.
    order = (rows.short() if size < 2**15 else rows).sort().indices
    count = torch.bincount(rows, minlength=size)
    return nn.functional.embedding_bag(
        order.int() >> 2,
        values,
        (count.cumsum(0) - count).int(),
        mode="sum",
        per_sample_weights=weights.flatten().index_select(0, order),
    )


def _multiply_points(
    source: Tensor,
    rows: Tensor,
    weights: Tensor,
    kernel: Tensor | PackedWeight,
    bias: Tensor,
    out: Tensor,
    blocks: Sequence[slice],
) -> None:
    """Values at the points of rows and weights [P * K * 4], gathered for some positions at a time, times the kernel: to
    `out`. `blocks` are those positions."""
    step = 4 * NUM_POINTS
    first = torch.arange(0, step * (blocks[0].stop - blocks[0].start), 4, dtype=torch.int32, device=rows.device)
    for block in blocks:
        part = slice(step * block.start, step * block.stop)
        part_rows = rows[part]
        columns = _gather_points(source, part_rows, weights[part], first[: len(part_rows) // 4])
        linear(columns.view(-1, NUM_POINTS * source.shape[1]), kernel, bias, out[block])


class SampledProduct(torch.autograd.Function):
    """Sampling points gathered from channels-last rows and multiplied by the kernel, without the 9 times larger matrix
    of columns where that is large."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, rows: Tensor, weights: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """
        Args:
            source: [R, C].
            rows: [P, K, 4] int32; weights: [P, K, 4] in the dtype of `source`.
            kernel: [D, K * C], sampling points outermost; bias: [D].

        Returns:
            [P, D].
        """
        positions = len(rows)
        size = kernel.shape[1]
        rows, weights = rows.view(-1, 4), weights.view(-1, 4)
        columns = None
        if positions * size * source.element_size() <= KEPT_COLUMNS:
            columns = _gather_points(source, rows, weights).view(-1, size)
            out = linear(columns, kernel, bias)
        else:
            out = source.new_empty(positions, len(kernel))
            blocks = [slice(i, min(i + COLUMN_BLOCK, positions)) for i in range(0, positions, COLUMN_BLOCK)]
            _multiply_points(source, rows.flatten(), weights.flatten(), kernel, bias, out, blocks)
        ctx.save_for_backward(source, rows, weights, kernel, columns)
        return out

    @staticmethod
    @once_differentiable
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
            part = slice(start, start + block)
            points = slice(start * NUM_POINTS, (start + block) * NUM_POINTS)
            grad_points = linear(grad[part], kernel.t()).view(-1, channels)
            if for_kernel:
                gathered = columns
                if gathered is None:
                    gathered = _gather_points(source, rows[points], weights[points]).view(-1, kernel.shape[1])
                product_over_rows(grad[part], gathered, grad_kernel)
                gathered = None
            if for_weights:
                entry = torch.arange(grad_points.shape[0] * 4, dtype=torch.int32, device=grad.device)
                flat = rows[points].flatten()
                # The dot products of each sampling point's gradient with its four rows
                grad_weights[points] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad_points, source, flat, entry[::4].contiguous(), entry >> 2, 0
                ).view(-1, 4)
            if for_source:
                scattered = _scatter_points(grad_points, rows[points], weights[points], len(source))
                grad_source = scattered if block >= positions else grad_source.add_(scattered)
        if grad_weights is not None:
            grad_weights = grad_weights.view(-1, NUM_POINTS, 4)
        return grad_source, None, grad_weights, grad_kernel, grad.sum(0) if for_bias else None, None


def sampled_product(
    source: Tensor, offset: Tensor, mask: Tensor, grid: SamplingGrid, kernel: Tensor, bias: Tensor, wide: bool = False
) -> Tensor:
    """The deformable convolution of the rows of B images: [B, P, D].

    Args:
        source: [B, rows per image, C]; offset: [B, P, K, 2]; mask: [B, P, K]; kernel: [D, C, 3, 3]; bias: [D].
        wide: whether no side of a feature map is a single cell.
    """
    batch, image_rows = source.shape[:2]
    precision = torch.promote_types(offset.dtype, torch.float32)
    offset, mask = offset.to(precision), mask.to(precision)
    kernel = kernel.permute(0, 2, 3, 1).flatten(1)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (source, offset, mask, kernel, bias)):
        rows, weights = LocatePoints.apply(offset, mask, grid, image_rows)
        weights = weights.flatten(0, 1).to(source.dtype)
        out = apply_function(SampledProduct, source.flatten(0, 1), rows.flatten(0, 1), weights, kernel, bias)
        return out.unflatten(0, (batch, -1))
    out = source.new_empty(batch, mask.shape[1], len(kernel))
    blocks = even_blocks(mask.shape[1], COLUMN_BLOCK)
    packed, together = pack(kernel, blocks[0].stop), max(1, LOCATED_BLOCK // COLUMN_BLOCK)
    for image in range(batch):
        for some in (blocks[i : i + together] for i in range(0, len(blocks), together)):
            start, end = some[0].start, some[-1].stop
            part, own = slice(start, end), slice(image, image + 1)
            part_grid = SamplingGrid(*(constant[part] for constant in grid))
            if wide:
                rows, weights = locate_points(offset[own, part], mask[own, part], part_grid)
            else:
                rows, weights = LocatePoints.apply(offset[own, part], mask[own, part], part_grid, image_rows)
            weights = weights.flatten().to(source.dtype)
            within = [slice(block.start - start, block.stop - start) for block in some]
            _multiply_points(source[image], rows.flatten(), weights, packed, bias, out[image, part], within)
    return out


# -- constants of a pyramid ------------------------------------------------------------------------


class PyramidPlan(NamedTuple):
    """Constants of the sizes of a pyramid's levels."""

    sizes: tuple[int, ...]  # locations of each level
    # [A, K] int32: (1 + location) * K + point, the product that each location reads at each of its sampling points; 0
    # beyond the map
    neighbours: Tensor
    readers: Tensor  # [A, K] int32: 1 + the location that reads a location at each of its sampling points, 0 for none
    grids: tuple[SamplingGrid, SamplingGrid, SamplingGrid]  # of conv_mid, conv_low and conv_high
    quirk: Tensor  # [Q * 27] int64: where in [A * 27] conv_high finds its offsets and masks; see `view_offsets_as`
    upsampled_mean: Tensor  # [L - 1, Q]: the mean of conv_high's output *after* its up-sampling to the finer level
    # Rows [A - those of the coarsest level, 4] int32 and weights: bilinear up-sampling of each level to the finer
    corners: tuple[Tensor, Tensor]
    corners_back: tuple[Tensor, Tensor, Tensor]  # the reverse as bags: int32 members, their first [Q], weights
    join: Tensor  # [L, S]: 1 where a segment is a candidate of a level


def _cell(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Row-major index of cell (y, x), -1 beyond the map."""
    return torch.where((y >= 0) & (y < height) & (x >= 0) & (x < width), y * width + x, -1)


def _linear_weights(fine: int, coarse: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bilinear up-sampling with aligned corners: lower neighbour int64 and share of the upper float64, both [fine]."""
    position = torch.arange(fine, device=device, dtype=torch.float64) * ((coarse - 1) / max(fine - 1, 1))
    low = position.floor().clamp(max=max(coarse - 2, 0))
    return low.long(), position - low


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
    channel = torch.arange(3 * NUM_POINTS, device=device)
    for i, (height, width) in enumerate(shapes):
        index = torch.arange(sizes[i], device=device)
        y, x = index[:, None] // width, index[:, None] % width
        for sign, found in ((1, cells), (-1, readers)):
            cell = _cell(y + sign * dy, x + sign * dx, height, width)
            found.append(torch.where(cell < 0, -1, cell + starts[i]))
        grids[0].append(make_sampling_grid(height, width, 1, starts[i], device))
        if i == 0:
            continue
        fine_height, fine_width = shapes[i - 1]
        grids[1].append(make_sampling_grid(fine_height, fine_width, 2, starts[i - 1], device))
        grids[2].append(make_sampling_grid(height, width, 1, starts[i], device))
        # Value f of the coarser [18 or 9, h, w] is value f of the finer [18 or 9, H, W]. Masks follow the offsets.
        first = torch.where(channel < 2 * NUM_POINTS, 0, 2 * NUM_POINTS)
        flat = (channel - first) * sizes[i] + index[:, None]
        source = (starts[i - 1] + flat % sizes[i - 1]) * 3 * NUM_POINTS + first + flat // sizes[i - 1]
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
    neighbours = torch.where(neighbours < 0, 0, (1 + neighbours) * NUM_POINTS + torch.arange(NUM_POINTS, device=device))
    corners, shares = torch.cat(corners), torch.cat(shares)
    order = corners.flatten().argsort(stable=True)
    count = torch.bincount(corners.flatten(), minlength=answered)
    # Of each weight of the up-sampling: the level it is for, and its part of that level's mean
    level_of = torch.arange(len(sizes) - 1, device=device).repeat_interleave(torch.tensor(sizes[:-1], device=device))
    parts = shares / torch.tensor(sizes[:-1], device=device)[level_of, None]
    means = torch.zeros(len(sizes) - 1, answered, device=device, dtype=shares.dtype)
    means.index_put_((level_of[:, None], corners), parts, accumulate=True)
    shares = shares.to(dtype)
    eye = torch.eye(len(sizes), device=device, dtype=dtype)
    return PyramidPlan(
        sizes,
        neighbours.int(),
        (1 + torch.cat(readers)).int(),
        tuple(SamplingGrid(*(torch.cat(parts) for parts in zip(*grid))) for grid in grids),
        torch.cat(quirk),
        means.to(dtype),
        (corners.int(), shares),
        ((order // 4).int(), (count.cumsum(0) - count).int(), shares.flatten()[order]),
        torch.cat([eye, eye[:, 1:], eye[:, :-1]], dim=1),
    )


def _of_images(index: Tensor, images: int, stride: int) -> Tensor:
    """An index [A, K] of one image's rows to [B * A, K] of all images' rows, `stride` per image; 0 belongs to none."""
    if images == 1:
        return index
    first = torch.arange(images, dtype=torch.int32, device=index.device)[:, None, None] * stride
    return torch.where(index > 0, index + first, 0).flatten(0, 1)


class TokenConvolution(torch.autograd.Function):
    """A plain 3x3 convolution of all levels: one product for all nine kernel cells, then every location sums the nine
    values that it reads."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, plan: PyramidPlan) -> Tensor:
        """[B, A, D], [O, D, 3, 3] and [O] to [B, A, O]."""
        batch, cells, _ = tokens.shape
        # Rows of whole cache lines: with 9 * 27 columns the product took 46 ms, with 9 * 32 it took 31 (18,134 rows).
        outputs = len(weight)
        kernel = nn.functional.pad(weight.permute(2, 3, 0, 1), (0, 0, 0, -outputs % CACHE_LINE)).flatten(0, 2)
        products = tokens.new_empty(1 + batch * cells, len(kernel))
        products[0] = 0
        linear(tokens.flatten(0, 1), kernel, out=products[1:])
        rows = _of_images(plan.neighbours, batch, cells * NUM_POINTS)
        out = nn.functional.embedding_bag(rows, products.view(-1, len(kernel) // NUM_POINTS), mode="sum")
        out = out[:, :outputs]
        ctx.save_for_backward(tokens, weight)
        ctx.plan = plan
        return out.add_(bias).unflatten(0, (batch, cells))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        batch, cells, _ = tokens.shape
        rows = _of_images(ctx.plan.readers, batch, cells)
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
    (18,134 locations) and in an eighth of the memory. PyTorch's own convolution takes 47 ms."""
    outputs = len(weight)
    # A kernel of whole cache lines here too: with 27 outputs 6.3 ms.
    pad = -outputs % CACHE_LINE
    weight = nn.functional.pad(weight, (0, 0) * 3 + (0, pad)).contiguous(memory_format=torch.channels_last)
    bias = nn.functional.pad(bias, (0, pad))
    levels = [nn.functional.conv2d(level, weight, bias, padding=1) for level in to_pyramid(tokens, shapes)]
    return to_tokens([level[:, :outputs] for level in levels])


class QuirkView(torch.autograd.Function):
    """The offsets and masks that conv_high reads, [B, A, 27] to [B, Q, 27]."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, plan: PyramidPlan) -> Tensor:
        ctx.plan, ctx.shape = plan, offsets.shape
        return offsets.flatten(1)[:, plan.quirk].unflatten(1, (-1, offsets.shape[2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad_offset = grad.new_zeros(ctx.shape)
        grad_offset.flatten(1).index_copy_(1, ctx.plan.quirk, grad.flatten(1))  # no two locations read the same value
        return grad_offset, None


class Moments(torch.autograd.Function):
    """Mean and mean square of every channel of every level."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """[B, Q, D], levels of `sizes` locations one after the other, to [B, levels, D] twice."""
        ctx.save_for_backward(x)
        ctx.sizes = sizes
        mean = x.new_empty(len(x), len(sizes), x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
        variance = torch.empty_like(mean)
        # Its means and variances of bfloat16 are float32 only if those that it updates are.
        running = mean.new_zeros(2, x.shape[2])
        for i, level in enumerate(x.split(sizes, dim=1)):
            for image, part in enumerate(level.transpose(1, 2)[..., None].split(1)):
                mean[image, i], variance[image, i] = torch.batch_norm_update_stats(part, *running, 0)
        return mean, variance.addcmul_(mean, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_square: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = torch.empty_like(x)
        for i, (level, level_grad) in enumerate(zip(x.split(ctx.sizes, dim=1), grad.split(ctx.sizes, dim=1))):
            size = ctx.sizes[i]
            torch.addcmul(grad_mean[:, i, None] / size, level, grad_square[:, i, None] * (2 / size), out=level_grad)
        return grad, None


def upsampled(x: Tensor, plan: PyramidPlan, cells: slice) -> Tensor:
    """Locations `cells` of all levels but the coarsest, interpolated from the next coarser one: [B, Q, D] to
    [B, n, D]."""
    rows, weights = (part[cells] for part in plan.corners)
    image = torch.arange(len(x), device=x.device, dtype=torch.int32)[:, None, None]
    out = nn.functional.embedding_bag(
        (rows + image * x.shape[1]).flatten(0, 1),
        x.flatten(0, 1),
        mode="sum",
        per_sample_weights=weights.expand(len(x), -1, -1).flatten(0, 1),
    )
    return out.unflatten(0, (len(x), -1))


def upsampled_backward(grad: Tensor, plan: PyramidPlan) -> Tensor:
    """The transpose of `upsampled` of all locations: [B, A - those of the coarsest, D] to [B, Q, D]."""
    members, first, weights = plan.corners_back
    image = torch.arange(len(grad), device=grad.device, dtype=torch.int32)[:, None]
    out = nn.functional.embedding_bag(
        (members + image * grad.shape[1]).flatten(),
        grad.flatten(0, 1),
        (first + image * len(members)).flatten(),
        mode="sum",
        per_sample_weights=weights.expand(len(grad), -1).flatten(),
    )
    return out.unflatten(0, (len(grad), -1))


class Merge(torch.autograd.Function):
    """The weighted sum of a level's candidates and the maximum of two linear pieces of it.

    conv_high's output is up-sampled on the way, a block at a time, again in the backward pass.
    """

    @staticmethod
    def _parts(plan: PyramidPlan) -> list[tuple[int, slice, list[tuple[int, int, slice]]]]:
        """Of each block: level, its locations, and (kernel, segment, where) of each candidate."""
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
        return upsampled(sources[2], plan, cells) if kernel == 2 else sources[kernel][:, cells]

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
    ) -> Tensor:
        """
        Args:
            mid: [B, A, D]; low, high: [B, Q, D]: what the convolutions gave.
            scale: [B, S, D], factor of each segment; shift: [B, L, D], added to each level.
            theta: [B, L, 4, D]: slope, offset, slope, offset of the two pieces.

        Returns:
            [B, A, D], in the memory of `mid` where no gradient is asked for.
        """
        ctx.save_for_backward(mid, low, high, scale, shift, theta)
        ctx.plan = plan
        # Without a backward pass `mid` is not needed elsewhere, and fresh memory costs more than the sum itself.
        out = torch.empty_like(mid) if any(ctx.needs_input_grad) else mid
        sources = mid, low, high
        for level, cells, candidates in Merge._parts(plan):
            merged = shift[:, level, None]
            for kernel, segment, where in candidates:
                candidate = Merge._read(sources, kernel, where, plan).to(scale.dtype)
                merged = torch.addcmul(merged, candidate, scale[:, segment, None])
            slope1, offset1, slope2, offset2 = theta[:, level, :, None].unbind(1)
            first, second = torch.addcmul(offset1, merged, slope1), torch.addcmul(offset2, merged, slope2)
            torch.maximum(first, second, out=out[:, cells])
        return out

    @staticmethod
    @once_differentiable
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
        grads[2] = upsampled_backward(grads[2], plan)
        return *grads, grad_scale, grad_shift, grad_theta, None


# -- the block -------------------------------------------------------------------------------------


def is_pyramid(shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether these levels form a pyramid: at least two, each half the one before, rounded up."""
    pairs = zip(shapes, shapes[1:])
    return len(shapes) > 1 and all(-(-a // 2) == b for fine, coarse in pairs for a, b in zip(fine, coarse))


def fused_dyconv(layer: GlipDyConv, tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """All levels [B, A, D] to the same shape; `shapes` are the heights and widths."""
    # Means of squares of half precision are of no use: all but the products is in float32 at least.
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    plan = pyramid_plan(tuple((int(height), int(width)) for height, width in shapes), tokens.device, dtype)
    branches = (layer.conv_mid, layer.conv_low, layer.conv_high)
    finest, levels = plan.sizes[0], len(plan.sizes)
    counts = (levels, levels - 1, levels - 1)
    offset_conv = layer.offset_conv.weight, layer.offset_conv.bias
    if torch.is_grad_enabled() or not onednn_available():
        sampling = apply_function(TokenConvolution, tokens, *offset_conv, plan)
    else:
        sampling = convolve_levels(tokens, *offset_conv, shapes)
    sampling = sampling.to(dtype)
    sampling = torch.cat([sampling[..., : 2 * NUM_POINTS], sampling[..., 2 * NUM_POINTS :].sigmoid()], dim=-1)
    sampling = (sampling, sampling[:, finest:], QuirkView.apply(sampling, plan))
    wide = min(min(shape) for shape in shapes) > 1
    outputs = [
        sampled_product(
            tokens,
            offsets[..., : 2 * NUM_POINTS].unflatten(2, (NUM_POINTS, 2)),
            offsets[..., 2 * NUM_POINTS :],
            grid,
            branch.conv.weight,
            branch.conv.bias,
            wide,
        )
        for branch, offsets, grid in zip(branches, sampling, plan.grids)
    ]
    # Without gradients those of conv_mid and conv_low are converted where they are read, in the cache.
    outputs = [x.to(dtype) if torch.is_grad_enabled() or x is outputs[2] else x for x in outputs]
    moments = [Moments.apply(output, plan.sizes[-count:]) for output, count in zip(outputs, counts)]
    mean, square = (torch.cat(parts, dim=1) for parts in zip(*moments))
    upsampled_means = plan.upsampled_mean.expand(len(tokens), -1, -1) @ outputs[2]

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

    # Scale attention from the means of the normalised, up-sampled candidates; the mean of candidates and its own mean
    mean = scale * torch.cat([mean[:, : 2 * levels - 1], upsampled_means], dim=1) + shift
    attention = layer.scale_attention
    score = nn.functional.linear(mean, attention.weight.flatten(1).to(dtype), attention.bias.to(dtype))
    join = plan.join
    share = hard_sigmoid(score.relu()) / (join.sum(1) @ join)[:, None]
    scale, shift, mean = share * scale, join @ (share * shift), join @ (share * mean)
    theta = layer.dynamic_relu.pieces(mean.to(tokens.dtype)).to(dtype)
    return Merge.apply(*outputs, scale, shift, theta, plan).to(tokens.dtype)


def _accepts(layer: GlipDyConv, tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> bool:
    return is_cpu_float(tokens) and is_pyramid(spatial_shapes) and parts_are_plain(layer, PARTS)


@register_kernel("dyconv", "cpu_dyconv", _accepts)
def cpu_dyconv(
    _plain: Callable[..., Any], layer: GlipDyConv, tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """`GlipDyConv.forward`, in float32 under autocast, as deformable convolutions in the released recipe."""
    if not torch.is_autocast_enabled("cpu"):
        return fused_dyconv(layer, tokens, spatial_shapes)
    with torch.autocast("cpu", enabled=False):
        return fused_dyconv(layer, tokens.float(), spatial_shapes)
