# Copyright 2026 The glip_hf authors. MIT licence.
"""Fine-tuning on a COCO file and nothing else: its data, its validation, and a run that ends with its best weights.

The defaults are those of the original's commands for ODinW: 4 pictures a step, all names in one caption, in order of
their ids; a plateau schedule (patience 3) and early stopping (8) on validation AP; no averaged weights; weight decay
0.05, for prompts a learning rate of 0.05 and a weight decay of 0.25; with `full` Swin's patch embedding and first stage
are frozen.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..data.broken import examine_images
from ..data.dataset import GroundingDataset
from ..data.records import ImageRef
from ..data.sources import Source, read_coco
from ..evaluation.coco import CocoEvaluator
from ..evaluation.distributed import world
from ..evaluation.run import predictions
from ..evaluation.tasks import TaskImage, source_task
from ..inference import GroundingEngine, GroundingOptions
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from .batches import ON_ERROR, Batches, dataset_batches, sample_maker
from .card import write_table_card
from .loop import Run
from .recipe import Recipe, RecipeError, load_recipe

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2
"""Share of the training pictures held out where no validation file is given."""

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Training sizes relative to the processor's: 480 to 800 pixels for the released models."""

FEW_SHOT_EPOCHS, EPOCHS = 200, 24
EVALUATE_EVERY = 25
"""Fewest steps between evaluations: the original's one an epoch is too often for an epoch of three steps."""

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
    "head": {},
    "linear": {},
    "prompt": {"optimizer.lr": 0.05, "optimizer.weight_decay": 0.25},
    "lora": {"optimizer.lr": 1e-3, "optimizer.text_lr": 1e-3, "optimizer.weight_decay": 0.0},
}


@dataclass
class TuningData:
    """What is learned from and what it is judged by.

    Attributes:
        train, validation: pictures of the two.
        annotations, images: the COCO file and the folder of the validation pictures.
        note: one sentence for the user on how the two came about.
    """

    train: Source
    validation: Source
    annotations: Path
    images: Path
    note: str


