# Copyright 2026 The glip_hf authors. MIT licence.
"""Both image processors: the original's sizes and pixels, every kind of input, honest errors."""

import base64
import http.server
import io
import json
import os
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fresh import python
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.utils import is_torchvision_available

from glip_hf.image_processing_glip import GlipImageProcessor
from glip_hf.image_processing_pil_glip import GlipImageProcessorPil, common_padded_size

needs_torchvision = pytest.mark.skipif(
    not is_torchvision_available(),
    reason="torchvision is not installed: GlipImageProcessor is NOT tested in this run",
)
BACKENDS = [
    pytest.param(GlipImageProcessorPil, id="pil"),
    pytest.param(GlipImageProcessor, id="torchvision", marks=needs_torchvision),
]
SMALL = {"shortest_edge": 40, "longest_edge": 70}
MEAN_BGR = np.array([103.53, 116.28, 123.675], dtype=np.float32)
STD_BGR = np.array([57.375, 57.12, 58.395], dtype=np.float32)


@pytest.fixture(params=BACKENDS)
def processor_class(request):
    return request.param


@pytest.fixture
def processor(processor_class):
    return processor_class(size=SMALL)


def make_rgb(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise, uint8 [height, width, 3], no symmetry."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([x * 3 + y, x + y * 2, x * y / 9], axis=-1)
    return ((waves + random.integers(0, 40, (height, width, 3))) % 256).astype(np.uint8)


def expected_pixels(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """The original's steps: PIL resize, /255, BGR, *255, normalise; [3, height, width]."""
    resized = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
    bgr = (resized.astype(np.float32) / 255)[..., ::-1] * np.float32(255)
    return ((bgr - MEAN_BGR) / STD_BGR).transpose(2, 0, 1)


# --- pixels


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (48, 64, (40, 53)),
        (20, 15, (53, 40)),
        (300, 31, (67, 7)),
        (40, 41, (40, 41)),
        (90, 90, (40, 40)),
    ],
)
def test_pixels_mask_and_sizes_equal_the_original(processor, height, width, resized):
    rgb = make_rgb(height, width)
    batch = processor(Image.fromarray(rgb), return_tensors="pt")
    assert set(batch) == {"pixel_values", "pixel_mask", "original_sizes"}
    padded = common_padded_size([resized], 32)
    new_height, new_width = resized

    assert batch.pixel_values.dtype == torch.float32
    assert batch.pixel_values.shape == (1, 3, *padded)
    pixels = batch.pixel_values[0, :, :new_height, :new_width].numpy()
    np.testing.assert_array_equal(pixels, expected_pixels(rgb, *resized))
    assert batch.pixel_values[0, :, new_height:].eq(0).all()
    assert batch.pixel_values[0, :, :, new_width:].eq(0).all()

    assert batch.pixel_mask.dtype == batch.original_sizes.dtype == torch.int64
    assert batch.pixel_mask.shape == (1, *padded)
    assert batch.pixel_mask[0, :new_height, :new_width].eq(1).all()
    assert batch.pixel_mask.sum() == new_height * new_width
    assert batch.original_sizes.tolist() == [[height, width]]


@pytest.mark.parametrize("case", ["b1", "b2", "b1_no_fusion"])
def test_pixels_equal_the_recorded_ones(processor_class, shared, case):
    load_file = pytest.importorskip("safetensors.torch").load_file
    record = json.loads((shared / f"parity/small_inference/{case}.json").read_text())
    tensors = load_file(shared / f"parity/small_inference/{case}.safetensors")
    size = {
        "shortest_edge": record["input"]["min_size"],
        "longest_edge": record["input"]["max_size"],
    }
    files = [shared / "parity/images" / image["file"] for image in record["images"]]
    batch = processor_class(size=size)(files, return_tensors="pt")
    torch.testing.assert_close(batch.pixel_values, tensors["pixel_values"], rtol=0, atol=1e-5)
    assert batch.original_sizes.tolist() == [image["original_size_hw"] for image in record["images"]]
    resized = [(mask.any(1).sum().item(), mask.any(0).sum().item()) for mask in batch.pixel_mask]
    assert resized == [tuple(image["resized_size_hw"]) for image in record["images"]]


