# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP (Grounded Language-Image Pre-training, arXiv 2112.03857), top to bottom as the data flow.

image   -> backbone -> pyramid --.
                                 [fusion -> text layer -> DyConv] x blocks -> boxes, centerness, token logits
caption -> BERT -----------------'

The mathematics in plain PyTorch, once. Operations that have faster forms are marked `@operation`; see `ops_glip`.

Letters: B images, N captions or (image, caption) pairs, T text tokens, L levels, A locations of all levels (P3 to P7,
row-major; one anchor each), D channels of the head, E width of the text encoder, H fusion heads, C classes per caption,
H_i x W_i cells of level i.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, BertConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .auxiliary_losses_glip import GlipAuxiliaryHeads
from .boxes_glip import decode_boxes, make_anchors
from .configuration_glip import PYRAMID_STRIDES, GlipConfig
from .hub_glip import TAGS, GlipModelHubMixin
from .loss_glip import grounding_loss
from .ops_glip import NUM_POINTS, constant, deform_conv2d, operation, to_pyramid, to_tokens, view_offsets_as
from .outputs_glip import (
    GlipGroundingOutput,
    GlipImageFeatures,
    GlipModelOutput,
    GlipTextFeatures,
    bert_attention_mask,
    check_inputs,
    check_shape,
    check_tokens,
    class_maps,
    concatenate,
    keep_states,
    pair_captions,
    select,
    split_pairs,
)
from .prompt_table_glip import GlipPromptTableMixin
from .swin_glip import GlipSwinBackbone

# -- pyramid ---------------------------------------------------------------------------------------


def drop_block(x: Tensor, drop_prob: float, size: int) -> Tensor:
    """DropBlock (arXiv 1810.12890) on [B, C, H, W]: squares of `size` cells are zeroed in all channels of an image.

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
        """Feature maps at strides 8, 16, 32 to P3..P7, [B, D, H_i, W_i] each."""
        merged, levels = None, []
        for x, lateral, output in list(zip(feature_maps, self.lateral_convs, self.output_convs))[::-1]:
            above, merged = merged, lateral(x)
            if above is None:
                levels.append(output(merged))
                continue
            merged = merged + nn.functional.interpolate(above, size=merged.shape[-2:], mode="nearest")
            dropped = merged
            if self.training and self.drop_prob > 0:
                # Not on the top-down path, and not on P5.
                dropped = drop_block(merged, self.drop_prob, self.drop_size)
            levels.append(output(dropped))
        p5, p4, p3 = levels
        p6 = self.p6_conv(p5)
        return [p3, p4, p5, p6, self.p7_conv(p6.relu())]


# -- a block of the head: fusion, text layer, DyConv -----------------------------------------------


def clamped_attention_forward(
    module: "GlipFusionLayer",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, its scores clamped for half precision; by the rules of `ALL_ATTENTION_FUNCTIONS`."""
    clamp = module.config.clamp_value
    scores = (query @ key.transpose(2, 3) * scaling).clamp(-clamp, clamp)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precision).to(value.dtype)
    dropped = nn.functional.dropout(weights, dropout)
    return (dropped @ value).transpose(1, 2), weights


