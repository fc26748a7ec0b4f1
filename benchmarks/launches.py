# Copyright 2026 The glip_hf authors. MIT licence.
"""What a GPU and its host would have to do, counted without one: on tensors without data, under PyTorch's fake mode.

    python benchmarks/launches.py                        # GLIP-T in training: 4 images of 800 x 1066, 194 tokens
    python benchmarks/launches.py --no-train --batch 1
    python benchmarks/launches.py --dtype bfloat16       # under autocast in training

Each row is the model with some kernels off. Counted for a forward pass, in training with loss and backward pass:

- launches: operations that are neither views nor allocations. One operation may launch several kernels (a sort, a
  reduction of many rows), so this is a lower bound;
- synchronisations: operations whose result or its size the host waits for, and copies between host and device, which
  wait for the device unless both pinned and asynchronous; of those, `in_forward` before the loss;
- calls: of Python functions of glip_hf and Transformers;
- gflop: of matrix products, convolutions and attention, a multiplication and an addition counting as two;
- saved_mib: tensors that autograd keeps for the backward pass, storages once each, without the parameters.

It needs a CUDA build of PyTorch, and no GPU. The Triton kernel counts as one launch, without its operations.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks.training import training_inputs
from glip_hf import GlipConfig, GlipForGrounding, boxes_glip, kernels, ops_glip, swin_glip

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "nms")
"""Operations whose result, or its size, the host has to wait for."""

ALLOCATING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view")

FOUND = 3
"""Rows that stand in for those whose number depends on values."""


class Launches(TorchDispatchMode):
    """Counts operations while active: `names` those that are neither a view nor an allocation, `waits` those that the
    host waits for.

    On tensors without data it lets operations pass whose result depends on values: a value read is False or 1, and
    `nonzero`, `unique` and torchvision's NMS find `FOUND` rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        has_data = first is None or not (first.is_meta or isinstance(first, FakeTensor))
        # A fake tensor knows its device; elsewhere every device stands for a GPU.
        on_gpu = first is not None and (has_data or not first.is_cpu)
        if name.startswith(("index", "_index")) and len(args) > 1 and isinstance(args[1], list | tuple):
            if any(one is not None and one.dtype == torch.bool for one in args[1]):
                self.waits[name] += 1
                args = args if has_data else (args[0], self._as_rows(args[1]), *args[2:])
        if name == "_to_copy" and kwargs.get("device", first.device).type != first.device.type:
            self.waits[f"copy from {first.device.type}"] += not kwargs.get("non_blocking")
        if name in WAITING and on_gpu:
            self.waits[name] += 1
        if not (operation.is_view or name in ALLOCATING or operation.namespace == "prim"):
            self.names[name] += 1
        if not has_data and name == "_local_scalar_dense":
            return False if first.dtype == torch.bool else 1
        if not has_data and name == "_unique2":
            return tuple(first.new_zeros(FOUND) for _ in range(3))
        if not has_data and name == "nms":
            return first.new_zeros(FOUND, dtype=torch.int64)
        if not has_data and name == "nonzero":
            return first.new_zeros((FOUND, first.dim()), dtype=torch.int64)
        return operation(*args, **kwargs)

    @staticmethod
    def _as_rows(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices whose masks are given as the rows that they stand for."""
        rows = []
        for one in indices:
            is_mask = one is not None and one.dtype == torch.bool
            rows += [one.new_zeros(FOUND, dtype=torch.int64)] * one.dim() if is_mask else [one]
        return rows


class EfficientAttention(TorchFunctionMode):
    """Attention as a GPU computes it that is given a mask or more than 256 columns: memory-efficient. PyTorch asks the
    GPU, and where there is none writes the scores out."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not nn.functional.scaled_dot_product_attention or any(x.shape[-1] % 8 for x in args[:3]):
            return function(*args, **kwargs)
        query, key, value = args[:3]
        mask, dropout, scale = (kwargs.get(name) for name in ("attn_mask", "dropout_p", "scale"))
        dtype = query.dtype
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
        if mask is not None:
            mask = mask.to(dtype).expand(*query.shape[:2], query.shape[2], key.shape[2])
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        query, key, value = (x.to(dtype) for x in (query, key, value))
        key, value = (x.expand(-1, query.shape[1], -1, -1) for x in (key, value))
        keep = torch.is_grad_enabled()
        return attend(query, key, value, mask, keep, dropout or 0.0, False, scale=scale)[0]


@contextlib.contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Tensors without data on a GPU of this compute capability that need not be there. Constants that were made before
    are forgotten, before and after: they belong to one such block.

    Raises:
        RuntimeError: for a PyTorch that was built without CUDA.
    """
    if not torch.backends.cuda.is_built():
        raise RuntimeError(f"PyTorch {torch.__version__} was built without CUDA: install a CUDA build, such as PyPI's.")
    pretended = contextlib.ExitStack()
    for name, value in {
        "get_device_capability": capability,
        "is_bf16_supported": True,
        "amp.common.amp_definitely_not_available": False,  # or autocast turns itself off
    }.items():
        pretended.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_args, result=value: result))
    # Tensors of another class have products of their own, so kernels leave them alone; fake ones have not.
    plain = mock.patch("glip_hf.kernels.fusion.parts_are_plain", lambda *_: True)
    try:
        with pretended, plain, FakeTensorMode(), EfficientAttention():
            yield
    finally:
        forget_constants()


def forget_constants() -> None:
    """Drop every tensor that `ops_glip.shape_constants` keeps."""
    for made in (ops_glip.constant, boxes_glip._make_anchors, swin_glip.shift_patterns):
        made.cache_clear()


def fake(value: Any) -> Any:
    """Tensors, within lists and dicts, as tensors without data on the GPU; to be called within `fake_cuda`."""
    if isinstance(value, dict):
        return {name: fake(item) for name, item in value.items()}
    if isinstance(value, list):
        return [fake(item) for item in value]
    return torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, Tensor) else value


def fake_model(config: GlipConfig, dtype: torch.dtype = torch.float32) -> GlipForGrounding:
    """A model of parameters without data; to be called within `fake_cuda`."""
    with _disable_current_modes(), torch.device("meta"):
        model = GlipForGrounding(config).to(dtype)
    return model._apply(fake)


@torch.no_grad()
def backward(loss: Tensor) -> dict[Tensor, Tensor | None]:
    """The gradients of all leaves, node after node from Python: PyTorch's engine asks for a GPU before it starts."""
    waiting, found, nodes = Counter(), {loss.grad_fn}, [loss.grad_fn]
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                nodes += [] if node in found else [node]
                found.add(node)
    gradients = {loss.grad_fn: [torch.ones_like(loss)]}
    ready, leaves = [loss.grad_fn], {}
    while ready:
        node = ready.pop()
        own = gradients.pop(node, [None])
        results: Any = ()
        if hasattr(node, "variable"):
            leaves[node.variable] = own[0]
        elif any(one is not None for one in own):
            results = (node if callable(node) else node.apply)(*own)  # a Python function is not callable
        results = results if isinstance(results, tuple) else (results,)
        for index, (following, position) in enumerate(node.next_functions):
            if following is None:
                continue
            result = results[index] if index < len(results) else None
            if result is not None:
                metadata = following._input_metadata
                result = result.sum_to_size(metadata[position].shape).to(metadata[position].dtype)
                slots = gradients.setdefault(following, [None] * len(metadata))
                slots[position] = result if slots[position] is None else slots[position] + result
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    return leaves


class Saved:
    """Tensors that autograd keeps for the backward pass while active, without those of `model`."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {value.untyped_storage()._cdata for value in model.parameters()}
        self._sizes: dict[int, int] = {}

    @property
    def mib(self) -> float:
        return sum(self._sizes.values()) / harness.MIB

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda value: value)

    def _pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self._own:
            self._sizes[storage._cdata] = storage.nbytes()
        return value


@contextlib.contextmanager
def python_calls(counted: Counter[str]) -> Iterator[None]:
    """Count the calls of Python functions of the model and of Transformers, as `counted["calls"]`."""

    def observe(frame: Any, event: str, _argument: Any) -> None:
        file = frame.f_code.co_filename
        counted["calls"] += event == "call" and ("glip_hf" in file or "transformers" in file)

    before = sys.getprofile()
    sys.setprofile(observe)
    try:
        yield
    finally:
        sys.setprofile(before)


def count(model: GlipForGrounding, inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The figures of the module's docstring for one pass over these inputs, with a backward pass in training."""
    inputs = dict(inputs)
    labels = inputs.pop("labels") if model.training else None
    run = torch.no_grad() if labels is None else contextlib.nullcontext()
    half = torch.autocast("cuda", dtype, enabled=labels is not None and dtype != torch.float32)
    calls: Counter[str] = Counter()
    with run, half:
        with Launches():
            model(**inputs)  # makes the constants of this size
        with Launches() as forward:
            model(**inputs)
    saved = Saved(model)
    with FlopCounterMode(display=False) as flops, Launches() as seen, python_calls(calls):
        with run, half, saved.hooks():
            outputs = model(**inputs, labels=labels)
        if labels is not None:
            backward(outputs.loss)
    return {
        "launches": seen.names.total(),
        "synchronisations": seen.waits.total(),
        "in_forward": forward.waits.total(),
        "calls": calls["calls"],
        "gflop": flops.get_total_flops() / 1e9,
        "saved_mib": saved.mib,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1066], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=4, help="images, each with its own caption")
    parser.add_argument("--tokens", type=int, default=194, help="of each caption")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-train", action="store_true", help="a forward pass without gradients")
    parser.add_argument("--tiny", action="store_true", help="a model of a few layers, to check that it runs")
    arguments = parser.parse_args(argv)
    config = harness.tiny_config() if arguments.tiny else GlipConfig.from_preset(harness.PRESET)
    dtype = getattr(torch, arguments.dtype)
    with torch.device("cpu"):
        shape_model = type("Model", (), {"device": "cpu", "config": config})()
        inputs = training_inputs(shape_model, *arguments.size, arguments.batch, arguments.tokens)
    for off in ((), ("absorbed_fusion",)):
        with fake_cuda(), kernels.disable(*off) if off else contextlib.nullcontext():
            model = fake_model(config, dtype if arguments.no_train else torch.float32).train(not arguments.no_train)
            figures = count(model, fake(inputs), dtype)
        print(", ".join(off) and f"without {off[0]}" or "all kernels")
        for name, value in figures.items():
            print(f"    {name:20} {value:,.0f}")


if __name__ == "__main__":
    main()
