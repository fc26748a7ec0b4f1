# Copyright 2026 The glip_hf authors. MIT licence.
"""The inference engine: any number of images and any vocabulary in, detections out.

    engine = GroundingEngine(model, processor, GroundingOptions(threshold=0.4, batch_size=4))
    for result in engine.ground(Request(path, ["cat", "remote control"]) for path in paths):
        result.detections[0]  # {"scores", "boxes", "labels", "text_labels"}

Pipeline, command line, evaluation, self-training, validation and exported models all run through it. An image passes
through the backbone once, whatever the number of captions; a caption through the text encoder once, whatever the
number of images. (image, caption) pairs go through the head together, as many as memory allows. Threads read and
preprocess the next images while the model works. Images share a batch only where their padded sizes agree, because
padding changes GLIP's output, unless `allow_padding` is set.

Boxes are xyxy in absolute pixels of the upright image, both corners inside (a mirrored x is width - 1 - x).

Letters: B images (views) per batch, N captions, P pairs per pass, T tokens, E width of the text encoder, C classes per
caption, K detections.
"""

import copy
import io
import json
import os
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, zip_longest
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from .boxes_glip import box_iou
from .image_processing_pil_glip import decode_image, load_image, open_image, read_pixels, upright
from .modeling_glip import GlipTextFeatures, select
from .postprocess_glip import (
    Threshold,
    check_thresholds,
    has_repeats,
    label_thresholds,
    merge_detections,
    post_process_grounding,
    read_options,
)
from .prompts_glip import MAX_TEXT_LENGTH, PROMPT_OPTIONS, listed
from .tiling import SMALLEST_TILE, Region, make_tiles, merge_tiles
from .values_glip import check_number, quote

CAPTIONS_PER_PASS = 16  # of the text encoder on an accelerator; on a CPU one: more cost memory and save nothing
MEMORY_SHARE = 0.8  # of the free memory that pairs may fill; the rest is for fragmentation and for the next images
LARGEST_SCALE = 10_000  # in pixels: of a square image 100 megapixels
READER_THREAD = "glip-read"  # name prefix of the threads that read images
NO_LIMIT = sys.maxsize
_CAPTION_OPTIONS = ("aggregation", "nms_threshold", "score_threshold", "features")
DETECTION_OPTIONS = ("threshold", "max_detections", "class_agnostic_nms", *_CAPTION_OPTIONS)

# Of one image: `scores` [K] float32, descending; `boxes` [K, 4] float32 xyxy, absolute pixels; `labels` [K] int64,
# positions in the list of class names or phrases; `text_labels`, K strings; `locations` [K] int64 in the image's
# feature maps, unless it was shown in several views; on request `features` [K, D] float32. Tensors are on the CPU.
Detections = dict[str, Any]