class GlipFusionLayer(nn.Module):
    """Deep fusion: attention between image and caption, both ways (GLIP, section 3.2).

    The residual adds to the *normalised* input, as in the original; both updates see the same inputs.
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        width, text_width, inner = config.d_model, config.text_config.hidden_size, config.fusion_hidden_size
        self.num_heads = config.fusion_heads
        self.head_size = inner // config.fusion_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.norm_vision = nn.LayerNorm(width)
        self.norm_text = nn.LayerNorm(text_width)
        self.query_vision = nn.Linear(width, inner)
        self.key_text = nn.Linear(text_width, inner)
        self.value_vision = nn.Linear(width, inner)
        self.value_text = nn.Linear(text_width, inner)
        self.out_vision = nn.Linear(inner, width)
        self.out_text = nn.Linear(inner, text_width)
        self.gamma_vision = nn.Parameter(torch.empty(width))
        self.gamma_text = nn.Parameter(torch.empty(text_width))

    @operation("fusion")
    def forward(
        self, vision: Tensor, text: Tensor, text_mask: Tensor, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            vision: [N, A, D], tokens of all levels; text: [N, T, E].
            text_mask: [N, T] bool, True at real tokens; it masks the image's attention only, as in the original.
            output_attentions: also return both attention matrices.

        Returns:
            new vision, new text, attention of the image [N, H, A, T] and of the caption [N, H, T, A] or None.
        """
        vision, text = self.norm_vision(vision), self.norm_text(text)
        query, value_vision = self._split_heads(self.query_vision(vision)), self._split_heads(self.value_vision(vision))
        key, value_text = self._split_heads(self.key_text(text)), self._split_heads(self.value_text(text))
        attend = clamped_attention_forward
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attend)
        options = {"scaling": self.scaling, "dropout": self.config.fusion_dropout if self.training else 0.0}
        vision_update, vision_attention = attend(self, query, key, value_text, text_mask[:, None, None], **options)
        text_update, text_attention = attend(self, key, query, value_vision, None, **options)
        return (
            vision + self.gamma_vision * self.out_vision(vision_update.flatten(2)),
            text + self.gamma_text * self.out_text(text_update.flatten(2)),
            vision_attention if output_attentions else None,
            text_attention if output_attentions else None,
        )

    def _split_heads(self, x: Tensor) -> Tensor:
        """[N, tokens, inner width] to [N, H, tokens, width of a head]."""
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)


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

    def _clamp(self, x: Tensor) -> Tensor:
        return x.clamp(-self.clamp_value, self.clamp_value)

    @operation("linear")
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[N, T, E] to the same; `attention_mask` as BERT's attention takes it."""
        attended, _ = self.attention(hidden_states, attention_mask)
        inner = self._clamp(self.intermediate.dense(attended))
        inner = self._clamp(self.intermediate.intermediate_act_fn(inner))
        out = self.output.dropout(self.output.dense(inner))
        return self._clamp(self.output.LayerNorm(self._clamp(out + attended)))


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6, in 0..1."""
    return nn.functional.relu6(x + 3) / 6


class GlipDynamicReLU(nn.Module):
    """Maximum of two linear pieces whose slopes and offsets come from the feature map's own mean (arXiv 2003.10027)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, 4 * channels)

    def pieces(self, mean: Tensor) -> Tensor:
        """Slope, offset, slope and offset of the two pieces, [..., 4, D], from a feature map's mean [..., D]."""
        theta = hard_sigmoid(self.fc2(self.fc1(mean).relu())) - 0.5
        slope1, offset1, slope2, offset2 = theta.chunk(4, dim=-1)
        return torch.stack([2 * slope1 + 1, offset1, 2 * slope2, offset2], dim=-2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H_i, W_i] to the same."""
        slope1, offset1, slope2, offset2 = self.pieces(x.mean((2, 3)))[..., None, None].unbind(1)
        return torch.maximum(x * slope1 + offset1, x * slope2 + offset2)


class GlipConvParameters(nn.Module):
    """Weight [out, in, size, size] and bias of a convolution that is not called as `nn.Conv2d` is."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, size)
        self.weight, self.bias = conv.weight, conv.bias


