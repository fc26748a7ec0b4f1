# Copyright 2026 The glip_hf authors. MIT licence.
"""What differs between the versions of Transformers that we support, 5.10 to 5.x; docs/versions.md lists them.

The flat files may import it: it travels to the Hub with them.
"""

from collections.abc import Callable
from typing import Any

import transformers
from transformers.utils import type_validators

try:
    from transformers.exporters.utils import register_patch
except ImportError:  # before 5.13

    def _register_nothing(backend: str, *paths: str) -> Callable[[Any], Any]:
        """A decorator that does nothing: there is no exporter to patch."""
        return lambda factory: factory

    register_patch = _register_nothing  # not defined by this name: the site's builder fails at a name of two origins


class _Zero(int):
    def __bool__(self) -> bool:
        return True


def interval(min: float | None = None, **limits: Any) -> Callable[..., Any]:
    """`transformers.utils.type_validators.interval`, which took a least value of 0 for none before 5.18."""
    return type_validators.interval(min=_Zero() if min == 0 else min, **limits)


def enable_checkpointing(model: Any, options: dict[str, Any] | None = None) -> None:
    """`model.activation_checkpointing_enable(options)`, by the name that it had before 5.23."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def require_onnx_exporter() -> None:
    """Refuse versions that have no `transformers.exporters`.

    Raises:
        ImportError: naming the version and what to do.
    """
    if register_patch.__module__ == __name__:
        raise ImportError(
            f"Transformers {transformers.__version__} has no ONNX exporter: pip install 'transformers>=5.13'. Programs "
            "of torch.export need none."
        )


__all__ = ["enable_checkpointing", "interval", "register_patch", "require_onnx_exporter"]
