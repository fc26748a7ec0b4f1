# Copyright 2026 The glip_hf authors. MIT licence.
"""Which tensor of an original GLIP checkpoint is which tensor of ours: one table, `weight_map.txt`, read both ways.

A second one, `weight_map_mmdet.txt`, gives the names that mmdetection's GLIP has for the original's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..boxes_glip import make_anchors

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
    """The square anchor [1, 4] float32 (xyxy, "+1" convention) of a level's first cell."""
    return make_anchors([(1, 1)], [8 * 2**level], scale, "cpu").reshape(shape)


DYCONV = 2
# In `dyhead_tower` the original counts modules, we count blocks: with deep fusion module 3i + slot belongs to block i;
# without it module i is the DyConv of block i
_SLOTS = {"fusion": 0, "text_layer": 1, "dyconv": DYCONV}


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        original: key pattern in the original checkpoint.
        ours: key patterns in `GlipForGrounding.state_dict()`: several split the original tensor by rows into equal
            parts, in this order; none drops it.
        slot: position in a fused tower block of three modules; None outside the tower.
        merging: in mmdetection's table, input channels of patch merging, which `_reordered` puts in order.
    """

    original: str
    ours: tuple[str, ...]
    slot: int | None = None
    merging: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        return _compile(self.original)


@cache
def _compile(template: str) -> re.Pattern[str]:
    expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    groups = {"s": r"\d+", "i": r"\d+", "p": "weight|bias", "x": ".+"}
    return re.compile(re.sub(r"\{(\w)\}", lambda found: f"(?P<{found[1]}>{groups[found[1]]})", expression))


def _fill(template: str, groups: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w)\}", lambda found: groups[found[1]], template)


def _read_table(name: str) -> Iterator[Rule]:
    original = ours = ""
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        columns = line.split()
        if not columns or columns[0] == "#":
            continue
        if columns[0].startswith("["):
            original, ours = columns[0].strip("["), columns[2].strip("]")
            continue
        if merging := columns[-1] == "~":
            columns.pop()
        targets = [] if columns[-1] == "-" else [f"{ours}.{columns[-1]}"]
        if "{qkv}" in columns[-1]:
            targets = [target.replace("{qkv}", part) for target in targets for part in "qkv"]
        yield Rule(f"{original}.{columns[0]}", tuple(targets), _SLOTS.get(ours.rpartition(".")[2]), merging)


# In the order in which the original writes its keys; `standard_order` relies on it
TABLE = tuple(_read_table("weight_map.txt"))
MMDET_TABLE = tuple(_read_table("weight_map_mmdet.txt"))  # its right side are mmdetection's names


def is_fused(keys: Iterable[str]) -> bool:
    """Whether keys, original or ours, are those of a model with deep fusion (anything but GLIP-A)."""
    return any(re.search(r"dyhead_tower\.\d+\.b_attn\.|tower\.blocks\.\d+\.fusion\.", key) for key in keys)


def match_original(key: str, fused: bool) -> tuple[Rule, tuple[str, ...]] | None:
    """Looks an original key up: (rule, our keys); None if no row has it, or not at this position of the tower."""
    for rule in TABLE:
        if (found := rule.pattern.fullmatch(key)) is None:
            continue
        groups = found.groupdict()
        if rule.slot is not None:
            block, slot = divmod(int(groups["i"]), 3) if fused else (groups["i"], DYCONV)
            if rule.slot != slot:
                continue
            groups["i"] = str(block)
        return rule, tuple(_fill(target, groups) for target in rule.ours)
    return None


def is_buffer(key: str) -> bool:
    """Whether an original key is one of the buffers that are dropped and recomputed."""
    return any(not rule.ours and rule.pattern.fullmatch(key) for rule in TABLE)


def match_ours(key: str, fused: bool) -> tuple[Rule, str, int] | None:
    """Looks one of our keys up: (rule, original key, which row block of it this is)."""
    for rule in TABLE:
        for part, target in enumerate(rule.ours):
            if (found := _compile(target).fullmatch(key)) is None or (rule.slot not in (None, DYCONV) and not fused):
                continue
            groups = found.groupdict()
            if rule.slot is not None and fused:
                groups["i"] = str(3 * int(groups["i"]) + rule.slot)
            return rule, _fill(rule.original, groups), part
    return None


def _positions() -> dict[tuple[str, ...], int]:
    """Position of every module and tensor of the original by its path, numbers folded to '#'."""
    positions: dict[tuple[str, ...], int] = {}
    for rule in TABLE:
        for suffix in ("weight", "bias"):
            path = tuple(re.sub(r"\{[si]\}", "#", rule.original).replace("{p}", suffix).split("."))
            for depth in range(len(path)):
                positions.setdefault(path[: depth + 1], len(positions))
    return positions


_POSITIONS = _positions()


def standard_order(keys: Iterable[str]) -> list[str]:
    """Original keys in the order in which the original's `state_dict()` lists them.

    That order is a walk over the module tree: numbered children by number, named ones as `TABLE` lists them.
    """

    def rank(key: str) -> list[int]:
        path: tuple[str, ...] = ()
        ranks = []
        for part in key.split("."):
            path = (*path, part if (*path, part) in _POSITIONS else "#")
            # A literal number in the table (DyConv.0) ranks by its value as well.
            ranks.append(int(part) if part.isdigit() else _POSITIONS[path])
        return ranks

    return sorted(keys, key=rank)


def _refuse(lines: list[str], title: str) -> None:
    """Raise a `WeightMapError` that lists these keys, if there are any."""
    if lines:
        shown = lines[:40] + ([f"... and {len(lines) - 40} more"] if len(lines) > 40 else [])
        raise WeightMapError("\n  ".join([f"{title} ({len(lines)}):", *shown]))


def to_ours(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts an original state dict (no `module.` prefix) to our keys.

    Dropped buffers are left out; their values are not looked at (see `differing_buffers`). Split tensors are views of
    the given ones. A WeightMapError lists keys that the table does not know, or names what cannot be split.
    """
    fused = is_fused(original)
    converted: dict[str, Tensor] = {}
    unmatched: list[str] = []
    for key, tensor in original.items():
        if (match := match_original(key, fused)) is None:
            unmatched.append(f"{key} {list(tensor.shape)}")
            continue
        ours = match[1]
        parts = len(ours)
        if parts > 1 and (tensor.dim() == 0 or tensor.shape[0] % parts):
            raise WeightMapError(f"{key} {list(tensor.shape)} does not split into {parts} equal row blocks.")
        converted.update(zip(ours, tensor.chunk(parts) if parts > 1 else [tensor] * parts, strict=True))
    _refuse(unmatched, "Keys of the checkpoint that have no place in GLIP's layout")
    return converted


