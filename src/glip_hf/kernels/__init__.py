# Copyright 2026 The glip_hf authors. MIT licence.
"""Fast forms of the model's operations, registered in `ops_glip`: one file per operation and device.

    with kernels.disable():                  # or GLIP_KERNELS=0: the plain form of every operation
        expected = model(**inputs)
    kernels.disable("cpu_swin")              # one of `kernels.names()`, until enabled again
    kernels.enable()
    kernels.report(model, inputs)            # {"swin_layer": "cpu_swin", "dyconv": "plain", ...}

Whether a kernel may serve a call (hooks, adapters, offloading, quantised weights, autocast, tracing) is decided by its
condition, from the guards in `guards`. A kernel works in place only on tensors that it made itself.
"""

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

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


class disable:
    """Turn kernels off in this process: until `enable`, or within a `with` statement.

    Args:
        chosen: of `names()`; default all.

    Raises:
        ValueError: for a name that no kernel has.
    """

    def __init__(self, *chosen: str) -> None:
        self._before = set(ops_glip._disabled)
        ops_glip._disabled.update(_known(chosen))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        ops_glip._disabled.clear()
        ops_glip._disabled.update(self._before)


def enable(*chosen: str) -> None:
    """Turn kernels on again; default all.

    Raises:
        ValueError: for a name that no kernel has.
    """
    ops_glip._disabled.difference_update(_known(chosen))


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

__all__ = ["disable", "enable", "names", "report"]
