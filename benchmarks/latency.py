"""Seconds and peak memory of one full-size GLIP-T forward, from pixels and ids to detections.

    python benchmarks/latency.py --case three          # three names
    python benchmarks/latency.py --case coco80         # the 80 names of COCO, 194 tokens with BERT's vocabulary

Random weights: the time does not depend on their values but for the number of candidates after the threshold, and
post-processing takes less than 0.1 s of either. Prints the median of `--runs` after one warm-up.
"""

import argparse
import json
import resource
import statistics
import time

import torch

from glip_hf import GlipConfig, GlipForGrounding
from glip_hf.postprocess_glip import post_process_grounding

TOKENS = {"three": 8, "coco80": 194}
NAMES = {"three": 3, "coco80": 80}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(TOKENS), default="three")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = GlipForGrounding(GlipConfig.from_preset("glip_tiny_model_o365_goldg")).eval()
    weights = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    height, width = arguments.size
    padded = [-(-side // 32) * 32 for side in (height, width)]
    tokens, names = TOKENS[arguments.case], NAMES[arguments.case]
    mask = torch.zeros(1, *padded, dtype=torch.int64)
    mask[:, :height, :width] = 1
    inputs = {
        "pixel_values": torch.randn(1, 3, *padded) * mask[:, None],
        "pixel_mask": mask,
        "input_ids": torch.randint(1000, 30000, (1, tokens)),
        "positive_map": torch.zeros(1, names, tokens, dtype=torch.bool),
    }
    for name in range(names):
        inputs["positive_map"][0, name, 1 + name * (tokens - 2) // names] = True

    seconds = []
    with torch.inference_mode():
        for _ in range(arguments.runs + 1):
            start = time.perf_counter()
            post_process_grounding(model(**inputs))
            seconds.append(time.perf_counter() - start)
    figures = {
        "case": arguments.case,
        "size": [height, width],
        "threads": arguments.threads,
        "seconds": round(statistics.median(seconds[1:]), 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "memory_before_the_first_forward_gb": round(weights, 2),
    }
    print(json.dumps(figures) if arguments.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
