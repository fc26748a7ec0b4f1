# Copyright 2026 The glip_hf authors. MIT licence.
"""The recipe of a run: one strict, typed configuration from a YAML file and command-line overrides."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._extras import require
from ..configuration_glip import GlipConfig


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, its value and the remedy."""


@dataclass
class ModelRecipe:
    """Where the model comes from.

    Attributes:
        start_from: a GLIP to continue from (directory or Hub id); its configuration and processor come along.
        preset: otherwise, the architecture of a released checkpoint (see `glip_hf.PRESETS`); `scenes`, the small
            model for generated scenes.
        config: fields of `GlipConfig` that differ from the preset.
        backbone_weights: ImageNet Swin weights: a directory, Hub id, or an original Swin `.pth`.
        text_weights: BERT weights: a directory or Hub id.
        tokenizer: directory, Hub id or `vocab.txt`; default that of `start_from` or of `text_weights`.
        frozen_stages: Swin: 0 freezes the patch embedding, n also the first n stages; -1 nothing.
    """

    start_from: str | None = None
    preset: str = "scenes"
    config: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    text_weights: str | None = None
    tokenizer: str | None = None
    frozen_stages: int = -1


@dataclass
class DataRecipe:
    """What is learned from.

    Attributes:
        root: folder that the sources' relative paths start at; by default they are looked for in `.`, `$DATASET`,
            `DATASET`, `OUTPUT`, `data` and `MODEL`.
        sources: one mapping a data set: `name` of a known one, or `format` of a reader and its arguments (see
            `glip_hf.data.build_source`); `copies` repeats it, or `weight` gives it a share of `epoch_samples`. A single
            one of format `hub` may say `streaming: true`. Empty: the generated scenes.
        epoch_samples: pictures an epoch, where sources have a `weight` in place of `copies`.
        scenes: number of generated scenes an epoch, where there are no sources.
        short_sides: shortest side of a picture, drawn from these; long_side: bound of the longest. Pixels.
        flip: probability of a horizontal flip.
        batch_size: pictures an optimiser step, over all processes and accumulation steps.
        aspect_grouping: batches hold either wide or tall pictures.
        negatives: largest number of negative names drawn for a detection picture.
        workers: loader processes a training process.
        on_broken: `skip` reports a missing or broken picture and takes the next; `fail` stops.
        max_broken: number of skipped pictures at which a run stops all the same.
        cache_dir: where annotations are kept in Arrow form; default the `datasets` cache.
    """

    root: str | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    epoch_samples: int = 0
    scenes: int = 64_000
    short_sides: list[int] = field(default_factory=lambda: [480, 560, 640, 720, 800])
    long_side: int = 1333
    flip: float = 0.5
    batch_size: int = 64
    aspect_grouping: bool = True
    negatives: int = 85
    workers: int = 4
    on_broken: Literal["skip", "fail"] = "skip"
    max_broken: int = 100
    cache_dir: str | None = None


@dataclass
class OptimizerRecipe:
    """AdamW as in section 10 of GLIP's specification.

    Attributes:
        lr: of everything but the text encoder; text_lr: of the text encoder.
        bias_lr_factor: multiplies the rate of every parameter whose name holds "bias"; these are never decayed.
        weight_decay: decoupled.
        clip_norm: bound of the gradient's norm over the whole model; 0 does not clip.
        fused: PyTorch's fused AdamW.
    """

    lr: float = 1e-4
    text_lr: float = 1e-5
    bias_lr_factor: float = 2.0
    weight_decay: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_norm: float = 1.0
    fused: bool = False


@dataclass
class ScheduleRecipe:
    """How long, and the learning rate's way.

    Attributes:
        max_steps: optimiser steps; 0 takes `epochs`.
        epochs: passes over the data, if `max_steps` is 0.
        name: `multistep` multiplies by `gamma` at `milestones` (fractions of the run); `cosine` falls to 0 at the end;
            `plateau` multiplies by `gamma` after `patience` evaluations without a better AP.
        restarts: fractions of the run at which a cosine starts anew (arXiv 1608.03983), each from `gamma` times the
            height of the one before; every arc heads for 0 at the end of the run.
        warmup_steps: linear from `warmup_factor`.
        decay_weight_decay: GLIP-L also divides the weight decay by 10, at 0.667 of each milestone.
    """

    max_steps: int = 0
    epochs: int = 30
    name: Literal["multistep", "cosine", "plateau"] = "multistep"
    milestones: list[float] = field(default_factory=lambda: [0.67, 0.89])
    restarts: list[float] = field(default_factory=list)
    gamma: float = 0.1
    warmup_steps: int = 2000
    warmup_factor: float = 0.001
    decay_weight_decay: bool = False
    patience: int = 3