@dataclass
class GroundingOptions:
    """How detections are made. Everything but the speed settings (`SPEED`) changes results.

    Attributes:
        chunk_size: most class names per caption; None for as many as fit.
        max_detections: kept per caption (per view, with thresholds of class names, `class_agnostic_nms` or several
            prompts for a class name; per tile, with `tile`).
        merged_limit: kept per image, None for all.
        aggregation: see `GlipPostProcessKwargs`, as for the next ones.
        threshold: lowest final score; or `{class name: score, None: that of all others}`.
        score_threshold: lowest score of a candidate.
        nms_threshold: IoU threshold of NMS.
        class_agnostic_nms: NMS over all class names, not within each.
        features: whether detections have their feature vectors.
        separator: between class names; with the next three see `GlipProcessor`, and None for its defaults.
        prefix: before each class name.
        suffix: after each class name.
        negative_names: class names that are asked and not reported.
        size: of images, as the image processor takes it (default: its own).
        scales: short sides in pixels to show each image at (default: `size`).
        max_size: with `scales`, the limit of the long side in pixels.
        flip: show each image mirrored, too.
        vote_threshold: IoU from which detections of several views join.
        tile: side in pixels of the tiles that an image is shown in besides the whole of it, for objects that are small
            in it; None for none. See `tiling`.
        overlap: least share of a tile's side that the next one shows, too (0 to 0.9): objects smaller than that are
            whole in some tile.
        allow_padding: let images of different sizes share a batch: faster, and slightly different results.
        batch_size: images per pass of the backbone (speed).
        pairs: (image, caption) pairs per pass of the head (speed); None to find out.
        workers: threads that read images (speed).
        caption_multiple: captions are padded to a multiple of this many tokens (speed, for CUDA graphs; see
            `compilation`).
    """

    chunk_size: int | None = None
    max_detections: int = 100
    merged_limit: int | None = 100
    aggregation: str = "mean"
    threshold: Threshold = 0.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.6
    class_agnostic_nms: bool = False
    features: bool = False
    separator: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    negative_names: Sequence[str] | None = None
    size: Mapping[str, int] | None = None
    scales: Sequence[int] = ()
    max_size: int | None = None
    flip: bool = False
    vote_threshold: float = 0.6
    tile: int | None = None
    overlap: float = 0.2
    allow_padding: bool = False
    batch_size: int = 1
    pairs: int | None = None
    workers: int = 2
    caption_multiple: int = 1

    SPEED = ("batch_size", "pairs", "workers", "caption_multiple")

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "caption_multiple", "pairs", "max_size", "tile"):
            if getattr(self, name) is not None or name not in ("pairs", "max_size", "tile"):
                least = SMALLEST_TILE if name == "tile" else 1
                setattr(self, name, check_number(name, getattr(self, name), least=least, whole=True))
        vars(self).update(read_options({name: getattr(self, name) for name in DETECTION_OPTIONS}))
        if self.merged_limit is not None:
            check_number("merged_limit", self.merged_limit, least=0, whole=True)
        check_number("vote_threshold", self.vote_threshold)
        if not 0 <= check_number("overlap", self.overlap) <= 0.9:
            raise ValueError(f"overlap={self.overlap} must be a share of a tile from 0 to 0.9, such as 0.2.")
        if not isinstance(self.size, Mapping | None) or not isinstance(self.scales, Sequence):
            got = f"size={quote(self.size)}, scales={quote(self.scales)}"
            raise TypeError(f'{got}: size is a dictionary, such as {{"shortest_edge": 800}}, scales a list of sides.')
        for name, sides in (("scales", self.scales), ("size", (self.size or {}).values())):
            for side in sides:
                check_number(name, side, least=1, whole=True)
        if (most := max(self.scales, default=0)) > LARGEST_SCALE:
            raise ValueError(f"scales={most}: no memory holds such images, {LARGEST_SCALE:,} is the largest scale.")


@dataclass(frozen=True)
class Request:
    """One image and what to look for in it.

    Attributes:
        image: a path, a URL, encoded bytes, a PIL image, an array, a tensor, or an object with `load()` that gives a
            PIL image (`data.records.ImageRef`).
        text, phrases, spans: as `GlipProcessor` takes them without images: class names, a caption, or a list of
            captions with phrases or spans for each. None to look for nothing.
        keep_image: give the result the image, too.
    """

    image: Any
    text: Any = None
    phrases: Any = None
    spans: Any = None
    keep_image: bool = False


@dataclass
class Grounded:
    """What became of a request.

    Attributes:
        index: position of the request.
        width, height: of the upright image, in pixels.
        detections: one entry per query: one for class names or a caption, and one for each of a list of captions.
        error: why the image could not be read, where broken images are skipped.
        image: decoded and upright, if the request asks to keep it.
    """

    index: int
    width: int = 0
    height: int = 0
    detections: list[Detections] = field(default_factory=list)
    error: Exception | None = None
    image: Image.Image | None = None


@dataclass
class Caption:
    """A caption with its text features, on the model's device, without padding, which costs memory and time.

    Attributes:
        input_ids: [T]; positive_map: [C, T] bool; label_ids: [C].
        query: which query of its text it belongs to.
        several_prompts: whether that query has several prompts for a class name.
        hidden: [T, E]; None where it is encoded whenever it is used.
    """

    input_ids: Tensor
    positive_map: Tensor
    label_ids: Tensor
    query: int
    several_prompts: bool = False
    hidden: Tensor | None = None


class Captions(list[Caption]):
    """The captions of a text, and `text_labels`: the class names or phrases of each of its queries."""

    def __init__(self, captions: Iterable[Caption] = (), text_labels: Sequence[list[str]] = ()) -> None:
        super().__init__(captions)
        self.text_labels = text_labels


def pad_tokens(captions: Sequence[Caption], multiple: int = 1) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of captions, padded to the longest, and that to a multiple."""
    ids = [caption.input_ids for caption in captions]
    longest = max(map(len, ids))
    longest += -longest % multiple
    return {"input_ids": _stack(ids, longest), "attention_mask": _stack([torch.ones_like(own) for own in ids], longest)}


def pad_captions(
    captions: Sequence[Caption], multiple: int = 1, encode: Callable[[Caption], Tensor] | None = None
) -> dict[str, Any]:
    """The model's inputs for captions, padded like `pad_tokens`; `encode` gives text features that are None."""
    tokens = pad_tokens(captions, multiple)
    longest = tokens["input_ids"].shape[1]
    hidden = [encode(caption) if caption.hidden is None else caption.hidden for caption in captions]
    return {
        "text_features": GlipTextFeatures(last_hidden_state=_stack(hidden, longest), **tokens),
        "positive_map": _stack([caption.positive_map for caption in captions], 0, longest),
        "label_ids": _stack([caption.label_ids for caption in captions], fill=-1),
    }


