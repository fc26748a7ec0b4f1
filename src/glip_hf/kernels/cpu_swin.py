# Copyright 2026 The glip_hf authors. MIT licence.
"""Swin layers on CPUs: padding, cyclic shift, windows and heads as one gather on the way in and one on the way out, in
blocks that a CPU's cache holds; for training, backward passes written by hand that keep little.

Letters: B images, H x W cells of a stage, M window side, C channels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.swin.modeling_swin import SwinAttention, SwinMLP, SwinRelativePositionBias

from ..ops_glip import once_differentiable, register_kernel, shape_constants
from ..swin_glip import GlipSwinLayer, pattern_of_window, shift_mask, shift_patterns
from .cpu_int8 import Int8Weight, join, read_weight
from .cpu_linear import ROW_UNIT, PackedWeight, apply_function, even_blocks, linear, pack, product_over_rows
from .guards import is_cpu_float, is_watched, parts_are_plain

# Values that inference holds at a time, in the widest part of a layer: 4 MiB in float32 stay in a CPU's cache
BLOCK_VALUES = 2**20

# Values of query, key and value up to which inference holds those of a whole feature map, by cells and not by windows,
# which with their padding have 8 to 18 % more rows. An attention in bfloat16 (float32) of 800 x 1066 pixels, with 192
# channels: 34.6 ms -> 31.5 (71 -> 61), with 384: 25.7 -> 23.1 (52 -> 44); with 96: 49.5 -> 48.7 (91 -> 147).
TABLE_VALUES = 2**23

# Channels up to which `FeedForward` pays: on one core, forward and backward of 25,600 rows of 24 channels took 27 ms
# and not 37; of 9,000 rows of 96 channels 81 and 83, of 3,000 of 192 channels 73 and 74, in a fifth of the memory
RECOMPUTED_WIDTH = 256

# Sum of a row's exponentials down to which, and up to the reciprocal of which, `attend` needs no softmax
SMALLEST_TOTAL = 1e-25

PARTS = {
    "layernorm_before": nn.LayerNorm,
    "layernorm_after": nn.LayerNorm,
    "mlp": SwinMLP,
    "mlp.fc1": nn.Linear,
    "mlp.fc2": nn.Linear,
    "mlp.activation_fn": GELUActivation,
    "attention": SwinAttention,
    "attention.q_proj": nn.Linear,
    "attention.k_proj": nn.Linear,
    "attention.v_proj": nn.Linear,
    "attention.o_proj": nn.Linear,
    "attention.relative_position_bias": SwinRelativePositionBias,
    "dropout": nn.Dropout,
}


# -- windows ---------------------------------------------------------------------------------------


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, h * M, w * M, C] to [B * h * w, M * M, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


@shape_constants(maxsize=64)
def window_cells(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which cell of the feature map each slot of the windows holds, and the reverse.

    Returns:
        cells [windows * M * M] int64, the cell (row-major) of each slot of each window, -1 at padding; and slots
        [H * W] int64, the slot of each cell.
    """
    rows, columns = -(-height // window), -(-width // window)
    y = (torch.arange(rows * window, device=device) + shift) % (rows * window)
    x = (torch.arange(columns * window, device=device) + shift) % (columns * window)
    cells = torch.where((y < height)[:, None] & (x < width), y[:, None] * width + x, -1)
    cells = to_windows(cells[None, :, :, None], window).flatten()
    return cells, cells.argsort(stable=True)[len(cells) - height * width :]


@shape_constants(maxsize=64)
def sorted_windows(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """`window_cells` with the windows of one mask side by side.

    Returns:
        cells [windows, M * M] and slots [H * W], and how many windows have each of `shift_patterns`, which come in
        this order.
    """
    cells, slots = window_cells(height, width, window, shift, device)
    area, rows, columns = window * window, -(-height // window), -(-width // window)
    pattern = pattern_of_window(rows, columns, device) * bool(shift)
    order = pattern.argsort(stable=True)
    slots = order.argsort()[slots // area] * area + slots % area
    return cells.view(-1, area)[order], slots, tuple(pattern.bincount(minlength=4).tolist())


@shape_constants(maxsize=32)
def head_rows(
    batch: int, height: int, width: int, window: int, shift: int, heads: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the channels of a head lie in a feature map and in its windows, int32 rows of tables of width C / heads.

    Returns:
        * [3, B, windows, heads, M * M]: of query, key and value of every slot, in the table [1 + B * H * W, 3, heads]
          whose first entry stands for padding;
        * [B, H * W, 3, heads]: the reverse, in [3, B, windows, heads, M * M];
        * [B, windows, heads, M * M]: of every slot, in [1 + B * H * W * heads], the first for padding;
        * [B, H * W, heads]: the reverse, in [B, windows, heads, M * M].
    """
    cells, slots = window_cells(height, width, window, shift, device)
    area, size = window * window, height * width
    head = torch.arange(heads, device=device)
    part = torch.arange(3, device=device)
    image = torch.arange(batch, device=device)
    own = cells.view(-1, 1, area)  # [windows, 1, M * M]
    entry = torch.where(own < 0, 0, 1 + own + size * image[:, None, None, None])
    to_windows = (3 * entry + part[:, None, None, None, None]) * heads + head[:, None]
    entry = torch.where(own < 0, 0, 1 + (own + size * image[:, None, None, None]) * heads + head[:, None])
    row = (slots // area * heads + head[:, None]) * area + slots % area  # [heads, H * W]
    to_map = row.t() + len(cells) * heads * image[:, None, None]
    from_windows = to_map[:, :, None] + len(cells) * heads * batch * part[:, None]
    return to_windows.int(), from_windows.int(), entry.int(), to_map.int()


def attention_weights(query: Tensor, key: Tensor, position_bias: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention weights within windows: softmax(scaling * query key^T + bias + mask), [G, M * M, M * M].

    Two products and a softmax take half the time of SDPA, whose kernel for CPUs goes head by head: 222 windows and
    heads 0.75 ms, copies included, and 1.45 ms.

    Args:
        query, key: [G, M * M, C / heads], G images, windows and heads.
        position_bias: [heads, M * M, M * M]; mask: [windows, M * M, M * M].
    """
    scores = query.new_empty(*query.shape[:2], query.shape[1])
    if mask is None:
        scores.unflatten(0, (-1, len(position_bias))).copy_(position_bias)
    else:
        added = scores.unflatten(0, (-1, len(mask), len(position_bias)))
        torch.add(mask[:, None].expand_as(added), position_bias, out=added)
    scores.baddbmm_(query, key.transpose(1, 2), alpha=scaling)
    if mask is not None:
        # exp(-100) is denormal. With such values softmax and product took 19.6 ms where they take 4.4 ms (and
        # these lines 1.4 ms) with zeros instead.
        scores.sub_(scores.amax(-1, keepdim=True))
        nn.functional.threshold_(scores, math.log(torch.finfo(scores.dtype).tiny), -torch.inf)
    return scores.softmax(-1)


def attend(parts: Tensor, added: Tensor, scaling: float, out: Tensor) -> None:
    """Attention within windows of one mask, to `out`, without gradients.

    The exponential is taken of the scores as they are, and what was gathered is divided by the sum of the weights: a
    softmax reads the 49 scores of a row three times, and takes 5.2 us for a window and head in bfloat16 where this
    takes 1.6. Rows whose sums leave the range in which that is exact are attended with a softmax.

    Args:
        parts: query, key and value, [3, windows, heads, M * M, C / heads]; out: one of them.
        added: position bias and mask, [heads, M * M, M * M].
    """
    if parts.dtype == torch.float16:  # whose exponentials overflow; scores are kept in float32 there
        out.copy_(nn.functional.scaled_dot_product_attention(*parts, attn_mask=added[None], scale=scaling))
        return
    query, key, value = parts.flatten(1, 2)

    def scores() -> Tensor:
        scores = query.new_empty(*query.shape[:2], query.shape[1])
        scores.unflatten(0, (-1, len(added))).copy_(added)
        return scores.baddbmm_(query, key.transpose(1, 2), alpha=scaling)

    weights = scores().exp_()
    total = weights.sum(-1, keepdim=True)
    least, most = total.aminmax()
    if not (bool(least > SMALLEST_TOTAL) and bool(most < 1 / SMALLEST_TOTAL)):
        weights = scores().softmax(-1)
        total = torch.ones_like(total)
    # Divided before the copy: to strided memory a division in bfloat16 takes 198 us, both 169.
    out.copy_((weights @ value).div_(total).view_as(out))


class WindowAttention(torch.autograd.Function):
    """Attention within windows, with the gradient of the position bias, which SDPA's fast kernels do not give.

    Padding, cyclic shift, windows and heads are one gather of rows on the way in and one on the way out. A padded cell
    is a zero before the projections: its query, key and value are their biases.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        position_bias: Tensor,
        mask: Tensor | None,
        scaling: float,
        rows: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        """
        Args:
            x: [B, H * W, C]; weight: [3 * C, C], bias: [3 * C], of query, key and value.
            position_bias: [heads, M * M, M * M]; mask: [windows, M * M, M * M].
            rows: of `head_rows`.

        Returns:
            [B, H * W, C], before the output projection.
        """
        heads, area = position_bias.shape[:2]
        table = x.new_empty(x.shape[0] * x.shape[1] + 1, len(weight))
        linear(x.flatten(0, 1), weight, bias, table[1:])
        table[0] = bias
        width = weight.shape[1] // heads
        query, key, value = nn.functional.embedding(rows[0], table.view(-1, width)).view(3, -1, area, width)
        weights = attention_weights(query, key, position_bias, mask, scaling)
        out = nn.functional.embedding(rows[3], (weights @ value).view(-1, width))
        ctx.save_for_backward(x, weight, query, key, value, weights)
        ctx.scaling, ctx.rows = scaling, rows
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, query, key, value, weights = ctx.saved_tensors
        _, from_windows, entry, to_map = ctx.rows
        batch, windows, heads, area = entry.shape
        width = query.shape[-1]
        grad = nn.functional.pad(grad.reshape(-1, width), (0, 0, 1, 0))
        grad = nn.functional.embedding(entry, grad).view(-1, area, width)
        grad_parts = query.new_empty(3, *query.shape)
        torch.bmm(weights.transpose(1, 2), grad, out=grad_parts[2])
        grad_scores = torch._softmax_backward_data(grad @ value.transpose(1, 2), weights, -1, weights.dtype)
        scale = {"beta": 0, "alpha": ctx.scaling}
        torch.baddbmm(grad_parts[0], grad_scores, key, out=grad_parts[0], **scale)
        torch.baddbmm(grad_parts[1], grad_scores.transpose(1, 2), query, out=grad_parts[1], **scale)
        grad_bias = grad_position = grad_x = grad_weight = None
        if ctx.needs_input_grad[2]:
            # Of all slots, padding included: there x is zero and only the bias contributes.
            grad_bias = grad_parts.view(3, batch * windows, heads, area, width).sum((1, 3)).flatten()
        if ctx.needs_input_grad[3]:
            grad_position = grad_scores.view(batch * windows, heads, area, area).sum(0)
        rows = nn.functional.embedding(from_windows, grad_parts.view(-1, width)).view(-1, len(weight))
        if ctx.needs_input_grad[0]:
            grad_x = linear(rows, weight.t()).view_as(x)
        if ctx.needs_input_grad[1]:
            grad_weight = product_over_rows(rows, x.flatten(0, 1))
        return grad_x, grad_weight, grad_bias, grad_position, None, None, None


class FeedForward(torch.autograd.Function):
    """x + factor * fc2(gelu(fc1(norm(x)))) in blocks of rows that a CPU's cache holds; the backward pass computes the
    4 * C wide values again, which is as fast as fetching them from memory where C is small."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factor: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        eps: float,
    ) -> Tensor:
        """x: [rows, C]; factor: [rows, 1]."""
        out = torch.empty_like(x)
        block = max(1, BLOCK_VALUES // len(weight1) // ROW_UNIT) * ROW_UNIT
        for part, scale, part_out in zip(x.split(block), factor.split(block), out.split(block)):
            inner = nn.functional.layer_norm(part, norm_weight.shape, norm_weight, norm_bias, eps)
            inner = nn.functional.gelu(linear(inner, weight1, bias1))
            torch.addcmul(part, linear(inner, weight2, bias2), scale, out=part_out)
        ctx.save_for_backward(x, factor, norm_weight, norm_bias, weight1, bias1, weight2)
        ctx.eps, ctx.block = eps, block
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, weight1, bias1, weight2 = parameters
        grad_x = torch.empty_like(x)
        totals = [torch.zeros_like(parameter) for parameter in (*parameters, norm_weight)]
        pieces = (whole.split(ctx.block) for whole in (x, factor, grad, grad_x))
        for part, scale, part_grad, part_grad_x in zip(*pieces):
            branch_grad = part_grad * scale
            normed, mean, deviation = torch.native_layer_norm(part, norm_weight.shape, norm_weight, norm_bias, ctx.eps)
            inner = linear(normed, weight1, bias1)
            product_over_rows(branch_grad, nn.functional.gelu(inner), totals[4])
            totals[5] += branch_grad.sum(0)
            grad_inner = torch.ops.aten.gelu_backward(linear(branch_grad, weight2.t()), inner)
            product_over_rows(grad_inner, normed, totals[2])
            totals[3] += grad_inner.sum(0)
            change, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
                linear(grad_inner, weight1.t()),
                part,
                norm_weight.shape,
                mean,
                deviation,
                norm_weight,
                norm_bias,
                [True] * 3,
            )
            torch.add(part_grad, change, out=part_grad_x)
            totals[0] += grad_weight
            totals[1] += grad_bias
        return grad_x, None, *totals, None


# -- the layer -------------------------------------------------------------------------------------


def _projections(layer: GlipSwinLayer) -> tuple[Tensor | Int8Weight, Tensor, Tensor]:
    """Weight [3 * C, C] and bias [3 * C] of query, key and value; position bias [heads, M * M, M * M]."""
    attention, area = layer.attention, layer.window_size**2
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    table = attention.relative_position_bias
    weight = join([projection.weight for projection in projections], table.relative_position_bias_table.dtype)
    position_bias = nn.functional.embedding(table.relative_position_index, table.relative_position_bias_table)
    if projections[0].bias is None:
        bias = position_bias.new_zeros(3 * projections[0].out_features)
    else:
        bias = torch.cat([projection.bias for projection in projections])
    return weight, bias, position_bias.view(area, area, -1).permute(2, 0, 1)


def attend_with_gradients(layer: GlipSwinLayer, x: Tensor) -> Tensor:
    """What `layer.attend` computes, [B, H, W, C] to the same, by `WindowAttention`."""
    attention, window = layer.attention, layer.window_size
    batch, height, width, _ = x.shape
    mask = None
    if layer.shift_size:
        rows, columns = (-(-side // window) for side in (height, width))
        mask = shift_mask(rows, columns, window, layer.shift_size, x.device).to(x.dtype)
    rows = head_rows(batch, height, width, window, layer.shift_size, attention.num_attention_heads, x.device)
    x = apply_function(WindowAttention, x.flatten(1, 2), *_projections(layer), mask, attention.scaling, rows)
    return linear(x, attention.o_proj.weight, attention.o_proj.bias).unflatten(1, (height, width))


def _train(layer: GlipSwinLayer, x: Tensor) -> Tensor:
    """The whole layer with gradients."""
    x = x + layer.drop_path(attend_with_gradients(layer, layer.layernorm_before(x)))
    norm, fc1, fc2 = layer.layernorm_after, layer.mlp.fc1, layer.mlp.fc2
    if x.shape[-1] > RECOMPUTED_WIDTH or 4 * x.numel() <= BLOCK_VALUES:
        inner = nn.functional.gelu(linear(norm(x), fc1.weight, fc1.bias))
        return x + layer.drop_path(linear(inner, fc2.weight, fc2.bias))
    factor = layer.drop_path(x.new_ones(len(x), 1, 1, 1)).expand(*x.shape[:3], 1)
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return apply_function(FeedForward, x.flatten(0, 2), factor.flatten(0, 2), *parameters, norm.eps).view_as(x)


def _pack(
    weight: Tensor | Int8Weight, blocks: list[slice], rows: int, dtype: torch.dtype
) -> Tensor | PackedWeight | Int8Weight:
    """`pack` for blocks, so many rows in each of their units, if there are several: it takes as long as a product
    saves."""
    weight = read_weight(weight, dtype)
    return pack(weight, (blocks[0].stop - blocks[0].start) * rows) if len(blocks) > 1 else weight


def _infer(layer: GlipSwinLayer, x: Tensor) -> Tensor:
    """The whole layer without gradients, in blocks first of windows, then of cells."""
    batch, height, width, channels = x.shape
    attention, mlp, area, size = layer.attention, layer.mlp, layer.window_size**2, height * width
    heads = attention.num_attention_heads
    weight, bias, position_bias = _projections(layer)
    patterns = shift_patterns(layer.window_size, layer.shift_size, x.device)
    cells, slots, counts = sorted_windows(height, width, layer.window_size, layer.shift_size, x.device)
    image = torch.arange(batch, device=x.device)[:, None]
    # The entry of every slot [windows, B, M * M], in a table of all cells whose first entry stands for padding
    entries = torch.where(cells[:, None] < 0, 0, 1 + cells[:, None] + size * image).flatten()
    rows = x.reshape(-1, channels)
    attended = rows.new_empty(len(entries), channels)
    blocks = even_blocks(batch * len(cells), max(1, BLOCK_VALUES // (3 * channels * area)))
    table = None
    if 3 * rows.numel() <= TABLE_VALUES:
        table = nn.functional.pad(layer.layernorm_before(rows), (0, 0, 1, 0))
        table = linear(table, pack(weight, len(table)) if x.dtype == torch.bfloat16 else weight, bias)
    else:
        weight = _pack(weight, blocks, area, x.dtype)
    groups, first = [], 0  # first and last window of each mask, and what is added to the scores
    for count, pattern in zip(counts, patterns):
        last = first + count * batch
        groups.append((first, last, position_bias.masked_fill(pattern < 0, -torch.inf) if count else None))
        first = last
    for windows in blocks:
        first, last = windows.start, windows.stop
        block = slice(first * area, last * area)
        if table is None:
            part = layer.layernorm_before(nn.functional.embedding((entries[block] - 1).clamp(min=0), rows))
            part = linear(part, weight, bias)
            part[(entries[block] == 0).nonzero().squeeze(1)] = bias
        else:
            part = nn.functional.embedding(entries[block], table)
        parts = part.view(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        out = attended[block].view(-1, area, heads, channels // heads).transpose(1, 2)
        for start, end, added in groups:
            some = slice(max(start, first) - first, min(end, last) - first)
            if some.start < some.stop:
                attend(parts[:, some], added, attention.scaling, out[some])
    slots = slots // area * (batch * area) + slots % area
    slots = (slots + area * image).flatten()
    out = torch.empty_like(rows)
    blocks = even_blocks(len(rows), max(1, BLOCK_VALUES // (4 * channels)))
    layers = (attention.o_proj, mlp.fc1, mlp.fc2)
    out_weight, weight1, weight2 = (_pack(one.weight, blocks, 1, x.dtype) for one in layers)
    for block in blocks:
        part = nn.functional.embedding(slots[block], attended)
        part = linear(part, out_weight, attention.o_proj.bias).add_(rows[block])
        inner = nn.functional.gelu(linear(layer.layernorm_after(part), weight1, mlp.fc1.bias))
        torch.add(part, linear(inner, weight2, mlp.fc2.bias), out=out[block])
    return out.view_as(x)


def _accepts(layer: GlipSwinLayer, hidden_states: Tensor) -> bool:
    attention = layer.attention
    return (
        is_cpu_float(hidden_states)
        and not torch.is_autocast_enabled("cpu")
        # Backward passes in place are written for these dtypes.
        and not (torch.is_grad_enabled() and hidden_states.dtype not in (torch.float32, torch.float64))
        and parts_are_plain(layer, PARTS)
        and not is_watched(layer.drop_path)
        and attention.config._attn_implementation == "sdpa"
        and not (layer.training and (attention.attention_dropout > 0 or layer.dropout.p > 0))
    )


@register_kernel("swin_layer", "cpu_swin", _accepts)
def cpu_swin(_plain: Callable[..., Any], layer: GlipSwinLayer, hidden_states: Tensor) -> tuple[Tensor, None]:
    """`GlipSwinLayer.forward`."""
    infer = not layer.training and not torch.is_grad_enabled()
    return (_infer if infer else _train)(layer, hidden_states), None
