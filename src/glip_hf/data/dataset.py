# Copyright 2026 The glip_hf authors. MIT licence.
"""Sources mixed into one data set, and its records made into training samples.

A sample depends on (seed, epoch, index in the mixture) and nothing else: any number of workers and processes gives the
same samples, and a resumed run continues with those of an uninterrupted one.

Letters: K boxes per image, T tokens of its caption.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..image_processing_pil_glip import clip_and_drop, resize_boxes
from ..prompts_glip import MAX_TEXT_LENGTH, Offsets, Prompt, positive_map
from ..values_glip import quote
from .broken import BrokenImages, OnError, TooManyBrokenImages
from .columns import ALLOWED_DAMAGE
from .records import Record
from .samplers import Key, aspect_groups
from .sampling import DetectionCaptions, NegativeSampling
from .sources import Source, build_source
from .sources.scenes import SceneSource
from .transforms import ImageTransform, flip_boxes, jitter_colors, random_crop

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_MIXING, _CAPTION, _IMAGE = 1, 2, 3  # independent random streams


class Mixture:
    """Sources, one after the other, each repeated.

    Args:
        sources: what to mix.
        copies: how often each source is seen in an epoch (default 1). An integer repeats it; of a fraction, 0.25 say,
            an epoch has that share, drawn anew from (seed, epoch).
        seed: of the run.
    """

    def __init__(self, sources: Sequence[Source], copies: Sequence[float] | None = None, seed: int = 0) -> None:
        self.sources, self.seed = list(sources), seed
        self.copies = [1] * len(self.sources) if copies is None else list(copies)
        if not self.sources or len(self.copies) != len(self.sources) or min(self.copies) <= 0:
            raise ValueError(
                f"A mixture needs sources and a positive number of copies for each, got {len(self.sources)} sources "
                f"and copies={self.copies}."
            )
        self.lengths = [round(len(s) * c) for s, c in zip(self.sources, self.copies, strict=True)]
        for source, copies, length in zip(self.sources, self.copies, self.lengths):
            if not length:
                raise ValueError(
                    f"{source.name}: {copies:.3g} copies of {len(source)} images are none in an epoch: give it a "
                    "larger share (copies or weight), or a longer epoch."
                )
        self.first = np.cumsum([0, *self.lengths])
        self._subsets: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def from_weights(cls, sources: Sequence[Source], weights: Sequence[float], length: int, seed: int = 0) -> "Mixture":
        """A mixture of about `length` samples per epoch, shared out to the sources in proportion to their weights."""
        total = sum(weights)
        copies = [w / total * length / len(s) for s, w in zip(sources, weights, strict=True)]
        return cls(sources, copies, seed)

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, epoch: int, index: int) -> tuple[int, int]:
        """The source, and the sample of it, that an index stands for in an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"The mixture has {len(self)} samples, {index} was asked for.")
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        size = len(self.sources[number])
        copy, row = divmod(index - int(self.first[number]), size)
        if copy < self.lengths[number] // size:
            return number, row
        return number, int(self._subset(epoch, number)[row])

    def _subset(self, epoch: int, number: int) -> np.ndarray:
        """Samples of a source in the fractional copy of this epoch."""
        if (epoch, number) not in self._subsets:
            self._subsets = {key: s for key, s in self._subsets.items() if key[0] >= epoch - 1}
            size = len(self.sources[number])
            rng = np.random.default_rng([self.seed, epoch, number, _MIXING])
            self._subsets[epoch, number] = rng.permutation(size)[: self.lengths[number] % size]
        return self._subsets[epoch, number]

    def groups(self, epoch: int = 0) -> np.ndarray:
        """Aspect group of every index: [samples] int8, for `GroupedBatchSampler`."""
        if not hasattr(self, "_source_groups"):
            self._source_groups = [aspect_groups(source.sizes()) for source in self.sources]
        parts = []
        for number, groups in enumerate(self._source_groups):
            whole, rest = divmod(self.lengths[number], len(groups))
            parts += [groups] * whole
            if rest:
                parts.append(groups[self._subset(epoch, number)])
        return np.concatenate(parts)


