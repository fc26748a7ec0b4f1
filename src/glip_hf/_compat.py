# Copyright 2026 The glip_hf authors. MIT licence.
"""What differs between the versions of Transformers that we support, 5.13 to 5.x; docs/versions.md lists them.

The flat files may import it: it travels to the Hub with them.
"""

import threading
from collections.abc import Callable
from typing import Any

from transformers.utils import type_validators

_TOKENIZING = threading.Lock()


def tokenize(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
    """`tokenizer(*args, **kwargs)` of users' text, in which "[SEP]" or "[MASK]" is text like any other.

    One thread at a time: a call may change the tokenizer.
    """
    with _TOKENIZING:
        return tokenizer(*args, split_special_tokens=True, **kwargs)


class _Zero(int):
    def __bool__(self) -> bool:
        return True


def interval(min: float | None = None, **limits: Any) -> Callable[..., Any]:
    """`transformers.utils.type_validators.interval`, which took a least value of 0 for none before 5.18."""
    return type_validators.interval(min=_Zero() if min == 0 else min, **limits)


def enable_checkpointing(model: Any, options: dict[str, Any] | None = None) -> None:
    """`model.activation_checkpointing_enable(options)`, by the name that it had before 5.23."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def disable_checkpointing(model: Any) -> None:
    """`model.activation_checkpointing_disable()`, by the name that it had before 5.23."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()


__all__ = ["disable_checkpointing", "enable_checkpointing", "interval", "tokenize"]
