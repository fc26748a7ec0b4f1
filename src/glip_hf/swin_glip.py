# Copyright 2026 The glip_hf authors. MIT licence.
"""Swin Transformer as GLIP uses it (arXiv 2103.14030): a backbone with the parameter names of Transformers' own.

It differs from `transformers.SwinBackbone` in what a detector that trains from scratch needs: stochastic depth acts on
both branches of a layer (there, on attention only), weights start from a truncated normal, window and shift are
constants of the module, so no forward can depend on the sizes seen before, and there is no unused final norm, which
would stop distributed training.

Letters: B pictures, H x W cells of a stage, M window side, C channels. Maps stay [B, H, W, C], and sizes are built up
from counts of windows, never divided back: that keeps a `torch.export` with dynamic sizes tractable.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SwinConfig
from transformers import initialization as init
from transformers.activations import GELUActivation
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.models.swin.modeling_swin import (
    SwinAttention,
    SwinDropPath,
    SwinEmbeddings,
    SwinMLP,
    SwinPreTrainedModel,
    SwinRelativePositionBias,
)
from transformers.utils import can_return_tuple

from .fast_path_glip import may_fuse, may_overwrite, plain_backward, shape_constants
from .products_glip import ROW_UNIT, GlipLinear, apply_function, linear, product_over_rows, speed_up_linears

BLOCK_NUMBERS = 2**20
"""Numbers that inference holds at a time, in the widest part of a layer: 4 MiB in float32 stay in a CPU's cache."""

