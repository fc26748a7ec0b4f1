# Copyright 2026 The glip_hf authors. MIT licence.
"""`import glip_hf` and the help of the command line import neither torch nor Transformers; GLIP is registered still."""

import copy
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fresh import python
from transformers.utils.import_utils import is_torch_greater_or_equal

import glip_hf
from glip_hf import _lazy, cli
from glip_hf.cli import COMMANDS, check_data, common, convert, evaluate_options, quick
from glip_hf.compilation import MODES
from glip_hf.conversion import WRAPPING_CHOICES
from glip_hf.data import READERS
from glip_hf.demo import DEMO_IMAGE, DEMO_MODEL, DEMO_NAMES

ROOT = Path(__file__).resolve().parents[1]
LIGHT = """
import contextlib, io, sys
import glip_hf
from glip_hf import cli
commands = [[], ["--help"], ["--version"], ["nonsense"], ["ground", "photo.jpg", "--model", "demo"]]
commands += [[name, "--help"] for name in cli.COMMANDS] + [[name, "--nonsense"] for name in cli.COMMANDS]
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            cli.main(command)
assert not hasattr(glip_hf, "nonsense") and "GlipModel" in dir(glip_hf)
print(*sorted({"torch", "transformers", "numpy", "datasets"} & set(sys.modules)))
"""

ROUTES = {
    "config": ("import glip_hf; from transformers import AutoConfig as Auto", "configuration_glip.GlipConfig"),
    "model": ("import glip_hf; from transformers import AutoModel as Auto", "modeling_glip.GlipModel"),
    "processor": ("import glip_hf; from transformers import AutoProcessor as Auto", "processing_glip.GlipProcessor"),
    "image processor": ("import glip_hf; from transformers import AutoImageProcessor as Auto", "GlipImageProcessor"),
    "Transformers' tables read first": (
        "from transformers import AutoModelForZeroShotObjectDetection as Auto; import glip_hf",
        "modeling_glip.GlipForGrounding",
    ),
    "in the middle of other imports": (
        "import glip_hf; from transformers import BertModel, Trainer, AutoModel as Auto",
        "modeling_glip.GlipModel",
    ),
    "the package's modules alone": ("from glip_hf.modeling_glip import GlipModel as Auto", "modeling_glip.GlipModel"),
}
"""Imports that end with a class `Auto`, and what it loads."""


def test_help_and_usage_errors_import_nothing_slow() -> None:
    assert python(LIGHT) == ""


@pytest.mark.parametrize(
    "name",
    [name if name == "pipeline" else pytest.param(name, marks=pytest.mark.slow) for name in ("pipeline", *ROUTES)],
)
def test_auto_classes_find_glip_in_a_fresh_process(name: str) -> None:
    """Each in a process of its own: the first class that is asked for registers all of them, and the kernels."""
    if name == "pipeline":
        imports, expected = "import glip_hf; from transformers import pipeline", "modeling_glip.GlipForGrounding"
        load = f"pipeline('zero-shot-object-detection', {str(DEMO_MODEL)!r}).model"
    else:
        imports, expected = ROUTES[name]
        load = f"Auto.from_pretrained({str(DEMO_MODEL)!r})"
    code = f"{imports}\nloaded = {load}\nfrom glip_hf import ops_glip\nprint(type(loaded), len(ops_glip._kernels))"
    loaded, kernels = python(code).splitlines()[-1].rsplit(" ", 1)
    assert expected in loaded and int(kernels) > 0


def test_every_name_is_there() -> None:
    assert all(getattr(glip_hf, name) is not None for name in glip_hf.__all__)
    assert glip_hf.configuration_glip.PRESETS is glip_hf.PRESETS
    with pytest.raises(AttributeError, match="'glip_hf' has no attribute 'GlipNonsense'"):
        _ = glip_hf.GlipNonsense


def test_what_the_command_line_knows_without_torch_is_true() -> None:
    assert evaluate_options.COMPILE_MODES == MODES
    assert set(check_data.FORMATS) == set(READERS) - {"scenes"}
    assert common.SHIPPED_MODEL == DEMO_MODEL and convert.WRAPPINGS == WRAPPING_CHOICES
    assert all(module.HELP and module.DESCRIPTION for module in COMMANDS.values())


