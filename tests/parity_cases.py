"""Recorded results of the original, and the model that has to reproduce them."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from locations import FIXTURES
from safetensors.torch import load_file
from synthetic import synthetic_state_dict
from torch import Tensor

from glip_hf import GlipForGrounding, GlipImageProcessorPil
from glip_hf.conversion.variants import load_config
from glip_hf.conversion.weight_map import to_ours

LEVELS = range(3, 8)


@dataclass
class Case:
    """One recorded case; tensors named `NAME@STEP` hold every STEP-th value."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return Path(self.description["config"]).stem

    @property
    def num_tokens(self) -> int:
        return self.description.get("token_count") or max(self.description["token_counts"])

    def input_ids(self) -> tuple[Tensor, Tensor]:
        """Ids and mask [N, T], trimmed to the longest caption."""
        if "text.input_ids" not in self.tensors:
            ids = torch.tensor(self.description["input_ids"]).view(1, -1)[:, : self.num_tokens]
            return ids, torch.ones_like(ids)
        mask = self.tensors.get("text.masks", self.tensors.get("text_masks"))
        return self.tensors["text.input_ids"][:, : self.num_tokens], mask[:, : self.num_tokens]

    def pixels(self, size: dict[str, int] | None = None) -> dict[str, Tensor]:
        """Network input made from the recorded pictures by our own image processor."""
        names = [image["file"] for image in self.description.get("images", [])]
        names = names or [self.description["image"]]
        if size is None:
            settings = self.description["input"]
            size = {"shortest_edge": settings["min_size"], "longest_edge": settings["max_size"]}
        images = [FIXTURES / "images" / name for name in names]
        return dict(GlipImageProcessorPil(size=size)(images, return_tensors="pt"))

    def label_map(self, positive_map: dict[str, list[int]], num_images: int) -> tuple[Tensor, Tensor]:
        """A recorded label -> tokens map as `positive_map` [B, C, T] and `label_ids` [B, C], labels from 1."""
        rows = torch.zeros(num_images, len(positive_map), self.num_tokens, dtype=torch.bool)
        for row, tokens in enumerate(positive_map.values()):
            rows[:, row, tokens] = True
        labels = torch.tensor([int(label) for label in positive_map]).expand(num_images, -1)
        return rows, labels


def load_case(name: str, root: Path = FIXTURES / "parity") -> Case:
    """A case from the fixtures, or whole from the shared parity folder."""
    description = json.loads((root / f"{name}.json").read_text())
    return Case(description, load_file(root / f"{name}.safetensors"))


@lru_cache(maxsize=2)
def build_model(architecture: str, seed: int) -> GlipForGrounding:
    """The converted model of a recorded case, in eval mode."""
    state = synthetic_state_dict(architecture, seed)
    config = load_config(f"{FIXTURES / 'parity' / 'architectures.json'}:{architecture}", state)
    model = GlipForGrounding.from_pretrained(None, config=config, state_dict=to_ours(state))
    return model.eval()


def record_stages(model: GlipForGrounding, run: Any) -> tuple[Any, dict[str, Tensor]]:
    """Call `run()` and collect each stage under its recorded name."""
    stages: dict[str, Tensor] = {}

    def on(module: torch.nn.Module, store: Any) -> Any:
        return module.register_forward_hook(lambda _, __, output: store(output))

    def pyramid(prefix: str) -> Any:
        def store(levels: list[Tensor]) -> None:
            stages.update({f"{prefix}.p{level}": x for level, x in zip(LEVELS, levels)})

        return store

    def fusion(prefix: str) -> Any:
        def store(output: tuple[Tensor, ...]) -> None:
            stages[f"{prefix}.tokens"] = output[0]
            stages[f"{prefix}.hidden"] = output[1]

        return store

    base = model.model
    hooks = [
        on(
            base.backbone,
            lambda output: stages.update({f"swin.stage{s}": x for s, x in zip((2, 3, 4), output.feature_maps)}),
        ),
        on(base.neck, pyramid("fpn")),
        on(base.text_model, lambda output: stages.update({"text.hidden": output.last_hidden_state})),
    ]
    for index, block in enumerate(base.tower["blocks"]):
        if block.fusion is not None:
            hooks.append(on(block.fusion, fusion(f"block{index}.fuse")))
            name = f"block{index}.text.hidden"
            hooks.append(on(block.text_layer, lambda x, name=name: stages.update({name: x})))
        name = f"block{index}.dyconv.tokens"
        hooks.append(on(block.dyconv, lambda x, name=name: stages.update({name: x})))
    try:
        outputs = run()
    finally:
        for hook in hooks:
            hook.remove()
    sizes = [height * width for height, width in outputs.spatial_shapes[0].tolist()]
    shapes = outputs.spatial_shapes[0].tolist()
    for name, tokens in list(stages.items()):
        if name.endswith(".tokens"):
            del stages[name]
            for level, x, (height, width) in zip(LEVELS, tokens.split(sizes, 1), shapes):
                stages[f"{name[:-7]}.p{level}"] = x.transpose(1, 2).unflatten(2, (height, width))
    per_level = zip(
        LEVELS,
        outputs.logits.split(sizes, 1),
        outputs.bbox_regression.split(sizes, 1),
        outputs.centerness_logits.split(sizes, 1),
        shapes,
    )
    for level, logits, regression, centerness, (height, width) in per_level:
        stages[f"head.dot_product_logits.p{level}"] = logits
        stages[f"head.bbox_reg.p{level}"] = regression.transpose(1, 2).unflatten(2, (height, width))
        stages[f"head.centerness.p{level}"] = centerness[:, None].unflatten(2, (height, width))
    return outputs, stages


def own_tokens(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """`tensor` without what it says about padding: text columns beyond the mask [N, T] cut, padded tokens zero."""
    length = mask.shape[1]
    if "dot_product" in name:
        return tensor[..., :length] * mask[:, None]
    if name.endswith("hidden"):
        return tensor[:, :length] * mask[..., None]
    return tensor


def compared(case: Case, stages: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (computed, recorded) of every recorded stage, at real tokens."""
    _, mask = case.input_ids()
    pairs = {}
    for recorded_name, recorded in case.tensors.items():
        name, _, step = recorded_name.partition("@")
        locations = 1
        if "_every" in name:  # full-size logits hold every n-th location
            name, _, rest = name.partition("_every")
            locations, level = rest.split(".")
            name, locations = f"{name}.{level}", int(locations)
        if name not in stages:
            continue
        computed = own_tokens(name, stages[name][:, ::locations], mask)
        if step:
            computed = computed.flatten()[:: int(step)]
        else:
            recorded = own_tokens(name, recorded, mask)
        pairs[recorded_name] = (computed, recorded)
    return pairs


def match_detections(found: dict[str, Tensor], recorded: dict[str, Tensor], score_tolerance: float) -> tuple[int, int]:
    """How many recorded detections are found (same label, box within 0.05 px, score), one to one; and surplus."""
    free = torch.ones(len(found["labels"]), dtype=torch.bool)
    matched = 0
    for box, score, label in zip(recorded["boxes"], recorded["scores"], recorded["labels"]):
        fits = (found["boxes"] - box).abs().amax(1) < 0.05
        fits &= (found["labels"] == label) & ((found["scores"] - score).abs() < score_tolerance)
        fits = (fits & free).nonzero()
        if len(fits):
            free[fits[0]] = False
            matched += 1
    return matched, int(free.sum())
