# Copyright 2026 The glip_hf authors. MIT licence.
"""Exported graphs give the model's numbers at every size, and their runner its detections.

Tracing a model takes half a minute, so what needs a real graph is slow; the runner is also tested on a stand-in for
ONNX Runtime that calls the model.
"""

import contextlib
import copy
import io
import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_bert, tiny_inputs, tiny_model, tiny_swin

pytest.importorskip("transformers.exporters.utils", reason="it needs a later PyTorch", exc_type=ImportError)

from benchmarks import runtimes
from glip_hf import GlipConfig, GlipForGrounding, GlipZeroShotObjectDetectionPipeline
from glip_hf import export as export_module
from glip_hf.cli import main
from glip_hf.demo import DEMO_CAPTION, DEMO_MODEL, DEMO_NAMES, demo_model, demo_processor, load_demo_image
from glip_hf.export import (
    AXES,
    INPUT_AXES,
    METADATA,
    OUTPUT_AXES,
    PARTS,
    GlipGraph,
    OnnxGlip,
    export_onnx,
    export_program,
)
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.ops_glip import deform_conv2d

NAMES = list(DEMO_NAMES)
SIZES = [(320, 416, 9), (224, 160, 12), (448, 672, 5), (64, 96, 3), (32, 32, 1)]  # 224 = 4 x 8 windows of 7
WINDOW_7 = {"num_blocks": 1, "backbone_config": tiny_swin(window_size=7)}


@pytest.fixture(scope="module")
def model() -> GlipForGrounding:
    return demo_model()


@pytest.fixture(scope="module")
def processor():
    return demo_processor()


@pytest.fixture(scope="module")
def photo():
    """480 x 360."""
    return load_demo_image().crop((0, 60, 480, 420))


class Session:
    """What ONNX Runtime has for a file, with the model behind it."""

    def __init__(self, graph: GlipGraph, sizes: dict[str, int], metadata: dict[str, str]) -> None:
        self.graph, self.sizes, self.metadata = graph, sizes, metadata
        self.runs: list[dict[str, tuple[int, ...]]] = []

    def get_inputs(self) -> list[Any]:
        return [
            SimpleNamespace(name=name, shape=[self.sizes.get(axis) or axis for axis in AXES[name]])
            for name in self.graph.inputs
        ]

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self.metadata)

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        assert set(feed) == set(self.graph.inputs)
        self.runs.append({name: value.shape for name, value in feed.items()})
        outputs = self.graph(**{name: torch.from_numpy(value) for name, value in feed.items()})
        return [outputs[name].numpy() for name in names]


@pytest.fixture
def stand_in(model, processor, tmp_path, monkeypatch):
    """Makes an `OnnxGlip` whose sessions call the model; sizes as of exported files, names where any will do."""

    def make(
        height: int | None = None,
        width: int | None = None,
        length: int | None = None,
        batch: int | None = None,
        parts: bool = False,
        ours: bool = True,
        **options: Any,
    ) -> OnnxGlip:
        sizes = {"batch": batch, "height": height, "width": width, "tokens": length}
        limits = {"max_text_length": 256, "vocabulary": model.config.text_config.vocab_size}
        about = {METADATA: json.dumps(limits)} if ours else {}
        path = tmp_path if parts else tmp_path / "model.onnx"

        def load(file: str, *_: Any, **__: Any) -> Session:
            stem = Path(file).stem
            return Session(GlipGraph(model, stem if stem in PARTS else None), sizes, about)

        runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=load, __version__="0")
        monkeypatch.setattr(export_module, "require", lambda *_: runtime)
        for name in (*PARTS, "model"):
            (tmp_path / f"{name}.onnx").touch()
        return OnnxGlip(path, options.pop("processor", processor), **options)

    return make


