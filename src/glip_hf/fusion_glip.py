# Copyright 2026 The glip_hf authors. MIT licence.
"""Deep fusion: attention between picture and sentence, both ways, from one matrix of scores (GLIP, arXiv 2112.03857).

Letters: B pairs, N visual tokens of all levels, T text tokens, D visual width, H heads, E width of a head.

The projections of the visual side are absorbed into the text side, which is 100 to 1,000 times shorter. With
K_h = l Wk_h + bk_h and V_h = l Wlv_h + blv_h of head h:

    S_h = v (scale Wq_h K_h^T) + scale bq_h K_h^T        no projection of v to H * E channels
    dv  = sum_h softmax_T(S_h) (V_h Wov_h) + bov         nor back
    dl  = concat_h((R_h v) Wvv_h + bvv_h) Wol + bol      with R_h = softmax_N(S_h^T), whose rows sum to 1

The result is that of the plain form up to rounding (1e-6). The second term of S_h is constant along N, so the text side
does without it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .configuration_glip import GlipConfig
from .fast_path_glip import is_traced, may_overwrite, plain_backward
from .products_glip import GlipLinear, apply_function, linear, pack, product_over_rows

BLOCK_SCORES = 2**20
"""Scores that `attend_in_blocks` holds at a time on a CPU: 4 MiB in float32 stay in its cache."""

DEVICE_BLOCK_SCORES = 2**25
"""The same on other devices, where small steps cost launches."""

LARGEST_TOTAL = 1e8
"""Sum of a block's weights of one token, relative to the level, from which on the level is raised."""

SMALLEST_NORMALISER = 1e-28
"""Sum of a place's weights over the tokens down to which no weight that counts has left float32's normal range."""

MIN_BLOCK = 64
"""Visual tokens a step at least, and on a CPU a multiple of it: with rows of 675 scores the first product took 7.6 ms,
with rows of 640 and 704 6.0 and 6.5 (1,552 tokens and heads)."""

LARGEST_BLOCK = 2048
"""Visual tokens a step at most on a CPU, for short captions."""


