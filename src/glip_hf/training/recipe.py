# Copyright 2026 The glip_hf authors. MIT licence.
"""The recipe of a run: one strict, typed configuration from a YAML file and command-line overrides."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .._extras import load_yaml, require
from .._program import USAGE
from ..configuration_glip import GlipConfig


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names every wrong key, its value and what is allowed."""

    exit_code = USAGE


def _number(value: Any) -> Any:
    """YAML 1.1 reads `5e-5` as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _ascending(values: list[float], info: ValidationInfo) -> list[float]:
    if values != sorted(values):
        raise ValueError(f"schedule.{info.field_name}={values} must be in ascending order.")
    return values


def _image_size(value: int) -> int:
    if value and not 32 <= value <= 8192:
        raise ValueError(f"model.image_size={value} must be from 32 to 8192 pixels, or 0 for that of the model.")
    return value


def _check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse fields that `GlipConfig` does not have: Transformers would store them without a warning."""
    known = GlipConfig().to_dict() | {"attn_implementation": None}
    errors = []
    for key in config:
        if key not in known:
            nearest = _nearest(key, known)
            hint = f"did you mean model.config.{nearest}?" if nearest else "see glip_hf.GlipConfig."
            errors.append(f"unknown key model.config.{key}: {hint}")
    if errors:
        raise ValueError("\n".join(errors))
    return config


