# Copyright 2026 The glip_hf authors. MIT licence.
"""Inference over a data set: pictures x captions, neither encoded twice.

A photo passes through Swin and the pyramid once, whatever the number of captions; a caption of a vocabulary through
BERT once, whatever the number of photos. (picture, caption) pairs go through the head together, as many as memory
allows. Pictures share a batch only where their padded sizes agree, because padding changes GLIP's numbers.

Letters: B pictures (views) a batch, N captions, P pairs a pass, T tokens, E width of the text encoder, C names a
caption, K detections.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import pad

from ..image_processing_pil_glip import load_image
from ..modeling_glip import GlipForGrounding, GlipTextFeatures, select
from ..pipeline import text_state
from ..postprocess_glip import post_process_grounding
from ..processing_glip import GlipProcessor
from .augment import Found, View, join, make_views, unflip, vote
from .flickr import boxes_by_phrase
from .memory import PairBudget, out_of_memory
from .tasks import Picture, Task

ENCODE_CAPTIONS = 16  # captions a pass of BERT on an accelerator; on a CPU one: more cost memory and save nothing
BOX_DECIMALS, SCORE_DECIMALS = 3, 6  # of stored predictions: thousandths of a pixel
READERS = "glip-read"  # how threads that read pictures are named


@dataclass
class Options:
    """How predictions are made. What is not a speed setting changes results.

    Attributes:
        chunk_size: most names a caption; None for as many as fit.
        max_detections: kept of each caption; merged_limit: kept of each picture, None for all.
        aggregation, score_threshold, nms_threshold: see `post_process_grounding`; threshold: lowest final score.
        separator, prefix, suffix, negative_names: of captions, see `GlipProcessor`; None for its defaults.
        scales: short sides in pixels to show each photo at (default: the processor's), with max_size the limit of
            the long side; flip: also mirrored; vote_threshold: IoU from which detections of several views join.
        allow_padding: let pictures of different sizes share a batch: faster, and slightly different numbers.
        batch_size: pictures a pass of the backbone (speed). pairs: (picture, caption) pairs a pass of the head
            (speed; None: found automatically). workers: threads that read pictures (speed). caption_multiple: captions
            are filled up to a multiple of so many tokens (speed, for CUDA graphs; see `compilation`).
    """

    chunk_size: int | None = None
    max_detections: int = 100
    merged_limit: int | None = 100
    aggregation: str = "mean"
    threshold: float = 0.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.6
    separator: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    negative_names: Sequence[str] | None = None
    scales: Sequence[int] = ()
    max_size: int | None = None
    flip: bool = False
    vote_threshold: float = 0.6
    allow_padding: bool = False
    batch_size: int = 1
    pairs: int | None = None
    workers: int = 2
    caption_multiple: int = 1

    SPEED = ("batch_size", "pairs", "workers", "caption_multiple")

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_detections", "workers", "caption_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass
class Captions:
    """Captions with their text features, on the model's device, none longer than it is: padding costs memory and time.

    hidden: [T, E] of each caption; input_ids: [T]; positive_maps: [C, T] bool; label_ids: [C].
    """

    hidden: list[Tensor] = field(default_factory=list)
    input_ids: list[Tensor] = field(default_factory=list)
    positive_maps: list[Tensor] = field(default_factory=list)
    label_ids: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(ids) for ids in self.input_ids]

    def extend(self, other: "Captions") -> None:
        """Append all of `other`; tensors are shared."""
        for name in ("hidden", "input_ids", "positive_maps", "label_ids"):
            getattr(self, name).extend(getattr(other, name))

    def take(self, rows: Sequence[int], multiple: int = 1) -> dict[str, Any]:
        """Inputs of the model for these captions, padded to the longest of them, and that to a multiple."""
        lengths = torch.tensor([len(self.input_ids[row]) for row in rows], device=self.hidden[rows[0]].device)
        longest, classes = int(lengths.max()), max(len(self.label_ids[row]) for row in rows)
        longest += -longest % multiple
        features = GlipTextFeatures(
            last_hidden_state=_stack([self.hidden[row] for row in rows], longest),
            attention_mask=(torch.arange(longest, device=lengths.device) < lengths[:, None]).long(),
            input_ids=_stack([self.input_ids[row] for row in rows], longest),
        )
        return {
            "text_features": features,
            "positive_map": _stack([self.positive_maps[row] for row in rows], classes, longest),
            "label_ids": _stack([self.label_ids[row] for row in rows], classes, fill=-1),
        }


def _stack(values: list[Tensor], *sizes: int, fill: int = 0) -> Tensor:
    """Values in one tensor, filled up at the end where one is smaller than `sizes` in the first dimensions."""
    if len(values) == 1 and tuple(values[0].shape[: len(sizes)]) == sizes:
        return values[0][None]
    stacked = values[0].new_full((len(values), *sizes, *values[0].shape[len(sizes) :]), fill)
    for row, value in zip(stacked, values):
        row[tuple(slice(size) for size in value.shape)] = value
    return stacked


@dataclass
class Shown:
    """One view of one picture, ready for the network: tensors with a batch dimension of 1."""

    index: int
    view: View
    pixel_values: Tensor | None  # None as soon as features are there
    pixel_mask: Tensor | None
    original_sizes: Tensor


@dataclass
class _Progress:
    """What is known of a picture so far: detections of each (view, caption)."""

    picture: Picture
    captions: Captions | None
    width: int = 0
    found: dict[View, list[Found]] = field(default_factory=dict)


class Detector:
    """A model and its processor, asked about many pictures."""

    def __init__(self, model: GlipForGrounding, processor: GlipProcessor, options: Options | None = None) -> None:
        self.model, self.processor, self.options = model.eval(), processor, options or Options()
        self.views = make_views(self.options.scales, self.options.flip)
        self.budget = PairBudget(model.device, self.options.pairs)
        self._vocabulary: tuple[Any, Captions] | None = None  # the last one, and what it was made of
        if processor.tokenizer.padding_side != "right":
            raise ValueError("captions are cut to their length: the tokenizer has to pad on the right.")

    # -- words -------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[Any]) -> Captions:
        """The captions of a vocabulary; label i is the i-th name. The last one is kept while the text encoder stays."""
        chosen = self.options
        text = {"prefix": chosen.prefix, "suffix": chosen.suffix, "separator": chosen.separator}
        text |= {"negative_names": chosen.negative_names, "chunk_size": chosen.chunk_size}
        given = {key: value for key, value in text.items() if value is not None}
        made_of = json.dumps([list(names), given]), text_state(self.model)
        if self._vocabulary is None or self._vocabulary[0] != made_of:
            self._vocabulary = None  # not two at a time
            self._vocabulary = made_of, self._encode(self.processor(text=list(names), return_tensors="pt", **given))
        return self._vocabulary[1]

    def encode_sentences(self, pictures: Iterable[Picture]) -> Captions:
        """The sentences of some pictures, in order; label i is a sentence's i-th phrase."""
        sentences = [sentence for picture in pictures for sentence in picture.sentences]
        texts, spans = [s.text for s in sentences], [s.spans for s in sentences]
        return self._encode(self.processor(text=texts, spans=spans, return_tensors="pt"))

    @torch.inference_mode()
    def _encode(self, words: Any) -> Captions:
        words = words.to(self.model.device)
        lengths, classes = words["attention_mask"].sum(1).tolist(), (words["label_ids"] >= 0).sum(1).tolist()
        a_pass = 1 if self.model.device.type == "cpu" else ENCODE_CAPTIONS
        captions, states = Captions(), None
        for start in range(0, len(lengths), a_pass):
            longest = max(lengths[start : start + a_pass])
            names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in words]
            tokens = {name: words[name][start : start + a_pass, :longest] for name in names}
            hidden = self.model.get_text_features(**tokens).last_hidden_state
            if states is None:  # one block for all: pieces between what a pass needs would break up the memory
                states = hidden.new_empty(sum(lengths), hidden.shape[-1]).split(lengths)
            for row, of_caption in enumerate(hidden, start):
                length, rows = lengths[row], classes[row]
                captions.hidden.append(states[row].copy_(of_caption[:length]))
                captions.input_ids.append(words["input_ids"][row, :length])
                captions.positive_maps.append(words["positive_map"][row, :rows, :length])
                captions.label_ids.append(words["label_ids"][row, :rows])
        return captions

    # -- pictures ----------------------------------------------------------------------------------

    def predict(self, task: Task, pictures: Sequence[Picture] | None = None) -> Iterator[dict[str, Any]]:
        """Predictions of each picture, as soon as they are there (not always in order).

        Args:
            task: its vocabulary is used, or its pictures' sentences.
            pictures: those to do; default all of the task.

        Yields:
            with a vocabulary `{"image_id", "boxes" [K][4] xyxy, "scores" [K], "labels" [K] category ids}`, best
            first; with sentences `{"image_id", "sentences": [{"sentence_id", "boxes", "scores"}]}`, boxes for every
            phrase as Flickr30k's evaluator wants them. Numbers are rounded to `BOX_DECIMALS`, `SCORE_DECIMALS`.
        """
        pictures = list(task.pictures if pictures is None else pictures)
        shared = self.encode_names(task.names) if task.names else None
        with closing(self._batches(pictures)) as batches:  # whatever happens, no thread outlives this
            yield from self._predict(task, pictures, batches, shared)

    def _predict(
        self, task: Task, pictures: Sequence[Picture], batches: Iterable[list[Shown]], shared: Captions | None
    ) -> Iterator[dict[str, Any]]:
        under_way: dict[int, _Progress] = {}
        for batch in batches:
            for index in dict.fromkeys(shown.index for shown in batch):
                if index not in under_way:
                    picture = pictures[index]
                    captions = shared
                    if captions is None and picture.sentences:
                        captions = self.encode_sentences([picture])
                    under_way[index] = _Progress(picture, captions)
            with_words = [shown for shown in batch if under_way[shown.index].captions is not None]
            if with_words:
                self._run(with_words, under_way)
            for shown in batch:
                progress = under_way[shown.index]
                if progress.captions is None:
                    progress.found[shown.view] = []
                progress.width = int(shown.original_sizes[0, 1])
            for index in dict.fromkeys(shown.index for shown in batch):
                if len(under_way[index].found) == len(self.views):
                    yield self._finish(under_way.pop(index), task)

    def _show(self, index: int, picture: Picture, view: View) -> Shown:
        """Read and preprocess one view of a picture; runs in a worker thread.

        Raises:
            ValueError, FileNotFoundError: naming the picture.
        """
        try:
            photo = ImageOps.exif_transpose(load_image(picture.path))
            if view.flip:
                photo = ImageOps.mirror(photo)
            made = self.processor.image_processor([photo], return_tensors="pt", **self._size(view))
        except Exception as error:  # decoders raise almost anything on damaged files
            if picture.path in str(error):
                raise
            raise ValueError(f"{picture.path}: {error}") from error
        pixels, mask = (self._staged(made[name]) for name in ("pixel_values", "pixel_mask"))
        return Shown(index, view, pixels, mask, made["original_sizes"])

    def _staged(self, value: Tensor) -> Tensor:
        """In memory that a GPU copies from by itself, if that is where it goes."""
        return value.pin_memory() if self.model.device.type == "cuda" else value

    def _size(self, view: View) -> dict[str, dict[str, int]]:
        """The image processor's option for a view's size."""
        if view.short_side is None:
            return {}
        default = dict(self.processor.image_processor.size)
        longest = self.options.max_size or default.get("longest_edge")
        if self.options.max_size is None and longest and default.get("shortest_edge"):
            # The same room for long pictures at every scale.
            longest = round(longest * max(view.short_side / default["shortest_edge"], 1))
        return {"size": {"shortest_edge": view.short_side, "longest_edge": longest}}

    def _load(self, pictures: Sequence[Picture]) -> Iterator[Shown]:
        """Views of all pictures in order, read and resized by threads while the model works on earlier ones."""
        jobs = ((i, picture, view) for i, picture in enumerate(pictures) for view in self.views)
        waiting: deque[Future[Shown]] = deque()
        with ThreadPoolExecutor(self.options.workers, thread_name_prefix=READERS) as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(self._show, *job))
                    if len(waiting) > self.options.workers + self.options.batch_size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _batches(self, pictures: Sequence[Picture]) -> Iterator[list[Shown]]:
        """Views in groups that may share a pass; every view is in exactly one."""
        size = self.options.batch_size
        groups: dict[Any, list[Shown]] = {}
        with closing(self._load(pictures)) as views:
            for shown in views:
                key = None if self.options.allow_padding else tuple(shown.pixel_values.shape[-2:])
                group = groups.setdefault(key, [])
                group.append(shown)
                if len(group) == size:
                    yield groups.pop(key)
                elif sum(map(len, groups.values())) >= 4 * size:  # bound what waits in memory
                    yield groups.pop(max(groups, key=lambda key: len(groups[key])))
            yield from groups.values()

    # -- pairs -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self, batch: list[Shown], under_way: dict[int, _Progress]) -> None:
        """Detections of every view of the batch with every caption, put into `under_way`."""
        try:
            features, original_sizes = self._encode_pictures(batch)
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            middle = len(batch) // 2
            features = None
        if features is None:
            self._run(batch[:middle], under_way)
            self._run(batch[middle:], under_way)
            return
        for shown in batch:
            shown.pixel_values = shown.pixel_mask = None
        sources = [under_way[shown.index].captions for shown in batch]
        joined, starts = _join_captions(sources)
        pairs = [
            (row, start + caption)
            for row, (captions, start) in enumerate(zip(sources, starts))
            for caption in range(len(captions))
        ]
        # Captions of like length share a pass; the longest come first, so memory is measured at its worst.
        lengths = joined.lengths
        pairs.sort(key=lambda pair: (-lengths[pair[1]], pair))
        results: dict[tuple[int, int], Found] = {}
        locations = features.last_hidden_state.shape[1]
        at = 0
        while at < len(pairs):
            group = pairs[at : at + self.budget.size(locations)]
            try:
                with self.budget.measured(len(group), locations):
                    found = self._detect(features, original_sizes, group, joined)
            except RuntimeError as error:
                if not out_of_memory(error) or not self.budget.halve(len(group), locations):
                    raise
                continue
            results.update(zip(group, found))
            at += len(group)
        for row, (shown, captions, start) in enumerate(zip(batch, sources, starts)):
            of_picture = [results[row, start + caption] for caption in range(len(captions))]
            under_way[shown.index].found[shown.view] = of_picture

    def _encode_pictures(self, batch: list[Shown]) -> tuple[Any, Tensor]:
        device, dtype = self.model.device, self.model.dtype
        height = max(shown.pixel_values.shape[-2] for shown in batch)
        width = max(shown.pixel_values.shape[-1] for shown in batch)

        def joined(values: list[Tensor]) -> Tensor:
            values = [value.to(device, non_blocking=device.type == "cuda") for value in values]
            if len(values) == 1:
                return values[0]
            return torch.cat([pad(v, (0, width - v.shape[-1], 0, height - v.shape[-2])) for v in values])

        pixels = joined([shown.pixel_values for shown in batch]).to(dtype)
        mask = joined([shown.pixel_mask for shown in batch])
        sizes = torch.cat([shown.original_sizes for shown in batch])
        return self.model.get_image_features(pixels, mask), sizes

    def _detect(
        self, features: Any, original_sizes: Tensor, pairs: Sequence[tuple[int, int]], captions: Captions
    ) -> list[Found]:
        """Detections of each pair (row of the features, caption), on the CPU."""
        rows = [row for row, _ in pairs]
        if rows != list(range(len(features.last_hidden_state))):
            index = torch.tensor(rows, device=features.last_hidden_state.device)
            features = select(features, index)
        outputs = self.model(
            image_features=features,
            original_sizes=original_sizes[rows],
            **captions.take([caption for _, caption in pairs], self.options.caption_multiple),
        )
        options = self.options
        found = post_process_grounding(
            outputs,
            threshold=options.threshold,
            aggregation=options.aggregation,
            score_threshold=options.score_threshold,
            nms_threshold=options.nms_threshold,
            max_detections=options.max_detections,
        )
        return [{name: value.cpu() for name, value in one.items()} for one in found]

    # -- results -----------------------------------------------------------------------------------

    def _finish(self, progress: _Progress, task: Task) -> dict[str, Any]:
        picture = progress.picture
        if task.names:
            found = self._merge(progress, range(len(progress.captions)), self.options.merged_limit)
            ids = torch.tensor(task.category_ids)
            return {"image_id": picture.image_id, **_rounded(found["boxes"], found["scores"])} | {
                "labels": ids[found["labels"]].tolist()
            }
        sentences = []
        for row, sentence in enumerate(picture.sentences):
            found = self._merge(progress, [row], self.options.merged_limit)
            numbers = _rounded(found["boxes"], found["scores"])
            boxes, scores = boxes_by_phrase(numbers["boxes"], numbers["scores"], found["labels"], len(sentence.spans))
            sentences.append({"sentence_id": sentence.number, "boxes": boxes, "scores": scores})
        return {"image_id": picture.image_id, "sentences": sentences}

    def _merge(self, progress: _Progress, captions: Iterable[int], limit: int | None) -> Found:
        """Detections of these captions of a picture over all views."""
        rows = list(captions)
        views = []
        for view in self.views:
            found = join([progress.found[view][row] for row in rows])
            views.append(unflip(found, progress.width) if view.flip else found)
        if len(views) > 1:
            return join([vote(join(views), self.options.vote_threshold)], limit)
        return join(views, limit)


def _rounded(boxes: Tensor, scores: Tensor) -> dict[str, Any]:
    return {
        "boxes": boxes.double().numpy().round(BOX_DECIMALS).tolist(),
        "scores": scores.double().numpy().round(SCORE_DECIMALS).tolist(),
    }


def _join_captions(sources: Sequence[Captions]) -> tuple[Captions, list[int]]:
    """All captions of these sources in one, and where each source begins. A shared source is taken once."""
    joined, starts = Captions(), {}
    for source in sources:
        if id(source) not in starts:
            starts[id(source)] = len(joined)
            joined.extend(source)
    return joined, [starts[id(source)] for source in sources]


__all__ = ["Captions", "Detector", "Options"]
