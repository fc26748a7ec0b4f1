# Copyright 2026 The glip_hf authors. MIT licence.
"""GlipProcessor: images and text in, tensors for the model; its outputs in, labelled boxes out.

Letters: B images, N captions, C class names or phrases of a caption, T text tokens, K boxes of an image.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack

from ._compat import tokenize
from .hub_glip import AUTO_IMAGE_PROCESSOR, AUTO_PROCESSOR, GlipHubMixin
from .image_processing_pil_glip import GlipImageProcessorKwargs, plain_id
from .postprocess_glip import GlipPostProcessKwargs, Threshold, names_of_images, post_process_grounding
from .prompts_glip import (
    MAX_TEXT_LENGTH,
    PROMPT_OPTIONS,
    NamesInput,
    Offsets,
    PhraseInput,
    Query,
    Span,
    SpanInput,
    are_names,
    check_span,
    listed,
    one_each,
    positive_map,
    read_text,
)
from .values_glip import check_number, quote, refuse_unknown

# Of the tokenizer's options, those that would make another text of a caption, or other labels
_OTHER_TEXTS = {"text_pair", "text_target", "text_pair_target", "is_split_into_words"}


class _PartKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "max_length": MAX_TEXT_LENGTH}}
    images_kwargs: GlipImageProcessorKwargs


class GlipPromptKwargs(TypedDict, total=False):
    r"""
    separator (`str`, *optional*, defaults to `". "`):
        Text between two class names of a caption.
    prefix (`str` or `list[str]`, *optional*):
        Text before every class name (a string), or before each (one string per name). It belongs to no label.
    suffix (`str` or `list[str]`, *optional*):
        The same, after the class names.
    negative_names (`list[str]`, *optional*):
        Negative class names, appended to every caption: they belong to no label and absorb false positives.
    chunk_size (`int`, *optional*):
        Most class names per caption; the limit of 256 tokens holds besides.
    """

    separator: str | None
    prefix: str | list[str] | tuple[str, ...] | None
    suffix: str | list[str] | tuple[str, ...] | None
    negative_names: list[str] | tuple[str, ...] | None
    chunk_size: int | None


class GlipProcessorKwargs(_PartKwargs, GlipPromptKwargs, total=False):
    __doc__ = GlipPromptKwargs.__doc__


class GlipProcessorCallKwargs(GlipProcessorKwargs, TextKwargs, GlipImageProcessorKwargs, total=False):
    """What a call takes, for type checkers: also, flat, the options of tokenizer and image processor."""


class GlipBatchFeature(BatchFeature):
    """A `BatchFeature` that knows the text of its labels.

    `text_labels`, for each image the list of its class names or phrases (or None), is an attribute, not an entry:
    `model(**inputs)` does not see it. It survives `.to`, `.copy` and pickling.
    """

    text_labels: list[list[str]] | None = None

    def to(self, *args: Any, **kwargs: Any) -> "GlipBatchFeature":
        """Like `BatchFeature.to`, in place; the tensors inside `labels` move as well."""
        super().to(*args, **kwargs)
        if self.data.get("labels") is not None:
            self.data["labels"] = [BatchFeature(dict(target)).to(*args, **kwargs) for target in self.data["labels"]]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "text_labels": self.text_labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.skip_tensor_conversion = None
        self.text_labels = state.get("text_labels")


class GlipHubProcessorMixin(GlipHubMixin, ProcessorMixin):
    """A processor that saves and pushes as `GlipHubMixin` says.

    One parent, because Transformers looks for `ProcessorMixin`'s methods on a processor's first.
    """


class GlipProcessor(GlipHubProcessorMixin):
    r"""
    Joins a GLIP image processor and a BERT tokenizer.

    Args:
        image_processor ([`GlipImageProcessor`] or [`GlipImageProcessorPil`]):
            Turns images into `pixel_values`.
        tokenizer ([`BertTokenizer`]):
            A fast tokenizer; the released models use the vocabulary of bert-base-uncased.
        prompt_options (`dict`, *optional*):
            Defaults of `separator`, `prefix`, `suffix`, `negative_names` and `chunk_size` (see
            [`GlipProcessorKwargs`]); saved with the processor. A call may override each of them.
        class_names (`list[str]`, *optional*):
            The class names that the model was fine-tuned for, in their order; saved with the processor. Pipeline and
            command line look for them where nothing else is asked for.
    """

    valid_processor_kwargs = GlipProcessorKwargs

    def __init__(
        self, image_processor: Any, tokenizer: Any, prompt_options: dict | None = None, class_names: list | None = None
    ):
        super().__init__(image_processor, tokenizer)
        self.prompt_options = PROMPT_OPTIONS | (prompt_options or {})
        unknown = sorted(set(self.prompt_options) - set(PROMPT_OPTIONS))
        if unknown:
            raise ValueError(f"prompt_options has unknown entries {unknown}: known are {', '.join(PROMPT_OPTIONS)}.")
        self.class_names = class_names
        if class_names is not None and not (are_names(class_names) and all(isinstance(n, str) for n in class_names)):
            raise ValueError(f"class_names={quote(class_names)} must be a list of class names.")

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(self, AUTO_PROCESSOR), (self.image_processor, AUTO_IMAGE_PROCESSOR)]

    @property
    def model_input_names(self) -> list[str]:
        """The tensors every call returns; `image_indices` and `labels` are returned by some only."""
        return [*super().model_input_names, "positive_map", "label_ids"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | NamesInput | Sequence[NamesInput | str] | None = None,
        phrases: Sequence[PhraseInput] | Sequence[Sequence[PhraseInput] | None] | None = None,
        spans: Sequence[SpanInput] | Sequence[Sequence[SpanInput] | None] | None = None,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        category_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[GlipProcessorCallKwargs],
    ) -> GlipBatchFeature:
        r"""
        Args:
            images: images, in any form the image processor takes. May be left out for text tensors alone.
            text: what to ground. May be left out for image tensors alone.

                - `["cat", "remote control"]`: class names, for the one image or for every image. They are cleaned
                  ("trash_can" is "trash can", "bow_(weapon)" is "bow"). A dictionary `{"prefix", "name", "suffix"}` in
                  place of a name is used as it is. Names that do not fit one caption are split over several; the label
                  of a name is always its index in the list.
                - `{"helmet": ["hard hat", "safety helmet"], "person": "person"}`: prompts of class names. What a prompt
                  finds has the label of its name; an object that several find counts once.
                - `"cat. remote control."`: short pieces between full stops, semicolons or commas, the same as the list.
                - `[["cat"], ["dog", "person"]]`: class names, or prompts, of each image. A string in place of a list
                  is a text for that image: a caption, or short pieces.
                - `"two cats on a pink sofa"`: a caption. Its labels are the phrases given by `phrases` or `spans`, else
                  the noun phrases found in it, else (there are none) the whole text, with a warning.
                - `["two cats", "a dog"]` together with `phrases` or `spans`: a caption for each image.
            phrases: exact substrings of the caption; `(phrase, i)` for the i-th occurrence, from 0, where there are
                several. With several captions a list for each, or None for the noun phrases of one.
            spans: in place of phrases, `[begin, end)` in characters of the caption, or a list of those for a phrase in
                several parts. With several captions a list for each.
            annotations: training targets, a COCO record for each image: `{"image_id", "annotations": [{"bbox": [x, y,
                w, h], "category_id", ...}]}`. A box with `tokens_positive`, a list of character spans of the caption,
                belongs to these characters; any other to the class name or phrase of its `category_id`.
            category_ids: the category id of each class name, in their order (a list for each image where the names
                differ). By default a category id *is* the index of its name, from 0.
            **kwargs: `return_tensors`, prompt options (see [`GlipProcessorKwargs`]), and options of the image processor
                and the tokenizer.

        Returns:
            [`GlipBatchFeature`] with, for images,

            - `pixel_values` of shape `(batch_size, 3, height, width)`, `pixel_mask` of shape `(batch_size, height,
              width)`, `original_sizes` of shape `(batch_size, 2)`;

            for text,

            - `input_ids`, `attention_mask`, `token_type_ids` of shape `(num_captions, num_tokens)`, padded to the
              longest caption;
            - `positive_map` of shape `(num_captions, num_labels, num_tokens)`, bool, the tokens of each class name or
              phrase; `label_ids` of shape `(num_captions, num_labels)`, int64, -1 at padding;
            - `image_indices` of shape `(num_captions,)`, int64, where captions and images do not pair one to one;
            - the attribute `text_labels`, the class names or phrases of each image, which is not passed to the model;

            and with annotations

            - `labels`, see the image processor, and for each target `positive_map` of shape `(num_boxes, num_tokens)`,
              float32, 1 at the tokens of each box; `class_labels` are indices of class names or phrases, or the
              `category_id` of a box with `tokens_positive`.

        Raises:
            TypeError, ValueError: naming the argument that is invalid or unknown. A `UserWarning` names class names
                and phrases that score 0 (without tokens, or beyond the 256 tokens of a caption), that the vocabulary
                cannot spell, that are asked in the same words, and those that read like lists.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give images, text or both.")
        if text is None and (phrases is not None or spans is not None):
            raise ValueError("phrases and spans belong to a caption: give it as text.")
        if images is None and annotations is not None:
            raise ValueError("annotations are boxes in images: give images as well.")
        parts = {"images_kwargs": self.image_processor.valid_kwargs, "text_kwargs": TextKwargs}
        known = {name for part in (GlipProcessorKwargs, *parts.values()) for name in part.__annotations__}
        known |= {"common_kwargs", "images", "text", "phrases", "annotations"}
        refuse_unknown("GlipProcessor", kwargs, known - _OTHER_TEXTS)
        for name, part in parts.items():
            refuse_unknown(name, kwargs.get(name) or {}, set(part.__annotations__) - _OTHER_TEXTS)
        options = self.prompt_options | {name: kwargs.pop(name) for name in PROMPT_OPTIONS if name in kwargs}
        _check_prompt_options(options)  # also those that were saved
        merged = self._merge_kwargs(_PartKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_kwargs = dict(merged["text_kwargs"])
        return_tensors = text_kwargs.pop("return_tensors", None)

        boxes = None  # the annotations of each image, as given
        data: dict[str, Any] = {}
        if images is not None:
            if annotations is not None:
                annotations = [annotations] if isinstance(annotations, Mapping) else annotations
                if text is not None and isinstance(annotations, list | tuple):
                    boxes, annotations = _index_boxes(annotations)
            data = dict(self.image_processor(images, annotations=annotations, **merged["images_kwargs"]))

        if text is not None:
            num_images = len(data["pixel_values"]) if images is not None else None
            max_length = text_kwargs.get("max_length")
            if max_length is not None:
                check_number("max_length", max_length, least=3, whole=True)  # [CLS], [SEP] and what is between
            keep_captions = annotations is not None  # their spans count the characters of the text as given
            queries = read_text(text, phrases, spans, num_images, self.tokenizer, options, max_length, keep_captions)
            text_data, offsets = self._encode(queries, text_kwargs)
            if boxes is not None:
                maps = _box_maps(boxes, data["labels"], queries, text_data["positive_map"], offsets, category_ids)
                tensor = torch.from_numpy if return_tensors in ("pt", "PYTORCH") else np.asarray
                for target, (box_map, class_labels) in zip(data["labels"], maps, strict=True):
                    target["positive_map"], target["class_labels"] = tensor(box_map), tensor(class_labels)
            data |= text_data
        batch = GlipBatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["labels"])
        batch.text_labels = None if text is None else [query.names for query in queries]
        return batch

    def _encode(self, queries: list[Query], text_kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[Offsets]]:
        """Token ids and positive maps of all captions, and the offset mapping of each, truncated and padded."""
        prompts = [prompt for query in queries for prompt in query.prompts]
        max_length = text_kwargs.get("max_length") or MAX_TEXT_LENGTH
        options = text_kwargs | {"truncation": True, "max_length": max_length}
        encoded = tokenize(self.tokenizer, [prompt.caption for prompt in prompts], **options)
        data, widths, rows = dict(encoded), [len(ids) for ids in encoded["input_ids"]], []
        for prompt, encoding, width in zip(prompts, encoded.encodings, widths, strict=True):
            # Looked up in the whole caption, so that a phrase across the cut keeps its first part.
            parts = [encoding, *encoding.overflowing]
            offsets, ids, special = (
                [value for part in parts for value in getattr(part, name)]
                for name in ("offsets", "ids", "special_tokens_mask")
            )
            tokens = positive_map(offsets, prompt.spans, exact=prompt.exact, normalize=False) & ~np.array(special, bool)
            unknown = tokens[:, np.array(ids) == self.tokenizer.unk_token_id].any(-1)
            rows.append((tokens[:, :width], tokens, unknown))
        _warn_of_lost_rows(queries, rows, max_length)

        num_labels = max(len(prompt.label_ids) for prompt in prompts)
        label_ids = np.full((len(prompts), num_labels), -1, dtype=np.int64)
        maps = [np.zeros((num_labels, width), dtype=bool) for width in widths]
        for n, (prompt, (kept, *_)) in enumerate(zip(prompts, rows, strict=True)):
            label_ids[n, : len(prompt.label_ids)] = prompt.label_ids
            maps[n][: len(kept)] = kept
        data["positive_map"] = np.stack(maps) if len(set(widths)) == 1 else maps
        data["label_ids"] = label_ids
        if len(prompts) != len(queries):
            counts = [len(query.prompts) for query in queries]
            data["image_indices"] = np.repeat(np.arange(len(queries), dtype=np.int64), counts)
        return data, [encoding.offsets for encoding in encoded.encodings]

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        inputs: Mapping[str, Any] | torch.Tensor | None = None,
        threshold: Threshold = 0.25,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Unpack[GlipPostProcessKwargs],
    ) -> list[dict[str, Any]]:
        """Labelled boxes of every image.

        Args:
            outputs: what `GlipForGrounding` returned.
            inputs: what this processor returned, for its `text_labels`; or `input_ids` of shape `(num_captions,
                num_tokens)`.
            threshold: score threshold: detections above it are kept. Or thresholds of class names, `{"cat": 0.4, None:
                0.3}`, where None stands for all others (default: 0.25).
            target_sizes: (height, width) of each original image; default: those that came with the outputs. They also
                tell the number of images where the last ones have no caption, as do the `original_sizes` of `inputs`.
            text_labels: the class names, one list for all images or a list for each. By default those of `inputs`, and
                failing these the text decoded from `input_ids` under `positive_map` (lower case, spaces around signs).
            kwargs: `aggregation`, `nms_threshold`, `class_agnostic_nms`, `max_detections`, `score_threshold`,
                `pre_nms_top_k` and `features`, see [`~postprocess_glip.GlipPostProcessKwargs`].

        Returns:
            One dictionary per image, best first: `scores` [K] float32, `boxes` [K, 4] float32 xyxy in pixels of the
            original image, `labels` [K] int64, the index in the user's list of class names or phrases, `text_labels`
            list of K str, `locations` [K] int64, and with `features=True` `features` [K, d_model] float32: see
            [`~postprocess_glip.post_process_grounding`].

        Raises:
            TypeError: for an unknown keyword argument.
            ValueError: for another number of lists of class names than images, fewer class names than labels, or
                thresholds of names that were not asked for.
        """
        if not isinstance(inputs, Mapping | torch.Tensor | None):
            raise TypeError(f"inputs={quote(inputs)} must be what the processor returned; names are text_labels=[...].")
        if text_labels is None:
            text_labels = getattr(inputs, "text_labels", None)
        has_sizes = all(getattr(outputs, name, None) is not None for name in ("original_sizes", "image_indices"))
        if target_sizes is None and has_sizes and isinstance(inputs, Mapping):
            target_sizes = inputs.get("original_sizes")  # the same, but also of images without a caption
        threshold = {None: 0.25, **threshold} if isinstance(threshold, Mapping) else threshold
        results = post_process_grounding(outputs, threshold, target_sizes, text_labels, **kwargs)
        text_labels = None if text_labels is None else names_of_images(text_labels, len(results))
        ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
        for image, result in enumerate(results):
            labels = result["labels"].tolist()
            if text_labels is None:
                names = self._decode_labels(outputs, outputs.input_ids if ids is None else ids, image, labels)
            else:
                names = dict(enumerate(text_labels[image]))
                if labels and max(labels) >= len(names):
                    raise ValueError(
                        f"image {image} has a detection of label {max(labels)}, but text_labels has {len(names)} names "
                        "for it: give the names that the processor was given."
                    )
            result["text_labels"] = [names[label] for label in labels]
        return results

    def _decode_labels(self, outputs: Any, input_ids: torch.Tensor, image: int, labels: list[int]) -> dict[int, str]:
        """The text of each of these labels in the captions of an image, of several prompts "hard hat|safety helmet"."""
        names: dict[int, list[str]] = {}
        indices = getattr(outputs, "image_indices", None)
        captions = [image] if indices is None else (indices == image).nonzero().flatten().tolist()
        for n in captions:
            for row, label in enumerate(outputs.label_ids[n].tolist()):
                if label in labels:
                    tokens = input_ids[n][outputs.positive_map[n][row].bool()]
                    names.setdefault(label, []).append(self.tokenizer.decode(tokens))
        return {label: "|".join(dict.fromkeys(texts)) for label, texts in names.items()}


