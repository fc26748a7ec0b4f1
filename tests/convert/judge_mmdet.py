# Copyright 2026 The glip_hf authors. MIT licence.
"""Lets mmdetection's own script judge our reading and writing of its layout; run by hand, in a scratch environment.

    pip download mmdet==3.3.0 --no-deps && unzip -d mmdet mmdet-3.3.0-*.whl
    pip install --target mmdet --no-deps mmengine addict yapf termcolor opencv-python-headless
    PYTHONPATH=src:tests:tests/convert:mmdet python tests/convert/judge_mmdet.py mmdet small small_a glip_a_tiny_o365

For each case (synthetic weights of `../shared/parity`) original -> script -> ours must be original -> ours, tensors and
detections, and ours -> mmdet and mmdet -> ours -> mmdet must be the script's file bit for bit. Exit code 1 if not.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from checkpoints import VOCAB, prefixed, same_bits
from parity.architectures import recorded_config
from parity.synthetic import synthetic_state_dict
from test_mmdet import digest

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.conversion import convert_checkpoint, restore_checkpoint

SCRIPT = "mmdet/.mim/tools/model_converters/glip_to_mmdet.py"


def load_script(root: str):
    """The script as a module, which needs mmengine on the path."""
    if not (path := Path(root) / SCRIPT).is_file():
        sys.exit(f"SKIPPED: no {path}; see the head of {Path(__file__).name}")
    spec = importlib.util.spec_from_file_location("glip_to_mmdet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detect(directory: Path) -> dict[str, torch.Tensor]:
    """Detections of a fixed random image."""
    model = GlipForGrounding.from_pretrained(directory).eval()
    for parameter in model.parameters():  # at addresses of one alignment, on which the last bits of a product depend
        parameter.data = parameter.data.clone()
    processor = GlipProcessor.from_pretrained(directory)
    image = torch.randint(0, 255, (3, 200, 260), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    size = {"shortest_edge": 256, "longest_edge": 400}
    inputs = processor(images=image, text=["cat", "dog"], size=size, return_tensors="pt")
    with torch.inference_mode():
        found = processor.post_process_grounded_object_detection(model(**inputs), inputs, threshold=0.0)[0]
    return {name: found[name] for name in ("scores", "boxes", "labels")}


def judge(script, name: str, folder: Path) -> bool:
    original = synthetic_state_dict(name)
    judged = dict(script.convert(prefixed(original)))
    torch.save({"model": prefixed(original)}, folder / "original.pth")
    torch.save(judged, folder / "mmdet.pth")
    config = recorded_config(name) if name.startswith("small") else None
    for layout in ("original", "mmdet"):
        convert_checkpoint(folder / f"{layout}.pth", folder / layout, config=config, tokenizer=VOCAB)
    ours = {layout: GlipForGrounding.from_pretrained(folder / layout).state_dict() for layout in ("original", "mmdet")}
    shared = {key: tensor for key, tensor in ours["original"].items() if "class_logits" not in key}
    found = {layout: detect(folder / layout) for layout in ("original", "mmdet")}
    checks = {
        "tensors": same_bits(ours["mmdet"], shared),
        "detections": len(found["mmdet"]["scores"]) > 0 and same_bits(found["mmdet"], found["original"]),
    }
    del ours, shared
    for layout, to, expected in (
        ("original", "original", prefixed(original)),
        ("original", "mmdet", judged),
        ("mmdet", "mmdet", judged),
        ("mmdet", "original", {key: tensor for key, tensor in original.items() if "cls_logits" not in key}),
    ):
        restore_checkpoint(folder / layout, folder / "back.pth", to=to, force=True)
        back = torch.load(folder / "back.pth", mmap=True)
        checks[f"{layout} -> ours -> {to}"] = same_bits(back["model"] if to == "original" else back, expected)
    print(f"{name}: {len(judged)} tensors, {len(found['mmdet']['scores'])} detections, sha256 {digest(judged)}")
    print("".join(f"  {'same' if same else 'DIFFERS':8}{what}\n" for what, same in checks.items()), end="", flush=True)
    return all(checks.values())


def main(root: str, *names: str) -> int:
    script = load_script(root)
    passed = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            passed &= judge(script, name, Path(folder))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
