# Copyright 2026 The glip_hf authors. MIT licence.
"""One training step, from pixels and token ids to updated weights: the model against its textbook form.

    python benchmarks/training.py                    # 480 x 640, 2 images, captions of 194 tokens
    python benchmarks/training.py --size 320         # 320 x 320
    python benchmarks/training.py --tokens 20 --batch 4

A step is forward, loss, backward, clipping to norm 1 and AdamW (fused), with dropout, stochastic depth and DropBlock
on. Four variants run in turn: both forms, each also with gradient checkpointing of every block of the tower, Swin layer
and text layer. They train the same weights at a learning rate of 1e-8: time does not depend on what is learned. The
textbook form (`textbook.py`) processes one (image, caption) pair at a time and pads captions to 256 tokens.

Memory is that of a second step, since the first one allocates the optimizer's moments. The floor counts three forward
passes and an optimizer step (`floor.py`); the rest as in `harness.py`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import floor, harness
from benchmarks.harness import Variant
from benchmarks.part_timer import differentiated, part, time_parts
from benchmarks.peak_memory import memory_figures, peak_memory
from benchmarks.textbook import textbook_view
from glip_hf import GlipForGrounding
from glip_hf._compat import disable_checkpointing, enable_checkpointing

BOXES = 8  # per image


def random_labels(batch: int, height: int, width: int, tokens: int, device: str) -> list[dict[str, Tensor]]:
    """Boxes with sides of 10 to 50 % of the image's, anywhere in it, one token each."""
    labels = []
    for _ in range(batch):
        scale = torch.tensor([width, height])
        sides = (0.1 + 0.4 * torch.rand(BOXES, 2)) * scale
        corners = torch.rand(BOXES, 2) * (scale - sides)
        positive_map = torch.zeros(BOXES, tokens)
        positive_map[torch.arange(BOXES), 1 + torch.randint(tokens - 2, (BOXES,))] = 1
        label = {"boxes": torch.cat([corners, corners + sides], dim=1), "positive_map": positive_map}
        labels.append({name: value.to(device) for name, value in label.items()})
    return labels


def training_inputs(model: GlipForGrounding, height: int, width: int, batch: int, tokens: int) -> dict[str, Any]:
    """Random images, captions and labels."""
    device = str(model.device)
    caption = harness.random_caption(tokens, 1, model.config.text_config.vocab_size, device, batch)
    labels = random_labels(batch, height, width, tokens, device)
    return harness.random_image(height, width, device, batch) | caption | {"labels": labels}


def make_optimizer(model: GlipForGrounding) -> torch.optim.Optimizer:
    """AdamW for the trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-8, fused=True)


def train_step(
    model: GlipForGrounding, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace, inputs: dict[str, Any]
) -> float:
    """One training step; returns the loss."""
    with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.dtype != "float32"):
        loss = model(**inputs).loss
    loss.backward()
    differentiated()
    with part("optimizer"):
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[480, 640], help="one side of a square, or height width")
    parser.add_argument("--batch", type=int, default=2, help="images per step, each with its own caption")
    parser.add_argument("--tokens", type=int, default=194, help="of each caption")
    parser.add_argument("--no-checkpointing", action="store_true", help="without the variants with checkpointing")
    arguments = harness.begin(parser, argv, "training")
    if len(arguments.size) > 2:
        parser.error(f"--size {arguments.size}: give one side, or height and width.")
    height, width, batch = arguments.size[0], arguments.size[-1], arguments.batch

    model = harness.load_model(arguments).train()
    inputs = training_inputs(model, height, width, batch, arguments.tokens)
    optimizer = make_optimizer(model)
    forms, variants = {"fast": model, "reference": textbook_view(model)}, {}
    for name, form in forms.items():
        run = functools.partial(train_step, form, optimizer, arguments, inputs)
        variants[name] = Variant(run, functools.partial(disable_checkpointing, form))
        if not arguments.no_checkpointing:
            variants[f"{name}_checkpointed"] = Variant(run, functools.partial(enable_checkpointing, form))
    memory = peak_memory(variants, arguments, warm_up=True)
    times, rates = harness.time_variants(variants, arguments, max(arguments.warmup, 1))
    seconds, losses = time_parts(list(forms.values()), variants)
    padded, itemsize = inputs["pixel_values"].shape[-2:], getattr(torch, arguments.dtype).itemsize
    counted = floor.parts_floor(model.config, *padded, [arguments.tokens], itemsize)
    counted = {name: one * (3 * batch) for name, one in counted.items()}
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counted["optimizer"] = floor.optimizer_floor(trained)
    least = {name: one.seconds(rates) for name, one in counted.items()}

    figures = {"size": f"{height}x{width}", "batch": batch, "tokens": arguments.tokens}
    figures |= harness.time_figures(times, rates, floor.total(list(counted.values()))) | memory_figures(memory)
    for name in variants:
        figures[f"images_a_second_{name}"] = batch / times[name].median
        if name.endswith("checkpointed"):
            figures[f"seconds_{name}"] = times[name].median
            if memory is not None:
                figures[f"peak_memory_mib_{name}"] = memory[name].peak
    figures["losses"] = losses
    figures["parts"] = harness.shares(seconds)
    harness.print_parts(seconds, least)
    harness.finish(arguments, "training", [figures], figures)


if __name__ == "__main__":
    main()