@dataclass
class SampleMaker:
    """Turns a record into a sample; shared by stored and streamed data sets.

    Attributes:
        tokenizer: a fast tokenizer of Transformers.
        image_processor: a GLIP image processor (`GlipImageProcessorPil`).
        transform: scale and flip.
        sampling: captions of detection sets.
        max_text_length: tokens a caption may have; it is cut there.
        crop_side: images whose shorter side is longer after `transform` are cut to this, in pixels, at a random place
            (`random_crop`); 0 never. Images with a given caption stay whole: it may name what a crop leaves out.
        color: strength of `jitter_colors`; 0 leaves colours as they are.
        keep_sides: never flip an image whose given caption says left or right.
        greenlight: add `greenlight_map` [T], the tokens that masked language modelling may hide: the class names of
            the image's boxes, or all of a given caption.
    """

    tokenizer: Any
    image_processor: Any
    transform: ImageTransform = field(default_factory=ImageTransform)
    sampling: NegativeSampling = field(default_factory=NegativeSampling)
    max_text_length: int = MAX_TEXT_LENGTH
    greenlight: bool = False
    crop_side: int = 0
    color: float = 0.0
    keep_sides: bool = False

    def __post_init__(self) -> None:
        self._captions: dict[str, DetectionCaptions] = {}

    def prepare(self, source: Any) -> None:
        """Prepare the captions of a source, and fail now if they are impossible.

        Raises:
            ValueError: see `DetectionCaptions`, and for two detection sets of one name.
        """
        if source.captions == "given":
            return
        if source.name in self._captions and self._captions[source.name].names != source.names:
            raise ValueError(f"Two data sets with different classes are called {source.name!r}: rename one.")
        self._captions[source.name] = DetectionCaptions(
            source.names, self.tokenizer, source.captions, self.sampling, source.prompts
        )

    def make(self, record: Record, seed: Sequence[int]) -> dict[str, Any]:
        """The sample of a record: `pixel_values` [3, H, W], `original_size` (height, width), `input_ids` (list of T),
        `boxes` [K, 4] float32 xyxy in pixels of `pixel_values`, `positive_map` [K, T] bool.

        Args:
            seed: integers that determine everything random.

        Raises:
            FileNotFoundError, ValueError: if the image cannot be read; the message names it.
        """
        image = record.image.load()
        rng = np.random.default_rng([*seed, _IMAGE])
        transform = self.transform
        if self.keep_sides and record.caption is not None and _SIDES.search(record.caption):
            transform = replace(transform, flip=0.0)
        pixels, size, flipped = transform(image, self.image_processor, rng)
        boxes, keep = clip_and_drop(record.boxes, *size)
        boxes = resize_boxes(boxes, size, tuple(pixels.shape[1:]))
        for axis in flipped:
            boxes = flip_boxes(boxes, pixels.shape[axis], axis)
        if self.crop_side and record.caption is None:
            pixels, boxes, visible = random_crop(pixels, boxes, self.crop_side, rng)
            keep &= visible
        if self.color:
            pixels = jitter_colors(pixels, self.color, rng)
        prompt, rows = self._prompt(record, keep, np.random.default_rng([*seed, _CAPTION]))
        options = {"truncation": True, "max_length": self.max_text_length, "padding": False, "verbose": False}
        text = self.tokenizer(prompt.caption, split_special_tokens=True, **options)  # as `_compat.tokenize`
        input_ids, offsets = text["input_ids"], text.encodings[0].offsets
        tokens = positive_map(offsets, prompt.spans, exact=prompt.exact, normalize=False)
        kept = np.flatnonzero(rows >= 0)
        sample = {
            "pixel_values": pixels,
            "original_size": size,
            "input_ids": input_ids,
            "boxes": boxes[kept],
            "positive_map": tokens[rows[kept]],
        }
        if self.greenlight:
            spans = [(0, len(prompt.caption))]
            if record.caption is None:
                spans = [span for row in set(rows[kept].tolist()) for span in prompt.spans[row]]
            sample["greenlight_map"] = greenlight_map(offsets, spans)
        return sample

    def _prompt(self, record: Record, keep: np.ndarray, rng: np.random.Generator) -> tuple[Prompt, np.ndarray]:
        """The caption, and per box its row of the prompt, -1 for boxes that are left out."""
        if record.caption is not None:
            prompt = Prompt(record.caption, record.spans, list(range(len(record.spans))))
            return prompt, np.where(keep, np.arange(len(keep)), -1)
        prompt = self._captions[record.source](record.labels[keep], rng)
        row_of = {label: row for row, label in enumerate(prompt.label_ids)}
        rows = np.array([row_of.get(int(label), -1) for label in record.labels], dtype=np.int64)
        return prompt, np.where(keep, rows, -1)


