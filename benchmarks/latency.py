# Copyright 2026 The glip_hf authors. MIT licence.
"""Latency of one image, from pixels and token ids to detections: the model against its textbook form.

    python benchmarks/latency.py --case three            # 800 x 1066, 3 class names in 8 tokens
    python benchmarks/latency.py --case coco80           # 800 x 1066, the 80 classes of COCO in 194 tokens
    python benchmarks/latency.py --case lvis --runs 1    # 480 x 640, the 1,203 classes of LVIS in 31 captions
    python benchmarks/latency.py --case coco80 --json | tail -1
    python benchmarks/latency.py --case coco80 --compile default --no-reference --memory-runs 0

Both run in turn in one process (`harness.py`); peak memory is that of child processes (`peak_memory.py`), the floor is
counted (`floor.py`). The textbook form (`textbook.py`) pads every caption to 256 tokens and encodes image and caption
again for each; the model encodes the image and each caption once, and runs the head at the caption's own length. Token
counts are those of BERT's vocabulary. Token ids and pixels are random: time does not depend on them, except for the
number of candidates above the threshold, and post-processing has a row of its own in the table of parts.

On 2 CPU cores a textbook forward pass at 800 x 1066 takes half a minute, LVIS in the textbook form minutes per round.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import floor, harness
from benchmarks.harness import Variant
from benchmarks.part_timer import part, time_parts
from benchmarks.peak_memory import memory_figures, peak_memory
from benchmarks.textbook import textbook_view
from glip_hf import GlipForGrounding
from glip_hf.compilation import MODES, compile_for_inference
from glip_hf.postprocess_glip import merge_detections, post_process_grounding

LVIS_TOKENS = (
    *(113, 105, 111, 113, 108, 122, 116, 115, 120, 116, 119, 123, 118, 119, 111, 113),
    *(110, 108, 109, 108, 110, 117, 109, 117, 113, 108, 122, 120, 112, 122, 10),
)
"""Tokens of the 1,203 class names of LVIS in captions of 40, joined by ". " in the order of their ids."""

SAMPLED = 97  # the logits of every 97th location are compared


@dataclass(frozen=True)
class Case:
    """Height and width in pixels; tokens and class names of each caption; detections kept per caption."""

    size: tuple[int, int]
    tokens: tuple[int, ...]
    names: tuple[int, ...]
    max_detections: int = 100


CASES = {
    "three": Case((800, 1066), (8,), (3,)),
    "coco80": Case((800, 1066), (194,), (80,)),
    "lvis": Case((480, 640), LVIS_TOKENS, (*[40] * 30, 3), max_detections=300),
}


def detect(model: GlipForGrounding, limit: int, **inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Detections of one caption in one image, and a sample of the logits."""
    outputs = model(**inputs)
    with part("post-processing"):
        found = post_process_grounding(outputs, max_detections=limit)[0]
    return found, outputs.logits[0, ::SAMPLED].float().clone()


@torch.inference_mode()
def run_fast(model: GlipForGrounding, pixels: dict[str, Tensor], captions: list[dict[str, Tensor]], limit: int) -> Any:
    """All captions on one image, which is encoded once."""
    image = model.get_image_features(**pixels)
    texts = [model.get_text_features(caption["input_ids"]) for caption in captions]
    found = [
        detect(model, limit, image_features=image, text_features=text, positive_map=caption["positive_map"])
        for text, caption in zip(texts, captions)
    ]
    with part("post-processing"):
        return merge_detections([one for one, _ in found], limit), [logits for _, logits in found]


@torch.inference_mode()
def run_plainly(
    model: GlipForGrounding, pixels: dict[str, Tensor], captions: list[dict[str, Tensor]], limit: int
) -> Any:
    """The whole model once per caption."""
    found = [detect(model, limit, **pixels, **caption) for caption in captions]
    with part("post-processing"):
        return merge_detections([one for one, _ in found], limit), [logits for _, logits in found]