def runs(glip: OnnxGlip, part: str | None = None) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of the inputs of each run."""
    return glip.sessions[part].session.runs


def assert_same_outputs(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for name in ("logits", "bbox_regression", "centerness_logits", "pred_boxes"):
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ("spatial_shapes", "image_sizes"):
        assert torch.equal(found[name], expected[name]), name


def assert_same_detections(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert len(theirs["scores"]) > 0
        assert ours["text_labels"] == theirs["text_labels"]
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-3)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-2)  # pixels


def detections(model: GlipForGrounding, processor: Any, inputs: Any, threshold: float = 0.0) -> list[dict[str, Any]]:
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_grounded_object_detection(outputs, inputs, threshold=threshold)


def graph_inputs(height: int, width: int, length: int) -> dict[str, torch.Tensor]:
    """One image of which the last rows are padding, and a caption whose last token is."""
    inputs = tiny_inputs(1, height=height, width=width, length=length, seed=height)
    inputs["pixel_mask"] = torch.ones(1, height, width, dtype=torch.int64)
    inputs["pixel_mask"][:, -5:] = 0
    inputs["attention_mask"][:, max(length - 1, 1) :] = 0
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return {name: inputs[name] for name in INPUT_AXES}


# ------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"height": 320}, "give both"),
        ({"height": 320, "width": 300}, r"width=300 .* take 288"),
        ({"height": 16, "width": 320}, r"height=16 .* take 32"),
        ({"caption_length": 2}, "caption_length=2 must be 3 to 32"),
        ({"caption_length": 33}, "caption_length=33 must be 3 to 32"),
        ({"caption_length": 5.0}, "caption_length=5.0 must be one whole number"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"height": "320", "width": 320}, "height='320' must be one whole number"),
    ],
)
def test_sizes_that_no_graph_has(sizes, message, tmp_path) -> None:
    model = tiny_model(num_blocks=1)
    with pytest.raises((TypeError, ValueError), match=message):
        export_program(model, **sizes)
    with pytest.raises((TypeError, ValueError), match=message):
        export_onnx(model, tmp_path / "model.onnx", **sizes)


def test_models_and_opsets_that_cannot_be_exported(tmp_path) -> None:
    model = tiny_model(num_blocks=1)
    with pytest.raises(ValueError, match="opset=18 has no deformable convolution: take 19"):
        export_onnx(model, tmp_path / "model.onnx", opset=18)
    with pytest.raises(ValueError, match="deform_conv='plugin' must be 'native' or 'basic'"):
        export_onnx(model, tmp_path / "model.onnx", deform_conv="plugin")
    with pytest.raises(ValueError, match="weights='int4' must be 'float32' or 'float16' or 'int8'"):
        export_onnx(model, tmp_path / "model.onnx", weights="int4")
    with pytest.raises(ValueError, match="bfloat16 on cpu: load it in float32"):
        export_program(model.bfloat16())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output", "model.pb"], "name a file .onnx"),
        (["--output", "m.pt2", "--check"], "--check, --opset, --deform-conv and --weights are for"),
        (["--output", "m.pt2", "--weights", "int8"], "--check, --opset, --deform-conv and --weights are for"),
        (["--output", "m.onnx", "--dynamic", "--height", "320"], "leave it out"),
        (["--output", "m.onnx", "--caption-length", "many"], "give a number of tokens, or dynamic"),
        (["--output", ""], "--output is empty: name a file or a folder"),
        (["--output", "m.onnx", "--runtime", "openvino"], "--runtime openvino is that of --check: add it"),
    ],
)
def test_wrong_usage(arguments, message, capsys) -> None:
    assert main(["export", "--model", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_would_fail_after_the_export_fails_before_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["export", "--model", "nowhere", "--output", "/proc/m.onnx"]) == 1
    assert "/proc/m.onnx cannot be written" in capsys.readouterr().err
    checked = ["--output", str(tmp_path / "m.onnx"), "--check", "--runtime", "openvino"]
    assert main(["export", "--model", "nowhere", *checked]) == 1
    assert "this needs openvino" in capsys.readouterr().err


def test_command_writes_a_folder(monkeypatch, tmp_path, capsys) -> None:
    """Options reach the export, and configuration and processor are saved beside the graphs."""
    given: dict[str, Any] = {}

    def export(model: GlipForGrounding, output: Path, **options: Any) -> Path:
        given.update(options)
        output.mkdir()
        return output

    monkeypatch.setattr(export_module, "export_onnx", export)
    options = ["--batch-size", "2", "--deform-conv", "basic", "--weights", "int8"]
    assert main(["export", "--model", "demo", "--output", str(tmp_path / "onnx"), *options]) == 0
    assert capsys.readouterr().out == f"-> {tmp_path / 'onnx'}\n"
    assert given == {
        **dict.fromkeys(("height", "width", "caption_length")),
        **{"batch_size": 2, "deform_conv": "basic", "weights": "int8"},
    }
    assert {"config.json", "processor_config.json"} <= {file.name for file in (tmp_path / "onnx").iterdir()}


@pytest.mark.parametrize("window", [1, 4, 7, 12, 20])
def test_sides_to_trace_with(window) -> None:
    sides = [side // 32 for side in export_module._open_sides(window)]
    levels = [[-(-side * 4 // 2**level) for level in range(5)] for side in sides]
    assert all(height != width for height, width in zip(*levels))
    for scale in (1, 2, 4, 8):
        assert all(side * scale > window for side in sides)
        assert scale % window == 0 or all(side * scale % window for side in sides)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_of_basic_operations(stride) -> None:
    """Equals the plain form, with points beside the map, on maps of one cell and in batches."""
    for height, width in ((5, 7), (1, 1), (2, 1)):
        rows, columns = ((side - 1) // stride + 1 for side in (height, width))
        generator = torch.Generator().manual_seed(height)
        features, offset, mask, weight, bias = (
            torch.randn(shape, generator=generator)
            for shape in ((2, 4, height, width), (2, 18, rows, columns), (2, 9, rows, columns), (6, 4, 3, 3), (6,))
        )
        arguments = features, 2 * offset, mask.sigmoid(), weight, bias, stride
        found = export_module._deform_conv_of_basic_operations(*arguments)
        torch.testing.assert_close(found, deform_conv2d(*arguments), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------- the runner


@torch.no_grad()
@pytest.mark.parametrize("parts", [False, True], ids=["single", "parts"])
@pytest.mark.parametrize("text", [NAMES, [NAMES, ["fish"]], DEMO_CAPTION], ids=["names", "each", "caption"])
def test_runner_equals_model(text, parts, stand_in, model, processor, photo) -> None:
    glip = stand_in(parts=parts)
    images = photo if text == DEMO_CAPTION else [photo, photo.resize((300, 400))]
    inputs = glip.prepare(images, text)
    assert_same_outputs(glip(**inputs), model(**inputs))
    assert_same_detections(glip.detect(images, text, threshold=0.0), detections(model, processor, inputs))


def test_several_captions_of_one_image(stand_in, model, processor, photo) -> None:
    """A single file encodes the image for each caption, three graphs once."""
    for parts in (False, True):
        glip = stand_in(parts=parts)
        inputs = glip.prepare(photo, NAMES, chunk_size=1)
        assert len(inputs["input_ids"]) == len(NAMES)
        found = glip.detect(photo, NAMES, threshold=0.0, chunk_size=1)
        assert_same_detections(found, detections(model, processor, inputs))
        shapes = runs(glip, "head" if parts else None)
        assert len(shapes) == len(NAMES) and all(shape[0] == 1 for run in shapes for shape in run.values())
    assert len(runs(glip, "image")) == 1


@torch.no_grad()
@pytest.mark.parametrize("parts", [False, True], ids=["single", "parts"])
def test_batches(parts, stand_in, model, photo) -> None:
    """As many pairs per run as there are images, or as the file takes, the last one filled up."""
    for batch, sizes in ((None, [3]), (2, [2, 2])):
        glip = stand_in(batch=batch, parts=parts)
        inputs = glip.prepare([photo, photo.rotate(180), photo], NAMES)
        assert glip.batch_size == batch
        assert_same_outputs(glip(**inputs), model(**inputs))
        assert [run["attention_mask"][0] for run in runs(glip, "head" if parts else None)] == sizes


REFUSED = {
    "no captions": {"input_ids": torch.zeros(0, 9, dtype=torch.int64)},
    "no tokens": {"input_ids": torch.zeros(2, 0, dtype=torch.int64)},
    "no text": {"input_ids": None},
    "no pixels": {"pixel_values": None},
    "no images": {"pixel_values": torch.zeros(0, 3, 64, 96)},
    "one image without a batch": {"pixel_values": torch.zeros(3, 64, 96)},
    "integers": {"pixel_values": torch.zeros(2, 3, 64, 96, dtype=torch.uint8)},
    "another mask": {"pixel_mask": torch.ones(2, 64, 95)},
    "tokens of another vocabulary": {"input_ids": torch.full((2, 9), 10**6)},
    "another attention mask": {"attention_mask": torch.ones(2, 8)},
    "sizes of one": {"original_sizes": torch.tensor([[64, 96]])},
    "another number of captions": {"input_ids": torch.ones(3, 9, dtype=torch.int64), "attention_mask": None},
}


@pytest.mark.parametrize("parts", [False, True], ids=["single", "parts"])
@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_a_file_refuses_what_the_model_refuses(change, parts, stand_in, model) -> None:
    glip, inputs = stand_in(parts=parts), tiny_inputs() | change
    with pytest.raises(ValueError) as expected:
        model(**inputs)
    with pytest.raises(ValueError, match=re.escape(str(expected.value))):
        glip(**inputs)


def test_a_file_has_no_features(stand_in, processor, photo) -> None:
    engine = GroundingEngine(stand_in(), processor, GroundingOptions(features=True))
    with pytest.raises(ValueError, match="an exported file gives no hidden states, and so no features"):
        list(engine.ground([Request(photo, NAMES)]))


def test_the_engine_runs_a_file(stand_in, model, processor, photo) -> None:
    """Class names in chunks, a caption, and nothing: what the model finds."""
    glip = stand_in(parts=True)
    requests = [Request(photo, NAMES), Request(photo, DEMO_CAPTION), Request(photo)]
    options = GroundingOptions(chunk_size=2)
    found, expected = (
        [one.detections for one in GroundingEngine(grounder, processor, options).ground(requests)]
        for grounder in (glip, model)
    )
    assert [len(queries) for queries in found] == [1, 1, 0]
    assert_same_detections([*found[0], *found[1]], [*expected[0], *expected[1]])
    assert len(runs(glip, "image")) == 2, "once for each image that anything is looked for in"
    assert len(runs(glip, "head")) == len(runs(glip, "text")) > 2


def test_benchmark_of_runtimes(stand_in, monkeypatch, tmp_path, capsys) -> None:
    """A file against the model, and one that a runtime refuses."""

    def load(file: Path, **_: Any) -> OnnxGlip:
        if file.name == "refused":
            raise ValueError("refused cannot be loaded")
        return stand_in(parts=True)

    monkeypatch.setattr(runtimes, "OnnxGlip", load)
    monkeypatch.setattr(runtimes, "export_onnx", lambda _, folder: folder)
    monkeypatch.setattr(runtimes, "RUNTIMES", {"onnxruntime": [torch.float32]})
    options = ["--model", str(DEMO_MODEL), "--size", "64", "96", "--runs", "1", "--threads", "1", "--json"]
    threads = torch.get_num_threads()
    try:
        runtimes.main(["refused", "--export", str(tmp_path), *options, "--results", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = figures[f"{tmp_path.name} onnxruntime float32"]
    assert found["probability"] < 1e-4 and found["box"] < 1e-4 and found["times_model"] > 0
    assert figures["export"]["seconds"] >= 0
    assert figures["refused onnxruntime float32"] == {"error": "refused cannot be loaded"}
    assert len((tmp_path / "runtimes.csv").read_text().splitlines()) == 5


def test_the_pipeline_runs_a_file(stand_in, model, processor, photo, capfd) -> None:
    """With its own processor, and without a word about the class of the model."""
    capfd.readouterr()
    exported, own = (
        GlipZeroShotObjectDetectionPipeline(**parts)(photo, candidate_labels=NAMES, threshold=0.3)
        for parts in ({"model": stand_in(parts=True)}, {"model": model, "processor": processor})
    )
    assert [(one["label"], one["box"]) for one in exported] == [(one["label"], one["box"]) for one in own] != []
    assert capfd.readouterr().err == ""


def test_the_command_line_runs_a_folder(stand_in, monkeypatch, tmp_path, capsys) -> None:
    """`glip ground --model FOLDER` runs what glip export wrote there; a model itself has no --runtime."""
    stand_in(parts=True)
    demo_processor().save_pretrained(tmp_path)
    load_demo_image().save(tmp_path / "photo.png")
    ground = ["ground", str(tmp_path / "photo.png"), *NAMES]
    assert main([*ground, "--model", str(tmp_path), "--runtime", "onnxruntime"]) == 0
    exported = capsys.readouterr().out
    assert main([*ground, "--model", "demo"]) == 0
    assert exported == capsys.readouterr().out != ""
    assert main([*ground, "--model", "demo", "--runtime", "openvino"]) == 2
    assert "--runtime openvino runs exported models: glip export" in capsys.readouterr().err
    assert main([*ground, "--model", str(tmp_path), "--device", "cuda"]) == 1
    assert "exported models run on cpu" in capsys.readouterr().err
    assert main(["export", "--model", str(tmp_path), "--output", str(tmp_path / "again")]) == 1
    assert "has exported graphs, for ground, demo and evaluate" in capsys.readouterr().err


@torch.no_grad()
def test_defaults_of_the_runner(stand_in, model) -> None:
    """Picture of odd sides, no masks: padded to what the graph takes."""
    glip = stand_in()
    inputs = tiny_inputs(1, height=50, width=70, length=6)
    words = {"positive_map": torch.ones(1, 1, 6), "label_ids": torch.zeros(1, 1, dtype=torch.int64)}
    outputs = glip(inputs["pixel_values"], inputs["input_ids"], **words)
    assert runs(glip)[0]["pixel_values"] == (1, 3, 64, 96)
    assert outputs.image_sizes.tolist() == [[50, 70]]
    assert torch.equal(outputs.positive_map, torch.ones(1, 1, 6, dtype=torch.int64))


def test_one_size(stand_in, model, processor, photo) -> None:
    """Photos of either shape are scaled into the size, captions filled up to the length, and split to keep it."""
    glip = stand_in(128, 192, 9)
    for image, inner in ((photo, [128, 170]), (photo.resize((300, 400)), [128, 96])):
        inputs = glip.prepare(image, NAMES)
        outputs = glip(**inputs)
        assert outputs.image_sizes[0].tolist() == inner
        assert outputs.logits.shape[::2] == inputs["input_ids"].shape
        assert_same_detections(glip.detect(image, NAMES, threshold=0.0), detections(model, processor, inputs))
    assert len(glip.prepare(photo, NAMES)["input_ids"]) > 1
    assert {run["input_ids"] for run in runs(glip)} == {(1, 9)}
    assert {run["pixel_values"] for run in runs(glip)} == {(1, 3, 128, 192)}


def test_files_and_dtypes_that_are_not_those(stand_in, tmp_path) -> None:
    stand_in(parts=True)
    with pytest.raises(ValueError, match="head.onnx is another graph, without input_ids, .*: name the folder"):
        OnnxGlip(tmp_path / "head.onnx", processor=None)
    with pytest.raises(ValueError, match="dtype='bfloat16' must be one of torch.float32, torch.bfloat16"):
        stand_in(parts=True, runtime="openvino", dtype="bfloat16")


def test_a_copy_opens_the_files_anew(stand_in, photo, tmp_path) -> None:
    glip = stand_in(128, 192, 9, parts=True)
    for other in (copy.deepcopy(glip), pickle.loads(pickle.dumps(glip))):
        assert other.sessions.keys() == glip.sessions.keys() and other.sessions["head"] is not glip.sessions["head"]
        assert_same_detections(other.detect(photo, NAMES), glip.detect(photo, NAMES))


def test_what_the_pipeline_does_not_do_with_an_exported_model(stand_in, tmp_path) -> None:
    glip = stand_in(128, 192, 9, parts=True)
    with pytest.raises(ValueError, match="device='cuda': an exported model runs where it was loaded"):
        GlipZeroShotObjectDetectionPipeline(model=glip, device="cuda")
    with pytest.raises(TypeError, match="an exported model is not saved again: copy its files"):
        GlipZeroShotObjectDetectionPipeline(model=glip, device=-1).save_pretrained(tmp_path / "again")
    with pytest.raises(TypeError, match="model='onnx' is a name and no model: pipeline.* loads it"):
        GlipZeroShotObjectDetectionPipeline(model="onnx")


def test_a_quantised_model_is_refused(model) -> None:
    class Quantised(torch.Tensor):
        """As torchao's classes of weights are."""

    quantised = copy.deepcopy(model)
    linear = quantised.head.text_projection
    linear.weight = torch.nn.Parameter(linear.weight.data.as_subclass(Quantised), requires_grad=False)
    with pytest.raises(ValueError, match="the model is quantised: export the one it was made of"):
        export_program(quantised)


