# Copyright 2026 The glip_hf authors. MIT licence.
"""LVIS evaluation of boxes on numpy: the standard protocol and Fixed AP (arXiv 2102.01066).

Standard: the 300 best detections per image, over all categories. Fixed: no limit per image, the 10,000 best detections
per category over the whole data set. Both are federated: detections of a category count only on images where it is
annotated or known to be absent (`neg_category_ids`); where it is not annotated exhaustively
(`not_exhaustive_category_ids`) unmatched ones are ignored.

Agrees with the package `lvis` 0.5.3 and with GLIP's own evaluator to rounding (`tests/evaluation/test_eval_lvis.py`).

Letters: D detections, G ground-truth boxes (of one image and category), S ranges of area, H IoU thresholds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.fields import Ids, read_id
from ..data.sources.coco import Annotations, read_annotations
from ..values_glip import quote
from .base import IOU_THRESHOLDS, MISSING, NOTHING, RECALL_POINTS, DetectionEvaluator, average, iou_xywh

AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
FREQUENCIES = ("r", "c", "f")  # rare (1-10 training images), common (11-100), frequent
STANDARD_LIMIT, FIXED_LIMIT = 300, 10_000
PRUNE_FROM = 4_000_000  # detections held before those beyond the limit per category are dropped


class LvisEvaluator(DetectionEvaluator):
    """LVIS v1 (or v0.5) bbox evaluation.

    Args:
        annotations: LVIS file, its content, or what `read_annotations` gave.
        image_ids: evaluate these images alone; default all.
        fixed: Fixed AP; False for the standard protocol.
        max_per_image: detections per image, -1 for all; default -1 (fixed) or 300 (standard).
        max_per_category: detections per category over the data set, -1 for all; default 10,000 (fixed) or -1.
    """

    plus = 0.0  # LVIS results are written without the inclusive pixel, unlike COCO's

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any] | Annotations,
        image_ids: Iterable[int | str] | None = None,
        fixed: bool = True,
        max_per_image: int | None = None,
        max_per_category: int | None = None,
    ) -> None:
        document = read_annotations(annotations)
        super().__init__(document.image_ids, document.category_ids, image_ids)
        self.fixed = fixed
        default = (-1, FIXED_LIMIT) if fixed else (STANDARD_LIMIT, -1)
        self.max_per_image = default[0] if max_per_image is None else max_per_image
        self.max_per_category = default[1] if max_per_category is None else max_per_category
        self.names = document.names
        self.frequencies = [category.get("frequency") or "f" for category in document.categories]
        self._held, self._prune_at = 0, PRUNE_FROM

        column, known = self._column, Ids(self.category_ids)
        boxes = [box for box in document.boxes if box["image_id"] in self._rank]
        self._truth = {
            "image": np.array([self._rank[box["image_id"]] for box in boxes], dtype=np.int64),
            "category": np.array([column[box["category_id"]] for box in boxes], dtype=np.int64),
            "box": np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4),
            "area": np.array([box["area"] for box in boxes], dtype=np.float64),
            "ignore": np.array([box["ignore"] for box in boxes], dtype=bool),
        }
        shape = len(self.image_ids), len(self.category_ids)
        self._evaluated = np.zeros(shape, dtype=bool)  # [images, categories]
        self._evaluated[self._truth["image"], self._truth["category"]] = True
        self._partial = np.zeros(shape, dtype=bool)
        tables = {"neg_category_ids": self._evaluated, "not_exhaustive_category_ids": self._partial}
        for image in document.images:
            for key, table in tables.items() if image["id"] in self._rank else ():
                listed = image.get(key) or []
                try:
                    places = [known.find(read_id(one)) for one in ([None] if isinstance(listed, str) else listed)]
                except (TypeError, ValueError):
                    raise ValueError(
                        f"image {quote(image['id'])}: {key} {quote(listed)} is not a list of category ids."
                    ) from None
                table[self._rank[image["id"]], [place for place in places if place >= 0]] = True

    # -- limits ------------------------------------------------------------------------------------

    def _add(self, image_id: int | str, boxes: np.ndarray, scores: np.ndarray, labels: Any) -> None:
        super()._add(image_id, boxes, scores, labels)
        self._held += len(scores)
        if self._held > self._prune_at:
            self._limit()
            self._held = self.num_detections
            self._prune_at = max(PRUNE_FROM, 2 * self._held)

    def _limit(self) -> None:
        """Drop what exceeds the limits. Doing it on a part of the predictions first changes nothing."""
        for image_id, found in self._predictions.items():
            if 0 <= self.max_per_image < len(found.scores):
                best = np.argsort(-found.scores, kind="stable")[: self.max_per_image]
                self._predictions[image_id] = found.select(best)
        if self.max_per_category < 0 or not self._predictions:
            return
        ranks, scores, columns, _ = self._flatten()
        order = np.lexsort((-scores, columns))  # stable: ties by image, then by position in the image
        keep = np.zeros(len(order), dtype=bool)
        keep[order] = place_in_group(columns[order]) < self.max_per_category
        for rank in np.unique(ranks[~keep]):
            image_id, rows = self.image_ids[rank], slice(*np.searchsorted(ranks, [rank, rank + 1]))
            self._predictions[image_id] = self._predictions[image_id].select(keep[rows])

    def gather(self) -> None:
        self._limit()  # less to send
        super().gather()

    def _flatten(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rank of the image, score, category column and box of all detections, in the order of images."""
        found = self._ordered()
        counts = [len(part.scores) for part in found.values()]
        parts = [NOTHING, *found.values()]
        return (
            np.repeat([self._rank[image_id] for image_id in found], counts).astype(np.int64),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.boxes for part in parts]),
        )

    # -- metrics -----------------------------------------------------------------------------------

    def _accumulate(self) -> None:
        self._limit()
        ranks, scores, columns, boxes = self._flatten()
        order = np.lexsort((-scores, columns))
        order = order[self._evaluated[ranks, columns][order]]
        ranks, columns, boxes = ranks[order], columns[order], boxes[order]
        ground_truth_order = np.lexsort((self._truth["image"], self._truth["category"]))
        truth = {name: values[ground_truth_order] for name, values in self._truth.items()}

        sizes, number = (len(AREAS), len(IOU_THRESHOLDS)), len(self.category_ids)
        # [areas, thresholds, recall points, categories] and without the recall points
        self.area_precision = np.full((*sizes, len(RECALL_POINTS), number), MISSING)
        self.area_recall = np.full((*sizes, number), MISSING)
        self.precision, self.recall = self.area_precision[0], self.area_recall[0]
        for category in np.unique(truth["category"]):
            found, real = (slice(*np.searchsorted(of, [category, category + 1])) for of in (columns, truth["category"]))
            own = {name: values[real] for name, values in truth.items()}
            self._score_category(category, ranks[found], boxes[found], own)

    def _score_category(
        self, category: int, ranks: np.ndarray, boxes: np.ndarray, truth: dict[str, np.ndarray]
    ) -> None:
        """Precision and recall of one category from its detections (best first) and its ground truth."""
        limits = np.array(list(AREAS.values()), dtype=np.float64)[:, None]  # [S, 1, 2]
        truth_ignored = truth["ignore"] | outside(truth["area"], limits)  # [S, G]
        shape = len(AREAS), len(IOU_THRESHOLDS), len(ranks)
        matched = np.zeros(shape, dtype=bool)
        ignored = outside(boxes[:, 2] * boxes[:, 3], limits) | self._partial[ranks, category]
        ignored = np.repeat(ignored[:, None], shape[1], axis=1)  # where nothing matches
        starts = np.flatnonzero(np.diff(truth["image"], prepend=-1))
        by_image = np.argsort(ranks, kind="stable")
        sorted_ranks = ranks[by_image]
        for first, end in zip(starts, [*starts[1:], len(truth["image"])]):
            image = truth["image"][first]
            rows = by_image[slice(*np.searchsorted(sorted_ranks, [image, image + 1]))]
            if len(rows):
                ious = iou_xywh(boxes[rows], truth["box"][first:end])
                hits, on_ignored = match(ious, truth_ignored[:, first:end])
                matched[:, :, rows] = hits
                ignored[:, :, rows] = np.where(hits, on_ignored, ignored[:, :, rows])

        true = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
        false = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
        positives = (~truth_ignored).sum(-1)
        for size in np.flatnonzero(positives):
            self.area_precision[size, :, :, category] = 0
            self.area_recall[size, :, category] = 0
            if not len(ranks):
                continue
            recall = true[size] / positives[size]
            precision = true[size] / (false[size] + true[size] + np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=-1)[:, ::-1]
            self.area_recall[size, :, category] = recall[:, -1]
            for threshold in range(shape[1]):
                at = np.searchsorted(recall[threshold], RECALL_POINTS, side="left")
                reached = at < len(ranks)
                self.area_precision[size, threshold, reached, category] = precision[threshold, at[reached]]

    def summarize(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, APr, APc, APf, and AR, ARs, ARm, ARl "@" the limit per image."""
        self.accumulate()
        frequency = np.array(self.frequencies)
        whole = self.precision
        metrics = {"AP": average(whole), "AP50": average(whole[0]), "AP75": average(whole[5])}
        metrics |= {f"AP{area}": average(self.area_precision[i]) for i, area in enumerate(AREAS) if area}
        metrics |= {f"AP{f}": average(whole[:, :, frequency == f]) for f in FREQUENCIES}
        return metrics | {
            f"AR{area}@{self.max_per_image}": average(self.area_recall[i]) for i, area in enumerate(AREAS)
        }

    def objects_by_category(self) -> Mapping[int, int]:
        return Counter(self._truth["category"].tolist())

    def per_class(self) -> list[dict[str, Any]]:
        return [
            {"id": row["id"], "name": row["name"], "frequency": frequency, **row}
            for row, frequency in zip(super().per_class(), self.frequencies)
        ]

    def ground_truth(self, image_id: int | str) -> tuple[np.ndarray, np.ndarray]:
        rows = (self._truth["image"] == self._rank[image_id]) & ~self._truth["ignore"]
        return self._truth["box"][rows], self._truth["category"][rows]

    def evaluated_categories(self, image_id: int | str) -> np.ndarray:
        return np.flatnonzero(self._evaluated[self._rank[image_id]])


def place_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... from the start of every run of equal values."""
    positions = np.arange(len(sorted_groups))
    starts = np.diff(sorted_groups, prepend=sorted_groups[:1] - 1) != 0
    return positions - np.maximum.accumulate(np.where(starts, positions, 0))


def outside(areas: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which areas [K] square pixels lie outside each range [S, 1, 2]: [S, K]."""
    return (areas < limits[..., 0]) | (areas > limits[..., 1])


def match(ious: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching of the detections of one image, best score first, at every area range and IoU threshold.

    A detection is matched with the free box of highest IoU (of equals the last), among those that count if one reaches
    the threshold, else among the ignored ones.

    Args:
        ious: [D, G]; ignored: [S, G] bool.

    Returns:
        [S, H, D] bool twice: whether a detection is matched, and whether with an ignored box.
    """
    sizes, (detections, boxes) = len(ignored), ious.shape
    shape = sizes, len(IOU_THRESHOLDS), detections
    matched, on_ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    free = np.ones((sizes, len(IOU_THRESHOLDS), boxes), dtype=bool)
    for row in np.flatnonzero(ious.max(1) >= IOU_THRESHOLDS[0]):
        possible = free & (ious[row] >= IOU_THRESHOLDS[:, None])
        counting = possible & ~ignored[:, None]
        usable = np.where(counting.any(-1, keepdims=True), counting, possible)
        best = boxes - 1 - np.where(usable, ious[row], -1)[..., ::-1].argmax(-1)
        size, threshold = np.nonzero(usable.any(-1))
        taken = best[size, threshold]
        free[size, threshold, taken] = False
        matched[size, threshold, row] = True
        on_ignored[size, threshold, row] = ignored[size, taken]
    return matched, on_ignored
