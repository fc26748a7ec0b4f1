# Copyright 2026 The glip_hf authors. MIT licence.
"""Fine-tuning on annotated images alone: their data, its validation, and a run that ends with its best weights.

The defaults are those of the original's commands for ODinW: 4 images per step, all class names in one caption, ordered
by category id; a plateau schedule (patience 3) and early stopping (8) on validation AP; no averaged weights; weight
decay 0.05, for prompts a learning rate of 0.05 and a weight decay of 0.25; with `full`, Swin's patch embedding and
first stage are frozen.

They hold for a model of a released size. A small one (images below `LARGEST_SIZE`) learns at one rate in all its parts,
ten times that of a large one, except for prompts. With `full` it follows larger images to their size, and as none of
its parameters has seen such images, all are trained, on a cosine schedule of no fewer than `FEWEST_STEPS`; see
docs/bccd.md for the measurements.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from ..data import GroundingCollator, ImageTransform, NegativeSampling, SampleMaker
from ..data.broken import find_broken
from ..data.columns import ALLOWED_DAMAGE
from ..data.dataset import GroundingDataset, Mixture
from ..data.sources import JoinedSource, Source, coco_annotations, find_path, guess_file, require_images
from ..evaluation.coco import CocoEvaluator
from ..evaluation.distributed import world
from ..evaluation.run import predictions
from ..evaluation.tasks import source_task
from ..inference import GroundingEngine, GroundingOptions
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from ..values_glip import counted, quote, shown
from .batches import ON_ERROR, Batches, dataset_batches, sample_maker
from .card import write_table_card
from .checkpoints import put, read_tensors
from .loop import Run, SavedState
from .recipe import Recipe, RecipeError, load_recipe
from .replay import Replay, other_images
from .start import image_limits

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.2
"""Fraction of the training images held out where no validation file is given."""

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Training sizes relative to the processor's: 480 to 800 pixels for the released models."""

LARGEST_SIZE = 320
"""Shortest side in pixels up to which a small model follows larger images: minutes of a run on two CPU cores."""
ENLARGED_SCALES = (0.8, 0.9, 1.0, 1.1)
"""`SCALES` of a model that is raised to a larger size, which learns most at the size that it is used at."""

FEW_SHOT_EPOCHS, EPOCHS = 200, 24
FEWEST_STEPS = 1200
"""Of a model that is raised to a larger size, unless few-shot."""
EVALUATE_EVERY = 25
"""Minimum number of steps between evaluations: one per epoch, as in the original, is too often for a few steps."""

LOSS_IMAGES = 32
"""Validation images, spread over all, whose loss is measured at each evaluation: one forward pass more for each."""

_DEFAULTS: dict[str, Any] = {
    "data.batch_size": 4,
    "data.workers": 0,
    "optimizer.weight_decay": 0.05,
    "schedule.name": "plateau",
    "schedule.warmup_steps": 0,
    "tuning.early_stopping": 8,
    "run.ema_decay": 0.0,
    "run.output_dir": "out/finetune",
    "run.checkpoint_every": 0,
}
_BY_MODE: dict[str, dict[str, Any]] = {
    "full": {"model.frozen_stages": 1},
    "prompt": {"optimizer.lr": 0.05, "optimizer.weight_decay": 0.25},
    "lora": {"optimizer.lr": 1e-3, "optimizer.text_lr": 1e-3, "optimizer.weight_decay": 0.0},
}
_RATES_OF_SMALL_MODELS = {"full": 1e-3, "head": 1e-3, "linear": 1e-3, "lora": 1e-2}
"""Of all parts; ten times those of the released sizes (docs/bccd.md)."""
_ENLARGED: dict[str, Any] = {
    "model.frozen_stages": -1,
    "data.color": 0.1,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 50,
}


@dataclass
class TuningData:
    """Training and validation data.

    Attributes:
        train, validation: images of the two.
        specs: of the training data, as `build_source` takes them.
        note: one sentence for the user on how the two were chosen.
        replay: data that is mixed in, see `load_replay`.
    """

    train: Source
    validation: Source
    specs: list[dict[str, Any]]
    note: str
    replay: list[Replay] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """What the model is tuned for, in the order of captions; the processor that is saved with it has them."""
        return [self.train.names[label] for label in sorted(self.train.names)]

    def with_images(self, on_broken: str) -> "TuningData":
        """The same without images that cannot be read.

        Raises:
            MissingImages: for all images that are not there.
            RecipeError: if no image with boxes is left to train on.
            ValueError: see `find_broken`.
        """
        require_images([self.train, self.validation], "--images")
        before = len(self.train) + len(self.validation)
        train, validation = self.train.without_broken(on_broken), self.validation.without_broken(on_broken)
        if not any(train.label_sets()):
            raise RecipeError(
                f"none of the training images that can be read ({len(train)}) has a box: repair the others."
            )
        left_out = before - len(train) - len(validation)
        note = self.note + (f"; {counted(left_out, 'image')} that cannot be read left out" if left_out else "")
        return replace(self, train=train, validation=validation, note=note)