@pytest.mark.parametrize("parts", [False, True], ids=["single", "parts"])
def test_the_engine_keeps_the_sizes_of_a_file(parts, stand_in, model, photo) -> None:
    """Engine and pipeline scale images, split class names and cut captions as `detect` does."""
    glip = stand_in(128, 192, 9, parts=parts)
    images, texts = [photo, photo.resize((300, 400))], [NAMES, NAMES]
    expected = [detections(model, glip.processor, glip.prepare(image, NAMES))[0] for image in images]
    engine = GroundingEngine(glip, glip.processor, GroundingOptions(batch_size=2))
    assert_same_detections([one.detections[0] for one in engine.ground(map(Request, images, texts))], expected)
    found = GlipZeroShotObjectDetectionPipeline(model=glip)(images, candidate_labels=NAMES, threshold=0.0)
    assert [[one["label"] for one in image] for image in found] == [one["text_labels"] for one in expected]
    with pytest.warns(UserWarning, match="more than 9 tokens and was cut"):
        engine.encode(DEMO_CAPTION)


def test_evaluation_of_a_folder(stand_in, tmp_path, monkeypatch, capsys) -> None:
    """The model's predictions; a run of other graphs, or in another runtime, does not go on with them."""
    stand_in(parts=True)

    class OpenVino(export_module.OnnxRuntime):
        def __init__(self, path: Path, threads: int | None, _: torch.dtype, providers: None) -> None:
            super().__init__(path, threads, torch.float32, providers)

    monkeypatch.setitem(export_module.RUNTIMES, "openvino", OpenVino)
    exported, data = tmp_path, tmp_path / "data"
    demo_processor().save_pretrained(exported)
    data.mkdir()
    load_demo_image().save(data / "photo.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 90, 90], "area": 8100, "iscrowd": 0}
    truth = {"images": [{"id": 1, "file_name": "photo.png", "width": 480, "height": 480}], "annotations": [box]}
    truth["categories"] = [{"id": row + 1, "name": name} for row, name in enumerate(NAMES)]
    (data / "truth.json").write_text(json.dumps(truth))
    evaluate = ["evaluate", "coco", "--annotations", str(data / "truth.json"), "--images", str(data), "--output"]
    openvino = ["--model", str(exported), "--runtime", "openvino", "--dtype", "bfloat16"]
    assert main([*evaluate, str(tmp_path / "out"), *openvino]) == 0
    assert main([*evaluate, str(tmp_path / "own"), "--model", "demo"]) == 0
    found, expected = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("out", "own"))
    assert found == expected != []
    run = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]
    assert (run["model_type"], run["dtype"], run["runtime"]) == ("OnnxGlip", "bfloat16", "openvino")
    capsys.readouterr()
    assert main([*evaluate, str(tmp_path / "out"), "--model", str(exported), "--runtime", "onnxruntime"]) == 2
    assert "runtime=openvino, this one has onnxruntime" in capsys.readouterr().err
    (exported / "text.onnx.data").write_bytes(b"other weights")
    assert main([*evaluate, str(tmp_path / "out"), *openvino]) == 2
    assert "weights" in capsys.readouterr().err
    assert main([*evaluate, str(tmp_path / "new"), *openvino, "--compile", "default"]) == 2
    assert "--compile default is of PyTorch" in capsys.readouterr().err


