# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP as a graph that needs none of this code to run: `torch.export` programs, ONNX files, and `OnnxGlip` for these.

The graph takes what a processor gives and returns what post-processing reads; preprocessing, tokenisation and NMS stay
outside. `glip export` is the command, docs/export.md the manual.

ONNX goes through Transformers' own exporter (`transformers.exporters`), which patches in while it traces what ONNX says
better in another way: the deformable convolution, one `DeformConv` node (opset 19), and the fusion.

Letters: B images, N captions or (image, caption) pairs, T tokens, C classes per caption, A locations, L levels.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing_config
from transformers.exporters.utils import register_patch
from transformers.utils import logging as transformers_logging

from ._extras import require
from ._writing import patient_file, replacing, writing
from .demo import DEMO_NAMES, load_demo_image
from .inference import GroundingEngine, GroundingOptions
from .modeling_glip import GlipForGrounding
from .outputs_glip import GlipGroundingOutput, GlipImageFeatures, GlipTextFeatures, class_maps, pair_captions
from .processing_glip import GlipBatchFeature, GlipProcessor
from .prompts_glip import read_number

DIVISOR = 32
"""Sides of the graph's images are multiples of it, as the image processor pads them."""

OPSET = 20
"""Of ONNX files unless said otherwise; 20 is the first with GELU as one node."""

FIRST_OPSET = 19
"""The first with `DeformConv`."""

INPUT_AXES = {
    "pixel_values": ("batch", None, "height", "width"),
    "pixel_mask": ("batch", "height", "width"),
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "tokens"),
    "token_type_ids": ("batch", "tokens"),
}
OUTPUT_AXES = {
    "logits": ("batch", "locations", "tokens"),
    "bbox_regression": ("batch", "locations", None),
    "pred_boxes": ("batch", "locations", None),
    "centerness_logits": ("batch", "locations"),
    "spatial_shapes": ("batch", None, None),
    "image_sizes": ("batch", None),
}
METADATA = "glip_hf"
"""Key of an ONNX file's metadata that holds what `OnnxGlip` must know, as JSON."""

TOLERANCE = 1e-3
"""Largest difference to the model in probabilities and in boxes (normalised) that a check lets pass."""