REGION_PENALTY = -100.0
"""Added to the scores of cells that the cyclic shift made neighbours."""


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, h * M, w * M, C] to [B * h * w, M * M, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


@shape_constants(maxsize=8)
def _shift_patterns(window: int, shift: int, device: torch.device | None) -> Tensor:
    """The masks a shifted window may have, [4, M*M, M*M] float32: of inner windows (none), of those of the last column,
    of the last row, and of the corner. 0 within what was one piece before the shift, `REGION_PENALTY` across."""
    beyond = (torch.arange(window, device=device) >= window - shift).long()
    down, across = beyond.repeat_interleave(window), beyond.repeat(window)
    regions = torch.stack([0 * down, across, 2 * down, 2 * down + across])
    return (regions[:, None] != regions[:, :, None]).float() * REGION_PENALTY


def _shift_kinds(rows: int, columns: int, device: torch.device | None) -> Tensor:
    """Which of `_shift_patterns` each window has, [rows * columns] int64."""
    last_row = torch.arange(rows, device=device) == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (2 * last_row.long()[:, None] + last_column.long()).flatten()


def _shift_mask(rows: int, columns: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """The mask of every window, [rows * columns, M*M, M*M] float32.

    rows, columns: windows down and across the padded map.
    """
    return _shift_patterns(window, shift, device)[_shift_kinds(rows, columns, device)]


@shape_constants(maxsize=64)
def window_cells(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which cell of the map stands where in the windows, and the reverse.

    Returns:
        cells [windows * M * M] int64, the cell (row-major) of each place in each window, -1 at padding; and places
        [H * W] int64, the place of each cell.
    """
    rows, columns = -(-height // window), -(-width // window)
    y = (torch.arange(rows * window, device=device) + shift) % (rows * window)
    x = (torch.arange(columns * window, device=device) + shift) % (columns * window)
    cells = torch.where((y < height)[:, None] & (x < width), y[:, None] * width + x, -1)
    cells = to_windows(cells[None, :, :, None], window).flatten()
    return cells, cells.argsort(stable=True)[len(cells) - height * width :]


@shape_constants(maxsize=32)
def head_rows(
    batch: int, height: int, width: int, window: int, shift: int, heads: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the slice of a head lies in a map and in its windows, int32 row numbers of tables with rows of C / heads.

    Returns:
        * [3, B, windows, heads, M * M]: of query, key and value of every place, in the table [1 + B * H * W, 3, heads]
          whose first entry stands for padding;
        * [B, H * W, 3, heads]: the reverse, in [3, B, windows, heads, M * M];
        * [B, windows, heads, M * M]: of every place, in [1 + B * H * W * heads], the first for padding;
        * [B, H * W, heads]: the reverse, in [B, windows, heads, M * M].
    """
    cells, places = window_cells(height, width, window, shift, device)
    area, size = window * window, height * width
    head = torch.arange(heads, device=device)
    part = torch.arange(3, device=device)
    picture = torch.arange(batch, device=device)
    own = cells.view(-1, 1, area)  # [windows, 1, M * M]
    entry = torch.where(own < 0, 0, 1 + own + size * picture[:, None, None, None])
    to_windows = (3 * entry + part[:, None, None, None, None]) * heads + head[:, None]
    entry = torch.where(own < 0, 0, 1 + (own + size * picture[:, None, None, None]) * heads + head[:, None])
    row = (places // area * heads + head[:, None]) * area + places % area  # [heads, H * W]
    to_map = row.t() + len(cells) * heads * picture[:, None, None]
    from_windows = to_map[:, :, None] + len(cells) * heads * batch * part[:, None]
    return to_windows.int(), from_windows.int(), entry.int(), to_map.int()


def attention_shares(query: Tensor, key: Tensor, position_bias: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """What each place of a window takes of each other: softmax(scaling * query key^T + bias + mask), [G, M * M, M * M].

    Two products and a softmax take half the time of SDPA, whose kernel for CPUs goes head by head: 222 windows and
    heads 0.75 ms, copies included, and 1.45 ms.

    Args:
        query, key: [G, M * M, C / heads], G pictures, windows and heads.
        position_bias: [heads, M * M, M * M]; mask: [windows, M * M, M * M].
    """
    scores = query.new_empty(*query.shape[:2], query.shape[1])
    if mask is None:
        scores.unflatten(0, (-1, len(position_bias))).copy_(position_bias)
    else:
        place = scores.unflatten(0, (-1, len(mask), len(position_bias)))
        torch.add(mask[:, None].expand_as(place), position_bias, out=place)
    scores.baddbmm_(query, key.transpose(1, 2), alpha=scaling)
    if mask is not None:
        # exp(-100) is a denormal number. With them softmax and product took 19.6 ms where they take 4.4 ms (and
        # these lines 1.4 ms) with zeros in their place.
        scores.sub_(scores.amax(-1, keepdim=True))
        nn.functional.threshold_(scores, math.log(torch.finfo(scores.dtype).tiny), -torch.inf)
    return scores.softmax(-1)


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
        weights = attention_shares(query, key, position_bias, mask, scaling)
        out = nn.functional.embedding(rows[3], (weights @ value).view(-1, width))
        ctx.save_for_backward(x, weight, query, key, value, weights)
        ctx.scaling, ctx.rows = scaling, rows
        return out.flatten(2)

    @staticmethod
    @plain_backward
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
            # Of all places, padding included: there x is zero and only the bias speaks.
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
        block = max(1, BLOCK_NUMBERS // len(weight1) // ROW_UNIT) * ROW_UNIT
        for some, scale, place in zip(x.split(block), factor.split(block), out.split(block)):
            inner = nn.functional.layer_norm(some, norm_weight.shape, norm_weight, norm_bias, eps)
            inner = nn.functional.gelu(linear(inner, weight1, bias1))
            torch.addcmul(some, linear(inner, weight2, bias2), scale, out=place)
        ctx.save_for_backward(x, factor, norm_weight, norm_bias, weight1, bias1, weight2)
        ctx.eps, ctx.block = eps, block
        return out

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, weight1, bias1, weight2 = parameters
        grad_x = torch.empty_like(x)
        totals = [torch.zeros_like(parameter) for parameter in (*parameters, norm_weight)]
        pieces = (part.split(ctx.block) for part in (x, factor, grad, grad_x))
        for some, scale, own_grad, place in zip(*pieces):
            branch_grad = own_grad * scale
            normed, mean, deviation = torch.native_layer_norm(some, norm_weight.shape, norm_weight, norm_bias, ctx.eps)
            wide = linear(normed, weight1, bias1)
            product_over_rows(branch_grad, nn.functional.gelu(wide), totals[4])
            totals[5] += branch_grad.sum(0)
            grad_wide = torch.ops.aten.gelu_backward(linear(branch_grad, weight2.t()), wide)
            product_over_rows(grad_wide, normed, totals[2])
            totals[3] += grad_wide.sum(0)
            change, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
                linear(grad_wide, weight1.t()),
                some,
                norm_weight.shape,
                mean,
                deviation,
                norm_weight,
                norm_bias,
                [True] * 3,
            )
            torch.add(own_grad, change, out=place)
            totals[0] += grad_weight
            totals[1] += grad_bias
        return grad_x, None, *totals, None


RECOMPUTED_WIDTH = 256
"""Channels up to which `FeedForward` pays: on one core, forward and backward of 25,600 rows of 24 channels took 27 ms
and not 37; of 9,000 rows of 96 channels 81 and 83, of 3,000 of 192 channels 73 and 74, in a fifth of the memory."""

FEED_FORWARD_PARTS = {"mlp.fc1": GlipLinear, "mlp.fc2": GlipLinear, "mlp.activation_fn": GELUActivation}

FUSED_PARTS = {
    "layernorm_before": nn.LayerNorm,
    "layernorm_after": nn.LayerNorm,
    "mlp": SwinMLP,
    "attention": SwinAttention,
    "attention.q_proj": GlipLinear,
    "attention.k_proj": GlipLinear,
    "attention.v_proj": GlipLinear,
    "attention.o_proj": GlipLinear,
    "attention.relative_position_bias": SwinRelativePositionBias,
}


class GlipSwinLayer(GradientCheckpointingLayer):
    """Windowed (and, in every second layer, shifted) attention and a feed-forward branch, pre-norm."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int, drop_path_rate: float, shift: int) -> None:
        super().__init__()
        self.window, self.shift = config.window_size, shift
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = SwinAttention(config, dim, num_heads, window_size=config.window_size)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = SwinMLP(config, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SwinDropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        speed_up_linears(self)

    def _may_fuse(self, x: Tensor) -> bool:
        attention = self.attention
        return (
            attention.config._attn_implementation == "sdpa"
            and not torch.is_autocast_enabled(x.device.type)
            and not (torch.is_grad_enabled() and x.dtype not in (torch.float32, torch.float64))
            and not (self.training and attention.attention_dropout > 0)
            and may_fuse(self, FUSED_PARTS, x)
        )

    def _projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight [3 * C, C] and bias [3 * C] of query, key and value; position bias [heads, M * M, M * M]."""
        attention, area = self.attention, self.window**2
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([linear.weight for linear in linears])
        if linears[0].bias is None:
            bias = weight.new_zeros(len(weight))
        else:
            bias = torch.cat([linear.bias for linear in linears])
        table = attention.relative_position_bias
        position_bias = nn.functional.embedding(table.relative_position_index, table.relative_position_bias_table)
        return weight, bias, position_bias.view(area, area, -1).permute(2, 0, 1)

    def _mask(self, x: Tensor) -> Tensor | None:
        """The shift's mask for a map [B, H, W, C]."""
        if not self.shift:
            return None
        rows, columns = (-(-side // self.window) for side in x.shape[1:3])
        return _shift_mask(rows, columns, self.window, self.shift, x.device).to(x.dtype)

    def _attend_fused(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to the same, by `WindowAttention`."""
        attention = self.attention
        batch, height, width, _ = x.shape
        rows = head_rows(batch, height, width, self.window, self.shift, attention.num_attention_heads, x.device)
        x = apply_function(
            WindowAttention, x.flatten(1, 2), *self._projections(), self._mask(x), attention.scaling, rows
        )
        return attention.o_proj(x).unflatten(1, (height, width))

    def _may_recompute(self, x: Tensor) -> bool:
        return (
            torch.is_grad_enabled()
            and x.shape[-1] <= RECOMPUTED_WIDTH
            and 4 * x.numel() > BLOCK_NUMBERS
            and not (self.training and self.dropout.p > 0)
            and may_fuse(self, FEED_FORWARD_PARTS, x)
        )

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the layer, by `FeedForward`."""
        norm, fc1, fc2 = self.layernorm_after, self.mlp.fc1, self.mlp.fc2
        factor = self.drop_path(x.new_ones(len(x), 1, 1, 1)).expand(*x.shape[:3], 1)
        parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return apply_function(FeedForward, x.flatten(0, 2), factor.flatten(0, 2), *parameters, norm.eps).view_as(x)

    def _infer(self, x: Tensor, overwrite: bool) -> Tensor:
        """The whole layer in blocks, first of windows, then of cells, that a CPU's cache holds: for inference."""
        batch, height, width, channels = x.shape
        attention, area, size = self.attention, self.window**2, height * width
        heads = attention.num_attention_heads
        weight, bias, position_bias = self._projections()
        rows, columns = (-(-side // self.window) for side in (height, width))
        kinds = _shift_kinds(rows, columns, x.device)
        patterns = _shift_patterns(self.window, self.shift, x.device).to(x.dtype) if self.shift else None
        cells, places = window_cells(height, width, self.window, self.shift, x.device)
        count = len(cells) // area
        picture = torch.arange(batch, device=x.device)[:, None]
        source = (cells.clamp(min=0) + size * picture).flatten()
        padded = (cells < 0).repeat(batch)
        rows = x.reshape(-1, channels)
        attended = rows.new_empty(len(source), channels)
        step = max(1, BLOCK_NUMBERS // (3 * channels * area))
        for first in range(0, batch * count, step):
            last = min(first + step, batch * count)
            some = slice(first * area, last * area)
            part = self.layernorm_before(nn.functional.embedding(source[some], rows))
            part = linear(part, weight, bias)
            part[padded[some].nonzero().squeeze(1)] = bias
            mask = None
            if patterns is not None:
                mask = patterns[kinds[torch.arange(first, last, device=x.device) % count]]
            parts = part.view(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
            place = attended[some].view(-1, area, heads, channels // heads).transpose(1, 2)
            if x.dtype in (torch.float32, torch.float64):
                query, key, value = parts.flatten(1, 2)
                shares = attention_shares(query, key, position_bias, mask, attention.scaling)
                place.copy_((shares @ value).view_as(place))
            else:  # whose scores are kept in float32 there
                added = position_bias[None] if mask is None else position_bias + mask[:, None]
                place.copy_(
                    nn.functional.scaled_dot_product_attention(*parts, attn_mask=added, scale=attention.scaling)
                )
        places = (places + len(cells) * picture).flatten()
        out = rows if overwrite else torch.empty_like(rows)
        step = max(1, BLOCK_NUMBERS // (4 * channels))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            part = attention.o_proj(nn.functional.embedding(places[some], attended)).add_(rows[some])
            torch.add(part, self.mlp(self.layernorm_after(part)), out=out[some])
        return out.view_as(x)

    def _attend_plain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, H, W, C] to the same; zeros pad the map to whole windows and take part in the attention.

        By calls of Transformers' attention: for tracing, other attention implementations, adapters and hooks.
        """
        batch, height, width, channels = x.shape
        window, shift = self.window, self.shift
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        x = nn.functional.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        mask = None
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
            mask = _shift_mask(rows, columns, window, shift, x.device).to(x.dtype)
        windows = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        windows, weights = self.attention(windows.reshape(-1, window * window, channels), mask)
        # Split as last dimension: beside others, an export confuses a symbolic single window with a factor of theirs.
        x = windows.permute(1, 2, 0).unflatten(2, (batch, rows, columns)).unflatten(0, (window, window))
        x = x.permute(3, 4, 0, 5, 1, 2).reshape(batch, rows * window, columns * window, channels)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width], weights

    def forward(self, hidden_states: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor | None]:
        """[B, H, W, C] to the same, and attention weights [B * windows, heads, M*M, M*M] (eager only). `overwrite` lets
        the result take the place of `hidden_states` (not with gradients)."""
        fused = self._may_fuse(hidden_states)
        if fused and not self.training and not torch.is_grad_enabled():
            return self._infer(hidden_states, overwrite), None
        x = self.layernorm_before(hidden_states)
        x, weights = (self._attend_fused(x), None) if fused else self._attend_plain(x)
        hidden_states = hidden_states + self.drop_path(self.dropout(x))
        if fused and self._may_recompute(hidden_states):
            return self._feed_forward(hidden_states), weights
        x = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(x), weights


class GlipSwinMerging(nn.Module):
    """Four neighbouring cells become one of twice the channels; an odd side is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = GlipLinear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 * C]."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        batch, height, width, channels = x.shape
        rows, columns = height // 2, width // 2
        # Order of the four: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1)
        x = x.view(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)
        if x.device.type != "cpu" or not may_overwrite(self):
            return self.reduction(self.norm(x.reshape(batch, rows, columns, 4 * channels)))
        out = x.new_empty(batch, rows, columns, 2 * channels)
        step = max(1, BLOCK_NUMBERS // (columns * 4 * channels))
        for picture, place in zip(x, out):
            for some, answer in zip(picture.split(step), place.split(step)):
                answer.copy_(self.reduction(self.norm(some.reshape(-1, columns, 4 * channels))))
        return out


class GlipSwinStage(nn.Module):
    """Layers of one resolution, and the merging that halves it for the next stage."""

    def __init__(self, config: SwinConfig, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        dim = config.embed_dim * 2**stage
        self.blocks = nn.ModuleList(
            GlipSwinLayer(
                config,
                dim,
                config.num_heads[stage],
                rate,
                shift=config.window_size // 2 if i % 2 else 0,
            )
            for i, rate in enumerate(drop_path_rates)
        )
        self.downsample = GlipSwinMerging(dim) if stage < len(config.depths) - 1 else None


class GlipSwinBackbone(BackboneMixin, SwinPreTrainedModel):
    """Maps of the stages named in `config.out_features`, each layer-normed, [B, C, H, W] at strides 4, 8, 16, 32.

    State-dict names are those of `transformers.SwinBackbone`.
    """

    _no_split_modules = ["GlipSwinLayer"]
    _can_record_outputs: dict[str, Any] = {}

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        self.num_features = [config.embed_dim] + [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        total = sum(config.depths)
        rates = [config.drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths) + 1)]
        stages = [
            GlipSwinStage(config, stage, rates[starts[stage] : starts[stage + 1]])
            for stage in range(len(config.depths))
        ]
        self.swin = nn.ModuleDict(
            {
                "embeddings": SwinEmbeddings(config),
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(stages)}),
            }
        )
        self.hidden_states_norms = nn.ModuleDict(
            {
                name: nn.LayerNorm(channels, eps=config.layer_norm_eps)
                for name, channels in zip(self.out_features, self.channels)
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.swin["embeddings"].patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, SwinRelativePositionBias):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] to the patches' [B, H / 4, W / 4, C], rounded up; on a CPU in strips where nobody looks on."""
        embeddings = self.swin["embeddings"]
        in_strips = pixel_values.device.type == "cpu" and embeddings.position_embeddings is None
        if not in_strips or not may_overwrite(embeddings):
            x, size = embeddings(pixel_values)
            return x.unflatten(1, size)
        patch, (batch, _, height, width) = self.config.patch_size, pixel_values.shape
        columns, channels = -(-width // patch), self.config.embed_dim
        x = None
        step = max(1, BLOCK_NUMBERS // (batch * columns * channels))
        for i, strip in enumerate(pixel_values.split(step * patch, dim=2)):
            part, size = embeddings(strip)
            if x is None:
                x = part.new_empty(batch, -(-height // patch), columns, channels)
            x[:, i * step : i * step + size[0]] = part.unflatten(1, size)
        return x

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: [B, 3, H, W].
            output_hidden_states: also return the patch embedding and each stage's running map, [B, C, H, W].
            output_attentions: also return the weights of each stage's last layer (eager attention only).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions

        def as_map(x: Tensor) -> Tensor:
            return x.permute(0, 3, 1, 2)

        overwrite = not output_hidden_states and may_overwrite(self.swin)
        x = self._embed(pixel_values)
        feature_maps, attentions, hidden_states = [], [], [as_map(x)] if output_hidden_states else []
        for name, stage in zip(self.stage_names[1:], self.swin["encoder"]["layers"]):
            for block in stage.blocks:
                x, weights = block(x, overwrite)
            if output_hidden_states:
                hidden_states.append(as_map(x))
            attentions.append(weights)
            if name in self.hidden_states_norms:
                feature_maps.append(as_map(self.hidden_states_norms[name](x)))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


__all__ = ["GlipSwinBackbone"]
