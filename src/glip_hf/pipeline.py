# Copyright 2026 The glip_hf authors. MIT licence.
"""A pipeline that prompts GLIP as it was trained: all class names in one caption, or in as few as fit.

Transformers' `pipeline("zero-shot-object-detection")` works too, but runs the whole model once per label; this one runs
the backbone once per image, the text encoder once per caption, and the head once per image and caption.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import ZeroShotObjectDetectionPipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .image_processing_pil_glip import UnreadableImage, decode_image, flatten_images, load_image
from .inference import (
    DETECTION_OPTIONS,
    GroundingEngine,
    GroundingOptions,
    PairBudget,
    Request,
    View,
    open_upright,
    prefetch,
)
from .masks import BoxSegmenter
from .noun_phrases_glip import split_names
from .postprocess_glip import Threshold, check_thresholds
from .processing_glip import GlipProcessor
from .prompts_glip import PROMPT_OPTIONS, NamesInput, PhraseInput, are_names
from .values_glip import check_number, refuse_unknown

logger = logging.get_logger(__name__)

_TEXT = ("candidate_labels", "caption", "phrases")
_STEPS = (  # the options of `preprocess`, `_forward` and `postprocess`
    (*_TEXT, "timeout", "on_broken"),
    (*DETECTION_OPTIONS, *PROMPT_OPTIONS, "tile", "overlap", "segmenter"),
    ("top_k",),
)


class _Results(Iterator):
    """Results one by one, with a length where the inputs have one (for a progress bar)."""

    def __init__(self, results: Iterable[Any], inputs: Any) -> None:
        self._results, self._inputs = iter(results), inputs

    def __next__(self) -> Any:
        return next(self._results)

    def __len__(self) -> int:
        return len(self._inputs)


class _Stream(IterableDataset):
    """A generator in the form that every version of Transformers leaves a stream: some make a list of a generator."""

    def __init__(self, images: Iterator[Any]) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Any]:
        return self.images


class GlipZeroShotObjectDetectionPipeline(ZeroShotObjectDetectionPipeline):
    """Detects class names or phrases in any number of images, with a vocabulary of any size.

    ```python
    >>> from transformers import pipeline
    >>> from glip_hf import GlipZeroShotObjectDetectionPipeline

    >>> task, pipeline_class = "zero-shot-object-detection", GlipZeroShotObjectDetectionPipeline
    >>> detector = pipeline(task, model=repo_or_dir, pipeline_class=pipeline_class)
    >>> detector("photo.jpg", candidate_labels=["cat", "remote control"], threshold=0.4)
    [{'score': 0.8, 'label': 'cat', 'box': {'xmin': 34, 'ymin': 24, 'xmax': 63, 'ymax': 71}}, ...]
    >>> detector(images, caption="two cats on a pink sofa", batch_size=4)
    ```

    Args:
        model: a [`GlipForGrounding`], or an exported model (`export.OnnxGlip`).
        processor: a [`GlipProcessor`]; or `image_processor` and `tokenizer`. By default that of an exported model.
        kwargs: `device`, `batch_size`, `num_workers`, and defaults for the options of a call.
    """

    _load_processor = None  # where there is one
    _load_image_processor = False
    _load_tokenizer = False

    max_kept_captions = 256
    """Captions whose text features are kept during a call, the least recently used vocabulary out first: at most 200 MB
    with BERT-base in float32. What a larger vocabulary has beyond that is encoded again for every batch."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("task", "zero-shot-object-detection")
        kwargs.pop("local_files_only", None)  # which `transformers.pipeline` obeys and hands on
        if isinstance(model := kwargs.get("model"), str | os.PathLike):
            load = f'pipeline("{kwargs["task"]}", model={os.fspath(model)!r:.80}, pipeline_class={type(self).__name__})'
            raise TypeError(f"model={os.fspath(model)!r:.80} is a name and no model: {load} loads it.")
        if not isinstance(model, nn.Module | None):  # exported: it runs where it was loaded
            if kwargs.get("device") not in (None, -1, "cpu", model.device):
                raise ValueError(
                    f"device={kwargs['device']!r:.50}: an exported model runs where it was loaded, here cpu."
                )
            kwargs = {"device": model.device, "processor": model.processor, **kwargs}
        super().__init__(**kwargs)
        image_processor, tokenizer, saved = self.image_processor, self.tokenizer, {}
        if self.processor is not None:
            saved = {name: getattr(self.processor, name) for name in ("prompt_options", "class_names")}
            image_processor = self.processor.image_processor if image_processor is None else image_processor
            tokenizer = self.processor.tokenizer if tokenizer is None else tokenizer
        if image_processor is None or tokenizer is None:
            raise ValueError(
                "there is no processor: give a GlipProcessor, or image_processor and tokenizer. (Where the model's "
                "directory should have one, GlipProcessor.from_pretrained says what is wrong with it.)"
            )
        self.processor = GlipProcessor(image_processor, tokenizer, **saved)
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def check_model_type(self, supported_models: Any) -> None:
        """As for all pipelines; an exported model is of no class that Transformers knows."""
        if isinstance(self.model, nn.Module):
            super().check_model_type(supported_models)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor, its prompt options among it; a TypeError for an exported model."""
        if not isinstance(self.model, nn.Module):
            raise TypeError("an exported model is not saved again: copy its files.")
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(
        self,
        image: Any,
        candidate_labels: str | NamesInput | Sequence[NamesInput] | None = None,
        *,
        caption: str | Sequence[str] | None = None,
        phrases: Sequence[PhraseInput] | Sequence[Sequence[PhraseInput] | None] | None = None,
        **options: Any,
    ) -> Any:
        """
        Args:
            image: an image as the image processor takes it (path, URL, PIL, array, tensor), a list of images, a dataset
                or an iterator of them. In place of an image a dictionary `{"image": ..., "candidate_labels": ...}`, or
                with `"caption"` and `"phrases"`.
            candidate_labels: class names, as a list or in one string between commas, semicolons or full stops; prompts
                of class names, `{"helmet": ["hard hat", "safety helmet"]}`; or a list of such, one per image. By
                default, without a caption, the processor's `class_names`, which fine-tuning saves.
            caption: a text in place of class names, or a list with one per image; read as `GlipProcessor` reads it.
            phrases: substrings of the caption, matched exactly; by default its noun phrases. With a list of captions a
                list for each.
            options: `threshold` (0.1; or `{class name: number, None: that of all others}`), `class_agnostic_nms`
                (False), `features` (False; with it each detection has its `location` and `feature`), `top_k` (all),
                `nms_threshold` (0.6), `max_detections` (100), `aggregation` ("mean"), `score_threshold` (0.05),
                `timeout` (seconds, for a URL), `on_broken` ("fail" at an image that cannot be read, or "skip" it with a
                warning: its result is None); how captions are built:
                `chunk_size`, `separator`, `prefix`, `suffix`, `negative_names`; `tile`, a side in pixels, and `overlap`
                (0.2) to show a large image in tiles, too, see `GroundingOptions`; `segmenter`, a [`BoxSegmenter`] that
                gives each detection a mask; how it runs: `batch_size` (images, or tiles), `num_workers`.

        Returns:
            For each image a list of `{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}`, best first, the box
            in whole pixels of the image; with a `segmenter` also `"mask"`, a PIL image of mode "1" and of the image's
            size. For a dataset or an iterator an iterator of such lists.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an image with neither class names nor a caption, or both; for lists that differ in length.
        """
        if not isinstance(candidate_labels, str | Mapping | Sequence | None):
            candidate_labels = list(candidate_labels)  # of an array, a set, a generator
        text = {"candidate_labels": candidate_labels, "caption": caption, "phrases": phrases}
        if isinstance(image, list | tuple):
            if not image:
                return []
            image, text = _spread(list(image), text)
        else:
            (image,), text = _spread([image], text)
        text = {name: value for name, value in text.items() if value is not None}
        if isinstance(image, Iterator) and not hasattr(image, "read"):  # nor a file, whose lines it would be
            image = _Stream(image)
        # Bypasses the call of the parent class, which takes neither captions nor arrays.
        return super(ZeroShotObjectDetectionPipeline, self).__call__(image, **text, **options)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        refuse_unknown("the pipeline", kwargs, (*chain(*_STEPS), "batch_size", "num_workers"))
        reading, detection, results = ({name: kwargs[name] for name in names if name in kwargs} for names in _STEPS)
        if reading.get("on_broken", "fail") not in ("fail", "skip"):
            raise ValueError(f"on_broken={reading['on_broken']!r:.50} must be 'fail' or 'skip'.")
        GroundingOptions(**{k: v for k, v in detection.items() if k != "segmenter"})  # checks them before anything runs
        if (segmenter := detection.get("segmenter")) is not None and not callable(segmenter):
            raise TypeError(f"segmenter={segmenter!r:.50} must be a BoxSegmenter: BoxSegmenter.from_pretrained(name).")
        names = reading.get("candidate_labels", ())
        if names and all(isinstance(name, str) for name in names):  # else each image may have names of its own
            names = split_names(names) if isinstance(names, str) else names
            check_thresholds(detection.get("threshold", 0.0), names)
        if results.get("top_k") is not None:
            results["top_k"] = check_number("top_k", results["top_k"], least=0, whole=True)
        # An engine for each call: it keeps the features of texts, and between calls anything may happen to the model.
        detection["engine"] = GroundingEngine(self.model, self.processor, max_kept_captions=self.max_kept_captions)
        return reading, detection, results

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        """Results in the order of the images. Overridden because a batch is padded together.

        The next batch is read and resized while the model works: by a thread, or by `num_workers` processes.
        """
        kind = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        tiled = forward_params.get("tile") is not None
        if tiled:
            forward_params = {**forward_params, "batch_size": batch_size}
        reader = copy.copy(self)  # a process that is not forked is sent all of it: not the model, nor the engine's
        reader.model, reader._forward_params = None, {}
        loader = DataLoader(
            kind(inputs, reader.preprocess, preprocess_params),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=partial(reader._collate, resize=not tiled, keep=forward_params.get("segmenter") is not None),
            pin_memory=self.device.type == "cuda",
        )
        results = (
            self.postprocess(detections, **postprocess_params)
            for batch in (loader if num_workers else prefetch(loader))
            for detections in self.forward(batch, **forward_params)
        )
        return _Results(results, inputs)

    def preprocess(
        self,
        inputs: Any,
        candidate_labels: str | NamesInput | None = None,
        caption: str | None = None,
        phrases: Sequence[PhraseInput] | None = None,
        timeout: float | None = None,
        on_broken: str = "fail",
    ) -> dict[str, Any]:
        """One image, loaded, and the text for it; `{"broken": True}` of an image that is skipped."""
        image = inputs
        if isinstance(inputs, Mapping):
            if "image" not in inputs:
                raise ValueError(f"an input has the entries {sorted(inputs)}: 'image' is missing.")
            if options := [name for name in inputs if name in (*_STEPS[1], *_STEPS[2]) and name != "features"]:
                raise ValueError(f"an input has {options[0]!r}, an option for all images: give it to the call.")
            image = inputs["image"]
            if any(inputs.get(name) is not None for name in _TEXT):
                candidate_labels, caption, phrases = (inputs.get(name) for name in _TEXT)
        if isinstance(candidate_labels, str):
            candidate_labels = split_names(candidate_labels)
        if candidate_labels is None and caption is None:
            candidate_labels = self.processor.class_names
        if (candidate_labels is None) == (caption is None):
            raise ValueError("give each image either candidate_labels or a caption.")
        if caption is None and phrases is not None:
            raise ValueError("phrases belong to a caption: give it, or leave them out.")
        text = caption if candidate_labels is None else candidate_labels
        text = text if isinstance(text, str | Mapping) else list(text)
        try:
            if isinstance(image, str | os.PathLike):
                loaded = load_image(image, timeout)
            elif isinstance(image, Image.Image):
                loaded = decode_image(image)
            else:
                images = flatten_images(self.image_processor.fetch_images(image))
                if len(images) != 1:
                    raise ValueError(f"an input holds {len(images)} images: give all images in one flat list.")
                (loaded,) = images
        except (UnreadableImage, FileNotFoundError) as error:
            if on_broken == "fail":
                raise
            logger.warning(f"{str(error).removesuffix('.')}. It is skipped.")
            return {"broken": True}
        return {
            "image": loaded,
            "name": os.fspath(image) if isinstance(image, str | os.PathLike) else None,
            "text": text,
            "phrases": phrases if isinstance(phrases, str | None) else list(phrases),
        }

    def _collate(self, items: list[dict[str, Any]], resize: bool = True, keep: bool = False) -> dict[str, Any]:
        """A batch: `pixels` where images are resized here and not by the engine, and else, or with `keep`, `images`."""
        texts = [None if "broken" in item else (item["text"], item["phrases"]) for item in items]
        items = [item for item in items if "broken" not in item]
        batch: dict[str, Any] = {"texts": texts}
        if keep or not resize:
            batch["images"] = [open_upright(item["image"]) for item in items]
        if not resize or not items:
            return batch
        try:
            pixels = self.image_processor([item["image"] for item in items], return_tensors="pt")
        except ValueError as error:
            names = [name if len(name) <= 200 else name[:197] + "..." for item in items if (name := item["name"])]
            raise ValueError(f"{', '.join(names)}: {error}" if names else str(error)) from error
        return {"pixels": dict(pixels), **batch}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        engine: GroundingEngine,
        threshold: Threshold = 0.1,
        max_detections: int = 100,
        segmenter: BoxSegmenter | None = None,
        **options: Any,
    ) -> list[dict[str, Any] | None]:
        """Detections of every image of a batch, see `inference.Detections`; None for those that are skipped.

        Boxes are computed here and not in `postprocess`, caption by caption: the logits of a long vocabulary would not
        fit in memory, and this way they never leave the device.
        """
        texts = [text for text in model_inputs["texts"] if text is not None]
        if not texts:
            return [None] * len(model_inputs["texts"])
        limits = {"max_detections": max_detections, "merged_limit": max_detections}
        if options.get("tile") is not None:
            limits["merged_limit"] = None
        threshold = {None: 0.1, **threshold} if isinstance(threshold, Mapping) else threshold
        engine.options = GroundingOptions(threshold=threshold, **limits, **options)
        # The batch with one caption at a time.
        engine.budget = PairBudget(self.device, options.get("batch_size", len(texts)))
        if "pixels" not in model_inputs:
            asked = [Request(image, *text) for image, text in zip(model_inputs["images"], texts)]
            grounded = sorted(engine.ground(asked), key=lambda one: one.index)
            merged = [one.detections[0] for one in grounded]
        else:
            captions = [engine.encode(text, phrases) for text, phrases in texts]
            found = engine.detect(model_inputs["pixels"], captions)
            merged = [engine.merge(its, {View(): parts})[0] for its, parts in zip(captions, found)]
        if segmenter is not None:
            for image, own in zip(model_inputs["images"], merged):
                own["masks"] = segmenter(image, own["boxes"])
        rest = iter(merged)
        return [None if text is None else next(rest) for text in model_inputs["texts"]]

    def postprocess(
        self, model_outputs: dict[str, Any] | None, top_k: int | None = None
    ) -> list[dict[str, Any]] | None:
        """Detections of one image in the form of Transformers' pipeline."""
        if model_outputs is None:
            return None
        rows = zip(*(model_outputs[name] for name in ("scores", "text_labels", "boxes")))
        results = [
            {"score": score.item(), "label": name, "box": self._get_bounding_box(box)} for score, name, box in rows
        ]
        if "features" in model_outputs:
            for name in ("locations", "features"):  # no locations in tiles
                for result, value in zip(results, model_outputs.get(name, torch.zeros(0)).tolist()):
                    result[name[:-1]] = value
        for result, mask in zip(results, model_outputs.get("masks", ())):
            result["mask"] = Image.fromarray(mask.numpy())
        return results[:top_k]


def _spread(images: list[Any], text: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Images with the text that is given for each, as dictionaries; the text that is for all."""
    lists = list | tuple
    labels = text["candidate_labels"]
    each = ["caption", "phrases"] if isinstance(text["caption"], lists) else []
    if isinstance(labels, lists) and any(map(are_names, labels)):
        each.append("candidate_labels")
    each = [name for name in each if text[name] is not None]
    if not each:
        return images, text
    for name in each:
        if isinstance(images[0], Dataset | Iterator):
            raise ValueError(f"{name} for each image of a data set or iterator: have it give {{'image', {name!r}}}.")
        if len(text[name]) != len(images):
            raise ValueError(f"{name} has {len(text[name])} entries for {len(images)} images: give one each.")
    if any(isinstance(image, Mapping) for image in images):
        raise ValueError(f"the images are dictionaries: put {' and '.join(each)} into them.")
    own = [dict(zip(each, values)) for values in zip(*(text[name] for name in each))]
    return [{"image": image, **text, **its} for image, its in zip(images, own)], {}


__all__ = ["GlipZeroShotObjectDetectionPipeline"]
