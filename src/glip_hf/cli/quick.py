# Copyright 2026 The glip_hf authors. MIT licence.
"""A process of the command line starts and ends in half the time that PyTorch and Transformers take by themselves.

Of 5 CPU seconds around the forward passes of `glip ground` 0.9 went into taking everything apart at the end, 0.7 into
the garbage collector during imports, and 1.5 into parts of PyTorch and Transformers for several processes and for
compilation, which Transformers imports with any model. `begin` and `without_sympy` leave these out, `loaded` ends the
exception for the collector, `end` is the end. Only `program` begins: a process that merely imports glip_hf is the
user's own.
"""

import atexit
import functools
import gc
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from .._lazy import Around

COMMANDS = frozenset(("ground", "demo", "info"))  # subcommands of one process that compile nothing
COMPILER = "torch._dynamo"
SELF_CONTAINED = f"{COMPILER}._trace_wrapped_higher_order_op"  # what Transformers imports for its masks
DEFERRED = COMPILER, f"{COMPILER}.utils"
# Decorators of `torch._dynamo`, for functions of Transformers that GLIP does not call
MARKS = frozenset(("allow_in_graph", "assume_constant_result", "disable"))
# The function of `torch._dynamo.utils` that torchvision imports, and calls to pool features of regions
QUESTION = "is_compile_supported"

_exit_codes: list[int] = []
_paused: list[str] = []


class DeferredCompiler(ModuleType):
    """One of `DEFERRED`, imported with 500 modules more when something beyond `MARKS` and `QUESTION` is used."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS and sys.modules.get(COMPILER) is self:
            return _leave_unmarked
        if name == QUESTION:
            return lambda *device: getattr(_import_compiler(self.__name__), name)(*device)
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_import_compiler(self.__name__), name)


def _import_compiler(part: str = COMPILER) -> ModuleType:
    for name in DEFERRED:
        if isinstance(sys.modules.get(name), DeferredCompiler):
            del sys.modules[name]
    importlib.import_module(COMPILER)
    return importlib.import_module(part)


class _PartsOfCompiler:
    """A finder, and loader, that has the compiler imported before any module of its but the one without need of it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        deferred = isinstance(sys.modules.get(COMPILER), DeferredCompiler)
        if not deferred or not name.startswith(f"{COMPILER}.") or name == SELF_CONTAINED:
            return None
        _import_compiler()
        return ModuleSpec(name, self) if name in sys.modules else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It ran when the compiler was imported."""


def _leave_unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _leave_unmarked if function is None else function


def _defer(torch: ModuleType) -> None:
    """The compiler, and what libraries expect to find in `torch.distributed` because Transformers has imported it."""

    def import_part(name: str) -> ModuleType:
        if name.startswith("__") or importlib.util.find_spec(full := f"torch.distributed.{name}") is None:
            raise AttributeError(f"module 'torch.distributed' has no attribute {name!r}")
        return importlib.import_module(full)

    vars(torch.distributed).setdefault("__getattr__", import_part)
    if COMPILER not in sys.modules:
        sys.modules.update((name, DeferredCompiler(name)) for name in DEFERRED)
        torch._dynamo = sys.modules[COMPILER]
        torch._dynamo.__path__ = [os.path.join(path, "_dynamo") for path in torch.__path__]  # its modules by themselves


def _describe_one_process(import_utils: ModuleType) -> None:
    """Have Transformers see a PyTorch without `torch.distributed`, which it supports, and find `__all__` faster."""
    import_utils.is_torch_distributed_available = lambda: False
    if search := getattr(import_utils, "fetch__all__", None):  # it walks through all lines of 1,600 files
        import_utils.fetch__all__ = lambda text: search(text[max(text.rfind("\n__all__"), 0) :].removeprefix("\n"))
    if walk := getattr(import_utils, "create_import_structure_from_path", None):  # twice, as it remembers 128 folders
        import_utils.create_import_structure_from_path = functools.cache(walk.__wrapped__)


class LazyPattern:
    """What `re.compile` gives, compiled when it is used."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"a pattern has no attribute {name!r}")
        return getattr(re.compile(*self.arguments), name)


def _compile_late(loading: ModuleType) -> None:
    """Of the 1,700 patterns for renaming weights, some for each name, a model needs a handful."""
    loading.re = ModuleType("re")
    vars(loading.re).update(vars(re), compile=LazyPattern)


def begin(command: str) -> None:
    """Before the first import of torch, in a process of ours."""
    if command in COMMANDS and "torch" not in sys.modules:
        gc.disable()  # nearly all that imports make is kept
        _paused.append(command)
        after = {
            "torch": _defer,
            "transformers.utils.import_utils": _describe_one_process,
            "transformers.core_model_loading": _compile_late,
        }
        sys.meta_path[:0] = [Around({}, after), _PartsOfCompiler()]


def without_sympy(backbone: str) -> AbstractContextManager[Any]:
    """A context for the constructor of a model, which Transformers runs on the `meta` device; only with Swin, as it is
    not known of other backbones whether they bear it.

    There, PyTorch asks sympy for the shapes of ranges, sums and random values, and to import it takes 0.3 CPU seconds.
    In the context ranges are on the CPU, and with them the constants made of them; nothing is drawn for `meta` tensors.
    """
    if backbone != "swin" or not _paused:
        return nullcontext()
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutSympy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.arange:
                kwargs = {**kwargs, "device": "cpu"}
            elif getattr(func, "__module__", None) == "torch.nn.init" and kwargs["tensor"].is_meta:
                return kwargs["tensor"]
            elif func is torch.empty_like and args[0].is_meta:
                func, args, kwargs = torch.empty, (args[0].shape,), {"dtype": args[0].dtype, **kwargs}
            return func(*args, **kwargs)

    return WithoutSympy()


def loaded() -> None:
    """After the model is there: what was made until now is kept, what comes from here on may be garbage."""
    if _paused:
        _paused.clear()
        gc.freeze()
        gc.enable()


@atexit.register
def _end_at_once() -> None:
    """The last of the exit handlers, as the first that was registered."""
    if _exit_codes:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(_exit_codes[0])


def end(code: int) -> NoReturn:
    """End the process with all its exit handlers, but without taking its modules apart."""
    _exit_codes.append(code)
    sys.exit(code)
