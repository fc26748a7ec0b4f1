# Copyright 2026 The glip_hf authors. MIT licence.
"""The training loop: Accelerate for devices and processes, everything that decides a result in plain sight.

A step of a run is a function of (recipe, step number): samples, augmentations, dropout and schedule follow from the
seed, so a run that is killed and resumed ends with the same parameters as one that was not.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, send_to_device, set_seed
from huggingface_hub import HfApi
from pydantic import NonNegativeInt
from tqdm.auto import tqdm

from .. import runs
from .._compat import enable_checkpointing
from .._launch import follow_launcher, threads_asked_for, warn_if_alone
from .._writing import patient_file, replacing, replacing_text
from ..boxes_glip import make_anchors
from ..configuration_glip import PYRAMID_STRIDES
from ..data import GroundingDataset
from ..data.sources import Source
from ..evaluation.distributed import broadcast, gather
from ..kernels.cpu_linear import settle_library
from ..loss_glip import match_labels, mean_over_processes
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from ..runs import FolderLock, Manifest, RunFolderError
from ..values_glip import in_one_line, shown
from . import checkpoints
from .batches import Batches, per_process
from .card import write_card
from .checkpoints import CheckpointError, find_checkpoints
from .optimization import ExponentialAverage, Schedule, ScheduleState, accumulation_weights, build_optimizer
from .recipe import Recipe, RecipeError, RunRecipe, Section, dump_recipe
from .stopping import StopRequest

SHARDED = ("FSDP", "DEEPSPEED")
MADE = ("checkpoints/step_*[0-9]", "final", "final-ema", "history.json")
"""What a run leaves in its folder."""
BAR_NAMES = {"images_per_second": "img/s", "memory_gb": "GB", "gradient_norm": "norm"}
"""Names of logged values on the progress bar, where the prefix `loss_` is dropped too."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message names the file that the batch is saved in."""


class Progress(Section):
    """How far a run is; part of every checkpoint.

    Attributes:
        best: highest validation AP that was measured; history: all metrics by step.
    """

    step: NonNegativeInt = 0
    seconds: float = 0.0
    best: float = float("-inf")
    evaluations_without_gain: NonNegativeInt = 0
    history: list[dict[str, Any]] = []


class SavedState(Section):
    """`state.json` of a checkpoint.

    Attributes:
        scaler: of gradients in float16.
        best_step: that of the tensors in `best.safetensors`; 0 for none.
    """

    progress: Progress
    schedule: ScheduleState
    scaler: dict[str, int | float] | None = None
    best_step: NonNegativeInt = 0


def peak_memory_gb() -> float:
    """Peak memory of this process: allocated on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def check_trackers(names: list[str]) -> None:
    """Raise a RecipeError for trackers whose packages are missing, which accelerate would skip without a warning."""
    available = [str(name) for name in get_available_trackers()]
    if missing := ", ".join(name for name in names if name not in ("all", *available)):
        raise RecipeError(
            f"run.trackers={names}: {missing} is unknown or not installed (pip install {missing}); available are "
            f"{', '.join(available) or 'none'}. run.trackers=[] keeps no log."
        )


def check_sharding_launch() -> None:
    """Raise a RecipeError where the launcher shards and there is no accelerator: accelerate would shard nothing."""
    if torch.accelerator.is_available():
        return
    for name in SHARDED:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise RecipeError(
                f"the launcher asks for {name}, which accelerate has on accelerators only, and PyTorch finds none: "
                "launch with examples/launch/cpu.yaml, or mend the driver (torch.accelerator.is_available())."
            )


def overruled(settings: RunRecipe) -> list[str]:
    """What the launcher asks for and the recipe has otherwise; "no", the launcher's default, asks for nothing."""
    variables = {"precision": "MIXED_PRECISION", "gradient_accumulation": "GRADIENT_ACCUMULATION_STEPS"}
    found = []
    for key, name in variables.items():
        own, asked = str(getattr(settings, key)), os.environ.get(f"ACCELERATE_{name}", "no")
        if own != "auto" and asked not in ("no", "auto", own):
            found.append(f"run.{key}={own}, not ACCELERATE_{name}={asked}")
    return found