def differing_buffers(original: Mapping[str, Tensor], anchor_scale: int = 8) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (key, stored, true) for every dropped buffer whose stored value is not the true one."""
    for key, stored in original.items():
        if not is_buffer(key):
            continue
        try:
            true = _true_buffer(key, tuple(stored.shape), anchor_scale).to(stored.dtype)
        except RuntimeError as error:  # e.g. an anchor that is not [1, 4]
            raise WeightMapError(f"{key} has the impossible shape {list(stored.shape)}.") from error
        if true.shape != stored.shape or not torch.equal(true, stored):
            yield key, stored, true


def _true_buffer(key: str, shape: Shape, anchor_scale: int) -> Tensor:
    if key.endswith(".relative_position_index"):
        return relative_position_index(shape)
    if key.endswith(".position_ids"):
        return position_ids(shape)
    return cell_anchor(shape, int(key.rpartition(".")[2]), anchor_scale)


def to_original(ours: Mapping[str, Tensor], anchor_scale: int = 8) -> dict[str, Tensor]:
    """Converts our state dict to the original's keys, buffers included, in the original's order; a WeightMapError lists
    our keys that the table does not know, or incomplete q/k/v groups."""
    fused = is_fused(ours)
    groups: dict[str, list[Tensor | None]] = {}
    unmatched: list[str] = []
    for key, tensor in ours.items():
        if (match := match_ours(key, fused)) is None:
            unmatched.append(f"{key} {list(tensor.shape)}")
            continue
        rule, original, part = match
        groups.setdefault(original, [None] * len(rule.ours))[part] = tensor
    _refuse(unmatched, "Keys of this model that GLIP's original layout has no place for")
    incomplete = [key for key, parts in groups.items() if any(part is None for part in parts)]
    _refuse(incomplete, "Tensors of which q, k or v is missing")
    restored = {key: torch.cat(parts) if len(parts) > 1 else parts[0] for key, parts in groups.items()}
    restored |= _original_buffers(restored, anchor_scale)
    return {key: restored[key] for key in standard_order(restored)}


def _original_buffers(original: Mapping[str, Tensor], anchor_scale: int) -> dict[str, Tensor]:
    """The buffers that the original stores beside these tensors of its own (int64; anchors float32)."""
    shapes: dict[str, Shape] = {}
    for key, tensor in original.items():
        if key.endswith(".relative_position_bias_table"):
            area = ((round(tensor.shape[0] ** 0.5) + 1) // 2) ** 2
            shapes[key.replace("position_bias_table", "position_index")] = (area, area)
        elif key.endswith(".position_embeddings.weight"):
            shapes[key.replace("position_embeddings.weight", "position_ids")] = (1, tensor.shape[0])
        elif level := re.fullmatch(r"rpn\.head\.scales\.(\d+)\.scale", key):
            shapes[f"rpn.anchor_generator.cell_anchors.{level[1]}"] = (1, 4)
    return {key: _true_buffer(key, shape, anchor_scale) for key, shape in shapes.items()}


def _reordered(tensor: Tensor, back: bool) -> Tensor:
    """Input channels of patch merging from the original's order to mmdetection's, or `back`. [..., 4 C] -> [..., 4 C].

    The original concatenates four feature maps of C channels, of the (even, even), (odd, even), (even, odd) and
    (odd, odd) rows and columns; mmdetection unfolds windows of 2x2: four values of each channel, row by row.
    """
    if not tensor.dim() or tensor.shape[-1] % 4:
        return tensor  # of a shape that will be refused
    order = [0, 2, 1, 3]
    if back:
        return tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., order, :].flatten(-2)
    return tensor.unflatten(-1, (4, -1))[..., order, :].transpose(-1, -2).flatten(-2)


def from_mmdet(key: str, tensor: Tensor) -> tuple[str, Tensor] | None:
    """The original's name and tensor of one of mmdetection's, None if its GLIP has none of that name."""
    for rule in MMDET_TABLE:
        for name in rule.ours:
            if found := _compile(name).fullmatch(key):
                return _fill(rule.original, found.groupdict()), _reordered(tensor, True) if rule.merging else tensor
    return None


def mmdet_name(key: str) -> str | None:
    """mmdetection's name of an original key, None if its GLIP has no such tensor."""
    return next(iter(to_mmdet({key: torch.empty(0)})), None)


def to_mmdet(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An original state dict with mmdetection's names, in the same order; anchors and class logits are left out."""
    state = {}
    for key, tensor in original.items():
        for rule in MMDET_TABLE:
            if found := rule.pattern.fullmatch(key):
                value = _reordered(tensor, False) if rule.merging else tensor
                state |= {_fill(name, found.groupdict()): value for name in rule.ours}
                break
    return state
