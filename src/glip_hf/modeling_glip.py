# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP (Grounded Language-Image Pre-training, arXiv 2112.03857): read top to bottom, it is the way of the data.

picture -> backbone -> pyramid --.
                                 [fusion -> text layer -> DyConv] x blocks -> boxes, centerness, token logits
caption -> BERT -----------------'

Letters: B pictures, N captions or (picture, caption) pairs, T text tokens, L levels, A locations of all levels (p3 to
p7, row-major; one anchor each), D channels of the head, E width of the text encoder, C classes a caption.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import can_return_tuple

from .auxiliary_losses_glip import GlipAuxiliaryHeads
from .boxes_glip import decode_boxes, make_anchors
from .configuration_glip import PYRAMID_STRIDES, GlipConfig
from .dyhead_glip import GlipDeformableConv, GlipDyConv
from .fast_path_glip import may_overwrite
from .fused_dyconv_glip import to_pyramid, to_tokens
from .fusion_glip import GlipFusionLayer
from .hub_glip import TAGS, GlipModelHubMixin
from .layers_glip import GlipBlock, GlipFeaturePyramid, GlipGroundingHead, GlipTextLayer
from .loss_glip import grounding_loss
from .outputs_glip import GlipGroundingOutput, GlipImageFeatures, GlipModelOutput, GlipTextFeatures
from .pairing_glip import check_inputs, concatenate, keep_states, pair_captions, select, split_pairs
from .products_glip import speed_up_linears
from .prompt_table_glip import GlipPromptTableMixin
from .swin_glip import GlipSwinBackbone


