# Copyright 2026 The glip_hf authors. MIT licence.
"""Evaluation tasks: which images, and what to look for in them.

A task holds images and either one list of class names for all of them (COCO, LVIS, ODinW) or captions of each
(Flickr30k, whose word for them is sentence; RefCOCO's expressions). Ground truth belongs to the evaluators, which need
it as it is written.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.fields import read_id
from ..data.images import URL_FIELDS, ImageFinder
from ..data.records import ImageRef
from ..data.sources.coco import Annotations, CocoFile, read_annotations
from ..data.sources.odinw import load_task, odinw_file
from ..prompts_glip import NameInput, Span
from ..values_glip import quote
from . import distributed
from .files import check_records, read_json
from .flickr import boxed_phrases
from .refcoco import check_expressions, read_expressions

if TYPE_CHECKING:
    from ..data.sources import Source


@dataclass(frozen=True)
class Sentence:
    """A caption of one image with its phrases: `spans` holds a list of [begin, end) characters for each."""

    number: int | str
    text: str
    spans: list[list[Span]]


@dataclass(frozen=True)
class TaskImage:
    """One image.

    Attributes:
        path: its file.
        size: (width, height) as annotated, which tells the frame of the boxes, see `ImageRef`; None where unknown.
        problem: why it has no file, where the annotations name none that may be read.
    """

    image_id: int | str
    path: str
    sentences: tuple[Sentence, ...] = ()
    size: tuple[int, int] | None = None
    problem: str = ""

    @property
    def ref(self) -> ImageRef:
        """The image, to be read."""
        return ImageRef(self.path, size=self.size)


@dataclass
class Task:
    """Images and what to look for in them.

    Attributes:
        names: class names, in the order of captions; empty where images have sentences.
        category_ids: of each class name, which predictions carry as label.
        annotations: what the metrics of a detection set come from.
        skipped: path -> reason, of images that were left out because they cannot be read.
    """

    name: str
    images: list[TaskImage]
    names: list[NameInput] = field(default_factory=list)
    category_ids: list[int | str] = field(default_factory=list)
    annotations: Annotations | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)

    def limited(self, number: int | None) -> "Task":
        """The task of the first `number` images."""
        return replace(self, images=self.images[:number])

    def ordered(self, names: Sequence[str]) -> "Task":
        """The task with its class names in this order; the same task if its names are others."""
        wanted, own = ([" ".join(str(name).split()).lower() for name in one] for one in (names, self.names))
        if sorted(wanted) != sorted(own) or len(set(own)) < len(own):
            return self
        order = [own.index(name) for name in wanted]
        ids = [self.category_ids[place] for place in order]
        return replace(self, names=list(names), category_ids=ids)

    def without(self, broken: Mapping[str, str]) -> "Task":
        """The task without images at these paths, each with the reason."""
        own = {image.path: broken[image.path] for image in self.images if image.path in broken}
        images = [image for image in self.images if image.path not in broken]
        return replace(self, images=images, skipped={**self.skipped, **own})

    def missing_images(self) -> list[str]:
        """Paths of images that do not exist, and what is wrong with those that have none."""
        return [one.problem or one.path for one in self.images if one.problem or not os.path.isfile(one.path)]


NAME_FIELDS = ("file_name", *URL_FIELDS)
PathOf = Callable[[Mapping[str, Any]], str]
"""From an image's entry to its file; raises as `ImageFinder.find`."""


def _finding(images: str | Path | None, allow_outside: bool, fields: Sequence[str] = NAME_FIELDS) -> PathOf | None:
    """Looks for what these fields name in a folder; None without one, where no image is looked at."""
    finder = None if images is None else ImageFinder(images, allow_outside)
    return finder and (lambda image: finder.find(*map(image.get, fields)))


def _task_image(path_of: PathOf | None, image: Mapping[str, Any], sentences: tuple[Sentence, ...] = ()) -> TaskImage:
    """The image of an entry."""
    path, problem, size = "", "", None
    try:
        path = path_of(image) if path_of else ""
    except ValueError as error:
        problem = f"image {quote(image['id'])}: {error}"
    with suppress(TypeError, ValueError, OverflowError):  # they need not be there
        size = int(image.get("width")), int(image.get("height"))
    return TaskImage(image["id"], path, sentences, size, problem)


