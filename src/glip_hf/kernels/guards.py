# Copyright 2026 The glip_hf authors. MIT licence.
"""Guards for kernels that compute with the parameters of modules in place of calling them."""

from collections.abc import Mapping

from torch import Tensor, nn

from .cpu_int8 import is_readable

# Of PyTorch, whose `_has_any_global_hook` 2.6 does not have yet
GLOBAL_HOOKS = (
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
)


def is_watched(module: nn.Module) -> bool:
    """Whether something depends on the call of a module: a hook, a `forward` of its own (offloading, adapters), or
    `compile()`, whose results may be memory that a recorded graph uses again."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or module._compiled_call_impl is not None
    )


def parts_are_plain(module: nn.Module, parts: Mapping[str, type[nn.Module]]) -> bool:
    """Whether a kernel may compute with the parameters of a module's parts without calling them.

    Args:
        parts: names of the parts and their classes. A part of another class (an adapter, a quantised layer), with
            hooks, or with parameters of another kind (distributed tensors, quantised ones unless `cpu_int8` reads
            them) is to be called.
    """
    for name, kind in parts.items():
        part = module.get_submodule(name)
        if type(part) is not kind or is_watched(part):
            return False
        parameters = [p for p in part._parameters.values() if p is not None]
        if not all(type(p) in (nn.Parameter, Tensor) or is_readable(p) for p in parameters):
            return False
    return not any(getattr(nn.modules.module, hooks) for hooks in GLOBAL_HOOKS)


def is_cpu_float(*tensors: Tensor) -> bool:
    """Whether all tensors are floating point and lie on a CPU."""
    return all(x.device.type == "cpu" and x.is_floating_point() for x in tensors)