@dataclass
class TuningRecipe:
    """What is trained.

    Attributes:
        mode: `full`; `linear` (the dot product's text projection and the box heads... see `training.tuning`);
            `head`; `prompt` (a learned table added to the text, nothing else); `lora` (needs `peft`).
        early_stopping: stop after this many evaluations without a better AP; 0 never.
    """

    mode: Literal["full", "linear", "head", "prompt", "lora"] = "full"
    early_stopping: int = 0


@dataclass
class RunRecipe:
    """Everything else.

    Attributes:
        output_dir: checkpoints, logs and the finished model.
        seed: of weights, sampling and dropout.
        precision: `no` (float32), `fp16`, `bf16`; `auto` leaves it to `accelerate launch`.
        gradient_accumulation: backward passes an optimiser step.
        gradient_checkpointing: recompute blocks in the backward pass.
        ema_decay: of the averaged weights; 0 keeps none.
        checkpoint_every, keep_checkpoints: in steps; how many stay.
        log_every, evaluate_every: in steps; 0 never.
        cpu_threads: of each process where it trains on a CPU; 0 shares the cores among the machine's processes
            (`accelerate launch` alone would give one thread to each).
        resume: `latest`, a checkpoint directory, or empty.
        on_nonfinite: `stop` saves the batch and stops; `zero` drops the step's gradients, as the original did.
        trackers: `tensorboard`, `wandb`, ...
        push_to_hub: repository id for the finished model.
    """

    output_dir: str = "out/pretrain"
    seed: int = 0
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    ema_decay: float = 0.999
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 20
    evaluate_every: int = 0
    cpu_threads: int = 0
    resume: str = ""
    on_nonfinite: Literal["stop", "zero"] = "stop"
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    push_to_hub: str = ""


@dataclass
class Recipe:
    """A whole run; see the sections."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    tuning: TuningRecipe = field(default_factory=TuningRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            RecipeError: naming the key, its value and the remedy.
        """
        positive = {
            "data.batch_size": self.data.batch_size,
            "data.long_side": self.data.long_side,
            "run.gradient_accumulation": self.run.gradient_accumulation,
            "run.keep_checkpoints": self.run.keep_checkpoints,
            "optimizer.lr": self.optimizer.lr,
        }
        for key, value in positive.items():
            if not value > 0:
                raise RecipeError(f"{key}={value} must be above 0.")
        for section, keys in _NOT_NEGATIVE.items():
            for key in keys:
                if not (value := getattr(getattr(self, section), key)) >= 0:
                    raise RecipeError(f"{section}.{key}={value} must be 0 or more.")
        if len(self.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in self.optimizer.betas):
            raise RecipeError(f"optimizer.betas={self.optimizer.betas} must be two numbers in [0, 1).")
        _check_config(self.model.config)
        if not self.data.short_sides or min(self.data.short_sides) < 1:
            raise RecipeError(f"data.short_sides={self.data.short_sides} must list sides in pixels.")
        if not 0 <= self.data.flip <= 1:
            raise RecipeError(f"data.flip={self.data.flip} is a probability: between 0 and 1.")
        if not 0 <= self.run.ema_decay < 1:
            raise RecipeError(f"run.ema_decay={self.run.ema_decay} must be in [0, 1); 0 keeps no average.")
        if self.schedule.max_steps <= 0 and self.schedule.epochs <= 0:
            raise RecipeError("schedule.max_steps or schedule.epochs must be above 0.")
        for key in ("milestones", "restarts"):
            fractions = getattr(self.schedule, key)
            if any(not 0 < fraction < 1 for fraction in fractions) or fractions != sorted(fractions):
                raise RecipeError(
                    f"schedule.{key}={fractions} are fractions of the run: between 0 and 1, the smallest first."
                )
        if self.schedule.name == "plateau" and not self.run.evaluate_every:
            raise RecipeError("schedule.name=plateau needs run.evaluate_every above 0.")
        if self.tuning.early_stopping and not self.run.evaluate_every:
            raise RecipeError("tuning.early_stopping needs run.evaluate_every above 0.")
        for index, source in enumerate(self.data.sources):
            if "format" not in source and "name" not in source:
                raise RecipeError(
                    f"data.sources[{index}]={source} has neither `format`, the name of its reader, nor `name`, a known "
                    "data set (see glip_hf.data.CATALOGUE)."
                )
        if any("weight" in source for source in self.data.sources) and self.data.epoch_samples <= 0:
            raise RecipeError("data.sources with a weight share out an epoch: set data.epoch_samples, its pictures.")
        streamed = [source for source in self.data.sources if source.get("streaming")]
        if streamed and (len(self.data.sources) > 1 or streamed[0].get("format") != "hub"):
            raise RecipeError(
                f"data.sources={self.data.sources}: only a single source of format hub can be streamed; drop "
                "`streaming` to mix it with others."
            )


