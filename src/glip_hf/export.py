# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP as graphs that need none of this code to run: `torch.export` programs, ONNX files, and `OnnxGlip` for these.

A graph takes what a processor gives and returns what post-processing reads; preprocessing, tokenisation and NMS stay
outside. In three graphs the image encoder, the text encoder and the rest (`PARTS`) run apart, so that an image is
encoded once for many captions. `glip export` is the command, docs/export.md the manual.

ONNX goes through Transformers' own exporter (`transformers.exporters`), which patches in while it traces what ONNX says
better in another way: the deformable convolution and the fusion.

Letters: B images, N captions or (image, caption) pairs, T tokens, C classes per caption, A locations, L levels, D width
of the head, E width of the text encoder.
"""

import contextlib
import copy
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing_config
from transformers.utils import logging as transformers_logging

from ._extras import require
from ._writing import patient_file, replacing, writing
from .configuration_glip import PYRAMID_STRIDES
from .demo import DEMO_NAMES, load_demo_image
from .inference import GroundingEngine, GroundingOptions
from .modeling_glip import GlipForGrounding
from .ops_glip import NUM_POINTS, to_pyramid
from .outputs_glip import (
    GlipGroundingOutput,
    GlipImageFeatures,
    GlipTextFeatures,
    check_inputs,
    check_shape,
    check_tokens,
    class_maps,
    pair_captions,
    select,
)
from .processing_glip import GlipBatchFeature, GlipProcessor
from .repeated_layers import register_patch, traced_once
from .values_glip import check_number, quote

DIVISOR = 32  # sides of the graph's images are multiples of it, as the image processor pads them
OPSET = 20  # of ONNX files unless said otherwise; 20 is the first with GELU as one node
FIRST_OPSET = 19  # the first with `DeformConv`

# How deformable convolutions are written: one `DeformConv` node each, or `GridSample` and a matrix product
DEFORM_CONVS = ("native", "basic")

INPUT_AXES = {
    "pixel_values": ("batch", None, "height", "width"),
    "pixel_mask": ("batch", "height", "width"),
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "tokens"),
    "token_type_ids": ("batch", "tokens"),
}
FEATURE_AXES = {"vision": ("batch", "locations", None), "text": ("batch", "tokens", None)}
OUTPUT_AXES = {
    "logits": ("batch", "locations", "tokens"),
    "bbox_regression": ("batch", "locations", None),
    "pred_boxes": ("batch", "locations", None),
    "centerness_logits": ("batch", "locations"),
    "spatial_shapes": ("batch", None, None),
    "image_sizes": ("batch", None),
}
WEIGHTS = ("float32", "float16", "int8")  # of the weights in a file

# Values that a tensor has at least which is stored as float16: what is smaller (biases, norms) takes no room
SMALLEST_HALVED = 1024

AXES = INPUT_AXES | FEATURE_AXES | OUTPUT_AXES
# Inputs and outputs of each of the three graphs, by name
PARTS = {
    "image": (["pixel_values"], ["vision"]),
    "text": (["input_ids", "attention_mask", "token_type_ids"], ["text"]),
    "head": (["pixel_mask", "attention_mask", "vision", "text"], list(OUTPUT_AXES)),
}

METADATA = "glip_hf"  # key of an ONNX file's metadata that holds what `OnnxGlip` must know, as JSON
TOLERANCE = 1e-3  # largest difference to the model in probabilities and in boxes (normalised) that a check lets pass


class GlipGraph(nn.Module):
    """`GlipForGrounding`, or one of its `PARTS`, with tensors in, and a dictionary of tensors out."""

    def __init__(self, model: GlipForGrounding, part: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs = PARTS[part] if part else (list(INPUT_AXES), list(OUTPUT_AXES))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        vision: Tensor | None = None,
        text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if self.outputs == ["vision"]:
            return {"vision": self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state}
        captions = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "return_dict": True}
        if self.outputs == ["text"]:
            return {"text": self.model.get_text_features(input_ids, **captions).last_hidden_state}
        if vision is None:
            inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "input_ids": input_ids, **captions}
        else:
            inputs = {
                "image_features": _join_levels(vision, pixel_mask),
                "text_features": GlipTextFeatures(last_hidden_state=text, attention_mask=attention_mask),
                "return_dict": True,
            }
        outputs = self.model(**inputs)
        return {name: outputs[name] for name in OUTPUT_AXES}


def _level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of each level's feature map for images of this size."""
    return [tuple((side + stride - 1) // stride for side in (height, width)) for stride in PYRAMID_STRIDES]


def _join_levels(vision: Tensor, pixel_mask: Tensor) -> GlipImageFeatures:
    """What the head reads of visual tokens [B, A, D] of images with these masks [B, H, W]."""
    real = pixel_mask.bool()
    shapes = _level_shapes(*pixel_mask.shape[1:])
    if torch.compiler.is_exporting():
        # A trace takes the number of locations for one more size of its own; it follows from those of the image.
        shape = (vision.shape[0], sum(height * width for height, width in shapes), vision.shape[2])
        vision = torch.onnx.ops.symbolic("Identity", [vision], dtype=vision.dtype, shape=shape, version=FIRST_OPSET)
    return GlipImageFeatures(
        last_hidden_state=vision,
        feature_maps=tuple(to_pyramid(vision, shapes)),
        image_sizes=torch.stack([real.any(2).sum(1), real.any(1).sum(1)], dim=1),
    )


def _open_sides(window: int) -> tuple[int, int]:
    """Height and width to trace with where any may come.

    A trace takes for granted what is so in its sample. So here no two levels have equal sides, each holds more than one
    window of Swin's, and none a whole number of windows (but at strides where all images do).
    """

    def fits(cells: int) -> bool:
        return cells > window and all(cells * scale % window or scale % window == 0 for scale in (1, 2, 4, 8))

    height = next(cells for cells in range(13, 13 + 3 * window) if fits(cells))
    width = next(cells for cells in range(height + 4, height + 4 + 3 * window) if fits(cells))
    return height * DIVISOR, width * DIVISOR


def _traced_inputs(
    model: GlipForGrounding,
    height: int | None = None,
    width: int | None = None,
    caption_length: int | None = None,
    batch_size: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs to trace with, of the sizes given, and `dynamic_shapes` of `torch.export`: their axes of any size. Those
    of the whole graph and of its parts."""
    if (height is None) != (width is None):
        raise ValueError(f"height={height} and width={width}: give both for one image size, or neither for all sizes.")
    sizes = {"height": height, "width": width, "caption_length": caption_length, "batch_size": batch_size}
    for name, value in sizes.items():
        if value is not None:
            check_number(name, value, least=1 if name == "batch_size" else -math.inf, whole=True)
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < DIVISOR or side % DIVISOR):
            raise ValueError(
                f"{name}={side} is not a multiple of {DIVISOR}, which the image processor pads images to: "
                f"take {max(1, round(side / DIVISOR)) * DIVISOR}."
            )
    longest = model.config.max_text_length
    if caption_length is not None and not 2 < caption_length <= longest:
        raise ValueError(
            f"caption_length={caption_length} must be 3 to {longest}, the most tokens this model reads, "
            "[CLS] and [SEP] among them."
        )
    found = next(model.parameters())
    if any(type(parameter.data) is not Tensor for parameter in model.parameters()):
        raise ValueError("the model is quantised: export the one it was made of, with weights='int8' for ONNX files.")
    if found.dtype != torch.float32 or found.device.type != "cpu":
        raise ValueError(
            f"the model is {found.dtype} on {found.device}: load it in float32 on cpu for the export. Runtimes convert "
            "graphs to other precisions and devices."
        )
    if height is None or width is None:
        sides, open_axes = _open_sides(getattr(model.config.backbone_config, "window_size", 1)), {"height", "width"}
    else:
        sides, open_axes = (height, width), set()
    open_axes |= {name for name, size in (("tokens", caption_length), ("batch", batch_size)) if size is None}
    if open_axes & {"height", "width"}:
        open_axes.add("locations")
    batch = batch_size or 2  # 1 would be taken for granted
    tokens = torch.ones(batch, caption_length or min(11, longest), dtype=torch.int64)
    locations = sum(map(math.prod, _level_shapes(*sides)))
    inputs = {  # no tensor twice: to a trace that would be one input
        "pixel_values": torch.zeros(batch, 3, *sides),
        "pixel_mask": torch.ones(batch, *sides, dtype=torch.int64),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
        "vision": torch.zeros(batch, locations, model.config.d_model),
        "text": torch.zeros(*tokens.shape, model.config.text_config.hidden_size),
    }
    return inputs, {
        name: {i: torch.export.Dim.AUTO for i, axis in enumerate(AXES[name]) if axis in open_axes} for name in inputs
    }


@contextlib.contextmanager
def _ready(model: GlipForGrounding, **attention: str) -> Iterator[None]:
    """The model in evaluation mode, without gradients, its parts with this attention; afterwards as it was."""
    training = model.training
    before = {name: getattr(model.config, name)._attn_implementation for name in attention}
    model.set_attn_implementation(attention)
    try:
        # Otherwise a trace is bound to sizes at which a slice or a padding changes something, as in its sample.
        oblivious = tracing_config.patch(backed_size_oblivious=True)
        # Results that are kept for the next operation of the same shapes cost more than they save: 34 s and 22 s.
        from torch._dynamo import config as dynamo_config  # 1 s, which running a file does without

        uncached = dynamo_config.patch(fake_tensor_cache_enabled=False)
        with torch.no_grad(), oblivious, uncached:
            model.eval()
            yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def export_program(model: GlipForGrounding, **sizes: int | None) -> torch.export.ExportedProgram:
    """Trace the model with `torch.export`: (image, caption) pairs per run.

    Args:
        model: in float32, on CPU.
        sizes: `height`, `width` of the padded images, multiples of 32; `caption_length`, tokens of the captions, up to
            `config.max_text_length`; each None, the default, for any. `batch_size`; None, the default, for 1: a program
            for any number would refuse a single pair.

    Returns:
        A program from the inputs `INPUT_AXES` (by name) to a dictionary of tensors with the keys of `OUTPUT_AXES`.

    Raises:
        ValueError: for sizes that no processor gives or the model does not read, and models of other precision.
    """
    if sizes.get("batch_size") is None:
        sizes["batch_size"] = 1
    inputs, axes = _traced_inputs(model, **sizes)
    with _ready(model):
        graph = GlipGraph(model)
        inputs, axes = ({name: of[name] for name in graph.inputs} for of in (inputs, axes))
        return torch.export.export(graph, (), inputs, dynamic_shapes=axes, strict=False)


def save_program(model: GlipForGrounding, output: str | os.PathLike[str], **sizes: int | None) -> Path:
    """Write `export_program(model, **sizes)` to a file, conventionally .pt2, for `torch.export.load`."""
    path = Path(output)
    program = export_program(model, **sizes)
    with replacing(path) as new, patient_file(new) as file:
        torch.export.save(program, file)
    return path


_deform_conv: ContextVar[str] = ContextVar("deform_conv", default="native")


@register_patch("onnx", "glip_hf.modeling_glip.deform_conv2d")
def _write_deform_conv(_original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return _deform_conv_of_basic_operations if _deform_conv.get() == "basic" else _deform_conv_as_node


def _deform_conv_as_node(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """See `ops_glip.deform_conv2d`; its conventions are those of ONNX."""
    return torch.onnx.ops.symbolic(
        "DeformConv",
        [features, weight, offset, bias, mask],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]},
        dtype=features.dtype,
        shape=(features.shape[0], weight.shape[0], *offset.shape[2:]),
        version=FIRST_OPSET,
    )


def _deform_conv_of_basic_operations(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """See `ops_glip.deform_conv2d`: every sampling point by `GridSample`, and one matrix product."""
    height, width = features.shape[2:]
    rows, columns = offset.shape[2:]
    step = torch.arange(3, dtype=offset.dtype) - 1
    row = torch.arange(rows, dtype=offset.dtype) * stride
    column = torch.arange(columns, dtype=offset.dtype) * stride
    y = offset[:, ::2] + step.repeat_interleave(3)[:, None, None] + row[:, None]
    x = offset[:, 1::2] + step.repeat(3)[:, None, None] + column
    # In GridSample's units -1 and 1 are the outer edges of the first and of the last cell.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    points = nn.functional.grid_sample(features, grid.flatten(1, 2), align_corners=False)
    points = (points * mask.flatten(1, 2)[:, None]).flatten(2)  # [B, C, 9 * h * w]
    points = points.unflatten(2, (NUM_POINTS, rows * columns)).flatten(1, 2)
    return (weight.flatten(1) @ points + bias[:, None]).unflatten(2, (rows, columns))


@register_patch("onnx", "glip_hf.kernels.fusion.attend_sdpa")
def _attend_written_out(_original: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def attend(
        vision: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `kernels.fusion.attend_sdpa`. The scores are computed once for each direction: a second product is faster
        than ONNX Runtime's transposition, and a softmax wants its rows side by side."""
        bias = key_bias.masked_fill(~text_mask[:, None], torch.finfo(key_bias.dtype).min)[:, None]
        flat_keys, flat_values = keys.flatten(1, 2), values.flatten(1, 2)
        scores = (vision @ flat_keys.transpose(1, 2)).unflatten(2, keys.shape[1:3])
        image_side = (scores + bias).softmax(-1).flatten(2) @ flat_values
        text_side = (flat_keys @ vision.transpose(1, 2)).softmax(-1) @ vision
        return image_side, text_side.unflatten(1, keys.shape[1:3])

    return attend


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print progress to stdout, which is for results, and warn of versions that *our* tests have tried."""
    verbosity = transformers_logging.get_verbosity()
    # The second is of quantisation, which recommends to run ONNX Runtime's optimiser before.
    loggers = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter._registration", None)]
    levels = [logger.level for logger in loggers]
    transformers_logging.set_verbosity_error()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # within PyTorch's own code
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)


def _name_axes(graph: Any, ir: Any) -> None:
    """Descriptive names for the dynamic axes of inputs and outputs, and no shapes of what lies between.

    ONNX Runtime lets values share a buffer whose axes have the same names. The names that the exporter leaves behind,
    mixed with those that ONNX Runtime infers, call different sides alike; what it infers alone is right.
    """
    for value in (*graph.inputs, *graph.outputs):
        pairs = zip(value.shape, AXES[value.name], strict=True)
        value.shape = ir.Shape([size if isinstance(size, int) else name for size, name in pairs])
    outputs = set(graph.outputs)
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in outputs and value.shape is not None and not value.shape.is_static():
                value.shape = None


def export_onnx(
    model: GlipForGrounding,
    output: str | os.PathLike[str],
    height: int | None = None,
    width: int | None = None,
    caption_length: int | None = None,
    opset: int = OPSET,
    batch_size: int | None = None,
    deform_conv: str = "native",
    weights: str = "float32",
) -> Path:
    """Write the model as an ONNX file, and its weights beside it as `NAME.onnx.data`: the two belong together.

    Args:
        model, height, width, caption_length, batch_size: see `export_program`.
        output: file to write, `NAME.onnx`; or a folder for the three graphs `image.onnx`, `text.onnx` and `head.onnx`.
            Folders are made, older files replaced.
        opset: version of ONNX's operators, 19 or later.
        deform_conv: "native" or "basic", for runtimes that have no `DeformConv`; see `DEFORM_CONVS`.
        weights: "float32", "float16" (stored in half the size, computed in float32) or "int8" (matrix products in int8,
            activations quantised while they run); `WEIGHTS`.

    Returns:
        The path of the file or folder.

    Raises:
        ValueError: as `export_program`, and for an opset without deformable convolution or another choice.
        ImportError: without the extra `export`.
    """
    inputs, axes = _traced_inputs(model, height, width, caption_length, batch_size)
    for name, value, choices in (("deform_conv", deform_conv, DEFORM_CONVS), ("weights", weights, WEIGHTS)):
        if value not in choices:
            raise ValueError(f"{name}={quote(value)} must be {' or '.join(map(repr, choices))}.")
    if check_number("opset", opset, whole=True) < FIRST_OPSET:
        raise ValueError(
            f"opset={opset} has no deformable convolution: take {FIRST_OPSET} or later ({OPSET} is the default)."
        )
    require("onnx", "export")
    require("onnxscript", "export")
    ir = require("onnx_ir", "export")
    exporter = require("transformers.exporters.exporter_onnx", "export")

    path = Path(output)
    files = {None: path} if path.suffix == ".onnx" else {part: path / f"{part}.onnx" for part in PARTS}
    quantization = {}
    if weights == "int8":
        quantizers = require("transformers.exporters", "export")
        if not hasattr(quantizers, "OnnxRuntimeQuantizer"):
            raise ImportError("weights='int8' needs a newer Transformers: 5.23 has OnnxRuntimeQuantizer.")
        # 7 bits: without VNNI, ONNX Runtime adds two products with 8-bit weights in 16 bits, which are too few.
        chosen = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True, "reduce_range": True}
        quantization["quantizer"] = quantizers.OnnxRuntimeQuantizer(quantizers.OnnxRuntimeDynamicConfig(**chosen))
    vocabulary = model.config.text_config.vocab_size
    about = {"max_text_length": model.config.max_text_length, "vocabulary": vocabulary, "divisor": DIVISOR}
    for part, file in files.items():
        graph = GlipGraph(model, part)
        own, dynamic = ({name: of[name] for name in graph.inputs} for of in (inputs, axes))
        config = exporter.OnnxConfig(dynamic_shapes=dynamic, opset_version=opset, **quantization)
        chosen = _deform_conv.set(deform_conv)
        try:
            with _quiet(), _ready(model, backbone_config="eager", text_config="eager"), traced_once(model, graph):
                program, _ = exporter.OnnxExporter().export_program(graph, own, config)
        finally:
            _deform_conv.reset(chosen)
        # ONNX Runtime would warn of each unused constant at each load; where each node was traced takes megabytes.
        for name in ("RemoveUnusedNodesPass", "ClearMetadataAndDocStringPass"):
            getattr(require("onnx_ir.passes.common", "export"), name)()(program)
        _name_axes(program.graph, ir)
        if weights == "float16":
            _halve_weights(program.graph, ir)
        program.metadata_props[METADATA] = json.dumps(about)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and moved: a session that still reads the older files keeps them.
            with tempfile.TemporaryDirectory(dir=file.parent) as staging:
                ir.save(program, Path(staging) / file.name, external_data=f"{file.name}.data")
                for written in sorted(Path(staging).iterdir(), reverse=True):
                    os.replace(written, file.parent / written.name)
    return path


def _halve_weights(graph: Any, ir: Any) -> None:
    """Store float32 weights as float16, each with a `Cast` back, which runtimes do once, when they load."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST_HALVED:
            continue
        half = ir.Value(
            name=f"{name}.half", const_value=ir.tensor(tensor.numpy().astype(np.float16), name=f"{name}.half")
        )
        half.dtype, half.shape = ir.DataType.FLOAT16, value.shape
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, tensor.dtype, value.shape
        graph.register_initializer(half)
        graph.insert_before(graph[0], cast)


class OnnxRuntime:
    """A file in ONNX Runtime; for the arguments see `OnnxGlip`.

    Attributes:
        shapes: of the inputs, by name; a size that may be any is not an integer.
        about: what the file says of itself, None if it is not of `export_onnx`.
    """

    def __init__(self, path: Path, threads: int | None, dtype: torch.dtype, providers: list[Any] | None) -> None:
        runtime = require("onnxruntime", "export")
        if dtype != torch.float32:
            raise ValueError(f"dtype={dtype} is for OpenVINO: an ONNX file says itself what ONNX Runtime computes in.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self.session = runtime.InferenceSession(
                os.fspath(path), options, providers=providers or ["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common class below this
            raise ValueError(
                f"{path} cannot be loaded by onnxruntime {runtime.__version__} ({str(error).splitlines()[0]}): its "
                "weights, NAME.onnx.data, must lie beside it, and DeformConv needs onnxruntime 1.25 or later."
            ) from error
        self.about = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names."""
        return self.session.run(names, feed)


class OpenVino:
    """A file in OpenVINO; see `OnnxRuntime`. `DeformConv` becomes OpenVINO's own deformable convolution."""

    def __init__(self, path: Path, threads: int | None, dtype: torch.dtype, providers: list[Any] | None) -> None:
        runtime = require("openvino", "openvino")
        if providers:
            raise ValueError(f"providers={providers} are of ONNX Runtime.")
        if dtype not in _OPENVINO_DTYPES:
            raise ValueError(f"dtype={quote(dtype)} must be one of {', '.join(map(str, _OPENVINO_DTYPES))}.")
        # Left to itself it computes in bfloat16 where the processor can.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _OPENVINO_DTYPES[dtype]}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        core = runtime.Core()
        extension = require("openvino.frontend.onnx", "openvino").ConversionExtension
        core.add_extension(extension("DeformConv", _openvino_deform_conv))
        try:
            model = core.read_model(path)
            self.compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ValueError(
                f"{path} cannot be loaded by openvino {runtime.__version__} ({str(error).strip().splitlines()[-1]}): "
                "its weights, NAME.onnx.data, must lie beside it."
            ) from error
        place = ["framework", METADATA]
        self.about = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
        self.shapes = {
            value.any_name: [size.get_length() if size.is_static else None for size in value.partial_shape]
            for value in model.inputs
        }

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names."""
        found = self.compiled(feed)
        return [found[name] for name in names]


_OPENVINO_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
RUNTIMES: dict[str, Callable[..., Any]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def _openvino_deform_conv(node: Any) -> list[Any]:
    """OpenVINO's form of a `DeformConv` node."""
    ops = require("openvino.opset15", "openvino")
    features, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    strides = node.get_attribute("strides")
    # Values beside the map are 0 for `bilinear_interpolation_pad`, as for ONNX; else those of the border.
    out = ops.deformable_convolution(
        features, offset, weight, strides, [1, 1], [1, 1], [1, 1], mask, "EXPLICIT", 1, 1, True
    )
    return ops.add(out, ops.unsqueeze(bias, [0, 2, 3])).outputs()


def fit_processor(processor: GlipProcessor, height: int | None, width: int | None) -> GlipProcessor:
    """The processor for graphs of images of this size, which scales and pads them to it; as it is, for those of any."""
    if height is None or width is None:
        return processor
    fitted = copy.copy(processor)
    fitted.image_processor = copy.copy(processor.image_processor)
    fitted.image_processor.size = {"max_height": height, "max_width": width}
    fitted.image_processor.pad_size = {"height": height, "width": width}
    return fitted


class OnnxGlip:
    """Exported ONNX files behind the interface of `GlipForGrounding`, run by ONNX Runtime or OpenVINO.

    ```python
    >>> glip = OnnxGlip("model.onnx", GlipProcessor.from_pretrained(model_directory))
    >>> glip.detect(image, ["cat", "remote control"], threshold=0.4)[0]
    >>> inputs = glip.prepare(image, ["cat", "remote control"])  # the same in three steps
    >>> outputs = glip(**inputs)
    >>> glip.processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.4)[0]
    ```

    With the three graphs of a folder an image is encoded once for all its captions, with a single file each time.

    Attributes:
        height, width, caption_length, batch_size: the one size the file was exported for; None for any.
        max_text_length: the most tokens a caption may have.
        processor: the one given, or that of the folder; it scales images to the size of the file.
        files: the ONNX files; runtime, precision: as given by `runtime` and `dtype`.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        path: str | os.PathLike[str],
        processor: GlipProcessor | None = None,
        threads: int | None = None,
        providers: list[Any] | None = None,
        runtime: str = "onnxruntime",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            path: what `export_onnx` wrote, a file or a folder.
            processor: for `prepare` and `detect`; default: that of the folder, if it has one.
            threads: of one run; default: as many as the runtime sees cores.
            providers: of ONNX Runtime, in the order of preference; default: CPU.
            runtime: "onnxruntime" or "openvino".
            dtype: what OpenVINO computes in: float32, bfloat16 (faster on processors that have it) or float16.

        Raises:
            ValueError: if a file is not there, is not of `export_onnx`, or the runtime cannot load it.
            ImportError: without the extra `export` or `openvino`.
        """
        path = Path(path)
        self._arguments = (path, processor, threads, providers, runtime, dtype)
        files = {part: path / f"{part}.onnx" for part in PARTS} if path.is_dir() else {None: path}
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime={quote(runtime)} must be {' or '.join(map(repr, RUNTIMES))}.")
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{file}: no such file; glip export writes one.")
        self.files, self.runtime, self.precision = list(files.values()), runtime, dtype
        self.sessions = {part: RUNTIMES[runtime](file, threads, dtype, providers) for part, file in files.items()}
        shapes: dict[str, Any] = {}
        for (part, session), file in zip(self.sessions.items(), files.values()):
            if session.about is None:
                raise ValueError(f"{file} was not written by glip export: its inputs and outputs are unknown.")
            if lacking := sorted(set(PARTS[part][0] if part else INPUT_AXES) - session.shapes.keys()):
                raise ValueError(
                    f"{file} is another graph, without {', '.join(lacking)}: name the folder of all three."
                )
            shapes |= session.shapes
        about = json.loads(session.about)
        self.vocabulary = about.get("vocabulary", sys.maxsize)  # older files do not say
        if processor is None and path.is_dir() and (path / "processor_config.json").is_file():
            processor = GlipProcessor.from_pretrained(path)
        self.dtype = torch.float32  # of inputs and outputs, whatever it computes in
        sizes = (*shapes["pixel_values"][2:], shapes["input_ids"][1], shapes["input_ids"][0])
        self.height, self.width, self.caption_length, self.batch_size = (
            size if isinstance(size, int) else None for size in sizes
        )
        self.max_text_length = self.caption_length or about["max_text_length"]
        self.processor = processor if processor is None else fit_processor(processor, self.height, self.width)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process is sent, opens the files anew: no runtime pickles its sessions."""
        return type(self), self._arguments

    def _processor(self) -> GlipProcessor:
        if self.processor is None:
            raise ValueError(
                "this OnnxGlip has no processor: OnnxGlip(path, GlipProcessor.from_pretrained(model_directory))."
            )
        return self.processor

    def prepare(self, images: Any, text: Any, **options: Any) -> GlipBatchFeature:
        """Model inputs from images and text, for the sizes of this file.

        Class names that do not fit a file's caption length are split into several captions. Images for a file of one
        size are scaled to the largest that fits it. Arguments are those of `GlipProcessor.__call__`.
        """
        options.setdefault("max_length", self.max_text_length)
        return self._processor()(images=images, text=text, return_tensors="pt", **options)

    def detect(self, images: Any, text: Any, threshold: float = 0.25, **options: Any) -> list[dict[str, Any]]:
        """Ground class names or captions in images.

        Args:
            images: an image or a list of them.
            text: a list of class names, such a list per image, or captions; see `GlipProcessor.__call__`.
            threshold: keep detections whose score is above this.
            **options: of the processor's call.

        Returns:
            One dictionary per image, best first; see `GlipProcessor.post_process_grounded_object_detection`.
        """
        if images is None or text is None:
            raise ValueError(f"{'text' if text is None else 'images'} is None: detect needs both.")
        engine = GroundingEngine(self, self._processor(), GroundingOptions(threshold=threshold))
        return engine.ground_inputs(self.prepare(images, text, **options))

    def eval(self) -> "OnnxGlip":
        """Itself: an exported model is always in evaluation mode."""
        return self

    def _run(self, part: str | None, feed: dict[str, Tensor], at_once: int) -> list[Tensor]:
        """The outputs of a graph for rows of inputs, so many rows at once (or as many as the file takes)."""
        session, (_, names), runs = self.sessions[part], PARTS.get(part, ((), list(OUTPUT_AXES))), []
        arrays = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in feed.items()}
        count, size = len(next(iter(feed.values()))), self.batch_size or at_once
        for start in range(0, count, size):
            rows = slice(start, start + size)
            if self.batch_size:  # the last row again where there are less
                rows = np.arange(start, start + size).clip(max=count - 1)
            runs.append(session.run(names, {name: value[rows] for name, value in arrays.items()}))
        return [torch.from_numpy(np.concatenate(parts)[:count]) for parts in zip(*runs)]

    def get_image_features(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **_: Any) -> GlipImageFeatures:
        """What `__call__` takes as `image_features`: of a single file the images as they are, to be encoded there."""
        check_shape("pixel_values", pixel_values, None, 3, None, None)
        check_shape("pixel_mask", pixel_mask, len(pixel_values), *pixel_values.shape[2:])
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values are {pixel_values.dtype}: give what the image processor makes of images.")
        pixel_mask = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
        pixels, mask = self._fit_images(pixel_values.float(), pixel_mask.long())
        if "image" in self.sessions:
            (vision,) = self._run("image", {"pixel_values": pixels}, len(pixels))
            return GlipImageFeatures(last_hidden_state=vision, feature_maps=(mask,))
        return GlipImageFeatures(last_hidden_state=mask.flatten(1)[..., None], feature_maps=(mask, pixels))

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> GlipTextFeatures:
        """What `__call__` takes as `text_features`; see `get_image_features`."""
        check_tokens(input_ids, attention_mask, token_type_ids, self.vocabulary)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        text = torch.stack([input_ids, types], dim=-1)
        if "text" in self.sessions:
            tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
            tokens = {name: self._fit_captions(value) for name, value in tokens.items()}
            text = self._run("text", tokens, len(input_ids))[0][:, : input_ids.shape[1]]
        return GlipTextFeatures(last_hidden_state=text, attention_mask=attention_mask, input_ids=input_ids)

    @torch.no_grad()
    def __call__(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        positive_map: Tensor | None = None,
        label_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        image_indices: Tensor | None = None,
        image_features: GlipImageFeatures | None = None,
        text_features: GlipTextFeatures | None = None,
        output_hidden_states: Any = None,
    ) -> GlipGroundingOutput:
        """Run every (image, caption) pair; arguments and result are those of `GlipForGrounding.forward`.

        Images are padded to the size the file takes, captions to its length; logits come back as long as the captions
        given.

        Raises:
            ValueError: as `GlipForGrounding.forward`; for images or captions larger than the file takes, and where
                hidden states are asked for.
        """
        if output_hidden_states:
            raise ValueError("an exported file gives no hidden states, and so no features: run the model itself.")
        check_inputs(pixel_values, image_features, "pixel_values", "image_features")
        check_inputs(input_ids, text_features, "input_ids", "text_features")
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask)
        if text_features is None:
            text_features = self.get_text_features(input_ids, attention_mask, token_type_ids)
        num_images, num_captions = len(image_features.last_hidden_state), len(text_features.last_hidden_state)
        images, captions = pair_captions(num_images, num_captions, image_indices, self.device)
        image_features, text_features = select(image_features, images), select(text_features, captions)
        input_ids, attention_mask = text_features.input_ids, text_features.attention_mask
        text, mask = (self._fit_captions(x) for x in (text_features.last_hidden_state, attention_mask))
        feed = {"pixel_mask": image_features.feature_maps[0], "attention_mask": mask}
        if "head" in self.sessions:
            feed |= {"vision": image_features.last_hidden_state, "text": text}
        else:
            ids, types = text.unbind(-1)
            feed |= {"pixel_values": image_features.feature_maps[1], "input_ids": ids, "token_type_ids": types}
        found = self._run("head" if "head" in self.sessions else None, feed, num_images)
        outputs = dict(zip(OUTPUT_AXES, found))
        outputs["logits"] = outputs["logits"][..., : input_ids.shape[1]]
        positive_map, label_ids = class_maps(positive_map, label_ids, attention_mask, captions is not None)
        check_shape("original_sizes", original_sizes, num_images, 2)
        if original_sizes is not None and images is not None:
            original_sizes = original_sizes[images]
        return GlipGroundingOutput(
            **outputs,
            original_sizes=original_sizes,
            input_ids=input_ids,
            attention_mask=attention_mask,
            positive_map=positive_map,
            label_ids=label_ids,
            image_indices=images,
        )

    def _fit_images(self, *pixels: Tensor) -> list[Tensor]:
        """Images and masks padded with zeros, right and below, to sides the graph takes."""
        sides = pixels[0].shape[-2:]
        below, right = (
            (fixed or -(-side // DIVISOR) * DIVISOR) - side for side, fixed in zip(sides, (self.height, self.width))
        )
        if below < 0 or right < 0:
            raise ValueError(
                f"images of {tuple(sides)} for a file exported for {self.height}x{self.width}: "
                "let OnnxGlip.prepare scale them, or export with --dynamic."
            )
        return [nn.functional.pad(value, (0, right, 0, below)) for value in pixels]

    def _fit_captions(self, tokens: Tensor) -> Tensor:
        """What has [N, T, ...] padded with zeros, which the attention mask hides, to the length the graph takes."""
        length = tokens.shape[1]
        if length > self.max_text_length:
            raise ValueError(
                f"captions of {length} tokens for a file that takes {self.max_text_length}: let OnnxGlip.prepare split "
                "the class names, or export with a larger --caption-length."
            )
        margins = (0, 0) * (tokens.ndim - 2) + (0, (self.caption_length or length) - length)
        return nn.functional.pad(tokens if tokens.is_floating_point() else tokens.long(), margins)


def check(
    model: GlipForGrounding, processor: GlipProcessor, path: str | os.PathLike[str], **options: Any
) -> dict[str, float]:
    """How far the outputs of an exported file are from its model's on the shipped image, and how long both take.

    Args:
        options: of `OnnxGlip`.

    Returns:
        `probability`: largest difference of a probability (of a token at a location, or centerness); `box`: of a box's
        edge, as a fraction of the image's side; `onnx_seconds` and `torch_seconds`: medians of three runs of each, in
        turn, after one that is not counted.
    """
    exported = OnnxGlip(path, processor, **options)
    inputs = exported.prepare(load_demo_image(), list(DEMO_NAMES))
    runs: dict[str, Callable[[], GlipGroundingOutput]] = {
        "onnx": lambda: exported(**inputs),
        "torch": torch.no_grad()(lambda: model(**inputs)),
    }
    ours, theirs = (run() for run in runs.values())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        "probability": max(
            (ours[name].sigmoid() - theirs[name].sigmoid()).abs().max().item()
            for name in ("logits", "centerness_logits")
        ),
        "box": (ours.pred_boxes - theirs.pred_boxes).abs().max().item(),
        **{f"{name}_seconds": median(values) for name, values in seconds.items()},
    }
