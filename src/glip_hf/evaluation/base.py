# Copyright 2026 The glip_hf authors. MIT licence.
"""What all evaluators share: update with predictions, gather over processes, accumulate, summarize.

    evaluator = CocoEvaluator("instances_val2017.json")
    for ...:
        evaluator.update([{"image_id": 139, "boxes": xyxy, "scores": scores, "labels": category_ids}])
    evaluator.gather()  # a no-op in one process
    metrics = evaluator.summarize()  # accumulates if that was not done

Metrics depend neither on the order of updates nor on which process saw which image: predictions are kept per image,
and ties in score are broken by the position of the image in the annotations.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..values_glip import quote
from . import distributed
from .files import check_records, numbers

RECALL_POINTS = np.linspace(0, 1, 101)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MISSING = -1.0
"""A metric over nothing, such as that of a category without ground truth; the marker of COCO and LVIS."""


class Evaluator(ABC):
    """The protocol. `update` and `load_results` take predictions, `results` gives them back."""

    primary: str
    """The metric that papers quote, a key of `summarize()`."""

    def __init__(self) -> None:
        self._predictions: dict[Any, Any] = {}
        self._accumulated = False

    @abstractmethod
    def update(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add the predictions for some images; a second one for the same image is ignored with a warning."""

    @abstractmethod
    def load_results(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add the content of a result file, as `results` writes it."""

    @abstractmethod
    def results(self) -> Iterator[dict[str, Any]]:
        """The predictions as entries of a result file (JSON)."""

    def gather(self) -> None:
        """Give every process the predictions of all of them. All processes have to call it."""
        self._predictions, self._accumulated = distributed.merge(self._predictions), False

    def accumulate(self) -> None:
        """Compare with the ground truth, if that was not done since the last prediction came."""
        if not self._accumulated:
            self._accumulate()
            self._accumulated = True

    @abstractmethod
    def _accumulate(self) -> None:
        """What `summarize` and `per_class` need."""

    @abstractmethod
    def summarize(self) -> dict[str, float]:
        """The metrics, 0..1 (-1 where there is nothing to average); accumulates first if need be."""

    def rehearse(self) -> None:
        """Do all that follows the predictions with a made-up one: what fails on these annotations fails now, before any
        model runs."""
        trial = copy.copy(self)
        trial._predictions, trial._accumulated = {}, False
        trial.update(trial._made_up())
        trial.summarize()
        trial.per_class()

    @abstractmethod
    def _made_up(self) -> list[dict[str, Any]]:
        """The least predictions that can be scored, as `update` takes them."""

    def per_class(self) -> list[dict[str, Any]]:
        """A row per class: `name`, counts, metrics; for tables and plots."""
        return []

    @abstractmethod
    def gallery_items(self) -> list["GalleryItem"]:
        """Every image (or sentence) with ground truth, and how well it was detected, for the report's gallery."""


@dataclass
class GalleryItem:
    """One image in the gallery.

    Attributes:
        score: 0..1. R-precision: of the R best detections, R the number of objects, the fraction that is correct.
        objects: R.
        show: gives detections and ground truth, each `{"boxes" xyxy, "labels", "text_labels"}` (and `"scores"`).
        caption: of the image, if it has one of its own.
    """

    image_id: int | str
    score: float
    objects: int
    show: Callable[[], tuple[dict[str, Any], dict[str, Any]]]
    caption: str = ""


@dataclass
class Detections:
    """Of one image. boxes: [K, 4] float64 xywh, pixels; scores: [K] float64; labels: [K] int64, positions in the
    evaluator's `category_ids`."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def select(self, rows: np.ndarray) -> "Detections":
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows])


NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def to_array(values: Any) -> np.ndarray:
    """A tensor, an array or a list as an array; float32 stays float32, lists become float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def to_xywh(boxes: Any, plus: float) -> np.ndarray:
    """xyxy [K, 4] to xywh, float64; `plus` is what the convention adds to the difference of two corners.

    The subtraction runs in the precision of the input, as the original's does.
    """
    boxes = to_array(boxes).reshape(-1, 4)
    if boxes.dtype.kind != "f":
        boxes = boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2] + boxes.dtype.type(plus)
    return np.concatenate([boxes[:, :2], sides], axis=1).astype(np.float64)


