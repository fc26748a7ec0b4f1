# Copyright 2026 The glip_hf authors. MIT licence.
"""Swin Transformer as GLIP uses it (arXiv 2103.14030): Transformers' Swin by subclass, with its parameter names.

It differs in what a detector that trains from scratch needs: stochastic depth acts on both branches of a layer (there,
on attention only), weights start from a truncated normal, window and shift are constants of the module, so no forward
can depend on the sizes seen before, and there is no unused final norm, which would stop distributed training.

Letters: B images, H x W cells of a stage, M window side, C channels. Feature maps stay [B, H, W, C], and sizes are
built up from counts of windows, never divided back: that keeps a `torch.export` with dynamic sizes tractable.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SwinConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinLayer,
    SwinPatchMerging,
    SwinPreTrainedModel,
    SwinRelativePositionBias,
)
from transformers.utils import can_return_tuple

from .ops_glip import operation, shape_constants

REGION_PENALTY = -100.0  # added to the scores of cells that the cyclic shift made neighbours


@shape_constants(maxsize=8)
def shift_patterns(window: int, shift: int, device: torch.device | None) -> Tensor:
    """The masks that a shifted window may have, [4, M*M, M*M] float32: of inner windows (none), of those of the last
    column, of the last row, and of the corner. 0 within a region that was one before, `REGION_PENALTY` across.
    """
    beyond = (torch.arange(window, device=device) >= window - shift).long()
    down, across = beyond.repeat_interleave(window), beyond.repeat(window)
    regions = torch.stack([0 * down, across, 2 * down, 2 * down + across])
    return (regions[:, None] != regions[:, :, None]).float() * REGION_PENALTY


def pattern_of_window(rows: int, columns: int, device: torch.device | None) -> Tensor:
    """Which of `shift_patterns` each of rows x columns windows has, [rows * columns] int64."""
    last_row = torch.arange(rows, device=device) == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (2 * last_row.long()[:, None] + last_column.long()).flatten()


def shift_mask(rows: int, columns: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """The mask of every window, [rows * columns, M*M, M*M] float32.

    rows, columns: windows along the two sides of the padded feature map.
    """
    return shift_patterns(window, shift, device)[pattern_of_window(rows, columns, device)]


class GlipSwinLayer(SwinLayer):
    """Windowed (and, in every second layer, shifted) attention and a feed-forward branch, pre-norm."""

    @operation("swin_layer")
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, H, W, C] to the same, and attention weights [B * windows, heads, M*M, M*M] (eager attention only)."""
        size = hidden_states.shape[1:3]
        attended, weights = self.attend(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        update = self.mlp(self.layernorm_after(hidden_states).flatten(1, 2)).unflatten(1, size)
        return hidden_states + self.drop_path(self.dropout(update)), weights

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attention within windows, [B, H, W, C] to the same; zeros pad the map to whole windows and take part."""
        batch, height, width, channels = x.shape
        window, shift = self.window_size, self.shift_size
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        x = nn.functional.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        mask = None
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
            mask = shift_mask(rows, columns, window, shift, x.device).to(x.dtype)
        windows = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        windows, weights = self.attention(windows.reshape(-1, window * window, channels), mask)
        # Split as last dimension: beside others, an export confuses a symbolic single window with a factor of theirs.
        x = windows.permute(1, 2, 0).unflatten(2, (batch, rows, columns)).unflatten(0, (window, window))
        x = x.permute(3, 4, 0, 5, 1, 2).reshape(batch, rows * window, columns * window, channels)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width], weights


class GlipSwinPatchMerging(SwinPatchMerging):
    """Four neighbouring cells become one of twice the channels; an odd side is padded with zeros."""

    @operation("linear")
    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 * C]."""
        x = self.maybe_pad(x, x.shape[1], x.shape[2])
        batch, height, width, channels = x.shape
        # Order of the four: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1)
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels).flatten(1, 2)
        return self.reduction(self.norm(x)).unflatten(1, (height // 2, width // 2))


class GlipSwinStage(nn.Module):
    """Layers of one resolution, and the merging that halves it for the next stage."""

    def __init__(self, config: SwinConfig, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        dim, shift = config.embed_dim * 2**stage, config.window_size // 2
        self.blocks = nn.ModuleList(
            GlipSwinLayer(config, dim, None, config.num_heads[stage], drop_path_rate=rate, shift_size=shift * (i % 2))
            for i, rate in enumerate(drop_path_rates)
        )
        self.downsample = GlipSwinPatchMerging(dim) if stage < len(config.depths) - 1 else None


class GlipSwinBackbone(BackboneMixin, SwinPreTrainedModel):
    """Feature maps of the stages named in `config.out_features`, each layer-normed, [B, C, H, W] at strides 4, 8, 16
    and 32.

    State-dict names are those of `transformers.SwinBackbone`.
    """

    _no_split_modules = ["GlipSwinLayer"]
    _can_record_outputs: dict[str, Any] = {}

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        depths = config.depths
        self.num_features = [config.embed_dim] + [config.embed_dim * 2**stage for stage in range(len(depths))]
        rates = [config.drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        starts = [sum(depths[:stage]) for stage in range(len(depths))]
        stages = [GlipSwinStage(config, i, rates[start:][: depths[i]]) for i, start in enumerate(starts)]
        encoder = nn.ModuleDict({"layers": nn.ModuleList(stages)})
        self.swin = nn.ModuleDict({"embeddings": SwinEmbeddings(config), "encoder": encoder})
        norms = [nn.LayerNorm(channels, eps=config.layer_norm_eps) for channels in self.channels]
        self.hidden_states_norms = nn.ModuleDict(dict(zip(self.out_features, norms)))
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

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: [B, 3, H, W], normalised.
            output_hidden_states: also return the patch embedding and each stage's output, [B, C, H, W].
            output_attentions: also return the weights of each stage's last layer (eager attention only).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x, size = self.swin["embeddings"](pixel_values)
        x = x.unflatten(1, size)
        feature_maps, attentions, hidden_states = [], [], [x.permute(0, 3, 1, 2)] if output_hidden_states else []
        for name, stage in zip(self.stage_names[1:], self.swin["encoder"]["layers"]):
            for block in stage.blocks:
                x, weights = block(x)
            if output_hidden_states:
                hidden_states.append(x.permute(0, 3, 1, 2))
            attentions.append(weights)
            if name in self.hidden_states_norms:
                feature_maps.append(self.hidden_states_norms[name](x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


__all__ = ["GlipSwinBackbone"]