def load_tuning_data(
    train: str | Path | Sequence[str | Path],
    images: str | Path | Sequence[str | Path] | None = None,
    validation: str | Path | Sequence[str | Path] | None = None,
    validation_images: str | Path | Sequence[str | Path] | None = None,
    shots: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    allow_damage: float = ALLOWED_DAMAGE,
    on_broken: str = "skip",
    allow_outside: bool = False,
) -> TuningData:
    """Training and validation images of a custom data set; images without boxes stay, as negatives.

    Args:
        train, images: COCO, YOLO, Pascal VOC or ODVG, and the folder of the images, see `guess_source`. Of a set with
            splits "train" is taken. Or several data sets, whose classes match by name (`JoinedSource`), and one folder
            for all of them or one for each.
        validation, validation_images: other data, and its folder; default the same if that is one, or one for each. Of
            a set with splits "val" is taken, else "test". Its classes are those of the training data by name, whatever
            their ids. Without it the split "val" of `train`; without one, some of the images that are not trained on
            are held out, or if none of these has boxes, a fraction of the training images.
        shots: images per class to train on (`Source.few_shot`); None for all.
        seed: of the order in which few-shot images are chosen, and of the split.
        allow_damage: the share of the boxes of a file that may be damaged and are left out.
        on_broken: "skip" leaves out images that cannot be read, "fail" refuses them.
        allow_outside: read images that the files name outside their folders.

    Raises:
        MissingImages: for all images that are not there.
        DamagedData: if more are damaged, or a file has no box at all.
        RecipeError: for other class names in the validation file; without one, if less than two images have boxes.
        FileNotFoundError, ValueError: as `guess_source` and the readers.
    """
    placed = _with_folders("train", train, "images", images)
    checked = [] if validation is None else _listed(validation)
    for option, paths in {"train": _listed(train), "validation": checked}.items():
        for path in paths:
            if not find_path(path, must_exist=False).exists():
                raise FileNotFoundError(f"--{option} {shown(str(path))}: no such file in {os.getcwd()}.")
    files, specs = zip(*(guess_file(path, folder, ["train"], allow_outside) for path, folder in placed), strict=True)
    sources = [file.read(drop_empty=False, cache_dir=cache_dir) for file in files]
    for file in files:
        if file.grounded:
            raise RecipeError(
                f"{file.path} has captions, and fine-tuning needs boxes of classes: pre-train on it (`mdetr`, `odvg`)."
            )
    source = sources[0] if len(sources) == 1 else JoinedSource(sources)
    if validation is None and all({"train", "val"} <= set(file.splits) for file in files):  # "trainval" has its images
        validation = train
    if validation is None and validation_images is not None:
        raise RecipeError(
            f"--validation-images {' '.join(map(str, _listed(validation_images)))} needs --validation, the data."
        )
    source.require_boxes(allow_damage, needed=True)
    listed, whole = len(source), not shots and validation is None
    if whole:  # all images are used: those that cannot be read shall not be the only ones held out
        require_images([source], "--images")
        source = source.without_broken(on_broken)
    chosen = source.few_shot(shots, seed or None) if shots else source
    taken = counted(len(source), "image")
    taken = f"{len(chosen)} of {taken} ({shots} per class)" if shots else taken
    if validation is not None:
        if validation_images is None and len(_listed(images or "")) in (1, len(_listed(validation))):
            validation_images = images
        placed = _with_folders("validation", validation, "validation-images", validation_images)
        parts = [_read_validation(path, folder, sources, cache_dir, allow_outside) for path, folder in placed]
        held_out = parts[0] if len(parts) == 1 else JoinedSource(parts)
        held_out.require_boxes(allow_damage, needed=True)
        matching_category_ids(source, held_out)
        note = f"training on {taken}, validating on the {len(held_out)} of {' + '.join(map(str, _listed(validation)))}"
        if same := len(chosen) - len(other_images(chosen, held_out)):
            note += f"; {counted(same, 'image')} in both: AP is better there than on other images"
        return TuningData(chosen, held_out, list(specs), note).with_images(on_broken)
    chosen, held_out, note = _hold_out(source, chosen, taken, seed)
    if listed > len(source):
        note += f"; {counted(listed - len(source), 'image')} that cannot be read left out"
    data = TuningData(chosen, held_out, list(specs), note)
    return data if whole else data.with_images(on_broken)