# -- helpers ---------------------------------------------------------------------------------------


def _check_prompt_options(options: dict[str, Any]) -> None:
    """Raise a TypeError for the first option of another type, a ValueError for a negative class name without text."""
    for name, value in options.items():
        if value is None:  # as all may be, and most are
            continue
        try:
            validate_typed_dict(GlipPromptKwargs, {name: value})
        except StrictDataclassFieldValidationError:
            raise TypeError(f"{name}={quote(value)} must be {GlipPromptKwargs.__annotations__[name]}.") from None
    if not all(name.strip() for name in options["negative_names"] or ()):  # it would be one more separator
        raise ValueError(f"negative_names={quote(options['negative_names'])} has an empty name: leave it out.")


def _warn_of_lost_rows(
    queries: list[Query], rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], max_length: int
) -> None:
    """Warn of class names and phrases that can only score 0, or whose words are not in the vocabulary; `rows` are, for
    each caption, its positive map as cut and as a whole, and which rows hold an unknown token."""
    empty, beyond, partly, unknown, rows = [], [], [], [], iter(rows)
    for image, query in enumerate(queries):
        found = False
        for prompt in query.prompts:
            for label, spans, kept, tokens, has_unknown in zip(
                prompt.label_ids, prompt.spans, *next(rows), strict=True
            ):
                found, name = found or tokens.any(), query.names[label]
                if query.has_prompts:
                    name = f"{name}: {prompt.caption[slice(*spans[0])]}"
                if has_unknown:
                    unknown.append(name)
                if not tokens.any():
                    empty.append(name)
                elif kept.sum() < tokens.sum():
                    (partly if kept.any() else beyond).append(name)
        if not found and all(prompt.exact for prompt in query.prompts):
            raise ValueError(
                f"None of the names {listed(query.names)} for image {image} has a token: give at least one with a "
                "letter, digit or sign."
            )
    cut = f"the caption has more than {max_length} tokens and was cut: "
    for names, reason in (
        (empty, "no token stands for {}: the score of these names is 0."),
        (unknown, "the tokenizer's vocabulary cannot spell {}: their scores mean little. Use other words."),
        (beyond, cut + "{} lie beyond the end and their score is 0. Give shorter captions."),
        (partly, cut + "only the first part of {} is left. Give shorter captions."),
    ):
        if names:
            warnings.warn(reason.format(listed(list(dict.fromkeys(names)))), UserWarning, stacklevel=4)


