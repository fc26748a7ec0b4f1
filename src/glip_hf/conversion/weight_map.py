# Copyright 2026 The glip_hf authors. MIT licence.
"""Which tensor of an original GLIP checkpoint is which tensor of ours: one table, read both ways.

Placeholders: `{s}` Swin stage, `{i}` a running number (block, layer, level), `{p}` weight or bias.
In `dyhead_tower` the original counts modules, we count blocks: with deep fusion module 3i + slot
belongs to block i (slot 0 fusion, 1 text layer, 2 DyConv); without it module i is the DyConv of
block i.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shape = tuple[int, ...]


class WeightMapError(ValueError):
    """Keys or shapes that the table cannot account for; the message lists them."""


def relative_position_index(shape: Shape) -> Tensor:
    """Swin's index [W*W, W*W] int64 into the (2W-1)^2 relative offsets of a WxW window."""
    side = round(shape[0] ** 0.5)
    cell = torch.arange(side * side)
    y, x = cell // side, cell % side
    offset_y = y[:, None] - y[None, :] + side - 1
    offset_x = x[:, None] - x[None, :] + side - 1
    return offset_y * (2 * side - 1) + offset_x


def position_ids(shape: Shape) -> Tensor:
    """BERT's positions [1, P] int64: 0 .. P-1."""
    return torch.arange(shape[-1]).reshape(shape)