Mode = Literal["full", "head", "linear", "prompt", "lora"]
Number = Annotated[float, BeforeValidator(_number)]
PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegativeNumber = Annotated[Number, Field(ge=0)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Fractions = Annotated[list[Annotated[Number, Field(gt=0, lt=1)]], AfterValidator(_ascending)]


class Section(BaseModel):
    """Unknown keys and values of another type are errors; an integer is accepted for a float."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ModelRecipe(Section):
    """Where the model comes from."""

    start_from: str | None = None  # a GLIP (directory or Hub id), with its configuration and processor
    preset: str = "scenes"  # otherwise: one of `glip_hf.PRESETS`, or the small model for generated scenes
    config: Annotated[dict[str, Any], AfterValidator(_check_config)] = {}  # fields of `GlipConfig` that differ
    backbone_weights: str | None = None  # ImageNet Swin weights: a directory, Hub id, or an original Swin `.pth`
    text_weights: str | None = None  # BERT weights: a directory or Hub id
    tokenizer: str | None = None  # directory, Hub id or `vocab.txt`; default that of `start_from` or `text_weights`
    frozen_stages: int = -1  # of Swin: 0 freezes the patch embedding, n also the first n stages; -1 nothing
    # Shortest side in pixels of the image processor that is saved with the model; 0 keeps that of `start_from`.
    image_size: Annotated[int, AfterValidator(_image_size)] = 0


class DataRecipe(Section):
    """Training data."""

    # Folder that relative paths of the sources are resolved against; by default they are searched for in `.`,
    # `$DATASET`, `DATASET`, `OUTPUT`, `data` and `MODEL`.
    root: str | None = None
    # One mapping per data set: `name` of a known one, or `format` of a reader and its arguments (see
    # `glip_hf.data.build_source`); `copies` repeats it, or `weight` gives it a share of `epoch_samples`. A single
    # source of format `hub` may set `streaming: true`. Empty: the generated scenes.
    sources: list[dict[str, Any]] = []
    epoch_samples: NonNegativeInt = 0  # images per epoch, where sources have a `weight` in place of `copies`
    scenes: NonNegativeInt = 64_000  # generated scenes per epoch, where there are no sources
    short_sides: list[PositiveInt] = Field([480, 560, 640, 720, 800], min_length=1)  # in pixels, drawn per image
    long_side: PositiveInt = 1333  # limit, in pixels
    flip: Number = Field(0.5, ge=0, le=1)  # probability of a horizontal flip
    vertical_flip: Number = Field(0.0, ge=0, le=1)  # and of a vertical one: images from a microscope, from above
    crop_side: NonNegativeInt = 0  # in pixels: detection images with a longer short side are cut at random; 0 never
    color: Number = Field(0.0, ge=0, lt=1)  # strength of random changes of brightness, contrast and saturation
    batch_size: PositiveInt = 64  # images per optimiser step, over all processes and accumulation steps
    aspect_grouping: bool = True  # batches hold either wide or tall images
    negatives: NonNegativeInt = 85  # largest number of negative class names drawn for a detection image
    workers: NonNegativeInt = 4  # loader processes per training process
    on_broken: Literal["skip", "fail"] = "skip"  # replace a broken image with a warning, or stop
    allow_damage: Number = Field(0.5, ge=0, le=1)  # share of a source's boxes that may be lost; beyond nothing starts
    max_broken: NonNegativeInt = 100  # skipped images at which a run stops all the same
    cache_dir: str | None = None  # of annotations in Arrow format; default the `datasets` cache


class OptimizerRecipe(Section):
    """AdamW; the defaults are those of the released models."""

    lr: PositiveNumber = 1e-4  # of everything but the text encoder
    text_lr: NonNegativeNumber = 1e-5  # of the text encoder
    bias_lr_factor: NonNegativeNumber = 2.0  # for every parameter whose name contains "bias"; these are never decayed
    weight_decay: NonNegativeNumber = 1e-4  # decoupled
    betas: list[Decay] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: NonNegativeNumber = 1e-8
    clip_norm: NonNegativeNumber = 1.0  # limit of the gradient norm over the whole model; 0 does not clip
    fused: bool = False  # PyTorch's fused AdamW


class ScheduleRecipe(Section):
    """Length of the run and learning-rate schedule."""

    max_steps: NonNegativeInt = 0  # optimiser steps; 0 takes `epochs`
    epochs: NonNegativeInt = 30  # passes over the data, if `max_steps` is 0
    # `multistep` multiplies by `gamma` at `milestones`; `cosine` falls to 0 at the end of the run; `plateau` multiplies
    # by `gamma` after `patience` evaluations without a better AP.
    name: Literal["multistep", "cosine", "plateau"] = "multistep"
    milestones: Fractions = [0.67, 0.89]  # of the run
    # Fractions of the run at which a cosine restarts (arXiv 1608.03983), each from `gamma` times the height of the one
    # before; every arc heads for 0 at the end of the run.
    restarts: Fractions = []
    gamma: NonNegativeNumber = 0.1
    warmup_steps: NonNegativeInt = 2000  # linear from `warmup_factor`
    warmup_factor: NonNegativeNumber = 0.001
    decay_weight_decay: bool = False  # GLIP-L also divides the weight decay by 10, at 0.667 of each milestone
    patience: int = 3


class TuningRecipe(Section):
    """Which parameters are trained."""

    mode: Mode = "full"  # see `training.tuning`
    early_stopping: NonNegativeInt = 0  # stop after this many evaluations without a better AP; 0 never


class RunRecipe(Section):
    """Output, precision, checkpoints and logging; intervals in optimiser steps, 0 for never."""

    output_dir: str = Field("out/pretrain", min_length=1)  # checkpoints, logs and the finished model
    seed: int = Field(0, ge=0, lt=2**32)  # of weights, sampling and dropout
    precision: Annotated[  # `no` is float32; `auto` leaves it to `accelerate launch`
        Literal["auto", "no", "fp16", "bf16"],
        BeforeValidator(lambda value: "no" if value is False else value),  # YAML 1.1 reads `no` as a boolean
    ] = "auto"
    gradient_accumulation: PositiveInt = 1  # backward passes per optimiser step
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass
    ema_decay: Decay = 0.999  # of the exponential moving average of the weights; 0 keeps none
    checkpoint_every: NonNegativeInt = 1000
    keep_checkpoints: PositiveInt = 3
    log_every: NonNegativeInt = 20
    evaluate_every: NonNegativeInt = 0
    # Of each process that trains on a CPU; 0 takes `OMP_NUM_THREADS`, or else shares the cores among the machine's
    # processes (`accelerate launch` alone would give one thread to each).
    cpu_threads: NonNegativeInt = 0
    resume: str = ""  # `latest`, a checkpoint directory, or empty
    overwrite: bool = False  # delete the run that `output_dir` holds; otherwise a used folder is refused
    on_nonfinite: Literal["stop", "zero"] = "stop"  # save the batch and stop, or drop the step as the original did
    trackers: list[str] = ["tensorboard"]  # `tensorboard`, `wandb`, ...
    push_to_hub: str = ""  # repository id for the finished model


class Recipe(Section):
    """A whole run; see the sections."""

    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    tuning: TuningRecipe = TuningRecipe()
    run: RunRecipe = RunRecipe()

    @model_validator(mode="after")
    def _check_contradictions(self) -> "Recipe":
        """Refuse values that are valid alone but not together."""
        errors = []
        if not self.schedule.max_steps and not self.schedule.epochs:
            errors.append("schedule.max_steps or schedule.epochs must be above 0.")
        if not self.run.evaluate_every:
            if self.schedule.name == "plateau":
                errors.append("schedule.name=plateau needs run.evaluate_every above 0.")
            if self.tuning.early_stopping:
                errors.append("tuning.early_stopping needs run.evaluate_every above 0.")
        sources = self.data.sources
        for index, source in enumerate(sources):
            if "format" not in source and "name" not in source:
                errors.append(
                    f"data.sources[{index}]={source} has neither `format`, the name of its reader, nor `name`, a known "
                    "data set (see glip_hf.data.CATALOGUE)."
                )
            if not isinstance(streaming := source.get("streaming", False), bool):
                errors.append(f"data.sources[{index}].streaming={streaming!r} must be true or false.")
        if any("weight" in source for source in sources) and not self.data.epoch_samples:
            errors.append("data.sources with a weight share out an epoch: set data.epoch_samples, its images.")
        streamed = [source for source in sources if source.get("streaming")]
        if streamed and (len(sources) > 1 or streamed[0].get("format") != "hub"):
            errors.append(
                f"data.sources={sources}: only a single source of format hub can be streamed; drop `streaming` to mix "
                "it with others."
            )
        if self.run.overwrite and self.run.resume == "latest":
            errors.append("run.overwrite deletes the run that run.resume=latest goes on with: drop one of them.")
        if errors:
            raise ValueError("\n".join(errors))
        return self

    def decisive(self) -> dict[str, Any]:
        """The entries that a run's result follows from, by full name; a resumed run needs equal ones."""
        values = self.model_dump()
        values = {"tuning": values.pop("tuning"), **values}  # others follow from the mode
        every = {f"{section}.{key}": value for section, part in values.items() for key, value in part.items()}
        return {key: value for key, value in every.items() if key not in MAY_CHANGE}


MAY_CHANGE = {
    "data.root", "data.workers", "data.cache_dir", "data.on_broken", "data.max_broken", "data.allow_damage",
    "schedule.max_steps", "schedule.epochs", "run.output_dir", "run.gradient_checkpointing", "run.checkpoint_every",
    "run.keep_checkpoints", "run.log_every", "run.cpu_threads", "run.resume", "run.overwrite", "run.on_nonfinite",
    "run.trackers", "run.push_to_hub",
}  # fmt: skip
"""Entries that a resumed run may have otherwise: where things are and how fast it goes, what is done about broken
images and losses, and how long it runs."""


def _nearest(key: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)), None)


