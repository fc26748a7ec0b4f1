# Copyright 2026 The glip_hf authors. MIT licence.
"""From whatever a user calls a picture to 8-bit channels-first pixels.

The original reads files with `PIL.Image.open(path).convert("RGB")` and every later step works on
8-bit RGB. The same is done here for all kinds of input, so the same photo gives the same numbers
whether it comes as a path, a PIL picture, an array or a tensor:

* EXIF orientation is applied to files and to PIL pictures that still carry the tag.
* Transparency is dropped, not composited, as `convert("RGB")` does for RGBA, LA and palettes: the
  colours stored under transparent pixels show.
* 16-bit values (PIL's I;16, or I with values above 255; uint16 arrays) are scaled by 1 / 257, so
  that 65535 becomes 255; `convert("RGB")` would clip them at 255.
* Float values are 0..1 if none exceeds 1, else 0..255, and are rounded to 8 bits.
"""

from __future__ import annotations

import base64
import io
import os
import urllib.request
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

logger = logging.get_logger(__name__)

URL_TIMEOUT_SECONDS = 60
_CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA


def load_picture(source: str | os.PathLike) -> Image.Image:
    """Open and fully decode a picture from a path, an http(s) URL or a `data:image/...` URI.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if what is there cannot be fetched or decoded (truncated, HTML, too large, ...);
            the message names the source and the cause.
    """
    name = os.fspath(source)
    shown = name if len(name) <= 200 else name[:197] + "..."
    if not isinstance(name, str):
        raise TypeError(f"A picture's path must be text, got {shown!r}.")
    is_url = name.startswith(("http://", "https://"))
    is_data = name.startswith("data:image/")
    # A data URI or pasted text can be longer than the system allows a path to be.
    if not (is_url or is_data) and (len(name) > 4096 or "\0" in name or not os.path.isfile(name)):
        raise FileNotFoundError(
            f"There is no picture file {shown!r} (and it is neither an http(s) URL nor a data:image/ URI)."
        )
    try:
        if is_url:
            request = urllib.request.Request(name, headers={"User-Agent": "glip_hf"})
            with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
                image = Image.open(io.BytesIO(response.read()))
        elif is_data:
            image = Image.open(io.BytesIO(base64.b64decode(name.partition(",")[2])))
        else:
            image = Image.open(name)
        image.load()
    except Exception as error:  # decoders raise almost anything on damaged files
        raise ValueError(f"Cannot read the picture {shown!r}: {error}") from error
    return image


def fetch_pictures(images: Any) -> Any:
    """Replace every path and URL in an arbitrarily nested list by its picture; keep the nesting.

    Raises:
        TypeError: for anything that is no picture.
    """
    if isinstance(images, list | tuple):
        return [fetch_pictures(image) for image in images]
    if isinstance(images, str | os.PathLike):
        return load_picture(images)
    if isinstance(images, Image.Image | np.ndarray | torch.Tensor):
        return images
    raise TypeError(
        "A picture is a PIL image, a numpy array, a torch tensor, a path or a URL (or a list of "
        f"these), got {type(images).__name__}."
    )


def flatten_pictures(images: Any) -> list[Image.Image | np.ndarray | torch.Tensor]:
    """One flat list from a picture, a nested list of pictures, or 4-D arrays holding a batch."""
    if isinstance(images, list | tuple):
        return [picture for image in images for picture in flatten_pictures(image)]
    if not isinstance(images, Image.Image) and images.ndim == 4:
        return list(images)
    return [images]


def read_pixels(
    image: Image.Image | np.ndarray | torch.Tensor,
    input_data_format: ChannelDimension | str | None = None,
    do_convert_rgb: bool = True,
) -> torch.Tensor:
    """One picture as uint8 [C, H, W], RGB (C = 3) unless `do_convert_rgb` is off.

    Args:
        image: PIL picture of any mode, or an array / tensor [H, W], [H, W, C] or [C, H, W] with
            C in 1 (grey), 3 (RGB), 4 (RGBA); bool, integer or float. A tensor stays on its device.
        input_data_format: "channels_first" or "channels_last" for 3-D arrays; found by itself when
            only one of the two outer sides can be the channels (see `channels_first`).

    Raises:
        ValueError: if the picture has no pixels, an impossible shape, or values that are NaN,
            infinite or outside the range of its type.
    """
    if isinstance(image, Image.Image):
        pixels, input_data_format = _pil_pixels(image, do_convert_rgb), ChannelDimension.LAST
        prefer = ChannelDimension.LAST
    elif isinstance(image, np.ndarray):
        pixels, prefer = _tensor_from_numpy(image), ChannelDimension.LAST
    else:
        pixels, prefer = image.detach(), ChannelDimension.FIRST
    if pixels.ndim not in (2, 3):
        raise ValueError(f"A picture has 2 or 3 dimensions, got shape {tuple(pixels.shape)}.")
    if pixels.numel() == 0:
        raise ValueError(f"A picture needs at least one pixel, got shape {tuple(pixels.shape)}.")
    pixels = channels_first(pixels, input_data_format, prefer)
    if do_convert_rgb:
        pixels = pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels[:3]
    return to_uint8(pixels)


