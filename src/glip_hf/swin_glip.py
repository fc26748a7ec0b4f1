# Copyright 2026 The glip_hf authors. MIT licence.
"""Swin Transformer as GLIP uses it (arXiv 2103.14030): a backbone with the parameter names of Transformers' own.

It differs from `transformers.SwinBackbone` in what a detector that trains from scratch needs: stochastic depth acts on
both branches of a layer (there, on attention only), weights start from a truncated normal, window and shift are
constants of the module, so no forward can depend on the sizes seen before, and there is no unused final norm, which
would stop distributed training.

Letters: B pictures, H x W cells of a stage, M window side, C channels. Maps stay [B, H, W, C], and sizes are built up
from counts of windows, never divided back: that keeps a `torch.export` with dynamic sizes tractable.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SwinConfig
from transformers import initialization as init
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

REGION_PENALTY = -100.0
"""Added to the scores of cells that the cyclic shift made neighbours."""


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, h * M, w * M, C] to [B * h * w, M * M, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


@lru_cache(maxsize=64)
def _shift_mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """[rows * columns, M*M, M*M] float32 on CPU: 0 within a region of the shifted map, `REGION_PENALTY` across them.

    rows, columns: windows down and across the padded map.
    """

    def regions(count: int) -> Tensor:
        index = torch.arange(count * window)
        return (index >= (count - 1) * window).long() + (index >= count * window - shift).long()

    region = regions(rows)[:, None] * 3 + regions(columns)
    cells = to_windows(region[None, :, :, None], window).squeeze(-1)
    return (cells[:, None] != cells[:, :, None]).float() * REGION_PENALTY


def shift_mask(rows: int, columns: int, window: int, shift: int, like: Tensor) -> Tensor:
    """The mask of `_shift_mask` on the device and in the dtype of `like`; not cached while tracing."""
    build = _shift_mask.__wrapped__ if torch.compiler.is_compiling() else _shift_mask
    return build(rows, columns, window, shift).to(like.device, like.dtype)


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

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, H, W, C] to the same; zeros pad the map to whole windows and take part in the attention."""
        batch, height, width, channels = x.shape
        window, shift = self.window, self.shift
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        x = nn.functional.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        mask = None
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
            mask = shift_mask(rows, columns, window, shift, x)
        windows = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        windows, weights = self.attention(windows.reshape(-1, window * window, channels), mask)
        # Split as last dimension: beside others, an export confuses a symbolic single window with a factor of theirs.
        x = windows.permute(1, 2, 0).unflatten(2, (batch, rows, columns)).unflatten(0, (window, window))
        x = x.permute(3, 4, 0, 5, 1, 2).reshape(batch, rows * window, columns * window, channels)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width], weights

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, H, W, C] to the same, and attention weights [B * windows, heads, M*M, M*M] (eager only)."""
        x, weights = self._attend(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + self.drop_path(self.dropout(x))
        x = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(x), weights


class GlipSwinMerging(nn.Module):
    """Four neighbouring cells become one of twice the channels; an odd side is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
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
        return self.reduction(self.norm(x.reshape(batch, rows, columns, 4 * channels)))


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

        x, size = self.swin["embeddings"](pixel_values)
        x = x.unflatten(1, size)
        feature_maps, attentions, hidden_states = [], [], [as_map(x)]
        for name, stage in zip(self.stage_names[1:], self.swin["encoder"]["layers"]):
            for block in stage.blocks:
                x, weights = block(x)
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
