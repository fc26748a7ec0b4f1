# Copyright 2026 The glip_hf authors. MIT licence.
"""The fusion and the deformable convolution alone, as fast and in the textbook form: what `kernels.py` times."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floor, harness, textbook
from benchmarks.harness import Variant
from benchmarks.kernel_gains import measure_gains
from benchmarks.peak_memory import memory_figures, peak_memory
from glip_hf import GlipConfig
from glip_hf.kernels.cpu_linear import linear
from glip_hf.modeling_glip import GlipFusionLayer
from glip_hf.ops_glip import deform_conv2d

KERNELS = ("fusion-20", "fusion-256", "deformable")


def runner(function: Callable[..., Any], inputs: Sequence[Tensor], backward: bool) -> Callable[[], Any]:
    """A call of `function`, without gradients, or with a backward pass from the sum of its outputs."""

    def forward_only() -> Any:
        with torch.inference_mode():
            return function(*inputs)

    def both_ways() -> Any:
        outputs = function(*inputs)
        tensors = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
        torch.autograd.backward([x.sum() for x in tensors])
        return outputs

    return both_ways if backward else forward_only


def fusion(arguments: argparse.Namespace, tokens: int) -> tuple[dict[str, Variant], floor.Work, dict[str, Any]]:
    """One fusion layer of GLIP-T on one (image, caption) pair."""
    config = harness.tiny_config() if arguments.tiny else GlipConfig.from_preset(harness.PRESET)
    config._attn_implementation = "sdpa"  # as in a model
    layer = GlipFusionLayer(config).eval()
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight") or "gamma" in name))
    dtype, locations = getattr(torch, arguments.dtype), arguments.visual_tokens
    layer.to(arguments.device, dtype)
    vision, text = torch.randn(1, locations, config.d_model), torch.randn(1, tokens, config.text_config.hidden_size)
    vision, text = (x.to(arguments.device, dtype).requires_grad_(arguments.backward) for x in (vision, text))
    mask = torch.ones(1, tokens, dtype=torch.bool, device=arguments.device)
    forms = {"fast": layer, "reference": textbook.Fusion(layer, config=config)}
    variants = {name: Variant(runner(form, (vision, text, mask), arguments.backward)) for name, form in forms.items()}
    counted = floor.fusion_floor(config, locations, tokens, dtype.itemsize)
    return variants, counted, {"visual_tokens": locations, "tokens": tokens}


def deformable(arguments: argparse.Namespace) -> tuple[dict[str, Variant], floor.Work, dict[str, Any]]:
    """One 3x3 convolution on one channels-last feature map, the layout of the model's levels."""
    height, width = arguments.map
    channels, cells, dtype = arguments.channels, height * width, getattr(torch, arguments.dtype)

    def made(values: Tensor) -> Tensor:
        return values.to(arguments.device, dtype).requires_grad_(arguments.backward)

    features = made(torch.randn(1, cells, channels)).transpose(1, 2).unflatten(2, (height, width))
    offset = made(torch.randn(1, 18, height, width) * arguments.offset_spread)
    mask, bias = made(torch.rand(1, 9, height, width)), made(torch.zeros(channels))
    weight = made(torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5)
    columns, kernel = made(torch.randn(cells, 9 * channels)), made(weight.detach().flatten(1))
    inputs, backward = (features, offset, mask, weight, bias), arguments.backward
    variants = {
        "fast": Variant(runner(deform_conv2d, inputs, backward)),
        "reference": Variant(runner(textbook.deform_conv2d, inputs, backward)),
        "product": Variant(runner(nn.functional.linear, (columns, kernel, bias), backward)),
        "fastest_product": Variant(runner(linear, (columns, kernel, bias), backward)),
    }
    values = 2 * cells * channels + 27 * cells + 9 * channels**2
    counted = floor.work([(cells, 9 * channels, channels)], values, dtype.itemsize)
    return (
        variants,
        counted,
        {"map": f"{height}x{width}", "channels": channels, "offset_spread": arguments.offset_spread},
    )


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def main(argv: Sequence[str] | None = None, description: str | None = None) -> None:
    parser = harness.make_parser(description, weights_option="--weights")
    parser.add_argument("--model", action="store_true", dest="whole_model", help="the gain of each kernel in the model")
    parser.add_argument("--case", choices=["three", "coco80"], default="three", help="with --model")
    parser.add_argument("--train", action="store_true", help="with --model: a training step in place of inference")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="with --model")
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="alone; may be repeated; default: all three")
    parser.add_argument("--visual-tokens", type=int, default=17821, help="of the fusion")
    parser.add_argument("--map", type=int, nargs=2, default=(100, 167), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--channels", type=int, default=256, help="of the deformable convolution")
    parser.add_argument("--offset-spread", type=float, default=1.0, help="standard deviation in cells")
    parser.add_argument("--backward", action="store_true", help="forward and backward pass")
    arguments = harness.begin(parser, argv, "kernels")
    if arguments.whole_model:
        measure_gains(arguments)
        return
    made = {}
    for name in arguments.kernel or KERNELS:
        made[name] = deformable(arguments) if name == "deformable" else fusion(arguments, int(name.split("-")[1]))
    memories = {name: peak_memory(variants, arguments) for name, (variants, _, _) in made.items()}

    rows = []
    for name, (variants, counted, sizes) in made.items():
        harness.say(name)
        times, rates = harness.time_variants(variants, arguments)
        figures = {"kernel": name, "backward": arguments.backward, **sizes}
        figures |= harness.time_figures(times, rates, counted * (3 if arguments.backward else 1))
        figures |= memory_figures(memories[name])
        if "product" in times:
            figures["seconds_product"] = times["product"].median
            figures["ratio_over_gemm"] = times["fast"].median / times["product"].median
            figures["seconds_fastest_product"] = times["fastest_product"].median
            figures["ratio_over_fastest_gemm"] = times["fast"].median / times["fastest_product"].median
        fast, plain = (first(variants[form].run()).detach().float() for form in ("fast", "reference"))
        figures["largest_difference"] = float((fast - plain).abs().max())
        rows.append(figures)
    harness.finish(arguments, "kernels", rows, {row["kernel"]: row for row in rows})