def test_full_size_pixels_equal_the_recorded_ones(processor_class, shared):
    record = json.loads((shared / "parity/preprocessing/cases.json").read_text())["pixels"]
    rgb = Image.open(shared / "parity" / record["raw"])
    values = processor_class()(rgb, return_tensors="pt").pixel_values[0]
    assert list(values.shape[1:]) == record["padded_hw"]
    for channel, y, x, value in record["samples"]:
        assert values[channel, y, x].item() == pytest.approx(value, abs=1e-6)
    resized = np.asarray(Image.open(shared / "parity" / record["resized_uint8_rgb"]))
    plain = processor_class(do_normalize=False, do_flip_channel_order=False, do_pad=False)
    ours = plain(rgb, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours, resized)


def test_batch_equals_single_and_pads_to_the_largest(processor):
    images = [make_rgb(48, 64), make_rgb(64, 48, 1), make_rgb(200, 20, 2)]
    batch = processor(images, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 96, 64)
    for index, rgb in enumerate(images):
        single = processor(rgb, return_tensors="pt")
        height, width = single.pixel_values.shape[2:]
        torch.testing.assert_close(
            batch.pixel_values[index, :, :height, :width], single.pixel_values[0], rtol=0, atol=0
        )
        assert batch.pixel_mask[index].sum() == single.pixel_mask.sum()
        assert batch.original_sizes[index].tolist() == list(rgb.shape[:2])


@needs_torchvision
def test_backends_agree_bit_for_bit():
    images = [make_rgb(90, 70), make_rgb(33, 200, 1)]
    one = GlipImageProcessorPil(size=SMALL)(images, return_tensors="pt")
    other = GlipImageProcessor(size=SMALL)(images, return_tensors="pt", device="cpu")
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("kind", [GlipImageProcessorPil, pytest.param(GlipImageProcessor, marks=needs_torchvision)])
def test_results_go_to_the_device(kind):
    annotation = {"image_id": 1, "annotations": [{"bbox": [1, 1, 5, 5], "category_id": 1}]}
    batch = kind(size=SMALL)(make_rgb(), annotation, return_tensors="pt", device="meta")
    assert batch.pixel_values.shape == (1, 3, 64, 64)
    tensors = [*batch["labels"][0].values(), *(batch[key] for key in batch if key != "labels")]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@needs_torchvision
def test_tensors_are_resized_where_they_are():
    on_device = torch.zeros(3, 48, 64, dtype=torch.uint8, device="meta")
    batch = GlipImageProcessor(size=SMALL)(on_device, return_tensors="pt", do_pad=False)
    assert batch.pixel_values.shape == (1, 3, 40, 53)
    assert batch.pixel_values.device.type == "meta"


@needs_torchvision
def test_resize_on_a_device_is_within_one_grey_level():
    """A device resizes in float and rounds; the same arithmetic on the CPU against PIL."""
    processor = GlipImageProcessor(size=SMALL)
    pixels = torch.from_numpy(make_rgb(300, 200).transpose(2, 0, 1).copy())
    exact = processor.resize(pixels, processor.size)
    size = SizeDict(height=exact.shape[1], width=exact.shape[2])
    other = TorchvisionBackend.resize(processor, pixels.float(), size, antialias=True).round()
    assert (other - exact).abs().max() <= 1


