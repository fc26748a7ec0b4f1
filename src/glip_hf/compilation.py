# Copyright 2026 The glip_hf authors. MIT licence.
"""`torch.compile` for inference: few graphs, whatever the sizes and however many blocks."""

import copy
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .modeling_glip import GlipForGrounding

RECORDING = ("reduce-overhead", "max-autotune")
MODES = ("default", *RECORDING)  # those of `torch.compile`; `RECORDING` are those with CUDA graphs

# Tokens that captions are padded to a multiple of where CUDA graphs are recorded: one for each size
CAPTION_MULTIPLE = 64


def caption_multiple(mode: str | None) -> int:
    """Tokens that captions are best padded to a multiple of in a mode; None is not compiled."""
    return CAPTION_MULTIPLE if mode in RECORDING else 1


def _as_a_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """A recorded graph writes over what its last run gave: every call begins anew and hands out copies."""

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(Tensor, Tensor.clone, function(*args, **kwargs))

    return call


def _check_compiler(device: torch.device) -> None:
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise FileNotFoundError(
            f"torch.compile on a CPU needs a C++ compiler and {name} is not there: install one, or name it in CXX."
        )


def compile_for_inference(
    model: GlipForGrounding, mode: str = "default", backend: str | Callable[..., Any] = "inductor"
) -> GlipForGrounding:
    """A GLIP with compiled parts: Swin with the pyramid, the text encoder, the blocks of the tower (one graph for
    all), the head. It shares the weights of `model`, which stays as it is.

    Sizes are dynamic, but a square, a side that is a whole number of windows, and a side of one cell make graphs of
    their own. Making one takes minutes. Modes with CUDA graphs record one for every size they meet: give them captions
    padded to few lengths (`CAPTION_MULTIPLE`; padding changes no result) and images of few sizes.

    On a CPU the fused forms of the model, which a compiler does not see, are faster (benchmarks/README.md). Not yet
    measured on a GPU.

    Args:
        model: in evaluation mode; what is compiled is for inference.
        mode: of `MODES`. With CUDA graphs every result is a copy, so that the next call cannot change it.
        backend: of `torch.compile`; modes are inductor's.

    Raises:
        ValueError: for an unknown mode, or a model in training mode.
        FileNotFoundError: on a CPU without a C++ compiler.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: {', '.join(MODES)}.")
    if model.training:
        raise ValueError("the model is in training mode and what is compiled is for inference: call model.eval().")
    options: dict[str, Any] = {"backend": backend, "dynamic": True}
    if backend == "inductor":
        _check_compiler(model.device)
        options["mode"] = mode
    compiled, base = copy.copy(model), copy.copy(model.model)
    compiled._modules = {**model._modules, "model": base, "head": copy.copy(model.head)}
    blocks = nn.ModuleList(copy.copy(block) for block in model.model.tower["blocks"])
    base._modules = {**model.model._modules, "tower": nn.ModuleDict({"blocks": blocks})}
    for part in (*blocks, compiled.head):
        part.compile(**options)
    encoders = ("get_image_features", "get_text_features")
    functions = {name: torch.compile(getattr(base, name), **options) for name in encoders}
    functions["forward"] = compiled.forward
    for name, function in functions.items():
        setattr(compiled, name, _as_a_step(function) if mode in RECORDING else function)
    return compiled
