# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP's image processor on PIL and numpy, and what it shares with the torchvision one.

image -> upright 8-bit RGB -> resize -> BGR, 0..255 -> (x - mean) / std -> zeros at the right and bottom up to a size
common to the batch. On this backend every value equals the original's bit for bit (parity tests: `tests/`).

The original reads files with `PIL.Image.open(path).convert("RGB")` and works on 8-bit RGB from there. The same is done
here, so an image gives the same values as a path, a PIL image, an array or a tensor:

* EXIF orientation is applied to files and to PIL images that still carry the tag.
* Transparency is dropped, not composited, as `convert("RGB")` does.
* 16-bit values (PIL's I;16, or I with values above 255; uint16 arrays) are scaled by 1 / 257; `convert("RGB")`, and
  with it `transformers.image_utils.load_image`, would clip them at 255.
* Float values are 0..1 if none exceeds 1, else 0..255, and are rounded to 8 bits.

Sizes are (height, width) in pixels. Boxes are xyxy with both corners *inside* the box (GLIP's "+1" convention: a box
one pixel wide has x1 == x2), so COCO's x, y, w, h becomes x, y, x + w - 1, y + h - 1.

Letters: B images, H and W height and width, C channels, K boxes of an image.
"""

import base64
import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .fetching_glip import fetch, setting
from .hub_glip import AUTO_IMAGE_PROCESSOR, GlipHubMixin
from .postprocess_glip import GlipPostProcessKwargs, post_process_grounding
from .values_glip import integer, quote, read_box, read_flag, read_number, refuse_unknown, shown

logger = logging.get_logger(__name__)

# What brings an image of each EXIF orientation upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LONGEST_SIDE = 1_000_000  # in pixels; Pillow runs out of memory at rows of 100 MB
LARGE_IMAGE = 1 << 24  # pixels above which an image is resized channel by channel, in a third of the memory
STRIP_PIXELS = 1 << 20  # larger images are converted to 8 bits in strips of so many pixels, which stay in the cache

Pixels = np.ndarray | torch.Tensor  # [C, H, W]; the PIL backend works on the former, torchvision on the latter

# -- reading images --------------------------------------------------------------------------------


class UnreadableImage(ValueError):
    """An image that is damaged, or larger than allowed."""


def open_image(file: str | BinaryIO, name: object = "") -> Image.Image:
    """An image with its header read and its pixels not yet decoded.

    Pillow refuses images of more than 179 megapixels, against files that are small and take all memory. The environment
    variable `GLIP_MAX_MEGAPIXELS` is another limit. The `UnreadableImage` error for what is not an image, or has too
    many pixels, has its `name`.
    """
    with _reading(name):
        if os.environ.get("GLIP_MAX_MEGAPIXELS"):
            Image.MAX_IMAGE_PIXELS = int(setting("GLIP_MAX_MEGAPIXELS", 0) * 1e6 / 2)  # Pillow's limit is twice as high
        image = Image.open(file)
        if image.format == "EPS":  # to decode it Ghostscript would run the program that it is
            image.close()
            raise ValueError("it is PostScript; convert it to PNG or JPEG")
        if max(image.size) > LONGEST_SIDE:
            raise ValueError(f"it has {image.width} x {image.height} pixels; a side has {LONGEST_SIDE:,} at most")
    return image


def decode_image(image: Image.Image, name: object = "") -> Image.Image:
    """The same image with its pixels decoded; `UnreadableImage` if they are truncated or damaged."""
    with _reading(name):
        image.load()
    return image


@contextlib.contextmanager
def _reading(name: object) -> Iterator[None]:
    """Errors of the block as `UnreadableImage` with the reason in one line; a `MemoryError` passes through."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders and servers raise almost anything
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 300)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image, or its beginning is damaged"
        if isinstance(error, Image.DecompressionBombError):
            pixels = next((int(word.lstrip("(")) for word in reason.split() if word.lstrip("(").isdigit()), 0)
            limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
            reason = (
                f"it has {pixels / 1e6:.0f} megapixels, more than the {limit:.0f} allowed; the environment variable "
                "GLIP_MAX_MEGAPIXELS allows more"
            )
        raise UnreadableImage(f"Cannot read the image{f' {name}' if str(name) else ''}: {reason}") from error


