# Copyright 2026 The glip_hf authors. MIT licence.
"""A device against the CPU's plain float32 form: largest and mean differences of the outputs, of losses and gradients.

    python benchmarks/device_parity.py --device cuda
    python benchmarks/device_parity.py --tiny --size 64 96 --no-record     # on the CPU: checks that it runs

Rows: float32, bfloat16 and float16, each with kernels on and off; boxes are in pixels. Training is compared in float32,
and in bfloat16 under autocast, without dropout, stochastic depth and DropBlock, as the norm of the difference of all
gradients over the norm of the CPU's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.training import training_inputs
from glip_hf import GlipForGrounding, kernels

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def move(value: Any, device: str) -> Any:
    """Tensors within lists and dicts on another device."""
    if isinstance(value, dict):
        return {name: move(item, device) for name, item in value.items()}
    if isinstance(value, list):
        return [move(item, device) for item in value]
    return value.to(device)


@torch.no_grad()
def outputs_of(model: GlipForGrounding, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits, and boxes in pixels, in float32 on the CPU."""
    found = model.eval()(**{name: value for name, value in inputs.items() if name != "labels"})
    size = found.image_sizes.flip(1).repeat(1, 2)[:, None]
    return found.logits.float().cpu(), (found.pred_boxes.float() * size).cpu()


def gradients_of(model: GlipForGrounding, inputs: dict[str, Any], half: bool = False) -> tuple[float, Tensor]:
    """The loss and all gradients as one vector on the CPU, in evaluation mode: nothing is random."""
    model.eval().zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        loss = model(**inputs).loss
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat([grad.flatten().float().cpu() for grad in grads])


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tokens", type=int, default=64, help="of each of two captions")
    arguments = harness.begin(parser, argv, "device_parity")
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    arguments.device = "cpu"
    model = harness.load_model(arguments)
    arguments.device = device
    inputs = training_inputs(model, *arguments.size, 2, arguments.tokens)
    with kernels.disable():
        logits, boxes = outputs_of(model, inputs)
        loss, gradients = gradients_of(model, inputs)
    model.to(device)
    inputs = move(inputs, device)

    figures: dict[str, Any] = {"size": "x".join(map(str, arguments.size)), "tokens": arguments.tokens}
    figures["forms"] = " ".join(f"{key}={form}" for key, form in kernels.report(model.eval(), inputs).items())
    for half, off in itertools.product((False, True), (False, True)):
        with kernels.disable() if off else contextlib.nullcontext():
            own_loss, own = gradients_of(model, inputs, half)
        row = f"{'autocast' if half else 'training'}{'_plain' if off else ''}"
        figures[f"{row}_loss_difference"] = abs(own_loss - loss) / abs(loss)
        figures[f"{row}_gradient_difference"] = float((own - gradients).norm() / gradients.norm())
    for (name, dtype), off in itertools.product(DTYPES.items(), (False, True)):
        pixels = {"pixel_values": inputs["pixel_values"].to(dtype)}
        with kernels.disable() if off else contextlib.nullcontext():
            own_logits, own_boxes = outputs_of(model.to(dtype), inputs | pixels)
        row = f"{name}{'_plain' if off else ''}"
        differences = {"logits": (own_logits - logits).abs(), "boxes": (own_boxes - boxes).abs()}
        for what, difference in differences.items():
            figures |= {f"{row}_{what}_max": float(difference.max()), f"{row}_{what}_mean": float(difference.mean())}
    harness.finish(arguments, "device_parity", [figures], figures)


if __name__ == "__main__":
    main()
