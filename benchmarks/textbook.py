# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP in its textbook formulation: what the model is tested and timed against.

`textbook_view(model)` is a second view of a model. It shares every parameter, also when they are trained, and computes
the same results up to rounding; only time and memory differ:

* one (image, caption) pair at a time, with image and caption encoded again for every pair;
* every caption padded to `config.max_text_length`, in the text encoder and in the head;
* fusion with all six projections applied, to the full inner width, and both attention matrices written out;
* deformable convolutions as im2col by `grid_sample` and one matrix product, with nothing shared between them;
* attention written out in Swin, the text encoder and the text layers.

The modules of a view take the parameters of the model's modules by their names in the state dict, and none of their
code, so that no error of theirs can hide in it. Anchors, box decoding and losses are the model's own.

Letters: B images, N captions or pairs, A visual tokens of all levels, T text tokens, D channels of the head, H heads,
E width of the text encoder, M window side, K = 9 sampling points.
"""

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput
from transformers.utils import can_return_tuple

from glip_hf import (
    GlipConfig,
    GlipForGrounding,
    GlipGroundingOutput,
    GlipImageFeatures,
    GlipModel,
    GlipModelOutput,
    GlipTextFeatures,
)
from glip_hf.boxes_glip import decode_boxes, make_anchors
from glip_hf.configuration_glip import PYRAMID_STRIDES

KERNEL_POINTS = 9


class Part(nn.Module):
    """The parameters of a module and of all within it, under the same names, without their code."""

    def __init__(self, source: nn.Module, **attributes: Any) -> None:
        super().__init__()
        self._parameters, self._buffers = source._parameters, source._buffers
        self._modules = {name: None if child is None else Part(child) for name, child in source._modules.items()}
        self.training = source.training
        for name, value in attributes.items():
            setattr(self, name, value)


def linear(x: Tensor, part: nn.Module) -> Tensor:
    return nn.functional.linear(x, part.weight, part.bias)


def layer_norm(x: Tensor, part: nn.Module, eps: float = 1e-5) -> Tensor:
    return nn.functional.layer_norm(x, part.weight.shape, part.weight, part.bias, eps)


def conv2d(x: Tensor, part: nn.Module, stride: int = 1, padding: int = 0) -> Tensor:
    return nn.functional.conv2d(x, part.weight, part.bias, stride, padding)


def row(value: Any, index: int) -> Any:
    """Entry `index` of a batch, as a batch of one: of tensors, and of dicts, outputs and tuples of them."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, dict):
        return type(value)(**{name: row(item, index) for name, item in value.items()})
    return tuple(row(item, index) for item in value)


def join(values: list[Any]) -> Any:
    """The reverse of `row`: one batch of many."""
    if values[0] is None:
        return None
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], dict):
        return type(values[0])(**{name: join([value[name] for value in values]) for name in values[0]})
    return tuple(join(list(items)) for items in zip(*values, strict=True))


def first(inputs: dict[str, Tensor | None]) -> Tensor:
    """The first tensor of some inputs, or of features in their place: it has their batch size."""
    return next(iter(inputs.values()))