# --- inputs


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server on the loopback for the files in `tmp_path`; gives its address."""
    monkeypatch.setenv("GLIP_URL_PRIVATE", "1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_kind_of_input_gives_the_same_pixels(processor, tmp_path, web):
    rgb = make_rgb()
    pil_image = Image.fromarray(rgb)
    pil_image.save(tmp_path / "image.png")
    data = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    channels_first = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    inputs = {
        "array HWC": rgb,
        "array CHW": channels_first,
        "array 0..1": rgb.astype(np.float32) / 255,
        "array 0..1 double": rgb / 255,
        "array 0..255 float": rgb.astype(np.float32),
        "array int64": rgb.astype(np.int64),
        "array uint16": rgb.astype(np.uint16) * 257,
        "array read-only, big-endian": np.frombuffer(rgb.astype(">f4").tobytes(), ">f4").reshape(rgb.shape),
        "array flipped view": rgb[:, ::-1].copy()[:, ::-1],
        "tensor CHW": torch.from_numpy(channels_first),
        "tensor HWC": torch.from_numpy(rgb),
        "tensor 0..1": torch.from_numpy(channels_first) / 255,
        "tensor bfloat16 0..255": torch.from_numpy(channels_first).to(torch.bfloat16),
        "tensor with gradient": (torch.from_numpy(channels_first) / 255).requires_grad_(),
        "path": tmp_path / "image.png",
        "path as text": str(tmp_path / "image.png"),
        "URL": f"{web}/image.png",
        "data URI": f"data:image/png;base64,{data}",
        "list": [rgb],
        "nested list": [[pil_image]],
        "4-D array": rgb[None],
        "RGBA": np.concatenate([rgb, np.full_like(rgb[..., :1], 9)], axis=-1),
    }
    expected = processor(pil_image, return_tensors="pt")
    for name, image in inputs.items():
        batch = processor(image, return_tensors="pt")
        for key in expected:
            assert torch.equal(batch[key], expected[key]), (name, key)


def test_mixed_and_nested_batches_keep_the_order(processor):
    images = [make_rgb(seed=seed) for seed in range(4)]
    mixed = [[Image.fromarray(images[0]), images[1]], [torch.from_numpy(images[2])], [], images[3]]
    expected = processor(np.stack(images), return_tensors="pt")
    assert torch.equal(processor(mixed, return_tensors="pt").pixel_values, expected.pixel_values)


def test_grey_images(processor):
    grey = make_rgb()[..., 0]
    expected = processor(np.stack([grey] * 3, axis=-1), return_tensors="pt").pixel_values
    sixteen_bit = grey.astype(np.uint16) * 257
    for image in [grey, grey[None], grey[..., None], torch.from_numpy(grey), grey / 255.0]:
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)
    for image in [
        Image.fromarray(grey),
        Image.fromarray(grey).convert("LA"),
        Image.fromarray(sixteen_bit),  # mode I;16
        Image.fromarray(sixteen_bit.astype(np.int32)),  # mode I
        Image.fromarray(grey.astype(np.float32)),  # mode F
    ]:
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected), image.mode


def test_one_bit_and_bool(processor):
    mask = make_rgb()[..., 0] > 128
    expected = processor(mask.astype(np.uint8) * 255, return_tensors="pt").pixel_values
    for image in [mask, torch.from_numpy(mask), Image.fromarray(mask)]:
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(processor, orientation, tmp_path):
    upright = make_rgb(48, 64)
    undo = {  # how a camera held that way stores the upright image
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation])).save(tmp_path / "p.png", exif=exif)
    expected = processor(upright, return_tensors="pt")
    for image in [tmp_path / "p.png", Image.open(tmp_path / "p.png")]:
        batch = processor(image, return_tensors="pt")
        assert batch.original_sizes.tolist() == [[48, 64]]
        assert torch.equal(batch.pixel_values, expected.pixel_values)


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (1, 1, (40, 40)),
        (1, 2, (35, 70)),
        (1, 10_000, (1, 70)),
        (10_000, 1, (70, 1)),
        (9_999, 300, (66, 2)),
    ],
)
def test_extreme_shapes(processor, height, width, resized):
    rgb = np.full((height, width, 3), 77, np.uint8)
    batch = processor(rgb, return_tensors="pt")
    assert batch.pixel_mask.sum() == resized[0] * resized[1]
    assert batch.original_sizes.tolist() == [[height, width]]
    plain = processor(rgb, return_tensors="pt", do_normalize=False, do_pad=False).pixel_values
    assert plain.shape[2:] == resized
    assert plain.eq(77).all()


@pytest.mark.slow
def test_ten_thousand_pixels_square(processor_class):
    batch = processor_class()(Image.new("RGB", (10_000, 10_000), (1, 2, 3)), return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 800, 800)
    assert batch.original_sizes.tolist() == [[10_000, 10_000]]


def test_input_is_left_alone(processor):
    rgb = make_rgb()
    before = rgb.copy()
    processor(rgb, size={"height": 48, "width": 64}, return_tensors="pt").pixel_values.zero_()
    np.testing.assert_array_equal(rgb, before)


# --- errors

BAD_INPUTS = [
    ([], ValueError, "no image to process"),
    ([[], []], ValueError, "no image to process"),
    (None, TypeError, "not NoneType"),
    ([3], TypeError, "not int"),
    ([make_rgb(), None], TypeError, "not NoneType"),
    (np.zeros((0, 5, 3), np.uint8), ValueError, "at least one pixel.*0, 5, 3"),
    (Image.new("RGB", (0, 5)), ValueError, "at least one pixel"),
    (torch.zeros(3, 5, 0), ValueError, "at least one pixel"),
    (np.zeros((5, 6, 2), np.uint8), ValueError, r"shape \(5, 6, 2\)"),
    (np.zeros(5, np.uint8), ValueError, "2 or 3 dimensions"),
    (np.zeros((2, 2, 5, 5, 3), np.uint8), ValueError, "2 or 3 dimensions"),
    (np.full((5, 6, 3), np.nan), ValueError, "NaN"),
    (torch.full((3, 5, 6), float("inf")), ValueError, "NaN or infinite"),
    (np.full((5, 6, 3), -0.5), ValueError, "0..1 or 0..255, got -0.5"),
    (np.full((5, 6, 3), 1.5), ValueError, "0..1 or 0..255, got 1.5"),
    (np.full((5, 6, 3), 300.0), ValueError, "0..1 or 0..255, got 300"),
    (np.full((5, 6, 3), 300), ValueError, "0..255, got 300"),
    (np.full((5, 6, 3), -1), ValueError, "0..255, got -1"),
    (np.full((5, 6), 1j), ValueError, "must be real"),
    (np.array([["a", "b"]]), ValueError, "not an image"),
    ("", FileNotFoundError, "no image file"),
    ("x" * 100_000, FileNotFoundError, "no image file 'xxx"),
    ("image\0.png", FileNotFoundError, "no image file"),
    ("data:image/png;base64,AAAA", ValueError, "Cannot read the image 'data:image"),
]


@pytest.mark.parametrize(("images", "error", "message"), BAD_INPUTS)
def test_bad_input(processor, images, error, message):
    with pytest.raises(error, match=message):
        processor(images, return_tensors="pt")


def test_bad_image_in_a_batch_is_named(processor):
    with pytest.raises(ValueError, match="Image 1 of 2.*NaN"):
        processor([make_rgb(), np.full((5, 6, 3), np.nan)], return_tensors="pt")


def test_damaged_files_are_named(processor, tmp_path, web):
    buffer = io.BytesIO()
    Image.fromarray(make_rgb(200, 200)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    for image in [tmp_path / "cut.jpg", str(tmp_path / "cut.jpg"), f"{web}/cut.jpg"]:
        with pytest.raises(ValueError, match="cut.jpg.*truncated"):
            processor(image, return_tensors="pt")
    with pytest.raises(ValueError, match="cut.jpg.*truncated"):  # decoded late
        processor(Image.open(tmp_path / "cut.jpg"), return_tensors="pt")
    with pytest.raises(ValueError, match="page.jpg.*it is not an image"):
        processor(tmp_path / "page.jpg", return_tensors="pt")
    with pytest.raises(ValueError, match="nowhere.jpg.*404"):
        processor(f"{web}/nowhere.jpg", return_tensors="pt")
    with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
        processor(tmp_path / "nowhere.jpg", return_tensors="pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"longest_edge": 50}}, "is not supported"),
        ({"size": {"shortest_edge": 0, "longest_edge": 50}}, "at least 1 pixel"),
        ({"size_divisor": 0}, "size_divisor=0"),
        ({"image_mean": [float("nan")] * 3}, "image_mean=.* must be finite"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std=.* must be finite and not 0"),
        ({"rescale_factor": float("inf"), "do_rescale": True}, "rescale_factor=inf must be finite"),
        ({"do_center_crop": True, "crop_size": 5}, "do_center_crop"),
        ({"data_format": "channels_last"}, "channels first"),
        ({"pad_size": {"height": 8, "width": 8}}, "negative"),
    ],
)
def test_bad_options(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(make_rgb(), return_tensors="pt", **options)


def test_unknown_options_are_refused(processor):
    with pytest.raises(TypeError, match="'size_diviser': did you mean 'size_divisor'"):
        processor(make_rgb(), size_diviser=16)


# --- options


def test_defaults_are_the_original_ones(processor_class):
    batch = processor_class()(make_rgb(), return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 800, 1088)
    assert batch.pixel_mask[0].sum() == 800 * 1066


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"size": 96}, (96, 128)),
        ({"size": {"shortest_edge": 96, "longest_edge": 100}}, (96, 128)),
        ({"size": {"height": 33, "width": 32}}, (64, 32)),
        ({"do_resize": False}, (64, 64)),
        ({"do_resize": False, "do_pad": False}, (48, 64)),
        ({"size_divisor": 50}, (50, 100)),
        ({"size_divisor": 1}, (40, 53)),
        ({"pad_size": {"height": 41, "width": 99}}, (41, 99)),
    ],
)
def test_options_by_call_and_by_constructor(processor, processor_class, options, shape):
    by_call = processor(make_rgb(), return_tensors="pt", **options)
    by_constructor = processor_class(**{"size": SMALL, **options})(make_rgb(), return_tensors="pt")
    assert by_call.pixel_values.shape == (1, 3, *shape)
    assert by_call.pixel_mask.shape == (1, *shape)
    assert torch.equal(by_call.pixel_values, by_constructor.pixel_values)


def test_unit_range_statistics_give_the_same_values(processor):
    options = {
        "do_rescale": True,
        "image_mean": [0.406, 0.456, 0.485],
        "image_std": [0.225, 0.224, 0.229],
    }
    ours = processor(make_rgb(), return_tensors="pt").pixel_values
    theirs = processor(make_rgb(), return_tensors="pt", **options).pixel_values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_return_types(processor):
    images = [make_rgb(48, 64), make_rgb(64, 48)]
    arrays = processor(images, return_tensors="np")
    assert arrays["pixel_values"].dtype == np.float32
    assert arrays["pixel_mask"].dtype == arrays["original_sizes"].dtype == np.int64
    lists = processor(images, do_pad=False)
    assert [tuple(values.shape) for values in lists["pixel_values"]] == [(3, 40, 53), (3, 53, 40)]
    with pytest.raises(ValueError, match="do_pad=True to share a tensor"):
        processor(images, do_pad=False, return_tensors="pt")


def test_cast_touches_floats_only(processor):
    batch = processor(make_rgb(), return_tensors="pt").to(torch.float16)
    assert batch.pixel_values.dtype == torch.float16
    assert batch.pixel_mask.dtype == batch.original_sizes.dtype == torch.int64


@pytest.mark.parametrize("reload_class", BACKENDS)
def test_save_and_reload(processor_class, reload_class, tmp_path):
    first = processor_class(size=SMALL, size_divisor=16, image_std=[1.0, 2.0, 3.0])
    first.save_pretrained(tmp_path)
    second = reload_class.from_pretrained(tmp_path)
    assert second.to_dict() == first.to_dict()
    assert second.to_dict()["image_processor_type"] == "GlipImageProcessor"
    batch = second(make_rgb(), return_tensors="pt")
    assert torch.equal(batch.pixel_values, first(make_rgb(), return_tensors="pt").pixel_values)


def test_instances_do_not_share_defaults(processor_class):
    one, other = processor_class(), processor_class()
    one.size["shortest_edge"] = 1
    assert other.size["shortest_edge"] == processor_class().size["shortest_edge"] == 800


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_torchvision_class_without_torchvision_says_what_to_use():
    with pytest.raises(ImportError, match="GlipImageProcessorPil"):
        GlipImageProcessor()


def test_pil_class_works_without_torchvision():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["torchvision"] = None  # `import torchvision` now fails
        import numpy
        import glip_hf.image_processing_glip
        from glip_hf.image_processing_pil_glip import GlipImageProcessorPil
        batch = GlipImageProcessorPil()(numpy.zeros((30, 40, 3), "uint8"), return_tensors="pt")
        print(tuple(batch.pixel_values.shape))
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert python(script, environment=environment) == "(1, 3, 800, 1088)"


# --- annotations


def coco(*things, image_id=7):
    return {"image_id": image_id, "annotations": list(things)}


def thing(bbox, category_id=1, **more):
    return {"bbox": bbox, "category_id": category_id, "area": 6.0, "iscrowd": 0, **more}


def test_annotations_by_hand(processor):
    rgb = make_rgb(100, 50)  # becomes 70 x 35: the factor is 0.7 both ways
    annotation = coco(
        thing([10, 20, 11, 31], 3, area=200.0),  # xyxy 10 20 20 50
        thing([40, 90, 30, 30], 4),  # clipped to the last pixel: 40 90 49 99
        thing([10, 10, 5, 5], 5, iscrowd=1),  # a crowd
        thing([60, 10, 5, 5], 6),  # outside
        thing([5, 5, 1, 9], 8),  # one pixel wide has no extent in the original's reading
    )
    batch = processor(rgb, annotations=annotation, return_tensors="pt")
    (target,) = batch["labels"]
    expected = torch.tensor([[7.0, 14, 14, 35], [28, 63, 34.3, 69.3]])
    torch.testing.assert_close(target["boxes"], expected)
    torch.testing.assert_close(target["area"], torch.tensor([200 * 0.49, 6 * 0.49]))
    assert target["class_labels"].tolist() == [3, 4]
    assert target["image_id"].tolist() == [7]
    assert target["orig_size"].tolist() == [100, 50]
    assert target["size"].tolist() == [70, 35]
    assert target["boxes"].dtype == target["area"].dtype == torch.float32
    for key in ("class_labels", "image_id", "orig_size", "size"):
        assert target[key].dtype == torch.int64


@pytest.mark.parametrize("annotation", [coco(), coco(thing([1, 1, 5, 5], iscrowd=1))])
def test_image_without_boxes(processor, annotation):
    (target,) = processor(make_rgb(), annotations=[annotation], return_tensors="pt")["labels"]
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["class_labels"].shape == (0,) and target["class_labels"].dtype == torch.int64
    assert target["area"].shape == (0,)


def test_annotations_stay_with_their_images(processor):
    images = [make_rgb(100, 50), make_rgb(40, 40)]
    annotations = [coco(thing([0, 0, 11, 11]), image_id=1), coco(thing([0, 0, 5, 5]), image_id=2)]
    for return_tensors in ("pt", "np"):
        labels = processor(images, annotations, return_tensors=return_tensors)["labels"]
        assert [target["image_id"].tolist() for target in labels] == [[1], [2]]
        assert [np.round(target["boxes"].tolist(), 3).tolist() for target in labels] == [
            [[0, 0, 7, 7]],
            [[0, 0, 4, 4]],
        ]


def test_one_annotation_per_image(processor):
    with pytest.raises(ValueError, match="2 annotations for 1 images"):
        processor(make_rgb(), annotations=[coco(), coco()], return_tensors="pt")
    with pytest.raises(ValueError, match="'image_id' and 'annotations'"):
        processor(make_rgb(), annotations=[[1, 2]], return_tensors="pt")


# --- post-processing


def test_post_processing_is_the_shared_one(processor, monkeypatch):
    """The stock pipeline calls with outputs, threshold and an int32 tensor of sizes, by keyword."""
    calls = []

    def record(outputs, **kwargs):
        calls.append((outputs, kwargs))
        return [{"scores": torch.ones(1)}]

    monkeypatch.setattr("glip_hf.image_processing_pil_glip.post_process_grounding", record)
    outputs = SimpleNamespace()
    sizes = torch.tensor([[480, 640]], dtype=torch.int32)
    result = processor.post_process_object_detection(outputs=outputs, threshold=0.3, target_sizes=sizes)
    assert result == [{"scores": torch.ones(1)}]
    processor.post_process_object_detection(outputs, aggregation="max")
    assert calls == [
        (outputs, {"threshold": 0.3, "target_sizes": sizes}),
        (outputs, {"threshold": 0.1, "target_sizes": None, "aggregation": "max"}),
    ]
