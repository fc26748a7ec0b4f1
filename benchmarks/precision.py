# Copyright 2026 The glip_hf authors. MIT licence.
"""Lower precision: what bfloat16 and int8 do to detections, time and the size of the weights.

    float32         what the others are compared with
    bfloat16        the whole model
    int8            linear layers by torchao's Int8DynamicActivationInt8WeightConfig, bfloat16 elsewhere
    int8_weights    linear layers by torchao's Int8WeightOnlyConfig, bfloat16 elsewhere

Cost:    about 8 minutes on 2 CPU cores; two of them for the times.
Command: python benchmarks/precision.py [--scenes 300] [--shared-weights] [--case coco80]
         (int8 is left out, and said so, where torchao is not installed)
Result:  a table on stdout and a row of benchmarks/results/precision.csv.

1. `evaluate_scenes` of the shipped model in each form, detection and phrases. `--scenes 0`: neither this nor the next.
2. Of its float32 detections with a score of at least 0.3 on those scenes: the fraction that another form also finds
   (same class, IoU of at least 0.9), and over these the mean IoU and the mean and largest change of the score.
3. The full-size GLIP-T, random or with the weights of the parity cases (--shared-weights): the size of its file and of
   its tensors, seconds of one image of 800 x 1066 pixels and one caption, all forms in turn, and its logits.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.util
import tempfile
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import TorchAoConfig

from benchmarks import harness
from benchmarks.harness import MIB, Variant
from benchmarks.latency import CASES, case_inputs
from glip_hf import GlipForGrounding
from glip_hf.boxes_glip import box_iou
from glip_hf.data.scene_metrics import SEED, evaluate_scenes, ground
from glip_hf.data.scenes import SceneDataset
from glip_hf.demo import DEMO_MODEL, demo_processor
from glip_hf.kernels import cpu_int8

SCORE, OVERLAP = 0.3, 0.9
INT8 = {"int8": "Int8DynamicActivationInt8WeightConfig", "int8_weights": "Int8WeightOnlyConfig"}


def measured_forms() -> list[str]:
    """The names of the forms that can run here."""
    if importlib.util.find_spec("torchao") is not None:
        return ["float32", "bfloat16", *INT8]
    harness.say("int8 is not measured: torchao is not installed (pip install torchao).")
    return ["float32", "bfloat16"]


def load_form(folder: Path, form: str) -> GlipForGrounding:
    """A saved model in one of the forms, in evaluation mode."""
    options = {}
    if form in INT8:
        import torchao.quantization

        quantization = getattr(torchao.quantization, INT8[form])()
        options["quantization_config"] = TorchAoConfig(quantization, modules_to_not_convert=[])
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    return GlipForGrounding.from_pretrained(folder, dtype=dtype, **options).eval()


def compare_detections(scenes: int, forms: Sequence[str]) -> dict[str, float]:
    """The fraction of confident float32 detections that the other forms find too, and how much these change."""
    exact, processor = load_form(DEMO_MODEL, "float32"), demo_processor()
    dataset = SceneDataset("detection", scenes, SEED)
    batches = [[dataset[index] for index in range(i, min(i + 16, scenes))] for i in range(0, scenes, 16)]
    expected = [one for batch in batches for one in ground(exact, processor, batch, score_threshold=0.05)]
    figures: dict[str, float] = {"float32_detections": sum(int((one["scores"] >= SCORE).sum()) for one in expected)}
    for form in forms:
        model = load_form(DEMO_MODEL, form)
        found = [one for batch in batches for one in ground(model, processor, batch, score_threshold=0.05)]
        overlaps, changes = [], []
        for one, other in zip(expected, found):
            sure = one["scores"] >= SCORE
            same = one["labels"][sure, None] == other["labels"]
            ious = torch.where(same, box_iou(one["boxes"][sure], other["boxes"].float()), 0)
            if ious.shape[1]:
                best, index = ious.max(1)
                kept = best >= OVERLAP
                overlaps.append(best[kept])
                changes.append((one["scores"][sure] - other["scores"].float()[index]).abs()[kept])
        overlap, change = torch.cat(overlaps), torch.cat(changes)
        figures[f"found_by_{form}"] = len(overlap) / figures["float32_detections"]
        figures[f"mean_iou_{form}"] = float(overlap.mean())
        figures[f"mean_score_change_{form}"] = float(change.mean())
        figures[f"largest_score_change_{form}"] = float(change.max())
    return figures


def _size(tensor: Tensor) -> int:
    """Bytes, also of the tensors that a wrapper such as torchao's holds."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(_size(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def weight_sizes(model: nn.Module, folder: Path) -> tuple[float, float]:
    """MiB of a model's file, saved to `folder`, and of its tensors."""
    model.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return size / MIB, sum(map(_size, model.state_dict().values())) / MIB


@torch.inference_mode()
def compare_models(arguments: argparse.Namespace, forms: Sequence[str]) -> dict[str, float]:
    """Sizes, times and logits of the full-size model in each form."""
    case = CASES[arguments.case]
    figures: dict[str, float] = {"case": arguments.case}
    models = {}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        harness.load_model(arguments).save_pretrained(source)
        for form in forms:
            models[form] = load_form(source, form)
            figures[f"disk_mib_{form}"], figures[f"memory_mib_{form}"] = weight_sizes(
                models[form], Path(directory) / form
            )
    pixels, (caption,) = case_inputs(case, *(arguments.size or case.size), models["float32"])

    def run(form: str) -> Tensor:
        return models[form](**pixels, **caption).logits

    exact = run("float32").clone()
    times = harness.time_in_turn({form: Variant(lambda form=form: run(form)) for form in forms}, arguments.runs)
    figures["logits_standard_deviation"] = float(exact.std())
    for form in forms:
        figures[f"seconds_{form}"], figures[f"cpu_seconds_{form}"] = times[form].median, times[form].median_cpu
        if form == "float32":
            continue
        for key in ("seconds", "cpu_seconds"):
            figures[f"{key}_float32_over_{form}"] = figures[f"{key}_float32"] / figures[f"{key}_{form}"]
        for key in ("disk", "memory"):
            figures[f"{key}_{form}_over_float32"] = figures[f"{key}_mib_{form}"] / figures[f"{key}_mib_float32"]
        difference = (run(form).float() - exact).abs()
        figures[f"logits_mean_change_{form}"] = float(difference.mean())
        figures[f"logits_largest_change_{form}"] = float(difference.max())
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--case", choices=["three", "coco80"], default="three", help="the caption, see latency.py")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: 800 1066")
    parser.add_argument("--no-times", action="store_true", help="only the detections of the shipped model")
    arguments = harness.begin(parser, argv, "precision")
    torch.set_num_threads(arguments.threads)
    forms = measured_forms()
    figures: dict[str, float] = {"scenes": arguments.scenes}
    if not arguments.no_times:
        figures |= compare_models(arguments, forms)
    if arguments.scenes:
        # All layers of the shipped model are narrower, and would not multiply in int8.
        with mock.patch.object(cpu_int8, "NARROW", 0):
            for form in forms:
                model = load_form(DEMO_MODEL, form)
                metrics = evaluate_scenes(model, demo_processor(), arguments.scenes, splits=("detection", "sentences"))
                figures |= {f"{name}_{form}": value for name, value in metrics.items()}
            figures |= compare_detections(arguments.scenes, [form for form in forms if form != "float32"])
    harness.finish(arguments, "precision", [figures], figures)


if __name__ == "__main__":
    main()