# Of JPEG, PNG, GIF, WebP, BMP and TIFF files as text
_BASE64_BEGINNINGS = ("/9j/", "iVBORw0K", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0AK")


def load_image(source: str | os.PathLike, timeout: float | None = None) -> Image.Image:
    """Open and fully decode an image from a path, an http(s) URL, a `data:image/...` URI or base64 text.

    Args:
        timeout: seconds that fetching a URL may take; for this and the other limits see `fetching_glip`.

    Raises:
        FileNotFoundError: if a path does not exist.
        UnreadableImage: if the image cannot be fetched or decoded; the message names the source and the cause.
    """
    name = os.fspath(source)
    quoted = quote(name, 200)
    if not isinstance(name, str):
        raise TypeError(f"The path of an image must be a string, got {quoted}.")
    is_url = name.startswith(("http://", "https://"))
    is_base64 = len(name) > 100 and name.startswith(_BASE64_BEGINNINGS) and not os.path.isfile(name[:4096])
    is_data = name.startswith("data:image/") or is_base64
    # A data URI or pasted text can be longer than the system allows a path to be.
    is_path = len(name) <= 4096 and "\0" not in name and os.path.exists(name) and not os.path.isdir(name)  # a pipe, too
    if not (is_url or is_data or is_path):
        raise FileNotFoundError(
            f"There is no image file {quoted}, nor is it an http(s) URL, a data:image/ URI or base64."
        )
    file = name
    with _reading(quoted):
        if is_url:
            file = io.BytesIO(fetch(name, timeout))
        elif is_data:
            file = io.BytesIO(base64.b64decode(name if is_base64 else name.partition(",")[2]))
    return decode_image(open_image(file, quoted), quoted)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 (as it is stored) to 8; 1 where there is none, or a damaged one.

    Pixels are not decoded: of a PNG, what comes after them is unknown until then.
    """
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises almost anything, and viewers show the image all the same
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it: turned by its EXIF orientation, and without it; the same image if it is 1. An
    `UnreadableImage` error if it was opened and cannot be decoded."""
    decode_image(image, getattr(image, "filename", ""))
    if (value := orientation(image)) == 1:
        return image
    turned = image.transpose(_TURNS[value])
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(key, None)
    return turned


def fetch_images(images: Any) -> Any:
    """Every path and URL in a nested list replaced by its image; a TypeError for anything that is not an image."""
    if isinstance(images, list | tuple):
        return [fetch_images(image) for image in images]
    if isinstance(images, str | os.PathLike):
        return load_image(images)
    if isinstance(images, Image.Image | np.ndarray | torch.Tensor):
        return images
    raise TypeError(
        f"An image is a PIL image, an array, a tensor, a path, a URL, or a list of these, not {type(images).__name__}."
    )


def flatten_images(images: Any) -> list[Image.Image | np.ndarray | torch.Tensor]:
    """One flat list from an image, a nested list of images, or 4-D arrays that hold a batch."""
    if isinstance(images, list | tuple):
        return [image for nested in images for image in flatten_images(nested)]
    if not isinstance(images, Image.Image) and images.ndim == 4:
        return list(images)
    return [images]


def read_pixels(
    image: Image.Image | np.ndarray | torch.Tensor,
    input_data_format: ChannelDimension | str | None = None,
    do_convert_rgb: bool = True,
) -> torch.Tensor:
    """One image as uint8 [C, H, W], RGB (C = 3) unless `do_convert_rgb` is off.

    Args:
        image: PIL image of any mode, or an array or tensor [H, W], [H, W, C] or [C, H, W] with C in 1 (grey), 3 (RGB),
            4 (RGBA); bool, integer or float. A tensor stays on its device.
        input_data_format: "channels_first" or "channels_last" for 3-D arrays; inferred when only one of the two outer
            dimensions can be the channels (see `channels_first`).

    Raises:
        ValueError: for no pixels, an impossible shape, or values that are NaN or outside the range of their type.
    """
    prefer = ChannelDimension.LAST
    if isinstance(image, Image.Image):
        pixels, input_data_format = _pil_pixels(image, do_convert_rgb), ChannelDimension.LAST
    elif isinstance(image, np.ndarray):
        pixels = _tensor_from_numpy(image)
    else:
        pixels, prefer = image.detach(), ChannelDimension.FIRST
    if pixels.ndim not in (2, 3):
        raise ValueError(f"An image has 2 or 3 dimensions, got shape {tuple(pixels.shape)}.")
    if pixels.numel() == 0:
        raise ValueError(f"An image needs at least one pixel, got shape {tuple(pixels.shape)}.")
    pixels = channels_first(pixels, input_data_format, prefer)
    pixels = to_uint8(pixels[:3] if do_convert_rgb else pixels)
    return pixels.expand(3, -1, -1) if do_convert_rgb and pixels.shape[0] == 1 else pixels


def channels_first(
    pixels: torch.Tensor, input_data_format: ChannelDimension | str | None, prefer: ChannelDimension
) -> torch.Tensor:
    """[H, W], [H, W, C] or [C, H, W] as [C, H, W].

    The layout of images 1, 3 or 4 pixels high or wide is ambiguous when no format is given. Three channels are likelier
    than one or four; where that does not decide, `prefer` (last for numpy, first for torch) does, with a warning.
    """
    if pixels.ndim == 2:
        return pixels[None]
    first, last = pixels.shape[0], pixels.shape[-1]
    shape, counts = tuple(pixels.shape), (1, 3, 4)  # grey, RGB, RGBA
    if input_data_format is not None:
        axis = ChannelDimension(input_data_format)
        channels = first if axis == ChannelDimension.FIRST else last
        if channels not in counts:
            raise ValueError(
                f"Shape {shape} has {channels} channels by input_data_format={axis.value!r}, not 1, 3 or 4."
            )
    elif first not in counts and last not in counts:
        raise ValueError(f"Neither the first nor the last dimension of shape {shape} can be the channels: 1, 3 or 4.")
    elif first not in counts or last not in counts or (first == 3) != (last == 3):
        is_first = last not in counts or (first == 3 and last in counts)
        axis = ChannelDimension.FIRST if is_first else ChannelDimension.LAST
    else:
        axis = prefer
        logger.warning(
            f"The channels of shape {shape} could be first or last; taking {axis.value}. Pass input_data_format."
        )
    return pixels if axis == ChannelDimension.FIRST else pixels.permute(2, 0, 1)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixel values of any real type on the 0..255 scale, rounded (half to even) to uint8.

    bool -> 0 / 255; uint16 -> value / 257; other integers must be 0..255; floats: 0..1 or 0..255 (a maximum between 1
    and 2 is refused as neither).
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_complex():
        raise ValueError(f"Pixel values must be real, got {pixels.dtype}.")

    # In strips of whole rows: 16-bit pixels take four times their memory on the way.
    strips = pixels.split(max(STRIP_PIXELS // max(pixels.shape[-1], 1), 1), dim=-2)
    integers = torch.int32 if pixels.dtype == torch.uint16 else torch.int64
    floats = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    wide = floats if pixels.is_floating_point() else integers
    limits = np.array([[value.item() for value in strip.to(wide).aminmax()] for strip in strips])  # of NaN both are NaN
    low, high = limits[:, 0].min(), limits[:, 1].max()
    if pixels.is_floating_point():
        if not np.isfinite([low, high]).all():
            raise ValueError("The image has NaN or infinite values; replace them first.")
        # A hair above 1 is rounding in the caller's arithmetic, not another scale.
        scale = 255.0 if high <= 1.001 else 1.0
        if low * scale < -0.5 or high * scale > 255.5 or 1.001 < high < 2:
            raise ValueError(f"Float pixels must be 0..1 or 0..255, got {low:g}..{high:g}. Undo any normalisation.")
        return torch.cat([(strip.to(wide) * scale).round().clamp(0, 255).to(torch.uint8) for strip in strips], dim=-2)

    if pixels.dtype == torch.uint16:
        if 1 < high <= 255:
            logger.warning(
                f"A uint16 image without a value above {high} is nearly black, as 16-bit pixels go to 65535. If its "
                "values are 8-bit, convert it to uint8."
            )
        # (value + 128) // 257, for all 16-bit values, without the slow division
        rounded = (strip.to(wide).add_(128) for strip in strips)
        return torch.cat([value.sub_(value >> 8).bitwise_right_shift_(8).to(torch.uint8) for value in rounded], dim=-2)
    if low < 0 or high > 255:
        raise ValueError(
            f"Pixels of type {pixels.dtype} must be 0..255, got {low}..{high}. Use uint16 for 16-bit images."
        )
    return pixels.to(torch.uint8)


def _pil_pixels(image: Image.Image, do_convert_rgb: bool) -> torch.Tensor:
    """A PIL image, upright, as a tensor [H, W] or [H, W, C]."""
    image = upright(image)
    if image.mode.startswith(("I", "F")):  # 16- or 32-bit grey: convert("RGB") would clip it
        values = np.array(image)
        # Some 16-bit formats (and every one in older Pillow versions) come as 32-bit "I".
        if image.mode == "I" and values.size and values.min() >= 0 and 255 < values.max() <= 65535:
            values = values.astype(np.uint16)
        return _tensor_from_numpy(values)
    keep = "L" if image.mode == "1" else image.mode
    rgb = do_convert_rgb or keep not in ("L", "RGB", "RGBA")
    return torch.from_numpy(np.array(_converted(image, "RGB" if rgb else keep)))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns about these unless asked for the alpha first
    return image if image.mode == mode else image.convert(mode)


def _tensor_from_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "buifc":
        raise ValueError(f"An array of {array.dtype} is not an image: it must be numeric.")
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    # torch takes neither negative strides nor, without a warning, read-only memory.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


# -- sizes -----------------------------------------------------------------------------------------


def shortest_edge_size(height: int, width: int, shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """GLIP's size rule: the short side becomes `shortest_edge` unless the long one gets too long.

    If `long / short * shortest_edge > longest_edge`, the short side becomes `round(longest_edge * short / long)`
    instead (half to even). The long side follows from the *rounded* short side and is cut with `int()`, so it can miss
    `longest_edge` on either side: 2000 x 1000 gives 1332 x 666, where Transformers' `get_size_with_aspect_ratio`
    computes 1333 x 666. From `2 * longest_edge : 1` on, the rounded short side is 0 and the original fails; here such
    an image becomes one pixel by `longest_edge`.
    """
    short, long = min(height, width), max(height, width)
    target = shortest_edge
    if longest_edge is not None and long / short * target > longest_edge:
        target = round(longest_edge * short / long)
    if target == short:
        return height, width
    new_short, new_long = (target, int(target * long / short)) if target >= 1 else (1, int(longest_edge))
    return (new_long, new_short) if width < height else (new_short, new_long)


def resized_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The size of the network input before padding, for any of the supported `size` dictionaries.

    Args:
        height, width: size of the upright image, at least 1 pixel each.
        size: `{"shortest_edge"}` with or without `"longest_edge"` (GLIP's rule), `{"height", "width"}` (exactly that
            size) or `{"max_height", "max_width"}` (the largest that fits, ratio kept).

    Raises:
        ValueError: if `size` has another combination of keys.
    """
    keys = set(size)
    if keys in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return shortest_edge_size(height, width, size["shortest_edge"], size.get("longest_edge"))
    if keys == {"height", "width"}:
        return size["height"], size["width"]
    if keys == {"max_height", "max_width"}:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    raise ValueError(
        f"size={dict(size)} is not supported: give 'shortest_edge' (and 'longest_edge'), 'height' and 'width', or "
        "'max_height' and 'max_width'."
    )


def _height_and_width(image: Pixels | Image.Image) -> tuple[int, int]:
    return image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[-2:])


def common_padded_size(sizes: Sequence[tuple[int, int]], divisor: int | None) -> tuple[int, int]:
    """The smallest size that holds every image of a batch and is a multiple of `divisor`."""
    divisor = divisor or 1
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


# -- training targets ------------------------------------------------------------------------------


def clip_and_drop(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [K, 4] xyxy clipped to the image, x to 0..width-1 and y to 0..height-1, and which have an extent [K] bool
    (x2 > x1 and y2 > y1)."""
    clipped = np.clip(boxes, 0, np.array([width - 1, height - 1] * 2, dtype=boxes.dtype))
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(axis=1)


def resize_boxes(boxes: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Boxes [K, 4] float32 xyxy after a resize of the image from `old` to `new`, both (height, width): corners are
    multiplied, as in the original (with inclusive corners that is half a pixel off at the far edge)."""
    scale_y, scale_x = (int(after) / int(before) for after, before in zip(new, old, strict=True))
    return boxes * np.array([scale_x, scale_y] * 2, dtype=np.float32)


def coco_to_target(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, np.ndarray]:
    """The COCO record of one image as a training target in pixels of the upright image; see `preprocess`.

    As in GLIP's COCO reader, crowd regions are left out, boxes are clipped to the image and those without extent
    (x2 <= x1 or y2 <= y1 after clipping) dropped, together with their class. `area` defaults to w * h, `iscrowd` to 0.

    Numbers and ids may be spelt as text, as tensors or with a fraction of zero; None is a missing value. A ValueError
    if a key is missing, an id is not an integer or a box is not four finite numbers.
    """
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= set(annotation):
        raise ValueError(
            f"An annotation has the keys 'image_id' and 'annotations' (COCO format), got {quote(annotation)}."
        )
    where = f"Image {quote(annotation['image_id'])}"
    if not isinstance(annotation["annotations"], list | tuple):
        raise ValueError(f"{where}: 'annotations' must be a list, got {quote(annotation['annotations'])}.")
    boxes, classes, areas = [], [], []
    for entry in annotation["annotations"]:
        if not isinstance(entry, Mapping) or entry.get("bbox") is None or entry.get("category_id") is None:
            raise ValueError(f"{where}: an annotation needs 'bbox' and 'category_id', got {quote(entry)}.")
        box, category, area, crowd = (_plain(entry.get(key)) for key in ("bbox", "category_id", "area", "iscrowd"))
        if not _finite(where, "'iscrowd' must be 0 or 1", read_flag, crowd):
            x, y, w, h = _finite(where, "'bbox' must be four finite numbers x, y, w, h", read_box, box)
            boxes.append((x, y, w, h))
            classes.append(_integer("category_id", category))
            areas.append(w * h if area is None else _finite(where, "'area' must be a number", read_number, area))

    xywh = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    far_corners = xywh[:, :2] + np.clip(xywh[:, 2:] - np.float32(1), 0, None)
    clipped, keep = clip_and_drop(np.concatenate([xywh[:, :2], far_corners], axis=1), height, width)
    if not keep.all():
        normalised = ((xywh >= 0) & (xywh <= 1)).all() and min(height, width) > 2
        kind = "between 0 and 1" if normalised else "outside their image, or with a side of at most one pixel,"
        logger.warning_once(f"Boxes {kind} are left out: 'bbox' is x, y, width and height in pixels.")
    return {
        "boxes": clipped[keep],
        "class_labels": np.array(classes, dtype=np.int64)[keep],
        "area": np.array(areas, dtype=np.float32)[keep],
        "image_id": np.array([_integer("image_id", annotation["image_id"])], dtype=np.int64),
        "orig_size": np.array([height, width], dtype=np.int64),
        "size": np.array([height, width], dtype=np.int64),
    }


def _plain(value: Any) -> Any:
    """What a tensor or an array holds, of a single element that; also within a list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "tolist"):
        return value
    return value.item() if math.prod(value.shape) == 1 else value.tolist()


def _finite(where: str, rule: str, read: Callable[[Any], Any], value: Any) -> Any:
    """What a reader of `values_glip` makes of a value; the error says `where` and the rule."""
    try:
        found = read(value)
        if np.isfinite(np.asarray(found, dtype=np.float64)).all():
            return found
    except (OverflowError, ValueError):
        pass
    raise ValueError(f"{where}: {rule}, got {quote(value)}.")


def plain_id(value: Any) -> Any:
    """7 for what means it beyond doubt (7.0, "7", an array or tensor of it); anything else as it is."""
    number = integer(value := _plain(value))
    return value if number is None else number


def _integer(name: str, value: Any) -> int:
    number = plain_id(value)
    if isinstance(number, bool) or not isinstance(number, int) or not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{name!r} must be an integer, got {quote(value)}.")
    return number


def resize_target(target: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The target after its image was resized to `size`."""
    (height, width), (old_height, old_width) = size, target["size"].tolist()
    return {
        **target,
        "boxes": resize_boxes(target["boxes"], (old_height, old_width), size),
        "area": target["area"] * np.float32((width / old_width) * (height / old_height)),
        "size": np.array(size, dtype=np.int64),
    }


# -- the processors --------------------------------------------------------------------------------


class GlipImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `True`):
        Whether to turn RGB into BGR before normalising, as GLIP's weights expect. `image_mean` and `image_std` are in
        the order after the flip.
    size_divisor (`int`, *optional*, defaults to 32):
        The padded height and width are the smallest multiples of this that hold every image of the batch. Ignored when
        `pad_size` is given.
    """

    do_flip_channel_order: bool | None
    size_divisor: int | None


class GlipImageProcessorMixin(GlipHubMixin):
    """Turns images into GLIP's network input.

    Defaults (each can be given to the constructor or to a call): shortest side 800, longest at most 1333, PIL bilinear,
    upscaling where needed; mean (103.53, 116.28, 123.675) and std (57.375, 57.12, 58.395) for BGR pixels in 0..255,
    hence `do_rescale=False`; padding to a multiple of 32. How all kinds of images become 8-bit RGB: see the top of
    `image_processing_pil_glip`.

    The network has no padding mask: the padding an image gets from larger ones in its batch slightly changes its
    results, as in the original. Batch images of similar shape, or one at a time.
    """

    valid_kwargs = GlipImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask", "original_sizes"]

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False  # size=800 means {"shortest_edge": 800}
    resample = PILImageResampling.BILINEAR
    do_flip_channel_order = True
    do_rescale = False
    do_normalize = True
    image_mean = [103.530, 116.280, 123.675]
    image_std = [57.375, 57.120, 58.395]
    do_pad = True
    size_divisor = 32

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Unpack[GlipImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images into network input.

        Args:
            images: an image or a list (nested lists are flattened): PIL images, numpy arrays or torch tensors ([H, W],
                [H, W, C], [C, H, W], or a batch of them in 4-D), paths, http(s) URLs.
            annotations: one COCO detection record per image, in pixels of the upright image: `{"image_id",
                "annotations": [{"bbox": [x, y, w, h], "category_id", "area", "iscrowd"}]}`. Crowd regions and boxes
                outside the image are dropped.
            **kwargs: any default of the class, for this call only.

        Returns:
            `BatchFeature` with

            - `pixel_values` of shape `(batch_size, 3, height, width)`, float32: BGR, normalised, padding exactly 0;
            - `pixel_mask` of shape `(batch_size, height, width)`, int64: 1 on the image, 0 on the padding;
            - `original_sizes` of shape `(batch_size, 2)`, int64: (height, width) of each image after EXIF rotation;
            - `labels`, only with `annotations`: a dictionary per image with `boxes` [K, 4] float32 xyxy in pixels of
              the resized, unpadded network input (x2 = x + w - 1 before scaling), `class_labels` [K] int64, `area` [K]
              float32 (scaled too), `image_id` [1], `orig_size` [2] and `size` [2] int64 (height, width).

            Without `return_tensors` the values are lists with an entry per image.

        Raises:
            ValueError: for no image at all, an image without pixels, unreadable files, NaN, values out of range, or a
                number of annotations other than that of images.
            FileNotFoundError: for a path that does not exist.
            TypeError: for anything that is not an image.
        """
        refuse_unknown("the image processor", kwargs, self.valid_kwargs.__annotations__)
        return super().preprocess(images, annotations, **kwargs)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.1,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs: Unpack[GlipPostProcessKwargs],
    ) -> list[dict[str, torch.Tensor]]:
        """What Transformers' detection pipelines call; see [`~postprocess_glip.post_process_grounding`]."""
        return post_process_grounding(outputs, threshold=threshold, target_sizes=target_sizes, **kwargs)

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(self, AUTO_IMAGE_PROCESSOR)]

    fetch_images = staticmethod(fetch_images)  # by PIL on both backends: same pixels

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> Pixels | Image.Image:
        """One image as uint8 [C, H, W] in the backend's own type, upright, RGB. One of PIL stays one of PIL until it is
        resized: half the time and memory of a photo of 12 megapixels."""
        if do_convert_rgb and isinstance(image, Image.Image) and image.mode[0] not in "IF" and all(image.size):
            return _converted(upright(image), "RGB")
        return self._from_torch(read_pixels(image, input_data_format, bool(do_convert_rgb)))

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop=True is not supported: GLIP sees the whole image.")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format={kwargs['data_format']!r} is not supported: the model takes channels first.")
        for name in ("size", "pad_size"):
            if any(side < 1 for _, side in kwargs.get(name) or ()):
                raise ValueError(f"{name}={dict(kwargs[name])} must be at least 1 pixel.")
        if kwargs.get("size_divisor") is not None and kwargs["size_divisor"] < 1:
            raise ValueError(f"size_divisor={kwargs['size_divisor']} must be at least 1.")
        for name in ("image_mean", "image_std", "rescale_factor"):
            values = np.asarray([] if kwargs.get(name) is None else kwargs[name], dtype=np.float64)
            if not np.isfinite(values).all() or (name != "image_mean" and (values == 0).any()):
                raise ValueError(f"{name}={kwargs[name]} must be finite{'' if name == 'image_mean' else ' and not 0'}.")

    def _prepare_image_like_inputs(self, images: Any, **kwargs: Any) -> list[Pixels | Image.Image]:
        images = flatten_images(self.fetch_images(images))
        if not images:
            raise ValueError("There is no image to process: the list is empty.")
        prepared = []
        for index, image in enumerate(images):
            try:
                prepared.append(self.process_image(image, **kwargs))
            except ValueError as error:
                if len(images) == 1:
                    raise
                raise ValueError(f"Image {index} of {len(images)}: {error}") from error
        return prepared

    def _preprocess(
        self,
        images: list[Pixels | Image.Image],
        annotations: Any,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        original_sizes = [_height_and_width(image) for image in images]
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, Mapping) else annotations
            if not isinstance(annotations, list | tuple):
                raise TypeError(f"annotations={quote(annotations)} must be a dictionary per image.")
            if len(annotations) != len(images):
                raise ValueError(
                    f"{len(annotations)} annotations for {len(images)} images: give one per image (with an empty list "
                    "of 'annotations' where there is nothing)."
                )
            targets = [coco_to_target(own, *size) for own, size in zip(annotations, original_sizes, strict=True)]
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        images = [self._from_torch(read_pixels(one)) if isinstance(one, Image.Image) else one for one in images]
        sizes = [tuple(image.shape[-2:]) for image in images]
        images = [self._to_network_values(image, **kwargs) for image in images]

        if do_pad:
            height, width = common_padded_size(sizes, size_divisor)
            pad_size = pad_size or SizeDict(height=height, width=width)
            images, masks = self.pad(images, pad_size=pad_size, return_mask=True)
        elif return_tensors is not None and len(set(sizes)) > 1:
            raise ValueError(
                f"Images of different sizes {sizes} need do_pad=True to share a tensor (or no return_tensors)."
            )
        else:
            masks = [self._from_torch(torch.ones(size, dtype=torch.int64)) for size in sizes]

        original_sizes = [self._from_torch(torch.tensor(size)) for size in original_sizes]
        data = {"pixel_values": images, "pixel_mask": masks, "original_sizes": original_sizes}
        batch = BatchFeature(data, tensor_type=return_tensors)
        if annotations is not None:
            targets = map(resize_target, targets, sizes)
            batch["labels"] = [BatchFeature(target, tensor_type=return_tensors) for target in targets]
        if kwargs.get("device") is not None:
            for part in (batch, *batch.get("labels", ())):
                part.to(kwargs["device"])
        return batch

    def resize(
        self, image: Pixels | Image.Image, size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> Pixels | Image.Image:
        """uint8 [C, H, W], or an image of PIL, resized to what `resized_size` says; untouched if that is its size."""
        new_size = resized_size(*_height_and_width(image), dict(size))
        if new_size == _height_and_width(image):
            return image
        if isinstance(image, Image.Image):
            name = "BILINEAR" if resample is None else getattr(resample, "name", "")  # torchvision's filters have PIL's
            return image.resize(new_size[::-1], getattr(PILImageResampling, name, resample))
        return self._resize_to(image, new_size, resample)

    def _resize_to(
        self, image: Pixels, size: tuple[int, int], resample: PILImageResampling | int | None = None
    ) -> Pixels:
        if image.shape[0] not in (1, 3) or image.shape[-2] * image.shape[-1] <= LARGE_IMAGE:
            return super().resize(image, SizeDict(height=size[0], width=size[1]), resample)
        resample = PILImageResampling.BILINEAR if resample is None else resample
        # Channel by channel: the same values.
        channels = [Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], resample) for channel in image]
        return np.stack([np.asarray(channel) for channel in channels])

    def _to_network_values(
        self,
        image: Pixels,
        do_flip_channel_order: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        **kwargs: Any,
    ) -> Pixels:
        """uint8 RGB [C, H, W] to float32 BGR, normalised. (A fourth channel stays where it is.)"""
        if do_flip_channel_order and image.shape[0] >= 3:
            image = image[[2, 1, 0, *range(3, image.shape[0])]]
        image = image.astype(np.float32) if isinstance(image, np.ndarray) else image.float()
        if do_rescale:
            image = self.rescale(image, rescale_factor)
        if do_normalize:
            image = self.normalize(image, image_mean, image_std)
        return image


class GlipImageProcessorPil(GlipImageProcessorMixin, PilBackend):
    """Turns images into GLIP's network input with PIL and numpy; needs no torchvision.

    Options and results: see `GlipImageProcessorMixin`.
    """

    def _from_torch(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.cpu().numpy()


__all__ = ["GlipImageProcessorPil"]
