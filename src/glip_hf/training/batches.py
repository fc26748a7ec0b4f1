# Copyright 2026 The glip_hf authors. MIT licence.
"""Micro-batches of a run as a function of (seed, number): the same after a resume, for any number of workers.

Every source, generated scenes included, goes the same way: records -> samples -> batches. Micro-batch m of a run holds
G samples over all processes, of which process r of P takes the r-th of P equal parts: one process with G samples sees
what P processes see together.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from ..configuration_glip import GlipConfig
from ..data import (
    GroundingCollator,
    GroundingDataset,
    GroupedBatchSampler,
    HubStream,
    ImageTransform,
    Mixture,
    NegativeSampling,
    SampleMaker,
    SequentialBatchSampler,
    StreamingBatches,
    build_mixture,
)
from ..data.loading import read_batches
from ..data.sources import NOT_READ, check_flags, require_images
from ..data.sources.scenes import SceneSource
from ..processing_glip import GlipProcessor
from .recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)

ON_ERROR = {"skip": "replace", "fail": "raise"}
"""`data.on_broken` of a recipe in the terms of `BrokenImages`."""


@dataclass
class Batches:
    """What the loop trains on: this process's micro-batches.

    Attributes:
        dataset: sample by key `(epoch, index)`, depending on nothing else; or a stream, which makes its own batches.
        sampler: lists of keys (`GroupedBatchSampler`, `SequentialBatchSampler`); None for a stream.
        collate: samples to keyword arguments of `GlipForGrounding.forward` (tensors on the CPU, `labels` a list of
            dicts), and `sample_ids`, a list that names the samples.
        workers: loader processes.
    """

    dataset: Dataset
    sampler: GroupedBatchSampler | SequentialBatchSampler | None = None
    collate: Callable[[list[Any]], dict[str, Any]] | None = None
    workers: int = 0

    def steps_per_epoch(self) -> int:
        """Micro-batches of one pass over the data, the same on every process; a RecipeError for a stream."""
        if self.sampler is None:
            raise RecipeError("a streamed source has no known length: set schedule.max_steps.")
        return len(self.sampler)

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches from number `start` of the run on, without end; close it to end its workers."""
        options = {
            "num_workers": self.workers,
            # Its own generator: a loader otherwise draws its workers' seed from the global one, which would shift
            # every later dropout of a resumed run.
            "generator": torch.Generator().manual_seed(start),
            "pin_memory": torch.cuda.is_available(),
        }
        if self.sampler is None:
            self.dataset.skip_batches = start
            return self.dataset.loader(**options)
        sampler = copy.copy(self.sampler)  # so that a second call begins at its own `start`
        sampler.advance(start)
        options |= {"batch_sampler": sampler, "collate_fn": self.collate}
        return read_batches(self.dataset, persistent_workers=self.workers > 0, **options)


def per_process(batch_size: int, accumulation: int, processes: int) -> int:
    """Samples of a process's micro-batch; a RecipeError if `batch_size` cannot be divided."""
    if batch_size % (accumulation * processes):
        raise RecipeError(
            f"data.batch_size={batch_size} is not divisible by {processes} processes x "
            f"run.gradient_accumulation={accumulation}: change one of them."
        )
    return batch_size // (accumulation * processes)