def _stack(values: list[Tensor], *least: int, fill: int = 0) -> Tensor:
    """Values in one tensor, padded at the end to the largest size (and at least `least`) of every dimension."""
    shapes = [value.shape for value in values] + [least]
    sizes = [max(lengths) for lengths in zip_longest(*shapes, fillvalue=0)]
    if len(values) == 1 and list(values[0].shape) == sizes:
        return values[0][None]
    stacked = values[0].new_full((len(values), *sizes), fill)
    for row, value in zip(stacked, values):
        row[tuple(slice(size) for size in value.shape)] = value
    return stacked


# -- views -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """How an image is shown to the model: `short_side` in pixels (None: the processor's size), mirrored or not, and
    which region of it (None: the whole)."""

    short_side: int | None = None
    flip: bool = False
    region: Region | None = None


def make_views(scales: Sequence[int] = (), flip: bool = False) -> list[View]:
    """Every scale once, plain and (with `flip`) mirrored; no scale stands for the processor's own."""
    sides: list[int | None] = list(dict.fromkeys(scales)) or [None]
    return [View(side, mirrored) for side in sides for mirrored in ((False, True) if flip else (False,))]


def unflip(found: Detections, width: int) -> Detections:
    """Detections of a mirrored image of this width, in the image itself."""
    x1, y1, x2, y2 = found["boxes"].unbind(-1)
    return {**found, "boxes": torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=-1)}


def vote(found: Detections, threshold: float) -> Detections:
    """Box voting (arXiv 1505.01749): overlapping detections of a label become one.

    By descending score, a detection gathers all that are left of its label with IoU >= `threshold`; the box is their
    mean weighted by score, the score that of the best.
    """
    order = found["scores"].argsort(descending=True, stable=True)
    scores, boxes, labels = (found[name][order] for name in ("scores", "boxes", "labels"))
    rows, voted = [], [boxes[:0]]
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        near = box_iou(boxes[own], boxes[own]) >= threshold
        left = torch.ones(len(own), dtype=torch.bool)
        for best in range(len(own)):
            if left[best]:
                group = near[best] & left
                group[best] = True
                left &= ~group
                weights = scores[own[group], None]
                rows.append(int(own[best]))
                voted.append((boxes[own[group]] * weights).sum(0, keepdim=True) / weights.sum())
    return {**{name: value[order][rows] for name, value in found.items()}, "boxes": torch.cat(voted)}


@dataclass
class _Shown:
    """One view of one image, ready for the network: what the image processor gives for it alone.

    `views` counts the views of the image, whose upright `size` is (width, height) in pixels.
    """

    index: int
    request: Request
    view: View
    views: int
    size: tuple[int, int] = (0, 0)
    pixels: dict[str, Tensor] = field(default_factory=dict)
    image: Image.Image | None = None
    error: Exception | None = None


# -- memory ----------------------------------------------------------------------------------------


