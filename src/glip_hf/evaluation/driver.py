# Copyright 2026 The glip_hf authors. MIT licence.
"""Inference over a data set: pictures x captions, neither encoded twice.

A photo passes through Swin and the pyramid once, whatever the number of captions; a caption of a vocabulary through
BERT once, whatever the number of photos. (picture, caption) pairs go through the head together, as many as memory
allows. Pictures share a batch only where their padded sizes agree, because padding changes GLIP's numbers.

Letters: B pictures (views) a batch, N captions, P pairs a pass, T tokens, K detections.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import pad

from ..image_reading_glip import load_picture
from ..modeling_glip import GlipForGrounding, GlipTextFeatures, select
from ..postprocess_glip import post_process_grounding
from ..processing_glip import GlipProcessor
from .augment import Found, View, join, make_views, unflip, vote
from .flickr import boxes_by_phrase
from .memory import PairBudget, out_of_memory
from .tasks import Picture, Task

ENCODE_CAPTIONS = 4  # captions a pass of BERT: more would be the peak of memory on a CPU, and save nothing
BOX_DECIMALS, SCORE_DECIMALS = 3, 6  # of stored predictions: thousandths of a pixel


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
            (speed; None: found automatically). workers: threads that read pictures (speed).
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

    SPEED = ("batch_size", "pairs", "workers")

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_detections", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass
class Captions:
    """Captions with their text features, on the model's device.

    features: of [N, T, E]; positive_map: [N, C, T]; label_ids: [N, C]; lengths: tokens of each.
    """

    features: GlipTextFeatures
    positive_map: Tensor
    label_ids: Tensor
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Sequence[int]) -> dict[str, Any]:
        """Inputs of the model for these captions, cut to the longest of them: padding costs time."""
        length = max(self.lengths[row] for row in rows)
        index = torch.tensor(rows, device=self.label_ids.device)
        features = GlipTextFeatures(
            last_hidden_state=self.features.last_hidden_state[index, :length],
            attention_mask=self.features.attention_mask[index, :length],
            input_ids=self.features.input_ids[index, :length],
        )
        return {
            "text_features": features,
            "positive_map": self.positive_map[index, :, :length],
            "label_ids": self.label_ids[index],
        }


@dataclass
class Shown:
    """One view of one picture, ready for the network: tensors with a batch dimension of 1."""

    index: int
    view: View
    pixel_values: Tensor
    pixel_mask: Tensor
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
        if processor.tokenizer.padding_side != "right":
            raise ValueError("captions are cut to their length: the tokenizer has to pad on the right.")

    # -- words -------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[Any]) -> Captions:
        """The captions of a vocabulary; label i is the i-th name."""
        chosen = self.options
        text = {"prefix": chosen.prefix, "suffix": chosen.suffix, "separator": chosen.separator}
        text |= {"negative_names": chosen.negative_names, "chunk_size": chosen.chunk_size}
        given = {key: value for key, value in text.items() if value is not None}
        return self._encode(self.processor(text=list(names), return_tensors="pt", **given))

    def encode_sentences(self, pictures: Iterable[Picture]) -> Captions:
        """The sentences of some pictures, in order; label i is a sentence's i-th phrase."""
        sentences = [sentence for picture in pictures for sentence in picture.sentences]
        texts, spans = [s.text for s in sentences], [s.spans for s in sentences]
        return self._encode(self.processor(text=texts, spans=spans, return_tensors="pt"))

    @torch.inference_mode()
    def _encode(self, words: Any) -> Captions:
        words = words.to(self.model.device)
        tokens = {name: words[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in words}
        hidden: Tensor | None = None  # written in place: joining parts would hold everything twice
        total = len(tokens["input_ids"])
        for start in range(0, total, ENCODE_CAPTIONS):
            rows = slice(start, start + ENCODE_CAPTIONS)
            part = self.model.get_text_features(**{name: value[rows] for name, value in tokens.items()})
            if hidden is None:
                hidden = part.last_hidden_state.new_empty(total, *part.last_hidden_state.shape[1:])
            hidden[rows] = part.last_hidden_state
        features = GlipTextFeatures(
            last_hidden_state=hidden,
            attention_mask=tokens["attention_mask"],
            input_ids=tokens["input_ids"],
        )
        lengths = tokens["attention_mask"].sum(1).tolist()
        return Captions(features, words["positive_map"], words["label_ids"], lengths)

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
        under_way: dict[int, _Progress] = {}
        for batch in self._batches(pictures):
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
        """Read and preprocess one view of a picture; runs in a worker thread."""
        photo = ImageOps.exif_transpose(load_picture(picture.path))
        if view.flip:
            photo = ImageOps.mirror(photo)
        size = {}
        if view.short_side is not None:
            default = dict(self.processor.image_processor.size)
            longest = self.options.max_size or default.get("longest_edge")
            if self.options.max_size is None and longest and default.get("shortest_edge"):
                # The same room for long pictures at every scale.
                longest = round(longest * max(view.short_side / default["shortest_edge"], 1))
            size = {"size": {"shortest_edge": view.short_side, "longest_edge": longest}}
        try:
            made = self.processor.image_processor([photo], return_tensors="pt", **size)
        except ValueError as error:
            raise ValueError(f"{picture.path}: {error}") from error
        return Shown(index, view, made["pixel_values"], made["pixel_mask"], made["original_sizes"])

    def _load(self, pictures: Sequence[Picture]) -> Iterator[Shown]:
        """Views of all pictures in order, read ahead by threads."""
        jobs = ((i, picture, view) for i, picture in enumerate(pictures) for view in self.views)
        waiting: deque[Future[Shown]] = deque()
        with ThreadPoolExecutor(self.options.workers) as pool:
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
        for shown in self._load(pictures):
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
        sources = [under_way[shown.index].captions for shown in batch]
        joined, starts = _join_captions(sources)
        pairs = [
            (row, start + caption)
            for row, (captions, start) in enumerate(zip(sources, starts))
            for caption in range(len(captions))
        ]
        # Captions of like length share a pass; the longest come first, so memory is measured at its worst.
        pairs.sort(key=lambda pair: (-joined.lengths[pair[1]], pair))
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

        def grown(values: Tensor) -> Tensor:
            return pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]))

        pixels = torch.cat([grown(shown.pixel_values) for shown in batch]).to(device, dtype)
        mask = torch.cat([grown(shown.pixel_mask) for shown in batch]).to(device)
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
            **captions.take([caption for _, caption in pairs]),
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
    unique = list({id(source): source for source in sources}.values())
    if len(unique) == 1:
        return unique[0], [0] * len(sources)
    tokens = max(source.positive_map.shape[2] for source in unique)
    classes = max(source.positive_map.shape[1] for source in unique)

    def grown(value: Tensor, *room: int, fill: int = 0) -> Tensor:
        return pad(value, room, value=fill)

    parts: dict[str, list[Tensor]] = {"hidden": [], "mask": [], "ids": [], "map": [], "labels": []}
    starts, begin = {}, 0
    for source in unique:
        more, rows = tokens - source.positive_map.shape[2], classes - source.positive_map.shape[1]
        parts["hidden"].append(grown(source.features.last_hidden_state, 0, 0, 0, more))
        parts["mask"].append(grown(source.features.attention_mask, 0, more))
        parts["ids"].append(grown(source.features.input_ids, 0, more))
        parts["map"].append(grown(source.positive_map, 0, more, 0, rows))
        parts["labels"].append(grown(source.label_ids, 0, rows, fill=-1))
        starts[id(source)] = begin
        begin += len(source)
    whole = {name: torch.cat(values) for name, values in parts.items()}
    features = GlipTextFeatures(last_hidden_state=whole["hidden"], attention_mask=whole["mask"], input_ids=whole["ids"])
    lengths = [length for source in unique for length in source.lengths]
    joined = Captions(features, whole["map"], whole["labels"], lengths)
    return joined, [starts[id(source)] for source in sources]


__all__ = ["Captions", "Detector", "Options"]
