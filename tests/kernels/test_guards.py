# Copyright 2026 The glip_hf authors. MIT licence.
"""Guards of kernels, and constants that are made once."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from glip_hf.kernels.guards import is_cpu_float, parts_are_plain
from glip_hf.ops_glip import once_differentiable, shape_constants

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


def test_fake_tensors_leave_nothing_behind() -> None:
    """A fake constant would make all later results fake, which have no values."""

    @shape_constants(maxsize=2)
    def ones(size: int) -> Tensor:
        return torch.ones(size)

    with FakeTensorMode():
        assert isinstance(ones(2), FakeTensor)
        assert ones(2) is ones(2)
    assert type(ones(2)) is Tensor and ones(2) is ones(2)


def test_plain_parts() -> None:
    assert parts_are_plain(module(), PARTS)
    assert is_cpu_float(torch.zeros(1)) and not is_cpu_float(torch.zeros(1), torch.zeros(1, device="meta"))
    assert not is_cpu_float(torch.zeros(1, dtype=torch.int64))


def test_a_global_hook_sees_every_part() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not parts_are_plain(module(), PARTS)
    handle.remove()
    assert parts_are_plain(module(), PARTS)


def test_parameters_of_another_kind_are_not_read() -> None:
    class Quantised(Tensor):
        pass

    whole = module()
    whole["inner"][0].weight = nn.Parameter(whole["inner"][0].weight.detach().as_subclass(Quantised))
    assert not parts_are_plain(whole, PARTS)


@pytest.mark.parametrize("watch", ["hook", "pre-hook", "backward hook", "forward", "adapter", "compiled", "outer"])
def test_parts_that_must_be_called(watch) -> None:
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
    assert not parts_are_plain(whole, PARTS)
    if watch in ("hook", "pre-hook", "backward hook", "outer"):
        handle.remove()
        assert parts_are_plain(whole, PARTS)


def test_backward_runs_once_and_outside_autocast() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        @once_differentiable
        def backward(ctx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad @ x.t() + x.t() @ grad

    x = torch.randn(3, 3, requires_grad=True)
    loss = Square.apply(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(grad, torch.ones(3, 3) @ x.t() + x.t() @ torch.ones(3, 3))
    assert not grad.requires_grad
