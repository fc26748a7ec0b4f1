# Copyright 2026 The glip_hf authors. MIT licence.
"""Compares a model with recorded tensors of the reference implementation, stage by stage.

A reference case is a pair CASE.json and CASE.safetensors. The json says which weights, picture and
caption; tensors are recorded whole (small cases) or as statistics and first values (full-size
cases). Names of stages are the recorded ones: `swin.stageK`, `fpn.pL`, `text.*`, `blockN.fuse.*`,
`blockN.text.hidden`, `blockN.dyconv.*`, `head.*`, `det.*`.

    case = load_case("small_inference/b1")
    rows = compare_case(model, case)
    print(format_table(rows)); assert all(row.passed for row in rows)
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..boxes_glip import make_anchors
from ..configuration_glip import PYRAMID_STRIDES
from ..postprocess_glip import post_process_grounding

if TYPE_CHECKING:
    from ..modeling_glip import GlipForGrounding

LEVELS = ("p3", "p4", "p5", "p6", "p7")
PIXEL_TOLERANCE = 1e-5
BOX_TOLERANCE = 0.05
"""Pixels by which matched boxes may differ."""


class CaseError(ValueError):
    """A reference case cannot be read or does not fit the model."""


@dataclass(frozen=True)
class Tolerances:
    """`torch.isclose` bounds by prefix of a stage, of scores, and the share of lost boxes."""

    stages: tuple[tuple[str, float, float], ...]
    score: float
    unmatched: float

    def of(self, stage: str) -> tuple[float, float]:
        return next((atol, rtol) for prefix, atol, rtol in self.stages if stage.startswith(prefix))


SMALL = Tolerances(
    (("text.", 1e-5, 1e-5), ("swin.", 1e-5, 1e-5), ("fpn.", 2e-5, 2e-5), ("", 1e-4, 1e-4)),
    1e-5,
    0.0,
)
FULL = Tolerances((("preprocessed", PIXEL_TOLERANCE, 1e-5), ("", 5e-4, 1e-3)), 1e-4, 0.01)


@dataclass(frozen=True)
class Comparison:
    """One row: a stage, its largest difference, the bound it is held to, and the verdict."""

    stage: str
    difference: float
    bound: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class ReferenceCase:
    """A recorded case: the json's content, tensors, the pictures' files, and if it is full-size."""

    info: dict[str, Any]
    tensors: dict[str, Tensor]
    images: tuple[Path, ...]
    full: bool

    @property
    def captions(self) -> int:
        return len(self.token_counts)

    @property
    def token_counts(self) -> list[int]:
        return [self.info["token_count"]] if self.full else list(self.info["token_counts"])

    @property
    def resized_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture without padding."""
        if self.full:
            return [tuple(self.info["resized_size_hw"])]
        return [tuple(image["resized_size_hw"]) for image in self.info["images"]]

    @property
    def positive_maps(self) -> list[dict[str, list[int]]]:
        return [self.info["positive_map"]] if self.full else list(self.info["positive_maps"])