def record_graph(
    model: GlipForGrounding, pixels: dict[str, Tensor], captions: list[dict[str, Tensor]], limit: int
) -> Callable[[], Any]:
    """`run_fast` with the forward passes as one CUDA graph, recorded after three passes that choose blocks and make
    constants; post-processing, whose sizes depend on values, runs as ever."""
    with torch.inference_mode():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                model(**pixels, **captions[0])
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = model(**pixels, **captions[0])

    @torch.inference_mode()
    def run() -> Any:
        graph.replay()
        found = post_process_grounding(outputs, max_detections=limit)[0]
        return found, [outputs.logits[0, ::SAMPLED].float().clone()]

    return run


def case_inputs(
    case: Case, height: int, width: int, model: GlipForGrounding, num_captions: int | None = None
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A random image in the dtype of the model, and random captions."""
    vocabulary, device = model.config.text_config.vocab_size, str(model.device)
    pixels = harness.random_image(height, width, device)
    pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    lengths = zip(case.tokens[:num_captions], case.names)
    return pixels, [harness.random_caption(tokens, names, vocabulary, device) for tokens, names in lengths]


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--case", choices=list(CASES), default="three")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: that of the case")
    parser.add_argument("--captions", type=int, help="only the first N of the case's captions")
    parser.add_argument("--no-reference", action="store_true", help="time the model without its textbook form")
    parser.add_argument("--compile", choices=MODES, help="also time the model under torch.compile")
    parser.add_argument("--graph", action="store_true", help="also time the forward as a CUDA graph (one caption)")
    arguments = harness.begin(parser, argv, "latency")
    case = CASES[arguments.case]
    if arguments.graph and (not arguments.device.startswith("cuda") or len(case.tokens[: arguments.captions]) > 1):
        parser.error("--graph records the forward pass of one caption on a GPU: give --device cuda and one caption.")
    height, width = arguments.size or case.size
    tokens = case.tokens[: arguments.captions]
    dtype = getattr(torch, arguments.dtype)
    model = harness.load_model(arguments).to(dtype)
    given = (model, *case_inputs(case, height, width, model, len(tokens)), case.max_detections)
    models, variants = [model], {"fast": Variant(lambda: run_fast(*given))}
    if not arguments.no_reference:
        models.append(textbook_view(model))
        variants["reference"] = Variant(lambda: run_plainly(models[1], *given[1:]))

    memory = peak_memory(variants, arguments)
    timed = dict(variants)
    if arguments.compile:  # not in a forked child, and not with hooks between its parts
        compiled = compile_for_inference(model, arguments.compile)
        timed["compiled"] = Variant(lambda: run_fast(compiled, *given[1:]))
    if arguments.graph:
        timed["graph"] = Variant(record_graph(*given))
    times, rates = harness.time_variants(timed, arguments)
    seconds, results = time_parts(models, variants)
    padded = given[1]["pixel_values"].shape[-2:]
    counted = floor.parts_floor(model.config, *padded, tokens, dtype.itemsize)
    figures = {"case": arguments.case, "size": f"{height}x{width}", "captions": len(tokens), "tokens": sum(tokens)}
    figures |= harness.time_figures(times, rates, floor.total(list(counted.values())))
    figures |= memory_figures(memory)
    if arguments.compile:
        results["compiled"] = timed["compiled"].run()
        figures |= {"compile": arguments.compile, "seconds_compiled": times["compiled"].median}
        figures["compiled_over_fast"] = times["compiled"].median / times["fast"].median
    if arguments.graph:
        results["graph"] = timed["graph"].run()
        figures |= {
            "seconds_graph": times["graph"].median,
            "graph_over_fast": times["graph"].median / times["fast"].median,
        }
    if len(results) > 1:
        pairs = zip(*(logits for _, logits in results.values()))
        figures["largest_logit_difference"] = max(float((a - b).abs().max()) for a, *others in pairs for b in others)
    figures["parts"] = harness.shares(seconds)
    figures["floor_parts_seconds"] = least = {name: one.seconds(rates) for name, one in counted.items()}
    harness.print_parts(seconds, least)
    harness.finish(arguments, "latency", [figures], figures)


if __name__ == "__main__":
    main()
