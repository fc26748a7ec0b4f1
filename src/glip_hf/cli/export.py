# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip export`: a model to ONNX files or a torch.export program."""

import argparse
from pathlib import Path

from .common import CliError, UsageError, add_model_argument, load_model, positive

HELP = "model to ONNX files or a torch.export program"
DESCRIPTION = """\
Write a converted model as graphs that run without this package: NAME.onnx, with its weights in NAME.onnx.data; a folder
with three, for image encoder, text encoder and head, and the processor, which `glip ground --model FOLDER` runs; or
NAME.pt2 for torch.export. See docs/export.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_argument(add, required=True)
    add("--output", required=True, metavar="PATH", help="NAME.onnx, NAME.pt2, or a folder for three ONNX files")
    add("--height", type=positive, metavar="H", help="of the padded image, a multiple of 32")
    add("--width", type=positive, metavar="W", help="likewise; with --height")
    add("--dynamic", action="store_true", help="images of any size (the default without the two)")
    add("--caption-length", default="dynamic", metavar="T|dynamic", help="tokens (default: any number)")
    add("--batch-size", type=positive, metavar="N", help="images and captions per run (default: any number; .pt2: 1)")
    add("--opset", type=positive, metavar="N", help="of ONNX, 19 or later (default: 20)")
    add("--deform-conv", choices=("native", "basic"), help="basic: for runtimes without DeformConv (default: native)")
    add("--weights", choices=("float32", "float16", "int8"), help="of the ONNX files (default: float32)")
    add("--check", action="store_true", help="compare with the model on an image, and time both (ONNX)")
    add("--runtime", choices=("onnxruntime", "openvino"), help="of --check (onnxruntime)")


def run(arguments: argparse.Namespace) -> int:
    output, length = Path(arguments.output), arguments.caption_length
    if not arguments.output:
        raise UsageError("--output is empty: name a file or a folder")
    if output.suffix not in (".onnx", ".pt2") and (output.suffix or output.exists()) and not output.is_dir():
        raise UsageError(f"--output {output}: name a file .onnx, a folder, or .pt2 for a torch.export program")
    options = {name: getattr(arguments, name) for name in ("opset", "deform_conv", "weights")}
    options = {name: value for name, value in options.items() if value is not None}
    if output.suffix == ".pt2" and (arguments.check or options):
        raise UsageError(f"--output {output}: --check, --opset, --deform-conv and --weights are for .onnx files")
    if arguments.dynamic and (arguments.height or arguments.width):
        raise UsageError("--dynamic is for images of any size: leave it out, or --height and --width")
    if length != "dynamic" and not length.isdecimal():
        raise UsageError(f"--caption-length {length}: give a number of tokens, or dynamic")
    if arguments.runtime and not arguments.check:
        raise UsageError(f"--runtime {arguments.runtime} is that of --check: add it, or leave the runtime out")
    runtime = arguments.runtime or "onnxruntime"
    from .._extras import require
    from .._writing import check_place

    check_place(output)
    if arguments.check:
        require(runtime, "export" if runtime == "onnxruntime" else runtime)  # before minutes of work
    from ..export import TOLERANCE, check, export_onnx, fit_processor, save_program

    sizes = {name: getattr(arguments, name) for name in ("height", "width", "batch_size")}
    sizes["caption_length"] = None if length == "dynamic" else int(length)
    model, processor = load_model(arguments.model)
    if output.suffix == ".pt2":
        print(f"-> {save_program(model, output, **sizes)}")
        return 0
    print(f"-> {export_onnx(model, output, **sizes, **options)}")
    if output.is_dir():
        model.config.save_pretrained(output)
        fit_processor(processor, arguments.height, arguments.width).save_pretrained(output)
    if arguments.check:
        found = check(model, processor, output, runtime=runtime)
        print(
            f"largest difference: probability {found['probability']:.1e}, box {found['box']:.1e} of a side; "
            f"{runtime} {found['onnx_seconds']:.2f} s, model {found['torch_seconds']:.2f} s per image"
        )
        if max(found["probability"], found["box"]) > TOLERANCE:
            advice = "do not use it" if arguments.weights is None else f"that is the price of {arguments.weights}"
            raise CliError(f"{output} differs from the model by more than {TOLERANCE}: {advice}")
    return 0
