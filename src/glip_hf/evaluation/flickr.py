# Copyright 2026 The glip_hf authors. MIT licence.
"""Flickr30k Entities: Recall@k of phrases, from the data set's native files.

A phrase is found at k if one of its first k boxes overlaps a ground-truth box with IoU >= 0.5: any of its boxes
("any", MDETR's any-box protocol) or the box that encloses them all ("merged"). arXiv 1505.04870, 2104.12763.
"""

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..values_glip import quote
from .base import MISSING, Evaluator, GalleryItem, iou_xyxy, to_array
from .files import check_records, numbers

PROTOCOLS = ("any", "merged")
ALL = -1  # as k: however many boxes there are
ZERO_BOX = [0.0, 0.0, 0.0, 0.0]  # ends every list of boxes, so that none is empty; overlaps with nothing
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ([^\]]*)\]")

Key = tuple[Any, Any]  # image id, sentence id


class PredictionError(ValueError, RuntimeError):
    """Predictions that do not match the phrases of the annotations."""


@dataclass
class Phrase:
    """`types` of people, clothing, ...; `first_word` counts the sentence's words, `begin` its characters, from 0."""

    text: str
    chain: str
    types: list[str]
    first_word: int
    begin: int


@dataclass
class ImageBoxes:
    """Size of an image in pixels and boxes of every chain, xyxy; `no_box` and `scene` list chains marked so."""

    width: int
    height: int
    depth: int
    boxes: dict[str, list[list[int]]] = field(default_factory=dict)
    no_box: list[str] = field(default_factory=list)
    scene: list[str] = field(default_factory=list)


def parse_sentence(line: str) -> tuple[str, list[Phrase]]:
    """`[/EN#283585/people A man] sits .` as its plain words and its phrases."""
    line = line.strip()
    text, phrases, at = "", [], 0
    for found in _PHRASE.finditer(line):
        text += line[at : found.start()]
        chain, types, words = found.groups()
        phrases.append(Phrase(words, chain, types[1:].split("/"), len(text.split()), len(text)))
        text += words
        at = found.end()
    return text + line[at:], phrases