def _fields(section: str) -> list[str]:
    return list(Recipe.model_fields[section].annotation.model_fields)


def _in_other_section(key: str) -> str | None:
    """The full name of `key` if a section has it."""
    return next((f"{section}.{key}" for section in Recipe.model_fields if key in _fields(section)), None)


def _error_lines(error: dict[str, Any]) -> list[str]:
    """One of pydantic's errors: the key, its value, and what is allowed."""
    path, kind = error["loc"], error["type"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if kind == "value_error":  # from a validator above, which names the key itself
        return str(error["ctx"]["error"]).splitlines()
    if kind == "extra_forbidden":
        *sections, name = path
        known = _fields(sections[0]) if sections else list(Recipe.model_fields)
        nearest = _nearest(str(name), known)
        nearest = _in_other_section(str(name)) or (nearest and ".".join([*sections, nearest]))
        return [f"unknown key {key}: " + (f"did you mean {nearest}?" if nearest else f"known: {', '.join(known)}.")]
    if kind == "model_type":
        return [f"{key}={error['input']!r} must be a mapping of {key}.* keys."]
    return [f"{key}={error['input']!r}: {error['msg']}"]


def _override(values: dict[str, Any], assignment: str) -> None:
    """Apply `section.key=value`, the value in YAML."""
    yaml = require("yaml", "train")
    key, equals, text = assignment.partition("=")
    if not equals or "." not in key:
        full = _in_other_section(key)
        example = f"did you mean {full}={text}?" if full else "e.g. optimizer.lr=5e-5."
        raise RecipeError(f"override {assignment!r} must read section.key=value: {example}")
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"override {assignment!r}: {'.'.join(sections[:depth])}={values!r} is not a section.")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {assignment!r}: the value is not valid YAML: {error}") from error


def assign(key: str, value: str | int | float) -> str:
    """An override that gives `key` exactly this value: text stays text, even where YAML would read a number in it."""
    return f"{key}={json.dumps(value)}"


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file (or the defaults) and overrides such as `optimizer.lr=5e-5`.

    Raises:
        RecipeError: with all errors at once: unknown keys (with the nearest known one), values of the wrong type or out
            of range; where every value is valid alone, contradictions between them.
        FileNotFoundError: for a missing file.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = load_yaml(path) or {}
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if not isinstance(values, dict):
            raise RecipeError(f"{path} must hold sections ({', '.join(Recipe.model_fields)}).")
    lines: list[str] = []
    for assignment in overrides:
        try:
            _override(values, assignment)
        except RecipeError as error:
            lines.append(str(error))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines += [line for found in error.errors() for line in _error_lines(found)]
    if lines:
        raise RecipeError(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} errors in the recipe:", *lines]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    return require("yaml", "train").safe_dump(recipe.model_dump(), sort_keys=False)