BARE = """
import runpy, sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse)
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
EXTRAS = ["accelerate", "datasets", "pyarrow", "pydantic", "yaml", "pycocotools", "faster_coco_eval", "jinja2", "ray"]
EXAMPLES = {
    "evaluate": ["coco", "--model", "demo", "--images", ".", "--annotations", "x.json"],
    "finetune": ["--model", "demo", "--train", "x.json", "--images", "."],
    "label_captions": ["--teacher", "demo", "--input", "x.parquet", "--output", "out"],
    "label_captions_ray": ["--teacher", "demo", "--input", "x.parquet", "--output", "out"],
    "pretrain": [],
}


def run_bare(script: str, arguments: list[str], refused: list[str], cwd: Path) -> subprocess.CompletedProcess:
    code = BARE.format(refused=refused, argv=[str(ROOT / script), *arguments])
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", [f"examples/{name}.py" for name in (*EXAMPLES, "ground_photo")])
def test_help_of_examples_needs_no_extra(script: str, tmp_path: Path) -> None:
    done = run_bare(script, ["--help"], [*EXTRAS, "torch", "transformers"], tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_name_the_extra_that_is_missing(name: str, tmp_path: Path) -> None:
    done = run_bare(f"examples/{name}.py", EXAMPLES[name], EXTRAS, tmp_path)
    assert done.returncode == 1 and not done.stdout
    remedy = r"(pip install '\.\[(train|eval|ray)\]' in the clone|pip install (accelerate|jinja2))"
    assert re.search(rf"this needs \w+.*{remedy}", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, option, value",
    [("finetune", "--shots", "0"), ("finetune", "--prompt-length", "-1"), ("pretrain", "--max-steps", "0"),
     ("label_captions", "--batch-size", "0"), ("label_captions", "--threshold", "40")],
)  # fmt: skip
def test_limits_without_a_sense_are_refused_before_anything_is_read(name, option, value, tmp_path) -> None:
    done = run_bare(f"examples/{name}.py", [*EXAMPLES[name], option, value], ["torch"], tmp_path)
    assert done.returncode == 2 and f"argument {option}: {value} is not" in done.stderr


THREADS = """
import threading
import glip_hf
done = []
def module():
    import glip_hf.modeling_glip
    done.append(glip_hf.modeling_glip.GlipModel)
threads = [threading.Thread(target=target) for target in (module, lambda: done.append(glip_hf.GlipModel))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 2
"""


@pytest.mark.slow
def test_threads_that_import_at_once() -> None:
    """The one takes a module of the package, the other a class of the package: neither waits for the other for ever."""
    subprocess.run([sys.executable, "-c", THREADS], check=True)


HEAVY = "torch._inductor", "torch.distributed.tensor"
if is_torch_greater_or_equal("2.13") and not is_torch_greater_or_equal("2.14"):  # else flex attention needs them
    HEAVY += "torch.fx.experimental.symbolic_shapes", "sympy"
QUICK = """
import atexit, sys
from glip_hf import cli
atexit.register(lambda: print("handlers run"))
sys.argv = ["glip", "ground", {image!r}, *{names!r}, "--model", "demo", "--json"]
atexit.register(lambda: print(sorted({heavy} & set(sys.modules))))
cli.program()
"""
COMPILE = """
import sys
from glip_hf.cli import quick
quick.begin("ground")
import torch
from transformers import AutoModel
from torch._dynamo.utils import is_compile_supported  # torchvision does
print(type(torch._dynamo).__name__, is_compile_supported("cpu"), type(sys.modules["torch._dynamo.utils"]).__name__)
print(type(torch._dynamo).__name__, torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
print(type(torch._dynamo).__name__, torch.compiler.disable(len)("abc"), AutoModel.__name__)
"""
DISTRIBUTED = """
from glip_hf.cli import quick
quick.begin("ground")
import torch
from transformers import AutoModel
print(AutoModel.__name__, torch.distributed.tensor.DTensor.__name__, hasattr(torch.distributed, "nonsense"))
"""


def test_the_command_starts_without_what_it_does_not_need(capsys) -> None:
    """With the same detections, and with all handlers of the end of a process."""
    found, heavy, end = python(QUICK.format(image=str(DEMO_IMAGE), names=DEMO_NAMES, heavy=set(HEAVY))).splitlines()
    assert heavy == "[]" and end == "handlers run"
    assert cli.main(["ground", str(DEMO_IMAGE), *DEMO_NAMES, "--model", "demo", "--json"]) == 0
    assert json.loads(found) == json.loads(capsys.readouterr().out)


def test_patterns_that_rename_weights_are_compiled_when_they_are_used() -> None:
    loading = ModuleType("core_model_loading")
    quick._compile_late(loading)
    pattern, damaged = copy.deepcopy(loading.re.compile("(?P<g0>a.)|b")), loading.re.compile("(")
    assert pattern.search("xab")["g0"] == "ab" and pattern.groupindex == {"g0": 1} and loading.re.sub is re.sub
    with pytest.raises(re.error):
        damaged.search("a")


@pytest.mark.slow
def test_what_was_left_out_is_there_when_something_asks_for_it() -> None:
    """`peft` looks into `torch.distributed.tensor` without importing it."""
    assert python(DISTRIBUTED) == "AutoModel DTensor False"
    lines = ["DeferredCompiler True module", "module 2.0", "module 3 AutoModel"]
    assert python(COMPILE).splitlines() == lines


@pytest.mark.parametrize("collects", [True, False])
def test_collections_of_garbage_wait_for_imports(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that fails; and they stay off where they were off."""
    monkeypatch.setattr(_lazy, "import_module", lambda _: 1 / gc.isenabled())
    gc.enable() if collects else gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            _lazy.load("GlipConfig")
        assert gc.isenabled() == collects
    finally:
        gc.enable()