def _index_boxes(records: list[Mapping[str, Any]]) -> tuple[list[list[Mapping[str, Any]]], list[dict[str, Any]]]:
    """The boxes of each record, and the records with indices into these lists for category ids: they tell which boxes
    the image processor dropped (crowds, outside the image)."""
    boxes, indexed = [], []
    for image, record in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("annotations"), list | tuple):
            raise ValueError(
                f"annotations of image {image} are {quote(record)}: give a dictionary with 'image_id' and "
                "'annotations' (COCO detection format)."
            )
        own = record["annotations"]
        renumbered = [{**box, "category_id": i} if isinstance(box, Mapping) else box for i, box in enumerate(own)]
        boxes.append(own)
        image_id = image if record.get("image_id") is None else record["image_id"]
        indexed.append({**record, "image_id": image_id, "annotations": renumbered})
    return boxes, indexed


def _box_maps(
    boxes: list[list[Mapping[str, Any]]],
    labels: list[Any],
    queries: list[Query],
    caption_maps: Any,
    offsets: list[Offsets],
    category_ids: Any,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each image the tokens [K, T] float32 and the class labels [K] int64 of the boxes that were kept.

    Args:
        boxes: see `_index_boxes`; labels: targets whose `class_labels` are, so far, indices into these lists.
        caption_maps: positive map of each caption, [C, T] bool; offsets: of each caption, truncated: a box of a phrase
            across the cut is dropped, as in the training of the original.
    """
    maps = []
    for image, (target, query) in enumerate(zip(labels, queries, strict=True)):
        if len(query.prompts) != 1:
            raise ValueError(
                f"the {len(query.names)} names of image {image} fill {len(query.prompts)} captions, but annotations "
                "need all of them in one: give fewer names."
            )
        ids = category_ids
        if ids is not None and not hasattr(ids, "__len__"):
            raise TypeError(f"category_ids={quote(ids)} must be a list: the id of each name.")
        if ids is not None and len(ids) and isinstance(ids[0], list | tuple):
            ids = one_each("category_ids", ids, len(queries))[image]
        if ids is not None and len(ids) != len(query.names):
            raise ValueError(
                f"category_ids has {len(ids)} entries for the {len(query.names)} names of image {image}: give one per "
                "name, in their order."
            )
        categories = range(len(query.names)) if ids is None else map(plain_id, ids)
        index_of = {category: index for index, category in reversed(list(enumerate(categories)))}  # the first of equals
        kept = [boxes[image][int(index)] for index in target["class_labels"]]
        tokens = np.zeros((len(kept), caption_maps[image].shape[1]), dtype=np.float32)
        classes = np.zeros(len(kept), dtype=np.int64)
        for row, box in enumerate(kept):
            category = plain_id(box.get("category_id"))
            if box.get("tokens_positive") is not None:
                spans = _spans(query.prompts[0].caption, box["tokens_positive"])
                tokens[row] = positive_map(offsets[image], [spans], normalize=False)
                classes[row] = category if isinstance(category, int) else 0
                continue
            if category is None:
                raise ValueError(f"image {image}: a box has neither 'category_id' nor 'tokens_positive': {quote(box)}.")
            if type(category) not in (int, str) or category not in index_of:
                reason = "is not in category_ids."
                if ids is None:
                    reason = (
                        f"is not an index of its {len(query.names)} names (from 0): pass category_ids, one per name."
                    )
                raise ValueError(f"image {image}: category_id {quote(category)} {reason}")
            classes[row] = index_of[category]
            rows = np.flatnonzero(np.array(query.prompts[0].label_ids) == classes[row])
            tokens[row] = caption_maps[image][rows].any(0)
        maps.append((tokens, classes))
    return maps


def _spans(caption: str, value: Any) -> list[Span]:
    """`tokens_positive` of a box as spans of the caption; `[begin, end]` alone is one of them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"tokens_positive={quote(value)} must be a list of spans [begin, end) of the caption.")
    is_flat = len(value) == 2 and not any(isinstance(end, list | tuple) for end in value)
    return [check_span(caption, span) for span in ([value] if is_flat else value)]


__all__ = ["GlipBatchFeature", "GlipProcessor", "GlipProcessorKwargs"]