class DetectionEvaluator(Evaluator):
    """Boxes with category ids, one set per image: what COCO and LVIS have in common.

    Ids are numbers of any size or text. Within, images and categories are counted from 0 (`_rank`, `_column`), so that
    no backend sees an id.

    Args:
        image_ids: all images of the annotations, in their order.
        category_ids: all categories, in their order.
        plus: see `to_xywh`; 1 where boxes include both corners, as GLIP's do.
        only: evaluate these images alone (default: all; an image without predictions has no detections).
    """

    primary = "AP"
    plus: float = 0.0

    def __init__(
        self,
        image_ids: Iterable[int | str],
        category_ids: Iterable[int | str],
        only: Iterable[int | str] | None = None,
    ) -> None:
        super().__init__()
        known = list(image_ids)
        wanted = set(known if only is None else only)
        if unknown := wanted.difference(known):
            raise ValueError(f"image {min(map(str, unknown))} is not in the annotations.")
        self.image_ids = [image_id for image_id in known if image_id in wanted]
        self._rank = {image_id: rank for rank, image_id in enumerate(self.image_ids)}
        self._elsewhere = set(known).difference(self._rank)
        self.category_ids = list(category_ids)
        self._column = {category_id: column for column, category_id in enumerate(self.category_ids)}

    @property
    def num_detections(self) -> int:
        return sum(len(found.scores) for found in self._predictions.values())

    def boxes(self) -> np.ndarray:
        """[K, 4] float64 xywh, of all predictions."""
        return np.concatenate([NOTHING.boxes, *(found.boxes for found in self._predictions.values())])

    def beyond(self, sizes: Mapping[int | str, tuple[int, int]]) -> int:
        """Predictions that leave their image (of these widths and heights) on the right or at the bottom; 0 if one
        leaves it on another side."""
        known = [(found.boxes, np.array(sizes[key])) for key, found in self._predictions.items() if key in sizes]
        if any((boxes[:, :2] < -1).any() for boxes, _ in known):
            return 0
        return sum(int((boxes[:, :2] + boxes[:, 2:] > limits + 2).any(1).sum()) for boxes, limits in known)

    def update(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add predictions, one per image.

        Args:
            predictions: each with `image_id`; `boxes` [K, 4] xyxy in pixels of the original image; `scores` [K];
                `labels` [K], category ids.

        Raises:
            ValueError: for an image or category that the annotations do not have, lengths that differ, or values that
                are not finite.
        """
        for index, prediction in enumerate(predictions):
            check_records([prediction], ("image_id", "boxes", "scores", "labels"), "the predictions", index)
            where = f"image {prediction['image_id']!r}:"
            boxes, scores, labels = prediction["boxes"], prediction["scores"], prediction["labels"]
            numbers(boxes, 4, f"{where} box")
            scores = numbers(scores, None, f"{where} score")
            # Not an array: ids of text are among them.
            labels = labels.tolist() if hasattr(labels, "tolist") else labels
            self._add(prediction["image_id"], to_xywh(boxes, self.plus), scores, labels)

    def load_results(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add COCO results, each `{"image_id", "category_id", "bbox": [x, y, w, h], "score"}`."""
        entries = list(entries)
        check_records(entries, ("image_id", "category_id", "bbox", "score"), "the results")
        by_image: dict[int | str, list[Mapping[str, Any]]] = {}
        for entry in entries:
            by_image.setdefault(entry["image_id"], []).append(entry)
        for image_id, found in by_image.items():
            where = f"the results, image {image_id!r}:"
            self._add(
                image_id,
                numbers([entry["bbox"] for entry in found], 4, f"{where} bbox"),
                numbers([entry["score"] for entry in found], None, f"{where} score"),
                [entry["category_id"] for entry in found],
            )

    def _add(self, image_id: int | str, boxes: np.ndarray, scores: np.ndarray, labels: Any) -> None:
        if image_id not in self._rank:
            if image_id in self._elsewhere:
                return  # in the annotations, but left out of this evaluation
            raise ValueError(f"image {image_id!r} is not in the annotations: wrong file, or wrong ids?")
        if not isinstance(labels, list | tuple):
            raise ValueError(f"image {image_id!r}: labels {quote(labels)} are not a list of category ids.")
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(f"image {image_id!r}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels.")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id!r} has boxes or scores that are not finite.")
        known = self._column
        unknown = [x for x in labels if not isinstance(x, Hashable) or isinstance(x, bool) or x not in known]
        if unknown:
            raise ValueError(
                f"image {image_id!r}: category {quote(unknown[0])} is not in the annotations: labels are category ids, "
                "not positions in the list of class names."
            )
        columns = np.array([known[label] for label in labels], dtype=np.int64)
        if image_id in self._predictions:
            warnings.warn(f"multiple predictions for image {image_id}: the first counts", stacklevel=3)
            return
        self._predictions[image_id] = Detections(boxes, scores, columns)
        self._accumulated = False

    def _made_up(self) -> list[dict[str, Any]]:
        one = {"boxes": [[0, 0, 1, 1]], "scores": [0.5], "labels": self.category_ids[:1]}
        return [{"image_id": image_id, **one} for image_id in self.image_ids[:1] if self.category_ids]

    def _ordered(self) -> dict[int | str, Detections]:
        """Predictions in the order of the images."""
        return {i: self._predictions[i] for i in self.image_ids if i in self._predictions}

    def results(self) -> Iterator[dict[str, Any]]:
        """Entries of a COCO result file, image by image; boxes to a thousandth of a pixel."""
        for image_id, found in self._ordered().items():
            for box, score, label in zip(found.boxes.round(3).tolist(), found.scores.tolist(), found.labels.tolist()):
                category_id = self.category_ids[label]
                yield {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}

    # -- classes -----------------------------------------------------------------------------------

    names: list[str]
    """Of each category, in the order of `category_ids`."""
    precision: np.ndarray
    """Of all areas, [IoU thresholds, recall points, categories]; `recall` without the recall points."""
    recall: np.ndarray

    @abstractmethod
    def objects_by_category(self) -> Mapping[int, int]:
        """Ground-truth boxes that count, per position in `category_ids`."""

    def per_class(self) -> list[dict[str, Any]]:
        self.accumulate()
        objects = self.objects_by_category()
        detections = Counter(label for found in self._predictions.values() for label in found.labels.tolist())
        return [
            {
                "id": category,
                "name": self.names[index],
                "AP": average(self.precision[:, :, index]),
                "AP50": average(self.precision[0, :, index]),
                "AP75": average(self.precision[5, :, index]),
                "AR": average(self.recall[:, index]),
                "objects": objects.get(index, 0),
                "detections": detections[index],
            }
            for index, category in enumerate(self.category_ids)
        ]

    # -- single images -----------------------------------------------------------------------------

    @abstractmethod
    def ground_truth(self, image_id: int | str) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G, 4] xywh and labels [G] of what counts in an image."""

    def evaluated_categories(self, image_id: int | str) -> np.ndarray | None:
        """Labels whose detections count in this image; None for all."""
        return None

    def gallery_items(self) -> list[GalleryItem]:
        found = []
        for image_id in self.image_ids:
            boxes, labels = self.ground_truth(image_id)
            if len(labels):
                best = self._best(image_id, len(labels))
                ious = iou_xywh(best.boxes, boxes) * (best.labels[:, None] == labels)
                hits = int(greedy_hits(ious, 0.5).sum())
                show = partial(self._show, best, boxes, labels)
                found.append(GalleryItem(image_id, hits / len(labels), len(labels), show))
        return found

    def _best(self, image_id: int | str, number: int) -> Detections:
        """The best detections of an image, of categories that count."""
        found = self._predictions.get(image_id, NOTHING)
        evaluated = self.evaluated_categories(image_id)
        if evaluated is not None:
            found = found.select(np.isin(found.labels, evaluated))
        return found.select(np.argsort(-found.scores, kind="stable")[:number])

    def _show(self, found: Detections, boxes: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        def named(boxes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
            texts = [self.names[label] for label in labels.tolist()]
            return {"boxes": corners(boxes), "labels": labels.tolist(), "text_labels": texts}

        return named(found.boxes, found.labels) | {"scores": found.scores.tolist()}, named(boxes, labels)


def average(values: np.ndarray) -> float:
    """Mean over the values that are not missing; -1 if all are."""
    present = values[values > MISSING]
    return float(present.mean()) if present.size else MISSING


def corners(boxes: np.ndarray) -> np.ndarray:
    """xyxy [K, 4] of xywh boxes."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def iou_xyxy(found: np.ndarray, truth: np.ndarray, areas: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """IoU [D, G] of xyxy boxes, without the inclusive pixel; `areas` [D] and [G] where they are known more exactly."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    first, second = areas or [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, truth)]
    union = first[:, None] + second - inner
    return inner / np.where(union > 0, union, 1)


def iou_xywh(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same of xywh boxes."""
    return iou_xyxy(corners(found), corners(truth), [found[:, 2:].prod(-1), truth[:, 2:].prod(-1)])


def greedy_hits(ious: np.ndarray, threshold: float) -> np.ndarray:
    """[D] bool: which detections, best first, match a true box that no better one has matched; `ious` are [D, G]."""
    hits = np.zeros(len(ious), dtype=bool)
    free = np.ones(ious.shape[1], dtype=bool)
    for row, overlaps in enumerate(ious):
        overlaps = np.where(free, overlaps, -1)
        if len(overlaps) and overlaps.max() >= threshold:
            # the last of equals, as in pycocotools
            free[len(overlaps) - 1 - overlaps[::-1].argmax()] = False
            hits[row] = True
    return hits
