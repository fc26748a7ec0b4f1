# Copyright 2026 The glip_hf authors. MIT licence.
"""The training loop: Accelerate for devices and processes, everything that decides a number in plain sight.

A step of a run is a function of (recipe, step number): samples, augmentations, dropout and schedule follow from the
seed, so a run that is killed and resumed ends with the same parameters as one that was not.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from .._launch import warn_if_alone
from ..boxes_glip import make_anchors
from ..configuration_glip import PYRAMID_STRIDES
from ..loss_glip import accumulation_weights, mean_over_processes, positives
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from .batches import Batches, per_process
from .card import write_card
from .checkpoints import resolve_checkpoint, write_checkpoint
from .optimization import ExponentialAverage, Schedule, build_optimizer
from .recipe import Recipe, RecipeError, dump_recipe
from .stopping import StopRequest

logger = logging.getLogger(__name__)

SHARDED = ("FSDP", "DEEPSPEED")
BAR_NAMES = {"images_per_second": "img/s", "memory_gb": "GB", "gradient_norm": "norm"}
"""How the progress bar calls what is logged; a `loss_` before a name goes too."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite; the batch lies at the path the message names."""


@dataclass
class Progress:
    """How far a run is; part of every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] | None = None
    order: dict[str, int] | None = None
    """What decides which samples a step holds."""

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors inside lists and dicts moved to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value


def peak_memory_gb() -> float:
    """The most memory this process has held: of the accelerator where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def check_trackers(names: list[str]) -> None:
    """Refuse trackers whose packages are missing, which accelerate would pass over in silence.

    Raises:
        RecipeError: naming the tracker.
    """
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name != "all" and name not in available:
            raise RecipeError(
                f"run.trackers={names}: {name} is unknown or not installed (pip install {name}); there are "
                f"{', '.join(available) or 'none'}. run.trackers=[] keeps no log."
            )