def load_tuning_data(
    train: str | Path,
    images: str | Path,
    validation: str | Path | None = None,
    validation_images: str | Path | None = None,
    shots: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TuningData:
    """Training and validation pictures of a custom COCO data set; pictures without boxes stay, as negatives.

    Args:
        train: the COCO file; images: the folder of its pictures.
        validation, validation_images: another COCO file (and its folder, default the same). Without one, some of the
            pictures that are not trained on are held out, or with no such, a share of the training pictures.
        shots: pictures a class to train on (`Source.few_shot`); None for all.
        seed: of the order in which few-shot pictures are chosen, and of the split.

    Raises:
        RecipeError: for a set of a single picture without a validation file.
        FileNotFoundError, ValueError: as `read_coco`.
    """
    source = read_coco(train, images, drop_empty=False, cache_dir=cache_dir)
    chosen = source.few_shot(shots, seed or None) if shots else source
    taken = f"{len(chosen)} of {len(source)} pictures ({shots} a class)" if shots else f"{len(chosen)} pictures"
    if validation is not None:
        folder = Path(validation_images or images)
        held_out = read_coco(validation, folder, drop_empty=False, cache_dir=cache_dir)
        note = f"training on {taken}, validating on the {len(held_out)} of {validation}"
        return TuningData(chosen, held_out, Path(validation), folder, note)
    if len(source) < 2:
        raise RecipeError(f"{train} has {len(source)} picture: give a validation file, there is nothing to hold out.")
    ids = [str(image_id) for image_id in source.image_ids()]
    used = {str(image_id) for image_id in chosen.image_ids()}
    rest = [index for index, image_id in enumerate(ids) if image_id not in used]
    count = max(round(VALIDATION_SHARE * len(source)), 1)
    order = np.random.default_rng(seed)
    if rest:
        held_out = source.select(sorted(order.permutation(rest)[:count]))
        note = f"training on {taken}, validating on {len(held_out)} of the others: no validation file was given"
    else:
        mixed = order.permutation(len(chosen))
        count = min(max(round(VALIDATION_SHARE * len(chosen)), 1), len(chosen) - 1)
        held_out, chosen = chosen.select(sorted(mixed[:count])), chosen.select(sorted(mixed[count:]))
        note = (
            f"no validation file was given: {len(held_out)} of {taken} are held out for validation, "
            f"{len(chosen)} are trained on"
        )
    return TuningData(chosen, held_out, Path(train), Path(images), note)


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
    if mode not in _BY_MODE:
        raise RecipeError(f"mode {mode!r} is unknown: choose one of {', '.join(_BY_MODE)}.")
    size = dict(processor.image_processor.size)
    shortest = size.get("shortest_edge") or min(size.values())
    source = {"format": "coco", "annotations": str(data.annotations), "images": str(data.images)}
    values = {
        **_DEFAULTS,
        **_BY_MODE[mode],
        "model.start_from": model,
        "tuning.mode": mode,
        "data.short_sides": [round(scale * shortest) for scale in SCALES],
        "data.long_side": size.get("longest_edge") or max(size.values()),
        "data.sources": [source | ({"shots": shots} if shots else {})],
        "schedule.epochs": FEW_SHOT_EPOCHS if shots else EPOCHS,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    # Something for the recipe's own check; the number follows from the batch size, which an override may set.
    recipe = load_recipe(None, [*given, "run.evaluate_every=1", *overrides])
    if not any(override.startswith("run.evaluate_every=") for override in overrides):
        recipe.run.evaluate_every = max(len(data.train) // recipe.data.batch_size, EVALUATE_EVERY)
    return recipe


def tuning_batches(
    source: Source, processor: GlipProcessor, recipe: Recipe, model: GlipForGrounding, accelerator: Accelerator
) -> Batches:
    """Training batches of one source; groups that are too small for a batch repeat their pictures.

    Raises:
        RecipeError: if prompts are to be tuned, and the names do not fit one caption.
    """
    data = recipe.data
    maker = sample_maker(recipe, processor, model.config)
    try:
        maker.prepare(source)
    except ValueError as error:
        if recipe.tuning.mode == "prompt":
            raise RecipeError(f"a prompt table belongs to one caption of all names: {error}") from error
        source.captions = "sampled"
    dataset = GroundingDataset(
        source,
        maker,
        seed=recipe.run.seed,
        on_error=ON_ERROR[data.on_broken],
        max_replaced=data.max_broken,
    )
    # Every picture counts where there are few: none is dropped for want of others of its aspect.
    return dataset_batches(
        dataset,
        recipe,
        processor.tokenizer.pad_token_id,
        accelerator.process_index,
        accelerator.num_processes,
        incomplete="wrap",
    )


class Validation:
    """COCO's figures on the validation pictures, through the one post-processing path.

    Args:
        data: whose validation pictures; they are shared out to the processes.
        batch_size: pictures a pass of the backbone.
        on_broken: `skip` warns of pictures that cannot be read and leaves them out; `fail` stops. All are read once,
            now, so that no evaluation can fail in the middle of a run.

    Raises:
        ValueError: naming the pictures that cannot be read, if there are to be none or none is left.
    """

    def __init__(
        self, data: TuningData, processor: GlipProcessor, batch_size: int = 4, on_broken: str = "skip"
    ) -> None:
        self.data, self.processor, self.batch_size = data, processor, batch_size
        # The class names of the training file in their order: a prompt table knows no other caption.
        self.task = source_task(data.validation, classes=data.train)
        read = examine_images(ImageRef(image.path) for image in self.task.images)
        broken = {ref.path: str(result) for ref, result in read.items() if isinstance(result, Exception)}
        self.task.images = [image for image in self.task.images if image.path not in broken]
        if broken:
            listed = "; ".join(list(broken.values())[:5])
            what = f"{len(broken)} validation pictures cannot be read: {listed}"
            if not self.task.images:
                raise ValueError(
                    f"all {len(broken)} validation pictures are missing or broken: {listed}. Is the folder right?"
                )
            if on_broken == "fail":
                raise ValueError(f"{what}. Repair them, or leave them out with data.on_broken=skip.")
            logger.warning(f"{what}. They are left out.")

    def __call__(self, model: GlipForGrounding) -> dict[str, float]:
        """`AP`, `AP50`, ... of the model, the same on every process."""
        rank, size = world()
        engine = GroundingEngine(model, self.processor, GroundingOptions(batch_size=self.batch_size, workers=1))
        own: list[TaskImage] = self.task.images[rank::size]
        evaluator = CocoEvaluator(self.data.annotations, [image.image_id for image in self.task.images])
        evaluator.update(predictions(engine, self.task, own))
        evaluator.gather()
        return evaluator.summarize()


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

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.weights = state["step"], state["weights"]


class TuningRun(Run):
    """A run that ends with the weights of its best evaluation, and saves only the table of a prompt-tuned model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.best = BestWeights()
        self.accelerator.register_for_checkpointing(self.best)

    def _evaluate(self) -> bool:
        before = self.progress.best
        stop = super()._evaluate()
        if self.progress.best > before:
            with self.averaged():
                self.best.take(self.progress.step, self._trained())
        return stop

    def _evaluate_final(self) -> None:
        if self.evaluate is None:
            return
        progress = self.progress
        if not progress.history or progress.history[-1]["step"] != progress.step:
            self._evaluate()
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
        parameters = sum(parameter.numel() for _, parameter in self._trained())
        write_table_card(directory, self.recipe, self.progress.step, parameters, self.progress.history)


__all__ = [
    "BestWeights",
    "TuningData",
    "TuningRun",
    "Validation",
    "load_tuning_data",
    "tuning_batches",
    "tuning_recipe",
]
