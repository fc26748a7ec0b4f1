# Copyright 2026 The glip_hf authors. MIT licence.
"""Whose file a checkpoint is: the original's or mmdetection's GLIP, one inside a fork, or another model altogether."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from .checkpoint import Checkpoint, shorten
from .weight_map import from_mmdet, is_fused, match_original, mmdet_name

# Layout -> what only its GLIP's keys hold
MARKERS = {"original": "rpn.head.dyhead_tower.", "mmdet": "bbox_head.head.dyhead_tower."}
LAYOUT_NAMES = {"original": "the original's layout", "mmdet": "mmdetection's layout"}

# Pattern at the beginning of some key, what such a file holds, the class of Transformers that loads such models
OTHERS: tuple[tuple[str, str, str | None], ...] = (
    (r"model\.tower\.blocks\.", "a GLIP that is converted already", "GlipForGrounding"),
    (r"model\.encoder\.layers\.\d+\.fusion_layer\.", "Grounding DINO", "AutoModelForZeroShotObjectDetection"),
    (r"transformer\.encoder\.fusion_layers\.", "Grounding DINO in IDEA's layout", "GroundingDinoForObjectDetection"),
    (r"bbox_head\.cls_branches\.\d+\.bias$", "MM-Grounding-DINO", "MMGroundingDinoForObjectDetection"),
    (r"text_feat_map\.", "Grounding DINO in mmdetection's layout", "GroundingDinoForObjectDetection"),
    (r"panoptic_head\.", "mmdetection's Mask2Former or MaskFormer", "Mask2FormerForUniversalSegmentation"),
    (r"(en|de)coder\..*sampling_offsets\.", "Deformable DETR or DINO", "DeformableDetrForObjectDetection"),
    (r"bbox_head\.fc_reg\.|transformer\.decoder\.", "DETR or one of its kin", "DetrForObjectDetection"),
    (r"roi_heads?\.", "a two-stage detector, of the kind of Faster R-CNN", None),
    (r"(bbox|rpn|mask)_head\.", "another detector of mmdetection", None),
)


class LayoutError(ValueError):
    """The file holds another model, two models, or what `--ignore` must not leave out."""


def locate(checkpoint: Checkpoint, ignore: Collection[str] = ()) -> Checkpoint:
    """The GLIP in a checkpoint: its tensors with the original's keys; what is not GLIP's is in `foreign`.

    `ignore` are patterns (`fnmatch`) of keys to leave out; the prefix `module.` of all keys is not part of them. A
    LayoutError if there is no GLIP in it, or two; or if a pattern matches no key, or a GLIP's own.
    """
    path, matching = checkpoint.path, {pattern: [] for pattern in ignore}
    kept = {}
    for key, tensor in checkpoint.tensors.items():
        patterns = [pattern for pattern in matching if fnmatchcase(key, pattern)]
        for pattern in patterns:
            matching[pattern].append(key)
        if not patterns:
            kept[key] = tensor
    for pattern, keys in matching.items():
        if not keys:
            raise LayoutError(
                f"{path}: --ignore {pattern!r} matches no key; keys are {shorten(checkpoint.tensors, 5)}."
            )
    if not _places(rest := kept):
        rest = checkpoint.tensors  # to tell what was left out too much
    if not (places := _places(rest)):
        _refuse_other(checkpoint)
    if len(places) > 1:
        found = ", ".join(f"{prefix or 'no prefix'} ({LAYOUT_NAMES[layout]})" for layout, prefix in sorted(places))
        raise LayoutError(f"{path} holds more than one GLIP, under {found}: leave out all but one, --ignore 'PREFIX*'.")
    layout, wrapper = next(iter(places), ("original", ""))
    fused = is_fused(rest)

    def split(keys: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
        """GLIP's own of these keys of the file, with the original's names, and the others."""
        own, foreign = {}, []
        for key in keys:
            name, tensor = key.removeprefix(wrapper), checkpoint.tensors[key]
            renamed = from_mmdet(name, tensor) if layout == "mmdet" else (name, tensor)
            if renamed is None or not key.startswith(wrapper) or match_original(renamed[0], fused) is None:
                foreign.append(key)
            else:
                own[renamed[0]] = renamed[1]
        return own, foreign

    for pattern, keys in matching.items():
        if own := split(keys)[0]:
            raise LayoutError(f"{path}: --ignore {pattern!r} matches {shorten(own, 3)}, which GLIP cannot do without.")
    tensors, foreign = split(kept)
    return replace(
        checkpoint,
        tensors=tensors,
        prefix=checkpoint.prefix + wrapper,
        layout=layout,
        foreign={key: tuple(checkpoint.tensors[key].shape) for key in foreign},
        remedy=_ignoring(foreign, kept.keys() - set(foreign)),
        ignored=tuple(key for key in checkpoint.tensors if key not in kept),
    )


def _places(keys: Iterable[str]) -> set[tuple[str, str]]:
    """(layout, prefix) of every GLIP whose tower is among these keys."""
    places = set()
    for key in keys:
        for layout, marker in MARKERS.items():
            prefix, found, _ = key.partition(marker)
            if found and (not prefix or prefix.endswith(".")):
                places.add((layout, prefix))
    return places


def _refuse_other(checkpoint: Checkpoint) -> None:
    """Raise a `LayoutError` that says which other model this is, if it is one of `OTHERS`."""
    for pattern, name, loader in OTHERS:
        key = next((key for key in checkpoint.tensors if re.match(pattern, key)), None)
        if key is None:
            continue
        remedy = f"in Transformers such models are {loader}" if loader else "Transformers has no class for such models"
        if loader == "GlipForGrounding":
            raise LayoutError(
                f"{checkpoint.path} holds {name}: use its directory as a model, or write that back (--to)."
            )
        raise LayoutError(f"{checkpoint.path} holds {name}, not a GLIP (it has {key:.100}): {remedy}.")


def _ignoring(foreign: Collection[str], own: Iterable[str]) -> str:
    """The options of `glip convert` that leave foreign keys out.

    A pattern ends behind the first part of a name with which no key of GLIP's own begins.
    """
    parents = {key.rsplit(".", depth)[0] for key in own for depth in range(1, key.count(".") + 1)}
    patterns = {}
    for key in foreign:
        parts = key.split(".")
        starts = (".".join(parts[:end]) for end in range(1, min(len(parts), 12)))
        start = next((start for start in starts if start not in parents), None)
        patterns[key if start is None else f"{start}.*"] = True
    return " ".join(f"--ignore '{pattern}'" for pattern in patterns)


def in_file(message: str, layout: str) -> str:
    """A message about original keys, with the names that a file of this layout has for them."""
    if layout == "original":
        return message
    return re.sub(
        r"\b(backbone|language_backbone|rpn)(\.\w+)+", lambda found: mmdet_name(found[0]) or found[0], message
    )