def test_what_a_file_does_not_take(stand_in, processor, photo) -> None:
    glip = stand_in(128, 192, 5)
    with pytest.raises(ValueError, match=r"images of \(160, 288\) .* 128x192: let OnnxGlip.prepare"):
        glip(**processor(images=photo.resize((440, 256)), text=["fish"], return_tensors="pt"))
    with pytest.raises(ValueError, match="captions of 9 tokens for a file that takes 5"):
        glip(**glip.prepare(photo, ["fish"]) | dict(processor(text=["fish"] * 4, return_tensors="pt")))
    with pytest.raises(ValueError, match="no processor: OnnxGlip"):
        stand_in(processor=None).detect(photo, ["fish"])
    for images, text, name in ((None, ["fish"], "images"), (photo, None, "text")):
        with pytest.raises(ValueError, match=f"{name} is None: detect needs both"):
            glip.detect(images, text)
    with pytest.raises(ValueError, match="not written by glip export"):
        stand_in(ours=False)


def test_files_that_are_none(tmp_path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    with pytest.raises(ValueError, match="no such file; glip export"):
        OnnxGlip(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="cannot be loaded by onnxruntime"):
        OnnxGlip(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="image.onnx: no such file; glip export"):
        OnnxGlip(tmp_path)
    with pytest.raises(ValueError, match="runtime='tensorrt' must be 'onnxruntime' or 'openvino'"):
        OnnxGlip(tmp_path / "model.onnx", runtime="tensorrt")
    with pytest.raises(ValueError, match="dtype=torch.bfloat16 is for OpenVINO"):
        OnnxGlip(tmp_path / "model.onnx", dtype=torch.bfloat16)


# ----------------------------------------------------------------------------------------- real graphs


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, str]:
    """A file of any size, made and checked by the command, and what that printed."""
    path = tmp_path_factory.mktemp("export") / "onnx" / "glip.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["export", "--model", str(DEMO_MODEL), "--output", str(path), "--dynamic", "--check"])
    assert code == 0
    return path, printed.getvalue()