def read_sentences(path: str | Path) -> list[tuple[str, list[Phrase]]]:
    """The sentences of one image, one per line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error}") from None
    return [parse_sentence(line) for line in lines if line.strip()]


def read_boxes(path: str | Path) -> ImageBoxes:
    """Boxes of one image from `Annotations/<id>.xml`."""
    try:
        return _image_boxes(ElementTree.parse(path).getroot())
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not valid XML of Flickr30k Entities: {error}") from None


def _image_boxes(root: ElementTree.Element) -> ImageBoxes:
    sides = [int(root.findtext(f"size/{name}", "0")) for name in ("width", "height", "depth")]
    image = ImageBoxes(*sides)
    for thing in root.iter("object"):
        chains = [name.text or "" for name in thing.findall("name")]
        corners = thing.find("bndbox")
        if corners is not None:
            box = [int(float(corners.findtext(name, "nan"))) for name in ("xmin", "ymin", "xmax", "ymax")]
            for chain in chains:
                image.boxes.setdefault(chain, []).append(box)
            continue
        for flag, listed in (("nobndbox", image.no_box), ("scene", image.scene)):
            if int(thing.findtext(flag, "0")):
                listed += chains
    return image


def boxed_phrases(
    folder: str | Path, subset: str
) -> Iterator[tuple[str, int, str, list[tuple[Phrase, list[list[int]]]]]]:
    """Image id, number, text and phrases (with their boxes, xyxy) of every sentence that has a phrase with a box.

    Args:
        folder: with `Sentences/<id>.txt`, `Annotations/<id>.xml` and `<subset>.txt` (an image id per line).

    Raises:
        FileNotFoundError: naming what the folder lacks.
    """
    folder = Path(folder)
    listed = folder / f"{subset}.txt"
    for needed in (listed, folder / "Sentences", folder / "Annotations"):
        if not needed.exists():
            raise FileNotFoundError(f"there is no {needed}: give the Flickr30k Entities folder.")
    for image_id in listed.read_text(encoding="utf-8-sig").split():
        image = read_boxes(folder / "Annotations" / f"{image_id}.xml")
        for number, (text, phrases) in enumerate(read_sentences(folder / "Sentences" / f"{image_id}.txt")):
            known = [(phrase, image.boxes[phrase.chain]) for phrase in phrases if phrase.chain in image.boxes]
            if known:
                yield image_id, number, text, known


def enclosing_box(boxes: Sequence[Sequence[float]]) -> list[float]:
    """The smallest box around all, xyxy."""
    array = np.asarray(boxes)
    return [*array[:, :2].min(0).tolist(), *array[:, 2:].max(0).tolist()]


def boxes_by_phrase(
    boxes: Any, scores: Any, labels: Any, num_phrases: int
) -> tuple[list[list[list[float]]], list[list[float]]]:
    """Detections of a caption as a list of boxes per phrase, best first, with the zero box at the end.

    Args:
        boxes: [K, 4] xyxy; scores: [K]; labels: [K], the phrase from 0.
    """
    boxes, scores, labels = to_array(boxes).reshape(-1, 4), to_array(scores), to_array(labels)
    order = np.argsort(-scores, kind="stable")
    groups = [order[labels[order] == phrase] for phrase in range(num_phrases)]
    return [[*boxes[rows].tolist(), list(ZERO_BOX)] for rows in groups], [scores[rows].tolist() for rows in groups]


class PhraseEvaluator(Evaluator):
    """Phrases with ground-truth boxes: how many are found among the first k boxes.

    Args:
        protocol: "any" ground-truth box of a phrase counts, or the box around all of them ("merged").
        top_k: how many boxes of a phrase count; -1 for all, which is called the upper bound.
        iou_threshold: of a hit.

    Attributes:
        metric: its name; unit: what one prediction is for, in messages.
        truth: (phrase, ground-truth boxes [G, 4] xyxy) of each phrase to find, by image and sentence.
    """

    metric = "Recall"
    unit = "sentence"

    def __init__(self, protocol: str, top_k: Sequence[int], iou_threshold: float) -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol={protocol!r}: choose 'any' or 'merged'.")
        self.protocol, self.top_k, self.iou_threshold = protocol, tuple(top_k), iou_threshold
        self.truth: dict[Key, list[tuple[Phrase, np.ndarray]]] = {}
        self._texts: dict[Key, str] = {}

    @property
    def num_phrases(self) -> int:
        return sum(len(phrases) for phrases in self.truth.values())

    def _targets(self, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """The boxes [G, 4] of a phrase that count."""
        return np.array(boxes if self.protocol == "any" else [enclosing_box(boxes)], dtype=np.float64)

    def _overlaps(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """[D, G] of xyxy boxes."""
        return iou_xyxy(found, truth)

    def _is_new(self, key: Key) -> bool:
        """Whether there is no prediction yet; else a warning."""
        if key in self._predictions:
            where = f"{self.unit} {key[1]} of image {key[0]}"
            warnings.warn(f"multiple predictions for {where}: the first counts", stacklevel=3)
            return False
        self._accumulated = False
        return True

    def _accumulate(self) -> None:
        """Count the hits; a PredictionError if a sentence has no prediction."""
        if missing := [key for key in self.truth if key not in self._predictions]:
            raise PredictionError(
                f"Missing predictions for {len(missing)} of {len(self.truth)} {self.unit}s, the first is {self.unit} "
                f"{missing[0][1]} of image {missing[0][0]}."
            )
        hits: dict[str, list[list[bool]]] = {"all": []}  # of each type and phrase, for each k
        for key, phrases in self.truth.items():
            for (phrase, target), boxes in zip(phrases, self._predictions[key]["boxes"], strict=True):
                if not len(target):
                    continue  # the file has no annotations
                found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
                overlaps = self._overlaps(found, target).max(1, initial=0)
                first = (overlaps if k == ALL else overlaps[:k] for k in self.top_k)
                of_phrase = [bool(values.max(initial=0) >= self.iou_threshold) for values in first]
                for kind in ("all", *phrase.types):
                    hits.setdefault(kind, []).append(of_phrase)
        names = ["Upper_bound" if k == ALL else f"{self.metric}@{k}" for k in self.top_k]
        self._recalls = {
            kind: {name: sum(row[n] for row in rows) / len(rows) if rows else MISSING for n, name in enumerate(names)}
            for kind, rows in sorted(hits.items())
        }
        self._counts = {kind: len(rows) for kind, rows in hits.items()}

    def summarize(self) -> dict[str, float]:
        """`Recall@1_all`, `Recall@5_people`, ..., `Upper_bound_all` (with `metric` in place of Recall)."""
        self.accumulate()
        names = self._recalls["all"]
        return {f"{name}_{kind}": recalls[name] for name in names for kind, recalls in self._recalls.items()}

    def per_class(self) -> list[dict[str, Any]]:
        self.accumulate()
        return [{"name": kind, "phrases": self._counts[kind], **own} for kind, own in self._recalls.items()]

    def gallery_items(self) -> list[GalleryItem]:
        """Sentences; the score is the fraction of phrases whose first box is correct."""
        self.accumulate()
        items = []
        for key, phrases in self.truth.items():
            firsts = (np.array(boxes[:1], np.float64).reshape(-1, 4) for boxes in self._predictions[key]["boxes"])
            hits = [(self._overlaps(*two) >= self.iou_threshold).any() for two in zip(firsts, (t for _, t in phrases))]
            score = int(sum(hits)) / len(phrases)
            items.append(GalleryItem(key[0], score, len(phrases), partial(self._show, key), self._texts[key]))
        return items

    def _show(self, key: Key) -> tuple[dict[str, Any], dict[str, Any]]:
        found, truth = ({"boxes": [], "labels": [], "text_labels": []} for _ in range(2))
        for label, (phrase, target) in enumerate(self.truth[key]):
            boxes = [box for box in self._predictions[key]["boxes"][label][:1] if list(box) != ZERO_BOX]
            for into, its_boxes in ((found, boxes), (truth, target.tolist())):
                into["boxes"] += its_boxes
                into["labels"] += [label] * len(its_boxes)
                into["text_labels"] += [phrase.text] * len(its_boxes)
        return found, truth


class FlickrEvaluator(PhraseEvaluator):
    """Recall@k of the phrases that have a box.

    Args:
        folder: with `Sentences/<id>.txt`, `Annotations/<id>.xml` and `<subset>.txt` (an image id per line).
        subset: "test", "val" or "train".
        protocol: "any" (GLIP's published results; the original calls it "separate") or "merged".
        top_k: how many boxes of a phrase count; -1 for all, which is called the upper bound.
        iou_threshold: of a hit.
        sentences: evaluate these (image id, sentence number from 0) alone; default all.

    Raises:
        FileNotFoundError: naming what the folder lacks.
    """

    primary = "Recall@1_all"

    def __init__(
        self,
        folder: str | Path,
        subset: str = "test",
        protocol: str = "any",
        top_k: Sequence[int] = (1, 5, 10, ALL),
        iou_threshold: float = 0.5,
        sentences: Iterable[tuple[int | str, int | str]] | None = None,
    ) -> None:
        super().__init__("any" if protocol == "separate" else protocol, top_k, iou_threshold)
        wanted = None if sentences is None else {_key(*sentence) for sentence in sentences}
        for image_id, number, text, known in boxed_phrases(folder, subset):
            key = image_id, number
            if wanted is None or key in wanted:
                self._texts[key] = text
                self.truth[key] = [(phrase, self._targets(boxes)) for phrase, boxes in known]

    def update(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add predictions, one per sentence.

        Args:
            predictions: each with `image_id`, `sentence_id` (from 0), and `boxes`, for every phrase that has a box
                (in the order of the sentence) a list of xyxy boxes, best first.

        Raises:
            PredictionError: if there are not as many lists as phrases.
            ValueError: for predictions of another form.
        """
        for index, prediction in enumerate(predictions):
            check_records([prediction], ("image_id", "sentence_id", "boxes"), "the predictions", index)
            key = _key(prediction["image_id"], prediction["sentence_id"])
            if key not in self.truth:
                continue  # another subset, or nothing in the sentence to find
            if not self._is_new(key):
                continue
            if not hasattr(prediction["boxes"], "__len__"):
                raise ValueError(
                    f"sentence {key[1]} of image {key[0]}: boxes {quote(prediction['boxes'])} are not a list of lists."
                )
            if len(prediction["boxes"]) != len(self.truth[key]):
                raise PredictionError(
                    f"got {len(prediction['boxes'])} predictions, expected {len(self.truth[key])} for sentence "
                    f"{key[1]} in image {key[0]}: one list of boxes for each phrase that has a box."
                )
            for boxes in prediction["boxes"]:
                numbers(boxes, 4, f"sentence {key[1]} of image {key[0]}: box")
            self._predictions[key] = {**prediction, "boxes": list(prediction["boxes"])}

    load_results = update

    def _made_up(self) -> list[dict[str, Any]]:
        return [
            {"image_id": image_id, "sentence_id": number, "boxes": [[ZERO_BOX]] * len(phrases)}
            for (image_id, number), phrases in self.truth.items()
        ]

    def check_asked(self, asked: Mapping[tuple[int | str, int], int]) -> None:
        """Check before the run that the task has the phrases that are evaluated.

        Args:
            asked: (image id, sentence number) -> number of phrases.

        Raises:
            ValueError: naming the first sentence that differs.
        """
        known = {_key(*sentence): phrases for sentence, phrases in asked.items()}
        for key, phrases in self.truth.items():
            if known.get(key) != len(phrases):
                raise ValueError(
                    f"sentence {key[1]} of image {key[0]} has {len(phrases)} phrases with boxes in the Flickr30k "
                    f"Entities folder and {known.get(key, 0)} in the annotations: --subset, or files of other versions?"
                )

    def results(self) -> Iterator[dict[str, Any]]:
        for key in sorted(self._predictions):
            yield self._predictions[key]


def _key(image_id: int | str, sentence_id: int | str) -> Key:
    try:
        return str(image_id), int(sentence_id)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"sentence_id {sentence_id!r} of image {image_id!r} is not an integer.") from None
