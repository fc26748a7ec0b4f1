# Copyright 2026 The glip_hf authors. MIT licence.
"""Conversion between GLIP checkpoints, original or of mmdetection, and model directories: `glip convert`, convert/*.py.

Every refusal is a ValueError whose message names the value and the remedy.
"""

from ..runs import file_digest as sha256_of
from .checkpoint import Checkpoint, CheckpointError, read_checkpoint
from .convert import DEFAULT_TOKENIZER, MAX_SHARD_SIZE, Conversion, convert_checkpoint, load_tokenizer, push_to_hub
from .layouts import LayoutError, locate
from .model_card import build_model_card
from .record import ConversionError, ConversionRecord, RecordError
from .restore import WRAPPING_CHOICES, model_directory, read_config, restore_checkpoint, restored_tensors, whole_model
from .variants import VariantError, build_config, recognise
from .weight_map import TABLE, WeightMapError, to_mmdet, to_original, to_ours

__all__ = ["Checkpoint", "CheckpointError", "read_checkpoint", "sha256_of"]
__all__ += ["DEFAULT_TOKENIZER", "MAX_SHARD_SIZE", "Conversion", "convert_checkpoint", "load_tokenizer", "push_to_hub"]
__all__ += ["build_model_card", "ConversionError", "ConversionRecord", "RecordError"]
__all__ += ["WRAPPING_CHOICES", "model_directory", "read_config", "restore_checkpoint", "restored_tensors"]
__all__ += ["whole_model"]
__all__ += [
    "VariantError",
    "build_config",
    "recognise",
    "TABLE",
    "WeightMapError",
    "to_mmdet",
    "to_original",
    "to_ours",
]
__all__ += ["LayoutError", "locate"]
