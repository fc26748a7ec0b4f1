# Copyright 2026 The glip_hf authors. MIT licence.
"""COCO's AP and AR of boxes, through faster-coco-eval or pycocotools (same metrics).

Boxes of the model include both corners, so widths and heights are written with one pixel more than the
difference of corners, as the original does (`boxlist` to COCO results).
"""

import contextlib
import importlib.util
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import require
from ..data.sources.coco import Annotations, read_annotations
from .base import MISSING, DetectionEvaluator

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BACKENDS = {  # modules of `COCO` and of the evaluation, and the evaluation's class; the first that is installed is used
    "faster_coco_eval": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
}


class CocoEvaluator(DetectionEvaluator):
    """COCO bbox evaluation.

    Args:
        annotations: COCO file, its content, or what `read_annotations` gave.
        image_ids: evaluate these images alone; default all.
        backend: "faster_coco_eval" or "pycocotools"; default the first if it is installed.
        plus: added to the difference of two corners; 1 for boxes that include both, as GLIP's.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any] | Annotations,
        image_ids: Iterable[int | str] | None = None,
        backend: str | None = None,
        plus: float = 1.0,
    ) -> None:
        found = read_annotations(annotations)
        self.names = found.names
        super().__init__(found.image_ids, found.category_ids, image_ids)
        self.plus = plus
        installed = (name for name in BACKENDS if importlib.util.find_spec(name))
        self.backend = backend or next(installed, "pycocotools")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is unknown: choose one of {', '.join(BACKENDS)}.")
        coco_module, eval_module, eval_name = BACKENDS[self.backend]
        self._truth = require(coco_module, "eval").COCO()
        self._eval_class = getattr(require(eval_module, "eval"), eval_name)
        # The backend's own records, which it changes, with ids from 1: it takes an annotation's id of 0 for "no match".
        self._boxes = [
            {
                "id": number,
                "image_id": self._rank[box["image_id"]] + 1,
                "category_id": self._column[box["category_id"]] + 1,
                **{name: box[name] for name in ("bbox", "area", "iscrowd")},
            }
            for number, box in enumerate(found.boxes, start=1)
            if box["image_id"] in self._rank
        ]
        self._truth.dataset = {
            "info": {},
            "annotations": self._boxes,
            "images": [{"id": rank + 1} for rank in range(len(self.image_ids))],
            "categories": [{"id": column + 1, "name": name} for column, name in enumerate(self.names)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth.createIndex()

    def _accumulate(self) -> None:
        self.precision = np.full((10, 101, len(self.category_ids)), MISSING)
        self.recall = np.full((10, len(self.category_ids)), MISSING)
        self.stats = dict.fromkeys(STATS, MISSING)
        if not self.num_detections:
            # The backends refuse an empty result; it is AP 0 wherever there is something to find.
            truth = self.objects_by_category()
            present = [column in truth for column in range(len(self.category_ids))]
            self.precision[:, :, present] = self.recall[:, present] = 0
            if truth:
                self.stats = dict.fromkeys(STATS, 0.0)
            return
        entries = [  # not rounded: half a thousandth of a pixel may decide at a threshold
            {"image_id": self._rank[image_id] + 1, "category_id": label + 1, "bbox": box, "score": score}
            for image_id, found in self._ordered().items()
            for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self._eval_class(self._truth, self._truth.loadRes(entries), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # [thresholds, recall points, categories, areas, detection limits]
        self.precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        self.recall = np.asarray(evaluation.eval["recall"])[:, :, 0, -1]
        self.stats = {name: float(value) for name, value in zip(STATS, evaluation.stats)}

    def summarize(self) -> dict[str, float]:
        self.accumulate()
        return dict(self.stats)

    def objects_by_category(self) -> Mapping[int, int]:
        return Counter(box["category_id"] - 1 for box in self._boxes if not box["iscrowd"])

    def ground_truth(self, image_id: int | str) -> tuple[np.ndarray, np.ndarray]:
        boxes = [box for box in self._truth.imgToAnns[self._rank[image_id] + 1] if not box["iscrowd"]]
        return (
            np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4),
            np.array([box["category_id"] - 1 for box in boxes], dtype=np.int64),
        )