def cell_anchor(shape: Shape, level: int, scale: int = 8) -> Tensor:
    """The square anchor [1, 4] float32 (xyxy, "+1" convention) of a level's first cell; stride 8 *
    2^level.

    Centred on (stride - 1) / 2 with side `scale * stride` pixels, hence corners at centre -+ (side
    - 1) / 2.
    """
    stride = 8 * 2**level
    centre, reach = (stride - 1) / 2, (scale * stride - 1) / 2
    low, high = centre - reach, centre + reach
    return torch.tensor([[low, low, high, high]], dtype=torch.float32).reshape(shape)


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        original: key pattern in the original checkpoint.
        ours: key pattern(s) in `GlipForGrounding.state_dict()`; a tuple splits the original tensor
            by rows into equal parts, in this order; None drops it on purpose: a buffer that is
            recomputed (and checked).
        slot: place inside a fused tower block of three modules; None outside the tower.
        buffer: recomputes a dropped tensor from its shape and the numbers in its key.
    """

    original: str
    ours: str | tuple[str, ...] | None
    slot: int | None = None
    buffer: Callable[..., Tensor] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours or ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return _compile(self.original)

    @cached_property
    def target_patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_compile(target) for target in self.targets)


_PLACEHOLDERS = {"{s}": r"(?P<s>\d+)", "{i}": r"(?P<i>\d+)", "{p}": r"(?P<p>weight|bias)"}


def _compile(template: str) -> re.Pattern[str]:
    expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for placeholder, group in _PLACEHOLDERS.items():
        expression = expression.replace(placeholder, group)
    return re.compile(expression)


def _rows(original: str, ours: str, pairs: Iterable[tuple[str, str]], slot: int | None = None) -> list[Rule]:
    return [Rule(f"{original}.{left}", f"{ours}.{right}", slot) for left, right in pairs]


def _bert_layer(original: str, ours: str, slot: int | None = None) -> list[Rule]:
    names = (
        "attention.self.query.{p}",
        "attention.self.key.{p}",
        "attention.self.value.{p}",
        "attention.output.dense.{p}",
        "attention.output.LayerNorm.{p}",
        "intermediate.dense.{p}",
        "output.dense.{p}",
        "output.LayerNorm.{p}",
    )
    return _rows(original, ours, zip(names, names, strict=True), slot)


_SWIN, _OUR_SWIN = "backbone.body", "model.backbone.swin"
_STAGE, _OUR_STAGE = f"{_SWIN}.layers.{{s}}", f"{_OUR_SWIN}.encoder.layers.{{s}}"
_BLOCK, _OUR_BLOCK = f"{_STAGE}.blocks.{{i}}", f"{_OUR_STAGE}.blocks.{{i}}"
_BIAS_TABLE = "relative_position_bias_table"
_FPN = "backbone.fpn"
_BERT, _OUR_BERT = "language_backbone.body.model", "model.text_model"
_TOWER, _OUR_TOWER = "rpn.head.dyhead_tower.{i}", "model.tower.blocks.{i}"
FUSION, TEXT_LAYER, DYCONV = 0, 1, 2

# In the order in which the original writes its keys (`standard_order` relies on it).
TABLE: tuple[Rule, ...] = (
    # Swin
    Rule(
        f"{_SWIN}.patch_embed.proj.{{p}}",
        f"{_OUR_SWIN}.embeddings.patch_embeddings.projection.{{p}}",
    ),
    Rule(f"{_SWIN}.patch_embed.norm.{{p}}", f"{_OUR_SWIN}.embeddings.norm.{{p}}"),
    Rule(f"{_BLOCK}.norm1.{{p}}", f"{_OUR_BLOCK}.layernorm_before.{{p}}"),
    Rule(
        f"{_BLOCK}.attn.{_BIAS_TABLE}",
        f"{_OUR_BLOCK}.attention.relative_position_bias.{_BIAS_TABLE}",
    ),
    Rule(f"{_BLOCK}.attn.relative_position_index", None, buffer=relative_position_index),
    Rule(
        f"{_BLOCK}.attn.qkv.{{p}}",
        tuple(f"{_OUR_BLOCK}.attention.{part}_proj.{{p}}" for part in "qkv"),
    ),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_OUR_BLOCK}.attention.o_proj.{{p}}"),
    Rule(f"{_BLOCK}.norm2.{{p}}", f"{_OUR_BLOCK}.layernorm_after.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_OUR_BLOCK}.mlp.fc1.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_OUR_BLOCK}.mlp.fc2.{{p}}"),
    Rule(f"{_STAGE}.downsample.reduction.weight", f"{_OUR_STAGE}.downsample.reduction.weight"),
    Rule(f"{_STAGE}.downsample.norm.{{p}}", f"{_OUR_STAGE}.downsample.norm.{{p}}"),
    *_rows(
        _SWIN,
        "model.backbone.hidden_states_norms",
        [(f"norm{k}.{{p}}", f"stage{k + 1}.{{p}}") for k in (1, 2, 3)],
    ),
    # Pyramid
    *_rows(
        _FPN,
        "model.neck",
        [
            row
            for k in (2, 3, 4)
            for row in (
                (f"fpn_inner{k}.{{p}}", f"lateral_convs.{k - 2}.{{p}}"),
                (f"fpn_layer{k}.{{p}}", f"output_convs.{k - 2}.{{p}}"),
            )
        ],
    ),
    Rule(f"{_FPN}.top_blocks.p6.{{p}}", "model.neck.p6_conv.{p}"),
    Rule(f"{_FPN}.top_blocks.p7.{{p}}", "model.neck.p7_conv.{p}"),
    # BERT
    Rule(f"{_BERT}.embeddings.position_ids", None, buffer=position_ids),
    *_rows(
        f"{_BERT}.embeddings",
        f"{_OUR_BERT}.embeddings",
        [
            (name, name)
            for name in (
                "word_embeddings.weight",
                "position_embeddings.weight",
                "token_type_embeddings.weight",
                "LayerNorm.{p}",
            )
        ],
    ),
    *_bert_layer(f"{_BERT}.encoder.layer.{{i}}", f"{_OUR_BERT}.encoder.layer.{{i}}"),
    # Head
    Rule("rpn.head.log_scale", "head.log_scale"),
    Rule("rpn.head.bias_lang", "head.bias_lang"),
    Rule("rpn.head.bias0", "head.bias0"),
    *_rows(
        f"{_TOWER}.b_attn",
        f"{_OUR_TOWER}.fusion",
        [
            ("gamma_v", "gamma_vision"),
            ("gamma_l", "gamma_text"),
            ("layer_norm_v.{p}", "norm_vision.{p}"),
            ("layer_norm_l.{p}", "norm_text.{p}"),
            ("attn.v_proj.{p}", "query_vision.{p}"),
            ("attn.l_proj.{p}", "key_text.{p}"),
            ("attn.values_v_proj.{p}", "value_vision.{p}"),
            ("attn.values_l_proj.{p}", "value_text.{p}"),
            ("attn.out_v_proj.{p}", "out_vision.{p}"),
            ("attn.out_l_proj.{p}", "out_text.{p}"),
        ],
        FUSION,
    ),
    *_bert_layer(_TOWER, f"{_OUR_TOWER}.text_layer", TEXT_LAYER),
    *_rows(
        _TOWER,
        f"{_OUR_TOWER}.dyconv",
        [
            row
            for number, branch in enumerate(("high", "mid", "low"))
            for row in (
                (f"DyConv.{number}.conv.{{p}}", f"conv_{branch}.conv.{{p}}"),
                (f"DyConv.{number}.bn.{{p}}", f"conv_{branch}.norm.{{p}}"),
            )
        ]
        + [
            ("AttnConv.1.{p}", "scale_attention.{p}"),
            ("relu.fc.0.{p}", "dynamic_relu.fc1.{p}"),
            ("relu.fc.2.{p}", "dynamic_relu.fc2.{p}"),
            ("offset.{p}", "offset_conv.{p}"),
        ],
        DYCONV,
    ),
    Rule("rpn.head.cls_logits.{p}", "head.class_logits.{p}"),
    Rule("rpn.head.bbox_pred.{p}", "head.bbox_pred.{p}"),
    Rule("rpn.head.centerness.{p}", "head.centerness.{p}"),
    Rule("rpn.head.dot_product_projection_text.{p}", "head.text_projection.{p}"),
    Rule("rpn.head.scales.{i}.scale", "head.level_scales.{i}"),
    Rule("rpn.anchor_generator.cell_anchors.{i}", None, buffer=cell_anchor),
    # Prompt tuning; in no released checkpoint
    Rule("rpn.tunable_linear.weight", "model.prompt_table"),
)


def is_fused(keys: Iterable[str]) -> bool:
    """Whether these original keys are those of a model with deep fusion (anything but GLIP-A)."""
    return any(".b_attn." in key for key in keys)


@dataclass(frozen=True)
class Match:
    """Where an original tensor goes: rule, our keys (none if dropped), number in its key."""

    rule: Rule
    ours: tuple[str, ...]
    index: int | None

    def recompute(self, shape: Shape, anchor_scale: int = 8) -> Tensor:
        """The dropped buffer's true value."""
        if self.rule.buffer is None:
            raise WeightMapError(f"{self.rule.original} is not a buffer that can be recomputed.")
        if self.rule.buffer is cell_anchor:
            return cell_anchor(shape, self.index or 0, anchor_scale)
        return self.rule.buffer(shape)


