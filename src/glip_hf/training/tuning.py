# Copyright 2026 The glip_hf authors. MIT licence.
"""Which parameters are trained: all of them, the heads, a prompt table, or adapters.

    tune(model, "prompt")        # before the optimiser is built: it takes what requires a gradient

| mode | trained | frozen |
| --- | --- | --- |
| `full` | all (except what `model.frozen_stages` or construction froze) | |
| `head` | tower and heads | backbone, pyramid, text encoder |
| `linear` | `LINEAR`: box, centerness, projection, scale and biases of the dot product | the rest, level scales too |
| `prompt` | the prompt table (`prompt_table_glip`) | the model |
| `lora` | low-rank adapters of the query and value projections, through `peft` | the model |

The set of `linear` is that of the original's linear probe. Frozen modules run in evaluation mode: without dropout, drop
path or DropBlock (`GlipPreTrainedModel.train` sees to it). In the original this holds for the backbone, the pyramid and
the text encoder; its linear probe leaves dropout in the frozen tower on, ours does not.
"""

from typing import Any, get_args

from .._extras import require
from ..modeling_glip import GlipForGrounding
from .recipe import Mode, RecipeError

LINEAR = (
    "head.bbox_pred.",
    "head.centerness.",
    "head.text_projection.",
    "head.log_scale",
    "head.bias_lang",
    "head.bias0",
)
"""Prefixes of the parameters that the linear probe trains."""

HEAD = ("model.tower.", "head.", "auxiliary.")
PROMPT = ("model.prompt_table",)

LORA_TARGETS = r"model\.(backbone|text_model|tower)\..*\.(q_proj|v_proj|query|value)"
"""Attentions of Swin, BERT and the tower's text layers; those of the fusion have no adapters."""

MODES = get_args(Mode)


def _train_only(model: GlipForGrounding, prefixes: tuple[str, ...]) -> None:
    """Freeze all other parameters; frozen parameters stay frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(prefixes))


def tune(
    model: GlipForGrounding, mode: str = "full", *, prompt_length: int | None = None, **lora_options: Any
) -> list[str]:
    """Freeze what the mode does not train, and add what it needs.

    Args:
        mode: see the module's table.
        prompt_length: rows of a new prompt table; default `max_text_length`. A model that has a table keeps it.
        lora_options: fields of `peft.LoraConfig`, such as `r` (default 8), `lora_alpha` (16), `target_modules`.

    Returns:
        the names of the trained parameters.

    Raises:
        RecipeError: for an unknown mode, and `lora_options` or `prompt_length` of another one.
        ImportError: if `lora` is asked for and `peft` is not installed.
    """
    if mode not in MODES:
        raise RecipeError(f"tuning.mode={mode!r} is unknown: choose one of {', '.join(MODES)}.")
    if lora_options and mode != "lora":
        raise RecipeError(f"tuning.mode={mode} takes no {', '.join(lora_options)}; that is for lora.")
    if prompt_length is not None and mode != "prompt":
        raise RecipeError(f"tuning.mode={mode} takes no prompt_length={prompt_length}; that is for prompt.")
    if mode == "lora":
        options = {"r": 8, "lora_alpha": 16, "target_modules": LORA_TARGETS, **lora_options}
        model.add_adapter(require("peft", "lora").LoraConfig(**options))
    elif mode == "prompt":
        if model.base_model.prompt_table is None:
            model.add_prompt_table(prompt_length)
        _train_only(model, PROMPT)
    elif mode != "full":
        _train_only(model, LINEAR if mode == "linear" else HEAD)
    model.train(model.training)
    return trained_names(model)


def trained_names(model: GlipForGrounding) -> list[str]:
    """Names of the parameters that require a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