class GlipDeformableKernel(GlipConvParameters):
    """A modulated deformable 3x3 convolution."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor, stride: int) -> Tensor:
        """See `ops_glip.deform_conv2d`."""
        return deform_conv2d(x, offset, mask, self.weight, self.bias, stride)


class GlipDeformableConv(nn.Module):
    """Modulated deformable 3x3 convolution and GroupNorm."""

    def __init__(self, config: GlipConfig, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = GlipDeformableKernel(config.d_model, config.d_model, 3)
        self.norm = nn.GroupNorm(config.group_norm_groups, config.d_model, eps=config.group_norm_eps)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: [N, D, H_i, W_i].
            offset, mask: [N, 18, ...] and [N, 9, ...], of any size: see `ops_glip.view_offsets_as`.
        """
        height, width = ((side - 1) // self.stride + 1 for side in x.shape[-2:])
        offset, mask = view_offsets_as(offset, mask, height, width)
        return self.norm(self.conv(x, offset, mask, self.stride))


class GlipDyConv(nn.Module):
    """A dynamic-head block over the pyramid (arXiv 2106.08322): every level becomes the attended mean of itself and its
    neighbours, all read at the level's own offsets. All weights are shared by all levels."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.conv_high = GlipDeformableConv(config)
        self.conv_mid = GlipDeformableConv(config)
        self.conv_low = GlipDeformableConv(config, stride=2)
        self.offset_conv = nn.Conv2d(config.d_model, 3 * NUM_POINTS, 3, padding=1)
        self.scale_attention = nn.Conv2d(config.d_model, 1, 1)
        self.dynamic_relu = GlipDynamicReLU(config.d_model, config.dynamic_relu_reduction)

    @operation("dyconv")
    def forward(self, tokens: Tensor, spatial_shapes: list[tuple[int, int]]) -> Tensor:
        """[N, A, D] to the same; `spatial_shapes` are height and width of each level."""
        pyramid, outputs = to_pyramid(tokens, spatial_shapes), []
        for i, level in enumerate(pyramid):
            offset, mask = self.offset_conv(level).split([2 * NUM_POINTS, NUM_POINTS], dim=1)
            mask = mask.sigmoid()
            candidates = [self.conv_mid(level, offset, mask)]
            if i > 0:
                candidates.append(self.conv_low(pyramid[i - 1], offset, mask))
            if i < len(pyramid) - 1:
                high = self.conv_high(pyramid[i + 1], offset, mask)
                size = level.shape[-2:]
                candidates.append(nn.functional.interpolate(high, size=size, mode="bilinear", align_corners=True))
            merged = sum(candidate * self._scale(candidate) for candidate in candidates)
            outputs.append(self.dynamic_relu(merged / len(candidates)))
        return to_tokens(outputs)

    def _scale(self, candidate: Tensor) -> Tensor:
        """Scale attention: the weight [N, 1, 1, 1] of a candidate; the ReLU keeps it in 0.5..1."""
        return hard_sigmoid(self.scale_attention(candidate.mean((2, 3), keepdim=True)).relu())


class GlipBlock(GradientCheckpointingLayer):
    """Fusion, text layer, DyConv; without fusion the text passes unchanged."""

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
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            vision: [N, A, D]; text: [N, T, E].
            spatial_shapes: height and width of each level.
            text_mask: [N, T] bool; text_attention_mask: the same in the form that the text layer's attention takes.
        """
        attention = text_attention = None
        if self.fusion is not None:
            vision, text, attention, text_attention = self.fusion(vision, text, text_mask, output_attentions)
            text = self.text_layer(text, text_attention_mask)
        return self.dyconv(vision, spatial_shapes), text, attention, text_attention


# -- heads -----------------------------------------------------------------------------------------


class GlipTokenConv(GlipConvParameters):
    """A 1x1 convolution on tokens [N, A, C] in place of a feature map."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(tokens, self.weight.flatten(1), self.bias)


class GlipLevelScales(nn.Module):
    """One learned factor per level; named as in an `nn.ParameterList`, which cannot be called."""

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
        self.text_projection = nn.Linear(text_size, config.d_model)
        self.log_scale = nn.Parameter(torch.empty(1))
        self.bias_lang = nn.Parameter(torch.empty(text_size))
        self.bias0 = nn.Parameter(torch.empty(1))
        self.class_logits = None
        if config.num_class_channels:
            # Part of every original checkpoint, never of a result.
            self.class_logits = nn.Conv2d(config.d_model, config.num_class_channels, 1).requires_grad_(False)

    @operation("linear")
    def forward(
        self, vision: Tensor, text: Tensor, spatial_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, A, D] and [N, T, E] to logits [N, A, T], box regression [N, A, 4], centerness [N, A]."""
        embedding = nn.functional.normalize(text, dim=-1)
        tokens = self.text_projection(embedding / 2) / self.log_scale.exp()
        token_bias = embedding @ self.bias_lang.to(embedding.dtype) + self.bias0
        logits = vision @ tokens.transpose(1, 2) + token_bias[:, None]
        regression = self.bbox_pred(vision) * self.level_scales(spatial_shapes)[:, None]
        return (
            logits.clamp(-self.clamp_value, self.clamp_value),
            regression,
            self.centerness(vision).squeeze(-1),
        )


# -- models ----------------------------------------------------------------------------------------


def _torch_default_(module: nn.Linear | nn.Conv2d | GlipConvParameters) -> None:
    """PyTorch's own initial values of a linear or convolutional layer."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)


def set_frozen_modules_to_eval(module: nn.Module) -> None:
    """Put every submodule that has parameters, all of them frozen, into evaluation mode."""
    for child in module.children():
        frozen = [not parameter.requires_grad for parameter in child.parameters()]
        if frozen and all(frozen):
            child.eval()
        else:
            set_frozen_modules_to_eval(child)


class GlipPreTrainedModel(GlipModelHubMixin, GlipPromptTableMixin, PreTrainedModel):
    """Loading, saving and initial values, which are those of the original."""

    config: GlipConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["GlipBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def train(self, mode: bool = True) -> "GlipPreTrainedModel":
        """Frozen submodules stay in evaluation mode, as in the original: no dropout, drop path or DropBlock."""
        super().train(mode)
        if mode:
            set_frozen_modules_to_eval(self)
        return self

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """As for Transformers' own classes. Of classes from elsewhere it passes over every module without parameters of
        its own, which would leave the pyramid and the DyConvs with the values of plain layers; `_init_weights` here
        uses `transformers.initialization`, which spares what was loaded."""
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, (nn.Linear, nn.Conv2d, GlipConvParameters)):
            _torch_default_(module)
        elif isinstance(module, GlipFeaturePyramid):
            for conv in (*module.lateral_convs, *module.output_convs, module.p6_conv, module.p7_conv):
                init.kaiming_uniform_(conv.weight, a=1)
                init.zeros_(conv.bias)
        elif isinstance(module, GlipTextLayer):
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    init.normal_(linear.weight, std=config.text_config.initializer_range)
                    init.zeros_(linear.bias)
        elif isinstance(module, GlipFusionLayer):
            for linear in module.children():
                if isinstance(linear, nn.Linear):
                    init.xavier_uniform_(linear.weight)
                    init.zeros_(linear.bias)
            gamma = 1 / config.num_blocks if config.fusion_init_gamma is None else config.fusion_init_gamma
            init.constant_(module.gamma_vision, gamma)
            init.constant_(module.gamma_text, gamma)
        elif isinstance(module, GlipDeformableConv):
            bound = 1 / math.sqrt(module.conv.weight[0].numel())
            init.uniform_(module.conv.weight, -bound, bound)
            init.zeros_(module.conv.bias)
        elif isinstance(module, GlipDyConv):
            init.normal_(module.scale_attention.weight, std=0.01)
            init.zeros_(module.scale_attention.bias)
            if config.offset_initializer_range is not None:
                init.normal_(module.offset_conv.weight, std=config.offset_initializer_range)
                init.zeros_(module.offset_conv.bias)
        elif isinstance(module, GlipGroundingHead):
            prior_bias = -math.log((1 - config.prior_probability) / config.prior_probability)
            for conv in (module.bbox_pred, module.centerness, module.class_logits):
                if conv is not None:
                    init.normal_(conv.weight, std=0.01)
                    init.zeros_(conv.bias)
            if module.class_logits is not None:
                init.constant_(module.class_logits.bias, prior_bias)
            for scale in module.level_scales.parameters():
                init.ones_(scale)
            init.zeros_(module.log_scale)
            init.zeros_(module.bias_lang)
            init.constant_(module.bias0, prior_bias)
        elif isinstance(module, GlipAuxiliaryHeads):
            if config.soft_token_loss_weight:
                init.normal_(module.soft_tokens.weight, std=0.01)
                init.constant_(module.soft_tokens.bias, -math.log(1 / config.prior_probability - 1))
            if config.contrastive_loss_weight:
                init.constant_(module.contrastive_log_scale, math.log(0.07))
        elif isinstance(module, GlipModel):
            if module.prompt_table is not None:
                init.zeros_(module.prompt_table)
        else:
            super()._init_weights(module)


class GlipModel(GlipPreTrainedModel):
    """Backbone, pyramid, text encoder and the blocks of the head, without prediction heads."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__(config)
        if config.backbone_config.model_type == "swin":
            self.backbone = GlipSwinBackbone._from_config(config.backbone_config)
        else:
            self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.neck = GlipFeaturePyramid(config, list(self.backbone.channels))
        self.text_model = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        self.prompt_table = None
        if config.prompt_table_length:
            self.prompt_table = nn.Parameter(torch.empty(config.prompt_table_length, config.text_config.hidden_size))
        self.tower = nn.ModuleDict({"blocks": nn.ModuleList(GlipBlock(config) for _ in range(config.num_blocks))})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """Make frozen inputs differentiable, for adapters with gradient checkpointing.

        Overridden because Swin's patch embedding, an input embedding to Transformers, returns a tuple.
        """

        def require_grad(module: nn.Module, inputs: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output).requires_grad_(True)

        self._require_grads_hooks = [
            module.get_input_embeddings().register_forward_hook(require_grad)
            for module in (self.text_model, self.backbone)
        ]
        self._require_grads_hook = self._require_grads_hooks[0]

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GlipImageFeatures:
        r"""
        Encode images, once for any number of captions.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Normalised BGR as the image processor gives.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 at real pixels; it only tells the unpadded size. Padding takes part in the network, as in the
                original: the same image padded further gives slightly different results.
            original_sizes:
                Without effect; accepted so that all outputs of the image processor may be passed.
            kwargs:
                For the backbone: `output_hidden_states`, `output_attentions`.

        Raises:
            ValueError: for other shapes, whole numbers, and a backbone whose feature maps are not at strides 8, 16, 32.
        """
        channels = getattr(self.config.backbone_config, "num_channels", None)
        check_shape("pixel_values", pixel_values, None, channels, None, None)
        batch, _, height, width = pixel_values.shape
        check_shape("pixel_mask", pixel_mask, batch, height, width)
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values are {pixel_values.dtype}: give what the image processor makes of images.")
        dtypes = (value.dtype for value in self.backbone.parameters() if value.is_floating_point())
        pixel_values = pixel_values.to(next(dtypes, pixel_values.dtype))  # a replica of `nn.DataParallel` has none
        backbone = self.backbone(pixel_values, return_dict=True, **kwargs)
        for stride, feature_map in zip(PYRAMID_STRIDES, backbone.feature_maps):
            if tuple(feature_map.shape[-2:]) != (-(-height // stride), -(-width // stride)):
                raise ValueError(
                    f"the backbone's feature map of {tuple(feature_map.shape[-2:])} cells for an input of "
                    f"{height}x{width} is not at stride {stride}: choose out_indices that give strides 8, 16 and 32, "
                    "or, for a backbone that cuts odd sides, pad images to sides that are multiples of 32 "
                    "(GlipImageProcessor does)."
                )
        pyramid = self.neck(backbone.feature_maps)
        tokens = to_tokens(pyramid)
        if pixel_mask is None:
            image_sizes = constant((height, width), tokens.device, torch.int64).repeat(batch, 1)
        else:
            real = pixel_mask.bool()
            image_sizes = torch.stack([real.any(2).sum(1), real.any(1).sum(1)], dim=1)
        return GlipImageFeatures(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(1),
            feature_maps=tuple(to_pyramid(tokens, [level.shape[-2:] for level in pyramid])),
            image_sizes=image_sizes,
            hidden_states=backbone.hidden_states,
            attentions=backbone.attentions,
        )

    @can_return_tuple
    @operation("linear")
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GlipTextFeatures:
        r"""
        Encode captions, once for any number of images.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_captions, sequence_length)`):
                Tokens of the captions.
            attention_mask (`torch.LongTensor` of shape `(num_captions, sequence_length)`, *optional*):
                1 at real tokens; all by default.
            token_type_ids (`torch.LongTensor` of shape `(num_captions, sequence_length)`, *optional*):
                For BERT.
            kwargs:
                For the text encoder: `output_hidden_states`, `output_attentions`.

        Raises:
            ValueError: for other shapes, captions longer than `config.max_text_length`, and tokens that are not in the
                vocabulary (not looked for on an accelerator).
        """
        check_tokens(input_ids, attention_mask, token_type_ids, self.config.text_config.vocab_size)
        if input_ids.shape[1] > self.config.max_text_length:
            raise ValueError(
                f"captions of {input_ids.shape[1]} tokens exceed max_text_length={self.config.max_text_length}: "
                "split the vocabulary into several captions (GlipProcessor does) or truncate."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        like = input_ids.new_empty((*input_ids.shape, 1), dtype=self.get_input_embeddings().weight.dtype)
        text = self.text_model(
            input_ids=input_ids,
            attention_mask=bert_attention_mask(self.config.text_config, like, attention_mask),
            token_type_ids=token_type_ids,
            return_dict=True,
            **kwargs,
        )
        return GlipTextFeatures(
            last_hidden_state=text.last_hidden_state,
            attention_mask=attention_mask,
            input_ids=input_ids,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
        )

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
        original_sizes: Tensor | None = None,
        positive_map: Tensor | None = None,
        label_ids: Tensor | None = None,
    ) -> GlipModelOutput:
        r"""
        Args:
            pixel_values, pixel_mask:
                See [`GlipModel.get_image_features`]; or `image_features` in their place.
            input_ids, attention_mask, token_type_ids:
                See [`GlipModel.get_text_features`]; or `text_features` in their place.
            image_indices (`torch.LongTensor` of shape `(num_captions,)`, *optional*):
                The image of each caption; see `outputs_glip.pair_captions`.
            original_sizes, positive_map, label_ids:
                Without effect; accepted so that all outputs of the processor may be passed.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        check_inputs(pixel_values, image_features, "pixel_values", "image_features")
        check_inputs(input_ids, text_features, "input_ids", "text_features")
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
        if text_features is None:
            text_features = self.get_text_features(input_ids, attention_mask, token_type_ids, return_dict=True)
        images, captions = pair_captions(
            image_features.last_hidden_state.shape[0],  # not len(), which a trace takes for a constant
            text_features.last_hidden_state.shape[0],
            image_indices,
            image_features.last_hidden_state.device,
        )
        image_features, text_features = select(image_features, images), select(text_features, captions)

        vision, text = image_features.last_hidden_state, text_features.last_hidden_state
        text_mask = text_features.attention_mask.bool()
        if not config.use_fusion:
            text = text * text_mask[..., None]
        if self.prompt_table is not None:
            if text.shape[1] > len(self.prompt_table):
                raise ValueError(
                    f"a caption of {text.shape[1]} tokens exceeds prompt_table_length={len(self.prompt_table)}: "
                    "shorten it, or train a longer table."
                )
            text = text + self.prompt_table[: text.shape[1]]
        text_attention_mask = bert_attention_mask(config.text_config, text, text_features.attention_mask)
        shapes = [feature_map.shape[-2:] for feature_map in image_features.feature_maps]
        keeps_all = output_hidden_states is not None and output_hidden_states is not False
        hidden_states, attentions, text_attentions = [vision] if keeps_all else [], [], []
        for block in self.tower["blocks"]:
            vision, text, attention, text_attention = block(
                vision, text, shapes, text_mask, text_attention_mask, output_attentions
            )
            if keeps_all:
                hidden_states.append(vision)
            attentions.append(attention)
            text_attentions.append(text_attention)
        with_attentions = output_attentions and config.use_fusion
        return GlipModelOutput(
            last_hidden_state=vision,
            text_last_hidden_state=text,
            spatial_shapes=constant(tuple(shapes), vision.device, torch.int64).repeat(vision.shape[0], 1, 1),
            image_sizes=image_features.image_sizes,
            attention_mask=text_features.attention_mask,
            input_ids=text_features.input_ids,
            hidden_states=keep_states(hidden_states, output_hidden_states),
            attentions=tuple(attentions) if with_attentions else None,
            text_attentions=tuple(text_attentions) if with_attentions else None,
        )


class GlipForGrounding(GlipPreTrainedModel):
    """GLIP with its heads: which token of the caption matches the image at every location, and where the object is.

    ```python
    >>> inputs = processor(images=image, text=["cat", "remote control"], return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> result = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.4)[0]
    ```
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__(config)
        self.model = GlipModel(config)
        self.head = GlipGroundingHead(config)
        self.auxiliary = GlipAuxiliaryHeads(config) if GlipAuxiliaryHeads.wanted(config) else None
        self.loss_function = grounding_loss
        self.add_model_tags(list(TAGS))
        self.post_init()

    def enable_input_require_grads(self) -> None:
        self.model.enable_input_require_grads()

    def get_image_features(self, *args: Any, **kwargs: Any) -> GlipImageFeatures:
        """See [`GlipModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args: Any, **kwargs: Any) -> GlipTextFeatures:
        """See [`GlipModel.get_text_features`]."""
        return self.model.get_text_features(*args, **kwargs)

    def _anchors(self, shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
        return make_anchors(shapes, PYRAMID_STRIDES, self.config.anchor_scale, device)

    def _predict(
        self, image_features: GlipImageFeatures, text_features: GlipTextFeatures, **options: Any
    ) -> tuple[GlipModelOutput, dict[str, Tensor]]:
        outputs = self.model(image_features=image_features, text_features=text_features, return_dict=True, **options)
        shapes = [feature_map.shape[-2:] for feature_map in image_features.feature_maps]
        logits, regression, centerness = self.head(outputs.last_hidden_state, outputs.text_last_hidden_state, shapes)
        anchors = self._anchors(shapes, logits.device)
        size = outputs.image_sizes.flip(1).repeat(1, 2)[:, None].to(regression.device)  # w, h, w, h
        predictions = {
            "logits": logits,
            "bbox_regression": regression,
            "centerness_logits": centerness,
            "pred_boxes": decode_boxes(regression.float(), anchors) / size,
        }
        return outputs, predictions

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
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`), pixel_mask:
                Normalised BGR, and 1 at real pixels. Or `image_features` from `get_image_features` in their place.
            original_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Height and width of the images as given, in pixels; passed on to post-processing.
            input_ids, attention_mask, token_type_ids (`torch.LongTensor` of shape `(num_captions, sequence_length)`):
                The captions. Or `text_features` from `get_text_features` in their place.
            positive_map (`torch.Tensor` of shape `(num_captions, num_classes, sequence_length)`, *optional*):
                Non-zero at the tokens of each class or phrase; passed on to post-processing. By default the whole
                caption without [CLS] and [SEP] is one class.
            label_ids (`torch.LongTensor` of shape `(num_captions, num_classes)`, *optional*):
                The label of each row of `positive_map`, -1 at padding; default 0 .. num_classes - 1.
            image_indices (`torch.LongTensor` of shape `(num_captions,)`, *optional*):
                The image of each caption; needed only where captions and images neither pair one to one nor are one of
                a kind. In inference the pairs run through the head in groups of `batch_size`, so a long vocabulary
                takes no more memory than a batch of images.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                One dict per pair, for training: `boxes` of shape `(num_boxes, 4)`, xyxy in pixels of the model input,
                and `positive_map` of shape `(num_boxes, sequence_length)`; see `loss_glip.grounding_loss`.

        Raises:
            ValueError: for captions that are too long, or that cannot be paired with the images, and for other shapes.
        """
        check_inputs(pixel_values, image_features, "pixel_values", "image_features")
        check_inputs(input_ids, text_features, "input_ids", "text_features")
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
        hidden_words = None
        if self.auxiliary is not None and self.training and labels is not None and text_features is None:
            input_ids, hidden_words = self.auxiliary.hide_words(input_ids, attention_mask, labels)
        if text_features is None:
            text_features = self.get_text_features(input_ids, attention_mask, token_type_ids, return_dict=True)
        visual = image_features.last_hidden_state
        num_images, num_captions = visual.shape[0], text_features.last_hidden_state.shape[0]
        images, captions = pair_captions(num_images, num_captions, image_indices, visual.device)
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        num_pairs = max(num_images, num_captions) if images is None else len(images)
        together = num_pairs <= num_images or torch.is_grad_enabled()
        groups = [
            self._predict(select(image_features, some_images), select(text_features, some_captions), **options)
            for some_images, some_captions in ([(images, captions)] if together else split_pairs(images, num_images))
        ]
        outputs = concatenate([outputs for outputs, _ in groups])
        predictions = concatenate([predictions for _, predictions in groups])

        positive_map, label_ids = class_maps(positive_map, label_ids, outputs.attention_mask, captions is not None)
        check_shape("original_sizes", original_sizes, num_images, 2)
        if original_sizes is not None and images is not None:
            original_sizes = original_sizes[images.to(original_sizes.device)]

        loss, loss_dict = None, None
        if labels is not None:
            shapes = [feature_map.shape[-2:] for feature_map in image_features.feature_maps]
            anchors = self._anchors(shapes, predictions["logits"].device)
            level_sizes = [height * width for height, width in shapes]
            raw = [predictions[name] for name in ("logits", "bbox_regression", "centerness_logits")]
            loss, loss_dict = self.loss_function(
                *raw, anchors, level_sizes, outputs.attention_mask, labels, self.config
            )
            if self.auxiliary is not None:
                extra = self.auxiliary(
                    outputs.last_hidden_state,
                    outputs.text_last_hidden_state,
                    outputs.attention_mask,
                    labels,
                    anchors,
                    level_sizes,
                    hidden_words,
                )
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
            positive_map=positive_map,
            label_ids=label_ids,
            image_indices=images,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_attentions=outputs.text_attentions,
        )


__all__ = [
    "GlipForGrounding",
    "GlipGroundingOutput",
    "GlipImageFeatures",
    "GlipModel",
    "GlipModelOutput",
    "GlipPreTrainedModel",
    "GlipTextFeatures",
]