def _fill(template: str, groups: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w)\}", lambda found: groups[found[1]], template)


def match_original(key: str, fused: bool) -> Match | None:
    """Looks an original key up; None if the table does not know it, or not at this place."""
    for rule in TABLE:
        found = rule.pattern.fullmatch(key)
        if found is None:
            continue
        groups = found.groupdict()
        index = int(groups["i"]) if "i" in groups else None
        if rule.slot is not None:
            if not fused and rule.slot != DYCONV:
                continue
            if fused and index % 3 != rule.slot:
                continue
            index = index // 3 if fused else index
            groups["i"] = str(index)
        return Match(rule, tuple(_fill(target, groups) for target in rule.targets), index)
    return None


def is_buffer(key: str) -> bool:
    """Whether an original key is one of the buffers that are dropped and recomputed."""
    return any(rule.buffer is not None and rule.pattern.fullmatch(key) for rule in TABLE)


def match_ours(key: str, fused: bool) -> tuple[Rule, str, int] | None:
    """Looks one of our keys up: (rule, original key, which row block of it this is)."""
    for rule in TABLE:
        for part, pattern in enumerate(rule.target_patterns):
            found = pattern.fullmatch(key)
            if found is None:
                continue
            groups = found.groupdict()
            if rule.slot is not None:
                if not fused and rule.slot != DYCONV:
                    continue
                groups["i"] = str(3 * int(groups["i"]) + rule.slot if fused else int(groups["i"]))
            return rule, _fill(rule.original, groups), part
    return None


def _sibling_order() -> dict[tuple[str, ...], dict[str, int]]:
    """Order of the children under each module of the original, numbers folded to '#'."""
    order: dict[tuple[str, ...], dict[str, int]] = {}
    for rule in TABLE:
        for suffix in ("weight", "bias"):
            path: tuple[str, ...] = ()
            for part in re.sub(r"\{[si]\}", "#", rule.original).replace("{p}", suffix).split("."):
                children = order.setdefault(path, {})
                children.setdefault(part, len(children))
                path = (*path, part)
    return order


_SIBLINGS = _sibling_order()


def standard_order(keys: Iterable[str]) -> list[str]:
    """Original keys in the order in which the original's `state_dict()` lists them.

    That order is a walk over the module tree: numbered children by number, named ones as `TABLE`
    lists them.
    """

    def rank(key: str) -> tuple[int, ...]:
        path: tuple[str, ...] = ()
        ranks = []
        for part in key.split("."):
            children = _SIBLINGS.get(path, {})
            step = part if part in children else "#"
            # A literal number in the table (DyConv.0) ranks by its value as well.
            ranks.append(int(part) if part.isdigit() else children[step])
            path = (*path, step)
        return tuple(ranks)

    return sorted(keys, key=rank)


def _listing(title: str, lines: Iterable[str]) -> str:
    lines = list(lines)
    shown = lines[:40] + ([f"... and {len(lines) - 40} more"] if len(lines) > 40 else [])
    return "\n  ".join([f"{title} ({len(lines)}):", *shown])


