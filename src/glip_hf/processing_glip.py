# Copyright 2026 The glip_hf authors. MIT licence.
"""GlipProcessor: photos and words in, tensors for the model; the outputs in, named boxes out.

Letters: B pictures, N captions, C names or phrases a caption, T text tokens, K boxes a picture.
"""

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .hub_glip import AUTO_IMAGE_PROCESSOR, AUTO_PROCESSOR, GlipHubMixin
from .postprocess_glip import post_process_grounding
from .prompts_glip import MAX_TEXT_LENGTH, Offsets, positive_map, shorten
from .text_inputs_glip import (
    PROMPT_OPTIONS,
    NameInput,
    PhraseInput,
    Query,
    SpanInput,
    one_each,
    read_text,
)


class GlipProcessorKwargs(ProcessingKwargs, total=False):
    """
    separator (`str`, *optional*, defaults to `". "`):
        What stands between two class names of a caption.
    prefix (`str` or `list[str]`, *optional*):
        Words before every name (a string), or before each (one string a name). They own no label.
    suffix (`str` or `list[str]`, *optional*):
        The same, after the names.
    negative_names (`list[str]`, *optional*):
        Names appended to every caption that own no label: they soak up false positives.
    chunk_size (`int`, *optional*):
        Most names a caption; the limit of 256 tokens holds besides.
    """

    separator: str | None
    prefix: str | list[str] | tuple[str, ...] | None
    suffix: str | list[str] | tuple[str, ...] | None
    negative_names: list[str] | tuple[str, ...] | None
    chunk_size: int | None


