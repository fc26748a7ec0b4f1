# Copyright 2026 The glip_hf authors. MIT licence.
"""The parts that GLIP's models are put together from: pyramid, block of the tower, heads.

Letters: N (picture, caption) pairs, T text tokens, A locations of all levels (p3 to p7, row-major), D channels of the
head, E width of the text encoder, H_i x W_i cells of level i.
"""

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput

from .configuration_glip import PYRAMID_STRIDES, GlipConfig
from .dyhead_glip import GlipDyConv
from .fast_path_glip import may_overwrite
from .fusion_glip import GlipFusionLayer
from .products_glip import GlipLinear, speed_up_linears


def drop_block(x: Tensor, drop_prob: float, size: int) -> Tensor:
    """DropBlock (arXiv 1810.12890) on [B, C, H, W]: squares of `size` cells vanish from all channels of a picture.

    A cell seeds a square with probability drop_prob / size^2; what is kept is scaled by cells / kept cells of the
    whole batch.
    """
    seeds = torch.rand(x.shape[0], 1, *x.shape[2:], device=x.device) < drop_prob / size**2
    dropped = nn.functional.max_pool2d(seeds.float(), size, stride=1, padding=size // 2)
    keep = 1 - dropped
    return x * (keep * (keep.numel() / keep.sum().clamp(min=1))).to(x.dtype)


class GlipFeaturePyramid(nn.Module):
    """FPN (arXiv 1612.03144) with two more levels: P6 from the pyramid's P5, P7 from ReLU(P6)."""

    def __init__(self, config: GlipConfig, in_channels: list[int]) -> None:
        super().__init__()
        width = config.d_model
        self.lateral_convs = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.output_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in in_channels)
        self.p6_conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.p7_conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.drop_prob, self.drop_size = config.dropblock_prob, config.dropblock_size

    def forward(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps at strides 8, 16, 32 to P3..P7, [B, D, H_i, W_i] each."""
        merged, levels = None, []
        for x, lateral, output in list(zip(feature_maps, self.lateral_convs, self.output_convs))[::-1]:
            above, merged = merged, lateral(x)
            if above is None:
                levels.append(output(merged))
                continue
            above = nn.functional.interpolate(above, size=merged.shape[-2:], mode="nearest")
            merged = merged.add_(above) if may_overwrite(lateral) else merged + above
            above = None  # not needed during the convolution
            dropped = merged
            if self.training and self.drop_prob > 0:
                # Not on the top-down path, and not on P5.
                dropped = drop_block(merged, self.drop_prob, self.drop_size)
            levels.append(output(dropped))
        p5, p4, p3 = levels
        p6 = self.p6_conv(p5)
        return [p3, p4, p5, p6, self.p7_conv(p6.relu())]


class GlipTextLayer(nn.Module):
    """One BERT layer with its activations clamped, for half precision.

    The original also clamps the attention scores; here they go through Transformers' attention interface, whose
    kernels hold them in float32.
    """

    def __init__(self, config: BertConfig, clamp_value: float) -> None:
        super().__init__()
        self.clamp_value = clamp_value
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)
        speed_up_linears(self)

    def _clamp(self, x: Tensor) -> Tensor:
        return x.clamp(-self.clamp_value, self.clamp_value)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        attended, _ = self.attention(hidden_states, attention_mask)
        inner = self._clamp(self.intermediate.dense(attended))
        inner = self._clamp(self.intermediate.intermediate_act_fn(inner))
        out = self.output.dropout(self.output.dense(inner))
        return self._clamp(self.output.LayerNorm(self._clamp(out + attended)))


class GlipBlock(GradientCheckpointingLayer):
    """Fusion, text layer, DyConv; without fusion the text passes untouched."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.fusion = GlipFusionLayer(config) if config.use_fusion else None
        self.text_layer = GlipTextLayer(config.text_config, config.clamp_value) if config.use_fusion else None
        self.dyconv = GlipDyConv(config)

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        spatial_shapes: list[tuple[int, int]],
        text_mask: Tensor,
        text_attention_mask: Tensor | None,
        output_attentions: bool = False,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            vision: [N, A, D]; text: [N, T, E].
            spatial_shapes: height and width of each level.
            text_mask: [N, T] bool; text_attention_mask: the same in the form the text layer's attention takes.
            overwrite: what is computed may take the place of `vision` (not with gradients).
        """
        attention = text_attention = None
        if self.fusion is not None:
            vision, text, attention, text_attention = self.fusion(vision, text, text_mask, output_attentions, overwrite)
            text = self.text_layer(text, text_attention_mask)
            overwrite = may_overwrite(self)  # the fusion's result is this block's own
        return self.dyconv(vision, spatial_shapes, overwrite), text, attention, text_attention


class GlipTokenConv(nn.Conv2d):
    """A 1x1 convolution on tokens [N, A, C] in place of a map."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(tokens, self.weight.flatten(1), self.bias)


class GlipLevelScales(nn.Module):
    """One learned factor a level; named as in an `nn.ParameterList`, which cannot be called."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        for level in range(num_levels):
            self.register_parameter(str(level), nn.Parameter(torch.empty(1)))

    def forward(self, spatial_shapes: list[tuple[int, int]]) -> Tensor:
        """The factor of every location, [A]."""
        sizes = [height * width for height, width in spatial_shapes]
        return torch.cat([scale.expand(size) for scale, size in zip(self.parameters(), sizes)])


class GlipGroundingHead(nn.Module):
    """Token logits, boxes and centerness at every location."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        text_size = config.text_config.hidden_size
        self.clamp_value = config.clamp_value
        self.bbox_pred = GlipTokenConv(config.d_model, 4, 1)
        self.centerness = GlipTokenConv(config.d_model, 1, 1)
        self.level_scales = GlipLevelScales(len(PYRAMID_STRIDES))
        self.text_projection = GlipLinear(text_size, config.d_model)
        self.log_scale = nn.Parameter(torch.empty(1))
        self.bias_lang = nn.Parameter(torch.empty(text_size))
        self.bias0 = nn.Parameter(torch.empty(1))
        self.class_logits = None
        if config.num_class_channels:
            # Part of every original checkpoint, never of a result.
            self.class_logits = nn.Conv2d(config.d_model, config.num_class_channels, 1).requires_grad_(False)

    def forward(
        self, vision: Tensor, text: Tensor, spatial_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, A, D] and [N, T, E] to logits [N, A, T], box regression [N, A, 4], centerness [N, A]."""
        embedding = nn.functional.normalize(text, dim=-1)
        tokens = self.text_projection(embedding / 2)
        token_bias = embedding @ self.bias_lang.to(embedding.dtype) + self.bias0
        # Scale and bias within the product: logits are the widest tensor here, and every pass over them counts.
        tokens = (tokens / self.log_scale.exp()).transpose(1, 2)
        if torch.is_autocast_enabled(vision.device.type):
            logits = vision @ tokens + token_bias[:, None]  # summed in float32
        else:
            logits = torch.baddbmm(token_bias[:, None], vision, tokens)
        clamp = torch.clamp if torch.is_grad_enabled() else torch.clamp_

        regression = self.bbox_pred(vision) * self.level_scales(spatial_shapes)[:, None]
        return (
            clamp(logits, -self.clamp_value, self.clamp_value),
            regression,
            self.centerness(vision).squeeze(-1),
        )


__all__ = ["GlipBlock", "GlipFeaturePyramid", "GlipGroundingHead", "GlipTextLayer", "drop_block"]
