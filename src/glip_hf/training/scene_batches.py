# Copyright 2026 The glip_hf authors. MIT licence.
"""Generated scenes as training data: the embedded default, which needs no download."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..data.scenes import SceneConfig, SceneDataset, SceneSample
from ..processing_glip import GlipProcessor
from .batches import LoaderBatches, per_process

STREAM_LENGTH = 2**32
"""Scenes of a stream: no run sees one twice."""


def collate_scenes(samples: Sequence[SceneSample], processor: GlipProcessor) -> dict[str, Any]:
    """Keyword arguments of `GlipForGrounding.forward` for these scenes, and `sample_ids`."""
    batch = processor(
        images=[sample.image for sample in samples],
        text=[sample.caption for sample in samples],
        spans=[[list(row) for row in sample.prompt.spans] for sample in samples],
        annotations=[sample.annotation() for sample in samples],
        size={"shortest_edge": min(samples[0].image.shape[:2])},
        return_tensors="pt",
    )
    kept = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "token_type_ids")
    labels = [{"boxes": label["boxes"], "positive_map": label["positive_map"]} for label in batch["labels"]]
    return {
        **{name: batch[name] for name in kept},
        "labels": labels,
        "sample_ids": [f"{sample.split}/{sample.seed}/{sample.index}" for sample in samples],
    }


def scene_batches(
    processor: GlipProcessor,
    batch_size: int,
    scenes: int,
    seed: int,
    accumulation: int,
    rank: int,
    processes: int,
    workers: int,
    config: SceneConfig | None = None,
    split: str = "train",
) -> LoaderBatches:
    """Batches of generated scenes; scene i of the stream is sample i of the run.

    Args:
        batch_size: pictures an optimiser step over all processes; scenes: pictures that count as one epoch.
    """
    group = per_process(batch_size, accumulation, processes) * processes
    order: Callable[[int], Sequence[int]] = partial(_consecutive, group)
    return LoaderBatches(
        SceneDataset(split, STREAM_LENGTH, seed, config),
        order,
        max(scenes // group, 1),
        partial(collate_scenes, processor=processor),
        rank,
        processes,
        workers,
    )


def _consecutive(group: int, number: int) -> range:
    return range(number * group, (number + 1) * group)


__all__ = ["collate_scenes", "scene_batches"]
