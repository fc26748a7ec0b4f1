# Copyright 2026 The glip_hf authors. MIT licence.
"""What is asked of which pictures: annotation files as users have them, read for inference.

A task holds pictures and either one vocabulary for all of them (COCO, LVIS, ODinW) or sentences of each (Flickr30k).
Ground truth is the evaluators' business.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._extras import require
from ..data.sources.odinw import load_task
from ..prompts_glip import NameInput, Span
from .files import check_records, read_annotations
from .flickr import boxed_phrases

SHOWN = 20  # missing pictures listed in a message; all of them go to a file


class MissingPictures(FileNotFoundError):
    """Pictures that the annotations name and the folder lacks: `paths`."""

    def __init__(self, paths: Sequence[str], total: int) -> None:
        self.paths = list(paths)
        listed = "".join(f"\n  {path}" for path in self.paths[:SHOWN])
        more = f"\n  and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        super().__init__(
            f"{len(paths)} of {total} pictures are missing, nothing was computed (is --images or --data-root the right "
            f"folder?):{listed}{more}"
        )


@dataclass(frozen=True)
class Sentence:
    """A caption of one picture with its phrases: `spans` holds a list of [begin, end) characters for each."""

    number: int
    text: str
    spans: list[list[Span]]


@dataclass(frozen=True)
class Picture:
    image_id: int | str
    path: str
    sentences: tuple[Sentence, ...] = ()


@dataclass
class Task:
    """Pictures and what to look for in them.

    Attributes:
        names: the vocabulary, in the order of captions; empty where pictures have sentences.
        category_ids: of each name, what predictions carry as label.
        texts: the names as shown to people.
    """

    name: str
    pictures: list[Picture]
    names: list[NameInput] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def limited(self, number: int | None) -> "Task":
        """The first `number` pictures."""
        return self if number is None else Task(self.name, self.pictures[:number], *self._words())

    def _words(self) -> tuple[list[NameInput], list[int], list[str]]:
        return self.names, self.category_ids, self.texts

    def missing_pictures(self) -> list[str]:
        """Paths of pictures that are not there (or that there is none in the annotations)."""
        return [
            picture.path or f"(picture {picture.image_id!r} has neither file_name nor coco_url)"
            for picture in self.pictures
            if not os.path.isfile(picture.path)
        ]

    def check_pictures(self) -> None:
        """
        Raises:
            MissingPictures: naming every picture that is not there.
        """
        if missing := self.missing_pictures():
            raise MissingPictures(missing, len(self.pictures))


def find_picture(folder: str | Path, *candidates: str) -> str:
    """The first of these paths in the folder that exists; the first of all if none does; "" of none."""
    paths = [os.path.join(folder, candidate) for candidate in candidates if candidate]
    return next((path for path in paths if os.path.isfile(path)), paths[0] if paths else "")


def detection_task(
    name: str,
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    prompts: Sequence[Mapping[str, str]] | None = None,
    categories: Sequence[Mapping[str, Any]] | None = None,
) -> Task:
    """COCO- and LVIS-style files: every category by ascending id, every picture by ascending id.

    Args:
        images: folder of `file_name`; for LVIS the folder that holds `train2017` and `val2017` (the path is the
            last two parts of `coco_url`).
        prompts: caption prompts, one `{"prefix", "name", "suffix"}` a category, in the order of ids.
        categories: in place of the file's own.

    Raises:
        ValueError: for a file of another format, no categories, or as many prompts as there are not categories.
    """
    document = read_annotations(annotations, "images", "categories")
    categories = sorted(categories or document["categories"], key=lambda category: category["id"])
    if not categories:
        raise ValueError(f"{annotations}: there are no categories to look for.")
    texts = [category["name"] for category in categories]
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} caption prompts for {len(texts)} categories: one each is needed.")
    pictures = []
    for image in sorted(document["images"], key=lambda image: (str(type(image["id"])), image["id"])):
        url = "/".join(image.get("coco_url", "").split("/")[-2:])
        own = image.get("file_name", "")
        first = (url, own) if name == "lvis" else (own, url)  # what is missing is named by its first place
        pictures.append(Picture(image["id"], find_picture(images, *first, os.path.basename(own or url))))
    ids = [category["id"] for category in categories]
    return Task(name, pictures, texts if prompts is None else list(prompts), ids, texts)


def flickr_task(annotations: str | Path | Mapping[str, Any], images: str | Path, subset: str = "test") -> Task:
    """Sentences of each picture, from MDETR's `final_flickr_separateGT_*.json` or the folder of Flickr30k Entities.

    Sentences without a phrase to find are left out; the evaluator does not ask for them.

    Args:
        annotations: MDETR's file, with a record a sentence; or the folder with `Sentences/` and `Annotations/`.
        subset: of the folder.
    """
    if isinstance(annotations, str | Path) and os.path.isdir(annotations):
        return _entities_task(annotations, images, subset)
    document = read_annotations(annotations, "images")
    needed = ("caption", "tokens_positive_eval", "file_name")
    check_records(document["images"], needed, "images (is it MDETR's format?)")
    sentences: dict[int | str, list[Sentence]] = {}
    files: dict[int | str, str] = {}
    for record in document["images"]:
        image_id = record.get("original_img_id", record["id"])
        files[image_id] = record["file_name"]
        known = sentences.setdefault(image_id, [])
        if record["tokens_positive_eval"]:
            number = record.get("sentence_id", len(known))
            known.append(_sentence(number, record["caption"], record["tokens_positive_eval"]))
    pictures = [
        Picture(image_id, _flickr_picture(images, file), tuple(sorted(sentences[image_id], key=lambda one: one.number)))
        for image_id, file in files.items()
    ]
    return Task("flickr", pictures)


def _sentence(number: Any, caption: Any, phrases: Any) -> Sentence:
    """
    Raises:
        ValueError: before the run, for what the processor would refuse in the middle of it.
    """
    try:
        spans = [[(begin, end) for begin, end in phrase] for phrase in phrases]
        good = all(spans) and all(0 <= begin < end <= len(caption) for phrase in spans for begin, end in phrase)
        if good and isinstance(caption, str):
            return Sentence(int(number), caption, spans)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"sentence {number!r}, {caption!r:.80}: tokens_positive_eval {phrases!r:.80} is not, for each phrase, a list "
        "of [begin, end) in the caption's characters."
    )


def _entities_task(folder: str | Path, images: str | Path, subset: str) -> Task:
    sentences: dict[str, list[Sentence]] = {}
    for image_id, number, text, phrases in boxed_phrases(folder, subset):
        spans = [[(phrase.begin, phrase.begin + len(phrase.text))] for phrase, _ in phrases]
        sentences.setdefault(image_id, []).append(Sentence(number, text, spans))
    pictures = [
        Picture(image_id, _flickr_picture(images, f"{image_id}.jpg"), tuple(own)) for image_id, own in sentences.items()
    ]
    return Task("flickr", pictures)


def _flickr_picture(images: str | Path, file: str) -> str:
    """In the folder, or in those of its subsets."""
    return find_picture(images, file, *(os.path.join(subset, file) for subset in ("train", "val", "test")))


@dataclass
class OdinwSet:
    """One data set of ODinW: its task, the annotation file its figures come from, whether it has caption prompts."""

    task: Task
    annotations: Mapping[str, Any]
    prompted: bool = False


def odinw_set(path: str | Path, root: str | Path, prompts: str = "names", split: str | None = None) -> OdinwSet:
    """One task file of ODinW.

    Args:
        path: YAML with `DATASETS.REGISTER`, `TEST`, and maybe `OVERRIDE_CATEGORY` and `CAPTION_PROMPT`.
        root: folder the paths in it are relative to.
        prompts: "names", or "glip" for the file's caption prompts where it has some.
        split: key of `REGISTER`; default the first of `TEST`.
    """
    try:
        settings = load_task(path)
    except require("yaml", "train").YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    register = settings["REGISTER"]
    split = split or next(iter(settings.get("TEST") or ()), "test")
    if split not in register:
        raise ValueError(f"{path}: there is no split {split!r} in REGISTER; it has {', '.join(sorted(register))}.")
    place = register[split]
    check_records([place], ("ann_file", "img_dir"), f"{path}, REGISTER of {split!r}")
    document = dict(read_annotations(Path(root) / place["ann_file"], "images", "annotations"))
    if settings["OVERRIDE_CATEGORY"]:
        document["categories"] = settings["OVERRIDE_CATEGORY"]
    own = settings["CAPTION_PROMPT"] if prompts == "glip" else None
    if own:
        check_records(own, ("prefix", "name", "suffix"), f"{path}, CAPTION_PROMPT")
    images = Path(root) / place["img_dir"]
    return OdinwSet(detection_task(Path(path).stem, document, images, own or None), document, bool(own))


def odinw_sets(
    config: str | Path, root: str | Path, prompts: str = "names", split: str | None = None
) -> list[OdinwSet]:
    """All data sets of a folder of task files (or of one file), by name.

    Of GLIP's files four of configs/odinw_35 hold caption prompts, and none of configs/odinw_13: a warning says so where
    prompts are asked for and there are none.
    """
    config = Path(config)
    paths = [config] if config.is_file() else sorted([*config.glob("*.yaml"), *config.glob("*.yml")])
    if not paths:
        raise ValueError(f"{config}: no task file (*.yaml) here.")
    sets = [odinw_set(path, root, prompts, split) for path in paths]
    if prompts == "glip" and not any(one.prompted for one in sets):
        warnings.warn(
            f"{config}: no task file has caption prompts (CAPTION_PROMPT): names alone are asked. GLIP's are in four "
            "files of its configs/odinw_35.",
            stacklevel=2,
        )
    return sets


def sentence_keys(pictures: Iterable[Picture]) -> list[tuple[int | str, int]]:
    """(picture, sentence number) of everything asked."""
    return [(picture.image_id, sentence.number) for picture in pictures for sentence in picture.sentences]


__all__ = [
    "MissingPictures",
    "OdinwSet",
    "Picture",
    "Sentence",
    "Task",
    "detection_task",
    "flickr_task",
    "odinw_set",
    "odinw_sets",
    "sentence_keys",
]
