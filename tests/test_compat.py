# Copyright 2026 The glip_hf authors. MIT licence.
"""What evens out the versions of Transformers, whichever is installed."""

from types import SimpleNamespace

import pytest

from glip_hf._compat import disable_checkpointing, enable_checkpointing, interval


def test_an_interval_may_begin_at_0() -> None:
    from dataclasses import make_dataclass

    from huggingface_hub.dataclasses import strict

    made = strict(make_dataclass("Made", [("value", float, interval(min=0)(default=0.5))]))
    assert made(value=0.0).value == 0.0
    with pytest.raises(Exception, match="value"):
        made(value=-0.1)


@pytest.mark.parametrize("name", ["activation", "gradient"])
def test_checkpointing_by_the_name_that_the_version_has(name) -> None:
    calls = []
    model = SimpleNamespace(
        **{
            f"{name}_checkpointing_enable": lambda options: calls.append(options),
            f"{name}_checkpointing_disable": lambda: calls.append("off"),
        }
    )
    enable_checkpointing(model, {"use_reentrant": False})
    disable_checkpointing(model)
    assert calls == [{"use_reentrant": False}, "off"]