def _hold_out(source: Source, chosen: Source, taken: str, seed: int) -> tuple[Source, Source, str]:
    """What is trained on of the chosen images, what is held out for validation, and a note that says so; see
    `load_tuning_data`. `taken` is what is chosen, in words."""
    has_boxes = [bool(labels) for labels in source.label_sets()]
    used = {str(image_id) for image_id in chosen.image_ids()}
    rest = [index for index, image_id in enumerate(source.image_ids()) if str(image_id) not in used]
    rng = np.random.default_rng(seed)
    if any(has_boxes[index] for index in rest):
        count = max(round(VALIDATION_FRACTION * len(source)), 1)
        held_out = source.select(sorted(_with_boxes_first(rng.permutation(rest), has_boxes)[:count]))
        note = f"training on {taken}, validating on {len(held_out)} of the others: no validation file was given"
    else:
        has_boxes = [bool(labels) for labels in chosen.label_sets()]
        if sum(has_boxes) < 2:
            raise RecipeError(
                f"{source.info['file']} has boxes in {sum(has_boxes)} of {counted(len(chosen), 'image')}: give a "
                "validation file, there is nothing to hold out that could tell which weights are best."
            )
        order = rng.permutation(len(chosen))
        count = min(max(round(VALIDATION_FRACTION * len(chosen)), 1), len(chosen) - 1)
        order = _with_boxes_first(order, has_boxes)
        if not any(has_boxes[index] for index in order[count:]):
            order = np.append(order[1:], order[0])  # one to train on
        held_out, chosen = chosen.select(sorted(order[:count])), chosen.select(sorted(order[count:]))
        note = (
            f"no validation file was given: {len(held_out)} of {taken} are held out for validation, "
            f"{len(chosen)} are trained on"
        )
    if len(others := other_images(chosen, held_out)) < len(chosen):  # of several sets of the same photos
        note += f"; {counted(len(chosen) - len(others), 'image')} of the same photos as held out not trained on"
        chosen = chosen.select(others)
        if not any(chosen.label_sets()):
            raise RecipeError(f"{note}: nothing is left to train on. Give a validation file.")
    return chosen, held_out, note


