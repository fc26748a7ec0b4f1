# Copyright 2026 The glip_hf authors. MIT licence.
"""Between original GLIP checkpoints and model directories, both ways; behind `glip convert` and the
scripts in convert/.

Every refusal is a ValueError whose message names the value and the remedy.
"""

from .checkpoint import Checkpoint, CheckpointError, read_checkpoint, sha256_of
from .convert import (
    DEFAULT_TOKENIZER,
    MAX_SHARD_SIZE,
    Conversion,
    convert_checkpoint,
    load_tokenizer,
    push_to_hub,
)
from .model_card import build_model_card
from .record import ConversionError, ConversionRecord, RecordError
from .restore import WRAPPING_CHOICES, model_directory, restore_checkpoint, restored_tensors
from .variants import VariantError, build_config, recognise
from .weight_map import TABLE, WeightMapError, to_original, to_ours

__all__ = [
    "DEFAULT_TOKENIZER",
    "MAX_SHARD_SIZE",
    "TABLE",
    "WRAPPING_CHOICES",
    "Checkpoint",
    "CheckpointError",
    "Conversion",
    "ConversionError",
    "ConversionRecord",
    "RecordError",
    "VariantError",
    "WeightMapError",
    "build_config",
    "build_model_card",
    "convert_checkpoint",
    "load_tokenizer",
    "model_directory",
    "push_to_hub",
    "read_checkpoint",
    "recognise",
    "restore_checkpoint",
    "restored_tensors",
    "sha256_of",
    "to_original",
    "to_ours",
]