class Run:
    """One training run; `train()` does the whole of it.

    Args:
        recipe: see `Recipe`.
        model, processor: what to train and what to save beside it.
        make_batches: called with the accelerator, gives the data of this process.
        evaluate: called with the model (averaged weights, if kept) every `run.evaluate_every` steps and at the end, on
            every process; returns metrics, of which `AP` decides about early stopping and plateaus.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: GlipForGrounding,
        processor: GlipProcessor,
        make_batches: Callable[[Accelerator], Batches],
        evaluate: Callable[[GlipForGrounding], dict[str, float]] | None = None,
    ) -> None:
        settings = recipe.run
        self.recipe, self.processor, self.evaluate = recipe, processor, evaluate
        self.output = Path(settings.output_dir)
        check_trackers(settings.trackers)
        if evaluate is None and (recipe.schedule.name == "plateau" or recipe.tuning.early_stopping):
            raise RecipeError(
                "schedule.name=plateau and tuning.early_stopping follow a validation AP, and this run has none: use "
                "schedule.name=multistep and tuning.early_stopping=0, or examples/finetune.py."
            )
        self.accelerator = Accelerator(
            # Said outright: several processes that find no accelerator would else not know of each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=None if settings.precision == "auto" else settings.precision,
            gradient_accumulation_steps=settings.gradient_accumulation,
            log_with=settings.trackers or None,
            project_dir=str(self.output),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        warn_if_alone(self.accelerator.num_processes)
        if self.accelerator.device.type == "cpu":
            # MKL may else share out a product among threads as it comes, and round as it comes: read at the first
            # product of the process, no slower, and what makes two runs equal bit for bit.
            os.environ.setdefault("MKL_CBWR", "AUTO")
            shared = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            local = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
            torch.set_num_threads(settings.cpu_threads or max(shared // local, 1))
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self.batches = make_batches(self.accelerator)
        accumulation = settings.gradient_accumulation
        self.max_steps = recipe.schedule.max_steps or max(
            recipe.schedule.epochs * self.batches.steps_per_epoch() // accumulation, 1
        )
        self._check_sharding()
        optimizer = build_optimizer(model, recipe.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = Schedule(optimizer, recipe.schedule, self.max_steps)
        order = {
            "run.seed": settings.seed,
            "data.batch_size": recipe.data.batch_size,
            "run.gradient_accumulation": accumulation,
        }
        self.progress = Progress(history=[], order=order)
        self.average = None
        resumable: list[Any] = [self.schedule, self.progress]
        if settings.ema_decay:
            self.average = ExponentialAverage(self._trained(), settings.ema_decay)
            resumable.append(self.average)
        self.accelerator.register_for_checkpointing(*resumable)
        self._stop = StopRequest()

    def _check_sharding(self) -> None:
        """Tell DeepSpeed what accelerate would read off a loader of its own, and refuse what cannot be averaged."""
        recipe, accelerator = self.recipe, self.accelerator
        plugin = accelerator.state.deepspeed_plugin
        if plugin is not None:
            accumulation = recipe.run.gradient_accumulation
            size = per_process(recipe.data.batch_size, accumulation, accelerator.num_processes)
            plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=size,
                gradient_accumulation_steps=accumulation,
                gradient_clipping=recipe.optimizer.clip_norm,
            )
        flat = accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2
        if recipe.run.ema_decay and (flat or (plugin is not None and plugin.zero_stage == 3)):
            raise RecipeError(
                f"run.ema_decay={recipe.run.ema_decay} averages parameters, which FSDP1 and ZeRO-3 hold flat and in "
                "parts: set run.ema_decay=0, or use FSDP2 (fsdp_version: 2) or ZeRO-2."
            )

    @property
    def unwrapped(self) -> GlipForGrounding:
        return self.accelerator.unwrap_model(self.model)

    def _trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What changes in training: the only tensors worth averaging."""
        for name, parameter in self.unwrapped.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    @contextlib.contextmanager
    def averaged(self) -> Iterator[GlipForGrounding]:
        """The model with its averaged weights in place, if they are kept."""
        model = self.unwrapped
        if self.average is None:
            yield model
            return
        with torch.no_grad():
            own = {name: parameter.clone() for name, parameter in self._trained()}
            for name, parameter in self._trained():
                parameter.copy_(self.average.average[name])
            try:
                yield model
            finally:
                for name, parameter in self._trained():
                    parameter.copy_(own[name])

    @property
    def _measured_last(self) -> bool:
        """Whether the weights at hand have been measured already."""
        return False

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of the current step."""
        return write_checkpoint(
            self.output / "checkpoints",
            self.progress.step,
            self.recipe.run.keep_checkpoints,
            lambda folder: self.accelerator.save_state(str(folder), safe_serialization=True),
            self.accelerator.is_main_process,
            self.accelerator.wait_for_everyone,
        )

    def _resume(self) -> None:
        checkpoint = resolve_checkpoint(self.recipe.run.resume, self.output / "checkpoints")
        if checkpoint is None:
            return
        now = self.progress.order
        self.accelerator.load_state(str(checkpoint))
        for key, value in now.items():
            if (before := (self.progress.order or now)[key]) != value:
                raise RecipeError(
                    f"{checkpoint} comes from a run with {key}={before}, this one has {value}: its steps would hold "
                    f"other samples. Set {key}={before}, or start anew from it with model.start_from."
                )
        self.accelerator.print(f"resumed from {checkpoint}, step {self.progress.step} of {self.max_steps}")

    # -- one step ---------------------------------------------------------------------------------

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether each flag is raised on any process."""
        raised = torch.tensor([float(flag) for flag in flags], device=self.accelerator.device)
        return [value > 0 for value in self.accelerator.reduce(raised, "sum").tolist()]

    def _seed_step(self) -> None:
        """Dropout as a function of (seed, step, process): whatever else draws random numbers in between (an evaluation,
        a resume) shifts nothing, and no two processes drop the same cells.
        """
        key = (self.recipe.run.seed, self.progress.step, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _dump_batch(self, batch: dict[str, Any], losses: dict[str, float]) -> Path:
        rank = self.accelerator.process_index
        path = self.output / f"nonfinite_step_{self.progress.step:08d}_rank_{rank}.pt"
        torch.save({"batch": to_device(batch, torch.device("cpu")), "losses": losses}, path)
        return path

    def _stop_at(self, what: str, batch: dict[str, Any], losses: dict[str, float]) -> None:
        """Save the batch and stop, unless such steps are to be skipped."""
        if self.recipe.run.on_nonfinite == "zero":
            return
        path = self._dump_batch(batch, losses)
        raise NonFiniteLossError(
            f"{what} is not finite at step {self.progress.step} ({losses}); samples {batch['sample_ids']} are saved "
            f"in {path}. Lower optimizer.lr, use bf16, or set run.on_nonfinite=zero to skip such steps, as the "
            "original did."
        )

    def _weights(self, batches: list[dict[str, Any]]) -> list[dict[str, float]]:
        """Factors by which a step of several micro-batches has the loss of one large batch."""
        if len(batches) == 1:
            return [{}]
        config, counts = self.unwrapped.config, []
        for batch in batches:
            height, width = batch["pixel_values"].shape[-2:]
            shapes = [(-(-height // stride), -(-width // stride)) for stride in PYRAMID_STRIDES]
            device = self.accelerator.device
            anchors = make_anchors(shapes, PYRAMID_STRIDES, config.anchor_scale, device)
            sizes = [rows * columns for rows, columns in shapes]
            counts.append(torch.stack(positives(to_device(batch["labels"], device), anchors, sizes, config.atss_top_k)))
        return accumulation_weights(*mean_over_processes(torch.stack(counts, dim=1)))

    def _update(self, micro_batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """One optimiser step; returns this process's mean losses and its number of pictures."""
        settings = self.recipe.run
        self._seed_step()
        totals: dict[str, float] = {}
        pictures = 0
        finite = True
        batches = [dict(next(micro_batches)) for _ in range(settings.gradient_accumulation)]
        for batch, weights in zip(batches, self._weights(batches)):
            inputs = to_device(batch, self.accelerator.device)
            del inputs["sample_ids"]
            with self.accelerator.accumulate(self.model):
                terms = {
                    name: value * weights.get(name, weights.get("positives", 1.0)) if name != "loss_mlm" else value
                    for name, value in self.model(**inputs).loss_dict.items()
                }
                loss = sum(terms.values())
                losses = {name: value.item() for name, value in terms.items()} | {"loss": loss.item()}
                (broken,) = self._agree(not math.isfinite(losses["loss"]))
                if broken:
                    self._stop_at("the loss", batch, losses)
                finite &= not broken
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and finite and self.recipe.optimizer.clip_norm:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
                    totals["gradient_norm"] = norm = float(norm) if norm is not None else 0.0  # DeepSpeed clips itself
                    # With fp16 the scaler skips such a step by itself, and tries a smaller scale.
                    if not math.isfinite(norm) and self.accelerator.scaler is None:
                        self._stop_at("the gradient", batch, losses)
                        finite = False
                if finite:
                    self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value / settings.gradient_accumulation
            pictures += len(inputs["pixel_values"])
        self.schedule.step()
        if self.average is not None:
            self.average.update(self._trained())
        return totals, pictures

    # -- the whole --------------------------------------------------------------------------------

    def train(self) -> Path:
        """Run to the end (or to a SIGTERM, which saves and returns).

        Returns:
            the directory of the finished model, or of the checkpoint if the run was asked to stop.
        """
        settings = self.recipe.run
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "recipe.yaml").write_text(dump_recipe(self.recipe))
        self.accelerator.wait_for_everyone()
        if settings.trackers:
            self.accelerator.init_trackers("glip_hf")
        self._resume()
        try:
            with self._stop.listening():
                stopped = self._steps()
            if stopped:
                self.accelerator.print(f"asked to stop: saved {stopped}; go on with --resume latest")
                return stopped
            return self._finish()
        finally:
            if settings.trackers:
                self.accelerator.end_training()  # it also takes leave of the other processes: nothing can follow

    def _steps(self) -> Path | None:
        settings, progress = self.recipe.run, self.progress
        micro_batches = self.batches.batches(progress.step * settings.gradient_accumulation)
        bar = tqdm(
            total=self.max_steps,
            initial=progress.step,
            disable=not self.accelerator.is_local_main_process,
            desc="train",
            unit="step",
        )
        self.model.train()
        window: list[dict[str, float]] = []
        pictures, since = 0, time.monotonic()
        while progress.step < self.max_steps:
            started = time.monotonic()
            losses, count = self._update(micro_batches)
            progress.step += 1
            progress.seconds += time.monotonic() - started
            pictures += count
            window.append(losses)
            bar.update()
            if settings.log_every and progress.step % settings.log_every == 0:
                self._log(window, pictures, time.monotonic() - since, bar)
                window, pictures, since = [], 0, time.monotonic()
            at_end = progress.step == self.max_steps
            if settings.evaluate_every and progress.step % settings.evaluate_every == 0 and not at_end:
                if self._evaluate():
                    self.accelerator.print(f"no better AP for {progress.evaluations_without_gain} evaluations")
                    break
            due = settings.checkpoint_every and progress.step % settings.checkpoint_every == 0
            (stop,) = self._agree(self._stop.raised)
            if due or stop or at_end:
                checkpoint = self.save()
                if stop:
                    return checkpoint
        bar.close()
        return None

    def _log(self, window: list[dict[str, float]], pictures: int, seconds: float, bar: tqdm) -> None:
        values = {name: sum(w.get(name, 0.0) for w in window) / len(window) for name in window[-1]}
        values["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        values["images_per_second"] = pictures * self.accelerator.num_processes / seconds
        values["memory_gb"] = peak_memory_gb()
        names = {name: BAR_NAMES.get(name, name.removeprefix("loss_")) for name in values}
        bar.set_postfix({names[name]: f"{value:.3g}" for name, value in values.items()})
        self.accelerator.log(values, step=self.progress.step)

    def _evaluate(self) -> bool:
        """Measure; True if it is time to stop early."""
        if self.evaluate is None:
            return False
        self.model.eval()
        with self.averaged() as model:
            metrics = self.evaluate(model)
        self.model.train()
        progress = self.progress
        progress.history.append({"step": progress.step, **metrics})
        self.accelerator.log(metrics, step=progress.step)
        self.accelerator.print(f"step {progress.step}: {json.dumps(metrics)}")
        score = metrics.get("AP", 0.0)
        self.schedule.report(score)
        if score > progress.best:
            progress.best, progress.evaluations_without_gain = score, 0
        else:
            progress.evaluations_without_gain += 1
        patience = self.recipe.tuning.early_stopping
        return bool(patience) and progress.evaluations_without_gain >= patience

    def _finish(self) -> Path:
        """Measure a last time and write the Hub-ready directories."""
        if not self._measured_last:
            self._evaluate()
        final = self.output / "final"
        self.accelerator.wait_for_everyone()
        # Every process takes part in putting sharded weights together; one writes.
        self._export(final, averaged=False)
        if self.average is not None:
            with self.averaged():
                self._export(self.output / "final-ema", averaged=True)
        if self.accelerator.is_main_process:
            (self.output / "history.json").write_text(json.dumps(self.progress.history, indent=1))
        self.accelerator.wait_for_everyone()
        return final

    def _export(self, directory: Path, averaged: bool) -> None:
        weights = None
        if self.accelerator.distributed_type in SHARDED:
            weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            self._save_model(self.unwrapped, directory, averaged, weights)

    def _save_model(
        self, model: GlipForGrounding, directory: Path, averaged: bool, weights: dict[str, torch.Tensor] | None
    ) -> None:
        """Write the directory; `weights`, if the model itself holds a part of them only."""
        model.save_pretrained(directory, state_dict=weights)
        self.processor.save_pretrained(directory)
        write_card(
            directory,
            self.recipe,
            self.progress.step,
            self.progress.seconds,
            self.accelerator.num_processes,
            self.progress.history,
            averaged,
            measured_average=self.average is not None,
        )
        self._push(directory, averaged)

    def _push(self, directory: Path, averaged: bool) -> None:
        """Upload the directory, if it is the one that is wanted: the averaged weights, where they are kept."""
        repository = self.recipe.run.push_to_hub
        if repository and (averaged or self.average is None):
            HfApi().create_repo(repository, exist_ok=True)
            HfApi().upload_folder(repo_id=repository, folder_path=directory)


__all__ = ["NonFiniteLossError", "Progress", "Run"]
