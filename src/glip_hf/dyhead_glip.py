# Copyright 2026 The glip_hf authors. MIT licence.
"""One dynamic-head block over the pyramid (Dynamic Head, arXiv 2106.08322): deformable convolutions across neighbouring
levels, scale attention, Dynamic ReLU (arXiv 2003.10027). All weights are shared by all levels.

Letters: B pairs, A cells of all levels (finest first, row-major), D channels, L levels, H_i x W_i cells of level i.
"""

import torch
from torch import Tensor, nn

from .configuration_glip import GlipConfig
from .deformable_glip import TAPS, deform_conv2d, view_offsets_as
from .fast_path_glip import may_fuse
from .fused_dyconv_glip import fits, fused_dyconv, hard_sigmoid, to_pyramid, to_tokens


class GlipDynamicReLU(nn.Module):
    """Maximum of two linear pieces whose slopes and offsets come from the map's own average."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, 4 * channels)

    def pieces(self, mean: Tensor) -> Tensor:
        """Slope, offset, slope and offset of the two pieces, [..., 4, D], from a map's average [..., D]."""
        theta = hard_sigmoid(self.fc2(self.fc1(mean).relu())) - 0.5
        slope1, offset1, slope2, offset2 = theta.chunk(4, dim=-1)
        return torch.stack([2 * slope1 + 1, offset1, 2 * slope2, offset2], dim=-2)

    def forward(self, x: Tensor) -> Tensor:
        slope1, offset1, slope2, offset2 = self.pieces(x.mean((2, 3)))[..., None, None].unbind(1)
        return torch.maximum(x * slope1 + offset1, x * slope2 + offset2)


class GlipDeformableKernel(nn.Conv2d):
    """A 3x3 convolution whose taps move: the parameters of `nn.Conv2d`, applied by `deform_conv2d`."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, mask, self.weight, self.bias, self.stride[0])


class GlipDeformableConv(nn.Module):
    """Modulated deformable 3x3 convolution and GroupNorm."""

    def __init__(self, config: GlipConfig, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = GlipDeformableKernel(config.d_model, config.d_model, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(config.group_norm_groups, config.d_model, eps=config.group_norm_eps)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: [B, D, H, W].
            offset, mask: [B, 18, ...] and [B, 9, ...], of any size: see `view_offsets_as`.
        """
        height, width = ((side - 1) // self.stride + 1 for side in x.shape[-2:])
        offset, mask = view_offsets_as(offset, mask, height, width)
        return self.norm(self.conv(x, offset, mask))


FUSED_PARTS = {
    "offset_conv": nn.Conv2d,
    "scale_attention": nn.Conv2d,
    "dynamic_relu": GlipDynamicReLU,
    **{name: GlipDeformableConv for name in ("conv_high", "conv_mid", "conv_low")},
    **{f"{name}.conv": GlipDeformableKernel for name in ("conv_high", "conv_mid", "conv_low")},
    **{f"{name}.norm": nn.GroupNorm for name in ("conv_high", "conv_mid", "conv_low")},
}


class GlipDyConv(nn.Module):
    """Every level becomes the attended mean of itself and its neighbours, all read at the level's own offsets."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.conv_high = GlipDeformableConv(config)
        self.conv_mid = GlipDeformableConv(config)
        self.conv_low = GlipDeformableConv(config, stride=2)
        self.offset_conv = nn.Conv2d(config.d_model, 3 * TAPS, 3, padding=1)
        self.scale_attention = nn.Conv2d(config.d_model, 1, 1)
        self.dynamic_relu = GlipDynamicReLU(config.d_model, config.dynamic_relu_reduction)

    def forward(self, tokens: Tensor, spatial_shapes: list[tuple[int, int]], overwrite: bool = False) -> Tensor:
        """
        Args:
            tokens: [B, A, D]; spatial_shapes: height and width of each level.
            overwrite: the result may take the place of `tokens` (not with gradients).

        Returns:
            [B, A, D].
        """
        if may_fuse(self, FUSED_PARTS, tokens) and fits(spatial_shapes):
            if torch.is_autocast_enabled("cpu"):
                # As in the released recipe: under autocast deformable convolutions stay in float32.
                with torch.autocast("cpu", enabled=False):
                    return fused_dyconv(self, tokens.float(), spatial_shapes)
            return fused_dyconv(self, tokens, spatial_shapes, overwrite)
        return to_tokens(self._plain(to_pyramid(tokens, spatial_shapes)))

    def _plain(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Level by level and module by module: [B, D, H_i, W_i] of every level to the same shapes."""
        outputs = []
        for i, level in enumerate(pyramid):
            offset, mask = self.offset_conv(level).split([2 * TAPS, TAPS], dim=1)
            mask = mask.sigmoid()
            candidates = [self.conv_mid(level, offset, mask)]
            if i > 0:
                candidates.append(self.conv_low(pyramid[i - 1], offset, mask))
            if i < len(pyramid) - 1:
                high = self.conv_high(pyramid[i + 1], offset, mask)
                candidates.append(
                    nn.functional.interpolate(high, size=level.shape[-2:], mode="bilinear", align_corners=True)
                )
            merged = sum(candidate * self._scale(candidate) for candidate in candidates)
            outputs.append(self.dynamic_relu(merged / len(candidates)))
        return outputs

    def _scale(self, candidate: Tensor) -> Tensor:
        """Weight [B, 1, 1, 1] of a candidate; the ReLU keeps it in 0.5..1."""
        return hard_sigmoid(self.scale_attention(candidate.mean((2, 3), keepdim=True)).relu())


__all__ = ["GlipDyConv", "GlipDynamicReLU"]