class GlipBatchFeature(BatchFeature):
    """A `BatchFeature` that knows the names behind its labels.

    `text_labels`, a list of names for each picture (or None), is an attribute and no entry:
    `model(**inputs)` does not see it. It survives `.to`, `.copy` and pickling.
    """

    text_labels: list[list[str]] | None = None

    def to(self, *args: Any, **kwargs: Any) -> "GlipBatchFeature":
        """Like `BatchFeature.to`, in place; the tensors inside `labels` move as well."""
        super().to(*args, **kwargs)
        if self.data.get("labels") is not None:
            self.data["labels"] = [BatchFeature(dict(t)).to(*args, **kwargs) for t in self.data["labels"]]
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
            Turns photos into `pixel_values`.
        tokenizer ([`BertTokenizer`]):
            A fast tokenizer; the released models use the vocabulary of bert-base-uncased.
        prompt_options (`dict`, *optional*):
            Defaults of `separator`, `prefix`, `suffix`, `negative_names` and `chunk_size` (see
            [`GlipProcessorKwargs`]); saved with the processor, and each can be given to a call
            instead.
    """

    valid_processor_kwargs = GlipProcessorKwargs
    text_kwargs = {"padding": True, "truncation": True, "max_length": MAX_TEXT_LENGTH}

    def __init__(self, image_processor: Any, tokenizer: Any, prompt_options: dict | None = None):
        super().__init__(image_processor, tokenizer)
        unknown = set(prompt_options or {}) - set(PROMPT_OPTIONS)
        if unknown:
            raise ValueError(
                f"prompt_options has unknown entries {sorted(unknown)}: known are {', '.join(PROMPT_OPTIONS)}."
            )
        self.prompt_options = {**PROMPT_OPTIONS, **(prompt_options or {})}

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(self, AUTO_PROCESSOR), (self.image_processor, AUTO_IMAGE_PROCESSOR)]

    @property
    def model_input_names(self) -> list[str]:
        """The tensors every call returns; `image_indices` and `labels` come with some only."""
        return [*super().model_input_names, "positive_map", "label_ids"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[NameInput] | Sequence[Sequence[NameInput] | str] | None = None,
        phrases: Sequence[PhraseInput] | Sequence[Sequence[PhraseInput] | None] | None = None,
        spans: Sequence[SpanInput] | Sequence[Sequence[SpanInput] | None] | None = None,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        category_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[GlipProcessorKwargs],
    ) -> GlipBatchFeature:
        r"""
        Args:
            images: photos, whatever the image processor takes. May be left out for text tensors
                alone.
            text: what to look for. May be left out for image tensors alone.

                - `["cat", "remote control"]`: class names, for the one picture or for every
                  picture. Names are cleaned ("trash_can" is "trash can", "bow_(weapon)" is "bow").
                  A dictionary `{"prefix", "name", "suffix"}` in place of a name is taken to the
                  letter. Names that do not fit one caption are split over several; the label of a
                  name is always its place in the list.
                - `[["cat"], ["dog", "person"]]`: names for each picture. A string in place of a
                  list is a caption for that picture.
                - `"two cats on a pink sofa"`: a caption. Its labels are the phrases given by
                  `phrases` or `spans`, else the noun phrases found in it, else (there are none) the
                  whole text.
                - `["two cats", "a dog"]` together with `phrases` or `spans`: a caption for each
                  picture.
            phrases: substrings of the caption, exact to the letter; `(phrase, i)` for the i-th
                occurrence, counted from 0, where there are several. With several captions a list
                for each; None in place of a caption's list asks for its noun phrases.
            spans: in place of phrases, `[begin, end)` in characters of the caption, or a list of
                those for a phrase in several parts. With several captions a list for each.
            annotations: training targets, a COCO record for each picture: `{"image_id",
                "annotations": [{"bbox": [x, y, w, h], "category_id", ...}]}`. A box with
                `tokens_positive`, a list of character spans of the caption, belongs to these words;
                any other to the name or phrase its `category_id` stands for.
            category_ids: the category id of each name, in the order of the names (a list for each
                picture where names differ). By default a category id *is* the place of its name,
                from 0.
            **kwargs: `return_tensors`, prompt options (see [`GlipProcessorKwargs`]), and options of
                the image processor and the tokenizer.

        Returns:
            - `pixel_values` [B, 3, H, W], `pixel_mask` [B, H, W], `original_sizes` [B, 2], with
              images;
            - `input_ids`, `attention_mask`, `token_type_ids` [N, T], padded to the longest caption;
              `positive_map` [N, C, T] bool, the tokens of each name or phrase; `label_ids` [N, C]
              int64, -1 at padding; `image_indices` [N] int64 where captions and pictures do not
              pair one to one, with text;
            - `labels` with annotations, see the image processor, and for each target `positive_map`
              [K, T] float32, 1 at the tokens of each box; `class_labels` are places in the list of
              names or phrases, or the box's own `category_id` if it has `tokens_positive`;
            - the attribute `text_labels`, the names of each picture, which is not passed to the
              model.

        Raises:
            TypeError, ValueError: for text that names nothing, a name too long for any caption, a
                phrase that is not there or ambiguous, a span outside the caption, numbers of
                pictures and texts that differ. Names and phrases without tokens, or beyond the 256
                tokens of a caption, score 0: a `UserWarning` names them.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give images, text or both.")
        if text is None and (phrases is not None or spans is not None):
            raise ValueError("phrases and spans belong to a caption: give it as text.")
        merged = self._merge_kwargs(GlipProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_kwargs = dict(merged["text_kwargs"])
        return_tensors = text_kwargs.pop("return_tensors", None)

        things = None  # the boxes of each picture, as given
        data: dict[str, Any] = {}
        if images is not None:
            if annotations is not None:
                records = [annotations] if isinstance(annotations, Mapping) else list(annotations)
                things, annotations = _index_boxes(records) if text is not None else (None, records)
            data = dict(self.image_processor(images, annotations=annotations, **merged["images_kwargs"]))
        elif annotations is not None:
            raise ValueError("annotations are boxes in pictures: give images as well.")

        queries = None
        if text is not None:
            options = self.prompt_options | {key: merged[key] for key in PROMPT_OPTIONS if key in kwargs}
            pictures = len(data["pixel_values"]) if images is not None else None
            queries = read_text(
                text,
                phrases,
                spans,
                pictures,
                self.tokenizer,
                options,
                text_kwargs.get("max_length"),
            )
            words, offsets = self._encode(queries, text_kwargs)
            if things is not None:
                self._add_positive_maps(data["labels"], things, queries, words, offsets, category_ids, return_tensors)
            data |= words
        batch = GlipBatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["labels"])
        batch.text_labels = None if queries is None else [query.names for query in queries]
        return batch

    # -- captions -> tensors -----------------------------------------------------------------------

    def _encode(self, queries: list[Query], text_kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[Offsets]]:
        """Token ids and maps of all captions, and the offset mapping of each, truncated and padded."""
        prompts = [prompt for query in queries for prompt in query.prompts]
        max_length = text_kwargs.get("max_length") or MAX_TEXT_LENGTH
        options = text_kwargs | {"truncation": True, "max_length": max_length}
        encoded = self.tokenizer([prompt.caption for prompt in prompts], **options)
        words, widths, rows = dict(encoded), [len(ids) for ids in encoded["input_ids"]], []
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
        self._warn_of_lost_rows(queries, rows, max_length)

        classes = max(len(prompt.label_ids) for prompt in prompts)
        label_ids = np.full((len(prompts), classes), -1, dtype=np.int64)
        maps = [np.zeros((classes, width), dtype=bool) for width in widths]
        for n, (prompt, (kept, *_)) in enumerate(zip(prompts, rows, strict=True)):
            label_ids[n, : len(prompt.label_ids)] = prompt.label_ids
            maps[n][: len(kept)] = kept
        words["positive_map"] = np.stack(maps) if len(set(widths)) == 1 else maps
        words["label_ids"] = label_ids
        if len(prompts) != len(queries):
            counts = [len(query.prompts) for query in queries]
            words["image_indices"] = np.repeat(np.arange(len(queries), dtype=np.int64), counts)
        return words, [encoding.offsets for encoding in encoded.encodings]

    def _warn_of_lost_rows(
        self,
        queries: list[Query],
        rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
        max_length: int,
    ) -> None:
        """Warns of names and phrases that can only score 0, or that the vocabulary cannot spell; refuses a picture
        without any word."""
        empty, beyond, partly, unknown, n = [], [], [], [], 0
        for picture, query in enumerate(queries):
            found = False
            for prompt in query.prompts:
                for label, kept, tokens, unread in zip(prompt.label_ids, *rows[n], strict=True):
                    found = found or tokens.any()
                    if unread:
                        unknown.append(query.names[label])
                    if not tokens.any():
                        empty.append(query.names[label])
                    elif kept.sum() < tokens.sum():
                        (partly if kept.any() else beyond).append(query.names[label])
                n += 1
            if not found and all(prompt.exact for prompt in query.prompts):
                raise ValueError(
                    f"None of the names {_listed(query.names)} for picture {picture} has a token: "
                    "give at least one with a letter, digit or sign."
                )
        cut = f"the caption has more than {max_length} tokens and was cut: "
        for names, reason in (
            (empty, "no token stands for {}: the score of these names is 0."),
            (unknown, "the tokenizer's vocabulary cannot spell {}: their scores mean little. Use other words."),
            (beyond, cut + "{} lie beyond the end and their score is 0. Give shorter captions."),
            (partly, cut + "only the first part of {} is left. Give shorter captions."),
        ):
            if names:
                warnings.warn(reason.format(_listed(list(dict.fromkeys(names)))), UserWarning, stacklevel=4)

    # -- training targets --------------------------------------------------------------------------

    def _add_positive_maps(
        self,
        labels: list[Any],
        things: list[list[Mapping[str, Any]]],
        queries: list[Query],
        words: dict[str, Any],
        offsets: list[Offsets],
        category_ids: Any,
        return_tensors: str | None,
    ) -> None:
        """Adds `positive_map` to targets whose `class_labels` are, so far, places in `things`."""
        for picture, (target, query) in enumerate(zip(labels, queries, strict=True)):
            if len(query.prompts) != 1:
                raise ValueError(
                    f"the {len(query.names)} names of picture {picture} fill {len(query.prompts)} "
                    "captions, but annotations need all of them in one: give fewer names."
                )
            ids = category_ids
            if ids is not None and len(ids) and isinstance(ids[0], list | tuple):
                ids = one_each("category_ids", ids, len(queries))[picture]
            if ids is not None and len(ids) != len(query.names):
                raise ValueError(
                    f"category_ids has {len(ids)} entries for the {len(query.names)} names of "
                    f"picture {picture}: give one a name, in their order."
                )
            name_map = words["positive_map"][picture]
            kept = [int(position) for position in target["class_labels"]]
            dense = np.zeros((len(kept), name_map.shape[1]), dtype=np.float32)
            classes = np.zeros(len(kept), dtype=np.int64)
            for row, position in enumerate(kept):
                thing = things[picture][position]
                if thing.get("tokens_positive") is not None:
                    dense[row] = positive_map(offsets[picture], [thing["tokens_positive"]], normalize=False)
                    classes[row] = thing.get("category_id", 0)
                else:
                    classes[row] = _label_of(thing, ids, query.names, picture)
                    dense[row] = name_map[classes[row]]
            # A caption is cut at a token, not at a phrase: training drops what the original drops.
            tensor = torch.from_numpy if return_tensors in ("pt", "PYTORCH") else np.asarray
            target["positive_map"], target["class_labels"] = tensor(dense), tensor(classes)

    # -- outputs -> named boxes --------------------------------------------------------------------

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        inputs: Mapping[str, Any] | torch.Tensor | None = None,
        threshold: float = 0.25,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        aggregation: str = "mean",
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        score_threshold: float = 0.05,
        pre_nms_top_k: int = 1000,
    ) -> list[dict[str, Any]]:
        """Named boxes of every picture.

        Args:
            outputs: what `GlipForGrounding` returned.
            inputs: what this processor returned, for its names; or `input_ids` [N, T].
            threshold: keep detections whose score is above this.
            target_sizes: (height, width) of each original photo; default: those that travelled with
                the outputs.
            text_labels: the names, one list for all pictures or a list for each. By default those
                of `inputs`, and failing these the words decoded from `input_ids` under
                `positive_map` (lower case, spaces around signs).
            aggregation, nms_threshold, max_detections, score_threshold, pre_nms_top_k: see
                [`~postprocess_glip.post_process_grounding`].

        Returns:
            One dictionary a picture, best first: `scores` [K] float32, `boxes` [K, 4] float32 xyxy
                in pixels of
            the photo, `labels` [K] int64, the place of the name in the user's list, `text_labels`
            list of K str.

        Raises:
            ValueError: if there are not as many lists of names as pictures, or fewer names than
                labels.
        """
        results = post_process_grounding(
            outputs,
            threshold=threshold,
            target_sizes=target_sizes,
            aggregation=aggregation,
            score_threshold=score_threshold,
            pre_nms_top_k=pre_nms_top_k,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        if text_labels is None:
            text_labels = getattr(inputs, "text_labels", None)
        if text_labels is not None and all(isinstance(name, str) for name in text_labels):
            text_labels = [text_labels] * len(results)
        if text_labels is not None and len(text_labels) != len(results):
            raise ValueError(
                f"text_labels has {len(text_labels)} lists of names for {len(results)} pictures: give one each."
            )
        ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
        for picture, result in enumerate(results):
            labels = result["labels"].tolist()
            if text_labels is None:
                names = self._decode_names(outputs, outputs.input_ids if ids is None else ids, picture, labels)
            else:
                names = dict(enumerate(text_labels[picture]))
                if labels and max(labels) >= len(names):
                    raise ValueError(
                        f"picture {picture} has a detection of label {max(labels)}, but "
                        f"text_labels has {len(names)} names for it: give the names the processor "
                        "was given."
                    )
            result["text_labels"] = [names[label] for label in labels]
        return results

    def _decode_names(self, outputs: Any, input_ids: torch.Tensor, picture: int, labels: list[int]) -> dict[int, str]:
        """The words each of these labels owns in the captions of a picture."""
        names: dict[int, str] = {}
        indices = getattr(outputs, "image_indices", None)
        captions = [picture] if indices is None else (indices == picture).nonzero().flatten().tolist()
        for n in captions:
            for row, label in enumerate(outputs.label_ids[n].tolist()):
                if label in labels and label not in names:
                    names[label] = self.tokenizer.decode(input_ids[n][outputs.positive_map[n][row].bool()])
        return names


# -- helpers ---------------------------------------------------------------------------------------


def _index_boxes(
    records: list[Mapping[str, Any]],
) -> tuple[list[list[Mapping[str, Any]]], list[dict[str, Any]]]:
    """The boxes of each record, and the records with places in these lists for category ids.

    The image processor drops boxes (crowds, outside the picture) and returns the category ids of
    those it kept: so it is known which.
    """
    things, indexed = [], []
    for picture, record in enumerate(records):
        if not isinstance(record, Mapping) or "annotations" not in record:
            raise ValueError(
                f"annotations of picture {picture} are {shorten(repr(record))}: give a dictionary "
                "with 'image_id' and 'annotations' (COCO detection format)."
            )
        boxes = list(record["annotations"])
        places = [{**box, "category_id": place} if isinstance(box, Mapping) else box for place, box in enumerate(boxes)]
        things.append(boxes)
        indexed.append({"image_id": picture, **record, "annotations": places})
    return things, indexed


def _label_of(thing: Mapping[str, Any], category_ids: Sequence[int] | None, names: list[str], picture: int) -> int:
    """Place of the name a box belongs to."""
    if "category_id" not in thing:
        raise ValueError(
            f"picture {picture}: a box has neither 'category_id' nor 'tokens_positive': {shorten(repr(thing))}."
        )
    category = operator.index(thing["category_id"])
    if category_ids is not None:
        matches = [place for place, entry in enumerate(category_ids) if operator.index(entry) == category]
        if matches:
            return matches[0]
        raise ValueError(f"picture {picture}: category_id {category} is not in category_ids.")
    if not 0 <= category < len(names):
        raise ValueError(
            f"picture {picture}: category_id {category} is no place in its {len(names)} names "
            "(from 0): pass category_ids, the id of each name in the order of the names."
        )
    return category


def _listed(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(shorten(name)) for name in names[:limit]) + more


__all__ = ["GlipBatchFeature", "GlipProcessor", "GlipProcessorKwargs"]
