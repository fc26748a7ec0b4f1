# Copyright 2026 The glip_hf authors. MIT licence.
"""When fused forms stand in, and constants that are made once."""

import pytest
import torch
from torch import Tensor, nn

from glip_hf.fast_path_glip import may_fuse, may_overwrite, plain_backward, shape_constants

PARTS = {"inner": nn.Sequential, "inner.0": nn.Linear}


def module() -> nn.Module:
    return nn.ModuleDict({"inner": nn.Sequential(nn.Linear(2, 2))})


def test_constants_are_made_once_and_few_are_kept() -> None:
    made = []

    @shape_constants(maxsize=3)
    def ones(height: int, width: int) -> Tensor:
        made.append((height, width))
        return torch.ones(height, width)

    assert ones(2, 3) is ones(2, 3) and made == [(2, 3)]
    for size in range(10):
        ones(size, 1)
    assert ones.cache_info().currsize == 3
    ones(2, 3)
    assert made.count((2, 3)) == 2
    ones.cache_clear()
    assert ones.cache_info().currsize == 0


def test_constants_of_inference_may_be_trained_with() -> None:
    @shape_constants(maxsize=1)
    def ones(size: int) -> Tensor:
        return torch.ones(size)

    with torch.inference_mode():
        assert not ones(3).is_inference()
    x = torch.randn(3, requires_grad=True)
    (x * ones(3)).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_a_trace_leaves_nothing_behind() -> None:
    @shape_constants(maxsize=2)
    def ones(size: int) -> Tensor:
        return torch.ones(size)

    traced = torch.jit.trace(lambda x: x + ones(2), torch.zeros(2), check_trace=False)
    assert traced(torch.ones(2)).tolist() == [2, 2] and ones.cache_info().currsize == 0


def test_what_is_watched_everywhere_or_has_gradients_is_not_overwritten() -> None:
    assert not may_overwrite(module())
    with torch.inference_mode():
        assert may_overwrite(module())
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert not may_overwrite(module())
        handle.remove()
        assert may_overwrite(module())


def test_plain_parts_may_be_fused() -> None:
    assert may_fuse(module(), PARTS, torch.zeros(1))
    assert not may_fuse(module(), PARTS, torch.zeros(1, device="meta"))


@pytest.mark.parametrize("watch", ["hook", "pre-hook", "backward hook", "forward", "adapter", "compiled", "outer"])
def test_parts_that_must_be_called_are_not_fused(watch) -> None:
    whole = module()
    linear = whole["inner"][0]
    if watch == "hook":
        handle = linear.register_forward_hook(lambda *_: None)
    elif watch == "pre-hook":
        handle = linear.register_forward_pre_hook(lambda *_: None)
    elif watch == "backward hook":
        handle = linear.register_full_backward_hook(lambda *_: None)
    elif watch == "forward":  # how accelerate offloads
        linear.forward = nn.Linear.forward.__get__(linear)
    elif watch == "adapter":
        whole["inner"][0] = nn.Sequential(linear)
    elif watch == "compiled":
        linear.compile(backend="eager")
    else:
        handle = whole["inner"].register_forward_hook(lambda *_: None)
    assert not may_fuse(whole, PARTS, torch.zeros(1))
    with torch.no_grad():
        assert may_overwrite(whole) == (watch == "adapter")
    if watch in ("hook", "pre-hook", "backward hook", "outer"):
        handle.remove()
        assert may_fuse(whole, PARTS, torch.zeros(1))


def test_backward_runs_once_and_outside_autocast() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        @plain_backward
        def backward(ctx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad @ x.t() + x.t() @ grad

    x = torch.randn(3, 3, requires_grad=True)
    loss = Square.apply(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(grad, torch.ones(3, 3) @ x.t() + x.t() @ torch.ones(3, 3))
    assert not grad.requires_grad
