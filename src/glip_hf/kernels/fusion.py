# Copyright 2026 The glip_hf authors. MIT licence.
"""Deep fusion with the projections of the visual side absorbed into the text side, which is 100 to 1,000 times shorter.

With K_h = l Wk_h + bk_h and V_h = l Wlv_h + blv_h of head h (GLIP's paper, section 3.2):

    S_h = v (scale Wq_h K_h^T) + scale bq_h K_h^T        no projection of v to H * E channels
    dv  = sum_h softmax_T(S_h) (V_h Wov_h) + bov         nor back
    dl  = concat_h((R_h v) Wvv_h + bvv_h) Wol + bol      with R_h = softmax_N(S_h^T), whose rows sum to 1

The result is that of the plain form up to rounding (1e-6). The second term of S_h is constant along N, so the text side
does without it.

`cpu_fusion` attends in blocks of visual tokens, also in training; `absorbed_fusion` by two SDPA calls for all pairs, on
any device, also in training: it is what GPUs run and `torch.compile` and `torch.export` record.

Letters: B pairs, N visual tokens of all levels, T text tokens, D visual width, H heads, E width of a head.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modeling_glip import GlipFusionLayer
from ..ops_glip import once_differentiable, register_kernel
from .cpu_int8 import dense
from .cpu_linear import apply_function, linear, pack, product_over_rows
from .guards import is_cpu_float, parts_are_plain

BLOCK_SCORES = 2**20  # scores that `attend_in_blocks` holds at a time: 4 MiB in float32 stay in a CPU's cache

LARGEST_TOTAL = 1e8  # sum of a block's weights of one token, relative to the level, from which on the level is raised

# Sum of a location's weights over the tokens down to which no weight that counts has left float32's normal range
SMALLEST_NORMALISER = 1e-28

# Visual tokens a block has at least, and a multiple of it: with rows of 675 scores the first product took 7.6 ms, with
# rows of 640 and 704 6.0 and 6.5 (1,552 tokens and heads)
MIN_BLOCK = 64

LARGEST_BLOCK = 2048  # visual tokens a block has at most, for short captions

# Text tokens below which the normalisers of the heads are repeated for all tokens before the product with the weights:
# 2,048 x 8 heads x 8 tokens in bfloat16 take 80 us and not 247
FEW_TOKENS = 32

# Columns beside the visual tokens in `attend_sdpa_dropout`: ones and zeros, as memory-efficient attention takes
# multiples of 8
EXTRA_COLUMNS = 8

PARTS = {
    "norm_vision": nn.LayerNorm,
    "norm_text": nn.LayerNorm,
    **{f"{name}_vision": nn.Linear for name in ("query", "value", "out")},
    **{f"{name}_text": nn.Linear for name in ("key", "value", "out")},
}


def attend_sdpa(
    vision: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, text_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Both attention directions by two `scaled_dot_product_attention` calls, without dropout.

    Multi-query attention in both directions: the image's one query meets H sets of keys; the H * T queries of the
    caption share the visual tokens as keys and values. Scores are not clamped: the kernels accumulate in float32.

    Args:
        vision: [B, N, D]; both query of the image and, for all heads, key and value of the caption.
        keys, values: [B, H, T, D], absorbed; key_bias: [B, H, T].
        text_mask: [B, T] bool, True at real tokens.

    Returns:
        image side [B, N, D] summed over heads; text side [B, H, T, D].
    """
    batch, heads, length, width = keys.shape
    bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
    image_side = nn.functional.scaled_dot_product_attention(
        vision[:, None].expand(-1, heads, -1, -1),
        keys,
        values,
        attn_mask=bias[:, :, None].expand(-1, -1, vision.shape[1], -1),
        scale=1.0,
    ).sum(1)
    text_side = nn.functional.scaled_dot_product_attention(
        keys.reshape(batch, 1, heads * length, width), vision[:, None], vision[:, None], scale=1.0
    )
    return image_side, text_side.view(batch, heads, length, width)