class NamedCollator(GroundingCollator):
    """A collator whose batches have `sample_ids`: source, image id and file of each sample."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = [f"{i['source']}/{i['image_id']} ({i['image']})" for i in (sample["info"] for sample in samples)]
        return super().__call__(samples) | {"sample_ids": names}


def sample_maker(recipe: Recipe, processor: GlipProcessor, config: GlipConfig) -> SampleMaker:
    """How a run makes its samples; `config` is that of the model it trains."""
    data, length = recipe.data, config.max_text_length
    transform = ImageTransform(tuple(data.short_sides), data.long_side, data.flip, data.vertical_flip)
    if not data.sources:  # generated scenes keep their size, and their captions say what is left and right
        transform = ImageTransform((SceneSource().config.resolution,), flip=0.0)
    return SampleMaker(
        processor.tokenizer,
        processor.image_processor,
        transform,
        NegativeSampling(num_negatives=data.negatives, max_tokens=length - 2),
        length,
        greenlight=config.mlm_loss_weight > 0,
        crop_side=data.crop_side,
        color=data.color,
    )


def recipe_sources(recipe: Recipe) -> Mixture | HubStream:
    """The recipe's data before any model is needed; an endless stream of scenes where it names no sources.

    Raises:
        DamagedData: see `build_mixture`; of a stream its first rows decide.
        MissingImages: for all image files of a source that are not there.
        ValueError: for a source that cannot be read as described; names it.
    """
    data, seed = recipe.data, recipe.run.seed
    if not data.sources:
        return Mixture([SceneSource(seed=seed)], seed=seed)
    if data.sources[0].get("streaming"):
        options = {key: value for key, value in data.sources[0].items() if key not in NOT_READ}
        check_flags(options, HubStream)
        stream = HubStream(**options, allow_damage=data.allow_damage)
        stream.check()
        return stream
    epoch = data.epoch_samples or None
    mixture = build_mixture(data.sources, data.root, data.cache_dir, seed, epoch, data.allow_damage)
    require_images(mixture.sources, "data.root or images of the recipe's data.sources")
    return mixture


def build_dataset(
    recipe: Recipe, processor: GlipProcessor, config: GlipConfig, mixture: Mixture | None = None
) -> GroundingDataset:
    """The recipe's sources (`recipe_sources`, if they were built already) as one data set of training samples."""
    data, seed = recipe.data, recipe.run.seed
    mixture = recipe_sources(recipe) if mixture is None else mixture
    maker = sample_maker(recipe, processor, config)
    return GroundingDataset(mixture, maker, seed=seed, on_error=ON_ERROR[data.on_broken], max_replaced=data.max_broken)


def dataset_batches(
    dataset: GroundingDataset, recipe: Recipe, rank: int, processes: int, incomplete: str | None = None
) -> Batches:
    """Batches of a data set in an order drawn from the seed, or one after the other where the recipe names no sources.

    Args:
        incomplete: see `GroupedBatchSampler`; default "wrap" for data sets of fewer than four batches, else "drop".
    """
    data = recipe.data
    size = per_process(data.batch_size, recipe.run.gradient_accumulation, processes)
    if data.sources:
        sampler = GroupedBatchSampler(
            dataset.groups if data.aspect_grouping else len(dataset),
            size,
            seed=recipe.run.seed,
            rank=rank,
            world_size=processes,
            incomplete=incomplete or ("drop" if len(dataset) >= 4 * size * processes else "wrap"),
        )
    else:
        sampler = SequentialBatchSampler(size, rank=rank, world_size=processes, epoch_samples=data.scenes)
    return Batches(dataset, sampler, NamedCollator(dataset.maker.tokenizer.pad_token_id), data.workers)


def recipe_batches(
    recipe: Recipe,
    processor: GlipProcessor,
    config: GlipConfig,
    rank: int,
    processes: int,
    sources: Mixture | HubStream | None = None,
) -> Batches:
    """Batches of the recipe's data for one process.

    For the order of a streamed source see `StreamingBatches`.

    Args:
        config: of the model to train.
        sources: `recipe_sources`, if they were built already.

    Raises:
        RecipeError: if a prompt table is to be trained on more than one caption.
    """
    data = recipe.data
    sources = recipe_sources(recipe) if sources is None else sources
    parts = sources.sources if isinstance(sources, Mixture) else [sources]
    if recipe.tuning.mode == "prompt" and any((one.captions, one.names) != ("all", parts[0].names) for one in parts):
        raise RecipeError(
            "tuning.mode=prompt: a prompt table belongs to one caption of all class names, so that data.sources need "
            "the same classes and captions: all."
        )
    if isinstance(sources, Mixture):
        return dataset_batches(build_dataset(recipe, processor, config, sources), recipe, rank, processes)
    stream = StreamingBatches(
        sources,
        sample_maker(recipe, processor, config),
        NamedCollator(processor.tokenizer.pad_token_id),
        per_process(data.batch_size, recipe.run.gradient_accumulation, processes),
        seed=recipe.run.seed,
        rank=rank,
        world_size=processes,
        on_error=ON_ERROR[data.on_broken],
        max_replaced=data.max_broken,
    )
    workers = min(data.workers, stream.num_shards)
    if workers < data.workers:
        logger.warning(f"data.workers={data.workers}: the stream has shards for only {workers} of them.")
    return Batches(stream, workers=workers)
