# Copyright 2026 The glip_hf authors. MIT licence.
"""Fast forms of the model's operations, registered in `ops_glip`: one file per operation and device.

    with kernels.disable():                  # or GLIP_KERNELS=0: the plain form of every operation
        expected = model(**inputs)
    kernels.disable("cpu_swin")              # one of `kernels.names()`, until enabled again
    kernels.enable()
    kernels.report(model, inputs)            # {"swin_layer": "cpu_swin", "dyconv": "plain", ...}
    kernels.fastest_dtype()                  # torch.bfloat16 on some processors: what `--dtype auto` takes

Whether a kernel may serve a call (hooks, adapters, offloading, quantised weights, autocast, tracing) is decided by its
condition, from the guards in `guards`. A kernel works in place only on tensors that it made itself.
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import ops_glip
from . import cpu_dyconv, cpu_linear, cpu_swin, cuda_deform_conv, fusion  # noqa: F401  # they register themselves


def names() -> list[str]:
    """The registered kernels."""
    return list(dict.fromkeys(kernel.name for kernels in ops_glip._kernels.values() for kernel in kernels))


def _known(chosen: tuple[str, ...]) -> set[str]:
    """
    Raises:
        ValueError: for a name that no kernel has.
    """
    unknown = set(chosen) - set(names())
    if unknown:
        raise ValueError(f"no kernel is named {sorted(unknown)[0]!r}: choose from {', '.join(names())}.")
    return set(chosen or names())


def fastest_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The dtype of inference that was measured to be the fastest: bfloat16 on CPUs that multiply in it (AVX-512-BF16,
    AMX), float32 on others, where it must be converted, and on GPUs, where nothing has been measured yet."""
    native = torch.device(device).type == "cpu" and cpu_linear.bfloat16_is_native()
    return torch.bfloat16 if native else torch.float32


_lock = threading.Lock()
_active: list["disable"] = []  # what was turned off, by whom, and is not on again


def _apply() -> None:
    ops_glip._disabled = frozenset().union(*(one._names for one in _active))


class disable:
    """Turn kernels off in this process, for all of its threads: until `enable`, or within a `with` statement. Such
    statements may overlap, in one thread or several: a kernel is on again when the last that named it has ended.

    Args:
        chosen: of `names()`; default all.

    Raises:
        ValueError: for a name that no kernel has.
    """

    def __init__(self, *chosen: str) -> None:
        self._names = _known(chosen)
        self.__enter__()

    def __enter__(self) -> None:
        with _lock:
            if self not in _active:
                _active.append(self)
            _apply()

    def __exit__(self, *_: object) -> None:
        with _lock:
            if self in _active:
                _active.remove(self)
            _apply()


def enable(*chosen: str) -> None:
    """Turn kernels on again; default all.

    Raises:
        ValueError: for a name that no kernel has.
    """
    names = _known(chosen)
    with _lock:
        for one in _active:
            one._names -= names
        _active[:] = [one for one in _active if one._names]
        _apply()


def report(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Which form each operation of a model takes for these inputs, found by a forward in the caller's mode (training or
    evaluation, with gradients or without).

    Returns:
        the name of a kernel, or "plain", of each operation; "cpu_swin (10), plain (2)" where calls differ.
    """
    taken: dict[str, Counter[str]] = {}

    def observe(operation: str, form: str) -> None:
        taken.setdefault(operation, Counter())[form] += 1

    ops_glip._observers.append(observe)
    try:
        model(**inputs)
    finally:
        ops_glip._observers.remove(observe)
    return {
        operation: next(iter(forms)) if len(forms) == 1 else ", ".join(f"{form} ({n})" for form, n in forms.items())
        for operation, forms in taken.items()
    }


if os.environ.get("GLIP_KERNELS", "1").lower() in ("0", "false", "off", "no"):
    disable()

__all__ = ["disable", "enable", "fastest_dtype", "names", "report"]
