# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP in the plain textbook formulation: what every faster form in this package is tested and timed against.

`GlipForGrounding.from_pretrained(path, reference=True)`, `GlipConfig(reference=True)` and `model.set_reference()`
switch every part over (the configuration's field is read when a model is built, and never saved). The numbers are the
same up to rounding; only time and memory differ:

* one (picture, caption) pair at a time, and picture and caption encoded again for every pair;
* every caption padded to `config.max_text_length`, in the text encoder and in the head;
* fusion with all six projections applied, to the full inner width, and both attention matrices written out whole;
* deformable convolutions as im2col by `grid_sample` and one matrix product, with nothing shared between them;
* attention written out in Swin and in the text layers (in the text encoder: Transformers' eager attention).

Post-processing and losses are the same either way: callers see captions of the length they gave.

Of each part this file holds a function that takes the module with the parameters. It imports none of the modules it
stands in for, so that no error of theirs can hide in it.

Letters: B pictures, N captions or pairs, A visual tokens of all levels, T text tokens, D channels of the head, H heads,
E width of the text encoder, M window side, K = 9 taps.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .outputs_glip import GlipImageFeatures, GlipTextFeatures
from .pairing_glip import concatenate, pair_captions, select

TAPS = 9


class GlipReferencePart:
    """A module with a textbook form beside its fast one; `reference` says which of them runs."""

    reference: bool = False


def set_reference_parts(module: nn.Module, on: bool) -> None:
    """Choose the form of a module and of all its parts."""
    for part in module.modules():
        if isinstance(part, GlipReferencePart):
            part.reference = on


class GlipReferenceMixin(GlipReferencePart):
    """The switch, for models."""

    _fast_attention: str | None = None

    def post_init(self) -> None:
        super().post_init()
        if self.config.reference:
            self.set_reference()

    def set_reference(self, on: bool = True) -> None:
        """Run every part in the textbook formulation, or (False) in the fast one again.

        Sets `config.reference`, and attention to "eager" or back to what it was ("sdpa" for a model that was built
        with `reference=True`).
        """
        if on and not self.reference:
            self._fast_attention = None if self.config.reference else self.config._attn_implementation
        set_reference_parts(self, on)
        self.config.reference = on
        self.set_attn_implementation("eager" if on else self._fast_attention or "sdpa")


# -- pairs -----------------------------------------------------------------------------------------


def one_by_one(encode: Any, inputs: dict[str, Tensor | None], **kwargs: Any) -> Any:
    """The outputs of `encode` for each row of `inputs` alone, joined."""
    count = next(len(value) for value in inputs.values() if value is not None)
    rows = [{name: None if x is None else x[n : n + 1] for name, x in inputs.items()} for n in range(count)]
    return concatenate([encode(**row, return_dict=True, **kwargs) for row in rows])


def pad_tokens(inputs: dict[str, Tensor | None], length: int, pad_token_id: int) -> dict[str, Tensor | None]:
    """`input_ids`, `attention_mask` (made if None) and `token_type_ids` [N, T] to [N, length]."""
    ids = inputs["input_ids"]
    if inputs["attention_mask"] is None:
        inputs = {**inputs, "attention_mask": torch.ones_like(ids)}
    fill = {"input_ids": pad_token_id or 0}
    return {
        name: None if x is None else nn.functional.pad(x, (0, length - x.shape[1]), value=fill.get(name, 0))
        for name, x in inputs.items()
    }


def trim_text(features: GlipTextFeatures, length: int) -> GlipTextFeatures:
    """The first `length` tokens of text features."""
    hidden, attentions = features.hidden_states, features.attentions
    return GlipTextFeatures(
        last_hidden_state=features.last_hidden_state[:, :length],
        attention_mask=features.attention_mask[:, :length],
        input_ids=None if features.input_ids is None else features.input_ids[:, :length],
        hidden_states=None if hidden is None else tuple(x[:, :length] for x in hidden),
        attentions=None if attentions is None else tuple(x[..., :length, :length] for x in attentions),
    )


def pad_text(features: GlipTextFeatures, length: int) -> GlipTextFeatures:
    """Text features [N, T, E] as [N, length, E], zero and masked beyond T: no real token sees what stands there."""
    more = max(0, length - features.last_hidden_state.shape[1])
    ids = features.input_ids
    return GlipTextFeatures(
        last_hidden_state=nn.functional.pad(features.last_hidden_state, (0, 0, 0, more)),
        attention_mask=nn.functional.pad(features.attention_mask, (0, more)),
        input_ids=None if ids is None else nn.functional.pad(ids, (0, more)),
    )


def trim_outputs(outputs: Any, length: int) -> Any:
    """A `GlipModelOutput` as if its caption had been `length` tokens long."""
    outputs.text_last_hidden_state = outputs.text_last_hidden_state[:, :length]
    outputs.attention_mask = outputs.attention_mask[:, :length]
    if outputs.input_ids is not None:
        outputs.input_ids = outputs.input_ids[:, :length]
    if outputs.attentions is not None:
        outputs.attentions = tuple(x[..., :length] for x in outputs.attentions)
        outputs.text_attentions = tuple(x[:, :, :length] for x in outputs.text_attentions)
    return outputs


def encode_text_reference(model: Any, inputs: dict[str, Tensor | None], **kwargs: Any) -> GlipTextFeatures:
    """Captions one at a time, each padded to `max_text_length`; the features are trimmed to [N, T, E] again."""
    length = inputs["input_ids"].shape[1]
    config = model.config
    padded = pad_tokens(inputs, config.max_text_length, config.text_config.pad_token_id)
    return trim_text(one_by_one(model.get_text_features, padded, **kwargs), length)


def each_pair(
    model: Any,
    pixels: dict[str, Tensor | None],
    image_features: GlipImageFeatures | None,
    tokens: dict[str, Tensor | None],
    text_features: GlipTextFeatures | None,
    pictures: Tensor | None,
    captions: Tensor | None,
) -> Iterator[tuple[GlipImageFeatures, GlipTextFeatures]]:
    """Features of one picture and one full-length caption, pair after pair, encoded anew for each.

    Args:
        model: a `GlipModel`.
        pixels: `pixel_values` and `pixel_mask`, used where `image_features` is None. Features that are given are used.
        tokens: `input_ids`, `attention_mask`, `token_type_ids`, used where `text_features` is None.
        pictures, captions: see `pairing_glip.pair_captions`.

    Raises:
        ValueError: for captions longer than `max_text_length`.
    """
    config = model.config
    num_pictures = len(pixels["pixel_values"] if image_features is None else image_features.last_hidden_state)
    words = tokens["input_ids"] if text_features is None else text_features.last_hidden_state
    if text_features is None and words.shape[1] <= config.max_text_length:
        tokens = pad_tokens(tokens, config.max_text_length, config.text_config.pad_token_id)
    order = zip(
        range(num_pictures) if pictures is None else pictures.tolist(),
        range(len(words)) if captions is None else captions.tolist(),
    )
    for picture, caption in order:
        if image_features is None:
            own = {name: None if x is None else x[picture : picture + 1] for name, x in pixels.items()}
            image = model.get_image_features(**own, return_dict=True)
        else:
            image = select(image_features, torch.tensor([picture]))
        if text_features is None:
            own = {name: None if x is None else x[caption : caption + 1] for name, x in tokens.items()}
            text = model.get_text_features(**own, return_dict=True)
        else:
            text = pad_text(select(text_features, torch.tensor([caption])), config.max_text_length)
        yield image, text


def is_one_pair(image_features: Any, text_features: Any, length: int) -> bool:
    """Whether features are at hand of one picture and one caption of full length: what the reference's head takes."""
    if image_features is None or text_features is None or len(image_features.last_hidden_state) > 1:
        return False
    return len(text_features.last_hidden_state) == 1 and text_features.last_hidden_state.shape[1] >= length


def pad_table(table: Tensor, attention_mask: Tensor) -> Tensor:
    """A prompt table [rows, E] grown by zeros to the padded caption, as long as it holds the real one."""
    more = attention_mask.shape[1] - len(table)
    if more <= 0 or int(attention_mask.sum(1).max()) > len(table):
        return table
    return nn.functional.pad(table, (0, 0, 0, more))


def model_reference(
    model: Any,
    pixels: dict[str, Tensor | None],
    image_features: GlipImageFeatures | None,
    tokens: dict[str, Tensor | None],
    text_features: GlipTextFeatures | None,
    image_indices: Tensor | None,
    **options: Any,
) -> Any:
    """A `GlipModelOutput`, pair by pair; see `each_pair`."""
    first = pixels["pixel_values"] if image_features is None else image_features.last_hidden_state
    words = tokens["input_ids"] if text_features is None else text_features.last_hidden_state
    pictures, captions = pair_captions(len(first), len(words), image_indices, first.device)
    outputs = []
    for image, text in each_pair(model, pixels, image_features, tokens, text_features, pictures, captions):
        one = model(image_features=image, text_features=text, return_dict=True, **options)
        outputs.append(trim_outputs(one, words.shape[1]))
    return concatenate(outputs)


def predict_reference(
    model: Any, pairs: Iterator[tuple[GlipImageFeatures, GlipTextFeatures]], length: int, **options: Any
) -> tuple[list[tuple[int, int]], list[tuple[Any, dict[str, Tensor]]]]:
    """Levels' shapes, and outputs and predictions of a `GlipForGrounding` for each pair, at `length` tokens."""
    groups = []
    for image, text in pairs:
        outputs, predictions = model._predict(image, text, **options)
        predictions["logits"] = predictions["logits"][..., :length].contiguous()
        groups.append((trim_outputs(outputs, length), predictions))
    return [feature_map.shape[-2:] for feature_map in image.feature_maps], groups


# -- fusion ----------------------------------------------------------------------------------------


def fusion_reference(
    layer: Any, vision: Tensor, text: Tensor, text_mask: Tensor, output_attentions: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Section 5a of GLIP's specification as it stands; arguments and results of `GlipFusionLayer.forward`."""
    config = layer.config
    vision, text = layer.norm_vision(vision), layer.norm_text(text)
    clamp = config.clamp_value
    dropout = config.fusion_dropout if layer.training else 0.0

    def split(x: Tensor) -> Tensor:
        """[B, tokens, inner width] to [B, H, tokens, width of a head]."""
        return x.unflatten(-1, (config.fusion_heads, -1)).transpose(1, 2)

    def join(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    # Modules of the visual side hand out weight and bias when they are called.
    query = split(nn.functional.linear(vision, *layer.query_vision()))
    query = query * query.shape[-1] ** -0.5
    value_vision = split(nn.functional.linear(vision, *layer.value_vision()))
    key, value_text = split(layer.key_text(text)), split(layer.value_text(text))

    precision = torch.promote_types(vision.dtype, torch.float32)
    scores = (query @ key.transpose(2, 3)).clamp(-clamp, clamp)  # [B, H, A, T]
    sentence = scores.transpose(2, 3)
    sentence = (sentence - sentence.amax(-1, keepdim=True)).clamp(-clamp, clamp)
    sentence = sentence.softmax(-1, dtype=precision).to(vision.dtype)
    picture = scores.masked_fill(~text_mask[:, None, None], torch.finfo(scores.dtype).min)
    picture = picture.softmax(-1, dtype=precision).to(vision.dtype)

    vision_change = join(nn.functional.dropout(picture, dropout) @ value_text)
    vision_change = nn.functional.linear(vision_change, *layer.out_vision())
    text_change = layer.out_text(join(nn.functional.dropout(sentence, dropout) @ value_vision))
    return (
        vision + layer.gamma_vision * vision_change,
        text + layer.gamma_text * text_change,
        picture if output_attentions else None,
        sentence if output_attentions else None,
    )


# -- text layer ------------------------------------------------------------------------------------


def text_layer_reference(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """A BERT layer with scores and activations clamped; arguments and result of `GlipTextLayer.forward`."""
    own, out = layer.attention.self, layer.attention.output

    def clamp(x: Tensor) -> Tensor:
        return x.clamp(-layer.clamp_value, layer.clamp_value)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)

    query, key, value = (heads(linear(hidden_states)) for linear in (own.query, own.key, own.value))
    scores = clamp(query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    attended = own.dropout(scores.softmax(-1)) @ value
    attended = out.LayerNorm(out.dropout(out.dense(attended.transpose(1, 2).flatten(2))) + hidden_states)
    inner = clamp(layer.intermediate.intermediate_act_fn(clamp(layer.intermediate.dense(attended))))
    change = layer.output.dropout(layer.output.dense(inner))
    return clamp(layer.output.LayerNorm(clamp(change + attended)))


# -- DyConv ----------------------------------------------------------------------------------------


def deform_conv2d_reference(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Modulated deformable 3x3 convolution: every tap sampled by `grid_sample`, then one matrix product.

    Args:
        features: [B, C, H, W].
        offset: [B, 18, ...] of any size whose memory holds 18 * h * w values a sample, and is read as if it were
            [B, 18, h, w] (dy, dx of each tap): the size of another level makes no difference to GLIP.
        mask: [B, 9, ...], likewise.
        weight: [D, C, 3, 3]; bias: [D]; stride: 1 or 2.

    Returns:
        [B, D, h, w].
    """
    batch, channels, height, width = features.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    positions = out_height * out_width
    precision = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        moves = offset.reshape(batch, -1)[:, : 2 * TAPS * positions].to(precision)
        moves = moves.reshape(batch, TAPS, 2, out_height, out_width)
        modulation = mask.reshape(batch, -1)[:, : TAPS * positions].to(precision)
        modulation = modulation.reshape(batch, 1, TAPS * out_height, out_width)
        step = torch.arange(-1, 2, device=features.device, dtype=precision)
        row = torch.arange(out_height, device=features.device, dtype=precision)[:, None] * stride
        column = torch.arange(out_width, device=features.device, dtype=precision) * stride
        y = moves[:, :, 0] + row + step.repeat_interleave(3)[:, None, None]
        x = moves[:, :, 1] + column + step.repeat(3)[:, None, None]
        # Without aligned corners -1 is the left edge of cell 0, so the centre of cell x lies at (2x + 1) / W - 1.
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        columns = nn.functional.grid_sample(
            features.to(precision),
            grid.reshape(batch, TAPS * out_height, out_width, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        columns = (columns * modulation).reshape(batch, channels * TAPS, positions)
        out = weight.to(precision).flatten(1) @ columns + bias.to(precision)[:, None]
    return out.reshape(batch, -1, out_height, out_width).to(features.dtype)


def hard_sigmoid_reference(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def dyconv_reference(layer: Any, pyramid: list[Tensor]) -> list[Tensor]:
    """Section 5c of GLIP's specification as it stands: [B, D, H_i, W_i] of every level, finest first, to the same."""

    def convolve(branch: Any, x: Tensor, offset: Tensor, mask: Tensor, stride: int = 1) -> Tensor:
        return branch.norm(deform_conv2d_reference(x, offset, mask, branch.conv.weight, branch.conv.bias, stride))

    def attend(x: Tensor) -> Tensor:
        return x * hard_sigmoid_reference(layer.scale_attention(x.mean((2, 3), keepdim=True)).relu())

    outputs = []
    for i, level in enumerate(pyramid):
        moves = layer.offset_conv(level)
        offset, mask = moves[:, : 2 * TAPS], moves[:, 2 * TAPS :].sigmoid()
        candidates = [convolve(layer.conv_mid, level, offset, mask)]
        if i > 0:
            candidates.append(convolve(layer.conv_low, pyramid[i - 1], offset, mask, stride=2))
        if i < len(pyramid) - 1:
            high = convolve(layer.conv_high, pyramid[i + 1], offset, mask)
            size = level.shape[-2:]
            candidates.append(nn.functional.interpolate(high, size=size, mode="bilinear", align_corners=True))
        merged = torch.stack([attend(candidate) for candidate in candidates]).mean(0)

        relu = layer.dynamic_relu
        theta = hard_sigmoid_reference(relu.fc2(relu.fc1(merged.mean((2, 3))).relu()))
        slope1, offset1, slope2, offset2 = theta[..., None, None].chunk(4, dim=1)
        first = merged * ((slope1 - 0.5) * 2 + 1) + (offset1 - 0.5)
        second = merged * ((slope2 - 0.5) * 2) + (offset2 - 0.5)
        outputs.append(torch.maximum(first, second))
    return outputs


# -- Swin ------------------------------------------------------------------------------------------


def window_regions(height: int, width: int, window: int, shift: int) -> Tensor:
    """[height, width] int64: a number for each part of the shifted map that was one piece before the shift."""
    regions = torch.zeros(height, width, dtype=torch.int64)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            regions[rows, columns] = 3 * i + j
    return regions


def swin_layer_reference(layer: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """A Swin layer with its attention written out; argument and results of `GlipSwinLayer.forward`."""
    batch, height, width, channels = hidden_states.shape
    window, shift, attention = layer.window, layer.shift, layer.attention
    full_height, full_width = (-(-side // window) * window for side in (height, width))

    def partition(x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, windows, M * M, C]."""
        x = x.reshape(x.shape[0], full_height // window, window, full_width // window, window, -1)
        return x.transpose(2, 3).reshape(x.shape[0], -1, window * window, x.shape[-1])

    x = layer.layernorm_before(hidden_states)
    x = nn.functional.pad(x, (0, 0, 0, full_width - width, 0, full_height - height))
    if shift:
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
    x = partition(x)
    query, key, value = (
        linear(x).unflatten(-1, (attention.num_attention_heads, -1)).transpose(2, 3)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
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
    weights = scores.softmax(-1)
    rate = attention.attention_dropout if layer.training else 0.0
    x = (nn.functional.dropout(weights, rate) @ value).transpose(2, 3).flatten(3)
    x = attention.o_proj(x)

    x = x.reshape(batch, full_height // window, full_width // window, window, window, channels)
    x = x.transpose(2, 3).reshape(batch, full_height, full_width, channels)
    if shift:
        x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
    hidden_states = hidden_states + layer.drop_path(layer.dropout(x[:, :height, :width]))

    mlp = layer.mlp
    x = mlp.fc2(mlp.activation_fn(mlp.fc1(layer.layernorm_after(hidden_states))))
    return hidden_states + layer.drop_path(layer.dropout(x)), weights.flatten(0, 1)


__all__ = [
    "GlipReferenceMixin",
    "GlipReferencePart",
    "deform_conv2d_reference",
    "dyconv_reference",
    "fusion_reference",
    "set_reference_parts",
    "swin_layer_reference",
    "text_layer_reference",
]
