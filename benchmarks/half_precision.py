# Copyright 2026 The glip_hf authors. MIT licence.
"""The effect of bfloat16 on detections (quality, not speed): a model against itself in float32.

Cost:    about 2 minutes on 2 CPU cores, one more with --shared-weights.
Command: python benchmarks/half_precision.py [--scenes 300] [--shared-weights]
Result:  a table on stdout and a row of benchmarks/results/half_precision.csv.

1. `evaluate_scenes` of the shipped model in both precisions.
2. Of its float32 detections with a score of at least 0.3 on those scenes: the fraction that bfloat16 also finds (same
   class, IoU of at least 0.9), and over these the mean IoU and the mean and largest change of the score.
3. The logits of the full-size GLIP-T, random or with the weights of the parity cases (--shared-weights), on a random
   image of 480 x 640.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

import torch

from benchmarks import harness
from glip_hf.boxes_glip import box_iou
from glip_hf.data.scene_metrics import SEED, evaluate_scenes, ground
from glip_hf.data.scenes import SceneDataset
from glip_hf.demo import demo_model, demo_processor

SCORE, OVERLAP = 0.3, 0.9


def compare_detections(scenes: int) -> dict[str, float]:
    """The fraction of confident float32 detections that bfloat16 finds too, and how much these change."""
    exact, half, processor = demo_model(), demo_model().bfloat16(), demo_processor()
    dataset = SceneDataset("detection", scenes, SEED)
    total, overlaps, changes = 0, [], []
    for start in range(0, scenes, 16):
        samples = [dataset[index] for index in range(start, min(start + 16, scenes))]
        pairs = zip(*(ground(model, processor, samples, score_threshold=0.05) for model in (exact, half)))
        for one, other in pairs:
            sure = one["scores"] >= SCORE
            same = one["labels"][sure, None] == other["labels"]
            ious = torch.where(same, box_iou(one["boxes"][sure], other["boxes"].float()), 0)
            total += len(ious)
            if ious.shape[1]:
                best, index = ious.max(1)
                found = best >= OVERLAP
                overlaps.append(best[found])
                changes.append((one["scores"][sure] - other["scores"].float()[index]).abs()[found])
    overlap, change = torch.cat(overlaps), torch.cat(changes)
    return {
        "float32_detections": total,
        "found_by_bfloat16": len(overlap) / total,
        "mean_iou": float(overlap.mean()),
        "mean_score_change": float(change.mean()),
        "largest_score_change": float(change.max()),
    }


@torch.inference_mode()
def compare_logits(arguments: argparse.Namespace) -> dict[str, float]:
    """Differences of the full-size model's logits, and their standard deviation for comparison."""
    model = harness.load_model(arguments)
    image = harness.random_image(480, 640, "cpu")
    caption = harness.random_caption(194, 80, model.config.text_config.vocab_size, "cpu")
    exact = model(**image, **caption).logits.clone()
    image["pixel_values"] = image["pixel_values"].bfloat16()
    difference = (model.bfloat16()(**image, **caption).logits.float() - exact).abs()
    return {
        "logits_standard_deviation": float(exact.std()),
        "logits_mean_change": float(difference.mean()),
        "logits_largest_change": float(difference.max()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    arguments = harness.begin(parser, argv, "half_precision")
    torch.set_num_threads(arguments.threads)
    figures: dict[str, float] = {"scenes": arguments.scenes}
    for dtype in (torch.float32, torch.bfloat16):
        metrics = evaluate_scenes(demo_model().to(dtype), demo_processor(), arguments.scenes)
        figures |= {f"{name}_{dtype}".replace("torch.", ""): value for name, value in metrics.items()}
    figures |= compare_detections(arguments.scenes)
    figures |= compare_logits(arguments)
    harness.finish(arguments, "half_precision", [figures], figures)


if __name__ == "__main__":
    main()