def to_pyramid(tokens: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """[N, A, D] to [N, D, H_i, W_i] of each level."""
    levels = tokens.split([height * width for height, width in shapes], dim=1)
    return [level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]


def to_tokens(pyramid: list[Tensor]) -> Tensor:
    """The reverse of `to_pyramid`."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)


# -- Swin (arXiv 2103.14030) -----------------------------------------------------------------------


def window_regions(height: int, width: int, window: int, shift: int) -> Tensor:
    """[height, width] int64: a number for each part of the shifted map that was one piece before the shift."""
    regions = torch.zeros(height, width, dtype=torch.int64)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for (i, rows), (j, columns) in itertools.product(enumerate(bands), enumerate(bands)):
        regions[rows, columns] = 3 * i + j
    return regions


class SwinLayer(Part, GradientCheckpointingLayer):
    """Windowed (and, in every second layer, shifted) attention and a feed-forward branch, pre-norm.

    Attributes: `config`, `heads`, `shift` (0 for none) and `drop_path_rate` (stochastic depth).
    """

    def _drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path_rate == 0:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path_rate
        return x * keep / (1 - self.drop_path_rate)

    def _residual(self, x: Tensor) -> Tensor:
        return self._drop_path(nn.functional.dropout(x, self.config.hidden_dropout_prob, self.training))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, H, W, C] to the same."""
        config, window, shift, attention = self.config, self.config.window_size, self.shift, self.attention
        batch, height, width, channels = hidden_states.shape
        full_height, full_width = (-(-side // window) * window for side in (height, width))

        def partition(x: Tensor) -> Tensor:
            """[B, H, W, C] to [B, windows, M * M, C]."""
            x = x.reshape(x.shape[0], full_height // window, window, full_width // window, window, -1)
            return x.transpose(2, 3).reshape(x.shape[0], -1, window * window, x.shape[-1])

        x = layer_norm(hidden_states, self.layernorm_before, config.layer_norm_eps)
        x = nn.functional.pad(x, (0, 0, 0, full_width - width, 0, full_height - height))
        if shift:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        x = partition(x)
        query, key, value = (
            linear(x, part).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # [B, windows, H, M * M, C / H]
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(3, 4)

        side = torch.arange(window, device=x.device)
        y_of, x_of = side.repeat_interleave(window), side.repeat(window)
        relative = (y_of[:, None] - y_of + window - 1) * (2 * window - 1) + (x_of[:, None] - x_of + window - 1)
        table = attention.relative_position_bias.relative_position_bias_table
        scores = scores + table[relative].permute(2, 0, 1)
        if shift:
            region = partition(window_regions(full_height, full_width, window, shift).to(x.device)[None, ..., None])
            apart = region != region.transpose(2, 3)  # [1, windows, M * M, M * M]
            scores = scores + (-100.0 * apart[:, :, None]).to(scores.dtype)
        weights = nn.functional.dropout(scores.softmax(-1), config.attention_probs_dropout_prob, self.training)
        x = linear((weights @ value).transpose(2, 3).flatten(3), attention.o_proj)

        x = x.reshape(batch, full_height // window, full_width // window, window, window, channels)
        x = x.transpose(2, 3).reshape(batch, full_height, full_width, channels)
        if shift:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        hidden_states = hidden_states + self._residual(x[:, :height, :width])
        x = layer_norm(hidden_states, self.layernorm_after, config.layer_norm_eps)
        x = linear(ACT2FN[config.hidden_act](linear(x, self.mlp.fc1)), self.mlp.fc2)
        return hidden_states + self._residual(x)


class Backbone(Part):
    """[B, 3, H, W] to layer-normed maps [B, C, H_i, W_i] at strides 8, 16 and 32. Attribute: `config`."""

    def __init__(self, source: nn.Module, config: Any) -> None:
        super().__init__(source, config=config)
        rates = [config.drop_path_rate * i / max(sum(config.depths) - 1, 1) for i in range(sum(config.depths))]
        originals = source.get_submodule("swin.encoder.layers")
        for stage, original, heads in zip(self._stages(), originals, config.num_heads, strict=True):
            layers = [
                SwinLayer(
                    layer,
                    config=config,
                    heads=heads,
                    shift=config.window_size // 2 if i % 2 else 0,
                    drop_path_rate=rates.pop(0),
                )
                for i, layer in enumerate(original.blocks)
            ]
            stage.blocks = nn.ModuleList(layers)

    def _stages(self) -> list[nn.Module]:
        return list(self.get_submodule("swin.encoder.layers").children())

    def forward(self, pixel_values: Tensor) -> BackboneOutput:
        config, embeddings = self.config, self.get_submodule("swin.embeddings")
        height, width = pixel_values.shape[-2:]
        x = nn.functional.pad(pixel_values, (0, -width % 4, 0, -height % 4))
        x = conv2d(x, embeddings.patch_embeddings.projection, stride=4).permute(0, 2, 3, 1)
        x = nn.functional.dropout(layer_norm(x, embeddings.norm), config.hidden_dropout_prob, self.training)
        feature_maps = []
        for number, stage in enumerate(self._stages(), start=1):
            for layer in stage.blocks:
                x = layer(x)
            if f"stage{number}" in config.out_features:
                norm = self.get_submodule(f"hidden_states_norms.stage{number}")
                feature_maps.append(layer_norm(x, norm, config.layer_norm_eps).permute(0, 3, 1, 2))
            if stage._modules.get("downsample") is not None:
                height, width = x.shape[1:3]
                x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
                x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
                x = linear(layer_norm(x, stage.downsample.norm), stage.downsample.reduction)
        return BackboneOutput(feature_maps=tuple(feature_maps))


# -- pyramid (arXiv 1612.03144) --------------------------------------------------------------------


def drop_block(x: Tensor, drop_prob: float, size: int) -> Tensor:
    """DropBlock (arXiv 1810.12890) on [B, D, H, W]."""
    seeds = (torch.rand(len(x), 1, *x.shape[2:], device=x.device) < drop_prob / size**2).float()
    keep = 1 - nn.functional.max_pool2d(seeds, size, stride=1, padding=size // 2)
    return x * (keep * keep.numel() / keep.sum().clamp(min=1)).to(x.dtype)


class Neck(Part):
    """Maps at strides 8, 16, 32 to P3..P7, [B, D, H_i, W_i] each. Attribute: `config`."""

    def forward(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
        config = self.config
        c3, c4, c5 = (conv2d(x, part) for x, part in zip(feature_maps, self.lateral_convs.children(), strict=True))
        c4 = c4 + nn.functional.interpolate(c5, size=c4.shape[-2:], mode="nearest")
        c3 = c3 + nn.functional.interpolate(c4, size=c3.shape[-2:], mode="nearest")
        if self.training and config.dropblock_prob > 0:
            c3, c4 = (drop_block(x, config.dropblock_prob, config.dropblock_size) for x in (c3, c4))
        levels = zip((c3, c4, c5), self.output_convs.children(), strict=True)
        p3, p4, p5 = (conv2d(x, part, padding=1) for x, part in levels)
        p6 = conv2d(p5, self.p6_conv, stride=2, padding=1)
        return [p3, p4, p5, p6, conv2d(p6.relu(), self.p7_conv, stride=2, padding=1)]


# -- text ------------------------------------------------------------------------------------------


class TextLayer(Part):
    """A BERT layer. Attributes: `config`, of the text encoder, and `clamp`: GLIP bounds scores and activations."""

    clamp: float = math.inf

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            hidden_states: [N, T, E]; mask: [N, T], non-zero at real tokens.
        """
        config, own, out = self.config, self.attention.get_submodule("self"), self.attention.output
        eps, rate = config.layer_norm_eps, config.hidden_dropout_prob

        def clamp(x: Tensor) -> Tensor:
            return x if self.clamp == math.inf else x.clamp(-self.clamp, self.clamp)

        query, key, value = (
            linear(hidden_states, part).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for part in (own.query, own.key, own.value)
        )
        scores = clamp(query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]))
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min)
        weights = nn.functional.dropout(scores.softmax(-1), config.attention_probs_dropout_prob, self.training)
        x = linear((weights @ value).transpose(1, 2).flatten(2), out.dense)
        x = layer_norm(nn.functional.dropout(x, rate, self.training) + hidden_states, out.LayerNorm, eps)
        inner = clamp(ACT2FN[config.hidden_act](clamp(linear(x, self.intermediate.dense))))
        change = nn.functional.dropout(linear(inner, self.output.dense), rate, self.training)
        return clamp(layer_norm(clamp(change + x), self.output.LayerNorm, eps))


class EncoderLayer(TextLayer, GradientCheckpointingLayer):
    """One of the text encoder, which gradient checkpointing may compute again."""


class TextEncoder(Part):
    """BERT (arXiv 1810.04805), without pooler. Attribute: `config`."""

    def __init__(self, source: nn.Module, config: Any) -> None:
        super().__init__(source, config=config)
        self.encoder.layer = nn.ModuleList(
            EncoderLayer(layer, config=config) for layer in source.get_submodule("encoder.layer")
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutput:
        config, embeddings = self.config, self.embeddings
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = nn.functional.embedding(input_ids, embeddings.word_embeddings.weight, config.pad_token_id)
        x = x + nn.functional.embedding(token_type_ids, embeddings.token_type_embeddings.weight)
        x = x + embeddings.position_embeddings.weight[: x.shape[1]]
        x = layer_norm(x, embeddings.LayerNorm, config.layer_norm_eps)
        x = nn.functional.dropout(x, config.hidden_dropout_prob, self.training)
        for layer in self.encoder.layer:
            x = layer(x, attention_mask)
        return BaseModelOutput(last_hidden_state=x)


# -- tower -----------------------------------------------------------------------------------------


class Fusion(Part):
    """Deep fusion (arXiv 2112.03857, section 3.2) as it stands. Attribute: `config`."""

    def forward(
        self, vision: Tensor, text: Tensor, text_mask: Tensor, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            vision: [N, A, D]; text: [N, T, E]; text_mask: [N, T] bool, True at real tokens.

        Returns:
            the new vision and text; on request both attention matrices, [N, H, A, T] and [N, H, T, A].
        """
        config, clamp = self.config, self.config.clamp_value
        vision, text = layer_norm(vision, self.norm_vision), layer_norm(text, self.norm_text)

        def split(x: Tensor) -> Tensor:
            """[N, tokens, inner width] to [N, H, tokens, width of a head]."""
            return x.unflatten(-1, (config.fusion_heads, -1)).transpose(1, 2)

        def attend(weights: Tensor, value: Tensor) -> Tensor:
            weights = nn.functional.dropout(weights, config.fusion_dropout, self.training)
            return (weights @ value).transpose(1, 2).flatten(2)

        query = split(linear(vision, self.query_vision))
        query = query * query.shape[-1] ** -0.5
        key = split(linear(text, self.key_text))
        value_vision, value_text = split(linear(vision, self.value_vision)), split(linear(text, self.value_text))

        precision = torch.promote_types(vision.dtype, torch.float32)
        scores = (query @ key.transpose(2, 3)).clamp(-clamp, clamp)  # [N, H, A, T]
        of_text = scores.transpose(2, 3)
        of_text = (of_text - of_text.amax(-1, keepdim=True)).clamp(-clamp, clamp)
        of_text = of_text.softmax(-1, dtype=precision).to(vision.dtype)
        of_image = scores.masked_fill(~text_mask[:, None, None], torch.finfo(scores.dtype).min)
        of_image = of_image.softmax(-1, dtype=precision).to(vision.dtype)
        return (
            vision + self.gamma_vision * linear(attend(of_image, value_text), self.out_vision),
            text + self.gamma_text * linear(attend(of_text, value_vision), self.out_text),
            of_image if output_attentions else None,
            of_text if output_attentions else None,
        )


def deform_conv2d(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Modulated deformable 3x3 convolution: every sampling point by `grid_sample`, then one matrix product.

    Args:
        features: [N, C, H, W].
        offset: [N, 18, ...] of any size whose memory holds 18 * h * w values per image, and is read as if it were
            [N, 18, h, w] (dy, dx of each sampling point): the size of another level makes no difference to GLIP.
        mask: [N, 9, ...], likewise.
        weight: [D, C, 3, 3]; bias: [D]; stride: 1 or 2.

    Returns:
        [N, D, h, w].
    """
    batch, channels, height, width = features.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    cells = out_height * out_width
    precision = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        offset = offset.reshape(batch, -1)[:, : 2 * KERNEL_POINTS * cells].to(precision)
        offset = offset.reshape(batch, KERNEL_POINTS, 2, out_height, out_width)
        modulation = mask.reshape(batch, -1)[:, : KERNEL_POINTS * cells].to(precision)
        modulation = modulation.reshape(batch, 1, KERNEL_POINTS * out_height, out_width)
        step = torch.arange(-1, 2, device=features.device, dtype=precision)
        rows = torch.arange(out_height, device=features.device, dtype=precision)[:, None] * stride
        columns = torch.arange(out_width, device=features.device, dtype=precision) * stride
        y = offset[:, :, 0] + rows + step.repeat_interleave(3)[:, None, None]
        x = offset[:, :, 1] + columns + step.repeat(3)[:, None, None]
        # Without aligned corners -1 is the left edge of cell 0, so the centre of cell x lies at (2x + 1) / W - 1.
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        sampled = nn.functional.grid_sample(
            features.to(precision),
            grid.reshape(batch, KERNEL_POINTS * out_height, out_width, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        sampled = (sampled * modulation).reshape(batch, channels * KERNEL_POINTS, cells)
        out = weight.to(precision).flatten(1) @ sampled + bias.to(precision)[:, None]
    return out.reshape(batch, -1, out_height, out_width).to(features.dtype)


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


class DyConv(Part):
    """Dynamic Head (arXiv 2106.08322) as it stands. Attribute: `config`."""

    def _convolve(self, branch: nn.Module, x: Tensor, offset: Tensor, mask: Tensor, stride: int = 1) -> Tensor:
        config, norm = self.config, branch.norm
        x = deform_conv2d(x, offset, mask, branch.conv.weight, branch.conv.bias, stride)
        return nn.functional.group_norm(x, config.group_norm_groups, norm.weight, norm.bias, config.group_norm_eps)

    def _scale(self, x: Tensor) -> Tensor:
        """Scale attention."""
        return x * hard_sigmoid(conv2d(x.mean((2, 3), keepdim=True), self.scale_attention).relu())

    def _dynamic_relu(self, x: Tensor) -> Tensor:
        """Dynamic ReLU (arXiv 2003.10027): the maximum of two linear functions."""
        relu = self.dynamic_relu
        theta = hard_sigmoid(linear(linear(x.mean((2, 3)), relu.fc1).relu(), relu.fc2))
        slope1, offset1, slope2, offset2 = theta[..., None, None].chunk(4, dim=1)
        first = x * ((slope1 - 0.5) * 2 + 1) + (offset1 - 0.5)
        second = x * ((slope2 - 0.5) * 2) + (offset2 - 0.5)
        return torch.maximum(first, second)

    def forward(self, tokens: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """[N, A, D] to the same; `shapes` are the height and width of each level."""
        pyramid, outputs = to_pyramid(tokens, shapes), []
        for i, level in enumerate(pyramid):
            predicted = conv2d(level, self.offset_conv, padding=1)
            offset, mask = predicted[:, : 2 * KERNEL_POINTS], predicted[:, 2 * KERNEL_POINTS :].sigmoid()
            candidates = [self._convolve(self.conv_mid, level, offset, mask)]
            if i > 0:
                candidates.append(self._convolve(self.conv_low, pyramid[i - 1], offset, mask, stride=2))
            if i < len(pyramid) - 1:
                high = self._convolve(self.conv_high, pyramid[i + 1], offset, mask)
                size = level.shape[-2:]
                candidates.append(nn.functional.interpolate(high, size=size, mode="bilinear", align_corners=True))
            outputs.append(self._dynamic_relu(torch.stack([self._scale(x) for x in candidates]).mean(0)))
        return to_tokens(outputs)


class Block(Part, GradientCheckpointingLayer):
    """Fusion, text layer, DyConv; without fusion the text passes through unchanged."""

    def __init__(self, source: nn.Module, config: GlipConfig) -> None:
        super().__init__(source)
        self.fusion = self.text_layer = None
        if config.use_fusion:
            self.fusion = Fusion(source.fusion, config=config)
            self.text_layer = TextLayer(source.text_layer, config=config.text_config, clamp=config.clamp_value)
        self.dyconv = DyConv(source.dyconv, config=config)

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        shapes: list[tuple[int, int]],
        text_mask: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        attention = text_attention = None
        if self.fusion is not None:
            vision, text, attention, text_attention = self.fusion(vision, text, text_mask, output_attentions)
            text = self.text_layer(text, text_mask)
        return self.dyconv(vision, shapes), text, attention, text_attention


class Head(Part):
    """Token logits [N, A, T], box regression [N, A, 4] and centerness [N, A]. Attribute: `config`."""

    def forward(self, vision: Tensor, text: Tensor, shapes: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        embedding = nn.functional.normalize(text, dim=-1)
        tokens = linear(embedding / 2, self.text_projection)
        token_bias = embedding @ self.bias_lang.to(embedding.dtype) + self.bias0
        logits = vision @ tokens.transpose(1, 2) / self.log_scale.exp() + token_bias[:, None]
        scales = [
            scale.expand(height * width) for scale, (height, width) in zip(self.level_scales.parameters(), shapes)
        ]
        regression, centerness = (
            nn.functional.linear(vision, part.weight.flatten(1), part.bias)
            for part in (self.bbox_pred, self.centerness)
        )
        clamp = self.config.clamp_value
        return logits.clamp(-clamp, clamp), regression * torch.cat(scales)[:, None], centerness.squeeze(-1)


# -- whole models ----------------------------------------------------------------------------------


def match(num_images: int, num_captions: int, image_indices: Tensor | None) -> list[tuple[int, int]]:
    """Image and caption of each pair.

    Raises:
        ValueError: where it is not clear which goes with which.
    """
    if image_indices is not None:
        return list(zip(image_indices.tolist(), range(num_captions), strict=True))
    if num_images == num_captions:
        return [(n, n) for n in range(num_images)]
    if 1 in (num_images, num_captions):
        return list(itertools.product(range(num_images), range(num_captions)))
    raise ValueError(f"{num_captions} captions for {num_images} images: pass image_indices with the image of each.")


def pad_tokens(tokens: dict[str, Tensor | None], config: GlipConfig) -> dict[str, Tensor | None]:
    """`input_ids`, `attention_mask` (all ones if None) and `token_type_ids` [N, T] to [N, `max_text_length`].

    Raises:
        ValueError: for longer captions.
    """
    ids, length = tokens["input_ids"], config.max_text_length
    if ids.shape[1] > length:
        raise ValueError(f"captions of {ids.shape[1]} tokens exceed max_text_length={length}: use shorter ones.")
    if tokens["attention_mask"] is None:
        tokens = {**tokens, "attention_mask": torch.ones_like(ids)}
    fill = {"input_ids": config.text_config.pad_token_id or 0}
    return {
        name: None if x is None else nn.functional.pad(x, (0, length - x.shape[1]), value=fill.get(name, 0))
        for name, x in tokens.items()
    }


def resize_text(features: GlipTextFeatures, length: int) -> GlipTextFeatures:
    """Text features at `length` tokens: trimmed, or zero and masked beyond their own."""
    more, ids = length - features.last_hidden_state.shape[1], features.input_ids
    return GlipTextFeatures(
        last_hidden_state=nn.functional.pad(features.last_hidden_state, (0, 0, 0, more)),
        attention_mask=nn.functional.pad(features.attention_mask, (0, more)),
        input_ids=None if ids is None else nn.functional.pad(ids, (0, more)),
    )


def kept_states(states: list[Tensor], requested: bool | int | list[int]) -> tuple[Tensor | None, ...]:
    """The states that `output_hidden_states` asks for: all, or those of some indices with None elsewhere."""
    indices = range(len(states)) if requested is True else [requested] if isinstance(requested, int) else requested
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if index in kept else None for index, state in enumerate(states))


class TextbookModel(GlipModel):
    """A view of a `GlipModel`; see `textbook_view`."""

    def _encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> GlipImageFeatures:
        """One image."""
        pyramid = self.neck(self.backbone(pixel_values).feature_maps)
        size = list(pixel_values.shape[-2:])
        if pixel_mask is not None:
            size = [int(pixel_mask.bool().any(dim).sum()) for dim in (2, 1)]
        return GlipImageFeatures(
            last_hidden_state=to_tokens(pyramid),
            feature_maps=tuple(pyramid),
            image_sizes=torch.tensor([size], device=pixel_values.device),
        )

    def _encode_text(self, tokens: dict[str, Tensor | None]) -> GlipTextFeatures:
        """One caption, of full length."""
        return GlipTextFeatures(
            last_hidden_state=self.text_model(**tokens).last_hidden_state,
            attention_mask=tokens["attention_mask"],
            input_ids=tokens["input_ids"],
        )

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> GlipImageFeatures:
        """See `GlipModel.get_image_features`; one image at a time."""
        pixels = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        return join([self._encode_image(**row(pixels, n)) for n in range(len(pixel_values))])

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> GlipTextFeatures:
        """See `GlipModel.get_text_features`; one caption at a time, padded, and trimmed again."""
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        tokens = pad_tokens(tokens, self.config)
        encoded = join([self._encode_text(row(tokens, n)) for n in range(len(input_ids))])
        return resize_text(encoded, input_ids.shape[1])

    def each_pair(
        self, images: dict[str, Tensor | None], captions: dict[str, Tensor | None], pairs: list[tuple[int, int]]
    ) -> Iterator[tuple[GlipImageFeatures, GlipTextFeatures]]:
        """Features of one image and one caption of full length, pair after pair: encoded again for each, where they
        are not given as features."""
        given_images, given_texts = (isinstance(x, (GlipImageFeatures, GlipTextFeatures)) for x in (images, captions))
        if not given_texts:
            captions = pad_tokens(captions, self.config)
        for n, m in pairs:
            image, text = row(images, n), row(captions, m)
            yield (
                image if given_images else self._encode_image(**image),
                resize_text(text, self.config.max_text_length) if given_texts else self._encode_text(text),
            )

    def fuse(
        self,
        image: GlipImageFeatures,
        text: GlipTextFeatures,
        length: int,
        output_attentions: bool | None,
        output_hidden_states: bool | int | list[int] | None,
    ) -> tuple[GlipModelOutput, Tensor]:
        """The tower on one pair: its output, trimmed to `length` tokens, and the text states at full length.

        Raises:
            ValueError: for a caption that the prompt table does not cover.
        """
        config, mask = self.config, text.attention_mask.bool()
        vision, text_states = image.last_hidden_state, text.last_hidden_state
        if not config.use_fusion:
            text_states = text_states * mask[..., None]
        table = self._parameters.get("prompt_table")
        if table is not None:
            if length > len(table):
                raise ValueError(f"a caption of {length} tokens exceeds prompt_table_length={len(table)}: shorten it.")
            text_states = text_states + nn.functional.pad(table, (0, 0, 0, text_states.shape[1] - len(table)))
        shapes = [tuple(feature_map.shape[-2:]) for feature_map in image.feature_maps]
        states, attentions, text_attentions = [vision], [], []
        with_attentions = config.use_fusion and (
            config.output_attentions if output_attentions is None else output_attentions
        )
        for block in self.tower["blocks"]:
            vision, text_states, attention, text_attention = block(vision, text_states, shapes, mask, with_attentions)
            states.append(vision)
            attentions.append(attention)
            text_attentions.append(text_attention)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        keeps = output_hidden_states is not None and output_hidden_states is not False
        outputs = GlipModelOutput(
            last_hidden_state=vision,
            text_last_hidden_state=text_states[:, :length],
            spatial_shapes=torch.tensor([shapes], device=vision.device),
            image_sizes=image.image_sizes,
            attention_mask=text.attention_mask[:, :length],
            input_ids=None if text.input_ids is None else text.input_ids[:, :length],
            hidden_states=kept_states(states, output_hidden_states) if keeps else None,
            attentions=tuple(x[..., :length] for x in attentions) if with_attentions else None,
            text_attentions=tuple(x[:, :, :length] for x in text_attentions) if with_attentions else None,
        )
        return outputs, text_states

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_indices: Tensor | None = None,
        image_features: GlipImageFeatures | None = None,
        text_features: GlipTextFeatures | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
    ) -> GlipModelOutput:
        """See `GlipModel.forward`; pair by pair."""
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        images = image_features or {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        captions = text_features or tokens
        num_captions, length = first(captions).shape[:2]
        pairs = match(len(first(images)), num_captions, image_indices)
        options = (output_attentions, output_hidden_states)
        return join([self.fuse(*pair, length, *options)[0] for pair in self.each_pair(images, captions, pairs)])


class TextbookForGrounding(GlipForGrounding):
    """A view of a `GlipForGrounding`; see `textbook_view`."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        positive_map: Tensor | None = None,
        label_ids: Tensor | None = None,
        image_indices: Tensor | None = None,
        image_features: GlipImageFeatures | None = None,
        text_features: GlipTextFeatures | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
    ) -> GlipGroundingOutput:
        """See `GlipForGrounding.forward`; pair by pair."""
        config, mlm_labels = self.config, None
        if self.auxiliary is not None and self.training and labels is not None and text_features is None:
            input_ids, mlm_labels = self.auxiliary.hide_words(input_ids, attention_mask, labels)
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        images = image_features or {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        captions = text_features or tokens
        num_images, (num_captions, length) = len(first(images)), first(captions).shape[:2]
        pairs = match(num_images, num_captions, image_indices)
        groups = []
        for image, text in self.model.each_pair(images, captions, pairs):
            outputs, text_states = self.model.fuse(image, text, length, output_attentions, output_hidden_states)
            shapes = [tuple(feature_map.shape[-2:]) for feature_map in image.feature_maps]
            logits, regression, centerness = self.head(outputs.last_hidden_state, text_states, shapes)
            anchors = make_anchors(shapes, PYRAMID_STRIDES, config.anchor_scale, logits.device)
            height, width = outputs.image_sizes[0].tolist()
            predictions = {
                "logits": logits[..., :length],
                "bbox_regression": regression,
                "centerness_logits": centerness,
                "pred_boxes": decode_boxes(regression.float(), anchors)
                / torch.tensor([width, height, width, height], device=regression.device),
            }
            groups.append((outputs, predictions))
        outputs, predictions = (join(list(group)) for group in zip(*groups, strict=True))

        if positive_map is None:  # all tokens between [CLS] and [SEP]
            position = outputs.attention_mask.cumsum(1)
            inner = (position > 1) & (position < position[:, -1:]) & outputs.attention_mask.bool()
            positive_map = inner[:, None]
        if label_ids is None:
            label_ids = torch.arange(positive_map.shape[1], device=positive_map.device)[None]
        positive_map, label_ids = (
            x.repeat(len(pairs), 1, *[1] * (x.dim() - 2)) if len(x) == 1 else x for x in (positive_map, label_ids)
        )
        indices = torch.tensor([image for image, _ in pairs], device=predictions["logits"].device)
        if original_sizes is not None:
            original_sizes = original_sizes[indices.to(original_sizes.device)]
        loss = loss_dict = None
        if labels is not None:
            level_sizes = [height * width for height, width in shapes]
            loss, loss_dict = self.loss_function(
                predictions["logits"],
                predictions["bbox_regression"],
                predictions["centerness_logits"],
                anchors,
                level_sizes,
                outputs.attention_mask,
                labels,
                config,
            )
            if self.auxiliary is not None:
                states = outputs.last_hidden_state, outputs.text_last_hidden_state, outputs.attention_mask
                extra = self.auxiliary(*states, labels, anchors, level_sizes, mlm_labels)
                loss, loss_dict = loss + sum(extra.values()), loss_dict | extra
        return GlipGroundingOutput(
            loss=loss,
            loss_dict=loss_dict,
            **predictions,
            spatial_shapes=outputs.spatial_shapes,
            image_sizes=outputs.image_sizes,
            original_sizes=original_sizes,
            input_ids=outputs.input_ids,
            attention_mask=outputs.attention_mask,
            positive_map=(positive_map != 0).long(),
            label_ids=label_ids,
            image_indices=indices if image_indices is not None or num_images == 1 < num_captions else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_attentions=outputs.text_attentions,
        )


def second_view(module: nn.Module) -> nn.Module:
    """A module that has no textbook form, with a mode (training, evaluation) of its own."""
    view = copy.copy(module)
    view._modules = {name: None if part is None else second_view(part) for name, part in module._modules.items()}
    return view


def textbook_view(model: GlipModel | GlipForGrounding) -> "TextbookModel | TextbookForGrounding":
    """A second view of a model, in the textbook formulation: see the top of this file.

    It shares parameters and configuration. `train`, `eval`, gradient checkpointing and hooks act on one of the two, and
    it begins in the mode that `model` is in. Encoders return no states or attentions; backbones other than Swin run as
    they are.
    """
    view = copy.copy(model)
    if isinstance(model, GlipForGrounding):
        view.__class__ = TextbookForGrounding
        parts = {"model": textbook_view(model.model), "head": Head(model.head, config=model.config)}
        if model.auxiliary is not None:
            parts["auxiliary"] = second_view(model.auxiliary)
    else:
        view.__class__, config = TextbookModel, model.config
        is_swin = config.backbone_config.model_type == "swin"
        parts = {
            "backbone": Backbone(model.backbone, config.backbone_config) if is_swin else second_view(model.backbone),
            "neck": Neck(model.neck, config=config),
            "text_model": TextEncoder(model.text_model, config.text_config),
            "tower": nn.ModuleDict(
                {"blocks": nn.ModuleList(Block(block, config) for block in model.get_submodule("tower.blocks"))}
            ),
        }
    view._modules = parts
    return view


__all__ = ["DyConv", "Fusion", "Part", "deform_conv2d", "textbook_view"]