class Run:
    """One training run, of which `train()` does everything.

    Args:
        recipe: see `Recipe`.
        model, processor: what to train and what to save beside it.
        make_batches: called with the accelerator; returns the data of this process.
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
        settings, accumulation = recipe.run, recipe.run.gradient_accumulation
        self.recipe, self.processor, self.evaluate = recipe, processor, evaluate
        self.output = Path(settings.output_dir)
        check_trackers(settings.trackers)
        if evaluate is None and (recipe.schedule.name == "plateau" or recipe.tuning.early_stopping):
            raise RecipeError(
                "schedule.name=plateau and tuning.early_stopping follow a validation AP, and this run has none: use "
                "schedule.name=multistep and tuning.early_stopping=0, or examples/finetune.py."
            )
        check_sharding_launch()
        self.accelerator = Accelerator(
            # Explicitly: several processes that find no accelerator would otherwise not form a group.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=None if settings.precision == "auto" else settings.precision,
            # As a plugin: ACCELERATE_GRADIENT_ACCUMULATION_STEPS would replace the plain argument.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
            log_with=settings.trackers or None,
            project_dir=str(self.output),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        if kept := ", ".join(overruled(settings)):
            self.accelerator.print(f"note: the recipe holds where the launcher differs: {kept}")
        if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "fp16":
            raise RecipeError(
                f"run.precision={settings.precision}: fp16 needs an accelerator, on a CPU accelerate would train in "
                "float32: use bf16 or no, here or in the launcher's mixed_precision."
            )
        warn_if_alone(self.accelerator.num_processes)
        follow_launcher()
        if self.accelerator.device.type == "cpu":
            # Otherwise MKL may split a product among threads in a different way each time, with different rounding. It
            # is read at the first product of the process, costs nothing, and makes two runs equal bit for bit.
            os.environ.setdefault("MKL_CBWR", "AUTO")
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            local = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
            torch.set_num_threads(settings.cpu_threads or threads_asked_for() or max(cores // local, 1))
        if settings.gradient_checkpointing:
            enable_checkpointing(model)
        self.batches = make_batches(self.accelerator)
        self.max_steps = recipe.schedule.max_steps or max(
            recipe.schedule.epochs * self.batches.steps_per_epoch() // accumulation, 1
        )
        self._check_sharding()
        optimizer = build_optimizer(model, recipe.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = Schedule(optimizer, recipe.schedule, self.max_steps)
        self.progress = Progress()
        self.average = ExponentialAverage(self._trained(), settings.ema_decay) if settings.ema_decay else None
        self._stop = StopRequest()
        self._lock = self._claim_folder()
        try:
            self._create_repository()
            self._resume()
        except BaseException:
            self._release()
            raise

    def _check_sharding(self) -> None:
        """Give DeepSpeed what accelerate would read off a loader of its own, and refuse what cannot be averaged."""
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
        if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
            raise RecipeError("FSDP1 flattens parameters, which checkpoints know by name: set fsdp_version: 2.")
        if recipe.run.ema_decay and plugin is not None and plugin.zero_stage == 3:
            raise RecipeError(
                f"run.ema_decay={recipe.run.ema_decay} averages parameters, which ZeRO-3 partitions: set "
                "run.ema_decay=0, or use FSDP2 (fsdp_version: 2) or ZeRO-2."
            )

    @property
    def unwrapped(self) -> GlipForGrounding:
        """The model without the wrappers of its processes and of the compiler."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters that change in training: the only tensors worth averaging."""
        return ((name, value) for name, value in self.unwrapped.named_parameters() if value.requires_grad)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[GlipForGrounding]:
        """The model with its averaged weights in place, if they are kept."""
        if self.average is None:
            yield self.unwrapped
            return
        with torch.no_grad():
            own = {name: parameter.clone() for name, parameter in self._trained()}
            for name, parameter in self._trained():
                parameter.copy_(self.average.average[name])
            try:
                yield self.unwrapped
            finally:
                for name, parameter in self._trained():
                    parameter.copy_(own[name])

    # -- the folder -------------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Source]:
        """What the run reads, for its manifest."""
        dataset = self.batches.dataset
        named = self.recipe.data.sources and isinstance(dataset, GroundingDataset)  # else generated scenes, or a stream
        sources = dataset.mixture.sources if named else []
        return {f"data.sources[{index}]": source for index, source in enumerate(sources)}

    def _manifest(self) -> Manifest:
        """What the result of this run follows from. Data and models are compared by content: they may move."""
        settings, inputs = self.recipe.decisive(), {}
        for name, source in self._inputs().items():
            inputs[name] = [f"{source.name} ({len(source)} images)", source.digest()]
        if inputs:
            kept = ("copies", "weight")
            settings["data.sources"] = [{k: s[k] for k in kept if k in s} for s in settings["data.sources"]]
        elif settings["data.sources"]:  # a stream, whose order depends on its readers
            settings["data.workers"] = self.batches.workers
        settings["run.precision"] = self.accelerator.mixed_precision  # which `auto` leaves to the launcher
        for name in ("start_from", "backbone_weights", "text_weights", "tokenizer"):
            path = settings[key := f"model.{name}"]
            if path and Path(path).exists():
                inputs[key] = [settings.pop(key), runs.path_digest(path)]
        found = runs.environment(self.accelerator.num_processes, self._library)
        found |= {"threads": torch.get_num_threads(), "steps": self.max_steps}
        return Manifest("training", settings, inputs, found)

    def _claim_folder(self) -> FolderLock | None:
        """Lock the output folder and write the manifest, in the main process; refuse a folder in use or used.

        Raises:
            RunFolderError: in every process.
        """
        settings = self.recipe.run
        self._library = broadcast(settle_library()) if self.accelerator.device.type == "cpu" else None
        settle_library(self._library)
        own = settings.resume == "latest"
        if settings.resume and not own:
            own = self._checkpoints.resolve() in Path(settings.resume).resolve().parents
        if own and settings.overwrite:
            raise RecipeError(f"run.overwrite deletes run.resume={settings.resume}: drop one of them.")

        def claim_it() -> FolderLock:
            if settings.resume and not own:
                checkpoints.candidates(settings.resume, self._checkpoints)  # before the folder is found to be used
            self._identity = self._manifest()
            return runs.claim(self.output, self._identity, MADE, resume=own, overwrite=settings.overwrite)[0]

        return runs.on_main(claim_it, self.accelerator.is_main_process, broadcast)

    def _create_repository(self) -> None:
        """Of `run.push_to_hub`, before the work: a RunFolderError for a wrong name, a missing token, or no network."""
        repository = self.recipe.run.push_to_hub

        def create() -> None:
            try:
                HfApi().create_repo(repository, exist_ok=True)
            except Exception as error:  # network, proxies and certificates fail in many ways
                reason = " ".join(str(error).split()) or type(error).__name__
                raise RunFolderError(
                    f"run.push_to_hub={shown(repository)}: the repository cannot be created ({shown(reason, 300)}): "
                    "correct the name, log in (hf auth login), or leave it out; nothing was started."
                ) from error

        if repository:
            runs.on_main(create, self.accelerator.is_main_process, broadcast)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.output / "checkpoints"

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds of tensors besides the optimiser's, by file; DeepSpeed writes the model itself."""
        found = {} if self.accelerator.distributed_type == "DEEPSPEED" else {"model": self.unwrapped.state_dict()}
        return found | ({"average": self.average.average} if self.average else {})

    def _state(self) -> SavedState:
        scaler = self.accelerator.scaler
        return SavedState(
            progress=self.progress.model_dump(),
            schedule=self.schedule.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
        )

    def save(self) -> Path:
        """Write a checkpoint of the current step."""
        is_main = self.accelerator.is_main_process

        def write(folder: Path) -> None:
            tensors = self._tensors()
            if self.accelerator.distributed_type == "DEEPSPEED":
                self.model.save_checkpoint(str(folder / checkpoints.DEEPSPEED), checkpoints.DEEPSPEED)
            else:
                tensors["optimizer"] = checkpoints.optimizer_tensors(self.optimizer.optimizer)
            for name, named in tensors.items():
                checkpoints.write_tensors(folder, name, named, is_main)
            if is_main:
                checkpoints.write_json(folder / checkpoints.STATE, self._state())

        return checkpoints.write_checkpoint(
            self._checkpoints,
            self.progress.step,
            self.recipe.run.keep_checkpoints,
            write,
            is_main,
            self.accelerator.wait_for_everyone,
            self._identity.as_json() if is_main else None,
        )

    def _resume(self) -> None:
        """Go on from the checkpoint that the recipe names; from an older one, where the newest are damaged.

        Raises:
            CheckpointError: if none can be resumed; RunFolderError: if it comes from a run of other settings or inputs.
        """
        resume = self.recipe.run.resume
        if not resume:
            return

        def choose() -> tuple[list[Path], list[str], Manifest | None]:
            whole, damaged = checkpoints.candidates(resume, self._checkpoints)
            for path in whole:
                before = Manifest.from_json(checkpoints.read_manifest(path).run)
                if different := before.differences(self._identity):
                    what = in_one_line(different)
                    raise RunFolderError(
                        f"{path} comes from a run with {what}: give this run the same, or start a new one from a "
                        "finished model with model.start_from."
                    )
            return whole, damaged, before if whole else None

        main = self.accelerator.is_main_process
        whole, damaged, before = broadcast(runs.on_main(choose, main, broadcast))
        if not whole:
            self.accelerator.print(f"{self._checkpoints} has no checkpoint yet: starting at step 0")
            return
        for path in whole:
            try:
                self._load(path)
            except CheckpointError as error:
                damaged.append(f"{path}: {error}")
                continue
            break
        else:
            raise checkpoints.no_whole_one(damaged, self._checkpoints)
        if (chosen := broadcast(path)) != path:
            raise RunFolderError(f"{chosen} cannot be read by every process of this run ({'; '.join(damaged)}).")
        for what in damaged:
            self.accelerator.print(f"note: {what}: going back to an older checkpoint")
        if self._library is not None:
            self._library = settle_library(before.environment.get("matmul"))
        if main:
            self._identity.environment["matmul"] = self._library
            if notes := before.notes(self._identity):
                self.accelerator.print(f"note: the run began with {', '.join(notes)}: its last bits may differ")
        self.accelerator.print(f"resumed from {path}, step {self.progress.step} of {self.max_steps}")

    def _load(self, path: Path) -> SavedState:
        """Restore a checkpoint; a CheckpointError if its content is not that of this run."""
        step, state = checkpoints.read_manifest(path).step, checkpoints.read_json(path / checkpoints.STATE, SavedState)
        if (state.progress.step, state.schedule.step_number) != (step, step):
            raise CheckpointError(f"{checkpoints.STATE} is of another step than {step}")
        scaler, expected = self.accelerator.scaler, self._tensors()
        if (scaler is None) != (state.scaler is None):
            raise CheckpointError(f"{checkpoints.STATE} does not fit run.precision={self.recipe.run.precision}")
        found = {name: checkpoints.read_tensors(path, name, named) for name, named in expected.items()}
        if self.accelerator.distributed_type == "DEEPSPEED":
            with checkpoints.restricted_unpickling():
                self.model.load_checkpoint(str(path / checkpoints.DEEPSPEED), checkpoints.DEEPSPEED)
        else:
            optimizer = self.optimizer.optimizer
            wanted = checkpoints.expected_optimizer_tensors(optimizer)
            checkpoints.put_optimizer(optimizer, checkpoints.read_tensors(path, "optimizer", wanted, partly=True))
        for name, named in expected.items():
            for key, target in named.items():
                checkpoints.put(target, found[name][key])
        self.progress = state.progress
        self.schedule.load_state_dict(state.schedule.model_dump())
        if scaler is not None:
            scaler.load_state_dict(state.scaler)
        return state

    # -- one step ---------------------------------------------------------------------------------

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.accelerator.reduce(torch.tensor([float(flag)], device=self.accelerator.device), "sum").item() > 0

    def _seed_step(self) -> None:
        """Dropout as a function of (seed, step, process): other draws of random numbers in between (an evaluation, a
        resume) change nothing, and no two processes drop the same elements.
        """
        key = (self.recipe.run.seed, self.progress.step, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _stop_at(self, what: str, batch: dict[str, Any], losses: dict[str, float]) -> None:
        """Save the batch and stop, unless such steps are to be skipped."""
        if self.recipe.run.on_nonfinite == "zero":
            return
        step = self.progress.step
        path = self.output / f"nonfinite_step_{step:08d}_rank_{self.accelerator.process_index}.pt"
        names, saved = batch["sample_ids"], f"are saved in {path}"
        names = ", ".join([*names[:4], "..."] if len(names) > 5 else names)
        try:
            with replacing(path) as new, patient_file(new) as file:
                torch.save({"batch": send_to_device(batch, "cpu"), "losses": losses}, file)
        except OSError as error:
            saved = f"could not be saved ({error})"
        raise NonFiniteLossError(
            f"{what} is not finite at step {step} ({losses}); samples {names} {saved}. "
            "Lower optimizer.lr, use bf16, or set run.on_nonfinite=zero to skip such steps, as the original did."
        )

    def _weights(self, batches: list[dict[str, Any]]) -> list[dict[str, float]]:
        """Factors that give a step of several micro-batches the loss of one large batch."""
        if len(batches) == 1:
            return [{}]
        config, device, counts = self.unwrapped.config, self.accelerator.device, []
        for batch in batches:
            height, width = batch["pixel_values"].shape[-2:]
            shapes = [(-(-height // stride), -(-width // stride)) for stride in PYRAMID_STRIDES]
            anchors = make_anchors(shapes, PYRAMID_STRIDES, config.anchor_scale, device)
            sizes = [rows * columns for rows, columns in shapes]
            labels = send_to_device(batch["labels"], device)
            *_, centerness = match_labels(labels, anchors, sizes, config.atss_top_k)
            counts.append(torch.stack([centerness.new_full((), len(centerness)), centerness.sum()]))
        return accumulation_weights(*mean_over_processes(torch.stack(counts, dim=1)))

    def _update(self, micro_batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """One optimiser step; returns this process's mean losses and its number of images."""
        settings = self.recipe.run
        self._seed_step()
        totals: dict[str, float] = {}
        images, finite = 0, True
        with self._stop.waiting():
            batches = [dict(next(micro_batches)) for _ in range(settings.gradient_accumulation)]
        for batch, weights in zip(batches, self._weights(batches)):
            inputs = send_to_device(batch, self.accelerator.device, non_blocking=True)
            del inputs["sample_ids"]
            with self.accelerator.accumulate(self.model):
                terms = {
                    name: value * weights.get(name, weights.get("positives", 1.0)) if name != "loss_mlm" else value
                    for name, value in self.model(**inputs).loss_dict.items()
                }
                loss = sum(terms.values())
                # Read together: the host waits for a GPU once.
                losses = dict(zip((*terms, "loss"), torch.stack([*terms.values(), loss]).tolist()))
                if self._any(not math.isfinite(losses["loss"])):
                    self._stop_at("the loss", batch, losses)
                    finite = False
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and finite and self.recipe.optimizer.clip_norm:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
                    totals["gradient_norm"] = norm = 0.0 if norm is None else float(norm)  # DeepSpeed clips itself
                    # With fp16 the scaler itself skips such a step, and tries a smaller scale.
                    if not math.isfinite(norm) and self.accelerator.scaler is None:
                        self._stop_at("the gradient", batch, losses)
                        finite = False
                if finite:
                    self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value / settings.gradient_accumulation
            images += len(inputs["pixel_values"])
        self.schedule.step()
        if self.average is not None:
            self.average.update(self._trained())
        return totals, images

    # -- the whole run ----------------------------------------------------------------------------

    def train(self) -> Path:
        """Run to the end (or to a SIGTERM, which saves and returns).

        Returns:
            the directory of the finished model, or of the checkpoint if the run was asked to stop.
        """
        trackers = self.recipe.run.trackers
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            with replacing_text(self.output / "recipe.yaml") as file:
                file.write(dump_recipe(self.recipe))
        self.accelerator.wait_for_everyone()
        if trackers:
            self.accelerator.init_trackers("glip_hf")
        try:
            with self._stop.listening():
                stopped = self._train_steps()
            if stopped:
                self.accelerator.print(f"asked to stop: saved {stopped}; continue with --resume latest")
            result = stopped or self._finish()
        except BaseException:
            self._say_where_it_ended()
            for tracker in self.accelerator.trackers:  # not `end_training`, which would wait for the other processes
                tracker.finish()
            raise
        finally:
            self._release()
        if trackers:
            self.accelerator.end_training()  # it also destroys the process group: nothing can follow
        return result

    def _say_where_it_ended(self) -> None:
        if not self.accelerator.is_main_process:
            return
        newest = next(reversed(find_checkpoints(self._checkpoints)), None)
        rest = f"{newest} is its newest checkpoint: --resume latest" if newest else "no checkpoint had been written"
        print(f"the run ends at step {self.progress.step} of {self.max_steps}; {rest}", file=sys.stderr)

    def _train_steps(self) -> Path | None:
        """Train to the last step; the checkpoint, if the run was asked to stop before."""
        settings, progress = self.recipe.run, self.progress
        is_main = self.accelerator.is_local_main_process
        self.model.train()
        window: list[dict[str, float]] = []
        images, since = 0, time.monotonic()

        def due(interval: int) -> bool:
            return bool(interval) and progress.step % interval == 0

        bar = tqdm(total=self.max_steps, initial=progress.step, disable=not is_main, desc="train", unit="step")
        batches = self.batches.batches(progress.step * settings.gradient_accumulation)
        with bar, contextlib.closing(batches) as micro_batches:
            while not self._is_over:
                started = time.monotonic()
                losses, count = self._update(micro_batches)
                progress.step += 1
                progress.seconds += time.monotonic() - started
                images += count
                window.append(losses)
                bar.update()
                if due(settings.log_every):
                    self._log(window, images, time.monotonic() - since, bar)
                    window, images, since = [], 0, time.monotonic()
                if due(settings.evaluate_every) and progress.step < self.max_steps:
                    self._evaluate()
                stop = self._any(self._stop.raised)
                if due(settings.checkpoint_every) or stop or self._is_over:
                    checkpoint = self.save()
                    if stop:
                        return checkpoint
        if progress.step < self.max_steps:
            self.accelerator.print(f"no better AP for {progress.evaluations_without_gain} evaluations")
        return None

    def _log(self, window: list[dict[str, float]], images: int, seconds: float, bar: tqdm) -> None:
        """Losses are means over the steps of the window and over the processes, each of which has a part of a batch."""
        own = {name: sum(w.get(name, 0.0) for w in window) / len(window) for name in window[-1]}
        parts = gather(own)
        values = {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in own}
        values["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        values["images_per_second"] = images * self.accelerator.num_processes / seconds
        values["memory_gb"] = peak_memory_gb()
        bar.set_postfix({BAR_NAMES.get(k, k.removeprefix("loss_")): f"{value:.3g}" for k, value in values.items()})
        self.accelerator.log(values, step=self.progress.step)

    @property
    def _is_over(self) -> bool:
        """Whether the last step is done, or too many evaluations were without a better AP."""
        progress, patience = self.progress, self.recipe.tuning.early_stopping
        return progress.step >= self.max_steps or 0 < patience <= progress.evaluations_without_gain

    def _evaluate(self) -> None:
        """Evaluate the weights of this step."""
        if self.evaluate is None:
            return
        progress = self.progress
        self.model.eval()
        with self.averaged() as model:
            metrics = self.evaluate(model)
        self.model.train()
        progress.history.append({"step": progress.step, **metrics})
        self.accelerator.log(metrics, step=progress.step)
        self.accelerator.print(f"step {progress.step}: {json.dumps(metrics)}")
        score = metrics.get("AP", math.nan)
        if not score >= 0:  # -1, and NaN, say that there was nothing to measure
            self.accelerator.print(f"step {progress.step}: no AP was measured, so this evaluation decides nothing")
            return
        self.schedule.report(score)
        progress.evaluations_without_gain = 0 if score > progress.best else progress.evaluations_without_gain + 1
        progress.best = max(progress.best, score)

    def _evaluate_final(self) -> None:
        """Evaluate the weights that are about to be saved."""
        self._evaluate()

    def _finish(self) -> Path:
        """Evaluate a last time and write the directories that `from_pretrained` loads."""
        self._evaluate_final()
        final = self.output / "final"
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with replacing_text(self.output / "history.json") as file:
                json.dump(self.progress.history, file, indent=1)
        self._export(final, averaged=False)
        if self.average is not None:
            with self.averaged():
                self._export(self.output / "final-ema", averaged=True)
        self.accelerator.wait_for_everyone()
        return final

    def _export(self, directory: Path, averaged: bool) -> None:
        """Write a directory and upload the one that is wanted: the averaged weights, where they are kept."""
        # Every process takes part in gathering sharded weights; one writes.
        sharded = self.accelerator.distributed_type in SHARDED
        weights = self.accelerator.get_state_dict(self.model) if sharded else None
        if not self.accelerator.is_main_process:
            return
        with replacing(directory) as new:
            self._save_model(new, averaged, weights)
        repository = self.recipe.run.push_to_hub
        if repository and averaged == (self.average is not None):
            HfApi().upload_folder(repo_id=repository, folder_path=directory)

    def _save_model(self, directory: Path, averaged: bool, weights: dict[str, torch.Tensor] | None) -> None:
        """Write model, processor and card; `weights`, where the model itself holds only a part of them."""
        self.unwrapped.save_pretrained(directory, state_dict=weights)
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
