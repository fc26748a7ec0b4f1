# Copyright 2026 The glip_hf authors. MIT licence.
"""How `import glip_hf` takes a tenth of a second and GLIP is registered all the same.

Until something of GLIP is used, Transformers sees it as one of its own models: names in its tables, of classes in a
module `transformers.models.glip` that loads them when they are asked for. That module is this package, and the first
class that is asked for imports `_register`, which registers the classes themselves and the kernels.
"""

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = __package__
# Transformers' module of nothing but names: configurations, processors and image processors by model type
TABLES = "transformers.models.auto.auto_mappings"
# Names of Transformers whose modules import all that GLIP takes from it
NEEDED = ("AutoBackbone", "AutoConfig", "AutoModelForZeroShotObjectDetection", "AutoProcessor", "PreTrainedModel")
_LOCK = threading.RLock()


def load(name: str) -> Any:
    """The attribute `name` of the package, or its module of that name; an AttributeError if it has none."""
    if name == "GlipZeroShotObjectDetectionPipeline":
        return import_module(f"{PACKAGE}.pipeline").GlipZeroShotObjectDetectionPipeline
    if name in sys.modules[PACKAGE].__all__:
        with _uncollected():
            return getattr(import_module(f"{PACKAGE}._register"), name)
    if not name.startswith("_") and find_spec(f"{PACKAGE}.{name}") is not None:
        return import_module(f"{PACKAGE}.{name}")
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")


def install() -> None:
    """Have GLIP registered when it is needed, or at once where Transformers has read its tables already."""
    if TABLES in sys.modules:
        import_module(f"{PACKAGE}._register")
        return
    sys.modules["transformers.models.glip"] = sys.modules[PACKAGE]
    before = dict.fromkeys((f"{PACKAGE}.modeling_glip", f"{PACKAGE}._register"), _import_transformers)
    sys.meta_path.insert(0, Around(before, {TABLES: _enter_names, f"{PACKAGE}.modeling_glip": _register}))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without collections of garbage: nearly all that imports make is kept, and they take a sixth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _enter_names(tables: ModuleType) -> None:
    tables.CONFIG_MAPPING_NAMES["glip"] = "GlipConfig"
    tables.PROCESSOR_MAPPING_NAMES["glip"] = "GlipProcessor"
    tables.IMAGE_PROCESSOR_MAPPING_NAMES["glip"] = {"pil": "GlipImageProcessorPil", "torchvision": "GlipImageProcessor"}


def _register(_: ModuleType) -> None:
    """For those who import modules of the package and nothing from the package itself."""
    if f"{PACKAGE}._register" not in sys.modules:  # another thread that imports it waits for this very module
        import_module(f"{PACKAGE}._register")


def _import_transformers() -> None:
    """Before a module that needs it: two threads at once get half of Transformers, whose modules import each other."""
    with _LOCK:
        for name in NEEDED:
            getattr(import_module("transformers"), name)


class Around:
    """A finder that calls a function before the code of some modules runs, and one with the module after it has."""

    def __init__(self, before: dict[str, Callable[[], None]], after: dict[str, Callable[[ModuleType], None]]) -> None:
        self.before, self.after = before, after

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        before, after = self.before.get(name), self.after.get(name)
        spec = PathFinder.find_spec(name, path, target) if before or after else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def call_and_execute(module: ModuleType) -> None:
                if before:
                    before()
                execute(module)
                if after:
                    after(module)

            spec.loader.exec_module = call_and_execute
        return spec
