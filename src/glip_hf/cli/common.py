# Copyright 2026 The glip_hf authors. MIT licence.
"""Errors, argument types and model loading that the subcommands share.

No module of the command line imports torch or Transformers before its command runs: help, and errors of usage, take a
tenth of a second.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._program import USAGE
from ..values_glip import first_line
from . import quick

if TYPE_CHECKING:
    import torch

    from ..export import OnnxGlip
    from ..inference import GroundingOptions
    from ..modeling_glip import GlipForGrounding
    from ..processing_glip import GlipProcessor


class CliError(Exception):
    """The request cannot be carried out: the message is shown as it is, the command exits with code 1."""


class UsageError(CliError):
    """The command line itself is wrong; the command exits with code 2."""

    exit_code = USAGE


# `demo.DEMO_MODEL`: the small model that comes with the package, `demo` on the command line
SHIPPED_MODEL = Path(__file__).parents[1] / "assets" / "glip-scenes"


def model_name(text: str) -> str:
    """A model's directory or Hub id; `demo` is the shipped model, unless there is a directory of that name."""
    return str(SHIPPED_MODEL) if text == "demo" and not Path(text).is_dir() else text


def add_model_argument(add: Callable[..., Any], **options: Any) -> None:
    """`--model`, as `load_model` takes it."""
    text = "model, adapter or prompt table: directory or Hub id; `demo` is the small model that comes with the package"
    add("--model", type=model_name, metavar="DIR|HUB", help=text, **options)


def number(name: str, kind: type, least: int, most: int | None = None) -> Callable[[str], Any]:
    """An argument type: a number from `least` to `most`; argparse itself reports what is not one, by `name`."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= (math.inf if most is None else most):
            wanted = f"{least} or more" if most is None else f"between {least} and {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    read.__name__ = name
    return read


positive = number("positive", int, 1)
count = number("count", int, 0)
fraction = number("fraction", float, 0, 1)


def add_device_arguments(parser: argparse._ActionsContainer) -> None:
    """`--device`, `--dtype` and `--runtime`, as `load_model` takes them."""
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best available)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto"),
        default="float32",
        help="of the model (%(default)s); auto: bfloat16 on a CPU that multiplies in it, else float32",
    )
    text = "of a model that glip export wrote to a folder (default: openvino if it is installed)"
    add("--runtime", choices=("auto", "onnxruntime", "openvino"), default="auto", help=text)


def choose_device(name: str) -> "torch.device":
    """The device of that name (`auto` prefers an accelerator); a CliError if this machine does not have it."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError):
        raise CliError(f"--device {name}: not available on this machine; leave it out or use --device cpu") from None
    return device


def load_exported(folder: Path, device: str, dtype: str, runtime: str) -> "tuple[OnnxGlip, GlipProcessor]":
    """See `load_model`; `folder` is what `glip export` wrote."""
    import torch

    from ..export import OnnxGlip

    if device not in ("auto", "cpu"):
        raise CliError(f"--device {device}: exported models run on cpu here; glip_hf.export.OnnxGlip takes providers")
    if runtime == "auto":
        runtime = "openvino" if find_spec("openvino") else "onnxruntime"
    try:
        model = OnnxGlip(folder, runtime=runtime, dtype=getattr(torch, "float32" if dtype == "auto" else dtype))
    except ValueError as error:
        raise CliError(first_line(error)) from None
    if model.processor is None:
        raise CliError(f"{folder}: no processor_config.json beside the graphs; glip export writes one")
    quick.loaded()
    return model, model.processor


def load_model(
    source: str, device: str = "cpu", dtype: str = "float32", runtime: str | None = None
) -> "tuple[GlipForGrounding | OnnxGlip, GlipProcessor]":
    """The model in evaluation mode on its device, and its processor.

    Args:
        source: a converted model; the adapter or prompt table that fine-tuning saved, with the model it names; or the
            folder that `glip export` wrote, where there is a `runtime` for it.
        dtype: by name, or auto: `kernels.fastest_dtype`, told on stderr; float32 of an exported model.

    Raises:
        CliError: if `source` is none of them.
        ImportError: for an adapter, if `peft` is not installed.
        ValueError: from `read_config`.
    """
    if (Path(source) / "head.onnx").is_file():
        if runtime is None:
            raise CliError(f"{source} has exported graphs, for ground, demo and evaluate: give the model itself here")
        return load_exported(Path(source), device, dtype, runtime)
    if runtime not in (None, "auto"):
        remedy = f"glip export --model {source} --output FOLDER, then --model FOLDER"
        raise UsageError(f"--runtime {runtime} runs exported models: {remedy}")
    import torch
    from transformers.utils import logging

    from .. import kernels
    from .._extras import require
    from ..conversion.restore import find_model, model_directory, read_config
    from ..modeling_glip import GlipForGrounding
    from ..processing_glip import GlipProcessor

    logging.disable_progress_bar()  # loading weights takes seconds
    target, (found, tuned_from) = choose_device(device), find_model(source)
    config = read_config(source, found)
    if dtype == "auto":
        dtype = str(kernels.fastest_dtype(target)).removeprefix("torch.")
        print(f"--dtype auto: {dtype} on this {target.type}", file=sys.stderr)
    try:
        tuned, base = tuned_from or (None, source)
        directory = model_directory(base)
        own = model_directory(source) if tuned else directory
        with quick.without_sympy(config.backbone_config.model_type):
            model = GlipForGrounding.from_pretrained(directory, config=config, dtype=getattr(torch, dtype))
        if tuned == "adapter":
            require("peft", "lora")
            model.load_adapter(str(own))
        elif tuned:
            model.load_prompt_table(own)
        processor = GlipProcessor.from_pretrained(own if (own / "processor_config.json").is_file() else directory)
    except (OSError, ValueError) as error:
        raise CliError(f"{source}: cannot be loaded ({first_line(error)})") from None
    quick.loaded()
    return model.to(target).eval(), processor


def grounding_options(arguments: argparse.Namespace, **others: Any) -> "GroundingOptions":
    """The options of the engine that a command line has under their names, and others."""
    from ..inference import GroundingOptions

    values = vars(arguments) | others
    names = (field.name for field in fields(GroundingOptions) if field.name in values)
    return GroundingOptions(**{name: values[name] for name in names})


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """The options that the scripts of self-training share, on one machine and on a cluster."""
    add = parser.add_argument
    add("--input", required=True, nargs="+", help="shards: paths, or patterns in quotes")
    add("--overwrite", action="store_true", help="label again what an earlier run labelled")
    add("--threshold", type=fraction, default=0.5, metavar="P", help="lowest score of a box (%(default)s)")
    add("--nms-threshold", type=fraction, default=0.6, metavar="IOU", help="IoU threshold of NMS (%(default)s)")
    add("--batch-size", type=positive, default=8, metavar="N", help="images per forward pass (%(default)s)")
    add("--format", choices=("parquet", "tar"), help="of the output; default as the input")
    add("--caption-column", metavar="NAME", help="column of the captions, if not caption or text")
    precisions = ("float32", "float16", "bfloat16")
    add("--precision", choices=precisions, default="float32", help="of the teacher (%(default)s)")