def channels_first(
    pixels: torch.Tensor,
    input_data_format: ChannelDimension | str | None,
    prefer: ChannelDimension,
) -> torch.Tensor:
    """[H, W], [H, W, C] or [C, H, W] as [C, H, W].

    Pictures 1, 3 or 4 pixels high or wide leave room for doubt when no format is given. Three
    channels are likelier than one or four; where that does not decide, `prefer` (last for numpy,
    first for torch) does, with a warning. Give `input_data_format` to be sure.
    """
    if pixels.ndim == 2:
        return pixels[None]
    first, last = pixels.shape[0], pixels.shape[-1]
    if input_data_format is not None:
        axis = ChannelDimension(input_data_format)
        channels = first if axis == ChannelDimension.FIRST else last
        if channels not in _CHANNEL_COUNTS:
            raise ValueError(
                f"Shape {tuple(pixels.shape)} has {channels} channels by input_data_format="
                f"{axis.value!r}; 1, 3 or 4 are possible."
            )
    elif first not in _CHANNEL_COUNTS and last not in _CHANNEL_COUNTS:
        raise ValueError(f"Neither end of the shape {tuple(pixels.shape)} can be the colour channels: 1, 3 or 4.")
    elif first not in _CHANNEL_COUNTS or last not in _CHANNEL_COUNTS:
        axis = ChannelDimension.FIRST if first in _CHANNEL_COUNTS else ChannelDimension.LAST
    elif (first == 3) != (last == 3):
        axis = ChannelDimension.FIRST if first == 3 else ChannelDimension.LAST
    else:
        axis = prefer
        logger.warning(
            f"The colour channels of shape {tuple(pixels.shape)} could be first or last; taking "
            f"{axis.value}. Pass input_data_format to decide."
        )
    return pixels if axis == ChannelDimension.FIRST else pixels.permute(2, 0, 1)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixel values of any real type on the 0..255 scale, rounded (half to even) to uint8.

    bool -> 0 / 255; uint16 -> value / 257; other integers must be 0..255; floats: 0..1 or 0..255 (a
    maximum between 1 and 2 is refused as neither).
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_complex():
        raise ValueError(f"Pixel values must be real, got {pixels.dtype}.")

    if pixels.is_floating_point():
        values = pixels if pixels.dtype == torch.float64 else pixels.float()
        low, high = _range(values)
        if not np.isfinite([low, high]).all():
            raise ValueError("The picture has NaN or infinite values; replace them first.")
        # A hair above 1 is rounding in the caller's arithmetic, not another scale.
        scale = 255.0 if high <= 1.001 else 1.0
        if low * scale < -0.5 or high * scale > 255.5 or 1.001 < high < 2:
            raise ValueError(
                f"Float pixels must be 0..1 or 0..255, got {low:g}..{high:g}. Undo any normalisation before this step."
            )
        return (values * scale).round().clamp(0, 255).to(torch.uint8)

    values = pixels.to(torch.int64)
    low, high = _range(values)
    if pixels.dtype == torch.uint16:
        if 1 < high <= 255:
            logger.warning(
                f"A uint16 picture without a value above {high} is nearly black, as 16-bit pixels "
                "go to 65535. If its values are 8-bit, convert it to uint8."
            )
        return ((values + 128) // 257).to(torch.uint8)
    if low < 0 or high > 255:
        raise ValueError(
            f"Pixels of type {pixels.dtype} must be 0..255, got {low}..{high}. Use uint16 for "
            "16-bit pictures (0..65535)."
        )
    return values.to(torch.uint8)


def _range(values: torch.Tensor) -> tuple[float, float]:
    low, high = values.aminmax()  # NaN anywhere makes both NaN
    return low.item(), high.item()


def _pil_pixels(image: Image.Image, do_convert_rgb: bool) -> torch.Tensor:
    """A PIL picture, upright, as a tensor [H, W] or [H, W, C]."""
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16 / 32-bit grey: convert("RGB") would clip it
            values = np.asarray(image)
            # Some 16-bit formats (and every one in older Pillow versions) come as 32-bit "I".
            if image.mode == "I" and values.size and values.min() >= 0 and values.max() > 255:
                values = values.astype(np.uint16) if values.max() <= 65535 else values
            return _tensor_from_numpy(values)
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # Pillow warns about these unless asked for the alpha first
        if image.mode == "1" and not do_convert_rgb:
            image = image.convert("L")
        if do_convert_rgb or image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGB")
        return torch.from_numpy(np.array(image))
    except (OSError, SyntaxError) as error:  # pictures opened lazily are decoded only here
        raise ValueError(f"Cannot decode the picture {getattr(image, 'filename', '') or image!r}: {error}") from error


def _tensor_from_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "buifc":
        raise ValueError(f"An array of {array.dtype} is no picture: numbers are needed.")
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    # torch takes neither negative strides nor, without a warning, read-only memory.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)
