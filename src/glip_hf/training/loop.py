# Copyright 2026 The glip_hf authors. MIT licence.
"""The training loop: Accelerate for devices and processes, everything that decides a number in plain sight.

A step of a run is a function of (recipe, step number): samples, augmentations, dropout and schedule follow from the
seed, so a run that is killed and resumed ends with the same parameters as one that was not.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from .._launch import warn_if_alone
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from .card import write_card
from .checkpoints import resolve_checkpoint, write_checkpoint
from .optimization import ExponentialAverage, Schedule, build_optimizer
from .recipe import Recipe, dump_recipe

logger = logging.getLogger(__name__)


class TrainingBatches(Protocol):
    """What the loop learns from."""

    def steps_per_epoch(self) -> int:
        """Micro-batches of one pass over the data, the same on every process."""

    def batches(self, start: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches from number `start` of the run on, without end.

        Each holds keyword arguments of `GlipForGrounding.forward` (tensors on the CPU, `labels` a list of dicts) and
        `sample_ids`, a list that names the samples.
        """


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the batch lies at the path the message names."""


@dataclass
class Progress:
    """How far a run is; part of every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] | None = None

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
        make_batches: Callable[[Accelerator], TrainingBatches],
        evaluate: Callable[[GlipForGrounding], dict[str, float]] | None = None,
    ) -> None:
        settings = recipe.run
        self.recipe, self.processor, self.evaluate = recipe, processor, evaluate
        self.output = Path(settings.output_dir)
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
        optimizer = build_optimizer(model, recipe.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = Schedule(optimizer, recipe.schedule, self.max_steps)
        self.progress = Progress(history=[])
        self.average = None
        resumable: list[Any] = [self.schedule, self.progress]
        if settings.ema_decay:
            self.average = ExponentialAverage(self._trained(), settings.ema_decay)
            resumable.append(self.average)
        self.accelerator.register_for_checkpointing(*resumable)
        self._stop_requested = False

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
        self.accelerator.load_state(str(checkpoint))
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

    def _update(self, micro_batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """One optimiser step; returns this process's mean losses and its number of pictures."""
        settings = self.recipe.run
        self._seed_step()
        totals: dict[str, float] = {}
        pictures = 0
        finite = True
        for _ in range(settings.gradient_accumulation):
            batch = dict(next(micro_batches))
            sample_ids = batch.pop("sample_ids")
            inputs = to_device(batch, self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                outputs = self.model(**inputs)
                losses = {name: value.item() for name, value in outputs.loss_dict.items()}
                losses["loss"] = outputs.loss.item()
                (broken,) = self._agree(not torch.isfinite(outputs.loss).item())
                if broken and settings.on_nonfinite == "stop":
                    path = self._dump_batch({**batch, "sample_ids": sample_ids}, losses)
                    raise NonFiniteLossError(
                        f"the loss is not finite at step {self.progress.step} ({losses}); samples "
                        f"{sample_ids} are saved in {path}. Lower optimizer.lr, use bf16, or set "
                        "run.on_nonfinite=zero to skip such steps, as the original did."
                    )
                finite &= not broken
                self.accelerator.backward(outputs.loss)
                if self.accelerator.sync_gradients:
                    if not finite:
                        self.optimizer.zero_grad()
                    elif self.recipe.optimizer.clip_norm:
                        norm = self.accelerator.clip_grad_norm_(
                            self.model.parameters(), self.recipe.optimizer.clip_norm
                        )
                        totals["gradient_norm"] = float(norm)
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
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            stopped = self._steps()
            signal.signal(signal.SIGTERM, previous)
            if stopped:
                self.accelerator.print(f"asked to stop: saved {stopped}; go on with --resume latest")
                return stopped
            return self._finish()
        finally:
            signal.signal(signal.SIGTERM, previous)
            if settings.trackers:
                self.accelerator.end_training()  # it also takes leave of the other processes: nothing can follow

    def _request_stop(self, *_: Any) -> None:
        self._stop_requested = True

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
            (stop,) = self._agree(self._stop_requested)
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
        if torch.cuda.is_available():
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items() if "_" not in name})
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
        self._evaluate()
        final = self.output / "final"
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._save_model(self.unwrapped, final, averaged=False)
            if self.average is not None:
                with self.averaged() as model:
                    self._save_model(model, self.output / "final-ema", averaged=True)
            (self.output / "history.json").write_text(json.dumps(self.progress.history, indent=1))
        self.accelerator.wait_for_everyone()
        return final

    def _save_model(self, model: GlipForGrounding, directory: Path, averaged: bool) -> None:
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)
        write_card(
            directory,
            self.recipe,
            self.progress.step,
            self.progress.seconds,
            self.accelerator.num_processes,
            self.progress.history,
            averaged,
        )
        if averaged or self.average is None:
            repository = self.recipe.run.push_to_hub
            if repository:
                HfApi().create_repo(repository, exist_ok=True)
                HfApi().upload_folder(repo_id=repository, folder_path=directory)


__all__ = ["NonFiniteLossError", "Progress", "Run", "TrainingBatches"]