def _torch_default_(module: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's own initial values of a linear or convolutional layer."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)


def rest_frozen_parts(module: nn.Module) -> None:
    """Put every part that has parameters, all of them frozen, into evaluation mode."""
    for child in module.children():
        frozen = [not parameter.requires_grad for parameter in child.parameters()]
        if frozen and all(frozen):
            child.eval()
        else:
            rest_frozen_parts(child)


class GlipPreTrainedModel(GlipModelHubMixin, GlipPromptTableMixin, PreTrainedModel):
    """Loading, saving and initial values (section 8a of GLIP's specification).

    The text layers of the head start from PyTorch's defaults, as in the original, which never calls BERT's initialiser
    there.
    """

    config: GlipConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["GlipBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def train(self, mode: bool = True) -> "GlipPreTrainedModel":
        """As every module, but frozen parts stay in evaluation mode, as in the original: without dropout, drop path
        and DropBlock."""
        super().train(mode)
        if mode:
            rest_frozen_parts(self)
        return self

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """As for Transformers' own classes. Of classes from elsewhere it passes over every module without parameters of
        its own, which would leave the pyramid and the DyConvs with the values of plain layers; `_init_weights` here
        uses `transformers.initialization`, which spares what was loaded."""
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            _torch_default_(module)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, GlipFeaturePyramid):
            for conv in (*module.lateral_convs, *module.output_convs, module.p6_conv, module.p7_conv):
                init.kaiming_uniform_(conv.weight, a=1)
                init.zeros_(conv.bias)
        elif isinstance(module, GlipTextLayer):
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    init.normal_(linear.weight, std=self.config.text_config.initializer_range)
                    init.zeros_(linear.bias)
        elif isinstance(module, GlipFusionLayer):
            for name in ("query_vision", "key_text", "value_vision", "value_text", "out_vision", "out_text"):
                linear = getattr(module, name)
                init.xavier_uniform_(linear.weight)
                init.zeros_(linear.bias)
            gamma = self.config.fusion_init_gamma
            gamma = 1 / self.config.num_blocks if gamma is None else gamma
            init.constant_(module.gamma_vision, gamma)
            init.constant_(module.gamma_text, gamma)
        elif isinstance(module, GlipDeformableConv):
            bound = 1 / math.sqrt(module.conv.weight[0].numel())
            init.uniform_(module.conv.weight, -bound, bound)
            init.zeros_(module.conv.bias)
        elif isinstance(module, GlipDyConv):
            init.normal_(module.scale_attention.weight, std=0.01)
            init.zeros_(module.scale_attention.bias)
            if self.config.offset_initializer_range is not None:
                init.normal_(module.offset_conv.weight, std=self.config.offset_initializer_range)
                init.zeros_(module.offset_conv.bias)
        elif isinstance(module, GlipGroundingHead):
            prior_bias = -math.log((1 - self.config.prior_probability) / self.config.prior_probability)
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
            if self.config.soft_token_loss_weight:
                init.normal_(module.soft_tokens.weight, std=0.01)
                init.constant_(module.soft_tokens.bias, -math.log(1 / self.config.prior_probability - 1))
            if self.config.contrastive_loss_weight:
                init.constant_(module.contrastive_log_scale, math.log(0.07))
        elif isinstance(module, GlipModel) and module.prompt_table is not None:
            init.zeros_(module.prompt_table)


class GlipModel(GlipPreTrainedModel):
    """Backbone, pyramid, text encoder and the tower of fusion blocks, without prediction heads."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__(config)
        if config.backbone_config.model_type == "swin":
            self.backbone = GlipSwinBackbone._from_config(config.backbone_config)
        else:
            self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.neck = GlipFeaturePyramid(config, list(self.backbone.channels))
        self.text_model = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        speed_up_linears(self.text_model)
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
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any
    ) -> GlipImageFeatures:
        """Encode pictures, once for any number of captions.

        Args:
            pixel_values: [B, 3, H, W], normalised BGR as the image processor gives.
            pixel_mask: [B, H, W], 1 at real pixels; it only tells the unpadded size. Padding takes part in the
                network, as in the original: the same picture padded further gives slightly different numbers.

        Raises:
            ValueError: if the backbone's maps are not at strides 8, 16 and 32.
        """
        batch, _, height, width = pixel_values.shape
        backbone = self.backbone(pixel_values, return_dict=True, **kwargs)
        for stride, feature_map in zip(PYRAMID_STRIDES, backbone.feature_maps):
            if tuple(feature_map.shape[-2:]) != (-(-height // stride), -(-width // stride)):
                raise ValueError(
                    f"the backbone's map of {tuple(feature_map.shape[-2:])} cells for an input of {height}x{width} "
                    f"is not at stride {stride}: choose out_indices that give strides 8, 16 and 32, or, for a backbone "
                    "that cuts odd sides, pad pictures to sides that are multiples of 32 (GlipImageProcessor does)."
                )
        pyramid = self.neck(backbone.feature_maps)
        hidden_states, attentions = backbone.hidden_states, backbone.attentions
        del backbone, feature_map  # their memory serves the tokens
        tokens = to_tokens(pyramid)
        if pixel_mask is None:
            image_sizes = torch.tensor([[height, width]], device=tokens.device).repeat(batch, 1)
        else:
            real = pixel_mask.bool()
            image_sizes = torch.stack([real.any(2).sum(1), real.any(1).sum(1)], dim=1)
        return GlipImageFeatures(
            last_hidden_state=tokens,
            feature_maps=tuple(to_pyramid(tokens, [level.shape[-2:] for level in pyramid])),
            image_sizes=image_sizes,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> GlipTextFeatures:
        """Encode captions, once for any number of pictures.

        Args:
            input_ids: [N, T] int64; attention_mask: [N, T], 1 at real tokens (default: all).

        Raises:
            ValueError: for captions longer than `config.max_text_length`.
        """
        if input_ids.shape[1] > self.config.max_text_length:
            raise ValueError(
                f"captions of {input_ids.shape[1]} tokens exceed max_text_length={self.config.max_text_length}: "
                "split the vocabulary into several captions (GlipProcessor does) or truncate."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
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
        **kwargs: Any,
    ) -> GlipModelOutput:
        """
        Args:
            pixel_values, pixel_mask: see `get_image_features`; or `image_features` in their place.
            input_ids, attention_mask, token_type_ids: see `get_text_features`; or `text_features` in their place.
            image_indices: [N] int64, the picture of each caption; see `pair_captions`.
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
        pictures, captions = pair_captions(
            len(image_features.last_hidden_state),
            len(text_features.last_hidden_state),
            image_indices,
            image_features.last_hidden_state.device,
        )
        image, words = select(image_features, pictures), select(text_features, captions)

        vision, text = image.last_hidden_state, words.last_hidden_state
        text_mask = words.attention_mask.bool()
        if not config.use_fusion:
            text = text * text_mask[..., None]
        if self.prompt_table is not None:
            table = self.prompt_table
            if text.shape[1] > len(table):
                raise ValueError(
                    f"a caption of {text.shape[1]} tokens exceeds prompt_table_length={len(table)}: "
                    "shorten it, or train a longer table."
                )
            text = text + table[: text.shape[1]]
        text_attention_mask = create_bidirectional_mask(
            config=config.text_config, inputs_embeds=text, attention_mask=words.attention_mask
        )
        shapes = [feature_map.shape[-2:] for feature_map in image.feature_maps]
        keeps_all = output_hidden_states is not None and output_hidden_states is not False
        hidden_states, attentions, text_attentions = [vision] if keeps_all else [], [], []
        # The first block's input is the caller's.
        overwrite = not keeps_all and may_overwrite(self.tower)
        for i, block in enumerate(self.tower["blocks"]):
            vision, text, attention, text_attention = block(
                vision, text, shapes, text_mask, text_attention_mask, output_attentions, overwrite and i > 0
            )
            if keeps_all:
                hidden_states.append(vision)
            attentions.append(attention)
            text_attentions.append(text_attention)
        with_attentions = output_attentions and config.use_fusion
        return GlipModelOutput(
            last_hidden_state=vision,
            text_last_hidden_state=text,
            spatial_shapes=torch.tensor(shapes, device=vision.device).repeat(len(vision), 1, 1),
            image_sizes=image.image_sizes,
            attention_mask=words.attention_mask,
            input_ids=words.input_ids,
            hidden_states=keep_states(hidden_states, output_hidden_states),
            attentions=tuple(attentions) if with_attentions else None,
            text_attentions=tuple(text_attentions) if with_attentions else None,
        )


class GlipForGrounding(GlipPreTrainedModel):
    """GLIP with its heads: which token of the caption stands for what is seen at every location, and where.

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

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

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
        **kwargs: Any,
    ) -> GlipGroundingOutput:
        """
        Args:
            pixel_values: [B, 3, H, W], normalised BGR; pixel_mask: [B, H, W], 1 at real pixels. Or `image_features`
                from `get_image_features` in their place.
            original_sizes: [B, 2] int64, height and width of the photos; passed on to post-processing.
            input_ids, attention_mask, token_type_ids: [N, T]. Or `text_features` from `get_text_features`.
            positive_map: [N, C, T] bool or number, non-zero at the tokens of each class or phrase; passed on to
                post-processing. By default the whole caption without [CLS] and [SEP] is one class.
            label_ids: [N, C] int64, the label of each row of `positive_map`, -1 at padding; default 0 .. C - 1.
            image_indices: [N] int64, the picture of each caption; needed only where captions and pictures neither
                pair one to one nor are one of a kind. In inference the pairs run through the head in groups of B, so
                a long vocabulary takes no more memory than a batch of pictures.
            labels: one dict a pair, for training: `boxes` [K, 4] xyxy in pixels of the network's input and
                `positive_map` [K, T]; see `loss_glip.grounding_loss`.

        Raises:
            ValueError: for captions that are too long, or that cannot be paired with the pictures.
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
        vision = image_features.last_hidden_state
        num_images, num_captions = len(vision), len(text_features.last_hidden_state)
        pictures, captions = pair_captions(num_images, num_captions, image_indices, vision.device)
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        num_pairs = max(num_images, num_captions) if pictures is None else len(pictures)
        shapes = [feature_map.shape[-2:] for feature_map in image_features.feature_maps]
        whole = num_pairs <= num_images or torch.is_grad_enabled()
        rows = [(pictures, captions)] if whole else split_pairs(pictures, num_images)
        groups = [
            self._predict(select(image_features, images), select(text_features, texts), **options)
            for images, texts in rows
        ]
        outputs = concatenate([outputs for outputs, _ in groups])
        predictions = concatenate([predictions for _, predictions in groups])

        if positive_map is None:
            position = outputs.attention_mask.cumsum(1)
            inner = (position > 1) & (position < position[:, -1:]) & outputs.attention_mask.bool()
            positive_map = inner[:, None]
        elif captions is not None and len(positive_map) == 1:
            positive_map = positive_map.repeat(num_pairs, 1, 1)
        if label_ids is None:
            label_ids = torch.arange(positive_map.shape[1], device=positive_map.device)
            label_ids = label_ids.repeat(num_pairs, 1)
        elif captions is not None and len(label_ids) == 1:
            label_ids = label_ids.repeat(num_pairs, 1)
        if original_sizes is not None and pictures is not None:
            original_sizes = original_sizes[pictures.to(original_sizes.device)]

        loss, loss_dict = None, None
        if labels is not None:
            anchors = self._anchors(shapes, predictions["logits"].device)
            level_sizes = [height * width for height, width in shapes]
            loss, loss_dict = self.loss_function(
                predictions["logits"],
                predictions["bbox_regression"],
                predictions["centerness_logits"],
                anchors,
                level_sizes,
                outputs.attention_mask,
                labels,
                self.config,
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
            positive_map=(positive_map != 0).long(),
            label_ids=label_ids,
            image_indices=pictures,
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
