# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip export`: a model to an ONNX file or a torch.export program."""

import argparse
from pathlib import Path

from .common import CliError, UsageError, add_model_argument, load_model, positive

HELP = "model to an ONNX file or a torch.export program"
DESCRIPTION = """\
Write a converted model as a graph that runs without this package: NAME.onnx, with its weights in NAME.onnx.data,
or NAME.pt2 for torch.export. See docs/export.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_argument(add, required=True)
    add("--output", required=True, metavar="FILE", help="NAME.onnx or NAME.pt2")
    add("--height", type=positive, metavar="H", help="of the padded image, a multiple of 32")
    add("--width", type=positive, metavar="W", help="likewise; with --height")
    add("--dynamic", action="store_true", help="images of any size (the default without the two)")
    add("--caption-length", default="dynamic", metavar="T|dynamic", help="tokens (default: any number)")
    add("--opset", type=positive, metavar="N", help="of ONNX, 19 or later (default: 20)")
    add("--check", action="store_true", help="compare with the model on an image, and time both (ONNX)")


def run(arguments: argparse.Namespace) -> int:
    output, length = Path(arguments.output), arguments.caption_length
    if output.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--output {output}: name a file .onnx, or .pt2 for a torch.export program")
    if output.suffix == ".pt2" and (arguments.check or arguments.opset):
        raise UsageError(f"--output {output}: --check and --opset are for .onnx files")
    if arguments.dynamic and (arguments.height or arguments.width):
        raise UsageError("--dynamic is for images of any size: leave it out, or --height and --width")
    if length != "dynamic" and not length.isdecimal():
        raise UsageError(f"--caption-length {length}: give a number of tokens, or dynamic")
    from ..export import OPSET, TOLERANCE, check, export_onnx, save_program

    sizes = {
        "height": arguments.height,
        "width": arguments.width,
        "caption_length": None if length == "dynamic" else int(length),
    }
    model, processor = load_model(arguments.model)
    if output.suffix == ".pt2":
        print(f"-> {save_program(model, output, **sizes)}")
        return 0
    print(f"-> {export_onnx(model, output, **sizes, opset=arguments.opset or OPSET)}")
    if arguments.check:
        found = check(model, processor, output)
        print(
            f"largest difference: probability {found['probability']:.1e}, box {found['box']:.1e} of a side; "
            f"onnxruntime {found['onnx_seconds']:.2f} s, model {found['torch_seconds']:.2f} s per image"
        )
        if max(found["probability"], found["box"]) > TOLERANCE:
            raise CliError(f"{output} differs from the model by more than {TOLERANCE}: do not use it")
    return 0
