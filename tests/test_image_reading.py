# Copyright 2026 The glip_hf authors. MIT licence.
"""Reading images: file modes, channel order, value ranges (whole inputs: with the processors)."""

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_hf import image_processing_pil_glip
from glip_hf.image_processing_pil_glip import (
    GlipImageProcessorPil,
    fetch_images,
    flatten_images,
    load_image,
    read_pixels,
)


def make_rgb(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def as_array(image) -> np.ndarray:
    return read_pixels(image).permute(1, 2, 0).numpy()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["P", "P with alpha bytes", "RGBA", "CMYK", "YCbCr", "tRNS"])
def test_file_modes_are_read_as_pil_converts_them(mode, tmp_path):
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the TIFF files of YCbCr that it writes")
    pil_image = Image.fromarray(make_rgb())
    path = tmp_path / "image.png"
    if mode.startswith("P"):
        alpha = {"transparency": bytes(range(0, 256, 4))} if "alpha" in mode else {}
        pil_image.quantize(64).save(path, **alpha)
        expected = pil_image.quantize(64).convert("RGB")
    elif mode == "tRNS":
        pil_image.save(path, transparency=tuple(make_rgb()[3, 4].tolist()))
        expected = pil_image
    elif mode == "RGBA":
        pil_image.putalpha(Image.fromarray(make_rgb(5)[..., 0]))
        pil_image.save(path)
        expected = make_rgb()  # the colours below, whatever the alpha
    else:
        path = tmp_path / "image.tif"
        pil_image.convert(mode).save(path)
        expected = Image.open(path).convert("RGB")
    np.testing.assert_array_equal(as_array(load_image(path)), np.asarray(expected))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_files_are_scaled_not_clipped(suffix, tmp_path):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / f"ramp{suffix}")
    read = as_array(load_image(tmp_path / f"ramp{suffix}"))
    np.testing.assert_array_equal(read, np.stack([np.round(ramp / 257)] * 3, axis=-1))


def test_channels_are_kept_without_conversion():
    rgb = make_rgb()
    for image in [rgb, rgb[..., :1], np.dstack([rgb, rgb[..., 0]])]:
        channels = image.shape[-1]
        kept = read_pixels(image, do_convert_rgb=False)
        assert kept.shape == (channels, 48, 64)
    assert read_pixels(Image.fromarray(rgb).convert("1"), None, False).shape == (1, 48, 64)
    assert read_pixels(Image.fromarray(rgb).convert("CMYK"), None, False).shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("shape", "numpy_size", "torch_size"),
    [  # three channels win over one or four, else numpy is channels last and torch channels first
        ((1, 9, 3), (1, 9), (1, 9)),
        ((3, 9, 1), (9, 1), (9, 1)),
        ((1, 1, 3), (1, 1), (1, 1)),
        ((3, 1, 1), (1, 1), (1, 1)),
        ((3, 9, 3), (3, 9), (9, 3)),
        ((1, 9, 4), (1, 9), (9, 4)),
        ((1, 9), (1, 9), (1, 9)),
    ],
)
def test_ambiguous_shapes(shape, numpy_size, torch_size):
    zeros = torch.zeros(shape, dtype=torch.uint8)
    assert read_pixels(zeros.numpy()).shape == (3, *numpy_size)
    assert read_pixels(zeros).shape == (3, *torch_size)


def test_given_format_decides():
    zeros = np.zeros((1, 9, 3), np.uint8)
    assert read_pixels(zeros, "channels_first").shape == (3, 9, 3)
    assert read_pixels(zeros, "channels_last").shape == (3, 1, 9)
    with pytest.raises(ValueError, match="9 channels by input_data_format='channels_first'"):
        read_pixels(np.zeros((9, 9, 3), np.uint8), "channels_first")


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_every_type_holds_the_same_values(values):
    expected = torch.tensor([values], dtype=torch.uint8).expand(3, 1, -1)
    row = np.array([values])
    forms = [row.astype(kind) for kind in ("u1", "i2", "i4", "u4", "i8", "u8", ">i4")]
    forms += [(row * 257).astype(kind) for kind in ("u2", ">u2")]
    forms += [(row / 255).astype(kind) for kind in ("f4", "f8", ">f8")]
    if row.max() > 1:  # as 0..255; up to 1 it would be read as 0..1
        forms += [row.astype(kind) for kind in ("f2", "f4", "f8")]
    for form in forms:
        assert torch.equal(read_pixels(form), expected), form.dtype


def test_nesting():
    rgb = make_rgb()
    nested = fetch_images([rgb, [rgb, []], (rgb,)])
    assert [type(entry) for entry in nested] == [np.ndarray, list, list]
    assert len(flatten_images(nested)) == 3
    assert len(flatten_images([np.stack([rgb] * 2), torch.zeros(3, 3, 5, 5)])) == 5


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "P with alpha", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "I 16-bit", "F"]
)
@pytest.mark.parametrize("rgb", [True, False])
def test_large_images_are_read_in_strips(mode, rgb, monkeypatch):
    """They hold less in memory; the values are the same."""
    image = Image.fromarray(make_rgb())
    if mode.startswith("P"):
        image = image.quantize(64)
        if "alpha" in mode:
            image.info["transparency"] = bytes(range(0, 256, 4))
    elif "16" in mode:
        image = Image.fromarray(make_rgb()[..., 0].astype(np.uint16) * 257)
        image = image.convert("I") if mode.startswith("I-16") else image
    else:
        image = image.convert(mode)
    kwargs = {"size": {"height": 20, "width": 31}, "do_convert_rgb": rgb, "return_tensors": "pt"}
    processor = GlipImageProcessorPil()
    expected = read_pixels(image, None, rgb)
    resized = processor(image, **kwargs).pixel_values if rgb else None
    monkeypatch.setattr(image_processing_pil_glip, "STRIP_PIXELS", 64 * 7)
    monkeypatch.setattr(image_processing_pil_glip, "LARGE_IMAGE", 64 * 7)
    assert torch.equal(read_pixels(image, None, rgb), expected)
    if rgb:
        assert torch.equal(processor(image, **kwargs).pixel_values, resized)


@pytest.mark.parametrize("resample", [None, *Image.Resampling])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_photos_are_resized_before_they_become_arrays(mode, resample, monkeypatch):
    """To the same values, and what becomes an array is the small image."""
    image, processor, arrays = Image.fromarray(make_rgb()).convert(mode), GlipImageProcessorPil(), []
    kwargs = {"size": {"height": 20, "width": 31}, "resample": resample, "return_tensors": "pt"}
    if resample is None:
        del kwargs["resample"]
    expected = processor(read_pixels(image), **kwargs)
    monkeypatch.setattr(
        image_processing_pil_glip, "read_pixels", lambda *given: arrays.append(given[0]) or read_pixels(*given)
    )
    made = processor(image, **kwargs)
    assert torch.equal(made.pixel_values, expected.pixel_values)
    assert made.original_sizes.tolist() == expected.original_sizes.tolist() == [list(make_rgb().shape[:2])]
    assert [array.size for array in arrays] == [(31, 20)]


def test_every_sixteen_bit_value():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(read_pixels(values)[0], (values.astype(np.int64) + 128) // 257)
