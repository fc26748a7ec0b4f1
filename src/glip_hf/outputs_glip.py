# Copyright 2026 The glip_hf authors. MIT licence.
"""What GLIP's models return.

Letters: B pictures, N captions or (picture, caption) pairs, T text tokens, L levels, A locations of all levels (p3 to
p7, row-major; one anchor each), D channels of the head, E width of the text encoder, C classes a caption.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class GlipImageFeatures(ModelOutput):
    """Everything the head needs of the pictures; pass it as `image_features=` to encode a photo once.

    last_hidden_state: [B, A, D], the pyramid as tokens.
    feature_maps: the same as one map [B, D, H_i, W_i] a level, P3 to P7; views.
    image_sizes: [B, 2] int64, height and width of the unpadded pictures in pixels.
    hidden_states, attentions: of the backbone, on request.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    image_sizes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class GlipTextFeatures(ModelOutput):
    """Everything the head needs of the captions; pass it as `text_features=` to encode a caption once.

    last_hidden_state: [N, T, E] of the text encoder.
    attention_mask: [N, T] int64, 1 at real tokens.
    input_ids: [N, T] int64 or None.
    hidden_states, attentions: of the text encoder, on request.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    attention_mask: Tensor | None = None
    input_ids: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class GlipModelOutput(ModelOutput):
    """
    last_hidden_state: [N, A, D], visual tokens after the last block.
    text_last_hidden_state: [N, T, E], what the dot product reads: the language state after the last block, or
        without fusion the text encoder's output, zero at padding.
    spatial_shapes, image_sizes, attention_mask, input_ids: see `GlipImageFeatures`, `GlipTextFeatures`.
    hidden_states: visual tokens before the first and after each block, [N, A, D]; on request. A request for some
        indices (`output_hidden_states=[0, -1]`) leaves None in the other places.
    attentions: the picture's attention over the caption in each block, [N, heads, A, T]; on request, eager only.
    text_attentions: the caption's attention over the picture, [N, heads, T, A]; likewise.
    """

    last_hidden_state: Tensor | None = None
    text_last_hidden_state: Tensor | None = None
    spatial_shapes: Tensor | None = None
    image_sizes: Tensor | None = None
    attention_mask: Tensor | None = None
    input_ids: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    text_attentions: tuple[Tensor, ...] | None = None


@dataclass
class GlipGroundingOutput(ModelOutput):
    """
    loss: scalar, the weighted sum of `loss_dict`; with `labels` only.
    loss_dict: the terms of the loss.
    logits: [N, A, T], dot products of locations and tokens; the sigmoid is the probability of a match.
    bbox_regression: [N, A, 4], raw regression against the anchors.
    centerness_logits: [N, A].
    pred_boxes: [N, A, 4] xyxy, relative to the unpadded picture (0..1, unclipped).
    spatial_shapes: [N, L, 2] int64, cells of each level; image_sizes: [N, 2] int64, unpadded input in pixels.
    original_sizes: [N, 2] int64, the photo's height and width as given, or None.
    input_ids, attention_mask: [N, T]; positive_map: [N, C, T] int64, 1 at the tokens of a class; label_ids: [N, C]
        int64, -1 at padding.
    image_indices: [N] int64, the picture of each caption; None where captions and pictures pair one to one.
    hidden_states, attentions, text_attentions: see `GlipModelOutput`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    bbox_regression: Tensor | None = None
    centerness_logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    spatial_shapes: Tensor | None = None
    image_sizes: Tensor | None = None
    original_sizes: Tensor | None = None
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    positive_map: Tensor | None = None
    label_ids: Tensor | None = None
    image_indices: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    text_attentions: tuple[Tensor, ...] | None = None


__all__ = ["GlipGroundingOutput", "GlipImageFeatures", "GlipModelOutput", "GlipTextFeatures"]
