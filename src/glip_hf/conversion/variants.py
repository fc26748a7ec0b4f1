# Copyright 2026 The glip_hf authors. MIT licence.
"""Which GLIP a checkpoint is: recognised by keys and shapes, and described by a config where these do not suffice."""

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..configuration_glip import PRESETS, GlipConfig
from ..modeling_glip import GlipForGrounding
from .weight_map import Shape, is_buffer, is_fused, to_original

# Released architectures and their checkpoints; the first is the preset that is used
FAMILIES: dict[str, tuple[str, ...]] = {
    "GLIP-A (tiny, no fusion)": ("glip_a_tiny_o365",),
    "GLIP-T": tuple(name for name in PRESETS if name.startswith("glip_tiny_model")),
    "GLIP-L": tuple(name for name in PRESETS if name.startswith("glip_large_model")),
}


class VariantError(ValueError):
    """The architecture cannot be recognised, or the given config contradicts the tensors."""


def infer_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every field of `GlipConfig` that the shapes of an original checkpoint determine, sub-configs as nested dicts.
    Anchors, being stored values, give `anchor_scale`. A VariantError names the tensor that every GLIP has and that is
    missing or has another number of dimensions."""

    def shape(key: str, dimensions: int = 2) -> tuple[int, ...]:
        if key not in tensors:
            names = list(tensors)
            held = f"{len(names)} tensors, from {names[0]} to {names[-1]}" if names else "no tensors"
            raise VariantError(f"This is not a GLIP checkpoint: it has no tensor {key}. It has {held}.")
        sizes = tuple(tensors[key].shape)
        if len(sizes) != dimensions or 0 in sizes:
            raise VariantError(f"This is not a GLIP checkpoint: {key} is {list(sizes)}, not {dimensions}-dimensional.")
        return sizes

    def number_of(template: str) -> int:
        return next(number for number in count() if template.format(number) not in tensors)

    swin, bert, head = "backbone.body", "language_backbone.body.model", "rpn.head"
    fused = is_fused(tensors)
    patches = shape(f"{swin}.patch_embed.proj.weight", 4)
    block = f"{swin}.layers.{{}}.blocks.{{}}"
    stages = max(1, number_of(f"{swin}.layers.{{}}.blocks.0.norm1.weight"))  # of none, the first is reported
    tables = [shape(f"{block.format(stage, 0)}.attn.relative_position_bias_table") for stage in range(stages)]
    vocabulary = shape(f"{bert}.embeddings.word_embeddings.weight")
    mlp = shape(f"{block.format(0, 0)}.mlp.fc1.weight")
    slots, dyconv = (3, 2) if fused else (1, 0)
    towers = (f"{head}.dyhead_tower.{slots * number + dyconv}.offset.weight" for number in count())
    channels = shape("backbone.fpn.fpn_inner2.weight", 4)[0]
    relu = shape(f"{head}.dyhead_tower.{dyconv}.relu.fc.0.weight")
    logits, prompts = f"{head}.cls_logits.weight", "rpn.tunable_linear.weight"
    fields: dict[str, Any] = {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": patches[0],
            "num_channels": patches[1],
            "patch_size": patches[2],
            "depths": [number_of(f"{swin}.layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(stages)],
            "num_heads": [table[1] for table in tables],
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
            "mlp_ratio": mlp[0] / mlp[1],
            "qkv_bias": f"{block.format(0, 0)}.attn.qkv.bias" in tensors,
            "out_indices": [2, 3, 4],
        },
        "text_config": {
            "model_type": "bert",
            "vocab_size": vocabulary[0],
            "hidden_size": vocabulary[1],
            "num_hidden_layers": number_of(f"{bert}.encoder.layer.{{}}.output.dense.weight"),
            "intermediate_size": shape(f"{bert}.encoder.layer.0.intermediate.dense.weight")[0],
            "max_position_embeddings": shape(f"{bert}.embeddings.position_embeddings.weight")[0],
            "type_vocab_size": shape(f"{bert}.embeddings.token_type_embeddings.weight")[0],
        },
        "d_model": channels,
        "num_blocks": next(number for number, key in enumerate(towers) if key not in tensors),
        "use_fusion": fused,
        "dynamic_relu_reduction": channels // max(relu[0], 1),
        "num_class_channels": shape(logits, 4)[0] if logits in tensors else 0,
        "prompt_table_length": shape(prompts)[0] if prompts in tensors else 0,
    }
    if fused:
        fields["fusion_hidden_size"] = shape(f"{head}.dyhead_tower.0.b_attn.attn.v_proj.weight")[0]
    anchor = tensors.get("rpn.anchor_generator.cell_anchors.0")
    if anchor is not None and anchor.device.type != "meta" and anchor.numel() == 4:
        low, _, high, _ = anchor.flatten().tolist()
        fields["anchor_scale"] = round((high - low + 1) / 8)
    return fields


def _differences(fields: Mapping[str, Any], config: GlipConfig) -> list[str]:
    """Fields of `config` that contradict those inferred from the shapes, a line for each."""
    lines = []
    for name, value in fields.items():
        nested, section = (value, getattr(config, name)) if isinstance(value, dict) else ({name: value}, config)
        for key, inferred in nested.items():
            given = getattr(section, key, None)
            if key == "patch_size" and isinstance(given, list | tuple):
                continue
            if inferred != (list(given) if isinstance(given, tuple) else given):
                path = key if section is config else f"{name}.{key}"
                lines.append(f"{path}: the tensors say {inferred}, the config says {given}")
    return lines


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """The released architecture (a key of `FAMILIES`) that these tensors have, or None."""
    fields = infer_fields(tensors)
    return next((family for family in FAMILIES if not _differences(fields, _preset(family, fields))), None)


def _preset(family: str, fields: Mapping[str, Any]) -> GlipConfig:
    """The family's config; a file may lack the unused classification layer, or have a prompt table."""
    own = {name: fields[name] for name in ("num_class_channels", "prompt_table_length")}
    return GlipConfig.from_preset(FAMILIES[family][0], **own)


