# Copyright 2026 The glip_hf authors. MIT licence.
"""How well a model grounds generated scenes: average precision of class names, recall of phrases.

    metrics = evaluate_scenes(model, processor, num_scenes=100)      # quick, for a learning curve
    metrics["ap50"], metrics["recall1"], metrics["unseen_ap50"], metrics["relation_recall1"]

Boxes are xyxy pixels, both corners inside (`boxes_glip`).
Letters: D detections and K true boxes of a query, an (image, class name) pair.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..boxes_glip import box_iou
from ..evaluation.base import greedy_hits
from ..inference import GroundingEngine, GroundingOptions, Request
from .scenes import HELD_OUT, NOVEL_KINDS, SceneConfig, SceneDataset, SceneSample

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
EVALUATED = ("detection", "sentences", "unseen", "relations")
SEED = 20_260


@dataclass
class Query:
    """Detections and true boxes of one class name in one image."""

    name: str
    scores: np.ndarray  # [D], descending
    ious: np.ndarray  # [D, K], of detections with true boxes


def _average_precision(queries: Sequence[Query], threshold: float) -> float:
    """101-point average precision of one category that has a true box."""
    num_true = sum(query.ious.shape[1] for query in queries)
    scores = np.concatenate([query.scores for query in queries])
    hits = np.concatenate([greedy_hits(query.ious, threshold) for query in queries])
    hits = hits[np.argsort(-scores, kind="stable")]
    found = hits.cumsum()
    precision = found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    positions = np.searchsorted(found / num_true, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0)[np.minimum(positions, len(precision))].mean())


def average_precision(queries: Iterable[Query], thresholds: Sequence[float] = IOU_THRESHOLDS) -> float:
    """Mean over IoU thresholds and categories that have a true box, as COCO defines it.

    Equal to `pycocotools` (area "all", 100 detections per image and category), which a test checks.

    Raises:
        ValueError: if no query has a true box.
    """
    categories: dict[str, list[Query]] = {}
    for query in queries:
        categories.setdefault(query.name, []).append(query)
    found = [category for category in categories.values() if any(query.ious.shape[1] for query in category)]
    if not found:
        raise ValueError("There is no true box to find: evaluate more scenes.")
    return float(np.mean([_average_precision(category, threshold) for category in found for threshold in thresholds]))


def ground(
    model: Any, processor: Any, samples: Sequence[SceneSample], score_threshold: float = 0.05, max_detections: int = 100
) -> list[dict[str, Any]]:
    """Detections of one batch of scenes, each with its class names or its caption; labels are rows of the caption.

    Returns:
        one dict per scene, see `inference.Detections`.
    """
    options = GroundingOptions(
        score_threshold=score_threshold,
        max_detections=max_detections,
        merged_limit=max_detections,
        size={"shortest_edge": samples[0].image.shape[0]},  # a scene is shown as large as it is, as in training
        allow_padding=True,
        batch_size=len(samples),
        pairs=len(samples),
        workers=1,
    )
    requests = (
        Request(sample.pil, sample.names)
        if sample.names is not None
        else Request(sample.pil, [sample.caption], spans=[sample.prompt.spans])
        for sample in samples
    )
    return [found.detections[0] for found in GroundingEngine(model, processor, options).ground(requests)]


def _ground_rows(
    model: Any, processor: Any, dataset: SceneDataset, batch_size: int, **options: Any
) -> Iterator[tuple[SceneSample, int, Query]]:
    """Every row (class name or phrase) of every scene as a query."""
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[k] for k in range(start, min(start + batch_size, len(dataset)))]
        for sample, found in zip(samples, ground(model, processor, samples, **options)):
            ious = box_iou(found["boxes"], torch.from_numpy(sample.boxes))
            for row in range(len(sample.rows)):
                of_row = found["labels"] == row
                own_ious = ious[of_row][:, sample.labels == row].numpy()
                yield sample, row, Query(sample.rows[row], found["scores"][of_row].numpy(), own_ious)


def _summary(queries: list[Query], prefix: str = "") -> dict[str, float]:
    pooled = [Query("", query.scores, query.ious) for query in queries]
    return {
        f"{prefix}ap50": average_precision(queries, [0.5]),
        f"{prefix}ap": average_precision(queries),
        f"{prefix}ap50_pooled": average_precision(pooled, [0.5]),
        f"{prefix}ap_pooled": average_precision(pooled),
    }


def evaluate_scenes(
    model: Any,
    processor: Any,
    num_scenes: int = 500,
    seed: int = SEED,
    config: SceneConfig | None = None,
    batch_size: int = 16,
    splits: Sequence[str] = EVALUATED,
) -> dict[str, float]:
    """Metrics on fresh scenes, none of which any training stream can contain (`scenes.SPLITS`).

    Args:
        model: a `GlipForGrounding`; evaluated in evaluation mode.
        processor: its `GlipProcessor`.
        num_scenes: per split; 100 are enough for a learning curve.
        seed: of the evaluation scenes.
        splits: any of detection, sentences, unseen, relations, novel.

    Returns:
        detection: `ap50`, `ap`: COCO's mean over class names, each evaluated where it was listed; `ap50_pooled`,
        `ap_pooled`: all (image, name) pairs as one category, which also counts detections of names that are nowhere,
        and is stable for few scenes.
        sentences: `recall1`, the share of phrases whose best box has an IoU of 0.5.
        unseen: `unseen_...` as detection, over names of `HELD_OUT` pairs alone.
        relations: `relation_recall1`, over phrases that only a relation distinguishes; 0.5 is chance.
        novel: `novel_...` as detection, over names of `NOVEL_KINDS` alone.
    """
    config = config or SceneConfig()
    unknown = set(splits) - {*EVALUATED, "novel"}
    if unknown:
        raise ValueError(f"splits {sorted(unknown)} are unknown: choose from {EVALUATED} and novel.")
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    kept: dict[str, tuple[str, Callable[[str], bool]]] = {  # prefix of the metrics, class names that count
        "detection": ("", lambda name: True),
        "unseen": ("unseen_", lambda name: tuple(name.split(" ")) in HELD_OUT),
        "novel": ("novel_", lambda name: name.split(" ")[-1] in NOVEL_KINDS),
    }
    try:
        for split in splits:
            dataset = SceneDataset(split, num_scenes, seed, config)
            if split in kept:
                prefix, keep = kept[split]
                rows = _ground_rows(model, processor, dataset, batch_size)
                metrics |= _summary([query for *_, query in rows if keep(query.name)], prefix)
                continue
            # Every phrase must have a best box, however low its score: hence the low threshold.
            rows = _ground_rows(model, processor, dataset, batch_size, score_threshold=1e-4, max_detections=10_000)
            hits = [
                (query.ious[:1] >= 0.5).any()
                for sample, row, query in rows
                if split == "sentences" or row == sample.by_relation
            ]
            metrics["recall1" if split == "sentences" else "relation_recall1"] = float(np.mean(hits))
    finally:
        model.train(was_training)
    return metrics
