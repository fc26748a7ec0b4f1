# Copyright 2026 The glip_hf authors. MIT licence.
"""Open-vocabulary detectors of Transformers beside GLIP: seconds of one forward pass, from pixels and token ids.

    python benchmarks/peers.py --names 3
    python benchmarks/peers.py --names 80 --runs 3 --peers grounding-dino omdet-turbo

GLIP-T in float32 and bfloat16, and in float32 Grounding DINO-T, MM-Grounding-DINO-T, OWLv2-B/16 and OmDet-Turbo-T from
the default configurations of their classes (OWLv2 with the image size of its released models, OmDet-Turbo with the Swin
of Transformers in place of timm's), all with random weights, in turn in one process. Each sees the same photo of 800 x
1066 pixels at the size that its image processor would make of it: GLIP and the two Grounding DINOs at 800 x 1066, OWLv2
at 960 x 960, OmDet-Turbo at 640 x 640. Text is encoded in every pass (OmDet-Turbo's cache of texts is emptied);
post-processing, a few milliseconds, is left out.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import SwinConfig

from benchmarks import harness
from benchmarks.harness import Variant
from glip_hf import GlipForGrounding

CLS, SEP, FULL_STOP, FIRST_WORD = 101, 102, 1012, 2000
"""Token ids of BERT's vocabulary; Grounding DINO splits its caption at full stops."""
CLIP_START, CLIP_END = 49406, 49407
TOKENS = {3: 8, 80: 194}
"""Tokens of a caption of 3 class names, and of the 80 of COCO: one or two per name, each with a full stop."""
SIZES = {
    "glip": (800, 1066),
    "grounding-dino": (800, 1066),
    "mm-grounding-dino": (800, 1066),
    "owlv2": (960, 960),
    "omdet-turbo": (640, 640),
}
"""Height and width that the image processor of each makes of the photo; `--factor` scales all of them."""


def caption_ids(names: int) -> Tensor:
    """A caption [1, T] of BERT's tokens: names of one or more tokens, each with a full stop."""
    spare, ids = TOKENS.get(names, 2 + 2 * names) - 2 - 2 * names, [CLS]
    for name in range(names):
        words = 1 + (name < spare)
        ids += [FIRST_WORD + 7 * name + word for word in range(words)] + [FULL_STOP]
    return torch.tensor([[*ids, SEP]])


def clip_ids(rows: int, length: int, vocabulary: int) -> Tensor:
    """One prompt of five tokens per row, padded as CLIP's tokenizer does it: [rows, length]."""
    start, end = min(CLIP_START, vocabulary - 2), min(CLIP_END, vocabulary - 1)
    ids = torch.full((rows, length), end if length == 77 else 0)
    ids[:, 0], ids[:, 4] = start, end
    ids[:, 1:4] = torch.arange(3 * rows).reshape(rows, 3) % (start - 1) + 1
    return ids


def build(name: str, dtype: torch.dtype, factor: float) -> torch.nn.Module:
    """The model of that name with random weights, in evaluation mode."""
    if name == "glip":
        return GlipForGrounding(harness.GlipConfig.from_preset(harness.PRESET)).to(dtype).eval()
    if name == "owlv2":
        config = transformers.Owlv2Config(vision_config={"image_size": round(960 * factor), "patch_size": 16})
        return transformers.Owlv2ForObjectDetection(config).eval()
    if name == "omdet-turbo":  # by default Swin of timm, which has the same layers
        size = round(640 * factor)
        backbone = SwinConfig(image_size=size, window_size=7, depths=[2, 2, 6, 2], out_indices=[2, 3, 4])
        config = transformers.OmDetTurboConfig(backbone_config=backbone, apply_layernorm_after_vision_backbone=False)
        return transformers.OmDetTurboForObjectDetection(config).eval()
    kind = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[name]
    config = getattr(transformers, f"{kind}Config")()
    return getattr(transformers, f"{kind}ForObjectDetection")(config).eval()


def inputs_of(name: str, model: torch.nn.Module, names: int, factor: float) -> dict[str, Any]:
    """What the processor of that model would make of the photo and of that many class names."""
    height, width = (round(side * factor) for side in SIZES[name])
    if name in ("owlv2", "omdet-turbo"):
        pixels = torch.randn(1, 3, height, width)
        if name == "owlv2":
            ids = clip_ids(names, 16, model.config.text_config.vocab_size)
            return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids > 0).long()}
        classes, tasks = (clip_ids(rows, 77, model.config.text_config.vocab_size) for rows in (names, 1))
        return {
            "pixel_values": pixels,
            "classes_input_ids": classes,
            "classes_attention_mask": torch.ones_like(classes),
            "tasks_input_ids": tasks,
            "tasks_attention_mask": torch.ones_like(tasks),
            "classes_structure": torch.tensor([names]),
        }
    ids = caption_ids(names)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "glip":
        pixels = harness.random_image(height, width, "cpu")
        return {**text, **pixels, "pixel_values": pixels["pixel_values"].to(model.dtype)}
    mask = torch.ones(1, height, width, dtype=torch.int64)
    return {**text, "token_type_ids": torch.zeros_like(ids), "pixel_values": torch.randn(1, 3, height, width)} | {
        "pixel_mask": mask
    }


def forward_of(model: torch.nn.Module, inputs: dict[str, Any]) -> Callable[[], Any]:
    """One pass without gradients and without texts that an earlier pass encoded."""
    caches = [cache for name, cache in vars(model).items() if name.startswith("language_cache")]

    @torch.inference_mode()
    def forward() -> Any:
        for cache in caches:
            cache.cache.clear()
            cache.current_load = 0
        return model(**inputs)

    return forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--names", type=int, default=3, help="class names (%(default)s)")
    parser.add_argument("--factor", type=float, default=1.0, help="of all image sizes: 0.5 is a quick check")
    parser.add_argument("--peers", nargs="*", choices=[name for name in SIZES if name != "glip"], help="default: all")
    arguments = harness.begin(parser, argv, "peers")
    torch.set_num_threads(arguments.threads)
    peers = [name for name in SIZES if name != "glip"] if arguments.peers is None else arguments.peers
    chosen = {
        "glip_float32": ("glip", torch.float32),
        "glip_bfloat16": ("glip", torch.bfloat16),
        **{name.replace("-", "_"): (name, torch.float32) for name in peers},
    }
    variants = {}
    for label, (name, dtype) in chosen.items():
        model = build(name, dtype, arguments.factor)
        variants[label] = Variant(forward_of(model, inputs_of(name, model, arguments.names, arguments.factor)))
    times, rates = harness.time_variants(variants, arguments)
    figures = {"names": arguments.names, "factor": arguments.factor, "gemm_gflop_s": rates.gemm / 1e9}
    figures["seconds"] = {label: times[label].median for label in variants}
    figures["cpu_seconds"] = {label: times[label].median_cpu for label in variants}
    harness.finish(arguments, "peers", [figures], figures)


if __name__ == "__main__":
    main()