_NOT_NEGATIVE = {
    "data": ("epoch_samples", "negatives", "workers", "max_broken", "scenes"),
    "optimizer": ("text_lr", "bias_lr_factor", "weight_decay", "eps", "clip_norm"),
    "schedule": ("max_steps", "epochs", "gamma", "warmup_steps", "warmup_factor"),
    "tuning": ("early_stopping",),
    "run": ("seed", "checkpoint_every", "log_every", "evaluate_every", "cpu_threads"),
}


def _nearest(key: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)), None)


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse fields that `GlipConfig` has not: Transformers would keep them in silence."""
    known = GlipConfig().to_dict() | {"attn_implementation": None}
    for key in config:
        if key not in known:
            nearest = _nearest(str(key), known)
            hint = f"did you mean model.config.{nearest}?" if nearest else "see glip_hf.GlipConfig."
            raise RecipeError(f"unknown key model.config.{key}: {hint}")


def _other_section(key: str) -> str | None:
    """The full name of `key` where some section has it."""
    for section, kind in typing.get_type_hints(Recipe).items():
        if key in typing.get_type_hints(kind):
            return f"{section}.{key}"
    return None


def _check_type(key: str, value: Any, expected: Any) -> Any:
    """`value` as the annotated type, or a RecipeError; an int is accepted for a float."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if value is False and "no" in arguments:
            value = "no"  # YAML 1.1 reads it as a boolean
        if value not in arguments:
            raise RecipeError(f"{key}={value!r} is unknown: choose one of {', '.join(map(str, arguments))}.")
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _check_type(key, value, next(kind for kind in arguments if kind is not type(None)))
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{key}={value!r} must be a list.")
        return [_check_type(f"{key}[{i}]", item, arguments[0]) for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{key}={value!r} must be a mapping.")
        return dict(value)
    if expected is Any:
        return value
    if expected is float and isinstance(value, str):
        # YAML 1.1 reads 5e-5 as a string
        try:
            return float(value)
        except ValueError:
            raise RecipeError(f"{key}={value!r} must be a number.") from None
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise RecipeError(f"{key}={value!r} must be of type {expected.__name__}.")
    return value


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass from nested mappings; unknown keys are errors with the nearest name."""
    hints = typing.get_type_hints(kind)
    fields = {}
    for key, value in values.items():
        if key not in hints:
            nearest = _nearest(str(key), hints)
            nearest = _other_section(str(key)) or (nearest and f"{prefix}{nearest}")
            hint = f"did you mean {nearest}?" if nearest else f"known: {', '.join(hints)}."
            raise RecipeError(f"unknown key {prefix}{key}: {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{prefix}{key}={value!r} must be a mapping of {prefix}{key}.* keys.")
            fields[key] = _build(hints[key], value, f"{prefix}{key}.")
        else:
            fields[key] = _check_type(f"{prefix}{key}", value, hints[key])
    return kind(**fields)


def _override(values: dict[str, Any], assignment: str) -> None:
    """Apply `section.key=value`, the value in YAML."""
    key, equals, text = assignment.partition("=")
    if not equals or "." not in key:
        full = _other_section(key)
        example = f"did you mean {full}={text}?" if full else "e.g. optimizer.lr=5e-5."
        raise RecipeError(f"override {assignment!r} must read section.key=value: {example}")
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"override {assignment!r}: {section} is no section.")
    yaml = require("yaml", "train")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {assignment!r}: the value is no valid YAML: {error}") from error


def assign(key: str, value: str | int | float) -> str:
    """An override that gives `key` this very value: text stays text, also where YAML would read a number in it."""
    return f"{key}={json.dumps(value)}"


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file (or the defaults) and overrides such as `optimizer.lr=5e-5`.

    Raises:
        RecipeError: for an unknown key (with the nearest known one), a value of the wrong type, or contradictions.
        FileNotFoundError: for a missing file.
    """
    values: dict[str, Any] = {}
    if path is not None:
        yaml = require("yaml", "train")
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise RecipeError(f"{path} is no valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"{path} must hold sections ({', '.join(typing.get_type_hints(Recipe))}).")
    for assignment in overrides:
        _override(values, assignment)
    return _build(Recipe, values, "")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    return require("yaml", "train").safe_dump(dataclasses.asdict(recipe), sort_keys=False)


__all__ = ["Recipe", "RecipeError", "assign", "dump_recipe", "load_recipe"]