def _listed(value: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [value] if isinstance(value, str | Path) else list(value)


def _with_folders(option: str, paths: Any, images_option: str, folders: Any) -> list[tuple[str | Path, Any]]:
    """Data sets with the folders of their images; a RecipeError for another number of folders."""
    paths, folders = _listed(paths), [None] if folders is None else _listed(folders)
    if len(folders) not in (1, len(paths)):
        raise RecipeError(f"--{option} names {len(paths)} data sets and --{images_option} {len(folders)} folders.")
    return list(zip(paths, folders * len(paths) if len(folders) == 1 else folders, strict=True))


def _read_validation(
    validation: str | Path,
    images: str | Path | None,
    sources: Sequence[Source],
    cache_dir: str | Path | None,
    allow_outside: bool,
) -> Source:
    """The validation data. Where a format lists no class names, objects have all that there are: those of the training
    data, if no other is among them."""
    file, spec = guess_file(validation, images, ["val", "test"], allow_outside)
    train = next((one for one in sources if one.file.path == file.path), sources[0])
    source = file.read(drop_empty=False, cache_dir=cache_dir)
    if train.file.path == file.path and train.name == source.name and file.splits:
        raise RecipeError(f"{validation} has no split 'val' or 'test' to validate on: it has {', '.join(file.splits)}.")
    names = train.names.values()
    if file.categories is None and set(source.names.values()) < set(names) and not file.grounded:
        options: dict[str, Any] = {}
        if spec["format"] == "voc":
            options = {"class_names": list(names)}
        elif spec["format"] == "odvg":
            options = {"label_map": {train.category_ids[label]: name for label, name in train.names.items()}}
        if options:
            file, _ = guess_file(validation, images, ["val", "test"], allow_outside, **options)
            source = file.read(drop_empty=False, cache_dir=cache_dir)
    return source


def _with_boxes_first(order: np.ndarray, has_boxes: Sequence[bool]) -> np.ndarray:
    """The order, but for the first image that has boxes, which leads."""
    first = next(place for place, index in enumerate(order) if has_boxes[index])
    return np.insert(np.delete(order, first), 0, order[first])


def matching_category_ids(train: Source, validation: Source) -> list[int | str]:
    """The validation file's id of every class of the training file, in order of class ids: classes match by name.

    Raises:
        RecipeError: naming the classes that only one of the files has.
    """
    # Names as the tokenizer reads them.
    ours, theirs = (
        [" ".join(one.names[label].split()).lower() for label in sorted(one.names)] for one in (train, validation)
    )
    category_ids = [validation.category_ids[label] for label in sorted(validation.names)]
    if ours == theirs:
        return category_ids
    if sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        lacking, besides = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        repeated = sorted({name for own in (ours, theirs) for name in own if own.count(name) > 1})
        twice = f", and one has {quote(repeated)} more than once" if repeated else ""
        raise RecipeError(
            f"the classes of {validation.info['file']} are not those of {train.info['file']}: it lacks "
            f"{quote(lacking)} and has {quote(besides)} besides{twice}. Give both files the same category names, each "
            "once; their ids may differ, and a category may be without boxes."
        )
    return [category_ids[theirs.index(name)] for name in ours]


def enlarged_size(mode: str, source: Source, shortest: int, asked: int = 0) -> int:
    """The shortest side in pixels that a small model is raised to, 0 if it stays at its own.

    With `full` that is the median of the images' shorter sides, in steps of 32 pixels, up to `LARGEST_SIZE`. In the
    other modes most parameters stay as they are, and with them the size that they know.

    Args:
        source: the training images; shortest: that of the model's processor; asked: the user's choice, 0 for none.
    """
    if mode != "full" or shortest >= LARGEST_SIZE:
        return 0
    size = asked or min(int(np.median(source.sizes().min(axis=1))) // 32 * 32, LARGEST_SIZE)
    return size if size > shortest else 0


def tuning_recipe(
    model: str,
    mode: str,
    data: TuningData,
    processor: GlipProcessor,
    shots: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a fine-tuning run: the defaults of the mode, then the overrides.

    Args:
        overrides: `section.key=value`, see `load_recipe`.

    Raises:
        RecipeError: for an unknown mode or key, or contradictory values.
    """
    own = dict(processor.image_processor.size)
    given = [override for override in overrides if override.startswith("model.image_size=")]
    asked = load_recipe(None, given).model.image_size
    known = image_limits(own)["shortest_edge"]
    enlarged = enlarged_size(mode, data.train, known, asked)
    rate = _RATES_OF_SMALL_MODELS.get(mode) if known < LARGEST_SIZE else None
    size = image_limits(own, asked or enlarged)
    shortest = size["shortest_edge"]
    values = {
        **_DEFAULTS,
        **_BY_MODE.get(mode, {}),
        **({"optimizer.lr": rate, "optimizer.text_lr": rate} if rate else {}),
        **(_ENLARGED if enlarged else {}),
        "model.start_from": model,
        "model.image_size": enlarged,
        "tuning.mode": mode,
        "data.short_sides": [round(scale * shortest) for scale in (ENLARGED_SCALES if enlarged else SCALES)],
        "data.long_side": round(size.get("longest_edge", 10 * shortest) * (ENLARGED_SCALES[-1] if enlarged else 1)),
        "data.sources": [
            *(spec | ({"shots": shots} if shots else {}) for spec in data.specs),
            *(one.spec | {"copies": one.copies} for one in data.replay),
        ],
        "schedule.epochs": FEW_SHOT_EPOCHS if shots else EPOCHS,
    }
    sides = {word for name in data.train.names.values() for word in name.lower().split()} & {"left", "right"}
    if sides:  # a mirrored left hand is a right one
        values["data.flip"] = 0
    given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    # A placeholder for the recipe's own check: the default follows from the batch size, which an override may set.
    recipe = load_recipe(None, [*given, "run.evaluate_every=1", *overrides])
    chosen = {override.partition("=")[0] for override in overrides}
    steps = max(len(data.train) // recipe.data.batch_size, 1)  # of an epoch
    if enlarged and not shots and not chosen & {"schedule.max_steps", "schedule.epochs"}:
        recipe.schedule.epochs = max(EPOCHS, -(-FEWEST_STEPS // steps))
    if "run.evaluate_every" not in chosen:
        replayed = sum(round(one.copies * len(one.source)) for one in data.replay)
        steps = max((len(data.train) + replayed) // recipe.data.batch_size, 1)
        recipe.run.evaluate_every = max(steps, 4 * EVALUATE_EVERY if enlarged and not shots else EVALUATE_EVERY)
    return recipe


def tuning_batches(
    source: Source,
    processor: GlipProcessor,
    recipe: Recipe,
    model: GlipForGrounding,
    accelerator: Accelerator,
    replay: Sequence[Replay] = (),
) -> Batches:
    """Training batches of one source and what is replayed; groups that are too small for a batch repeat their images.

    Raises:
        RecipeError: if a prompt table is to be trained, and the class names do not fit into one caption, or other data
            is replayed.
    """
    data, is_table = recipe.data, recipe.tuning.mode == "prompt"
    if is_table and replay:
        raise RecipeError(
            "--replay is for modes that change the model: a prompt table leaves it as it is and belongs to one caption."
        )
    maker = sample_maker(recipe, processor, model.config)
    maker.keep_sides = bool(replay)
    sources, error = _prepare(maker, source, [one.source for one in replay])
    if is_table and any(part.names != source.names for part in sources):
        raise RecipeError(f"a prompt table belongs to one caption, and {source.info['file']} differ in their classes.")
    if is_table and error:
        raise RecipeError(f"a prompt table belongs to one caption of all class names: {error}") from error
    copies = [1] * (len(sources) - len(replay)) + [one.copies for one in replay]
    mixture = Mixture(sources, copies, recipe.run.seed)
    on_error = ON_ERROR[data.on_broken]
    dataset = GroundingDataset(mixture, maker, seed=recipe.run.seed, on_error=on_error, max_replaced=data.max_broken)
    # "wrap": with few images each one counts, and none is dropped because too few share its aspect.
    return dataset_batches(dataset, recipe, accelerator.process_index, accelerator.num_processes, incomplete="wrap")


def _prepare(
    maker: SampleMaker, source: Source, others: Sequence[Source] = ()
) -> tuple[list[Source], ValueError | None]:
    """The parts of a source and others, each with its captions prepared: sampled ones, where its class names do not fit
    into one; then why."""
    sources = [*(source.parts() if isinstance(source, JoinedSource) else [source]), *others]
    found = None
    for number, own in enumerate(sources):
        if own.name in {other.name for other in sources[:number]}:
            own.name = f"{own.name} ({number})"  # captions of class names belong to the name of a source
        try:
            maker.prepare(own)
        except ValueError as error:
            own.captions, found = "sampled", error
    return sources, found


class Validation:
    """COCO metrics on the validation images, by the engine that also serves evaluation, and the loss on some of them.

    Args:
        data: its validation images are divided among the processes; their annotations are read once, here.
        batch_size: images per forward pass of the backbone.
        on_broken: `skip` leaves out images that cannot be read, with a warning; `fail` stops. All are read once, here,
            so that no evaluation can fail in the middle of a run.

    Raises:
        RecipeError: for other class names than in training.
        ValueError: naming the images that cannot be read, with `fail` or if no other is left; if none has boxes; and
            for annotations that the evaluator does not take.
    """

    def __init__(
        self, data: TuningData, processor: GlipProcessor, batch_size: int = 4, on_broken: str = "skip"
    ) -> None:
        self.processor, self.options = processor, GroundingOptions(batch_size=batch_size, workers=1)
        self.annotations = coco_annotations(data.validation)
        self.source, self.task = data.validation, source_task(data.validation)
        # The class names of the training file in their order: a prompt table is valid for no other caption.
        self.task.names = data.class_names
        self.task.category_ids = matching_category_ids(data.train, data.validation)
        processor(text=self.task.names)  # a name that no caption can hold is found here, not at the first evaluation
        broken = find_broken((image.ref for image in self.task.images), on_broken, decode=True)
        images, self.task.images = self.task.images, [one for one in self.task.images if one.path not in broken]
        evaluator = self._evaluator()
        if not evaluator.objects_by_category():
            raise ValueError(
                f"none of the {len(self.task.images)} validation images has a box to find: the run could not tell "
                "which weights are best. Give a validation file, or another one."
            )
        evaluator.rehearse()
        kept = [row for row, image in enumerate(images) if image.path not in broken]
        own = {category: label for label, category in self.source.category_ids.items()}
        numbers = {own[one]: label for one, label in zip(self.task.category_ids, sorted(data.train.names), strict=True)}
        # As in training: boxes of the same classes, in a caption of the same order.
        self.measured = self.source.select(kept[:: -(-len(kept) // LOSS_IMAGES)]).renumbered(numbers)

    def _evaluator(self) -> CocoEvaluator:
        return CocoEvaluator(self.annotations, [image.image_id for image in self.task.images])

    def __call__(self, model: GlipForGrounding) -> dict[str, float]:
        """`AP`, `AP50`, ... of the model and its `validation_loss`, the same on every process."""
        rank, size = world()
        engine = GroundingEngine(model, self.processor, self.options)
        evaluator = self._evaluator()
        evaluator.update(predictions(engine, self.task, self.task.images[rank::size]))
        evaluator.gather()
        return evaluator.summarize() | {"validation_loss": self.loss(model)}

    @torch.no_grad()
    def loss(self, model: GlipForGrounding) -> float:
        """The training loss at the size of evaluation without augmentation, in evaluation mode: the mean over up to
        `LOSS_IMAGES` images. Every process measures all of them: the loss itself averages over processes."""
        limits, length = image_limits(dict(self.processor.image_processor.size)), model.config.max_text_length
        longest = limits.get("longest_edge", 10 * limits["shortest_edge"])
        maker = SampleMaker(
            self.processor.tokenizer,
            self.processor.image_processor,
            ImageTransform.evaluation(limits["shortest_edge"], longest),
            NegativeSampling(max_tokens=length - 2),
            length,
            greenlight=model.config.mlm_loss_weight > 0,
        )
        dataset, total = GroundingDataset(_prepare(maker, self.measured)[0], maker), 0.0
        collate, size = GroundingCollator(self.processor.tokenizer.pad_token_id), self.options.batch_size
        for start in range(0, len(dataset), size):
            samples = [dataset[row] for row in range(start, min(start + size, len(dataset)))]
            batch = send_to_device(dict(collate(samples)), model.device)
            total += model(**batch).loss.item() * len(samples)
        return total / len(dataset)


class BestWeights:
    """The trained parameters at their best evaluation; part of every checkpoint."""

    def __init__(self) -> None:
        self.step, self.weights = 0, {}

    def take(self, step: int, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the parameters of that step."""
        self.step = step
        self.weights = {name: value.detach().clone() for name, value in named_tensors}

    @torch.no_grad()
    def put(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Restore them."""
        for name, value in named_tensors:
            value.copy_(self.weights[name])


class TuningRun(Run):
    """A run that ends with the weights of its best evaluation. Of a prompt-tuned model it saves only the table, and the
    processor, which has the class names that it is for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.best = BestWeights()
        super().__init__(*args, **kwargs)

    def _inputs(self) -> dict[str, Source]:
        validation = {"validation data": self.evaluate.source} if isinstance(self.evaluate, Validation) else {}
        return super()._inputs() | validation

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return super()._tensors() | ({"best": self.best.weights} if self.best.weights else {})

    def _state(self) -> SavedState:
        return super()._state().model_copy(update={"best_step": self.best.step})

    def _load(self, path: Path) -> SavedState:
        self.best = BestWeights()  # as in the constructor: nothing of a checkpoint that was tried before
        state = super()._load(path)
        if state.best_step:
            named = dict(self._trained())
            self.best.take(state.best_step, named.items())
            for name, value in read_tensors(path, "best", named).items():
                put(self.best.weights[name], value)
        return state

    def _evaluate(self) -> None:
        before = self.progress.best
        super()._evaluate()
        if self.progress.best > before:
            with self.averaged():
                self.best.take(self.progress.step, self._trained())

    def _evaluate_final(self) -> None:
        if self.evaluate is None:
            return
        progress = self.progress
        if not progress.history or progress.history[-1]["step"] != progress.step:
            self._evaluate()
        if not self.best.weights:
            self.accelerator.print(
                "no evaluation measured an AP: these are the last weights, which need not be the best"
            )
            return
        self.best.put(self._trained())
        if self.average is not None:
            self.best.put(self.average.average.items())
        self.accelerator.print(f"best: step {self.best.step}, AP {progress.best:.4f}")
        if self.best.step != progress.step:
            self._evaluate()

    def _save_model(self, directory: Path, averaged: bool, weights: dict[str, Tensor] | None) -> None:
        if self.recipe.tuning.mode != "prompt":
            super()._save_model(directory, averaged, weights)
            return
        self.unwrapped.save_prompt_table(directory)
        self.processor.save_pretrained(directory)
        parameters = sum(parameter.numel() for _, parameter in self._trained())
        write_table_card(directory, self.recipe, self.progress.step, parameters, self.progress.history)
