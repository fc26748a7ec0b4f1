# Copyright 2026 The glip_hf authors. MIT licence.
"""Parameter groups, schedules and weight averaging, as in the training of the released models."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from .recipe import OptimizerRecipe, ScheduleRecipe, Section

TEXT_ENCODER = "text_model."
"""Part of the parameter names of the text encoder, of which the text layers of the head are not part."""

WEIGHT_DECAY_RATIO = 0.667
"""Fraction of each learning-rate milestone at which GLIP-L divides its weight decay."""


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay.

    The original's rule goes by name: every parameter whose name contains "bias", including Swin's relative-position
    tables and the biases of the dot product, gets `bias_lr_factor` times the learning rate and no decay.

    Returns:
        groups for AdamW, with the parameters' names under `names`.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = recipe.text_lr if TEXT_ENCODER in name else recipe.lr
        decay = recipe.weight_decay
        if "bias" in name:
            lr, decay = lr * recipe.bias_lr_factor, 0.0
        group = groups.setdefault((lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    return torch.optim.AdamW(groups, betas=tuple(recipe.betas), eps=recipe.eps, fused=recipe.fused or None)


def lr_multiplier(recipe: ScheduleRecipe, max_steps: int) -> Callable[[int], float]:
    """Multiplier of every learning rate at update number `step`, counted from 0."""
    milestones = [round(fraction * max_steps) for fraction in recipe.milestones]
    restarts = [round(fraction * max_steps) for fraction in recipe.restarts]

    def multiplier(step: int) -> float:
        warmup = 1.0
        if step < recipe.warmup_steps:
            progress = step / recipe.warmup_steps
            warmup = recipe.warmup_factor * (1 - progress) + progress
        if recipe.name == "multistep":
            return warmup * recipe.gamma ** sum(step >= milestone for milestone in milestones)
        if recipe.name == "cosine":
            passed = [start for start in restarts if start <= step]
            begin = max(passed, default=0)
            arc = 0.5 * (1 + math.cos(math.pi * min((step - begin) / max(max_steps - begin, 1), 1.0)))
            return warmup * recipe.gamma ** len(passed) * arc
        return warmup

    return multiplier


def weight_decay_multiplier(recipe: ScheduleRecipe, max_steps: int) -> Callable[[int], float]:
    """Multiplier of every weight decay at update number `step`."""
    milestones = [round(fraction * max_steps) * WEIGHT_DECAY_RATIO for fraction in recipe.milestones]

    def multiplier(step: int) -> float:
        return 0.1 ** sum(step >= milestone for milestone in milestones) if recipe.decay_weight_decay else 1.0

    return multiplier


class ScheduleState(Section):
    """How far a `Schedule` is."""

    step_number: NonNegativeInt
    reductions: NonNegativeInt
    best: float
    bad: NonNegativeInt


class Schedule:
    """Sets learning rate and weight decay of every group before each update; its state is the number of the update.

    A plateau schedule also multiplies by `gamma` whenever `report` has seen `patience` values without a better one.
    `torch.optim.lr_scheduler` has no counterpart that also schedules the weight decay.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: ScheduleRecipe, max_steps: int) -> None:
        self.optimizer, self.recipe = optimizer, recipe
        self._lr = lr_multiplier(recipe, max_steps)
        self._decay = weight_decay_multiplier(recipe, max_steps)
        self._base = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        self.step_number, self.reductions, self.best, self.bad = 0, 0, -math.inf, 0
        self._apply()

    def _apply(self) -> None:
        scale = self._lr(self.step_number) * self.recipe.gamma**self.reductions
        decay_scale = self._decay(self.step_number)
        for group, (lr, decay) in zip(self.optimizer.param_groups, self._base):
            group["lr"], group["weight_decay"] = lr * scale, decay * decay_scale

    def step(self) -> None:
        """Call after each update."""
        self.step_number += 1
        self._apply()

    def report(self, value: float) -> None:
        """Report a validation score; higher is better."""
        if value > self.best:
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.recipe.name == "plateau" and self.bad >= self.recipe.patience:
            self.reductions, self.bad = self.reductions + 1, 0
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ScheduleState.model_fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; a ValueError for values of other types and for unknown keys."""
        vars(self).update(dict(ScheduleState.model_validate(state)))
        self._apply()


class ExponentialAverage:
    """Exponential moving average of tensors: average = decay * average + (1 - decay) * value, after each update.

    No bias correction and no warm-up, as in the original. Integer buffers are copied. It holds float32 copies on the
    parameters' device; of sharded parameters (FSDP2) this process's shard.
    """

    def __init__(self, named_tensors: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.average = {
            name: value.detach().clone().float() if value.is_floating_point() else value.clone()
            for name, value in named_tensors
        }

    @torch.no_grad()
    def update(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        averages, values = [], []
        for name, value in named_tensors:
            if value.is_floating_point():
                averages.append(self.average[name])
                values.append(value.detach().float())
            else:
                self.average[name].copy_(value)
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, values, alpha=1 - self.decay)


def accumulation_weights(num_positive: Tensor, sum_centerness: Tensor) -> list[dict[str, float]]:
    """Factors that make the mean of the losses of M micro-batches the loss of all their images together.

    Args:
        num_positive, sum_centerness: [M], of `loss_glip.positives`, means over processes.

    Returns:
        for each micro-batch the factors of `loss_bbox` and, as `positives`, of the terms divided by positive locations.
    """
    count, rounds = num_positive.clamp(min=1), len(num_positive)
    by_count = count * rounds / num_positive.sum().clamp(min=1)
    total = sum_centerness.sum()
    by_centerness = sum_centerness * rounds / total if total > 0 else torch.ones_like(count)
    pairs = zip(by_count.tolist(), by_centerness.tolist())
    return [{"positives": first, "loss_bbox": second} for first, second in pairs]
