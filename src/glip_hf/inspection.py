# Copyright 2026 The glip_hf authors. MIT licence.
"""Describes a model without loading its weights: behind `glip info`, and the checks before `glip ground`."""

from pathlib import Path
from typing import Any

import torch

from .configuration_glip import GlipConfig
from .conversion.checkpoint import read_checkpoint
from .conversion.layouts import locate
from .conversion.restore import find_model, read_class_names, read_config
from .conversion.variants import FAMILIES, VariantError, build_config, infer_fields
from .conversion.weight_map import is_buffer
from .modeling_glip import GlipForGrounding

OTHER_SIZES = "none of the released sizes"


def describe(source: str) -> dict[str, Any]:
    """Variant, parameters, sizes and configuration of a model, ready for JSON.

    The model is a converted one (directory or Hub id; only its config is read), that of an adapter or a prompt table
    (`bytes` are those of `source`), or a checkpoint (file); a ValueError if it is none of these.
    """
    if Path(source).is_file():
        return _describe_checkpoint(source)
    directory, tuned = find_model(source)
    config = read_config(source, directory)
    with torch.device("meta"):
        model = GlipForGrounding(config)
    parts = {**dict(model.model.named_children()), "head": model.head}
    weights = list(Path(source).glob("*.safetensors"))
    return {
        "source": source,
        "kind": "directory" if Path(source).is_dir() else "hub",
        **dict(zip(("tuned", "base"), tuned or ())),
        **_describe_config(config),
        **({"class_names": names} if (names := read_class_names(source)) else {}),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_by_part": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "bytes": sum(file.stat().st_size for file in weights) or None,
        "config": config.to_diff_dict(),
    }


def _describe_checkpoint(source: str) -> dict[str, Any]:
    checkpoint = locate(read_checkpoint(source))
    tensors = checkpoint.tensors
    try:
        config, _ = build_config(tensors)
        variant, fields = _describe_config(config), config.to_diff_dict()
    except VariantError:  # not a released size: the shapes have to do, if it is a GLIP at all
        variant, fields = {"variant": OTHER_SIZES}, infer_fields(tensors)
    return {
        "source": source,
        "kind": f"{'original' if checkpoint.layout == 'original' else 'mmdetection'} checkpoint",
        **variant,
        "parameters": sum(tensor.numel() for key, tensor in tensors.items() if not is_buffer(key)),
        "bytes": Path(source).stat().st_size,
        "weights_under": checkpoint.wrapping,
        "key_prefix": checkpoint.prefix,
        "beside_them": list(checkpoint.beside),
        "foreign": list(checkpoint.foreign),
        "config": fields,
    }


def _describe_config(config: GlipConfig) -> dict[str, Any]:
    """The released architecture of a configuration and its main parts."""
    variant = OTHER_SIZES
    for family, presets in FAMILIES.items():
        if _architecture(GlipConfig.from_preset(presets[0])) == _architecture(config):
            variant = f"{family}: the architecture of {', '.join(presets)}"
    return {
        "variant": variant,
        "backbone": config.backbone_config.model_type,
        "fusion": "deep fusion of image and text" if config.use_fusion else "none (GLIP-A)",
        "blocks": config.num_blocks,
        "longest_caption": config.max_text_length,
    }


def _architecture(config: GlipConfig) -> list[Any]:
    """What makes two configurations the same architecture."""
    compared = (
        (config.backbone_config, "model_type embed_dim depths num_heads window_size"),
        (config.text_config, "hidden_size num_hidden_layers num_attention_heads vocab_size"),
        (config, "d_model num_blocks use_fusion fusion_hidden_size fusion_heads anchor_scale"),
    )
    return [getattr(part, name, None) for part, names in compared for name in names.split()]