def source_task(source: "Source") -> Task:
    """A data source as a task: its images, and its class names in order of their ids."""
    labels = sorted(source.names)
    images = [TaskImage(record.image_id, record.image.path, size=record.image.size) for record in source]
    names, category_ids = ([known[label] for label in labels] for known in (source.names, source.category_ids))
    return Task(source.name, images, names, category_ids)


def detection_task(
    name: str,
    annotations: str | Path | Mapping[str, Any] | CocoFile,
    images: str | Path | None = None,
    prompts: Sequence[Mapping[str, str]] | None = None,
    allow_outside: bool = False,
) -> Task:
    """COCO- and LVIS-style files: every category by ascending id, every image by ascending id.

    Args:
        annotations: the file or its content; of other formats what `guess_file` gives, which has its own images.
        images: folder of the images, see `ImageFinder`; for LVIS the one that holds `train2017` and `val2017`. None
            where no image is looked at.
        prompts: caption prompts, one `{"prefix", "name", "suffix"}` per category, in the order of ids.
        allow_outside: read images outside the folder, too.

    Raises:
        ValueError: for a file of another format, no categories, or a number of prompts that is not that of categories.
    """
    if isinstance(annotations, CocoFile):
        path_of = annotations.image_path
    else:
        path_of = _finding(images, allow_outside, ("coco_url", "file_name") if name == "lvis" else NAME_FIELDS)
    known = read_annotations(annotations, image_path=path_of)
    if prompts is not None and len(prompts) != len(known.names):
        raise ValueError(f"{len(prompts)} caption prompts for {len(known.names)} categories: one each is needed.")
    found = [_task_image(path_of, image) for image in known.images]
    return Task(name, found, known.names if prompts is None else list(prompts), known.category_ids, known)


def flickr_task(
    annotations: str | Path | Mapping[str, Any], images: str | Path, subset: str = "test", allow_outside: bool = False
) -> Task:
    """Sentences of each image, from MDETR's `final_flickr_separateGT_*.json` or the folder of Flickr30k Entities.

    Sentences without a phrase to find are left out; the evaluator does not ask for them.

    Args:
        annotations: MDETR's file, with a record per sentence; or the folder with `Sentences/` and `Annotations/`.
        subset: of the folder.
        allow_outside: read images outside the folder `images`, too.
    """
    sentences: dict[int | str, list[Sentence]] = {}
    entries: dict[int | str, Mapping[str, Any]] = {}
    if isinstance(annotations, str | Path) and os.path.isdir(annotations):
        for image_id, number, text, phrases in boxed_phrases(annotations, subset):
            spans = [[(phrase.begin, phrase.begin + len(phrase.text))] for phrase, _ in phrases]
            sentences.setdefault(image_id, []).append(Sentence(number, text, spans))
            entries[image_id] = {"id": image_id, "file_name": f"{image_id}.jpg"}
    else:
        document = read_json(annotations)
        records = document.get("images") if isinstance(document, Mapping) else document
        needed = ("caption", "tokens_positive_eval", "file_name")
        check_records(records, needed, f"{quote(annotations)}, images (is it MDETR's format?)")
        for record in records:
            image_id = read_id(next(filter(None, map(record.get, ("original_img_id", "id"))), 0))
            entries[image_id] = {**record, "id": image_id}
            known = sentences.setdefault(image_id, [])
            if record["tokens_positive_eval"]:
                number = len(known) if record.get("sentence_id") is None else record["sentence_id"]
                known.append(_sentence(number, record["caption"], record["tokens_positive_eval"]))
    finder, found = ImageFinder(images, allow_outside), []
    for image_id, entry in entries.items():
        # In the folder, or in those of its subsets.
        names = [entry["file_name"], *(f"{part}/{entry['file_name']}" for part in ("train", "val", "test"))]
        own = tuple(sorted(sentences[image_id], key=lambda one: one.number))
        found.append(_task_image(lambda _, names=names: finder.find(*names), entry, own))
    return Task("flickr", found)


