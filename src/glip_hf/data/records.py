# Copyright 2026 The glip_hf authors. MIT licence.
"""The one record type: an image, its boxes, and their class names or caption.

Every reader in `sources/` produces the Arrow columns of `arrow_schema`; a row of them, with what the source knows, is a
`Record`. Letters: K boxes per image.
"""

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .._extras import require
from ..image_processing_pil_glip import UnreadableImage, decode_image, load_image, open_image, orientation
from ..prompts_glip import Span


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a file, a row of a TSV file, or encoded bytes.

    Attributes:
        path: the file (a URL works too); with `data` a description for messages.
        offset, length: bytes of the TSV row in the file, -1 for an image file.
        data: the encoded image, where the data set holds it.
        size: (width, height) in pixels as annotated. They tell in which frame boxes are: a photo whose EXIF
            orientation turns it, but which is annotated as it is stored, is loaded as it is stored.
    """

    path: str
    offset: int = -1
    length: int = -1
    data: bytes | None = field(default=None, repr=False)
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.path if self.offset < 0 else f"{self.path} (row at byte {self.offset})"

    def encoded(self) -> bytes:
        """The encoded image (JPEG, PNG, ...) of `data` or a TSV row.

        Raises:
            FileNotFoundError: if the TSV file is missing.
            ValueError: if its row does not end in base64.
        """
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            row = file.read(self.length)
        try:
            return base64.b64decode(row.rstrip(b"\r\n").rsplit(b"\t", 1)[-1], validate=True)
        except ValueError as error:
            raise ValueError(f"{self}: the last column is not base64 ({error}).") from None

    def open(self) -> Image.Image:
        """The image with its header read and its pixels not yet decoded.

        Raises:
            FileNotFoundError, UnreadableImage: if it is missing or is not a valid image; the message names it.
        """
        if self.data is None and self.offset < 0:
            if self.path.startswith(("http://", "https://")):
                return load_image(self.path)
            if not os.path.isfile(self.path):
                raise FileNotFoundError(f"There is no image file {self.path!r}.")
            return open_image(self.path, self)
        try:
            return open_image(io.BytesIO(self.encoded()), self)
        except (UnreadableImage, FileNotFoundError):
            raise
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"Cannot read the image {self}: {error}") from error

    def load(self) -> Image.Image:
        """The image, fully decoded; raises as `open`, and for truncated or damaged pixels."""
        image = decode_image(self.open(), self)
        if self.size == image.size != upright_size(image):
            image.getexif()[ExifTags.Base.Orientation] = 1
        return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image after EXIF rotation, without decoding pixels."""
    return image.size[::-1] if orientation(image) >= 5 else image.size  # 5..8 swap the sides


@dataclass
class Record:
    """An image of a source.

    Attributes:
        source: name of the data set.
        image_id: as in the annotations.
        image: where the pixels are.
        width, height: pixels of the image, as annotated.
        boxes: [K, 4] float32 xyxy pixels with both corners inside the box (COCO's x, y, w, h is here
            x, y, x + w - 1, y + h - 1). As annotated: not clipped.
        labels: [K] int64, keys of `names`; 1 for all boxes of a grounding set.
        areas: [K] float32 square pixels as annotated (w * h where the annotation has none).
        names: class id (1..N) -> class name of a detection set; empty for grounding sets.
        caption: of a grounding set; None for detection sets, whose captions are made of class names.
        spans: per box the `[begin, end)` characters of the caption that name it.
        eval_spans: per phrase of the caption its spans (`tokens_positive_eval`).
        extra: other fields of the format: `sentence_id`, `original_id`, `neg_category_ids`, ...
    """

    source: str
    image_id: int | str
    image: ImageRef
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict, repr=False)
    caption: str | None = None
    spans: list[list[Span]] = field(default_factory=list)
    eval_spans: list[list[Span]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def arrow_schema(integer_ids: bool = True) -> Any:
    """`pyarrow.Schema` of stored records; boxes are flat (4K floats), a box's spans are flat pairs.

    Args:
        integer_ids: image ids are stored as int64; otherwise each as JSON, for text and longer integers.
    """
    pa = require("pyarrow")
    spans = pa.list_(pa.list_(pa.int32()))
    return pa.schema(
        {
            "image_id": pa.int64() if integer_ids else pa.string(),
            "path": pa.string(),
            "offset": pa.int64(),
            "length": pa.int64(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes": pa.list_(pa.float32()),
            "labels": pa.list_(pa.int32()),
            "areas": pa.list_(pa.float32()),
            "caption": pa.string(),
            "spans": spans,
            "eval_spans": spans,
            "extra": pa.string(),
        }
    )


def record_from_row(row: Mapping[str, Any], source: str, names: Mapping[int, str], data: bytes | None = None) -> Record:
    """A stored row, as `pyarrow.Table.to_pylist` gives it, as a `Record`."""
    return Record(
        source=source,
        image_id=row["image_id"] if isinstance(row["image_id"], int) else json.loads(row["image_id"]),
        image=ImageRef(row["path"], row["offset"], row["length"], data, (row["width"], row["height"])),
        width=row["width"],
        height=row["height"],
        boxes=np.array(row["boxes"], dtype=np.float32).reshape(-1, 4),
        labels=np.array(row["labels"], dtype=np.int64),
        areas=np.array(row["areas"], dtype=np.float32),
        names=names,
        caption=row["caption"],
        spans=[pairs(flat) for flat in row["spans"]],
        eval_spans=[pairs(flat) for flat in row["eval_spans"]],
        extra=json.loads(row["extra"]) if row["extra"] else {},
    )


def pairs(flat: Sequence[int]) -> list[Span]:
    """`[b0, e0, b1, e1, ...]` as `[(b0, e0), (b1, e1), ...]`."""
    return list(zip(flat[::2], flat[1::2], strict=True))
