# Copyright 2026 The glip_hf authors. MIT licence.
"""What happens to images that cannot be read: one policy for training, streams, validation and evaluation."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging

from ..image_processing_pil_glip import UnreadableImage, read_pixels
from ..values_glip import counted, in_one_line
from .records import ImageRef, upright_size

logger = logging.get_logger(__name__)

OnError = Literal["raise", "replace"]


class TooManyBrokenImages(RuntimeError):
    """More images than allowed could not be read."""


class BrokenImages:
    """Fails at the first image that cannot be read, or logs and counts each one up to a limit.

    Args:
        on_error: "raise" fails at once, "replace" leaves the image out with a warning.
        limit: how many images may be left out, over all loader workers of this process.
    """

    def __init__(self, on_error: OnError = "replace", limit: int = 100) -> None:
        if on_error not in ("raise", "replace"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'replace'.")
        self.on_error, self.limit = on_error, limit
        # One slot per worker, in memory that they share with this process.
        self._counts = torch.zeros(1024, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """Images left out so far."""
        return int(self._counts.sum())

    def report(self, what: str, error: Exception | None = None) -> None:
        """Apply the policy to one image; `what` names it and the reason.

        Raises:
            FileNotFoundError, ValueError: with "raise".
            TooManyBrokenImages: beyond the limit.
        """
        if self.on_error == "raise":
            # Some errors cannot be constructed from a message alone.
            raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(what) from error
        worker = get_worker_info()
        self._counts[0 if worker is None else worker.id % 1023 + 1] += 1
        logger.warning(f"Replaced by another sample: {what}")
        if self.count > self.limit:
            raise TooManyBrokenImages(
                f"{self.count} images could not be read, more than max_replaced={self.limit}. The last: {what}. "
                "Replace them (`glip check-data` lists those of annotation files) or raise data.max_broken."
            ) from error


Sizes = tuple[tuple[int, int], tuple[int, int]]
"""(width, height) of an image in pixels: upright, and as it is stored."""


def examine_images(
    images: Iterable[ImageRef],
    decode: bool = True,
    num_threads: int | None = None,
    resolve: Callable[[ImageRef], ImageRef] | None = None,
) -> dict[ImageRef, Sizes | Exception]:
    """Read each image once, in threads: its sizes, or the error that it raises.

    Args:
        decode: decode all pixels; otherwise only the header is read.
        num_threads: default the number of cores.
        resolve: from an image to the one to open in its place, where the pixels are held elsewhere.
    """

    def examine(image: ImageRef) -> Sizes | Exception:
        try:
            image = resolve(image) if resolve else image
            with image.load() if decode else image.open() as opened:
                if decode and opened.mode in ("I", "F"):  # 32 bits hold what is no pixel
                    try:
                        read_pixels(opened)
                    except ValueError as error:
                        raise UnreadableImage(f"Cannot read the image {image}: {error}") from error
                return upright_size(opened), opened.size
        except Exception as error:  # decoders raise almost anything on damaged files
            return error

    distinct = list(dict.fromkeys(images))
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        return dict(zip(distinct, pool.map(examine, distinct), strict=True))


def find_broken(images: Iterable[ImageRef], on_broken: str, decode: bool = False) -> dict[str, str]:
    """Read images before a run: path -> reason of those that cannot be read.

    Warnings tell of images whose boxes are in another frame than expected (see `ImageRef`), or in none.

    Args:
        on_broken: "skip" leaves out images that cannot be read, "fail" refuses them.
        decode: see `examine_images`.

    Raises:
        ValueError: naming the images that cannot be read, with "fail" or if no other is left.
    """
    found = examine_images(images, decode)
    sizes = {image: result for image, result in found.items() if not isinstance(result, Exception)}
    turned = [str(image) for image, (upright, stored) in sizes.items() if image.size == stored != upright]
    other = [
        f"{image} has {upright[0]} x {upright[1]} pixels, annotated are {image.size[0]} x {image.size[1]}"
        for image, (upright, stored) in sizes.items()
        if image.size not in (None, upright, stored)
    ]
    if turned:
        logger.warning(
            f"{counted(len(turned), 'photo')} annotated as stored, not upright as the EXIF orientation shows it, and "
            f"so used as stored: {in_one_line(turned)}"
        )
    if other:
        logger.warning(
            f"{counted(len(other), 'image')} of another size than annotated, so the boxes do not fit: "
            f"{in_one_line(other)}"
        )
    broken = {image.path: str(result) for image, result in found.items() if isinstance(result, Exception)}
    what = f"{len(broken)} of {counted(len(found), 'image')} cannot be read: {in_one_line(list(broken.values()))}"
    if broken and on_broken == "fail":
        raise ValueError(
            f"{what}. Repair them, or leave them out with --on-broken skip (set data.on_broken=skip in a recipe); "
            "nothing was computed."
        )
    if broken and not sizes:
        raise ValueError(f"{what}. No other is left: is the folder right?")
    if broken:
        logger.warning(f"{what}. They are left out.")
    return broken
