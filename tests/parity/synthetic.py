"""Deterministic checkpoints for the parity cases, equal to those of the recorded results.

A tensor depends only on (seed, original key, shape): a uniform distribution of the mean and spread that `RULES` give
for its key, drawn from numpy's `RandomState(crc32("seed:key"))`, whose stream is frozen. Index buffers and anchors hold
their true values. The recipe is that of the recorded cases (`parity/weights.py` in the shared design folder).
"""

import gzip
import json
import math
import re
import zlib
from collections import OrderedDict

import numpy as np
import torch
from locations import FIXTURES

from glip_hf.conversion.weight_map import cell_anchor, position_ids, relative_position_index

KEYS = FIXTURES / "keys"


def fan(gain: float) -> tuple[float]:
    """Marks a spread of gain / sqrt(fan in)."""
    return (gain,)


# key pattern, mean, standard deviation; the first that is found in the key counts
RULES = [
    (re.compile(pattern), mean, std)
    for pattern, mean, std in [
        (r"\.gamma_[vl]$", 0.3, 0.1),
        (r"scales\.\d+\.scale$", 1.0, 0.15),
        (r"head\.log_scale$", 0.25, 0.05),
        (r"head\.bias0$", -3.7, 0.05),
        (r"head\.bias_lang$", 0.0, 0.4),
        (r"AttnConv\.1\.bias$", 1.0, 0.3),
        (r"\.offset\.bias$", 0.0, 0.3),
        (r"centerness\.bias$", 0.3, 0.1),
        (r"dot_product_projection_text\.bias$", 0.0, 0.03),
        (r"cls_logits\.bias$", -4.0, 0.1),
        (r"relu\.fc\.2\.bias$", 0.5, 0.6),
        (
            r"(language_backbone|dyhead_tower\.\d+\.(attention|intermediate|output)\.).*bias$",
            0.0,
            0.03,
        ),
        (r"(layer_norm_l|out_l_proj)\.bias$", 0.0, 0.03),
        (r"\.bn\.weight$", 1.6, 0.2),
        (r"(norm\w*|LayerNorm)\.weight$", 1.0, 0.15),
        (r"(norm\w*|LayerNorm|bn)\.bias$", 0.0, 0.1),
        (r"\.bias$", 0.0, 0.1),
        (r"relative_position_bias_table$", 0.0, 0.5),
        (r"word_embeddings\.weight$", 0.0, 1.0),
        (r"(position|token_type)_embeddings\.weight$", 0.0, 0.25),
        (r"attention\.output\.dense\.weight$", 0.0, fan(0.3)),
        (r"\d\.output\.dense\.weight$", 0.0, fan(0.3)),
        (r"backbone\.body\.layers.*(attn\.proj|mlp\.fc2)\.weight$", 0.0, fan(0.6)),
        (r"backbone\.body.*attn\.qkv\.weight$", 0.0, fan(1.1)),
        (r"backbone\.fpn\.", 0.0, fan(1.0)),
        (r"b_attn\.attn\.[vl]_proj\.weight$", 0.0, fan(1.1)),
        (r"b_attn\.attn\.out_v_proj\.weight$", 0.0, fan(1.8)),
        (r"b_attn\.attn\.out_l_proj\.weight$", 0.0, fan(0.6)),
        (r"\.offset\.weight$", 0.0, fan(0.95)),
        (r"DyConv\.\d\.conv\.weight$", 0.0, fan(1.5)),
        (r"AttnConv\.1\.weight$", 0.0, fan(2.0)),
        (r"relu\.fc\.[02]\.weight$", 0.0, fan(1.2)),
        (r"head\.bbox_pred\.weight$", 0.0, fan(2.5)),
        (r"head\.centerness\.weight$", 0.0, fan(2.0)),
        (r"dot_product_projection_text\.weight$", 0.0, 0.3),
        (r"\.weight$", 0.0, fan(1.0)),
    ]
]


def synthetic_tensor(key: str, shape: list[int], seed: int = 0) -> torch.Tensor:
    """One tensor of an original checkpoint, float32 or int64."""
    if key.endswith("position_ids"):
        return position_ids(shape)
    if key.endswith("relative_position_index"):
        return relative_position_index(shape)
    if anchor := re.search(r"cell_anchors\.(\d)$", key):
        return cell_anchor(shape, int(anchor[1]))
    mean, std = next((mean, std) for pattern, mean, std in RULES if pattern.search(key))
    if isinstance(std, tuple):
        std = std[0] / math.sqrt(math.prod(shape[1:]))
    generator = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()))
    uniform = generator.random_sample(tuple(shape))
    return torch.from_numpy(np.asarray(mean + std * math.sqrt(12.0) * (uniform - 0.5), dtype=np.float32))


def key_list(name: str) -> dict[str, list]:
    """Original keys of an architecture to [shape, dtype, is parameter, requires grad]."""
    return json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))


def synthetic_state_dict(name: str, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """A whole original state dict of the architecture `name`, in its original order."""
    return OrderedDict((key, synthetic_tensor(key, spec[0], seed)) for key, spec in key_list(name).items())