class GroundingDataset(Dataset):
    """Training samples of a mixture, by index or, better, by key `(epoch, index)`.

    A sample is what `SampleMaker.make` gives, and `info`: `source`, `image_id`, `image` (path), `epoch`, `index` and
    `replaced`, the images that could not be read and that this one stands in for.

    Args:
        mixture: a `Mixture`, a source or several.
        maker: how samples are made.
        seed: of the run.
        on_error, max_replaced: what to do about an image that is missing or broken, see `BrokenImages`; it is replaced
            by the next sample of the mixture.
    """

    def __init__(
        self,
        mixture: Mixture | Source | Sequence[Source],
        maker: SampleMaker,
        *,
        seed: int = 0,
        on_error: OnError = "replace",
        max_replaced: int = 100,
    ) -> None:
        if isinstance(mixture, Source):
            mixture = [mixture]
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture, seed=seed)
        self.maker, self.seed, self.broken = maker, seed, BrokenImages(on_error, max_replaced)
        for source in self.mixture.sources:
            maker.prepare(source)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that plain indices stand for (in this process only: persistent workers need keys)."""
        self._epoch = epoch

    @property
    def num_replaced(self) -> int:
        """Images replaced so far."""
        return self.broken.count

    def groups(self, epoch: int = 0) -> np.ndarray:
        """See `Mixture.groups`."""
        return self.mixture.groups(epoch)

    def record(self, key: int | Key) -> Record:
        """The record behind a key."""
        epoch, index = self._key(key)
        number, row = self.mixture.locate(epoch, index)
        return self.mixture.sources[number][row]

    def _key(self, key: int | Key) -> Key:
        return (int(key[0]), int(key[1])) if isinstance(key, tuple | list) else (self._epoch, int(key))

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        epoch, index = self._key(key)
        self.mixture.locate(epoch, index)  # an IndexError ends a loop over the data set
        failed: list[str] = []
        for step in range(len(self)):
            position = (index + step) % len(self)
            number, row = self.mixture.locate(epoch, position)
            source = self.mixture.sources[number]
            try:
                record = source[row]
                sample = self.maker.make(record, (self.seed, epoch, position))
            except (OSError, ValueError) as error:
                failed.append(f"{source.name}, sample {row}: {error}")
                self.broken.report(failed[-1], error)
                continue
            origin = {"source": record.source, "image_id": record.image_id, "image": str(record.image)}
            return sample | {"info": origin | {"epoch": epoch, "index": position, "replaced": failed}}
        raise TooManyBrokenImages("No image of the whole mixture could be read.")


def build_mixture(
    specs: Sequence[str | Mapping[str, Any]],
    data_root: Any = None,
    cache_dir: Any = None,
    seed: int = 0,
    length: int | None = None,
    allow_damage: float = ALLOWED_DAMAGE,
) -> Mixture:
    """A mixture from a recipe's list: each entry is what `build_source` takes, and `copies` or `weight`.

    Args:
        length: samples per epoch, needed where entries have a `weight`; then all must have one.
        allow_damage: the share of the annotations of each source that may be lost.

    Raises:
        DamagedData: if more is lost, no box of a source that has some is left, or none has any.
        ValueError: for weights without `length` or not everywhere, and as `build_source`.
    """
    entries = [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in specs]
    weights = [entry.pop("weight", None) for entry in entries]
    copies = [entry.pop("copies", 1) for entry in entries]
    for value in (value for value in [*copies, *weights] if value is not None):
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"copies and weight of a data set must be positive numbers, got {quote(value)}.")
    weighted = any(weight is not None for weight in weights)
    if weighted and (None in weights or length is None):
        raise ValueError(f"Give every data set a weight, and the length of an epoch; got {weights}, {length}.")
    sources = [build_source(entry, data_root, cache_dir) for entry in entries]
    for source in sources:
        # Images without any box may be mixed in as negatives.
        none = not any(other.tally.listed or isinstance(other, SceneSource) for other in sources)
        source.require_boxes(allow_damage, needed=none)
    if weighted:
        return Mixture.from_weights(sources, weights, length, seed)
    return Mixture(sources, copies, seed)


def greenlight_map(offsets: Offsets, spans: Iterable[Sequence[int]], num_tokens: int | None = None) -> np.ndarray:
    """Tokens that masked language modelling may hide: [T] float32, 1 there and 0 elsewhere.

    A span of three elements is a stop marker: the whole vector is -1 (this caption takes no part).
    """
    spans = list(spans)
    if any(len(span) == 3 for span in spans):
        return np.full(len(offsets) if num_tokens is None else num_tokens, -1, dtype=np.float32)
    return positive_map(offsets, [spans], num_tokens, normalize=False)[0].astype(np.float32)
