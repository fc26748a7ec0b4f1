# Copyright 2026 The glip_hf authors. MIT licence.
"""One dynamic-head block over the pyramid (Dynamic Head, arXiv 2106.08322): deformable convolutions across neighbouring
levels, scale attention, Dynamic ReLU (arXiv 2003.10027). All weights are shared by all levels.

Letters: B pairs, D channels, L levels, H_i x W_i cells of level i.
"""

import torch
from torch import Tensor, nn

from .configuration_glip import GlipConfig
from .deformable_glip import TAPS, deform_conv2d, view_offsets_as


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6, in 0..1."""
    return nn.functional.relu6(x + 3) / 6


class GlipDynamicReLU(nn.Module):
    """Maximum of two linear pieces whose slopes and offsets come from the map's own average."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        theta = hard_sigmoid(self.fc2(self.fc1(x.mean((2, 3))).relu()))[..., None, None]
        slope1, offset1, slope2, offset2 = theta.chunk(4, dim=1)
        return torch.maximum(x * (2 * (slope1 - 0.5) + 1) + (offset1 - 0.5), x * (2 * (slope2 - 0.5)) + (offset2 - 0.5))


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

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """[B, D, H_i, W_i] of every level, finest first, to the same shapes."""
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
