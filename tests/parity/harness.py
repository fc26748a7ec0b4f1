"""Compares a model with recorded results of the original implementation, stage by stage.

A case is a pair CASE.json and CASE.safetensors. The json names weights, images and captions; tensors are recorded whole
(small cases), as every n-th value (`NAME@n`, the fixtures) or as statistics and first values (full-size cases). Stages:
`swin.stageK`, `fpn.pL`, `text.*`, `blockN.fuse.*`, `blockN.text.hidden`, `blockN.dyconv.*`, `head.*`, `det.*`.

    case = load_case("small_inference/b1")
    rows = compare_case(build_model(case.architecture, case.description["weights_seed"]), case)
    print(format_table(rows)); assert all(row.passed for row in rows)
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from locations import FIXTURES
from parity.architectures import recorded_config
from parity.synthetic import synthetic_state_dict
from safetensors.torch import load_file
from torch import Tensor

from glip_hf import GlipForGrounding, GlipImageProcessorPil
from glip_hf.boxes_glip import make_anchors
from glip_hf.configuration_glip import PYRAMID_STRIDES
from glip_hf.conversion.weight_map import to_ours
from glip_hf.postprocess_glip import post_process_grounding

LEVELS = ("p3", "p4", "p5", "p6", "p7")
BOX_TOLERANCE = 0.05
"""Pixels by which matched boxes may differ."""
TRAINING_SIZES = {"b2": (256, 384), "b1_caption_fills_256": (150, 214)}
"""Shortest and longest edge of the training cases, which do not record them."""


class CaseError(ValueError):
    """A recorded case cannot be read."""


@dataclass(frozen=True)
class Tolerances:
    """`torch.isclose` bounds (atol, rtol) by prefix of a stage; of scores; and the share of boxes without a match."""

    stages: tuple[tuple[str, float, float], ...]
    score: float
    unmatched: float

    def of(self, stage: str) -> tuple[float, float]:
        return next((atol, rtol) for prefix, atol, rtol in self.stages if stage.startswith(prefix))


SMALL = Tolerances(
    (("text.", 1e-5, 1e-5), ("swin.", 1e-5, 1e-5), ("fpn.", 2e-5, 2e-5), ("", 1e-4, 1e-4)),
    score=1e-5,
    unmatched=0.0,
)
FULL = Tolerances((("preprocessed", 1e-5, 1e-5), ("", 5e-4, 1e-3)), score=1e-4, unmatched=0.01)


@dataclass(frozen=True)
class Comparison:
    """One row: a stage, its largest difference, the bound it is held to, and the verdict."""

    stage: str
    difference: float
    bound: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A recorded case: what its json says, its tensors and the folder of its images."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]
    images: Path

    @property
    def architecture(self) -> str:
        return Path(self.description["config"]).stem

    @property
    def is_full_size(self) -> bool:
        return "token_counts" not in self.description

    @property
    def tolerances(self) -> Tolerances:
        return FULL if self.is_full_size else SMALL

    @property
    def num_tokens(self) -> int:
        return self.description.get("token_count") or max(self.description["token_counts"])

    @property
    def positive_maps(self) -> list[dict[str, list[int]]]:
        """Per caption, the tokens of each label (from 1)."""
        return self.description.get("positive_maps") or [self.description["positive_map"]]

    @property
    def resized_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image without padding."""
        images = self.description.get("images", [self.description])
        return [tuple(image["resized_size_hw"]) for image in images]

    def input_ids(self) -> tuple[Tensor, Tensor]:
        """Token ids and mask [N, T], trimmed to the longest caption."""
        if "text.input_ids" not in self.tensors:
            ids = torch.tensor(self.description["input_ids"]).view(1, -1)[:, : self.num_tokens]
            return ids, torch.ones_like(ids)
        mask = self.tensors.get("text.masks", self.tensors.get("text_masks"))
        return self.tensors["text.input_ids"][:, : self.num_tokens], mask[:, : self.num_tokens]

    def pixels(self) -> dict[str, Tensor]:
        """`pixel_values` and `pixel_mask` made from the recorded images by our own image processor."""
        names = [image["file"] for image in self.description.get("images", [])] or [self.description["image"]]
        if settings := self.description.get("input"):
            short, long = settings["min_size"], settings["max_size"]
        else:
            short, long = TRAINING_SIZES[self.description["case"]]
        processor = GlipImageProcessorPil(size={"shortest_edge": short, "longest_edge": long})
        return dict(processor([self.images / name for name in names], return_tensors="pt"))

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of `forward`; pixels as recorded, or else made by our own image processor."""
        ids, mask = self.input_ids()
        if "pixel_values" not in self.tensors:
            return {**self.pixels(), "input_ids": ids, "attention_mask": mask}
        pixels = self.tensors["pixel_values"]
        pixel_mask = torch.zeros(len(pixels), *pixels.shape[-2:], dtype=torch.int64)
        for row, (height, width) in zip(pixel_mask, self.resized_sizes, strict=True):
            row[:height, :width] = 1
        return {"pixel_values": pixels, "pixel_mask": pixel_mask, "input_ids": ids, "attention_mask": mask}

    def labels(self) -> list[dict[str, Tensor]]:
        """Training targets of each image."""
        return [
            {
                "boxes": self.tensors[f"image{i}.boxes_xyxy"],
                "positive_map": self.tensors[f"image{i}.positive_map_normalized"][:, : self.num_tokens],
            }
            for i in range(len(self.description["images"]))
        ]


def load_case(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] = FIXTURES / "parity",
    images: str | os.PathLike[str] | None = None,
) -> Case:
    """Reads a recorded case.

    Args:
        name: CASE.json, CASE.safetensors or the two without suffix, in `root`.
        images: folder of the images; default: `images` beside the case's own folder, or that of the fixtures.

    Raises:
        CaseError: if one of the two files is missing or damaged.
    """
    path = Path(root) / name
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    try:
        description = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        tensors = load_file(f"{stem}.safetensors")
    except Exception as error:
        raise CaseError(f"{stem}.json and {stem}.safetensors are not a recorded case: {error}") from error
    beside = stem.parent.parent / "images"
    return Case(description, tensors, Path(images or (beside if beside.is_dir() else FIXTURES / "images")))


@lru_cache(maxsize=2)
def build_model(architecture: str, seed: int) -> GlipForGrounding:
    """The model of a recorded case with its synthetic weights, converted, in evaluation mode."""
    state_dict = to_ours(synthetic_state_dict(architecture, seed))
    config = recorded_config(architecture)
    return GlipForGrounding.from_pretrained(None, config=config, state_dict=state_dict).eval()


def own_tokens(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """`tensor` without what it says about padding: cut to the length of the mask [N, T], padded tokens zero."""
    length = mask.shape[1]
    if "dot_product" in name:
        return tensor[..., :length] * mask[:, None]
    if name.endswith(("hidden", "text.embedded")):
        return tensor[:, :length] * mask[..., None]
    return tensor


@torch.no_grad()
def record_stages(
    model: GlipForGrounding, run: Callable[[], Any], inner: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """Calls `run()`, a forward pass of `model`, and collects what the original recorded, in its layout.

    Args:
        model: in evaluation mode; on CPU in float32 for the documented tolerances.
        run: images and captions must pair one to one.
        inner: also the stages inside Swin and DyConv, whose hooks keep fused kernels from running.

    Returns:
        the model's output, and stage name -> tensor (maps [B, C, H, W], text [N, T, E], logits [N, A_level, T]).
    """
    stages: dict[str, Tensor] = {}
    handles = []

    def watch(module: torch.nn.Module | None, take: Callable[[Any], Any]) -> None:
        if module is not None:
            handles.append(module.register_forward_hook(lambda _, __, output: take(output)))

    def store(name: str) -> Callable[[Any], None]:
        return lambda output: stages.update({name: output[0] if isinstance(output, tuple) else output})

    def collect(module: torch.nn.Module, name: str, levels: tuple[str, ...]) -> None:
        """A module that is called once per level, in the order of `levels`."""
        remaining = iter(levels)
        watch(module, lambda output: store(f"{name}.{next(remaining)}")(output))

    def take_fusion(name: str) -> Callable[[tuple[Tensor, ...]], None]:
        return lambda output: stages.update({f"{name}.tokens": output[0], f"{name}.hidden": output[1]})

    body = model.model
    watch(body.backbone, lambda o: stages.update({f"swin.stage{2 + i}": x for i, x in enumerate(o.feature_maps)}))
    watch(body.neck, lambda maps: stages.update({f"fpn.{level}": x for level, x in zip(LEVELS, maps, strict=True)}))
    watch(body.text_model, lambda output: stages.update({"text.hidden": output.last_hidden_state}))
    for number, block in enumerate(body.tower["blocks"]):
        watch(block.fusion, take_fusion(f"block{number}.fuse"))
        watch(block.text_layer, store(f"block{number}.text.hidden"))
        dyconv = f"block{number}.dyconv"
        watch(block.dyconv, store(f"{dyconv}.tokens"))
        if inner:
            collect(block.dyconv.offset_conv, f"{dyconv}.offset_mask", LEVELS)
            collect(block.dyconv.conv_mid, f"{dyconv}.branch1", LEVELS)
            collect(block.dyconv.conv_low, f"{dyconv}.branch2", LEVELS[1:])
            collect(block.dyconv.conv_high, f"{dyconv}.branch0", LEVELS[:-1])
    if inner:
        watch(body.backbone.swin.encoder.layers[0].blocks[-1], store("swin.stage1"))
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()

    sizes = [(height, width) for height, width in output.spatial_shapes[0].tolist()]
    lengths = [height * width for height, width in sizes]
    stages["head.bbox_reg.tokens"] = output.bbox_regression
    stages["head.centerness.tokens"] = output.centerness_logits[..., None]
    for name in [name for name in stages if name.endswith(".tokens")]:
        parts = stages.pop(name).split(lengths, dim=1)
        for level, part, size in zip(LEVELS, parts, sizes, strict=True):
            stages[f"{name.removesuffix('tokens')}{level}"] = part.transpose(1, 2).unflatten(2, size)
    if inner:  # channels last, [B, H, W, C] or [B, H * W, C], four times as fine as the second stage of the backbone
        first, second = stages["swin.stage1"], stages["swin.stage2"]
        if first.dim() == 3:
            height = next(h for h in (2 * second.shape[2], 2 * second.shape[2] - 1) if first.shape[1] % h == 0)
            first = first.unflatten(1, (height, -1))
        stages["swin.stage1"] = first.permute(0, 3, 1, 2)
    anchors = make_anchors(sizes, PYRAMID_STRIDES, model.config.anchor_scale, "cpu").split(lengths)
    for level, logits, anchor in zip(LEVELS, output.logits.split(lengths, dim=1), anchors, strict=True):
        stages[f"head.dot_product_logits.{level}"] = logits
        stages[f"anchors.{level}"] = anchor
    return output, stages


def compare_case(
    model: GlipForGrounding, case: Case, inputs: Mapping[str, Tensor] | None = None, inner: bool = True
) -> list[Comparison]:
    """Every recorded quantity of a case against the model; see the module's docstring.

    Args:
        model: with the case's weights, in evaluation mode.
        inputs: of `forward`; default: `case.inputs()`.
        inner: also the stages inside Swin and DyConv; see `record_stages`.

    Returns:
        a row per recorded tensor or statistic, detections last. What the hooks did not see is a failed row.
    """
    inputs = case.inputs() if inputs is None else inputs
    output, stages = record_stages(model, lambda: model(**inputs), inner)
    stages["preprocessed"] = inputs["pixel_values"]
    return compare_stages(case, stages, inner) + compare_detections(case, output)


def compare_stages(case: Case, stages: Mapping[str, Tensor], inner: bool = True) -> list[Comparison]:
    """The recorded tensors and statistics of a case against the stages of a model."""
    mask = case.input_ids()[1]
    if "text.hidden" in stages:
        embedded = own_tokens("text.hidden", stages["text.hidden"], mask)
        pooled = embedded.sum(1) / mask.sum(1, keepdim=True)
        stages = {**stages, "text.embedded": embedded, "text.aggregate": pooled}
    rows = [
        _compare_tensor(name, recorded, stages, mask, case.tolerances)
        for name, recorded in case.tensors.items()
        if _is_stage(name) and (inner or not _is_inner(name))
    ]
    return _compare_statistics(case, stages, inner) + rows


def _is_stage(name: str) -> bool:
    prefixes = ("swin.", "fpn.", "head.", "anchors.", "block", "text.hidden", "text.embedded", "text.aggregate")
    return name.startswith(prefixes)


def _is_inner(name: str) -> bool:
    return name.startswith("swin.stage1") or ".offset_mask" in name or ".branch" in name


def _row(stage: str, pairs: list[tuple[Tensor, Tensor]], tolerances: Tolerances, note: str = "") -> Comparison:
    """Compares pairs (ours, recorded); a note on why there is none makes the row fail."""
    atol, rtol = tolerances.of(stage)
    bound = f"{atol:g} + {rtol:g}|x|"
    for ours, recorded in pairs:
        if ours.shape != recorded.shape:
            pairs, note = [], f"{list(ours.shape)} is not {list(recorded.shape)}"
            break
    if not pairs:
        return Comparison(stage, math.nan, bound, False, note)
    difference = max(float((ours - recorded).abs().max()) for ours, recorded in pairs)
    passed = all(bool(torch.isclose(ours, recorded, atol=atol, rtol=rtol).all()) for ours, recorded in pairs)
    return Comparison(stage, difference, bound, passed, note)


def _compare_tensor(
    name: str, recorded: Tensor, stages: Mapping[str, Tensor], mask: Tensor, tolerances: Tolerances
) -> Comparison:
    stage, _, step = name.partition("@")
    locations = 1
    if "_every" in stage:  # head.dot_product_logits_every32.p3: each 32nd location
        head, _, rest = stage.partition("_every")
        number, _, level = rest.partition(".")
        stage, locations = f"{head}.{level}", int(number)
    if stage not in stages:
        return _row(name, [], tolerances, "not seen")
    ours = own_tokens(stage, stages[stage].float()[:, ::locations], mask)
    if step:
        ours = ours.flatten()[:: int(step)]
    else:
        recorded = own_tokens(stage, recorded, mask)
    return _row(name, [(ours, recorded.float())], tolerances)


def _compare_statistics(case: Case, stages: Mapping[str, Tensor], inner: bool) -> list[Comparison]:
    """Full-size cases: shape, mean, standard deviation, maximum and first values of each stage."""
    recorded = dict(case.description.get("intermediate", {}))
    for level, quantities in case.description.get("levels", {}).items():
        recorded |= {f"head.{name}.{level}": statistics for name, statistics in quantities.items()}
    if "preprocessed" in stages and "preprocessed" in case.description:
        recorded["preprocessed"] = case.description["preprocessed"]
    rows = []
    for name, statistics in recorded.items():
        stage = name.replace("_own_tokens", "")
        if not inner and _is_inner(stage):
            continue
        if stage not in stages:
            rows.append(_row(name, [], case.tolerances, "not seen"))
            continue
        ours = stages[stage].float()
        shape = statistics.get("shape", list(ours.shape))
        if name == "text.embedded":  # recorded with the padding to 256 tokens, all zero
            ours = torch.nn.functional.pad(ours, (0, 0, 0, shape[1] - ours.shape[1]))
        if list(ours.shape) != shape:
            rows.append(_row(name, [], case.tolerances, f"{list(ours.shape)} is not {shape}"))
            continue
        flat = ours.double().flatten()
        pairs = []
        for key, value in statistics.items():
            if key.startswith("first") and isinstance(value, list):
                found = flat[: len(value)]
            elif key.startswith("last_valid_row"):
                found = ours[0, -1, case.resized_sizes[0][0] - 1, : len(value)].double()
            elif key in ("mean", "std", "abs_max"):
                found = {"mean": flat.mean, "std": flat.std, "abs_max": flat.abs().max}[key]()[None]
            else:
                continue
            pairs.append((found, torch.tensor(value, dtype=torch.float64).flatten()))
        rows.append(_row(name, pairs, case.tolerances, "statistics"))
    return rows


class Matching(NamedTuple):
    """Detections without a match among the recorded ones and among ours, and the pairs' largest score difference."""

    missed: int
    surplus: int
    difference: float


