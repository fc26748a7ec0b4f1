"""Hyper-parameters of the recorded cases (`architectures.json`) as a `GlipConfig`.

python tests/parity/architectures.py ../shared/parity/architectures.json small > small.json
glip convert small.pth out --config small.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from locations import FIXTURES

from glip_hf import GlipConfig

ARCHITECTURES = FIXTURES / "parity" / "architectures.json"
SWIN_FIELDS = (
    "embed_dim depths num_heads window_size mlp_ratio patch_size qkv_bias drop_path_rate layer_norm_eps"
).split()
BERT_FIELDS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size layer_norm_eps hidden_act hidden_dropout_prob attention_probs_dropout_prob"
).split()


def recorded_config(name: str, path: Path = ARCHITECTURES) -> GlipConfig:
    """The configuration of the architecture `name` in a file of several."""
    return architecture_to_config(json.loads(path.read_text(encoding="utf-8"))[name])


def architecture_to_config(entry: Mapping[str, Any]) -> GlipConfig:
    """A `GlipConfig` from the original's hyper-parameters.

    Args:
        entry: sections "vision", "fpn", "text", "head" and, with deep fusion, "fusion".

    Raises:
        KeyError: if a section or a value is missing.
        ValueError: if the entry describes something that this model cannot be.
    """
    vision, fpn, text, head = (entry[name] for name in ("vision", "fpn", "text", "head"))
    strides, sizes = head["anchor_strides"], head["anchor_sizes"]
    unsupported = {
        "vision.type other than swin": vision["type"] != "swin",
        "text.type other than bert": text["type"] != "bert",
        "vision.absolute_pos_embed": vision.get("absolute_pos_embed", False),
        "vision without patch_norm": not vision.get("patch_norm", True),
        "fpn.use_gn": fpn.get("use_gn", False),
        "fpn.use_relu": fpn.get("use_relu", False),
        "text.n_layers_averaged other than 1": text.get("n_layers_averaged", 1) != 1,
        "anchor_strides other than 8 to 128": list(strides) != [8, 16, 32, 64, 128],
        "anchors that are not one multiple of their strides": len({a / b for a, b in zip(sizes, strides)}) != 1,
    }
    if any(unsupported.values()):
        found = ", ".join(name for name, present in unsupported.items() if present)
        raise ValueError(f"An architecture that this model does not cover: {found}.")
    fields: dict[str, Any] = {
        "backbone_config": {
            "model_type": "swin",
            "out_indices": [2, 3, 4],
            **{name: vision[name] for name in SWIN_FIELDS if name in vision},
        },
        "text_config": {"model_type": "bert", **{name: text[name] for name in BERT_FIELDS if name in text}},
        "d_model": head["channels"],
        "num_blocks": head["num_blocks"],
        "use_fusion": head["early_fusion"],
        "group_norm_groups": head["group_norm_groups"],
        "group_norm_eps": head["group_norm_eps"],
        "num_class_channels": head["num_classes_of_unused_cls_logits"],
        "anchor_scale": sizes[0] // strides[0],
        "max_text_length": text["max_query_len"],
        "dropblock_prob": fpn["dropblock_prob"],
        "dropblock_size": fpn["dropblock_size"],
    }
    if head["early_fusion"]:
        fusion = entry["fusion"]
        fields |= {
            "fusion_hidden_size": fusion["embed_dim"],
            "fusion_heads": fusion["num_heads"],
            "fusion_dropout": fusion["dropout"],
            "fusion_init_gamma": fusion["init_gamma"],
            "clamp_value": fusion["clamp"],
        }
    return GlipConfig(**fields)


if __name__ == "__main__":
    print(recorded_config(sys.argv[2], Path(sys.argv[1])).to_json_string(use_diff=False))
