# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw detections on an image: boxes, masks, names and scores, legible at any size, with PIL alone.

    annotated = draw_detections(image, result)   # one dict of post-processing, or what a pipeline returns
    annotated.save("annotated.png")

Letters: K detections. Boxes are xyxy in pixels of the upright image, after its EXIF orientation is applied.
"""

import itertools
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from .image_processing_pil_glip import load_image, read_pixels
from .values_glip import check_number, quote

# Seven colours of Okabe and Ito (2008) and three of Paul Tol's palettes. Any two of them differ by at least 17 CIELAB
# units in normal, red-blind and green-blind vision (Machado 2009, severity 1); neighbours in the list by at least 50.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (0, 158, 115),  # green
    (51, 34, 136),  # indigo
    (221, 221, 221),  # pale grey
    (136, 34, 85),  # wine
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # purple
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Tried in this order for a character that PIL's own font lacks; a font that is not installed is skipped.
FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)
MASK_OPACITY = 0.45  # of the tint within a mask
SMALLEST_FONT = 8  # pixels; below that a name is illegible and left out
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rect = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are exclusive


def label_color(label: int | str) -> tuple[int, int, int]:
    """Colour (RGB, 0..255) of a label, the same in every image.

    Integer labels cycle through `PALETTE`, so the first ten classes differ; a name (for detections without integer
    labels) is hashed.
    """
    index = zlib.crc32(label.encode("utf-8")) if isinstance(label, str) else int(label)
    return PALETTE[index % len(PALETTE)]


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher WCAG 2 contrast ratio to `background` (RGB)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def draw_detections(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor,
    detections: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    show_scores: bool = True,
    line_width: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """Draw every detection on a copy of an image.

    Args:
        image: what the processor takes: a path or URL, a PIL image of any mode, turned upright by its EXIF orientation,
            or an array or tensor [H, W], [H, W, 3] or [3, H, W].
        detections: `boxes` [K, 4] xyxy in pixels of the upright image, and any of `scores` [K], `labels` [K] int,
            `text_labels` [K] str, `track_ids` [K] int, `masks` [K, H, W] bool; tensors, arrays or lists. Others are
            ignored. Or a list with one such dict, or what a pipeline returns for the image: dicts of `score`, `label`
            and `box`, and perhaps `mask`.
        show_scores: write the score after the name.
        line_width: of the boxes, in pixels; by default proportional to the image.
        font_size: of the names, in pixels; by default proportional to the image.

    Returns:
        A new RGB image of the size of the upright image. Boxes of low scores are drawn first, so that high ones stay
        on top; a name is shortened where the image is narrower than it and left out where not even one letter fits.

    Raises:
        ValueError: lengths that differ, results of several images, a width or size below 1, masks of another size than
            the image, or a box that is not finite or has its corners swapped.
    """
    for name, value in (("line_width", line_width), ("font_size", font_size)):
        if value is not None:
            check_number(name, value, least=1)
    if isinstance(image, str | os.PathLike):
        image = load_image(image)
    canvas = as_seen(image)
    boxes, scores, labels, names, masks = _unpack(detections)
    short = min(canvas.size)
    if line_width is None:
        line_width = max(1, round(short / 200))
    if font_size is None:
        font_size = max(11, round(short / 36))

    keys = [label if label is not None else name for label, name in zip(labels, names)]
    colors = [label_color("" if key is None else key) for key in keys]
    order = sorted(range(len(boxes)), key=lambda k: -1.0 if scores[k] is None else -scores[k])
    for k in reversed(order if masks is not None else ()):
        _draw_mask(canvas, masks[k], colors[k], line_width)
    draw = ImageDraw.Draw(canvas)
    for k in reversed(order):
        _draw_box(draw, boxes[k], colors[k], line_width, canvas.size)

    taken: list[Rect] = []
    for k in order:
        score = f"{scores[k]:.2f}" if show_scores and scores[k] is not None else ""
        fitted = _fit_label(_printable_name(names[k], labels[k]), score, font_size, canvas.size)
        if fitted is None:
            continue
        text, font, pad, size = fitted
        rect = _place(size, boxes[k], taken, canvas.size)
        taken.append(rect)
        draw.rectangle((rect[0], rect[1], rect[2] - 1, rect[3] - 1), fill=colors[k])
        draw.text((rect[0] + pad, rect[1] + pad), text, fill=text_color(colors[k]), font=font)
    return canvas


def as_seen(image: Any) -> Image.Image:
    """What the model sees of an image, upright in RGB; of 16 bits a pixel, PIL's own conversion makes white."""
    return Image.fromarray(read_pixels(image).permute(1, 2, 0).numpy())