def attend_eager(
    vision: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    text_mask: Tensor,
    clamp: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both attention directions with the matrices written out.

    Args:
        vision: [B, N, D]; both query of the picture and, for all heads, key and value of the sentence.
        keys, values: [B, H, T, D], absorbed.
        key_bias: [B, H, T].
        text_mask: [B, T] bool, True at real tokens.
        clamp: bound of the scores.
        dropout: on both attention matrices.

    Returns:
        image side [B, N, D] summed over heads; text side [B, H, T, D]; the row sums [B, H, T] of the text side's
        weights (1 without dropout); the attention of the picture [B, H, N, T] and of the sentence [B, H, T, N].
    """
    precision = torch.promote_types(vision.dtype, torch.float32)
    scores = torch.einsum("bnd,bhtd->bhnt", vision, keys) + key_bias[:, :, None]
    scores = scores.clamp(-clamp, clamp)
    picture = scores.masked_fill(~text_mask[:, None, None], torch.finfo(scores.dtype).min)
    picture = picture.softmax(-1, dtype=precision).to(vision.dtype)
    sentence = scores.transpose(2, 3).softmax(-1, dtype=precision).to(vision.dtype)
    picture_dropped = nn.functional.dropout(picture, dropout)
    sentence_dropped = nn.functional.dropout(sentence, dropout)
    return (
        torch.einsum("bhnt,bhtd->bnd", picture_dropped, values),
        torch.einsum("bhtn,bnd->bhtd", sentence_dropped, vision),
        sentence_dropped.sum(-1),
        picture,
        sentence,
    )


def attend_sdpa(
    vision: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, text_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The same through two `scaled_dot_product_attention` calls, without dropout; see `attend_eager`.

    Multi-query attention in both directions: the picture's one query meets H sets of keys; the H * T queries of the
    sentence share the visual tokens as keys and values. Scores are not clamped: the kernels accumulate in float32.
    `triton_glip` says why CUDA has no kernel of its own that makes the scores once for both.
    """
    batch, heads, length, width = keys.shape
    bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
    picture = nn.functional.scaled_dot_product_attention(
        vision[:, None].expand(-1, heads, -1, -1),
        keys,
        values,
        attn_mask=bias[:, :, None].expand(-1, -1, vision.shape[1], -1),
        scale=1.0,
    ).sum(1)
    sentence = nn.functional.scaled_dot_product_attention(
        keys.reshape(batch, 1, heads * length, width), vision[:, None], vision[:, None], scale=1.0
    )
    return picture, sentence.view(batch, heads, length, width)


class _Dropout:
    """Dropout whose masks can be drawn a second time: from a seed, in the same order.

    A number of 16 bits decides on each weight, four from every draw of the generator, which is what takes the time: a
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
    """`x` after dropout, in its place."""
    return x if mask is None else x.mul_(mask)


def _dropped(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Weights after dropout, in the place of the mask, which is of no use after that."""
    return weights if mask is None else mask.mul_(weights)


def _of_heads(scores: Tensor, heads: torch.Size) -> Tensor:
    """[block, H * T] as [block, H, T]."""
    return scores.view(-1, *heads)


class AttendInBlocks(torch.autograd.Function):
    """Both attention directions in blocks of visual tokens, so that only `block` x H * T scores exist at a time.

    Scores lie as [block, H * T], one picture after the other: that way every large product has its operands as the
    faster library wants them (`products_glip`). The text side keeps a running sum (online softmax, arXiv 1805.02867).
    Nothing of the size of the scores is kept for the backward pass, which computes them again, and the same dropout
    masks (arXiv 2205.14135).

    The forward pass takes one exponential for both directions. With a level r_t of every token and head, as a rule the
    highest score among the first block's places, E_t = exp(S_t - r_t) are the weights of the sentence, and
    E_t f_t / sum_t(E_t f_t) with f_t = exp(r_t + b_t - max_t(r_t + b_t)) those of the picture, b_t being the bias; f_t
    goes into the values. Where numbers would leave the range in which that is exact, the level is raised or the softmax
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
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            vision, keys, key_bias, values, text_mask, dropout: as for `attend_eager`.
            seed: of the dropout masks; block: visual tokens at a time.
            residual: add `vision` to the image side.
            overwrite: put the image side where `vision` lies; there is no backward pass then.

        Returns:
            image side, text side and its row sums as of `attend_eager`.
        """
        dropping = _Dropout(dropout, seed, vision.device)
        bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
        picture = vision if overwrite else torch.empty_like(vision)
        rest = [
            AttendInBlocks._attend(*pair, dropping, block, residual)
            for pair in zip(vision, keys, bias, values, picture)
        ]
        sentence, sums, logarithm = (torch.stack(parts) for parts in zip(*rest))
        ctx.save_for_backward(vision, keys, key_bias, values, text_mask, logarithm, sentence, sums)
        ctx.settings = dropout, seed, block, residual
        heads = keys.shape[1:3]
        return picture, sentence.unflatten(1, heads), sums.unflatten(1, heads)

    @staticmethod
    def _attend(
        vision: Tensor,
        keys: Tensor,
        bias: Tensor,
        values: Tensor,
        picture: Tensor,
        dropping: _Dropout,
        block: int,
        residual: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pair: the image side goes to `picture`; returns the text side [H * T, D], its row sums and the logarithms
        of its normalisers [H * T]."""
        heads = bias.shape
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        precision = torch.promote_types(vision.dtype, torch.float32)
        level = vision.new_full((heads.numel(),), -torch.inf, dtype=precision)
        total, sums = torch.zeros_like(level), torch.zeros_like(level)
        gathered = keys.new_zeros(keys.shape[::-1], dtype=precision)
        block_keys = pack(keys, block)
        for start in range(0, len(vision), block):
            some = vision[start : start + block]
            weights = dropped = block_total = None  # so that the next scores take the place of the last
            if start:
                weights = linear(some, block_keys, -level.to(some.dtype)).to(precision).exp_()
                block_total = weights.sum(0)
            if block_total is None or not bool(block_total.max() < LARGEST_TOTAL):
                weights = linear(some, block_keys).to(precision)
                raised = torch.maximum(level, weights.amax(0))
                decay, level = (level - raised).exp_(), raised
                total, sums, gathered = total * decay, sums * decay, gathered.mul_(decay)
                factors = level.view(heads) + bias
                factors = factors.sub_(factors.amax(1, keepdim=True)).exp_()
                summed = torch.block_diag(*factors)  # [H, H * T]: sums a head's weights times their factors
                folded = pack((values * factors.view(-1, 1)).t().contiguous(), block)
                block_total = weights.sub_(level).exp_().sum(0)
            mask, sentence_mask = dropping.mask(weights), dropping.mask(weights)
            total += block_total
            dropped = _dropped(weights, sentence_mask)
            if some.dtype == precision:
                product_over_rows(some, dropped, gathered)
            else:
                gathered += some.t() @ dropped.to(some.dtype)
            sums += block_total if sentence_mask is None else dropped.sum(0)

            normaliser = linear(weights, summed)
            if bool(normaliser.min() > SMALLEST_NORMALISER):
                _of_heads(weights, heads).mul_(normaliser.reciprocal_()[..., None])
                own_values = folded
                if some.dtype != precision:  # half precision has no room for weights that lack their factors
                    weights, own_values = weights.mul_(factors.view(-1)), values.t()
            else:
                scores = _of_heads(linear(some, keys).to(precision), heads)
                weights, own_values = (scores + bias).softmax(-1).flatten(1), values.t()
            weights = _dropped(weights, mask).to(some.dtype)
            linear(weights, own_values, some if residual else None, picture[start : start + block])
        sentence = (gathered / total).t().to(vision.dtype)
        return sentence, (sums / total).to(vision.dtype), level + total.log()

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad_picture: Tensor, grad_sentence: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        vision, keys, key_bias, values, text_mask, normaliser, sentence, sums = ctx.saved_tensors
        dropout, seed, block, residual = ctx.settings
        dropping = _Dropout(dropout, seed, vision.device)
        bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)
        grad_sentence, grad_sums = grad_sentence.flatten(1, 2), grad_sums.flatten(1, 2)
        # Of the text side's softmax: the sum over all visual tokens of weight times gradient is known beforehand.
        expected = (grad_sentence * sentence).sum(-1) + grad_sums * sums
        operands = zip(vision, keys, bias, values, normaliser, grad_picture, grad_sentence, grad_sums, expected)
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
        grad_picture: Tensor,
        grad_sentence: Tensor,
        grad_sums: Tensor,
        expected: Tensor,
        dropping: _Dropout,
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
            some, grad = (x[start : start + block] for x in (vision, grad_picture))
            scores = linear(some, keys).to(precision)
            weights = (_of_heads(scores, heads) + bias).softmax(-1)
            mask = dropping.mask(scores)
            grad_weights = _drop(linear(grad, values).to(precision), mask)
            product_over_rows(_dropped(weights.flatten(1), mask).to(dtype), grad, grad_values)
            grad_scores = torch._softmax_backward_data(grad_weights.view_as(weights), weights, 2, precision)
            grad_bias += grad_scores.sum(0)

            weights = scores.sub_(normaliser).exp_()
            mask = dropping.mask(weights)
            grad_weights = _drop(linear(some, grad_sentence, grad_sums).to(precision), mask).sub_(expected)
            grad_scores = grad_scores.flatten(1).addcmul_(weights, grad_weights).to(dtype)
            product_over_rows(grad_scores, some, grad_keys)
            place = grad_tokens[start : start + block]
            linear(grad_scores, keys.t(), grad if residual else None, place)
            place += linear(_dropped(weights, mask).to(dtype), grad_sentence.t())
        return grad_tokens, grad_keys, grad_bias, grad_values


def attend_in_blocks(
    vision: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    text_mask: Tensor,
    dropout: float = 0.0,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`vision` plus the image side of `attend_eager`, its text side and row sums, in blocks: see `AttendInBlocks`.

    Scores are not clamped: they are float32 at least. With `overwrite` (not with gradients) the first result may take
    the place of `vision`, which saves the memory of one and the time that fresh memory costs.
    """
    device = vision.device.type
    seed = int(torch.randint(2**62, ())) if dropout > 0 else 0
    scores = key_bias[0].numel()  # of one visual token: pairs come one after the other
    if device == "cpu":
        block = min(BLOCK_SCORES // scores, LARGEST_BLOCK) // MIN_BLOCK * MIN_BLOCK
    else:
        block = DEVICE_BLOCK_SCORES // scores
    block = max(MIN_BLOCK, block)
    if not torch.is_autocast_enabled(device):
        return apply_function(
            AttendInBlocks, vision, keys, key_bias, values, text_mask, dropout, seed, block, True, overwrite
        )
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        inputs = [x.to(dtype) for x in (vision, keys, key_bias, values)]
        picture, sentence, row_sums = apply_function(AttendInBlocks, *inputs, text_mask, dropout, seed, block, False)
        return vision + picture, sentence, row_sums


class GlipAbsorbedLinear(nn.Linear):
    """A projection of the visual side that is never applied there: a call hands out weight and bias to be absorbed.

    A call, not attribute access, so that the hooks run that fetch the weights of an offloaded model.
    """

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


class GlipFusionLayer(nn.Module):
    """Layer-normed picture and sentence, each enriched by the other.

    The residual adds to the *normalised* input, as in the original; both updates see the same inputs.
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        text_size = config.text_config.hidden_size
        self.num_heads = config.fusion_heads
        self.head_size = config.fusion_hidden_size // config.fusion_heads
        self.scaling = self.head_size**-0.5
        self.norm_vision = nn.LayerNorm(config.d_model)
        self.norm_text = nn.LayerNorm(text_size)
        self.query_vision = GlipAbsorbedLinear(config.d_model, config.fusion_hidden_size)
        self.key_text = GlipLinear(text_size, config.fusion_hidden_size)
        self.value_vision = GlipAbsorbedLinear(config.d_model, config.fusion_hidden_size)
        self.value_text = GlipLinear(text_size, config.fusion_hidden_size)
        self.out_vision = GlipAbsorbedLinear(config.fusion_hidden_size, config.d_model)
        self.out_text = GlipLinear(config.fusion_hidden_size, text_size)
        self.gamma_vision = nn.Parameter(torch.empty(config.d_model))
        self.gamma_text = nn.Parameter(torch.empty(text_size))

    def _absorb(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys [B, H, T, D], their bias [B, H, T], values [B, H, T, D] for the visual tokens, gamma and the output
        projection included; output bias [D] times gamma."""
        keys = self.key_text(text).unflatten(-1, (self.num_heads, -1)) * self.scaling
        values = self.value_text(text).unflatten(-1, (self.num_heads, -1))
        query, query_bias = (x.unflatten(0, (self.num_heads, -1)) for x in self.query_vision())
        out, out_bias = self.out_vision()
        out = (out * self.gamma_vision[:, None]).unflatten(1, (self.num_heads, -1))
        return (
            torch.einsum("bthe,hed->bhtd", keys, query),
            torch.einsum("bthe,he->bht", keys, query_bias),
            torch.einsum("bthe,dhe->bhtd", values, out),
            out_bias * self.gamma_vision,
        )

    def _normalise(self, vision: Tensor, overwrite: bool) -> Tensor:
        """`norm_vision`; with `overwrite`, on a CPU, the result takes the place of `vision`."""
        overwrite = overwrite and vision.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not overwrite or not may_overwrite(self.norm_vision):
            return self.norm_vision(vision)
        for some in vision.flatten(0, 1).split(LARGEST_BLOCK):
            some.copy_(self.norm_vision(some))
        return vision

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        text_mask: Tensor,
        output_attentions: bool = False,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            vision: [B, N, D] tokens of all levels; text: [B, T, hidden size of the text encoder].
            text_mask: [B, T] bool, True at real tokens; it masks the picture's attention only, as in the original.
            output_attentions: also return both attention matrices.
            overwrite: the new vision may take the place of `vision` (not with gradients).

        Returns:
            new vision, new text, attention of the picture [B, H, N, T] and of the sentence [B, H, T, N] or None.
        """
        vision, text = self._normalise(vision, overwrite), self.norm_text(text)
        keys, key_bias, values, out_bias = self._absorb(text)
        dropout = self.config.fusion_dropout if self.training else 0.0
        if dropout == 0:
            # Every head's weights sum to 1, so the bias may as well be part of the values.
            values = values + out_bias / self.num_heads
        row_sums = picture_attention = sentence_attention = None
        wants_weights = output_attentions or self.config._attn_implementation == "eager"
        if wants_weights or (dropout > 0 and is_traced()):
            picture, sentence, row_sums, picture_attention, sentence_attention = attend_eager(
                vision, keys, key_bias, values, text_mask, self.config.clamp_value, dropout
            )
            new_vision = vision + picture
        elif dropout > 0 or (vision.device.type == "cpu" and not is_traced()):
            new_vision, sentence, row_sums = attend_in_blocks(
                vision, keys, key_bias, values, text_mask, dropout, overwrite=may_overwrite(self.norm_vision)
            )
        else:
            picture, sentence = attend_sdpa(vision, keys, key_bias, values, text_mask)
            new_vision = vision + picture
        if dropout > 0:
            new_vision = new_vision + out_bias

        value, value_bias = (x.unflatten(0, (self.num_heads, -1)) for x in self.value_vision())
        heads = torch.einsum("bhtd,hed->bthe", sentence, value)
        if dropout > 0:
            heads = heads + row_sums.transpose(1, 2)[..., None] * value_bias
        else:
            heads = heads + value_bias
        text = text + self.gamma_text * self.out_text(heads.flatten(2))
        if not output_attentions:
            picture_attention = sentence_attention = None
        return new_vision, text, picture_attention, sentence_attention


__all__ = ["GlipFusionLayer", "attend_eager", "attend_in_blocks", "attend_sdpa"]
