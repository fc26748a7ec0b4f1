# Copyright 2026 The glip_hf authors. MIT licence.
"""What GLIP's models return; which image goes with which caption, and outputs taken apart and joined accordingly.

Letters: B images, N captions or (image, caption) pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput

from .ops_glip import is_traced
from .values_glip import quote


@dataclass
class GlipImageFeatures(ModelOutput):
    r"""
    What the head needs of the images; pass it as `image_features=` to encode an image once for many captions.

    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_locations, d_model)`):
        The pyramid as tokens.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, d_model)`):
        The mean over all locations, padding included: a summary of the image that no training has shaped.
    feature_maps (`tuple(torch.FloatTensor)` of shape `(batch_size, d_model, height, width)`):
        The same as one feature map per level, P3 to P7; views.
    image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`):
        Height and width of the unpadded images in pixels.
    hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
        Of the backbone, on request.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    image_sizes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class GlipTextFeatures(ModelOutput):
    r"""
    What the head needs of the captions; pass it as `text_features=` to encode a caption once for many images.

    last_hidden_state (`torch.FloatTensor` of shape `(num_captions, sequence_length, text_hidden_size)`):
        Of the text encoder.
    attention_mask (`torch.LongTensor` of shape `(num_captions, sequence_length)`):
        1 at real tokens.
    input_ids (`torch.LongTensor` of shape `(num_captions, sequence_length)`, *optional*):
        The tokens.
    pooler_output, hidden_states, attentions (*optional*):
        Of the text encoder: `None`, as it has no pooler; the others on request.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    attention_mask: Tensor | None = None
    input_ids: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class GlipModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(num_pairs, num_locations, d_model)`):
        Visual tokens after the last block.
    text_last_hidden_state (`torch.FloatTensor` of shape `(num_pairs, sequence_length, text_hidden_size)`):
        What the dot product reads: the language state after the last block, or without fusion the text encoder's
        output, zero at padding.
    spatial_shapes, image_sizes, attention_mask, input_ids:
        See [`GlipGroundingOutput`].
    hidden_states (`tuple(torch.FloatTensor)` of shape `(num_pairs, num_locations, d_model)`, *optional*):
        Visual tokens before the first and after each block, on request. A request for some indices
        (`output_hidden_states=[0, -1]`) leaves `None` for the others.
    attentions (`tuple(torch.FloatTensor)` of shape `(num_pairs, num_heads, num_locations, sequence_length)`, *optional*):
        The image's attention over the caption in each block, on request.
    text_attentions (`tuple(torch.FloatTensor)` of shape `(num_pairs, num_heads, sequence_length, num_locations)`, *optional*):
        The caption's attention over the image, likewise.
    """  # noqa: E501

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
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        The weighted sum of `loss_dict`.
    loss_dict (`dict[str, torch.FloatTensor]`, *optional*):
        The terms of the loss.
    logits (`torch.FloatTensor` of shape `(num_pairs, num_locations, sequence_length)`):
        Dot products of locations and tokens; the sigmoid is the probability of a match.
    bbox_regression (`torch.FloatTensor` of shape `(num_pairs, num_locations, 4)`):
        Raw regression against the anchors.
    centerness_logits (`torch.FloatTensor` of shape `(num_pairs, num_locations)`):
        Centerness before the sigmoid.
    pred_boxes (`torch.FloatTensor` of shape `(num_pairs, num_locations, 4)`):
        Boxes, xyxy, normalised by the size of the unpadded image (0..1, unclipped).
    spatial_shapes (`torch.LongTensor` of shape `(num_pairs, num_levels, 2)`):
        Height and width of each level in feature-map cells.
    image_sizes (`torch.LongTensor` of shape `(num_pairs, 2)`):
        Height and width of the unpadded model input in pixels.
    original_sizes (`torch.LongTensor` of shape `(num_pairs, 2)`, *optional*):
        Height and width of the image as given, in pixels.
    input_ids, attention_mask (`torch.LongTensor` of shape `(num_pairs, sequence_length)`):
        The captions.
    positive_map (`torch.LongTensor` of shape `(num_pairs, num_classes, sequence_length)`):
        1 at the tokens of a class.
    label_ids (`torch.LongTensor` of shape `(num_pairs, num_classes)`):
        The label of each row of `positive_map`, -1 at padding.
    image_indices (`torch.LongTensor` of shape `(num_pairs,)`, *optional*):
        The image of each caption; `None` where captions and images pair one to one.
    hidden_states, attentions, text_attentions:
        See [`GlipModelOutput`].
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


def select(features: Any, rows: Tensor | None) -> Any:
    """The images or captions `rows` of a features output; None takes all."""
    if rows is None:
        return features

    count = len(features.last_hidden_state)

    def pick(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Tensor):
            own = rows.to(value.device)  # parts of a dispatched model lie on different devices
            if len(value) == count:
                return value[own]
            return value.unflatten(0, (count, -1))[own].flatten(0, 1)  # attentions of windows, image after image
        return tuple(pick(item) for item in value)

    return type(features)(**{name: pick(value) for name, value in features.items()})


def keep_states(states: list[Tensor], requested: bool | int | list[int] | None) -> tuple[Tensor | None, ...] | None:
    """The states that `output_hidden_states` asks for: all, none, or those of some indices with None elsewhere."""
    if requested is None or requested is False:
        return None
    if requested is True:
        return tuple(states)
    indices = [requested] if isinstance(requested, int) else requested
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if i in kept else None for i, state in enumerate(states))


_INTEGERS = (torch.int64, torch.int32)


def check_inputs(raw: Tensor | None, features: Any, raw_name: str, features_name: str) -> None:
    """Raise a ValueError unless exactly one of two ways to give an input is used, a TypeError for other features."""
    if (raw is None) == (features is None):
        both = "neither" if raw is None else "both"
        raise ValueError(f"{both} of {raw_name} and {features_name} given: pass one of the two.")
    if features is not None and not hasattr(features, "last_hidden_state"):
        raise TypeError(f"{features_name} is a {type(features).__name__}: give what get_{features_name} returned.")


def check_tensor(name: str, value: Any) -> None:
    """Raise a TypeError for anything but a tensor or None: a processor gives lists unless it is told otherwise."""
    if not isinstance(value, Tensor | None):
        remedy = 'call the processor with return_tensors="pt"'
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor: {remedy}.")


def check_shape(name: str, value: Tensor | None, *sizes: int | None) -> None:
    """Raise a ValueError unless a tensor that is given has these sizes; None is any but 0. Not while traced."""
    check_tensor(name, value)
    if value is None or is_traced():
        return
    shape = tuple(value.shape)
    if len(shape) != len(sizes) or not all(own if size is None else own == size for own, size in zip(shape, sizes)):
        wanted = ", ".join("1 or more" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} has the shape {shape}: it must be ({wanted}).")


def check_tokens(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, vocabulary: int
) -> None:
    """Raise a ValueError for other shapes than [N, T], or tokens that are not in a vocabulary of this size (which an
    accelerator is not asked, as it would have to be waited for)."""
    check_shape("input_ids", input_ids, None, None)
    check_shape("attention_mask", attention_mask, *input_ids.shape)
    check_shape("token_type_ids", token_type_ids, *input_ids.shape)
    if input_ids.is_floating_point():
        raise ValueError(f"input_ids are {input_ids.dtype}: they must be whole numbers, what a tokenizer gives.")
    if input_ids.is_cpu and not is_traced() and not 0 <= input_ids.min() <= input_ids.max() < vocabulary:
        raise ValueError(
            f"input_ids go from {input_ids.min()} to {input_ids.max()}, but the model's vocabulary has {vocabulary} "
            "entries: the tokenizer is that of another model."
        )


def bert_attention_mask(config: Any, states: Tensor, attention_mask: Tensor) -> Tensor | None:
    """A mask [N, T] as BERT's attention takes it for states [N, T, E], None where nothing is masked: a question that a
    GPU is not asked, as the host would wait for it (Transformers before 5.15 asks nevertheless)."""
    return create_bidirectional_mask(config, states, attention_mask, allow_is_bidirectional_skip=attention_mask.is_cpu)


def class_maps(
    positive_map: Tensor | None, label_ids: Tensor | None, attention_mask: Tensor, shared: bool
) -> tuple[Tensor, Tensor]:
    """`positive_map` [N, C, T] and `label_ids` [N, C] of each pair, as given or by default (see
    `GlipForGrounding.forward`); a ValueError for other shapes.

    `attention_mask` is [N, T], of each pair; `shared` says whether all pairs have the same caption.
    """
    num_pairs, num_tokens = attention_mask.shape
    check_tensor("positive_map", positive_map)
    check_tensor("label_ids", label_ids)
    if positive_map is None:
        position = attention_mask.cumsum(1)
        positive_map = ((position > 1) & (position < position[:, -1:]) & attention_mask.bool())[:, None]
    elif shared and len(positive_map) == 1:
        positive_map = positive_map.repeat(num_pairs, 1, 1)
    num_classes = positive_map.shape[1] if positive_map.ndim == 3 else None
    check_shape("positive_map", positive_map, num_pairs, num_classes, num_tokens)
    if label_ids is None:
        label_ids = torch.arange(num_classes, device=positive_map.device).repeat(num_pairs, 1)
    elif shared and len(label_ids) == 1:
        label_ids = label_ids.repeat(num_pairs, 1)
    check_shape("label_ids", label_ids, num_pairs, num_classes)
    return (positive_map != 0).long(), label_ids


def pair_captions(
    num_images: int, num_captions: int, image_indices: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Which image and which caption each pair takes; None stands for "all, in order".

    One image goes with every caption, one caption with every image, equal numbers pair one to one, and
    `image_indices` [N] gives them explicitly. A ValueError where the counts fit none of these, or an index is that of
    no image.
    """
    if not is_traced() and not (num_images and num_captions):
        raise ValueError(f"{num_captions} captions for {num_images} images: give at least one of each.")
    if image_indices is not None:
        if not isinstance(image_indices, Tensor) or image_indices.ndim != 1 or image_indices.dtype not in _INTEGERS:
            raise ValueError(f"image_indices={quote(image_indices)} must be a tensor with an index per caption.")
        if len(image_indices) != num_captions:
            raise ValueError(
                f"image_indices has {len(image_indices)} entries for {num_captions} captions: give each caption "
                "the index of its image."
            )
        if not is_traced() and num_captions and not 0 <= image_indices.min() <= image_indices.max() < num_images:
            raise ValueError(f"image_indices={image_indices.tolist()} must be from 0 to {num_images - 1}.")
        return image_indices, None
    if num_images == num_captions:
        return None, None
    if num_images == 1:
        return torch.zeros(num_captions, dtype=torch.int64, device=device), None
    if num_captions == 1:
        return None, torch.zeros(num_images, dtype=torch.int64, device=device)
    raise ValueError(
        f"{num_captions} captions for {num_images} images: pass image_indices with the image of each caption."
    )


def split_pairs(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The images [N] of all captions, in order, in groups of at most `size` pairs: images and captions of each."""
    captions = torch.arange(len(images), device=images.device)
    return list(zip(images.split(size), captions.split(size)))


def concatenate(parts: list[Any]) -> Any:
    """Join dicts or outputs of tensors and tuples of tensors along the first dimension; a single part as it is."""
    if len(parts) == 1:
        return parts[0]

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        return tuple(join(list(items)) for items in zip(*values))

    joined = {name: join([part[name] for part in parts]) for name in parts[0]}
    return joined if type(parts[0]) is dict else type(parts[0])(**joined)
