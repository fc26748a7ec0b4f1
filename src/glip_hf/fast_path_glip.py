# Copyright 2026 The glip_hf authors. MIT licence.
"""When a fused form may stand in for a chain of modules, and constants of shapes that are made once."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_traced() -> bool:
    """Whether the forward is being recorded (`torch.compile`, `torch.export`, `torch.jit.trace`) and not just run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def shape_constants(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of sizes and a device that makes constant tensors: the last `maxsize` results are kept.

    They are ordinary tensors even if made within `torch.inference_mode`, whose own could take no part in training
    later. Callers must not change them. While a forward is traced every call makes new ones.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        cached = functools.lru_cache(maxsize)(build)

        @functools.wraps(build)
        def call(*args: Any) -> Any:
            if is_traced():
                return build(*args)
            with torch.inference_mode(False), torch.no_grad():
                return cached(*args)

        call.cache_info, call.cache_clear = cached.cache_info, cached.cache_clear
        return call

    return decorate


def _is_watched(module: nn.Module) -> bool:
    """Whether something hangs on the call of a module: a hook, a `forward` of its own (offloading, adapters), or
    `compile()`, whose results may be memory that a recorded graph uses again."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or module._compiled_call_impl is not None
    )


def may_fuse(module: nn.Module, parts: dict[str, type[nn.Module]], x: Tensor) -> bool:
    """Whether a module may compute with the parameters of its parts without calling them.

    Args:
        parts: names of the parts and the classes they were built with. A part of another class (an adapter, a quantised
            layer) or with hooks is to be called.
        x: input; the fused forms are measured on CPU only.
    """
    if x.device.type != "cpu" or is_traced():
        return False
    found = [(module.get_submodule(name), kind) for name, kind in parts.items()]
    return all(type(part) is kind and not _is_watched(part) for part, kind in found)


def may_overwrite(module: nn.Module) -> bool:
    """Whether results of a module and its parts are nobody's but the caller's: no gradient is asked for, and no hook
    or wrapper could have kept one."""
    return not (
        torch.is_grad_enabled()
        or is_traced()
        or torch.nn.modules.module._has_any_global_hook()
        or any(map(_is_watched, module.modules()))
    )


def plain_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of a `torch.autograd.Function` made of steps in place: it runs once, in the dtypes of its
    `forward` even if called under autocast, and cannot be differentiated itself."""

    @functools.wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        with torch.autocast(grads[-1].device.type, enabled=False):
            return backward(ctx, *grads)

    return torch.autograd.function.once_differentiable(call)


__all__ = ["is_traced", "may_fuse", "may_overwrite", "plain_backward", "shape_constants"]