def build_config(
    tensors: Mapping[str, Tensor],
    config: str | os.PathLike[str] | GlipConfig | None = None,
    foreign: Mapping[str, Shape] = MappingProxyType({}),
    remedy: str = "",
) -> tuple[GlipConfig, str | None]:
    """The configuration of a checkpoint, and its family (a key of `FAMILIES`, None for other sizes).

    Args:
        tensors: the original state dict without `module.` prefix. Only shapes are used (and one anchor).
        config: needed for sizes that were not released: a `GlipConfig`, a JSON file of one, or a directory with a
            config.json.
        foreign, remedy: what else the file holds and how to leave it out, see `layouts.locate`.

    Raises:
        VariantError: if the file holds foreign keys, or a config is needed and was not given, cannot be read, or
            contradicts the tensors.
    """
    fields = infer_fields(tensors)
    family = recognise(tensors)
    if config is None:
        if family is None:
            raise VariantError(
                "This is none of the released sizes, and shapes do not determine text_config.num_attention_heads and "
                f"fusion_heads: give a config (--config FILE). Inferred from the shapes: {json.dumps(fields)}"
            )
        chosen = _preset(family, fields)
    else:
        chosen = config if isinstance(config, GlipConfig) else load_config(config)
    differences, problems = _differences(fields, chosen), mismatches(tensors, chosen)
    problems += [f"{key} {list(shape)} is unexpected" for key, shape in foreign.items()]
    if differences:
        message = "\n  ".join(["The config contradicts the checkpoint.", *differences])
        if problems:
            message += "\n  ".join(["\nTensors concerned:", *problems[:20]])
        raise VariantError(message)
    if problems:
        lines = ["The checkpoint does not fit its config:", *problems[:40]]
        lines += [f"... and {len(problems) - 40} more"] * (len(problems) > 40)
        lines += [f"To leave out what is not GLIP's: {remedy}"] * bool(remedy)
        raise VariantError("\n  ".join(lines))
    return chosen, family


def expected_tensors(config: GlipConfig) -> dict[str, Tensor]:
    """The original state dict of a model of this config: meta tensors in standard order."""
    with torch.device("meta"):
        ours = GlipForGrounding(config).state_dict()
    return {key: tensor.to("meta") for key, tensor in to_original(ours, config.anchor_scale).items()}


def mismatches(tensors: Mapping[str, Tensor], config: GlipConfig) -> list[str]:
    """Why these original tensors do not fit a model of this config, a line for each.

    Buffers may be absent; everything else must be there, of the model's shape, and nothing else.
    """
    expected = expected_tensors(config)
    lines = []
    for key, tensor in expected.items():
        if key not in tensors:
            if not is_buffer(key):
                lines.append(f"{key} {list(tensor.shape)} is missing")
        elif tuple(tensor.shape) != tuple(tensors[key].shape):
            lines.append(f"{key} is {list(tensors[key].shape)}, the config asks for {list(tensor.shape)}")
    lines += [f"{key} {list(tensors[key].shape)} is unexpected" for key in tensors if key not in expected]
    return lines


def load_config(source: str | os.PathLike[str]) -> GlipConfig:
    """A `GlipConfig` from a JSON file, or from the config.json of a directory; a VariantError if there is none."""
    path = Path(source)
    try:
        path = path / "config.json" if path.is_dir() else path
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VariantError(f"--config {source}: {error}") from error
    if not isinstance(content, dict):
        raise VariantError(f"--config {source}: expected a JSON object, found {type(content).__name__}.")
    if content.get("model_type", "glip") != "glip":
        raise VariantError(f"--config {source}: model_type is {content['model_type']!r}, not 'glip'.")
    if "backbone_config" not in content and "d_model" not in content:
        raise VariantError(f"--config {source}: not a GlipConfig (it has neither backbone_config nor d_model).")
    return GlipConfig.from_dict(content)