class PairBudget:
    """How many (image, caption) pairs go through the head at a time: as many as fit, found while running.

    The head's memory grows with pairs x locations of the pyramid. The first pass holds one pair; what it took says how
    many fit, and the number doubles until that is reached. Out of memory halves it, for good. On a CPU the automatic
    number is 1: the head is bound by arithmetic there (docs/vocabularies.md has it measured).

    Args:
        device: of the model.
        fixed: pairs per pass; None to find out.
        probe: gives (bytes free, peak bytes since the last call, bytes in use); default of a CUDA device.
    """

    def __init__(
        self,
        device: torch.device,
        fixed: int | None = None,
        probe: Callable[[], tuple[int, int, int]] | None = None,
    ) -> None:
        if fixed is not None and fixed < 1:
            raise ValueError(f"pairs={fixed}: at least one pair has to run at a time.")
        self.fixed = fixed
        if probe is None and device.type == "cuda":
            probe = partial(_cuda_memory, device)
        self._probe = probe if fixed is None else None
        self._bytes = 0.0  # per pair and location, the most seen
        self._tried = 0  # the largest number of pair-locations that ran
        self._ceiling = NO_LIMIT  # pair-locations that may run, after running out of memory

    def size(self, locations: int) -> int:
        """Pairs for the next pass, over images with so many locations."""
        limit = max(self._ceiling // locations, 1)
        if self.fixed is not None:
            return min(self.fixed, limit)
        if self._probe is None or not self._bytes:
            return 1
        free, _, _ = self._probe()
        fitting = int(MEMORY_SHARE * free / (self._bytes * locations))
        grown = 2 * max(self._tried // locations, 1)
        return max(min(fitting, grown, limit), 1)

    @contextmanager
    def measured(self, pairs: int, locations: int) -> Iterator[None]:
        """Around a pass of `pairs` pairs."""
        before = self._probe()[2] if self._probe else 0
        yield
        if self._probe:
            _, peak, _ = self._probe()
            self._bytes = max(self._bytes, (peak - before) / (pairs * locations), 1e-9)
        self._tried = max(self._tried, pairs * locations)

    def halve(self, pairs: int, locations: int) -> int:
        """Pairs to try after `pairs` did not fit; 0 if that was one already."""
        if pairs > 1:
            self._ceiling = min(self._ceiling, pairs // 2 * locations)
        return pairs // 2


def _cuda_memory(device: torch.device) -> tuple[int, int, int]:
    in_use = torch.cuda.memory_allocated(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    # What the allocator holds and does not use is free to us as well.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - in_use
    return free, peak, in_use


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, says that its memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def prefetch(items: Iterable[Any]) -> Iterator[Any]:
    """The same items and errors in the same order; a thread makes the next item while one is in use."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix=READER_THREAD) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[tuple[Any, Future]]:
    """Each item with the future of `function(item)`, in order; the pool works on so many ahead of the one in use."""
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()


def open_upright(image: Any) -> Image.Image:
    """The image of a request as a decoded PIL image, turned upright by its EXIF orientation; a ValueError or OSError if
    it cannot be read. Other errors are not the image's, memory that ran out among them."""
    if isinstance(image, str | os.PathLike):
        image = load_image(image)
    elif isinstance(image, bytes):
        image = open_image(io.BytesIO(image))
    elif not isinstance(image, Image.Image) and hasattr(image, "load"):
        image = image.load()
    if not isinstance(image, Image.Image):
        if not hasattr(image, "ndim"):
            raise ValueError(f"{quote(image)} is not an image: give a path, a URL, bytes, a PIL image or an array.")
        return Image.fromarray(read_pixels(image).permute(1, 2, 0).numpy())
    return upright(decode_image(image))


def _weights_state(model: Any) -> list[Any]:
    """What changes with a model's weights, their device or dtype, and its adapters; nothing of an exported model."""
    if not isinstance(model, nn.Module):
        return []
    modules = list(model.modules())  # once: it is asked for every image
    weights = (p for module in modules for p in module._parameters.values() if p is not None)
    named = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    # Looked for where it may be: `hasattr` of a module takes long to say no.
    layers = (own for one in modules if named[0] in (own := vars(one)) or hasattr(type(one), named[0]))
    return [
        [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights],
        [repr([layer.get(name) for name in named]) for layer in layers],
    ]


# -- the engine ------------------------------------------------------------------------------------


class GroundingEngine:
    """A model and its processor, asked about many images.

    Args:
        model: a `GlipForGrounding`, or what has its `get_image_features`, `get_text_features`, `forward`, `device` and
            `dtype` (a compiled or an exported model). Set to evaluation mode.
        processor: a `GlipProcessor`.
        options: see `GroundingOptions`.
        max_kept_captions: captions whose text features are kept between calls, the least recently used text out first;
            what a longer text has beyond that is encoded again for every batch. None keeps all of the last text alone.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        options: GroundingOptions | None = None,
        max_kept_captions: int | None = None,
    ) -> None:
        self.model, self.processor, self.options = model.eval(), processor, options or GroundingOptions()
        self.views = make_views(self.options.scales, self.options.flip)
        self.budget = PairBudget(self.device, self.options.pairs)
        self.max_kept_captions = max_kept_captions
        self._texts: OrderedDict[str, Captions] = OrderedDict()
        self._text_state: list[Any] = []

    # -- text --------------------------------------------------------------------------------------

    def tokenize(self, text: Any, phrases: Any = None, spans: Any = None) -> Any:
        """The captions of a text as tokens, arguments as for `encode`; a ValueError for what no caption can hold."""
        given = {name: value for name, value in (("phrases", phrases), ("spans", spans)) if value is not None}
        inputs = self.processor(text=text, return_tensors="pt", **given, **self._prompt())
        if (known := self.table_names) and any(
            [name.lower() for name in names] != [name.lower() for name in known] for names in inputs.text_labels
        ):
            warnings.warn(
                f"this model's prompt table belongs to a caption of {listed(known)}, in this order: for other "
                "text its scores mean little.",
                stacklevel=2,
            )
        return inputs

    @property
    def device(self) -> torch.device:
        """Where the model computes, also with weights that Accelerate holds on the disk."""
        if (device := self.model.device).type != "meta":
            return device
        hooks = (getattr(module, "_hf_hook", None) for module in self.model.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(own) for own in devices if own is not None), device)

    @property
    def table_names(self) -> list[str] | None:
        """The class names of the caption that the model's prompt table belongs to; None without one."""
        table = getattr(getattr(self.model, "base_model", None), "prompt_table", None)
        return None if table is None else self.processor.class_names

    def _prompt(self) -> dict[str, Any]:
        given = {name: value for name in PROMPT_OPTIONS if (value := getattr(self.options, name)) is not None}
        limit = getattr(getattr(self.model, "config", self.model), "max_text_length", MAX_TEXT_LENGTH)
        return {**given, "max_length": limit} if limit < MAX_TEXT_LENGTH else given

    def encode(self, text: Any, phrases: Any = None, spans: Any = None) -> Captions:
        """The captions of a text with their features, which are kept while weights and adapters stay as they are.

        What is written to the `data` of a parameter, PyTorch does not count: make a new engine after that.

        Args:
            text, phrases, spans: as `GlipProcessor` takes them without images.
        """
        asked = [text, phrases, spans, self._prompt()]  # the order of names in a dictionary counts
        key = json.dumps(asked, default=lambda value: value.tolist() if hasattr(value, "tolist") else repr(value))
        state = _weights_state(self.model)
        if state != self._text_state:
            self._texts.clear()
            self._text_state = state
        captions = self._texts.pop(key, None)
        if captions is None:
            if self.max_kept_captions is None:
                self._texts.clear()  # not two at a time
            captions = self._encode(self.tokenize(text, phrases, spans))
        self._texts[key] = captions
        while len(self._texts) > 1 and sum(map(len, self._texts.values())) > (self.max_kept_captions or 0):
            self._texts.popitem(last=False)
        return captions

    @torch.inference_mode()
    def _encode(self, inputs: Any) -> Captions:
        inputs = copy.copy(inputs).to(self.device)  # `to` would move the caller's
        count = len(inputs["input_ids"])
        queries = inputs["image_indices"].tolist() if "image_indices" in inputs else range(count)
        captions, of_queries = Captions(text_labels=inputs.text_labels), {}
        for row, (query, mask) in enumerate(zip(queries, inputs["attention_mask"].bool())):
            classes = inputs["label_ids"][row] >= 0
            positive_map = inputs["positive_map"][row][classes][:, mask]
            made = Caption(inputs["input_ids"][row, mask], positive_map, inputs["label_ids"][row, classes], query)
            captions.append(made)
            of_queries.setdefault(query, []).append(made)
        for own in of_queries.values():
            repeats = has_repeats(torch.cat([caption.label_ids for caption in own]))
            for caption in own:
                caption.several_prompts = repeats
        kept = captions if self.max_kept_captions is None else captions[: self.max_kept_captions]
        lengths, states = [len(caption.input_ids) for caption in kept], None
        per_pass = 1 if self.device.type == "cpu" else CAPTIONS_PER_PASS
        for start in range(0, len(kept), per_pass):
            rows = kept[start : start + per_pass]
            hidden = self.model.get_text_features(**pad_tokens(rows), return_dict=True).last_hidden_state
            if states is None:  # one block for all: pieces between what a pass needs would fragment the memory
                states = hidden.new_empty(sum(lengths), hidden.shape[-1]).split(lengths)
            for caption, own, state in zip(rows, hidden, states[start:]):
                caption.hidden = state.copy_(own[: len(state)])
        return captions

    # -- images ------------------------------------------------------------------------------------

    def ground(
        self,
        requests: Iterable[Request],
        skip_broken: bool = False,
        in_order: bool = False,
        skip_failed: bool = False,
    ) -> Iterator[Grounded]:
        """The result of each request, as soon as it is there: in order of the requests where all images share a batch
        (`batch_size=1`, or `allow_padding`), else batches come as they fill.

        Args:
            skip_broken: give an image that cannot be read a result with its `error`; else the error is raised.
            in_order: in order of the requests, whatever the batches; a result waits for at most 4 batches.
            skip_failed: the same as `skip_broken` for an image that the model fails at, with scores that are NaN for
                example; the images of its batch are tried one by one.

        Raises:
            ValueError, FileNotFoundError: naming the image that cannot be read.
        """
        results = self._ground(requests, skip_broken, skip_failed)
        if not in_order:
            return results

        def ordered() -> Iterator[Grounded]:
            early: dict[int, Grounded] = {}
            with closing(results):
                for turn in count():
                    while turn not in early:
                        if (result := next(results, None)) is None:
                            return
                        early[result.index] = result
                    yield early.pop(turn)

        return ordered()

    def _ground(self, requests: Iterable[Request], skip_broken: bool, skip_failed: bool) -> Iterator[Grounded]:
        # Of each image whose views are not all done: its captions, its result, and the detections of each view.
        progress: dict[int, tuple[Captions, Grounded, dict[View, list[Detections]]]] = {}
        with closing(self._batches(requests, skip_broken)) as batches:  # whatever happens, no thread outlives this
            for batch in batches:
                for shown in batch:
                    if shown.index not in progress:
                        asked, captions = shown.request, Captions()
                        if asked.text is not None and shown.error is None:
                            captions = self.encode(asked.text, asked.phrases, asked.spans)
                        progress[shown.index] = captions, Grounded(shown.index), {}
                found = self._detect_views(batch, [progress[shown.index][0] for shown in batch], skip_failed)
                for shown, of_view in zip(batch, found):
                    captions, result, views = progress[shown.index]
                    views[shown.view] = of_view
                    if shown.error is None:
                        (result.width, result.height), result.image = shown.size, shown.image
                    else:
                        result.error = shown.error
                    if len(views) == shown.views:
                        if result.error is None:
                            result.detections = self.merge(captions, views, shown.size)
                        del progress[shown.index]
                        yield result

    def ground_inputs(self, inputs: Any) -> list[Detections]:
        """The detections of each image of what the processor made of images and their texts."""
        captions = self._encode(inputs)
        own = [
            Captions((replace(caption, query=0) for caption in captions if caption.query == query), [names])
            for query, names in enumerate(captions.text_labels)
        ]
        return [self.merge(its, {View(): found})[0] for its, found in zip(own, self.detect(inputs, own))]

    def _detect_views(
        self, batch: list[_Shown], captions: Sequence[Captions], skip_failed: bool
    ) -> list[list[Detections]]:
        """Detections of every view of a batch with each of its captions; see `ground` for `skip_failed`."""
        asked = [row for row, its in enumerate(captions) if len(its) and batch[row].error is None]
        if not asked:
            return [[] for _ in batch]
        views = [batch[row].pixels for row in asked]
        take = dict.__getitem__ if skip_failed and len(batch) > 1 else dict.pop  # to try the images one by one
        pixels = {name: _stack([take(view, name)[0] for view in views]) for name in ("pixel_values", "pixel_mask")}
        pixels["original_sizes"] = torch.cat([view["original_sizes"] for view in views])
        try:
            found = dict(zip(asked, self.detect(pixels, [captions[row] for row in asked])))
        except (OSError, ValueError) as error:
            if not skip_failed:
                raise
            if len(batch) > 1:
                return [self._detect_views([shown], [its], True)[0] for shown, its in zip(batch, captions)]
            found, batch[0].error = {}, error
        for view in views:
            view.clear()
        return [found.get(row, []) for row in range(len(batch))]

    def _show(self, index: int, request: Request, view: View, views: int = 1, opened: Any = None) -> _Shown:
        """Read (unless it is decoded already) and preprocess one view of an image; runs in a worker thread. Errors name
        the image: a ValueError or FileNotFoundError if it cannot be read, a RuntimeError for what would be wrong with
        any."""
        image = request.image
        try:
            if isinstance(opened, Exception):
                raise opened
            shown = whole = open_upright(image) if opened is None else opened
            if view.region is not None:
                shown = shown.crop(view.region)
            if view.flip:
                shown = ImageOps.mirror(shown)
            made = self.processor.image_processor([shown], return_tensors="pt", **self._size(view))
        except MemoryError:
            raise
        except Exception as error:
            unnamed = isinstance(image, bytes | list | Image.Image) or hasattr(image, "shape")
            name = "" if unnamed else str(image)
            if name in str(error) and isinstance(error, ValueError | FileNotFoundError):
                raise
            kind = ValueError if isinstance(error, ValueError | OSError) else RuntimeError  # not the image's fault
            raise kind(f"{name}: {error}" if name else str(error)) from error
        if self.device.type == "cuda":  # pinned memory, which a GPU copies from asynchronously
            made |= {name: made[name].pin_memory() for name in ("pixel_values", "pixel_mask")}
        return _Shown(index, request, view, views, whole.size, dict(made), whole if request.keep_image else None)

    def _size(self, view: View) -> dict[str, Mapping[str, int]]:
        """The image processor's option for a view's size."""
        if view.short_side is None:
            return {} if self.options.size is None else {"size": self.options.size}
        default = dict(self.options.size or self.processor.image_processor.size)
        longest = self.options.max_size or default.get("longest_edge")
        if self.options.max_size is None and longest and default.get("shortest_edge"):
            # The same room for long images at every scale.
            longest = round(longest * max(view.short_side / default["shortest_edge"], 1))
        return {"size": {"shortest_edge": view.short_side, "longest_edge": longest}}

    def _jobs(self, requests: Iterable[Request], pool: ThreadPoolExecutor) -> Iterator[tuple]:
        """Every view of every image, as arguments of `_show`. One to be shown in tiles is decoded once for all, by the
        threads: as many images ahead as there are."""

        def opened(image: Any) -> Any:
            try:
                return open_upright(image)
            except Exception as error:  # raised again, with the name of the image, where views are made
                return error

        def checked(request: Any) -> Request:
            if not hasattr(request, "image"):
                raise TypeError(f"{quote(request)} is not a Request: give Request(image, class_names) for each image.")
            return request

        requests = map(checked, requests)
        if self.options.tile is None:
            for index, request in enumerate(requests):
                for view in self.views:
                    yield index, request, view, len(self.views), None
            return
        with closing(map_ahead(pool, lambda request: opened(request.image), requests, self.options.workers)) as decoded:
            for index, (request, future) in enumerate(decoded):
                image, tiles = future.result(), []
                if not isinstance(image, Exception):
                    tiles = make_tiles(*image.size, self.options.tile, self.options.overlap)
                views = [replace(view, region=region) for region in (None, *tiles) for view in self.views]
                for view in views:
                    yield index, request, view, len(views), image

    def _load(self, requests: Iterable[Request], skip_broken: bool = False) -> Iterator[_Shown]:
        """Views of all images in order, read and resized by threads while the model works on earlier ones."""
        ahead = self.options.workers + self.options.batch_size
        with (
            ThreadPoolExecutor(self.options.workers, thread_name_prefix=READER_THREAD) as pool,
            closing(self._jobs(requests, pool)) as jobs,
            closing(map_ahead(pool, lambda job: self._show(*job), jobs, ahead)) as coming,
        ):
            for job, future in coming:
                try:
                    shown = future.result()
                except (ValueError, OSError) as error:
                    if not skip_broken:
                        raise
                    shown = _Shown(*job[:-1], error=error)
                yield shown

    def _batches(self, requests: Iterable[Request], skip_broken: bool) -> Iterator[list[_Shown]]:
        """Views in groups that may share a pass; every view is in exactly one."""
        size = self.options.batch_size
        groups: dict[Any, tuple[int, list[_Shown]]] = {}  # with the number of the first view; the oldest comes first
        with closing(self._load(requests, skip_broken)) as views:
            for number, shown in enumerate(views):
                alike = self.options.allow_padding or shown.error is not None
                key = None if alike else tuple(shown.pixels["pixel_values"].shape[-2:])
                _, group = groups.setdefault(key, (number, []))
                group.append(shown)
                if len(group) == size:
                    yield groups.pop(key)[1]
                if groups and number - next(iter(groups.values()))[0] >= 4 * size:  # nobody waits for ever
                    yield groups.pop(next(iter(groups)))[1]
            yield from (group for _, group in groups.values())

    # -- (image, caption) pairs --------------------------------------------------------------------

    @torch.inference_mode()
    def detect(self, pixels: Mapping[str, Tensor], captions: Sequence[Captions]) -> list[list[Detections]]:
        """Detections of each image of a batch with each of its captions, after NMS, without `text_labels`.

        Args:
            pixels: what the image processor gives for B images: `pixel_values`, `pixel_mask`, `original_sizes`.
            captions: of each image, from `encode`. A pass holds pairs of as few captions as possible.
        """
        device = self.device
        pinned = device.type == "cuda"
        values, mask = (pixels[name].to(device, non_blocking=pinned) for name in ("pixel_values", "pixel_mask"))
        try:
            features = self.model.get_image_features(values.to(self.model.dtype), mask, return_dict=True)
        except RuntimeError as error:
            if not out_of_memory(error) or len(values) == 1:
                raise
            features = None
        if features is None:
            half = len(values) // 2
            first, second = (
                {name: value[part] for name, value in pixels.items()} for part in (slice(half), slice(half, None))
            )
            return self.detect(first, captions[:half]) + self.detect(second, captions[half:])
        del values
        locations = features.last_hidden_state.shape[1]
        number: dict[int, int] = {}  # of a caption, which several images may share
        for caption in chain(*captions):
            number.setdefault(id(caption), len(number))
        # Captions of like length share a pass; the longest come first, so memory is measured at its worst.
        pairs = sorted(
            ((caption, row) for row, its in enumerate(captions) for caption in its),
            key=lambda pair: (-len(pair[0].input_ids), number[id(pair[0])], pair[1]),
        )
        results: list[Detections] = []
        while len(results) < len(pairs):
            group = pairs[len(results) : len(results) + self.budget.size(locations)]
            try:
                with self.budget.measured(len(group), locations):
                    found = self._forward(features, pixels["original_sizes"], group)
            except RuntimeError as error:
                if not out_of_memory(error) or not self.budget.halve(len(group), locations):
                    raise
                continue
            results += found
        of_pair = {(id(caption), row): found for (caption, row), found in zip(pairs, results)}
        return [[of_pair[id(caption), row] for caption in its] for row, its in enumerate(captions)]

    def _forward(self, features: Any, original_sizes: Tensor, pairs: Sequence[tuple[Caption, int]]) -> list[Detections]:
        """Detections of each pair (caption, row of the features), on the CPU."""

        def encode(caption: Caption) -> Tensor:
            return self.model.get_text_features(**pad_tokens([caption]), return_dict=True).last_hidden_state[0]

        captions, rows = map(list, zip(*pairs))
        options = self.options
        if rows != list(range(len(features.last_hidden_state))):
            features = select(features, torch.tensor(rows, device=features.last_hidden_state.device))
        outputs = self.model(
            image_features=features,
            original_sizes=original_sizes[rows],
            **pad_captions(captions, options.caption_multiple, encode),
            **({"output_hidden_states": [-1]} if options.features else {}),
        )
        late = [self._limits_late(caption.several_prompts) for caption in captions]
        threshold, limit = options.threshold, options.max_detections
        found = post_process_grounding(
            outputs,
            min({None: 0.0, **threshold}.values()) if isinstance(threshold, Mapping) else threshold,
            merge=False,
            max_detections=NO_LIMIT if any(late) else limit,
            **{name: getattr(options, name) for name in _CAPTION_OPTIONS},
        )
        found = [one if waits else merge_detections([one], limit) for one, waits in zip(found, late)]
        return [{name: value.cpu() for name, value in one.items()} for one in found]

    def _limits_late(self, several_prompts: bool) -> bool:
        """Whether captions are merged before their number of detections is limited: what goes afterwards, or belongs to
        another caption, must not take the room of others."""
        return several_prompts or self.options.class_agnostic_nms or isinstance(self.options.threshold, Mapping)

    def merge(
        self, captions: Captions, views: Mapping[View, Sequence[Detections]], size: tuple[int, int] = (0, 0)
    ) -> list[Detections]:
        """Detections of an image for each query of its captions, joined over captions, views and tiles.

        Args:
            views: detections with each caption, per view; see `detect`.
            size: (width, height) of the image in pixels, for mirrored views and tiles.
        """
        options, merged = self.options, []
        limit = NO_LIMIT if options.merged_limit is None else options.merged_limit
        threshold, agnostic = options.vote_threshold, options.class_agnostic_nms
        for query, names in enumerate(captions.text_labels):
            try:
                check_thresholds(options.threshold, names)
            except ValueError as error:  # it may be of another image's names
                warnings.warn(str(error), UserWarning, stacklevel=2)
            several = any(caption.several_prompts for caption in captions if caption.query == query)
            choice = {
                "limit": options.max_detections if self._limits_late(several) else NO_LIMIT,
                "threshold": label_thresholds(options.threshold, names),
                "nms_threshold": options.nms_threshold if several or agnostic else None,
                "class_agnostic": agnostic,
            }
            regions: dict[Region, list[Detections]] = {}
            for view, found in views.items():
                region = view.region or (0, 0, *size)
                own = [one for one, caption in zip(found, captions) if caption.query == query]
                joined = merge_detections(own, **choice)
                joined = unflip(joined, region[2] - region[0]) if view.flip else joined
                regions.setdefault(region, []).append(joined)
            parts = [
                vote(merge_detections(parts, NO_LIMIT), threshold) if len(parts) > 1 else parts[0]
                for parts in regions.values()
            ]
            if len(parts) > 1:
                parts = [merge_tiles(parts, list(regions), size, threshold)]
            several_views = len(views) > 1
            again = options.nms_threshold if agnostic and several_views else None  # what views are joined from differs
            best = merge_detections(parts, limit, nms_threshold=again, class_agnostic=agnostic)
            if several_views:
                del best["locations"]  # each of another view's feature maps
            merged.append({**best, "text_labels": [names[label] for label in best["labels"].tolist()]})
        return merged
