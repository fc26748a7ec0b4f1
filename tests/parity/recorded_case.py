"""A recorded case of our own making."""

import json
from pathlib import Path

import torch
from parity.harness import record_stages
from safetensors.torch import save_file

from glip_hf import GlipForGrounding


def write_case(path: Path, model: GlipForGrounding) -> None:
    """Records a case from a model itself, in the layout of the cases of the original."""
    torch.manual_seed(0)
    ids = torch.tensor([[101, 237, 112, 102], [101, 199, 102, 0]])
    mask = (ids > 0).long()
    pixel_mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    pixel_mask[:, :60, :90] = 1
    pixels = torch.randn(2, 3, 64, 96) * pixel_mask[:, None]
    inputs = {"pixel_values": pixels, "pixel_mask": pixel_mask, "input_ids": ids, "attention_mask": mask}
    _, stages = record_stages(model, lambda: model(**inputs), inner=True)
    stages |= {"pixel_values": pixels, "text.input_ids": ids, "text.masks": mask}
    save_file({name: x.contiguous().clone() for name, x in stages.items()}, f"{path}.safetensors")
    description = {
        "images": [{"file": "x.png", "resized_size_hw": [60, 90]}] * 2,
        "token_counts": [4, 3],
        "positive_maps": [{"1": [1]}, {"1": [1]}],
    }
    path.with_suffix(".json").write_text(json.dumps(description))