def load_case(path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> ReferenceCase:
    """Reads a reference case.

    Args:
        path: CASE.json, CASE.safetensors or the two without suffix.
        images: folder of the pictures; default: `images` beside the case's own folder.

    Raises:
        CaseError: if one of the two files is missing or damaged.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    try:
        info = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        tensors = load_file(f"{stem}.safetensors")
    except Exception as error:
        raise CaseError(f"{stem}.json and {stem}.safetensors are not a reference case: {error}") from error
    folder = Path(images) if images is not None else stem.parent.parent / "images"
    full = "token_counts" not in info
    names = [info["image"]] if full else [image["file"] for image in info["images"]]
    return ReferenceCase(info, tensors, tuple(folder / name for name in names), full)


def case_inputs(case: ReferenceCase) -> dict[str, Tensor]:
    """Keyword arguments for `GlipForGrounding.forward`: the recorded pixels and ids, captions
    trimmed.

    Full-size cases record no pixels: theirs are made from the picture by `prepare_picture`.
    """
    length = max(case.token_counts)
    if case.full:
        pixels = prepare_picture(case.images[0], case.resized_sizes[0], case.info["input"])
        ids = torch.tensor([case.info["input_ids"]])[:, :length]
        mask = torch.ones_like(ids)
    else:
        pixels = case.tensors["pixel_values"]
        ids = case.tensors["text.input_ids"][:, :length]
        mask = case.tensors["text.masks"][:, :length]
    pixel_mask = torch.zeros(len(pixels), *pixels.shape[-2:], dtype=torch.int64)
    for row, (height, width) in zip(pixel_mask, case.resized_sizes, strict=True):
        row[:height, :width] = 1
    return {
        "pixel_values": pixels,
        "pixel_mask": pixel_mask,
        "input_ids": ids,
        "attention_mask": mask,
    }


def prepare_picture(path: Path, size: tuple[int, int], recipe: Mapping[str, Any]) -> Tensor:
    """[1, 3, H, W] float32: resized by PIL, BGR, normalised, padded; without our processors."""
    try:
        picture = Image.open(path).convert("RGB")
    except OSError as error:
        raise CaseError(f"The picture of this case, {path}, cannot be read: {error}") from error
    height, width = size
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).flip(-1).permute(2, 0, 1).float() / 255 * 255
    mean, std = (torch.tensor(recipe[f"pixel_{name}_bgr"])[:, None, None] for name in ("mean", "std"))
    multiple = recipe["size_divisibility"]
    return torch.nn.functional.pad((pixels - mean) / std, (0, -width % multiple, 0, -height % multiple))[None]


@torch.no_grad()
def run_stages(model: "GlipForGrounding", inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    """Runs the model and collects what the reference recorded, in its layout.

    Args:
        model: in evaluation mode; on CPU in float32 for the documented tolerances.
        inputs: for `forward`; pictures and captions must pair one to one.

    Returns:
        stage name -> tensor (maps [B, C, H, W], text [N, T, E], logits [N, A_level, T]), and the
        model's output.
    """
    stages: dict[str, Tensor] = {}
    handles = []

    def first(output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    def watch(module: torch.nn.Module | None, take: Any) -> None:
        if module is not None:
            handles.append(module.register_forward_hook(lambda _, __, output: take(output)))

    def collect(module: torch.nn.Module, name: str, levels: tuple[str, ...]) -> None:
        """A module that is called once a level, in the order of `levels`."""
        remaining = iter(levels)
        watch(module, lambda output: stages.__setitem__(f"{name}.{next(remaining)}", first(output)))

    sizes: list[tuple[int, int]] = []

    def take_pyramid(name: str, tokens: Tensor) -> None:
        parts = tokens.split([height * width for height, width in sizes], dim=1)
        for level, part, size in zip(LEVELS, parts, sizes, strict=True):
            stages[f"{name}.{level}"] = part.transpose(1, 2).unflatten(2, size)

    def take_neck(levels: Iterable[Tensor]) -> None:
        for name, level in zip(LEVELS, levels, strict=True):
            stages[f"fpn.{name}"] = level
            sizes.append(tuple(level.shape[-2:]))

    def take_fusion(name: str, output: tuple[Tensor, ...]) -> None:
        take_pyramid(name, output[0])
        stages[f"{name}.hidden"] = output[1]

    def take_first_stage(output: Any) -> None:
        """Not among the backbone's outputs: channels last, [B, H, W, C] or [B, H * W, C]."""
        x = first(output)
        if x.dim() == 3:
            height, width = inputs["pixel_values"].shape[-2:]
            x = x.unflatten(1, (-(-height // 4), -(-width // 4)))
        stages["swin.stage1"] = x.permute(0, 3, 1, 2)

    body = model.model
    stages_of_swin = dict(body.backbone.named_modules()).get("swin.encoder.layers")
    if stages_of_swin is not None:
        watch(stages_of_swin[0].blocks[-1], take_first_stage)
    watch(
        body.backbone,
        lambda output: stages.update({f"swin.stage{2 + i}": level for i, level in enumerate(output.feature_maps)}),
    )
    watch(body.neck, take_neck)
    watch(body.text_model, lambda output: stages.__setitem__("text.hidden", output.last_hidden_state))
    for number, block in enumerate(dict(body.named_modules())["tower.blocks"]):
        name = f"block{number}"
        watch(block.fusion, lambda output, name=f"{name}.fuse": take_fusion(name, output))
        watch(
            block.text_layer,
            lambda output, name=f"{name}.text.hidden": stages.__setitem__(name, first(output)),
        )
        dyconv = f"{name}.dyconv"
        watch(block.dyconv, lambda output, name=dyconv: take_pyramid(name, output))
        collect(block.dyconv.offset_conv, f"{dyconv}.offset_mask", LEVELS)
        collect(block.dyconv.conv_mid, f"{dyconv}.branch1", LEVELS)
        collect(block.dyconv.conv_low, f"{dyconv}.branch2", LEVELS[1:])
        collect(block.dyconv.conv_high, f"{dyconv}.branch0", LEVELS[:-1])
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()

    if "text.hidden" in stages:
        mask = inputs["attention_mask"][..., None]
        stages["text.embedded"] = stages["text.hidden"] * mask
        stages["text.aggregate"] = stages["text.embedded"].sum(1) / mask.sum(1)
    lengths = [height * width for height, width in sizes]
    take_pyramid("head.bbox_reg", output.bbox_regression)
    take_pyramid("head.centerness", output.centerness_logits[..., None])
    anchors = make_anchors(sizes, PYRAMID_STRIDES, model.config.anchor_scale, "cpu").split(lengths)
    for level, logits, anchor in zip(LEVELS, output.logits.split(lengths, dim=1), anchors, strict=True):
        stages[f"head.dot_product_logits.{level}"] = logits
        stages[f"anchors.{level}"] = anchor
    return stages, output


def compare_case(
    model: "GlipForGrounding", case: ReferenceCase, tolerances: Tolerances | None = None
) -> list[Comparison]:
    """Every recorded quantity of a case against the model; see the module's docstring.

    Args:
        model: with the case's weights, in evaluation mode.
        case: from `load_case`.
        tolerances: `SMALL` or `FULL` by default, after the case's size.

    Returns:
        a row for each recorded tensor or statistic, detections last. What the hooks could not see
        (a module that was compiled away) is a failed row that says so.
    """
    tolerances = tolerances or (FULL if case.full else SMALL)
    inputs = case_inputs(case)
    stages, output = run_stages(model, inputs)
    rows = []
    if case.full:
        stages["preprocessed"] = inputs["pixel_values"]
        rows += _compare_statistics(case, stages, tolerances)
    rows += [
        _compare(name, recorded, stages, case, tolerances) for name, recorded in case.tensors.items() if _is_stage(name)
    ]
    return rows + _compare_detections(case, output, tolerances)


def _is_stage(name: str) -> bool:
    return name.split(".")[0] in ("swin", "fpn", "head", "anchors") or name.startswith(
        ("block", "text.hidden", "text.embedded", "text.aggregate")
    )


def _is_text(name: str) -> bool:
    """[N, T, E] or, for logits, [N, A, T]: only the caption's own tokens count."""
    return name.endswith(("hidden", "text.embedded"))


def _bound(stage: str, tolerances: Tolerances) -> tuple[float, float, str]:
    atol, rtol = tolerances.of(stage)
    return atol, rtol, f"{atol:g} + {rtol:g}|x|"


def _compare(
    name: str,
    recorded: Tensor,
    stages: Mapping[str, Tensor],
    case: ReferenceCase,
    tolerances: Tolerances,
) -> Comparison:
    atol, rtol, bound = _bound(name, tolerances)
    stage, step = name, 1
    if "_every" in name:  # head.dot_product_logits_every32.p3: each 32nd location
        head, _, rest = name.partition("_every")
        number, _, level = rest.partition(".")
        stage, step = f"{head}.{level}", int(number)
    if stage not in stages:
        return Comparison(name, math.nan, bound, False, "not seen")
    ours = stages[stage].float()
    pairs: list[tuple[Tensor, Tensor]] = []
    if ".dot_product_logits" in stage:
        for n, count in enumerate(case.token_counts):
            pairs.append((ours[n, ::step, :count], recorded[n, ..., :count]))
    elif _is_text(stage):
        for n, count in enumerate(case.token_counts):
            pairs.append((ours[n, :count], recorded[n, :count]))
    else:
        pairs.append((ours, recorded))
    if any(a.shape != b.shape for a, b in pairs):
        shapes = f"{[list(a.shape) for a, _ in pairs]} is not {[list(b.shape) for _, b in pairs]}"
        return Comparison(name, math.nan, bound, False, shapes)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    passed = all(bool(torch.isclose(a, b.float(), atol=atol, rtol=rtol).all()) for a, b in pairs)
    return Comparison(name, difference, bound, passed)


def _compare_statistics(case: ReferenceCase, stages: Mapping[str, Tensor], tolerances: Tolerances) -> list[Comparison]:
    """Full-size cases: shape, mean, standard deviation, maximum and first values of each stage."""
    recorded = dict(case.info["intermediate"])
    for level, quantities in case.info["levels"].items():
        for name, statistics in quantities.items():
            recorded[f"head.{name}.{level}"] = statistics
    recorded["preprocessed"] = case.info["preprocessed"]
    rows = []
    for name, statistics in recorded.items():
        stage = name.replace("_own_tokens", "")
        atol, rtol, bound = _bound(stage, tolerances)
        if stage not in stages:
            rows.append(Comparison(name, math.nan, bound, False, "not seen"))
            continue
        ours = stages[stage].float()
        shape = statistics.get("shape", list(ours.shape))
        if name == "text.embedded":  # recorded with the padding to 256 tokens, all zero
            ours = torch.nn.functional.pad(ours, (0, 0, 0, shape[1] - ours.shape[1]))
        if list(ours.shape) != shape:
            rows.append(Comparison(name, math.nan, bound, False, f"{list(ours.shape)} is not {shape}"))
            continue
        flat = ours.double().flatten()
        got, expected = [], []
        for key, value in statistics.items():
            if key.startswith("first") and isinstance(value, list):
                got.append(flat[: len(value)])
            elif key.startswith("last_valid_row"):
                got.append(ours[0, -1, case.resized_sizes[0][0] - 1, : len(value)].double())
            elif key in ("mean", "std", "abs_max"):
                number = {"mean": flat.mean, "std": flat.std, "abs_max": flat.abs().max}
                got.append(number[key]()[None])
            else:
                continue
            expected.append(torch.tensor(value, dtype=torch.float64).flatten())
        a, b = torch.cat(got), torch.cat(expected)
        rows.append(
            Comparison(
                name,
                float((a - b).abs().max()),
                bound,
                bool(torch.isclose(a, b, atol=atol, rtol=rtol).all()),
                "statistics",
            )
        )
    return rows


def match_detections(
    ours: Mapping[str, Tensor], recorded: Mapping[str, Tensor], score_tolerance: float
) -> tuple[int, float]:
    """Matches two sets of detections by label, box (within `BOX_TOLERANCE` pixels) and score.

    Args:
        ours, recorded: `boxes` [K, 4] in the same pixels, `scores` [K], `labels` [K], in any order.

    Returns:
        how many of either set found no partner, and the largest score difference of the pairs.
    """
    free = set(range(len(recorded["scores"])))
    unmatched, worst = 0, 0.0
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        best, best_difference = None, score_tolerance
        for k in free:
            if int(recorded["labels"][k]) != int(label):
                continue
            difference = abs(float(recorded["scores"][k]) - float(score))
            if difference <= best_difference and float((recorded["boxes"][k] - box).abs().max()) <= BOX_TOLERANCE:
                best, best_difference = k, difference
        if best is None:
            unmatched += 1
        else:
            free.remove(best)
            worst = max(worst, best_difference)
    return unmatched + len(free), worst


def _compare_detections(case: ReferenceCase, output: Any, tolerances: Tolerances) -> list[Comparison]:
    """The recorded detections: each set was made with one map for the whole batch."""
    rows = []
    names = sorted({name.rsplit(".img", 1)[0] for name in case.tensors if name.startswith("det")})
    for name in names:
        if name == "det.pad_longest":  # the same numbers as det.forward within rounding
            continue
        classes = case.positive_maps[1 if name.startswith("det_map1") else 0]
        mode = name.rsplit(".", 1)[-1]
        aggregation = {"MAX": "max", "POWER": "power"}.get(mode, "mean")
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
            missed, difference = match_detections(ours, recorded, tolerances.score)
            unmatched, worst = unmatched + missed, max(worst, difference)
            total += max(len(recorded["scores"]), len(ours["scores"]))
        share = unmatched / max(total, 1)
        rows.append(
            Comparison(
                name,
                worst,
                f"{tolerances.score:g}",
                share <= tolerances.unmatched,
                f"{total - unmatched} of {total} boxes",
            )
        )
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


__all__ = [
    "FULL",
    "SMALL",
    "CaseError",
    "Comparison",
    "ReferenceCase",
    "Tolerances",
    "case_inputs",
    "compare_case",
    "format_table",
    "load_case",
    "match_detections",
    "prepare_picture",
    "run_stages",
]