@pytest.mark.slow
def test_command_writes_and_checks(exported) -> None:
    path, printed = exported
    assert sorted(file.name for file in path.parent.iterdir()) == ["glip.onnx", "glip.onnx.data"]
    lines = printed.splitlines()
    assert lines[0] == f"-> {path}" and len(lines) == 2
    assert lines[1].startswith("largest difference: probability ") and "onnxruntime" in lines[1]


@pytest.mark.slow
@torch.no_grad()
def test_onnx_equals_model_at_every_size(exported, model) -> None:
    session = OnnxGlip(exported[0], threads=1).sessions[None].session
    assert [value.name for value in session.get_inputs()] == list(INPUT_AXES)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", "locations", "tokens"]
    for sizes in SIZES:
        inputs = graph_inputs(*sizes)
        found = session.run(list(OUTPUT_AXES), {name: value.numpy() for name, value in inputs.items()})
        assert_same_outputs(dict(zip(OUTPUT_AXES, map(torch.from_numpy, found))), GlipGraph(model)(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("text", [NAMES, DEMO_CAPTION, NAMES * 40], ids=["names", "caption", "chunks"])
def test_onnx_gives_the_same_detections(text, exported, model, processor, photo) -> None:
    glip = OnnxGlip(exported[0], processor, threads=1)
    for image in (photo, photo.resize((300, 400))):
        inputs = glip.prepare(image, text)
        expected = detections(model, processor, inputs)
        assert_same_detections(glip.detect(image, text, threshold=0.0), expected)


@pytest.mark.slow
def test_onnx_of_one_size(model, processor, photo, tmp_path, capfd) -> None:
    path = export_onnx(model, tmp_path / "fixed.onnx", height=128, width=192, caption_length=12, opset=22)
    capfd.readouterr()
    glip = OnnxGlip(path, processor, threads=1)
    assert (glip.height, glip.width, glip.caption_length) == (128, 192, 12)
    for image in (photo, photo.resize((300, 400))):
        inputs = glip.prepare(image, NAMES)
        assert_same_detections(glip.detect(image, NAMES, threshold=0.0), detections(model, processor, inputs))
    assert capfd.readouterr() == ("", ""), "ONNX Runtime warns of nothing when it loads and runs the file"


@pytest.mark.slow
@torch.no_grad()
def test_onnx_without_fusion(tmp_path) -> None:
    model = tiny_model(use_fusion=False, **WINDOW_7)
    assert model.config.backbone_config._attn_implementation == "sdpa"
    session = OnnxGlip(export_onnx(model, tmp_path / "a.onnx"), threads=1).sessions[None].session
    assert model.config.backbone_config._attn_implementation == "sdpa", "left as it was"
    for sizes in SIZES[:2]:
        inputs = graph_inputs(*sizes)
        found = session.run(list(OUTPUT_AXES), {name: value.numpy() for name, value in inputs.items()})
        assert_same_outputs(dict(zip(OUTPUT_AXES, map(torch.from_numpy, found))), GlipGraph(model)(**inputs))


@pytest.fixture(scope="module")
def three_graphs(tmp_path_factory) -> tuple[GlipForGrounding, Path]:
    """A model, and its three graphs of basic operations, of any size; each has equal layers in a row."""
    swin = tiny_swin(window_size=7, depths=[1, 1, 4, 1])
    model = tiny_model(num_blocks=3, backbone_config=swin, text_config=tiny_bert(num_hidden_layers=3))
    return model, export_onnx(model, tmp_path_factory.mktemp("parts"), deform_conv="basic")


@torch.no_grad()
def assert_parts_equal_model(model: GlipForGrounding, glip: OnnxGlip, tolerance: float = 1e-4) -> None:
    """Images and captions of several sizes, alone and in batches."""
    for batch, (height, width, length) in enumerate(SIZES, start=1):
        inputs = graph_inputs(height, width, max(length, 3))
        inputs = {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
        inputs["pixel_values"] *= torch.linspace(1, 0, batch)[:, None, None, None]
        assert_same_outputs(glip(**inputs), model(**inputs), tolerance)


@pytest.mark.slow
def test_three_graphs_in_onnx_runtime(three_graphs, capfd) -> None:
    model, path = three_graphs
    assert sorted(file.name for file in path.iterdir()) == [
        f"{part}.onnx{suffix}" for part in sorted(PARTS) for suffix in ("", ".data")
    ]
    head = pytest.importorskip("onnx").load(path / "head.onnx", load_external_data=False)
    assert not any(node.metadata_props for node in head.graph.node), "where nodes were traced: megabytes"
    capfd.readouterr()
    glip = OnnxGlip(path, threads=1)
    assert_parts_equal_model(model, glip)
    assert capfd.readouterr() == ("", ""), "ONNX Runtime warns of nothing when it loads and runs the files"


@pytest.mark.slow
def test_three_graphs_in_openvino(three_graphs) -> None:
    pytest.importorskip("openvino", reason="`make tools` installs openvino")
    model, path = three_graphs
    assert_parts_equal_model(model, OnnxGlip(path, threads=1, runtime="openvino"))
    with pytest.raises(ValueError, match="providers=.* are of ONNX Runtime"):
        OnnxGlip(path, runtime="openvino", providers=["CPUExecutionProvider"])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("weights, size, tolerance", [("float16", 0.55, 5e-3), ("int8", 0.75, 0.2)])
def test_weights_of_fewer_bits(weights, size, tolerance, model, tmp_path, monkeypatch) -> None:
    """Smaller files, close to the model; the text encoder's stands for all. int8 leaves embeddings as they are."""
    monkeypatch.setattr(export_module, "PARTS", {"text": PARTS["text"]})
    path = export_onnx(model, tmp_path, weights=weights)
    assert sorted(file.name for file in path.iterdir()) == ["text.onnx", "text.onnx.data"]
    stored = sum(value.nbytes for value in model.model.text_model.state_dict().values())
    assert (path / "text.onnx.data").stat().st_size < size * stored
    tokens = {name: value for name, value in graph_inputs(32, 32, 9).items() if name in PARTS["text"][0]}
    session = export_module.OnnxRuntime(path / "text.onnx", 1, torch.float32, None)
    (found,) = session.run(["text"], {name: value.numpy() for name, value in tokens.items()})
    expected = model.get_text_features(**tokens).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_deform_conv_nodes(runtime, stride, tmp_path) -> None:
    """Of ONNX, in either runtime: the plain form, with points beside the map."""
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip(runtime, reason="`make tools` installs openvino")
    shapes = {"x": (2, 4, 7, 6), "weight": (6, 4, 3, 3), "offset": (2, 18, 7, 6), "bias": (6,), "mask": (2, 9, 7, 6)}
    if stride == 2:
        shapes |= {"offset": (2, 18, 4, 3), "mask": (2, 9, 4, 3)}
    generator = torch.Generator().manual_seed(0)
    values = {name: 2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
    graph = helper.make_graph(
        [helper.make_node("DeformConv", list(shapes), ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    opsets = [helper.make_opsetid("", export_module.OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "one.onnx")
    session = export_module.RUNTIMES[runtime](tmp_path / "one.onnx", 1, torch.float32, None)
    assert session.about is None and session.shapes["x"] == [2, 4, 7, 6]
    (found,) = session.run(["y"], {name: value.numpy() for name, value in values.items()})
    expected = deform_conv2d(*(values[name] for name in ("x", "offset", "mask", "weight", "bias")), stride)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=f"cannot be loaded by {runtime}"):
        export_module.RUNTIMES[runtime](tmp_path / "broken.onnx", 1, torch.float32, None)


@pytest.mark.slow
@torch.no_grad()
def test_program_equals_model(tmp_path) -> None:
    model = tiny_model(**WINDOW_7)
    program = torch.export.load(export_module.save_program(model, tmp_path / "sub" / "glip.pt2"))
    run = program.module()
    for sizes in [(416, 544, 9), (256, 416, 32), (448, 672, 3)]:
        inputs = graph_inputs(*sizes)
        assert_same_outputs(run(**inputs), GlipGraph(model)(**inputs))


@pytest.mark.slow
@torch.no_grad()
def test_full_size(tmp_path) -> None:
    """GLIP-T with random weights at 480 x 640: within the tolerance of the command's check."""
    model = GlipForGrounding(GlipConfig()).eval()
    path = export_onnx(model, tmp_path / "glip_t.onnx", height=480, width=640, caption_length=16)
    session = OnnxGlip(path).sessions[None].session
    inputs = graph_inputs(480, 640, 16)
    found = session.run(list(OUTPUT_AXES), {name: value.numpy() for name, value in inputs.items()})
    assert_same_outputs(dict(zip(OUTPUT_AXES, map(torch.from_numpy, found))), GlipGraph(model)(**inputs), 1e-3)