def match_detections(ours: Mapping[str, Tensor], recorded: Mapping[str, Tensor], score_tolerance: float) -> Matching:
    """Matches two sets of detections one to one by label, box (within `BOX_TOLERANCE` pixels) and score.

    Args:
        ours, recorded: `boxes` [K, 4] in the same pixels, `scores` [K], `labels` [K], in any order.
    """
    free = set(range(len(recorded["scores"])))
    surplus, worst = 0, 0.0
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        best, best_difference = None, score_tolerance
        for k in free:
            if int(recorded["labels"][k]) != int(label):
                continue
            difference = abs(float(recorded["scores"][k]) - float(score))
            if difference <= best_difference and float((recorded["boxes"][k] - box).abs().max()) <= BOX_TOLERANCE:
                best, best_difference = k, difference
        if best is None:
            surplus += 1
        else:
            free.remove(best)
            worst = max(worst, best_difference)
    return Matching(len(free), surplus, worst)


def compare_detections(case: Case, output: Any) -> list[Comparison]:
    """The recorded detections: each set was made with one positive map for the whole batch."""
    rows = []
    names = sorted({name.rsplit(".img", 1)[0] for name in case.tensors if name.startswith("det")})
    for name in names:
        if name == "det.pad_longest":  # equal to det.forward within rounding
            continue
        classes = case.positive_maps[1 if name.startswith("det_map1") else 0]
        aggregation = {"MAX": "max", "POWER": "power"}.get(name.rsplit(".", 1)[-1], "mean")
        shape = (len(output.logits), len(classes), output.logits.shape[-1])
        positive_map = torch.zeros(shape, dtype=torch.bool)
        for row, tokens in enumerate(classes.values()):
            positive_map[:, row, tokens] = True
        labels = torch.tensor([int(label) for label in classes]).expand(shape[:2])
        one_map = SimpleNamespace(**{**output, "positive_map": positive_map, "label_ids": labels})
        one_map.image_indices, one_map.original_sizes = None, None
        found = post_process_grounding(one_map, target_sizes=case.resized_sizes, aggregation=aggregation)
        unmatched, total, worst = 0, 0, 0.0
        for number, ours in enumerate(found):
            recorded = {key: case.tensors[f"{name}.img{number}.{key}"] for key in ("boxes", "scores", "labels")}
            match = match_detections(ours, recorded, case.tolerances.score)
            unmatched, worst = unmatched + match.missed + match.surplus, max(worst, match.difference)
            total += max(len(recorded["scores"]), len(ours["scores"]))
        passed = unmatched <= case.tolerances.unmatched * total
        note = f"{total - unmatched} of {total} boxes"
        rows.append(Comparison(name, worst, f"{case.tolerances.score:g}", passed, note))
    return rows


def format_table(rows: Iterable[Comparison], only_failed: bool = False) -> str:
    """The rows (or those that failed) as an aligned table with a summary line over all."""
    rows = list(rows)
    width = max((len(row.stage) for row in rows), default=5)
    lines = [f"{'stage':<{width}}  max difference  {'tolerance':<18}  verdict"]
    for row in rows:
        if only_failed and row.passed:
            continue
        verdict = "ok" if row.passed else "FAILED"
        note = f"  {row.note}" if row.note else ""
        lines.append(f"{row.stage:<{width}}  {row.difference:>14.3g}  {row.bound:<18}  {verdict}{note}")
    failed = sum(not row.passed for row in rows)
    lines.append(f"{len(rows) - failed} of {len(rows)} within tolerance")
    return "\n".join(lines)
