# Copyright 2026 The glip_hf authors. MIT licence.
"""Time per part of a model, forward and backward."""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from benchmarks.harness import Variant, synchronise
from glip_hf import GlipForGrounding


def parts_of(model: GlipForGrounding) -> list[tuple[str, nn.Module]]:
    """The modules whose time is shown, with the name of the part they belong to."""
    base = model.model
    parts = [("swin", base.backbone), ("fpn", base.neck), ("text", base.text_model), ("head", model.head)]
    for block in base.tower["blocks"]:
        parts += [("fusion", block.fusion), ("text layer", block.text_layer), ("dyconv", block.dyconv)]
    return [(name, module) for name, module in parts if module is not None]


class PartTimer:
    """Seconds of each part of a model, or of several views of one, while it runs, backward pass included.

    Time is always attributed to one part: the innermost one whose call is in progress, or in a backward pass the one
    whose gradients are being computed. Autograd processes a graph in the reverse order of its construction, so that is
    the part whose output's gradient was requested last. What a checkpoint recomputes is attributed to the part that it
    belongs to, everything else to "other".
    """

    def __init__(self, *models: GlipForGrounding) -> None:
        self._parts = [part for model in models for part in parts_of(model)]
        self.seconds: dict[str, float] = {}
        self._stack = ["other"]

    def _switch(self) -> None:
        synchronise()
        now = time.perf_counter()
        self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    def _enter(self, name: str) -> None:
        self._switch()
        self._stack.append(name)

    def _leave(self) -> None:
        self._switch()
        self._stack.pop()

    def _leave_module(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(lambda _: self._differentiate(name))
        self._leave()

    def _differentiate(self, name: str) -> None:
        self._switch()
        self._stack[0] = name

    def differentiated(self) -> None:
        """To be called after a backward pass: what follows is attributed to "other" again."""
        self._differentiate("other")

    @contextlib.contextmanager
    def watching(self) -> Iterator["PartTimer"]:
        """Measure the `with` block."""
        global _timer
        hooks = []
        for name, module in self._parts:
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            # Also after an exception: a checkpoint raises one to stop recomputing early.
            leave = functools.partial(self._leave_module, name)
            hooks.append(module.register_forward_hook(leave, always_call=True))
        synchronise()
        self._since, _timer = time.perf_counter(), self
        try:
            yield self
            self._switch()
        finally:
            _timer = None
            for hook in hooks:
                hook.remove()


_timer: PartTimer | None = None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Attribute the `with` block to a part of this name, where parts are being timed."""
    timer = _timer
    if timer is not None:
        timer._enter(name)
    try:
        yield
    finally:
        if timer is not None:
            timer._leave()


def differentiated() -> None:
    """See `PartTimer.differentiated`; nothing where parts are not being timed."""
    if _timer is not None:
        _timer.differentiated()


def time_parts(
    models: Sequence[GlipForGrounding], variants: dict[str, Variant]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Seconds of each part of the models in one run of each variant, and what the runs returned."""
    seconds, results = {}, {}
    for name, variant in variants.items():
        variant.prepare()
        with PartTimer(*models).watching() as timer:
            results[name] = variant.run()
        seconds[name] = timer.seconds
    return seconds, results