def attend_sdpa_dropout(
    vision: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, text_mask: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_sdpa` for training. A column of ones stands beside the visual tokens: as value it gives the row sums of
    the dropped weights; as query it meets the bias among the keys, since a mask [B, H, N, T] that depends on the
    parameters would get a gradient of its size.

    Returns:
        image side [B, N, D], text side [B, H, T, D], and the row sums [B, H, T] of the text side's weights.
    """
    batch, heads, length, width = keys.shape
    attend = functools.partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout, scale=1.0)
    bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
    beside = (0, EXTRA_COLUMNS - 1)
    vision = vision.to(keys.dtype)  # under autocast; later it would be all heads of an expanded tensor
    extended = torch.cat([vision, nn.functional.pad(vision.new_ones(*vision.shape[:2], 1), beside)], dim=-1)
    image_side = attend(
        extended[:, None].expand(-1, heads, -1, -1),
        torch.cat([keys, nn.functional.pad(bias[..., None], beside)], dim=-1),
        values,
    ).sum(1)
    text_side = attend(keys.reshape(batch, 1, heads * length, width), vision[:, None], extended[:, None])
    text_side = text_side.view(batch, heads, length, width + EXTRA_COLUMNS)
    return image_side, text_side[..., :width], text_side[..., width]


class RepeatableDropout:
    """Dropout whose masks can be drawn a second time: from a seed, in the same order.

    16 bits decide on each weight, four times 16 from every draw of the generator, which is what takes the time: a
    million cost 1.1 ms on two cores, `bernoulli_` 4.5 ms. The rate is rounded to a multiple of 2^-16.
    """

    def __init__(self, rate: float, seed: int, device: torch.device) -> None:
        dropped = round(rate * 2**16)
        self.first_kept = dropped - 2**15
        self.scale = 2**16 / max(1, 2**16 - dropped)
        self.generator = torch.Generator(device).manual_seed(seed) if rate > 0 else None

    def mask(self, like: Tensor) -> Tensor | None:
        """0 at what is dropped and 1 / (1 - rate) elsewhere; None without dropout."""
        if self.generator is None:
            return None
        draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        draws.random_(-(2**63), None, generator=self.generator)
        bits = draws.view(torch.int16)[: like.numel()].view(like.shape)
        return (bits >= self.first_kept).to(like.dtype).mul_(self.scale)


def _drop(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` after dropout, in place."""
    return x if mask is None else x.mul_(mask)


def _dropped(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Weights after dropout, in the memory of the mask, which is not needed after that."""
    return weights if mask is None else mask.mul_(weights)


def _of_heads(scores: Tensor, heads: torch.Size) -> Tensor:
    """[block, H * T] as [block, H, T]."""
    return scores.view(-1, *heads)


class AttendInBlocks(torch.autograd.Function):
    """Both attention directions in blocks of visual tokens, so that only `block` x H * T scores exist at a time.

    Scores lie as [block, H * T], one image after the other: that way every large product has its operands as the
    faster library wants them (`cpu_linear`). The text side keeps a running sum (online softmax, arXiv 1805.02867).
    Nothing of the size of the scores is kept for the backward pass, which computes them again, and the same dropout
    masks (arXiv 2205.14135).

    The forward pass takes one exponential for both directions. With a level r_t of every token and head, as a rule the
    highest score among the first block's locations, E_t = exp(S_t - r_t) are the weights of the caption, and
    E_t f_t / sum_t(E_t f_t) with f_t = exp(r_t + b_t - max_t(r_t + b_t)) those of the image, b_t being the bias; f_t
    goes into the values. Where values would leave the range in which that is exact, the level is raised or the softmax
    of the block taken by itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vision: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        values: Tensor,
        text_mask: Tensor,
        dropout: float,
        seed: int,
        block: int,
        residual: bool,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            vision, keys, key_bias, values, text_mask: as for `attend_sdpa`; dropout: of both attention matrices.
            seed: of the dropout masks; block: visual tokens at a time.
            residual: add `vision` to the image side.
            in_place: put the image side in the memory of `vision`; there is no backward pass then.

        Returns:
            image side, text side, and the row sums [B, H, T] of the text side's weights.
        """
        dropping = RepeatableDropout(dropout, seed, vision.device)
        bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
        image_side = vision if in_place else torch.empty_like(vision)
        rest = [
            AttendInBlocks._attend(*pair, dropping, block, residual)
            for pair in zip(vision, keys, bias, values, image_side)
        ]
        text_side, sums, logarithm = (torch.stack(parts) for parts in zip(*rest))
        ctx.save_for_backward(vision, keys, key_bias, values, text_mask, logarithm, text_side, sums)
        ctx.settings = dropout, seed, block, residual
        heads = keys.shape[1:3]
        return image_side, text_side.unflatten(1, heads), sums.unflatten(1, heads)

    @staticmethod
    def _attend(
        vision: Tensor,
        keys: Tensor,
        bias: Tensor,
        values: Tensor,
        image_side: Tensor,
        dropping: RepeatableDropout,
        block: int,
        residual: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pair: the image side goes to `image_side`; returns the text side [H * T, D], its row sums and the
        logarithms of its normalisers [H * T]."""
        heads = bias.shape
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        precision = torch.promote_types(vision.dtype, torch.float32)
        level = vision.new_full((heads.numel(),), -torch.inf, dtype=precision)
        total, sums = torch.zeros_like(level), torch.zeros_like(level)
        # bfloat16 has the range of float32, so weights stay in it; those of float16 are taken in float32.
        weight_dtype = vision.dtype if vision.dtype == torch.bfloat16 else precision
        gathered = keys.new_zeros(keys.shape[::-1], dtype=precision)
        block_keys = pack(keys, block)
        for start in range(0, len(vision), block):
            part = vision[start : start + block]
            weights = dropped = block_total = None  # so that the next scores take the memory of the last
            if start:
                weights = linear(part, block_keys, -level.to(part.dtype)).to(weight_dtype).exp_()
                block_total = weights.sum(0)
            if block_total is None or not bool(block_total.max() < LARGEST_TOTAL):
                weights = linear(part, block_keys).to(precision)
                # Rounded as the next products take it
                raised = torch.maximum(level, weights.amax(0)).to(part.dtype).to(precision)
                decay, level = (level - raised).exp_(), raised
                total, sums, gathered = total * decay, sums * decay, gathered.mul_(decay)
                factors = level.view(heads) + bias
                factors = factors.sub_(factors.amax(1, keepdim=True)).exp_().to(weight_dtype)
                summed = torch.block_diag(*factors)  # [H, H * T]: sums a head's weights times their factors
                folded = pack((values * factors.view(-1, 1)).to(weight_dtype).t().contiguous(), block)
                weights = weights.sub_(level).exp_().to(weight_dtype)
                block_total = weights.sum(0)
            mask, text_side_mask = dropping.mask(weights), dropping.mask(weights)
            total += block_total
            dropped = _dropped(weights, text_side_mask)
            if part.dtype == precision:
                product_over_rows(part, dropped, gathered)
            else:
                gathered += part.t() @ dropped.to(part.dtype)
            sums += block_total if text_side_mask is None else dropped.sum(0)

            normaliser = linear(weights, summed)
            if bool(normaliser.min() > SMALLEST_NORMALISER):
                normaliser.reciprocal_()
                if heads[1] < FEW_TOKENS:
                    weights.mul_(normaliser.repeat_interleave(heads[1], dim=1))
                else:
                    _of_heads(weights, heads).mul_(normaliser[..., None])
                own_values = folded
                if part.dtype != weight_dtype:  # float16 has no room for weights that lack their factors
                    weights, own_values = weights.mul_(factors.view(-1)), values.t()
            else:
                scores = _of_heads(linear(part, keys).to(precision), heads)
                weights, own_values = (scores + bias).softmax(-1).flatten(1), values.t()
            weights = _dropped(weights, mask).to(part.dtype)
            linear(weights, own_values, part if residual else None, image_side[start : start + block])
        text_side = (gathered / total).t().to(vision.dtype)
        return text_side, (sums / total).to(vision.dtype), level + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_text: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        vision, keys, key_bias, values, text_mask, normaliser, text_side, sums = ctx.saved_tensors
        dropout, seed, block, residual = ctx.settings
        dropping = RepeatableDropout(dropout, seed, vision.device)
        bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
        grad_text, grad_sums = grad_text.flatten(1, 2), grad_sums.flatten(1, 2)
        # Of the text side's softmax: the sum over all visual tokens of weight times gradient is known beforehand.
        expected = (grad_text * text_side).sum(-1) + grad_sums * sums
        operands = zip(vision, keys, bias, values, normaliser, grad_image, grad_text, grad_sums, expected)
        grads = [AttendInBlocks._attend_back(*pair, dropping, block, residual) for pair in operands]
        grad_tokens, grad_keys, grad_bias, grad_values = (torch.stack(parts) for parts in zip(*grads))
        grad_bias = grad_bias.masked_fill_(~text_mask[:, None], 0).to(key_bias.dtype)
        return grad_tokens, grad_keys.view_as(keys), grad_bias, grad_values.view_as(values), *[None] * 6

    @staticmethod
    def _attend_back(
        vision: Tensor,
        keys: Tensor,
        bias: Tensor,
        values: Tensor,
        normaliser: Tensor,
        grad_image: Tensor,
        grad_text: Tensor,
        grad_sums: Tensor,
        expected: Tensor,
        dropping: RepeatableDropout,
        block: int,
        residual: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pair: the gradients of vision, keys, key bias and values."""
        heads, dtype = bias.shape, vision.dtype
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        precision = torch.promote_types(dtype, torch.float32)
        grad_tokens, grad_keys, grad_values = torch.empty_like(vision), torch.zeros_like(keys), torch.zeros_like(values)
        grad_bias = torch.zeros_like(bias, dtype=precision)
        for start in range(0, len(vision), block):
            part, grad = (x[start : start + block] for x in (vision, grad_image))
            scores = linear(part, keys).to(precision)
            weights = (_of_heads(scores, heads) + bias).softmax(-1)
            mask = dropping.mask(scores)
            grad_weights = _drop(linear(grad, values).to(precision), mask)
            product_over_rows(_dropped(weights.flatten(1), mask).to(dtype), grad, grad_values)
            grad_scores = torch._softmax_backward_data(grad_weights.view_as(weights), weights, 2, precision)
            grad_bias += grad_scores.sum(0)

            weights = scores.sub_(normaliser).exp_()
            mask = dropping.mask(weights)
            grad_weights = _drop(linear(part, grad_text, grad_sums).to(precision), mask).sub_(expected)
            grad_scores = grad_scores.flatten(1).addcmul_(weights, grad_weights).to(dtype)
            product_over_rows(grad_scores, part, grad_keys)
            part_grad = grad_tokens[start : start + block]
            linear(grad_scores, keys.t(), grad if residual else None, part_grad)
            part_grad += linear(_dropped(weights, mask).to(dtype), grad_text.t())
        return grad_tokens, grad_keys, grad_bias, grad_values


def attend_in_blocks(
    vision: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    text_mask: Tensor,
    dropout: float = 0.0,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`vision` plus the image side of `attend_sdpa`, its text side, and the row sums [B, H, T] of the text side's
    weights (1 without dropout), in blocks: see `AttendInBlocks`.

    Scores are not clamped: they are float32 at least. With `in_place` (not with gradients) the first result takes the
    memory of `vision`.
    """
    seed = int(torch.randint(2**62, ())) if dropout > 0 else 0
    scores = key_bias[0].numel()  # of one visual token: pairs come one after the other
    block = max(MIN_BLOCK, min(BLOCK_SCORES // scores, LARGEST_BLOCK) // MIN_BLOCK * MIN_BLOCK)
    if not torch.is_autocast_enabled("cpu"):
        return apply_function(
            AttendInBlocks, vision, keys, key_bias, values, text_mask, dropout, seed, block, True, in_place
        )
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        inputs = [x.to(dtype) for x in (vision, keys, key_bias, values)]
        image_side, text_side, row_sums = apply_function(
            AttendInBlocks, *inputs, text_mask, dropout, seed, block, False
        )
        return vision + image_side, text_side, row_sums


# -- the layer -------------------------------------------------------------------------------------


class Absorbed(NamedTuple):
    """The text side as keys and values of the visual tokens, gamma and the output projection included."""

    keys: Tensor  # [B, H, T, D]
    key_bias: Tensor  # [B, H, T]
    values: Tensor  # [B, H, T, D]
    out_bias: Tensor  # [D], gamma times the bias of the output projection


def _project(projection: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, projection.weight, projection.bias)


def absorb(layer: GlipFusionLayer, text: Tensor) -> Absorbed:
    """Normalised text [B, T, hidden size of the text encoder] to keys and values of the visual tokens."""
    heads = layer.num_heads
    keys = _project(layer.key_text, text).unflatten(-1, (heads, -1)) * layer.scaling
    values = _project(layer.value_text, text).unflatten(-1, (heads, -1))
    projection = layer.query_vision
    weights = dense(projection.weight, text.dtype), projection.bias
    query, query_bias = (x.unflatten(0, (heads, -1)) for x in weights)
    out = (dense(layer.out_vision.weight, text.dtype) * layer.gamma_vision[:, None]).unflatten(1, (heads, -1))
    return Absorbed(
        torch.einsum("bthe,hed->bhtd", keys, query),
        torch.einsum("bthe,he->bht", keys, query_bias),
        # Heads first in memory: as they lie, a product in bfloat16 takes 1.8 ms for 8 tokens and not 0.2.
        torch.einsum("bthe,hde->bhtd", values, out.transpose(0, 1).contiguous()),
        layer.out_vision.bias * layer.gamma_vision,
    )


def _update_text(layer: GlipFusionLayer, text: Tensor, text_side: Tensor, row_sums: Tensor | None) -> Tensor:
    """Normalised text plus its update, from what was gathered of the visual tokens [B, H, T, D]."""
    projection = layer.value_vision
    weights = dense(projection.weight, text.dtype), projection.bias
    value, bias = (x.unflatten(0, (layer.num_heads, -1)) for x in weights)
    heads = torch.einsum("bhtd,hed->bthe", text_side, value)
    heads = heads + (bias if row_sums is None else row_sums.transpose(1, 2)[..., None] * bias)
    return text + layer.gamma_text * _project(layer.out_text, heads.flatten(2))


def _weights_unused(layer: GlipFusionLayer, output_attentions: bool) -> bool:
    return not output_attentions and layer.config._attn_implementation != "eager" and parts_are_plain(layer, PARTS)


def _accepts_cpu(
    layer: GlipFusionLayer, vision: Tensor, text: Tensor, text_mask: Tensor, output_attentions: bool = False
) -> bool:
    return is_cpu_float(vision, text) and _weights_unused(layer, output_attentions)


@register_kernel("fusion", "cpu_fusion", _accepts_cpu)
def cpu_fusion(
    _plain: Callable[..., Any],
    layer: GlipFusionLayer,
    vision: Tensor,
    text: Tensor,
    text_mask: Tensor,
    output_attentions: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    """`GlipFusionLayer.forward`."""
    vision, text = layer.norm_vision(vision), layer.norm_text(text)
    keys, key_bias, values, out_bias = absorb(layer, text)
    dropout = layer.config.fusion_dropout if layer.training else 0.0
    if dropout == 0:
        # Every head's weights sum to 1, so the bias may as well be part of the values.
        values = values + out_bias / layer.num_heads
    vision, text_side, row_sums = attend_in_blocks(
        vision, keys, key_bias, values, text_mask, dropout, in_place=not torch.is_grad_enabled()
    )
    if dropout > 0:
        vision = vision + out_bias
    return vision, _update_text(layer, text, text_side, row_sums if dropout > 0 else None), None, None


def _accepts_any(
    layer: GlipFusionLayer, vision: Tensor, text: Tensor, text_mask: Tensor, output_attentions: bool = False
) -> bool:
    return _weights_unused(layer, output_attentions)


@register_kernel("fusion", "absorbed_fusion", _accepts_any, traceable=True)
def absorbed_fusion(
    _plain: Callable[..., Any],
    layer: GlipFusionLayer,
    vision: Tensor,
    text: Tensor,
    text_mask: Tensor,
    output_attentions: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    """`GlipFusionLayer.forward`."""
    vision, text = layer.norm_vision(vision), layer.norm_text(text)
    keys, key_bias, values, out_bias = absorb(layer, text)
    dropout, row_sums = layer.config.fusion_dropout if layer.training else 0.0, None
    if dropout > 0:
        image_side, text_side, row_sums = attend_sdpa_dropout(vision, keys, key_bias, values, text_mask, dropout)
        image_side = image_side + out_bias
    else:
        image_side, text_side = attend_sdpa(vision, keys, key_bias, values + out_bias / layer.num_heads, text_mask)
    return vision + image_side, _update_text(layer, text, text_side, row_sums), None, None