def refcoco_task(
    name: str,
    annotations: str | Path | Mapping[str, Any],
    images: str | Path | None,
    tokens: str = "head",
    allow_outside: bool = False,
) -> Task:
    """The expressions about each image, from MDETR's files; an image is looked at once for all of them.

    Args:
        name: "refcoco", "refcoco+" or "refcocog".
        images: folder of the images, as for `detection_task`.
        tokens: which tokens of an expression score a box: those of its "head" noun, as annotated, or "all".
        allow_outside: read images outside the folder, too.

    Raises:
        ValueError: for a file of another format, or of another of the three data sets.
    """
    path_of = _finding(images, allow_outside)
    known = read_annotations(annotations, image_path=path_of, grounded=True)
    expressions, notes = read_expressions(known)
    for note, number in notes.items():
        distributed.tell(f"{known.name}: {number:,} of {len(known.images):,} expressions {note}")
    if known.tally.kept or not known.tally.listed:  # else the guard has the damage
        check_expressions(expressions, name, known)
    entries: dict[str, Mapping[str, Any]] = {}
    sentences: dict[str, list[Sentence]] = {}
    for one in expressions:
        text, number = one.entry["caption"], one.entry["id"]
        spans = one.head if tokens == "head" else [(0, len(text))]
        entries.setdefault(one.image, {**one.entry, "id": one.image})
        sentences.setdefault(one.image, []).append(Sentence(number, text, [spans]))
    found = [_task_image(path_of, entry, tuple(sentences[image])) for image, entry in entries.items()]
    return Task(name, found, annotations=known)


def _sentence(number: Any, caption: Any, phrases: Any) -> Sentence:
    """A ValueError, before the run, for what the processor would refuse in the middle of it."""
    try:
        spans = [[(begin, end) for begin, end in phrase] for phrase in phrases]
        good = all(spans) and all(0 <= begin < end <= len(caption) for phrase in spans for begin, end in phrase)
        if good and isinstance(caption, str):
            return Sentence(int(number), caption, spans)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"sentence {quote(number)}, {quote(caption)}: tokens_positive_eval {quote(phrases)} is not, for each phrase, a "
        "list of [begin, end) in the caption's characters."
    )


def odinw_sets(
    config: str | Path,
    root: str | Path,
    prompts: str = "names",
    split: str | None = None,
    allow_outside: bool = False,
) -> list[Task]:
    """All data sets of a folder of task files (or of one file), by name.

    Args:
        config: YAML with `DATASETS.REGISTER`, `TEST`, and maybe `OVERRIDE_CATEGORY` and `CAPTION_PROMPT`; or a folder.
        root: folder the paths in it are relative to.
        prompts: "names", or "glip" for a file's caption prompts where it has some: four of configs/odinw_35 do, and
            none of configs/odinw_13. A warning says so where prompts are asked for and there are none.
        split: key of `REGISTER`; default the first of `TEST`.
        allow_outside: read images outside their folder, too.
    """
    config = Path(config)
    paths = [config] if config.is_file() else sorted([*config.glob("*.yaml"), *config.glob("*.yml")])
    if not paths:
        raise ValueError(f"{config}: no task file (*.yaml) here.")
    if twice := [path.stem for path in paths if path.with_suffix(".yml") in paths and path.suffix == ".yaml"]:
        raise ValueError(f"{config} has both {twice[0]}.yaml and {twice[0]}.yml: results would get the same name.")
    tasks = []
    for path in paths:
        own = split or next(iter(load_task(path)["TEST"]), "test")
        file = odinw_file(path, own, use_prompts=prompts == "glip", data_root=root, allow_outside=allow_outside)
        if file.prompts:
            check_records(file.prompts, ("prefix", "name", "suffix"), f"{path}, CAPTION_PROMPT")
        tasks.append(detection_task(path.stem, file, prompts=file.prompts or None))
    if prompts == "glip" and all(isinstance(name, str) for task in tasks for name in task.names):
        warnings.warn(
            f"{config}: no task file has caption prompts (CAPTION_PROMPT): captions hold class names alone. GLIP's "
            "are in four files of its configs/odinw_35.",
            stacklevel=2,
        )
    return tasks


def sentence_keys(images: Iterable[TaskImage]) -> list[tuple[int | str, int | str]]:
    """(image id, sentence number) of everything that is looked for."""
    return [(image.image_id, sentence.number) for image in images for sentence in image.sentences]
