# Copyright 2026 The glip_hf authors. MIT licence.
"""GLIP's image processor on PIL and numpy, and what it shares with the torchvision one.

photo -> upright 8-bit RGB (`image_reading_glip`) -> resize (`image_geometry_glip`) -> BGR, 0..255
-> (x - mean) / std -> zeros at the right and bottom up to a size common to the batch.

On this backend every number equals the original's bit for bit (parity tests: `tests/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .hub_glip import AUTO_IMAGE_PROCESSOR, GlipHubMixin
from .image_geometry_glip import coco_to_target, common_padded_size, resize_target, resized_size
from .image_reading_glip import fetch_pictures, flatten_pictures, read_pixels
from .postprocess_glip import post_process_grounding

Pixels = np.ndarray | torch.Tensor  # [C, H, W]; the PIL backend works on the one, torchvision on the other


class GlipImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `True`):
        Whether to turn RGB into BGR before normalising, as GLIP's weights expect. `image_mean` and
        `image_std` are in the order after the flip.
    size_divisor (`int`, *optional*, defaults to 32):
        The padded height and width are the smallest multiples of this that hold every picture of
        the batch. Ignored when `pad_size` is given.
    """

    do_flip_channel_order: bool | None
    size_divisor: int | None


class GlipImageProcessorMixin(GlipHubMixin):
    """Turns photos into GLIP's network input.

    Calling it returns a `BatchFeature` with

    * `pixel_values` [B, 3, H, W] float32: BGR, normalised, padding exactly 0,
    * `pixel_mask` [B, H, W] int64: 1 on the picture, 0 on the padding,
    * `original_sizes` [B, 2] int64: (height, width) of each photo after EXIF rotation,
    * `labels`, only with `annotations`: a target per picture, see `preprocess`.

    Without `return_tensors` the values are lists with an entry per picture.

    Defaults (each can be given to the constructor or to a call): shortest side 800, longest at
    most 1333, PIL bilinear, upscaling where needed; mean (103.53, 116.28, 123.675) and std
    (57.375, 57.12, 58.395) for BGR pixels in 0..255, hence `do_rescale=False`; padding to a
    multiple of 32.

    What counts as a picture and how it becomes 8-bit RGB (EXIF, transparency, 16 bits, floats):
    see `image_reading_glip`.

    The network has no padding mask: the padding a picture gets from larger ones in its batch
    slightly changes its results, as in the original. Batch pictures of similar shape, or one at a
    time.
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
        """Turn photos into network input.

        Args:
            images: a picture or a list (nested lists are flattened): PIL images, numpy arrays or
                torch tensors ([H, W], [H, W, C], [C, H, W], or a batch of them in 4-D), paths,
                http(s) URLs.
            annotations: one COCO detection record per picture, in pixels of the upright photo:
                `{"image_id", "annotations": [{"bbox": [x, y, w, h], "category_id", "area",
                "iscrowd"}]}`. They come back as `labels`, a list with `boxes` [K, 4] float32 xyxy
                in pixels of the resized, unpadded network input (x2 = x + w - 1 before scaling),
                `class_labels` [K] int64, `area` [K] float32 (scaled too), `image_id` [1],
                `orig_size` [2] and `size` [2] int64 (height, width). Crowd regions and boxes
                outside the picture are dropped.
            **kwargs: any default of the class, for this call only.

        Raises:
            ValueError: for no picture at all, a picture without pixels, unreadable files, NaN,
                values out of range, or a number of annotations other than that of pictures.
            FileNotFoundError: for a path that does not exist.
            TypeError: for anything that is no picture.
        """
        return super().preprocess(images, annotations, **kwargs)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.1,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, torch.Tensor]]:
        """Detections of each picture, as the `zero-shot-object-detection` pipeline asks for them.

        Args:
            outputs: what `GlipForGrounding` returned, or any object with the same attributes.
            threshold: lowest score to keep.
            target_sizes: (height, width) per picture to scale the boxes to, a list or tensor
                [B, 2]; default `outputs.original_sizes`.
            **kwargs: further arguments of `postprocess_glip.post_process_grounding`.

        Returns:
            One dict per picture: `scores` [K] descending, `boxes` [K, 4] xyxy in pixels of
            `target_sizes`, `labels` [K] int64.
        """
        return post_process_grounding(outputs, threshold=threshold, target_sizes=target_sizes, **kwargs)

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(self, AUTO_IMAGE_PROCESSOR)]

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load paths and URLs, keeping the nesting; by PIL on both backends: same pixels."""
        return fetch_pictures(image_url_or_urls)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> Pixels:
        """One picture as uint8 [C, H, W] in the backend's own type, upright, RGB."""
        return self._from_torch(read_pixels(image, input_data_format, bool(do_convert_rgb)))

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop=True is not supported: GLIP sees the whole picture.")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format={kwargs['data_format']!r} is not supported: the model takes channels first.")
        for name in ("size", "pad_size"):
            if any(side < 1 for _, side in kwargs.get(name) or ()):
                raise ValueError(f"{name}={dict(kwargs[name])} must be at least 1 pixel.")
        if kwargs.get("size_divisor") is not None and kwargs["size_divisor"] < 1:
            raise ValueError(f"size_divisor={kwargs['size_divisor']} must be at least 1.")

    def _prepare_image_like_inputs(self, images: Any, **kwargs: Any) -> list[Pixels]:
        pictures = flatten_pictures(self.fetch_images(images))
        if not pictures:
            raise ValueError("There is no picture to process: the list is empty.")
        prepared = []
        for index, picture in enumerate(pictures):
            try:
                prepared.append(self.process_image(picture, **kwargs))
            except ValueError as error:
                if len(pictures) == 1:
                    raise
                raise ValueError(f"Picture {index} of {len(pictures)}: {error}") from error
        return prepared

    def _preprocess_image_like_inputs(self, images: Any, annotations: Any = None, **kwargs: Any) -> BatchFeature:
        return self._preprocess(self._prepare_image_like_inputs(images, **kwargs), annotations, **kwargs)

    def _preprocess(
        self,
        images: list[Pixels],
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
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        targets = _prepare_targets(annotations, original_sizes)
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        sizes = [tuple(image.shape[-2:]) for image in images]
        images = [self._to_network_values(image, **kwargs) for image in images]

        if do_pad:
            height, width = common_padded_size(sizes, size_divisor)
            pad_size = pad_size or SizeDict(height=height, width=width)
            images, masks = self.pad(images, pad_size=pad_size, return_mask=True)
        elif return_tensors is not None and len(set(sizes)) > 1:
            raise ValueError(
                f"Pictures of different sizes {sizes} cannot share a tensor with do_pad=False: "
                "pad, or leave out return_tensors."
            )
        else:
            masks = [self._from_torch(torch.ones(size, dtype=torch.int64)) for size in sizes]

        original_sizes = [self._from_torch(torch.tensor(size)) for size in original_sizes]
        data = {"pixel_values": images, "pixel_mask": masks, "original_sizes": original_sizes}
        batch = BatchFeature(data, tensor_type=return_tensors)
        if targets is not None:
            targets = map(resize_target, targets, sizes)
            batch["labels"] = [BatchFeature(target, tensor_type=return_tensors) for target in targets]
        return batch

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


def _prepare_targets(annotations: Any, sizes: list[tuple[int, int]]) -> list[dict[str, np.ndarray]] | None:
    """COCO records as targets on the original photos; one record alone stands for one picture."""
    if annotations is None:
        return None
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if len(annotations) != len(sizes):
        raise ValueError(
            f"{len(annotations)} annotations for {len(sizes)} pictures: give one per picture (with "
            "an empty list of 'annotations' where there is nothing)."
        )
    return [
        coco_to_target(annotation, height, width)
        for annotation, (height, width) in zip(annotations, sizes, strict=True)
    ]


class GlipImageProcessorPil(GlipImageProcessorMixin, PilBackend):
    """Turns photos into GLIP's network input with PIL and numpy; needs no torchvision.

    Options and results: see `GlipImageProcessorMixin`.
    """

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """uint8 [C, H, W] resized to what `resized_size` says; untouched if that is its size."""
        height, width = resized_size(*image.shape[-2:], dict(size))
        if (height, width) == image.shape[-2:]:
            return image
        return super().resize(image, SizeDict(height=height, width=width), resample, **kwargs)

    def _from_torch(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.cpu().numpy()


__all__ = ["GlipImageProcessorPil"]
