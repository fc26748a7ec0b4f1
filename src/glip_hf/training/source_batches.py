# Copyright 2026 The glip_hf authors. MIT licence.
"""Data sets as a run learns from them: sources, mixture, samples, batches of like aspect ratio."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..configuration_glip import GlipConfig
from ..data import (
    GroundingCollator,
    GroundingDataset,
    GroupedBatchSampler,
    HubStream,
    ImageTransform,
    NegativeSampling,
    SampleMaker,
    StreamingBatches,
    build_mixture,
)
from ..processing_glip import GlipProcessor
from .batches import TrainingBatches, outlive_sigterm, per_process
from .recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)

ON_ERROR = {"skip": "replace", "fail": "raise"}
"""`data.on_broken` in the words of the data sets."""


def sample_maker(recipe: Recipe, processor: GlipProcessor, config: GlipConfig) -> SampleMaker:
    """How a run makes its samples; `config` is that of the model it trains."""
    data, length = recipe.data, config.max_text_length
    return SampleMaker(
        processor.tokenizer,
        processor.image_processor,
        ImageTransform(tuple(data.short_sides), data.long_side, data.flip),
        NegativeSampling(num_negatives=data.negatives, max_tokens=length - 2),
        length,
        greenlight=config.mlm_loss_weight > 0,
    )


def build_dataset(recipe: Recipe, processor: GlipProcessor, config: GlipConfig) -> GroundingDataset:
    """The recipe's sources as one data set of training samples.

    Raises:
        ValueError: for a source that cannot be read as described; names it.
    """
    data, seed = recipe.data, recipe.run.seed
    mixture = build_mixture(data.sources, data.root, data.cache_dir, seed, data.epoch_samples or None)
    return GroundingDataset(
        mixture,
        sample_maker(recipe, processor, config),
        seed=seed,
        on_error=ON_ERROR[data.on_broken],
        max_replaced=data.max_broken,
    )


class SourceBatches:
    """`TrainingBatches` of a `GroundingDataset`; see `GroupedBatchSampler` for the order."""

    def __init__(self, dataset: GroundingDataset, recipe: Recipe, pad_token_id: int, rank: int, processes: int) -> None:
        self.dataset, self.workers = dataset, recipe.data.workers
        self.collate = _NamedBatch(GroundingCollator(pad_token_id, with_info=True))
        size = per_process(recipe.data.batch_size, recipe.run.gradient_accumulation, processes)
        self.sampler = GroupedBatchSampler(
            dataset.groups if recipe.data.aspect_grouping else len(dataset),
            size,
            seed=recipe.run.seed,
            rank=rank,
            world_size=processes,
            incomplete="drop" if len(dataset) >= 4 * size * processes else "wrap",
        )

    def steps_per_epoch(self) -> int:
        return len(self.sampler.epoch_batches(0))

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        self.sampler.advance(start)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=self.sampler,
                collate_fn=self.collate,
                num_workers=self.workers,
                worker_init_fn=outlive_sigterm,
                persistent_workers=self.workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(start),
            )
        )


class _NamedBatch:
    """A collator whose batches say `sample_ids` in place of `info`."""

    def __init__(self, collate: GroundingCollator) -> None:
        self.collate = collate

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(samples)
        batch["sample_ids"] = [f"{info['source']}/{info['image_id']} ({info['image']})" for info in batch.pop("info")]
        return batch


class StreamedBatches:
    """`TrainingBatches` of a single streamed source; see `StreamingBatches` for the order."""

    def __init__(self, recipe: Recipe, processor: GlipProcessor, rank: int, processes: int, config: GlipConfig) -> None:
        data = recipe.data
        options = dict(data.sources[0])
        for key in ("format", "streaming", "copies", "weight"):
            options.pop(key, None)
        self.options = {
            "stream": HubStream(**options),
            "maker": sample_maker(recipe, processor, config),
            "collator": _NamedBatch(GroundingCollator(processor.tokenizer.pad_token_id, with_info=True)),
            "batch_size": per_process(data.batch_size, recipe.run.gradient_accumulation, processes),
            "seed": recipe.run.seed,
            "rank": rank,
            "world_size": processes,
            "on_error": ON_ERROR[data.on_broken],
            "max_replaced": data.max_broken,
        }
        self.workers = min(data.workers, StreamingBatches(**self.options).num_shards)
        if self.workers < data.workers:
            logger.warning(f"data.workers={data.workers}: the stream has shards for {self.workers} of them only.")

    def steps_per_epoch(self) -> int:
        raise RecipeError("a streamed source has no known length: set schedule.max_steps.")

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        stream = StreamingBatches(**self.options, skip_batches=start)
        generator = torch.Generator().manual_seed(start)
        return stream.loader(self.workers, generator=generator, worker_init_fn=outlive_sigterm)


def source_batches(
    recipe: Recipe, processor: GlipProcessor, rank: int, processes: int, config: GlipConfig
) -> TrainingBatches:
    """Batches of the recipe's sources for one process; `config` is that of the model to train."""
    if recipe.data.sources[0].get("streaming"):
        return StreamedBatches(recipe, processor, rank, processes, config)
    dataset = build_dataset(recipe, processor, config)
    return SourceBatches(dataset, recipe, processor.tokenizer.pad_token_id, rank, processes)


__all__ = ["ON_ERROR", "SourceBatches", "StreamedBatches", "build_dataset", "sample_maker", "source_batches"]
