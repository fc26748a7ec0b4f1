# Copyright 2026 The glip_hf authors. MIT licence.
"""RefCOCO, RefCOCO+ and RefCOCOg: Precision@k of referring expressions, from MDETR's files.

An image's entry of such a file is one expression with one box. It is found at k if one of its first k boxes overlaps
that box with IoU >= 0.5. MDETR's own code (arXiv 2104.12763) asks that of the generalized IoU (arXiv 1902.09630), which
is never above the IoU; papers and mmdetection ask it of the IoU.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import URL_FIELDS
from ..data.sources.coco import Annotations, read_annotations
from ..prompts_glip import Span
from .base import corners, iou_xyxy, to_xywh
from .files import check_records, numbers
from .flickr import Phrase, PhraseEvaluator

DATA_SETS = ("refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class Expression:
    """A referring expression.

    Attributes:
        entry: of the image, as the file has it; `id` is the expression's, `caption` its text.
        image: the name of the image, which expressions share.
        boxes: [G, 4] float64 xyxy pixels; one, in RefCOCO.
        head: the characters of its head noun (`tokens_positive`); the whole expression where they are not annotated.
    """

    entry: Mapping[str, Any]
    image: str
    boxes: np.ndarray
    head: list[Span]

    @property
    def data_set(self) -> str:
        return str(self.entry.get("dataset_name") or "")


def read_expressions(source: str | Path | Mapping[str, Any] | Annotations) -> tuple[list[Expression], dict[str, int]]:
    """The expressions of a file in order of their ids; and what is to be told about others, with their number.

    Args:
        source: see `read_annotations` with `grounded`. A file without annotations is no reason to leave one out.
    """
    known = read_annotations(source, grounded=True)
    boxes: dict[int | str, list[dict[str, Any]]] = {}
    for box in known.boxes:
        boxes.setdefault(box["image_id"], []).append(box)
    found, notes = [], Counter()
    for entry in known.images:
        own, text = boxes.get(entry["id"], []), entry.get("caption") or ""
        if not text.strip() or known.tally.listed and not own:
            notes[f"have no {'box' if text.strip() else 'text'} and are left out"] += 1
            continue
        sides = np.array([box["bbox"] for box in own], dtype=np.float64).reshape(-1, 4)
        head = sorted({span for box in own for span in box["spans"]})
        notes["have no tokens_positive: all of their tokens score a box"] += not head
        image = next(filter(None, map(entry.get, ("file_name", *URL_FIELDS))), entry["id"])
        found.append(Expression(entry, str(image), corners(sides), head or [(0, len(text))]))
    return found, dict(+notes)


class RefCocoEvaluator(PhraseEvaluator):
    """Precision@k of referring expressions, of all and of each data set (`dataset_name`).

    Args:
        annotations: MDETR's file, such as finetune_refcoco_val.json, or what `read_annotations` made of it.
        only: ids of the expressions to evaluate; default all.
        protocol: for an expression that has several boxes, see `PhraseEvaluator`.
        top_k: how many boxes count.
        iou_threshold: of a hit.
        generalized: take the generalized IoU, as MDETR's code does.
    """

    primary = "Precision@1_all"
    metric = "Precision"
    unit = "expression"

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any] | Annotations,
        only: Collection[int | str] | None = None,
        protocol: str = "any",
        top_k: Sequence[int] = (1, 5, 10),
        iou_threshold: float = 0.5,
        generalized: bool = False,
    ) -> None:
        super().__init__(protocol, top_k, iou_threshold)
        self.generalized = generalized
        self._keys: dict[int | str, tuple[str, int | str]] = {}
        for one in read_expressions(annotations)[0]:
            number, text = one.entry["id"], one.entry["caption"]
            self._keys[number] = key = one.image, number
            if only is None or number in only:
                types = [one.data_set] if one.data_set else []
                targets = self._targets(one.boxes) if len(one.boxes) else one.boxes
                self._texts[key], self.truth[key] = text, [(Phrase(text, "", types, 0, 0), targets)]

    def _overlaps(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return generalized_iou(found, truth) if self.generalized else iou_xyxy(found, truth)

    def update(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add predictions, one per expression.

        Args:
            predictions: each with `image_id` (the expression's, as in the file), `boxes` [K, 4] xyxy and `scores` [K],
                in any order; or as `run.predictions` gives those of an image's sentences.

        Raises:
            ValueError: for an expression that the annotations do not have, and predictions of another form.
        """

        def of_expression(one: Any) -> Any:
            if not isinstance(one, Mapping) or "sentence_id" not in one:
                return one
            boxes, scores = one["boxes"][0][:-1], one["scores"][0]  # they end with a box that makes no list empty
            return {"image_id": one["sentence_id"], "boxes": boxes, "scores": scores}

        self.load_results(map(of_expression, predictions))

    def load_results(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for index, prediction in enumerate(entries):
            check_records([prediction], ("image_id", "boxes", "scores"), "the predictions", index)
            number = prediction["image_id"]
            if number not in self._keys:
                raise ValueError(f"expression {number!r} is not in the annotations: wrong file, or wrong ids?")
            key = self._keys[number]
            if key not in self.truth or not self._is_new(key):
                continue
            boxes = numbers(prediction["boxes"], 4, f"expression {number!r}: box")
            scores = numbers(prediction["scores"], None, f"expression {number!r}: score")
            if len(boxes) != len(scores):
                raise ValueError(f"expression {number!r}: {len(boxes)} boxes and {len(scores)} scores.")
            order = np.argsort(-scores, kind="stable")
            self._predictions[key] = {"boxes": [boxes[order]], "scores": scores[order]}

    def boxes(self) -> np.ndarray:
        """[K, 4] float64 xywh, of all predictions."""
        found = np.concatenate([np.zeros((0, 4)), *(found["boxes"][0] for found in self._predictions.values())])
        return to_xywh(found, 0)

    def _made_up(self) -> list[dict[str, Any]]:
        return [{"image_id": number, "boxes": [], "scores": []} for _, number in self.truth]

    def results(self) -> Iterator[dict[str, Any]]:
        for key in self.truth:
            if (found := self._predictions.get(key)) is not None:
                boxes, scores = found["boxes"][0].tolist(), found["scores"].tolist()
                yield {"image_id": key[1], "boxes": boxes, "scores": scores}


def generalized_iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[D, G] of xyxy boxes, -1 to 1: the IoU less the share of the enclosing box that neither covers."""
    low = np.minimum(found[:, None, :2], truth[None, :, :2])
    high = np.maximum(found[:, None, 2:], truth[None, :, 2:])
    around = (high - low).prod(-1)
    iou = iou_xyxy(found, truth)
    first, second = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, truth))
    union = (first[:, None] + second) / (1 + iou)  # inner = iou * union
    return iou - (around - union) / np.where(around > 0, around, 1)


def check_expressions(expressions: Sequence[Expression], benchmark: str, known: Annotations) -> None:
    """Raise a ValueError for a file without expressions, and for that of another of the three data sets."""
    named = {one.data_set for one in expressions}
    if not named and known.images:
        raise ValueError(
            f"{known.name}: none of its {len(known.images):,} images has a caption with a box: MDETR's files are "
            "needed, such as finetune_refcoco_val.json."
        )
    if named and benchmark not in named and named <= set(DATA_SETS):
        raise ValueError(
            f"{known.name} has expressions of {', '.join(sorted(named))}, and none of {benchmark}: `glip evaluate "
            f"{min(named)}`, or another file."
        )