def _unpack(
    detections: Any,
) -> tuple[list[list[float]], list[float | None], list[int | None], list[str | None], Sequence[Any] | None]:
    """Boxes, scores, labels and names as plain lists of equal length, checked, and the masks if there are any."""
    if isinstance(detections, list | tuple):
        if len(detections) == 1 and (isinstance(detections[0], list) or "boxes" in detections[0]):
            return _unpack(detections[0])
        if any(not isinstance(found, Mapping) or "box" not in found for found in detections):
            raise ValueError(
                f"there are {len(detections)} results for one image: draw each on its own, draw_detections(images[0], "
                "results[0])."
            )
        masks = {"masks": [found["mask"] for found in detections]} if detections and "mask" in detections[0] else {}
        detections = masks | {
            "boxes": [[found["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for found in detections],
            "scores": [found["score"] for found in detections],
            "text_labels": [found["label"] for found in detections],
        }
    if not isinstance(detections, Mapping):
        raise TypeError(f"detections are a {type(detections).__name__}: give one dict of post-processing.")

    columns = {key: detections.get(key) for key in ("boxes", "scores", "labels", "text_labels", "track_ids", "masks")}
    if columns["boxes"] is None:
        raise ValueError(
            f"detections has no 'boxes' (keys: {sorted(detections)}); pass one dict of the processor's post-processing."
        )
    count = len(columns["boxes"])
    for key, column in columns.items():
        if column is not None and len(column) != count:
            raise ValueError(f"{count} boxes but {len(column)} {key}: they must pair up.")
    masks = columns.pop("masks")
    boxes, scores, labels, names, tracks = (
        [None] * count if column is None else column.tolist() if hasattr(column, "tolist") else list(column)
        for column in columns.values()
    )
    names = [f"#{n} {name or ''}".strip() if n is not None and n >= 0 else name for name, n in zip(names, tracks)]
    try:
        boxes = [[float(v) for v in box] for box in boxes]
    except (TypeError, ValueError):
        raise ValueError(f"boxes={quote(boxes)} must be [K, 4] numbers.") from None
    for k, box in enumerate(boxes):
        if len(box) != 4 or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise ValueError(f"box {k} is {box}; expected finite x1 <= x2, y1 <= y2.")
    return boxes, scores, labels, names, masks


def _draw_mask(image: Image.Image, mask: Any, color: tuple[int, int, int], line_width: int) -> None:
    """Tint the pixels of a mask [H, W], and draw a line around them."""
    inside = np.asarray(mask).astype(bool)
    if inside.shape != image.size[::-1]:
        raise ValueError(
            f"a mask of shape {inside.shape} is not one of an image of {image.size[::-1]} (height, width)."
        )
    shape = Image.fromarray(inside.astype(np.uint8) * 255)
    padded = ImageOps.expand(shape, 1)  # the border of the image bounds an object, too
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(3)))[1:-1, 1:-1]
    edge = Image.fromarray(np.where(inside & (inner == 0), 255, 0).astype(np.uint8))
    if line_width > 1:  # a filter of one pixel changes nothing, and Pillow before 13 kills the process over it
        edge = edge.filter(ImageFilter.MaxFilter(2 * (line_width // 2) + 1))
    image.paste(color, mask=shape.point(lambda value: round(value * MASK_OPACITY)))
    image.paste(color, mask=edge)


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Sequence[float], color: tuple[int, int, int], width: int, size: tuple[int, int]
) -> None:
    """Outline, clipped to the image, with a thin border of the opposite brightness: visible on any background."""
    left, top, right, bottom = _clip(box, size)
    halo = round(width / 3)
    if halo:
        outer = (left - halo, top - halo, right + halo, bottom + halo)
        draw.rectangle(outer, outline=text_color(color), width=width + 2 * halo)
    draw.rectangle((left, top, right, bottom), outline=color, width=width)


def _clip(box: Sequence[float], size: tuple[int, int]) -> Rect:
    """Integer pixels, inside the image."""
    limits = (size[0] - 1, size[1] - 1) * 2
    return tuple(min(max(round(v), 0), limit) for v, limit in zip(box, limits))


@lru_cache(maxsize=64)
def _fonts(size: int) -> tuple[Font, ...]:
    """PIL's built-in font and the installed fallbacks, at `size` pixels."""
    fonts: list[Font] = [ImageFont.load_default(size=size)]
    for name in FALLBACK_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:  # not installed
            continue
    return tuple(fonts)


@lru_cache(maxsize=4096)
def _has_glyph(font_index: int, char: str) -> bool:
    """Whether a font has a glyph for `char`, rather than its "missing character" box."""
    font = _fonts(24)[font_index]
    if char.isspace():
        return True
    mask, missing = font.getmask(char), font.getmask("\uffff")
    return mask.size != missing.size or bytes(mask) != bytes(missing)


def _best_font(text: str) -> int:
    """Index of the first font that has every character of `text`, else of the one that has most of them."""
    return max(range(len(_fonts(24))), key=lambda index: sum(_has_glyph(index, c) for c in text))


def _printable_name(name: str | None, label: int | None) -> str:
    """One line that the installed fonts can draw.

    Characters without a glyph become "?"; a name of such characters alone is replaced by "#" and its integer label.
    """
    number = "" if label is None else f"#{int(label)}"
    if name is None:
        return number
    text = " ".join(str(name).split())
    index = _best_font(text)
    shown = "".join(c if _has_glyph(index, c) else "?" for c in text)
    return shown if shown.strip("? ") else number or shown


def _fit_label(
    name: str, score: str, font_size: int, image_size: tuple[int, int]
) -> tuple[str, Font, int, tuple[int, int]] | None:
    """Text, font, margin and outer size of a label that fits into the image.

    First the font shrinks (to two thirds at most), then the name is cut; None if not even the score fits.
    """
    smallest = min(font_size, max(SMALLEST_FONT, font_size * 2 // 3))
    for size in (font_size, (font_size + smallest) // 2, smallest, SMALLEST_FONT):
        font = _fonts(size)[_best_font(name)]
        pad = max(1, size // 6)
        ascent, descent = font.getmetrics()
        height = ascent + descent + 2 * pad
        room = image_size[0] - 2 * pad
        text = f"{name} {score}".strip()
        fits = height <= image_size[1]
        if fits and (size <= smallest or font.getlength(text) <= room):
            break
    if not fits:
        return None
    if font.getlength(text) > room:
        tail = f"... {score}".strip()
        keep = len(name)
        while keep and font.getlength(name[:keep].rstrip() + tail) > room:
            keep -= 1
        text = name[:keep].rstrip() + tail if keep else score
    if not text or font.getlength(text) > room:
        return None
    return text, font, pad, (int(np.ceil(font.getlength(text))) + 2 * pad, height)


def _place(size: tuple[int, int], box: Sequence[float], taken: list[Rect], image_size: tuple[int, int]) -> Rect:
    """Where a label goes: the first position around the box, inside the image, that is free of other labels, or else
    the one that overlaps least with them."""
    width, height = size
    left, top, right, bottom = _clip(box, image_size)
    above, below = (top - height, top), (bottom + 1, bottom - height + 1)  # outside the box, inside it
    best, least = None, float("inf")
    for rows in (above, below):
        for x, y in itertools.product((left, right - width + 1), rows):
            inside_x = min(max(x, 0), image_size[0] - width)
            inside_y = min(max(y, 0), image_size[1] - height)
            rect = (inside_x, inside_y, inside_x + width, inside_y + height)
            # Prefer a free position that need not be moved into the image.
            cost = sum(_common_area(rect, other) for other in taken) + (0.5 if inside_y != y else 0)
            if cost < least:
                best, least = rect, cost
    return best


def _common_area(a: Rect, b: Rect) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