def to_ours(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts an original state dict (no `module.` prefix) to our keys.

    Dropped buffers are left out; their values are not looked at (see `differing_buffers`). Split
    tensors are views of the given ones.

    Raises:
        WeightMapError: with the list of keys that the table does not know, or of tensors that
            cannot be split.
    """
    fused = is_fused(original)
    converted: dict[str, Tensor] = {}
    unmatched: list[str] = []
    for key, tensor in original.items():
        match = match_original(key, fused)
        if match is None:
            unmatched.append(f"{key} {list(tensor.shape)}")
            continue
        parts = len(match.ours)
        if parts > 1 and (tensor.dim() == 0 or tensor.shape[0] % parts):
            raise WeightMapError(f"{key} {list(tensor.shape)} does not split into {parts} equal row blocks.")
        converted.update(zip(match.ours, tensor.chunk(parts) if parts > 1 else [tensor] * parts, strict=True))
    if unmatched:
        raise WeightMapError(_listing("Keys of the checkpoint that have no place in GLIP's layout", unmatched))
    return converted


def differing_buffers(original: Mapping[str, Tensor], anchor_scale: int = 8) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (key, stored, true) for every dropped buffer whose stored value is not the true."""
    fused = is_fused(original)
    for key, stored in original.items():
        match = match_original(key, fused)
        if match is None or match.rule.buffer is None:
            continue
        try:
            true = match.recompute(tuple(stored.shape), anchor_scale).to(stored.dtype)
        except RuntimeError as error:  # e.g. an anchor that is not [1, 4]
            raise WeightMapError(f"{key} has the impossible shape {list(stored.shape)}.") from error
        if true.shape != stored.shape or not torch.equal(true, stored):
            yield key, stored, true


def original_buffers(ours: Mapping[str, Tensor], anchor_scale: int = 8) -> dict[str, Tensor]:
    """The buffers the original stores beside these tensors of ours (int64; anchors float32)."""
    fused = _is_ours_fused(ours)
    buffers: dict[str, Tensor] = {}
    for key, tensor in ours.items():
        matched = match_ours(key, fused)
        original = matched[1] if matched else None
        if original is None:
            continue
        if original.endswith(f".{_BIAS_TABLE}"):
            side = (round(tensor.shape[0] ** 0.5) + 1) // 2
            name = original.removesuffix(_BIAS_TABLE) + "relative_position_index"
            buffers[name] = relative_position_index((side * side, side * side))
        elif original.endswith("embeddings.position_embeddings.weight"):
            name = original.replace("position_embeddings.weight", "position_ids")
            buffers[name] = position_ids((1, tensor.shape[0]))
        elif (level := re.fullmatch(r"rpn\.head\.scales\.(\d+)\.scale", original)) is not None:
            anchor = cell_anchor((1, 4), int(level[1]), anchor_scale)
            buffers[f"rpn.anchor_generator.cell_anchors.{level[1]}"] = anchor
    return buffers


def _is_ours_fused(keys: Iterable[str]) -> bool:
    return any(key.startswith("model.tower.") and ".fusion." in key for key in keys)


def to_original(ours: Mapping[str, Tensor], anchor_scale: int = 8) -> dict[str, Tensor]:
    """Converts our state dict to the original's keys, buffers included, in the original's order.

    Raises:
        WeightMapError: with the list of our keys that the table does not know, or of incomplete
            q/k/v groups.
    """
    fused = _is_ours_fused(ours)
    groups: dict[str, dict[int, Tensor]] = {}
    sizes: dict[str, int] = {}
    unmatched: list[str] = []
    for key, tensor in ours.items():
        matched = match_ours(key, fused)
        if matched is None:
            unmatched.append(f"{key} {list(tensor.shape)}")
            continue
        rule, original, part = matched
        groups.setdefault(original, {})[part] = tensor
        sizes[original] = len(rule.targets)
    if unmatched:
        raise WeightMapError(_listing("Keys of this model that GLIP's original layout has no place for", unmatched))
    incomplete = [key for key, parts in groups.items() if len(parts) != sizes[key]]
    if incomplete:
        raise WeightMapError(_listing("Tensors of which q, k or v is missing", incomplete))
    restored = {
        key: torch.cat([parts[number] for number in range(sizes[key])]) if sizes[key] > 1 else parts[0]
        for key, parts in groups.items()
    }
    restored.update(original_buffers(ours, anchor_scale))
    return {key: restored[key] for key in standard_order(restored)}


__all__ = [
    "TABLE",
    "Match",
    "Rule",
    "WeightMapError",
    "cell_anchor",
    "differing_buffers",
    "is_buffer",
    "is_fused",
    "match_original",
    "match_ours",
    "original_buffers",
    "position_ids",
    "relative_position_index",
    "standard_order",
    "to_original",
    "to_ours",
]
