# Copyright 2026 The glip_hf authors. MIT licence.
"""The LVIS vocabulary, 1,203 class names in 31 captions: image and captions encoded once, or again for each pair.

    python benchmarks/vocabulary.py                        # 5 images, 480 x 640: about an hour on 2 CPU cores
    python benchmarks/vocabulary.py --runs 2 --no-reference

Three variants run in turn, with the same weights and post-processing:

* `fast`: the engine of the evaluators (`glip_hf.inference`). It encodes the image once, and the vocabulary once
  per data set. `ratio_vs_reference` includes the vocabulary, as if the data set had a single image; the vocabulary is
  also timed separately, and `ratio_vs_reference_in_a_data_set` excludes it.
* `naive`: `model(pixel_values, input_ids)` for every caption, as the original evaluates: image and text are encoded 31
  times per image. The ratio to it is the gain of sharing the encoders.
* `reference`: the same loop with the textbook form of the model (`textbook.py`).

Memory is the peak of a child process: of each variant, and of the engine with a single caption (`one_caption`); it
includes the text features of the vocabulary. Class names are those of ../shared/data/captions/lvis_v1_categories.json,
or with --annotations of any annotation file in the format of LVIS or COCO; `--names N` takes the first N. The image is
tests/fixtures/images/full_chelsea.png, once per round; the rest as in `harness.py`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from benchmarks import floor, harness
from benchmarks.harness import ROOT, SHARED, Variant
from benchmarks.part_timer import part, time_parts
from benchmarks.peak_memory import memory_figures, peak_memory
from benchmarks.textbook import textbook_view
from glip_hf import GlipForGrounding, GlipImageProcessorPil, GlipProcessor
from glip_hf.evaluation.run import predictions
from glip_hf.evaluation.tasks import Task, TaskImage
from glip_hf.inference import NO_LIMIT, GroundingEngine, GroundingOptions
from glip_hf.postprocess_glip import merge_detections, post_process_grounding

NAMES_A_CAPTION = 40
IMAGE = ROOT / "tests" / "fixtures" / "images" / "full_chelsea.png"


def make_task(annotations: Path, count: int | None) -> Task:
    """The first `count` classes of an annotation file as the vocabulary of a single image."""
    document = json.loads(annotations.read_text(encoding="utf-8"))
    categories = document["categories"] if isinstance(document, dict) else document
    categories = sorted(categories, key=lambda category: category["id"])[:count]
    names = [category["name"] for category in categories]
    return Task("lvis", [TaskImage(0, str(IMAGE))], names, [category["id"] for category in categories])


@torch.inference_mode()
def every_caption(engine: GroundingEngine, task: Task) -> dict[str, Tensor]:
    """The whole model once per caption, image and text encoded again."""
    model, processor, options = engine.model, engine.processor, engine.options
    words = processor(text=task.names, chunk_size=options.chunk_size, return_tensors="pt")
    pixels = processor(images=task.images[0].path, return_tensors="pt")
    pixels = {name: value.to(model.device) for name, value in pixels.items()}
    parts = []
    for row, mask in enumerate(words["attention_mask"]):
        length = int(mask.sum())
        tokens = {name: words[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
        maps = {"positive_map": words["positive_map"][row : row + 1, :, :length]}
        maps["label_ids"] = words["label_ids"][row : row + 1]
        outputs = model(**pixels, **{name: value.to(model.device) for name, value in (tokens | maps).items()})
        with part("post-processing"):
            parts += post_process_grounding(outputs, max_detections=options.max_detections)
    return merge_detections(parts, NO_LIMIT)


def engine_maker(model: GlipForGrounding, arguments: argparse.Namespace) -> Callable[[], GroundingEngine]:
    """Makes engines that share model and processor, but no encoded vocabulary."""
    short, long = sorted(arguments.size)
    images = GlipImageProcessorPil(size={"shortest_edge": short, "longest_edge": long})
    processor = GlipProcessor(images, BertTokenizer(str(arguments.vocab)))
    limits = {"max_detections": 300, "merged_limit": None}
    options = GroundingOptions(chunk_size=NAMES_A_CAPTION, workers=1, pairs=arguments.pairs, **limits)
    return lambda: GroundingEngine(model, processor, options)


def largest_difference(found: dict, expected: dict[str, Tensor]) -> float:
    """Between the scores of two lists of detections; NaN if they differ in length."""
    scores = torch.tensor(found["scores"])
    if len(scores) != len(expected["scores"]):
        return float("nan")
    return float((scores - expected["scores"].cpu()).abs().max()) if len(scores) else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--annotations", type=Path, default=SHARED / "data/captions/lvis_v1_categories.json")
    parser.add_argument("--vocab", type=Path, default=SHARED / "data/tokenizer/vocab.txt", help="of BERT")
    parser.add_argument("--names", type=int, help="only the first N class names")
    parser.add_argument(
        "--pairs", type=int, help="(image, caption) pairs per forward pass of the head; default: as in evaluation"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="short and long side, pixels")
    parser.add_argument("--no-reference", action="store_true", help="without the textbook form")
    arguments = harness.begin(parser, argv, "vocabulary")
    for path, option in ((arguments.annotations, "--annotations"), (arguments.vocab, "--vocab")):
        if not path.is_file():
            parser.error(f"{path} does not exist: give one with {option}.")
    if arguments.dtype != "float32":
        parser.error(f"--dtype {arguments.dtype}: the engine is timed in float32 only.")
    model, task = harness.load_model(arguments), make_task(arguments.annotations, arguments.names)
    one_caption = make_task(arguments.annotations, min(NAMES_A_CAPTION, len(task.names)))
    make_engine = engine_maker(model, arguments)
    found: dict[str, Any] = {}

    def of_engine(of: Task) -> Callable[[], None]:
        def run() -> None:
            (found["fast"],) = predictions(make_engine(), of)

        return run

    def loop(name: str, make: Callable[[], GroundingEngine]) -> Callable[[], None]:
        def run() -> None:
            found[name] = every_caption(make(), task)

        return run

    models, variants = [model], {"fast": Variant(of_engine(task)), "naive": Variant(loop("naive", make_engine))}
    if not arguments.no_reference:
        models.append(textbook_view(model))
        variants["reference"] = Variant(loop("reference", engine_maker(models[1], arguments)))
    memory = peak_memory(variants | {"one_caption": Variant(of_engine(one_caption))}, arguments)
    engine = make_engine()
    vocabulary = Variant(lambda: make_engine().encode(task.names))
    times, rates = harness.time_variants(variants | {"vocabulary": vocabulary}, arguments)
    parts, _ = time_parts(models, variants)
    lengths = [len(caption.input_ids) for caption in engine.encode(task.names)]
    pixels = engine.processor(images=str(IMAGE), return_tensors="pt")["pixel_values"]
    counted = floor.parts_floor(model.config, *pixels.shape[-2:], lengths)
    least = {name: one.seconds(rates) for name, one in counted.items()}

    figures = {"names": len(task.names), "captions": len(lengths), "tokens": sum(lengths)}
    figures["size"] = "x".join(str(side) for side in pixels.shape[-2:])
    once = times["vocabulary"].median
    figures["seconds_vocabulary_once"], figures["cpu_seconds_vocabulary_once"] = once, times["vocabulary"].median_cpu
    for name in ("naive", "reference"):
        figures |= harness.time_figures(times, rates, floor.total(list(counted.values())), other=name)
        if name in times:
            figures[f"ratio_vs_{name}_in_a_data_set"] = times[name].median / (times["fast"].median - once)
            figures[f"largest_score_difference_{name}"] = largest_difference(found["fast"], found[name])
    figures |= memory_figures(memory)
    if memory is not None:
        figures["peak_memory_mib_naive"] = memory["naive"].peak
        figures["peak_beyond_mib_one_caption"] = memory["one_caption"].peak - memory["one_caption"].before
        figures["peak_beyond_over_one_caption"] = figures["peak_beyond_mib"] / figures["peak_beyond_mib_one_caption"]
    figures["detections"] = len(found["fast"]["scores"])
    figures["parts"] = harness.shares(parts)
    harness.print_parts(parts, least)
    harness.finish(arguments, "vocabulary", [figures], figures)


if __name__ == "__main__":
    main()
