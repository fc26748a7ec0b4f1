# Copyright 2026 The glip_hf authors. MIT licence.
"""Data sets as a run learns from them: sources, mixture, samples, batches of like aspect ratio."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data import (
    GroundingCollator,
    GroundingDataset,
    GroupedBatchSampler,
    ImageTransform,
    NegativeSampling,
    SampleMaker,
    build_mixture,
)
from ..processing_glip import GlipProcessor
from .batches import per_process
from .recipe import Recipe


def build_dataset(recipe: Recipe, processor: GlipProcessor) -> GroundingDataset:
    """The recipe's sources as one data set of training samples.

    Raises:
        ValueError: for a source that cannot be read as described; names it.
    """
    data = recipe.data
    maker = SampleMaker(
        processor.tokenizer,
        processor.image_processor,
        ImageTransform(tuple(data.short_sides), data.long_side, data.flip),
        NegativeSampling(num_negatives=data.negatives),
        greenlight=recipe.model.config.get("mlm_loss_weight", 0) > 0,
    )
    mixture = build_mixture(data.sources, data.root, data.cache_dir, recipe.run.seed)
    on_error = {"skip": "replace", "fail": "raise"}[data.on_broken]
    return GroundingDataset(mixture, maker, seed=recipe.run.seed, on_error=on_error, max_replaced=data.max_broken)


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


def source_batches(recipe: Recipe, processor: GlipProcessor, rank: int, processes: int) -> SourceBatches:
    """Batches of the recipe's sources for one process."""
    dataset = build_dataset(recipe, processor)
    return SourceBatches(dataset, recipe, processor.tokenizer.pad_token_id, rank, processes)


__all__ = ["SourceBatches", "build_dataset", "source_batches"]
