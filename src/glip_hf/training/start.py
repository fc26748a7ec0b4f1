# Copyright 2026 The glip_hf authors. MIT licence.
"""Where a run's model comes from: random weights, another GLIP, or ImageNet Swin and BERT weights."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, BertModel, BertTokenizer, SwinModel

from ..configuration_glip import PRESETS, GlipConfig
from ..conversion.checkpoint import read_checkpoint
from ..conversion.convert import find_tokenizer
from ..conversion.restore import local_directory, whole_model
from ..conversion.weight_map import match_original
from ..demo import DEMO_MODEL, scenes_config
from ..image_processing_pil_glip import GlipImageProcessorPil
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from ..swin_glip import GlipSwinBackbone
from .recipe import ModelRecipe, RecipeError

logger = logging.getLogger(__name__)

UNUSED_SWIN = ("head.", "norm.", "layernorm.", "pooler.")
"""Modules of a classifier after its last stage."""


def _original_swin(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of an original ImageNet Swin `.pth` under the names of `GlipSwinBackbone`."""
    tensors, unknown = {}, []
    for key, value in read_checkpoint(path).tensors.items():
        if key.startswith(UNUSED_SWIN) or key.endswith("attn_mask"):
            continue
        match = match_original(f"backbone.body.{key}", fused=True)
        if match is None:
            unknown.append(key)
            continue
        names = [name.removeprefix("model.backbone.") for name in match[1]]
        tensors.update(zip(names, value.chunk(len(names)) if names else ()))
    if unknown:
        raise RecipeError(f"{path} is not a Swin checkpoint: unknown keys {', '.join(unknown[:8])}.")
    return tensors


def load_backbone_weights(backbone: nn.Module, source: str) -> None:
    """Load ImageNet weights into a Swin backbone; its output norms, which classifiers lack, keep their values.

    Args:
        source: an original Swin `.pth`, or a directory or Hub id of a Transformers Swin.

    Raises:
        RecipeError: if tensors are missing or of another shape.
    """
    if not isinstance(backbone, GlipSwinBackbone):
        raise RecipeError(
            f"model.backbone_weights={source} is for Swin; a {type(backbone).__name__} takes its weights from "
            "model.start_from."
        )
    if Path(source).is_file():
        tensors = _original_swin(Path(source))
    else:
        directory = local_directory(source, "Swin") or source
        state = SwinModel.from_pretrained(directory, add_pooling_layer=False).state_dict()
        tensors = {f"swin.{key}": value for key, value in state.items() if not key.startswith(UNUSED_SWIN)}
    wanted = {
        name: value for name, value in backbone.state_dict().items() if not name.startswith("hidden_states_norms")
    }
    wrong = [name for name, value in wanted.items() if name not in tensors or tensors[name].shape != value.shape]
    if wrong:
        raise RecipeError(
            f"model.backbone_weights={source} does not fit the configured Swin: {', '.join(wrong[:8])} "
            f"({len(wrong)} tensors) are missing or have another shape. Check embed_dim, depths and window_size."
        )
    backbone.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def load_text_weights(text_model: nn.Module, source: str) -> None:
    """Load BERT weights into the text encoder, from a directory or Hub id; a RecipeError if they do not fit."""
    state = BertModel.from_pretrained(local_directory(source, "BERT") or source, add_pooling_layer=False).state_dict()
    try:
        text_model.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(f"model.text_weights={source} does not fit text_config: {error}") from error


def freeze_stages(model: GlipForGrounding, frozen_stages: int) -> None:
    """Freeze Swin's patch embedding (from 0 on) and its first `frozen_stages` stages; -1 freezes nothing.

    Raises:
        RecipeError: for more stages than there are.
    """
    if frozen_stages < 0:
        return
    swin = model.model.backbone.swin
    if frozen_stages > (stages := len(swin["encoder"]["layers"])):
        raise RecipeError(f"model.frozen_stages={frozen_stages}: this backbone has {stages} stages.")
    for module in (swin["embeddings"], *swin["encoder"]["layers"][:frozen_stages]):
        module.requires_grad_(False)


def image_limits(size: Mapping[str, int], image_size: int = 0) -> dict[str, int]:
    """Shortest and, where there is a limit, longest side in pixels of a `size` of an image processor.

    Args:
        image_size: another shortest side; the longest keeps its ratio to it.
    """
    shortest, longest = size.get("shortest_edge") or min(size.values()), size.get("longest_edge")
    if longest is None and "shortest_edge" not in size:
        longest = max(size.values())
    limits = {"shortest_edge": image_size or shortest}
    return limits if longest is None else limits | {"longest_edge": round(longest * limits["shortest_edge"] / shortest)}


def start_model(recipe: ModelRecipe) -> tuple[GlipForGrounding, GlipProcessor]:
    """Model and processor that a run starts with; a RecipeError for contradictory or missing entries."""
    if recipe.start_from:
        directory = whole_model(recipe.start_from)
        model = GlipForGrounding.from_pretrained(directory, **recipe.config)
        processor = GlipProcessor.from_pretrained(directory)
    elif recipe.preset == "scenes":
        model = GlipForGrounding(GlipConfig(**{**scenes_config().to_dict(), **recipe.config}))
        processor = GlipProcessor.from_pretrained(DEMO_MODEL)
    elif recipe.preset in PRESETS:
        source = recipe.tokenizer or recipe.text_weights
        if source is None:
            raise RecipeError(
                f"model.preset={recipe.preset} needs model.tokenizer (a directory, Hub id or vocab.txt) or "
                "model.text_weights, e.g. bert-base-uncased."
            )
        model = GlipForGrounding(GlipConfig.from_preset(recipe.preset, **recipe.config))
        if Path(source).is_file():
            tokenizer = BertTokenizer(vocab=source, do_lower_case=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(find_tokenizer(source))
        processor = GlipProcessor(GlipImageProcessorPil(), tokenizer)
    else:
        raise RecipeError(f"model.preset={recipe.preset!r} is unknown: scenes, {', '.join(PRESETS)}.")
    if recipe.backbone_weights:
        load_backbone_weights(model.model.backbone, recipe.backbone_weights)
    if recipe.text_weights:
        load_text_weights(model.model.text_model, recipe.text_weights)
    vocabulary = model.config.text_config.vocab_size
    if len(processor.tokenizer) > vocabulary:
        raise RecipeError(
            f"the tokenizer has {len(processor.tokenizer)} entries, text_config.vocab_size only {vocabulary}."
        )
    if recipe.image_size:
        images = processor.image_processor
        images.size = image_limits(dict(images.size), recipe.image_size)
    freeze_stages(model, recipe.frozen_stages)
    return model, processor