class GlipGraph(nn.Module):
    """The forward of `GlipForGrounding` with tensors in, and a dictionary of tensors out: the keys of `OUTPUT_AXES`."""

    def __init__(self, model: GlipForGrounding) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
    ) -> dict[str, Tensor]:
        outputs = self.model(
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            return_dict=True,
        )
        return {name: outputs[name] for name in OUTPUT_AXES}


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
    model: GlipForGrounding, height: int | None, width: int | None, caption_length: int | None
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs to trace with, of the sizes given, and `dynamic_shapes` of `torch.export`: their axes of any size."""
    if (height is None) != (width is None):
        raise ValueError(f"height={height} and width={width}: give both for one image size, or neither for all sizes.")
    for name, value in (("height", height), ("width", width), ("caption_length", caption_length)):
        if value is not None:
            read_number(name, value, whole=True)
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
    if found.dtype != torch.float32 or found.device.type != "cpu":
        raise ValueError(
            f"the model is {found.dtype} on {found.device}: load it in float32 on cpu for the export. Runtimes convert "
            "graphs to other precisions and devices."
        )
    if height is None or width is None:
        sides, open_axes = _open_sides(getattr(model.config.backbone_config, "window_size", 1)), {"height", "width"}
    else:
        sides, open_axes = (height, width), set()
    if caption_length is None:
        open_axes.add("tokens")
    tokens = torch.ones(1, caption_length or min(11, longest), dtype=torch.int64)
    inputs = {  # no tensor twice: to a trace that would be one input
        "pixel_values": torch.zeros(1, 3, *sides),
        "pixel_mask": torch.ones(1, *sides, dtype=torch.int64),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }
    return inputs, {
        name: {i: torch.export.Dim.AUTO for i, axis in enumerate(axes) if axis in open_axes}
        for name, axes in INPUT_AXES.items()
    }


@contextlib.contextmanager
def _ready(model: GlipForGrounding, **attention: str) -> Iterator[GlipGraph]:
    """The model in evaluation mode, without gradients, its parts with this attention; afterwards as it was."""
    training = model.training
    before = {name: getattr(model.config, name)._attn_implementation for name in attention}
    model.set_attn_implementation(attention)
    try:
        # Otherwise a trace is bound to sizes at which a slice or a padding changes something, as in its sample.
        with torch.no_grad(), tracing_config.patch(backed_size_oblivious=True):
            yield GlipGraph(model.eval())
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def export_program(
    model: GlipForGrounding, height: int | None = None, width: int | None = None, caption_length: int | None = None
) -> torch.export.ExportedProgram:
    """Trace the model with `torch.export`: one image and one caption per run.

    Args:
        model: in float32, on CPU.
        height, width: of the padded image, multiples of 32; None for any.
        caption_length: tokens of the caption; None for any up to `config.max_text_length`.

    Returns:
        A program from the inputs `INPUT_AXES` (by name) to a dictionary of tensors with the keys of `OUTPUT_AXES`.

    Raises:
        ValueError: for sizes that no processor gives or the model does not read, and models of other precision.
    """
    inputs, axes = _traced_inputs(model, height, width, caption_length)
    with _ready(model) as graph:
        return torch.export.export(graph, (), inputs, dynamic_shapes=axes, strict=False)


def save_program(model: GlipForGrounding, output: str | os.PathLike[str], **sizes: int | None) -> Path:
    """Write `export_program(model, **sizes)` to a file, conventionally .pt2, for `torch.export.load`."""
    path = Path(output)
    program = export_program(model, **sizes)
    with replacing(path) as new, patient_file(new) as file:
        torch.export.save(program, file)
    return path


@register_patch("onnx", "glip_hf.modeling_glip.deform_conv2d")
def _deform_conv_as_node(_original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def deform_conv2d(
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

    return deform_conv2d


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
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    transformers_logging.set_verbosity_error()
    registration.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # within PyTorch's own code
            yield
    finally:
        registration.setLevel(level)
        transformers_logging.set_verbosity(verbosity)


def _name_axes(graph: Any, ir: Any) -> None:
    """Descriptive names for the dynamic axes of inputs and outputs, and no shapes of what lies between.

    ONNX Runtime lets values share a buffer whose axes have the same names. The names that the exporter leaves behind,
    mixed with those that ONNX Runtime infers, call different sides alike; what it infers alone is right.
    """
    for values, axes in ((graph.inputs, INPUT_AXES), (graph.outputs, OUTPUT_AXES)):
        for value in values:
            pairs = zip(value.shape, axes[value.name], strict=True)
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
) -> Path:
    """Write the model as an ONNX file, and its weights beside it as `NAME.onnx.data`: the two belong together.

    Args:
        model, height, width, caption_length: see `export_program`.
        output: file to write; folders are made, older files replaced.
        opset: version of ONNX's operators, 19 or later.

    Returns:
        The path of the file.

    Raises:
        ValueError: as `export_program`, and for an opset without deformable convolution.
        ImportError: without the extra `export`.
    """
    inputs, axes = _traced_inputs(model, height, width, caption_length)
    if read_number("opset", opset, whole=True) < FIRST_OPSET:
        raise ValueError(
            f"opset={opset} has no deformable convolution: take {FIRST_OPSET} or later ({OPSET} is the default)."
        )
    require("onnx", "export")
    require("onnxscript", "export")
    ir = require("onnx_ir", "export")
    exporter = require("transformers.exporters.exporter_onnx", "export")

    path = Path(output)
    with _quiet(), _ready(model, backbone_config="eager", text_config="eager") as graph:
        config = exporter.OnnxConfig(dynamic_shapes=axes, opset_version=opset)
        program, _ = exporter.OnnxExporter().export_program(graph, inputs, config)
    # ONNX Runtime would warn of each unused constant at each load.
    require("onnx_ir.passes.common", "export").RemoveUnusedNodesPass()(program)
    _name_axes(program.graph, ir)
    program.metadata_props[METADATA] = json.dumps({"max_text_length": model.config.max_text_length, "divisor": DIVISOR})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and moved: a session that still reads the older files keeps them.
        with tempfile.TemporaryDirectory(dir=path.parent) as staging:
            ir.save(program, Path(staging) / path.name, external_data=f"{path.name}.data")
            for file in sorted(Path(staging).iterdir(), reverse=True):
                os.replace(file, path.parent / file.name)
    return path


class OnnxGlip:
    """An exported file behind the interface of `GlipForGrounding`, run by ONNX Runtime.

    ```python
    >>> glip = OnnxGlip("model.onnx", GlipProcessor.from_pretrained(model_directory))
    >>> glip.detect(image, ["cat", "remote control"], threshold=0.4)[0]
    >>> inputs = glip.prepare(image, ["cat", "remote control"])  # the same in three steps
    >>> outputs = glip(**inputs)
    >>> glip.processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.4)[0]
    ```

    A run takes one image and one caption: several captions of an image encode it again each time.

    Attributes:
        height, width, caption_length: the one size the file was exported for; None for any.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        processor: GlipProcessor | None = None,
        threads: int | None = None,
        providers: list[Any] | None = None,
    ) -> None:
        """
        Args:
            path: what `export_onnx` wrote.
            processor: for `prepare` and `detect`.
            threads: of one run; default: as many as ONNX Runtime sees cores.
            providers: of ONNX Runtime, in the order of preference; default: CPU.

        Raises:
            ValueError: if the file is not there, is not of `export_onnx`, or ONNX Runtime cannot load it.
            ImportError: without the extra `export`.
        """
        runtime = require("onnxruntime", "export")
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; glip export writes one.")
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
        about = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if about is None:
            raise ValueError(f"{path} was not written by glip export: its inputs and outputs are unknown.")
        self.processor = processor
        self.max_text_length = json.loads(about)["max_text_length"]
        shapes = {value.name: value.shape for value in self.session.get_inputs()}
        sizes = (*shapes["pixel_values"][2:], shapes["input_ids"][1])
        self.height, self.width, self.caption_length = (size if isinstance(size, int) else None for size in sizes)

    device, dtype = torch.device("cpu"), torch.float32

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
        processor = self._processor()
        if self.height is not None:
            options.setdefault("size", {"max_height": self.height, "max_width": self.width})
            options.setdefault("pad_size", {"height": self.height, "width": self.width})
        options.setdefault("max_length", self.caption_length or self.max_text_length)
        return processor(images=images, text=text, return_tensors="pt", **options)

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
        engine = GroundingEngine(self, self._processor(), GroundingOptions(threshold=threshold))
        return engine.ground_inputs(self.prepare(images, text, **options))

    def eval(self) -> "OnnxGlip":
        """Itself: an exported model is always in evaluation mode."""
        return self

    def get_image_features(self, pixel_values: Tensor, pixel_mask: Tensor, **_: Any) -> GlipImageFeatures:
        """The images as they are, for `inference.GroundingEngine`: every run of the one graph encodes them."""
        locations = pixel_mask.flatten(1)[..., None]
        return GlipImageFeatures(last_hidden_state=locations, feature_maps=(pixel_values, pixel_mask))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> GlipTextFeatures:
        """The captions as they are; see `get_image_features`."""
        return GlipTextFeatures(
            last_hidden_state=input_ids[..., None], attention_mask=attention_mask, input_ids=input_ids
        )

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
            ValueError: for images or captions larger than the file takes, and where hidden states are asked for.
        """
        if output_hidden_states:
            raise ValueError("an exported file gives no hidden states, and so no features: run the model itself.")
        if image_features is not None:
            pixel_values, pixel_mask = image_features.feature_maps
        if text_features is not None:
            input_ids, attention_mask = text_features.input_ids, text_features.attention_mask
        pixel_mask = torch.ones_like(pixel_values[:, 0]).long() if pixel_mask is None else pixel_mask
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        images, captions = pair_captions(len(pixel_values), len(input_ids), image_indices, input_ids.device)
        pairs = max(len(pixel_values), len(input_ids))
        image_rows = torch.arange(pairs) if images is None else images
        caption_rows = torch.arange(pairs) if captions is None else captions
        pixels = self._fit_images(pixel_values=pixel_values.float(), pixel_mask=pixel_mask.long())
        tokens = self._fit_captions(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        names, runs = list(OUTPUT_AXES), []
        for i, n in zip(image_rows.tolist(), caption_rows.tolist()):
            feed = {name: value[i : i + 1] for name, value in pixels.items()}
            feed |= {name: value[n : n + 1] for name, value in tokens.items()}
            runs.append(self.session.run(names, feed))
        outputs = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in zip(names, zip(*runs))}
        outputs["logits"] = outputs["logits"][..., : input_ids.shape[1]]
        input_ids, attention_mask = input_ids[caption_rows], attention_mask[caption_rows]
        positive_map, label_ids = class_maps(positive_map, label_ids, attention_mask, captions is not None)
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

    def _fit_images(self, **pixels: Tensor) -> dict[str, np.ndarray]:
        """Images and masks padded with zeros, right and below, to sides the graph takes."""
        sides = pixels["pixel_values"].shape[-2:]
        below, right = (
            (fixed or -(-side // DIVISOR) * DIVISOR) - side for side, fixed in zip(sides, (self.height, self.width))
        )
        if below < 0 or right < 0:
            raise ValueError(
                f"images of {tuple(sides)} for a file exported for {self.height}x{self.width}: "
                "let OnnxGlip.prepare scale them, or export with --dynamic."
            )
        return _padded(pixels, (0, right, 0, below))

    def _fit_captions(self, **tokens: Tensor) -> dict[str, np.ndarray]:
        """Token tensors padded with zeros, which the attention mask hides, to the length the graph takes."""
        length = tokens["input_ids"].shape[1]
        longest = self.caption_length or self.max_text_length
        if length > longest:
            raise ValueError(
                f"captions of {length} tokens for a file that takes {longest}: let OnnxGlip.prepare split the class "
                "names, or export with a larger --caption-length."
            )
        tokens = {name: value.long() for name, value in tokens.items()}
        return _padded(tokens, (0, (self.caption_length or length) - length))


def _padded(tensors: dict[str, Tensor], margins: tuple[int, ...]) -> dict[str, np.ndarray]:
    padded = {name: nn.functional.pad(value, margins) for name, value in tensors.items()}
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in padded.items()}


def compare(model: GlipForGrounding, exported: OnnxGlip, inputs: GlipBatchFeature, rounds: int = 0) -> dict[str, float]:
    """How far the outputs of an exported file are from the model's, and how long both take.

    Args:
        inputs: of `OnnxGlip.prepare`.
        rounds: timed runs of each, in turn (A B A B), after one that is not counted; 0 for no times.

    Returns:
        `probability`: largest difference of a probability (of a token at a location, or centerness); `box`: of a box's
        edge, as a fraction of the image's side; and with `rounds`, `onnx_seconds` and `torch_seconds`, medians.
    """
    runs: dict[str, Callable[[], GlipGroundingOutput]] = {
        "onnx": lambda: exported(**inputs),
        "torch": torch.no_grad()(lambda: model(**inputs)),
    }
    ours, theirs = runs["onnx"](), runs["torch"]()
    figures = {
        "probability": max(
            (getattr(ours, name).sigmoid() - getattr(theirs, name).sigmoid()).abs().max().item()
            for name in ("logits", "centerness_logits")
        ),
        "box": (ours.pred_boxes - theirs.pred_boxes).abs().max().item(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return figures | {f"{name}_seconds": median(values) for name, values in seconds.items() if values}


def check(model: GlipForGrounding, processor: GlipProcessor, path: str | os.PathLike[str]) -> dict[str, float]:
    """`compare` an exported file with its model on the shipped image, with three timed runs of each."""
    exported = OnnxGlip(path, processor)
    return compare(model, exported, exported.prepare(load_demo_image(), list(DEMO_NAMES)), rounds=3)
