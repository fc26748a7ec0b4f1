# Copyright 2026 The glip_hf authors. MIT licence.
"""The speed benchmarks run on a tiny model and measure what they claim to: order, memory, parts, work, records."""

import csv
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh import python
from locations import FIXTURES
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    floor,
    harness,
    kernel_gains,
    part_timer,
    peak_memory,
    peers,
    precision,
    pretraining_data,
    startup,
    textbook,
)
from benchmarks.harness import Seconds, Variant
from glip_hf import GlipForGrounding, kernels
from glip_hf._compat import enable_checkpointing
from glip_hf.kernels import cpu_int8

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

TINY = ["--tiny", "--threads", "1", "--runs", "1", "--warmup", "0", "--json"]
COMPARED = {"ratio_vs_reference", "time_over_floor", "seconds", "seconds_reference", "floor_seconds", "gemm_gflop_s"}
PARTS = {"swin", "fpn", "text", "fusion", "text layer", "dyconv", "head", "other"}


@pytest.fixture(autouse=True)
def _threads() -> None:
    """The benchmarks set the number of threads of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name: str, tmp_path: Path, capsys, *options: str) -> dict:
    """The JSON object on the last line of a script, whose CSV is written to `tmp_path`."""
    script = importlib.import_module("benchmarks.kernel_variants" if name == "kernels" else f"benchmarks.{name}")
    script.main([*TINY, "--memory-runs", "0", "--results", str(tmp_path), *options])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- every script


def test_precision(tmp_path, capsys, monkeypatch) -> None:
    """Without torchao, whether it is there or not; with it: tests/test_adapters.py."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    figures = run("precision", tmp_path, capsys, "--scenes", "8", "--size", "64", "90")
    assert 0.5 < figures["found_by_bfloat16"] <= 1 and figures["float32_detections"] > 8
    assert 0 < figures["logits_mean_change_bfloat16"] < figures["logits_standard_deviation"]
    assert abs(figures["ap_float32"] - figures["ap_bfloat16"]) < 0.2
    assert 0.49 < figures["memory_bfloat16_over_float32"] < 0.51 and figures["seconds_float32_over_bfloat16"] > 0
    assert len(rows(tmp_path / "precision.csv")) == 1 and not any("int8" in key for key in figures)
    assert cpu_int8.NARROW == 256  # as before


@pytest.mark.slow
def test_what_bfloat16_keeps() -> None:
    """Of the shipped model's detections; 0.9959 on 300 scenes."""
    figures = precision.compare_detections(60, ["bfloat16"])
    assert figures["float32_detections"] > 600
    assert figures["found_by_bfloat16"] >= 0.99 and figures["mean_iou_bfloat16"] > 0.99
    assert figures["mean_score_change_bfloat16"] < 0.005


def test_captions_of_peers_have_the_lengths_of_ours() -> None:
    for names in (1, 3, 80):
        ids = peers.caption_ids(names)[0].tolist()
        assert len(ids) == {1: 4, 3: 8, 80: 194}[names] and ids.count(peers.FULL_STOP) == names
        assert ids[0] == peers.CLS and ids[-1] == peers.SEP and len(set(ids)) == len(ids) - names + 1
    prompts = peers.clip_ids(3, 16, 49408)
    assert (prompts.argmax(-1) == 4).all() and len({tuple(prompt) for prompt in prompts.tolist()}) == 3


@pytest.mark.slow
def test_peers_are_compared_in_turn(tmp_path, capsys) -> None:
    figures = run("peers", tmp_path, capsys, "--factor", "0.5", "--peers", "omdet-turbo")
    assert set(figures["seconds"]) == {"glip_float32", "glip_bfloat16", "omdet_turbo"}
    assert all(seconds > 0 for seconds in figures["seconds"].values()) and rows(tmp_path / "peers.csv")


@pytest.mark.slow
def test_startup_of_two_checkouts(tmp_path, capsys) -> None:
    """This one twice: the other's rows stand beside, and what is outside the forward is the rest of the command."""
    options = "--model", "demo", "--threads", "1", "--runs", "1", "--warmup", "0", "--json"
    startup.main([*options, "--results", str(tmp_path), "--against", str(BENCHMARKS.parent / "src")])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for kind in ("", "_against"):
        assert figures[f"help_cpu{kind}"] < figures[f"import_model_cpu{kind}"]
        expected = figures[f"ground{kind}"] - figures[f"forward_warm{kind}"]
        assert math.isclose(figures[f"outside{kind}"], expected, rel_tol=1e-2)
    with pytest.raises(SystemExit, match="no glip_hf: give the src of a checkout"):
        startup.main([*options, "--against", str(tmp_path)])


def test_latency(tmp_path, capsys) -> None:
    for case, options, captions in (("three", [], 1), ("lvis", ["--captions", "2"], 2)):
        figures = run("latency", tmp_path, capsys, "--case", case, "--size", "64", "90", *options)
        assert COMPARED <= figures.keys() and figures["case"] == case and figures["captions"] == captions
        assert all(math.isfinite(figures[key]) and figures[key] > 0 for key in COMPARED)
        assert figures["ratio_vs_reference"] == pytest.approx(
            figures["seconds_reference"] / figures["seconds"], rel=2e-3
        )
        assert figures["time_over_floor"] == pytest.approx(figures["seconds"] / figures["floor_seconds"], rel=2e-3)
        assert figures["largest_logit_difference"] < 1e-4
        for variant in ("fast", "reference"):
            assert figures["parts"][variant].keys() == PARTS | {"post-processing"}
            assert sum(figures["parts"][variant].values()) == pytest.approx(1, abs=2e-3)
    first, second = rows(tmp_path / "latency.csv")
    assert (first["case"], second["case"]) == ("three", "lvis")
    for key in ("date", "commit", "torch", "transformers", "machine", "weights", "parts_fast_text_layer"):
        assert first[key], key
    assert first["command"].startswith("python benchmarks/latency.py --tiny")


def test_folder(tmp_path, capsys) -> None:
    options = ["--photos", "6", "--scale", "0.2", "--batch-size", "2", "--save"]
    figures = run("folder", tmp_path, capsys, *options)
    for way in ("engine", "command", "pipeline"):
        ratio = figures[f"images_per_second_{way}"] / figures["images_per_second_forward"]
        assert 0 < figures[f"rate_over_forward_{way}"] == pytest.approx(ratio, rel=2e-3)
    assert figures["photos"] == 6 and len(rows(tmp_path / "folder.csv")) == 1


def test_latency_without_the_textbook_form(tmp_path, capsys) -> None:
    figures = run("latency", tmp_path, capsys, "--size", "64", "64", "--no-reference", "--no-record")
    assert "ratio_vs_reference" not in figures and figures["time_over_floor"] > 0
    assert not list(tmp_path.iterdir())


def test_training(tmp_path, capsys) -> None:
    figures = run("training", tmp_path, capsys, "--size", "64", "--tokens", "9")
    assert COMPARED <= figures.keys() and figures["size"] == "64x64"
    for variant in ("fast", "reference", "fast_checkpointed", "reference_checkpointed"):
        assert figures["parts"][variant].keys() == PARTS | {"optimizer"}
        assert math.isfinite(figures["losses"][variant]) and figures[f"images_a_second_{variant}"] > 0
    assert rows(tmp_path / "training.csv")[0]["batch"] == "2"


def test_training_data(tmp_path, capsys) -> None:
    options = ["--short-side", "64", "--workers", "0", "1", "--batches", "3"]
    figures = run("training_data", tmp_path, capsys, *options)
    assert 0 <= figures["waiting_share"] < 1 and 10 < figures["image_kib"] < 300 and figures["tokens"] > 10
    rates = ["loader_images_a_second_0", "loader_images_a_second_1", "step_images_a_second"]
    assert all(math.isfinite(figures[key]) and figures[key] > 0 for key in rates)
    assert rows(tmp_path / "training_data.csv")[0]["batch"] == "2"


def test_latency_of_a_compiled_model(tmp_path, capsys, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    monkeypatch.setattr("glip_hf.compilation._check_compiler", lambda device: None)
    figures = run("latency", tmp_path, capsys, "--size", "64", "90", "--no-reference", "--compile", "default")
    assert compiled and figures["compiled_over_fast"] > 0 and figures["largest_logit_difference"] < 1e-4


def test_vocabulary(tmp_path, capsys) -> None:
    names = [{"id": 7 - i, "name": name} for i, name in enumerate(["cat", "remote control", "lamp"])]
    (tmp_path / "names.json").write_text(json.dumps({"categories": names}))
    options = ["--annotations", str(tmp_path / "names.json"), "--vocab", str(FIXTURES / "tokenizer" / "vocab.txt")]
    figures = run("vocabulary", tmp_path, capsys, *options, "--size", "64", "96", "--names", "2")
    assert COMPARED | {"ratio_vs_naive", "seconds_vocabulary_once"} <= figures.keys()
    assert (figures["names"], figures["captions"], figures["size"]) == (2, 1, "64x96")
    for variant in ("naive", "reference"):
        assert figures[f"largest_score_difference_{variant}"] < 1e-4
    assert len(rows(tmp_path / "vocabulary.csv")) == 1


def test_vocabulary_names_the_missing_file(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("vocabulary", tmp_path, capsys, "--annotations", str(tmp_path / "nothing.json"))
    assert "nothing.json does not exist: give one with --annotations" in capsys.readouterr().err


@pytest.mark.parametrize("backward", [False, True])
def test_kernels(tmp_path, capsys, backward) -> None:
    sizes = ["--visual-tokens", "50", "--map", "5", "7", "--channels", "16"]
    figures = run("kernels", tmp_path, capsys, *sizes, *(["--backward"] if backward else []))
    for name in ("fusion-20", "fusion-256", "deformable"):
        assert COMPARED <= figures[name].keys() and figures[name]["largest_difference"] < 1e-4
    assert figures["deformable"]["ratio_over_gemm"] > 0
    assert [row["kernel"] for row in rows(tmp_path / "kernels.csv")] == ["fusion-20", "fusion-256", "deformable"]


@pytest.mark.parametrize("options", [[], ["--train"]], ids=["inference", "training"])
def test_gains_of_kernels_in_the_model(tmp_path, capsys, options) -> None:
    figures = run("kernels", tmp_path, capsys, "--model", "--size", "64", "96", *options)
    gains = {name: row for name, row in figures.items() if isinstance(row, dict)}
    assert {"cpu_swin", "all"} <= gains.keys() <= {*kernels.names(), "all"}
    assert gains["cpu_swin"]["operations"] == "swin_layer" and "dyconv" in gains["all"]["operations"]
    for row in gains.values():
        assert row["gain"] == pytest.approx(row["seconds_off"] / row["seconds_on"] - 1, abs=2e-3)
    assert [row["kernel"] for row in rows(tmp_path / "kernel_gains.csv")] == list(gains)


def test_variants_of_kernels() -> None:
    """Each runs with its own kernel off and the others on, and all are on again afterwards."""
    model = GlipForGrounding(harness.tiny_config()).eval()
    inputs = harness.random_image(64, 64, "cpu") | harness.random_caption(9, 1, 1000, "cpu")
    forms = kernels.report(model, inputs)
    variants = kernel_gains.make_variants(lambda: kernels.report(model, inputs), kernel_gains.served_operations(forms))
    assert variants["on"].run() == forms and forms["swin_layer"] == "cpu_swin"
    assert set(variants["all"].run().values()) == {"plain"}
    without_swin = variants["cpu_swin"].run()
    assert without_swin["swin_layer"] == "plain" and without_swin["dyconv"] == forms["dyconv"] == "cpu_dyconv"
    assert kernels.report(model, inputs) == forms


def test_no_kernel_serves() -> None:
    with pytest.raises(SystemExit, match="no kernel serves this model on this machine .*GLIP_KERNELS=0"):
        kernel_gains.served_operations({"dyconv": "plain"})


def test_as_a_command() -> None:
    """In a process of its own, with peak memory. `kernels.py` in the same folder must not be taken for the package."""
    options = "--tiny --threads 1 --runs 1 --size 64 64 --no-record --json".split()
    command = [sys.executable, BENCHMARKS / "latency.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"ratio_vs_reference", "time_over_floor", "peak_memory_ratio", "peak_memory_mib"} <= figures.keys()
    assert 0.5 < figures["peak_memory_ratio"] < 2  # of so small a model nearly all is libraries


def test_scripts_beside_kernels_find_the_package_of_that_name(tmp_path) -> None:
    (tmp_path / "package" / "kernels").mkdir(parents=True)
    (tmp_path / "package" / "kernels" / "__init__.py").write_text("real = True")
    code = "import sys; sys.path[:0] = {}; import kernels; print(getattr(kernels, 'real', None))"
    for folders, expected in (([BENCHMARKS, tmp_path / "package"], "True"), ([BENCHMARKS], "None")):
        command = [sys.executable, "-S", "-c", code.format([str(folder) for folder in folders])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr


def test_peak_memory_of_a_child() -> None:
    """64 MiB are measured, and nothing where nothing is allocated."""
    code = """
import argparse, torch
from benchmarks.harness import Variant
from benchmarks.peak_memory import peak_memory
torch.set_num_threads(1)
options = argparse.Namespace(memory_runs=1, threads=1, device="cpu")
taken = peak_memory({"64": Variant(lambda: torch.ones(2**24)), "0": Variant(lambda: None)}, options)
print(*(taken[name].peak - taken[name].before for name in ("64", "0")))
"""
    some, none = map(float, python(code, cwd=BENCHMARKS.parent).split())
    assert 64 <= some < 80 and none < 8


# --- their parts


def test_variants_run_in_turn() -> None:
    calls = []
    variants = {
        "a": Variant(lambda: calls.append("a"), lambda: calls.append("prepare a")),
        "b": Variant(lambda: calls.append("b")),
    }
    times = harness.time_in_turn(variants, runs=2, warmup=1)
    assert calls == ["prepare a", "a", "b"] * 3
    assert {name: len(one.wall) for name, one in times.items()} == {"a": 2, "b": 2}


def test_figures() -> None:
    times = {"fast": Seconds([1.0, 4.0, 2.0], [2, 2, 2]), "reference": Seconds([8.0, 9.0, 7.0], [10, 10, 10])}
    figures = harness.time_figures(times, harness.Rates(2e9, 1e9, 4e9), floor.Work(operations=1e9))
    assert (figures["seconds"], figures["seconds_reference"]) == (2, 8)
    assert (figures["ratio_vs_reference"], figures["ratio_vs_reference_cpu"], figures["time_over_floor"]) == (4, 5, 4)
    assert (figures["time_over_fastest_floor"], figures["onednn_gflop_s"]) == (8, 4)
    slower = harness.time_figures(times, harness.Rates(2e9, 1e9, 1e9), floor.Work(operations=1e9))
    assert slower["time_over_fastest_floor"] == slower["time_over_floor"] == 4
    assert "onednn_gflop_s" not in harness.time_figures(times, harness.Rates(2e9, 1e9), floor.Work(operations=1e9))
    memory = {"fast": peak_memory.Memory(300, 100), "reference": peak_memory.Memory(900, 100)}
    figures = peak_memory.memory_figures(memory)
    assert figures["peak_memory_ratio"] == pytest.approx(1 / 3) and figures["peak_beyond_ratio"] == 0.25


def test_rates_are_those_of_the_calibration() -> None:
    times = {"gemm": Seconds([2.0], [2]), "copy": Seconds([4.0], [4])}
    rates = harness.Rates.of(times)
    assert rates.gemm == harness.GEMM_SIDE**3 and rates.copy == harness.COPY_BYTES / 2
    assert floor.Work(3 * rates.gemm, 2 * rates.copy).seconds(rates) == 5
    assert rates.fastest == rates
    fastest = harness.Rates.of(times | {"gemm_onednn": Seconds([1.0], [1])}).fastest
    assert (fastest.gemm, fastest.copy) == (2 * rates.gemm, rates.copy)


def test_memory_is_measured_before_threads_start() -> None:
    torch.set_num_threads(2)
    arguments = harness.make_parser(None).parse_args([])
    with pytest.raises(RuntimeError, match="before torch.set_num_threads"):
        peak_memory.peak_memory({}, arguments)


def test_records_take_new_columns(tmp_path) -> None:
    path = tmp_path / "new" / "figures.csv"
    harness.record(path, {"a": 1, "parts": {"text layer": 2}})
    harness.record(path, {"a": 3, "b, c": "x"})
    assert rows(path) == [
        {"a": "1", "parts_text_layer": "2", "b,_c": ""},
        {"a": "3", "parts_text_layer": "", "b,_c": "x"},
    ]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_part_timer(reference, checkpointing) -> None:
    """All time is attributed, to the right parts in the right order, and the model keeps no hooks."""
    model = GlipForGrounding(harness.tiny_config(num_blocks=1)).train()
    if reference:
        model = textbook.textbook_view(model)
    if checkpointing:
        enable_checkpointing(model)
    inputs = harness.random_image(64, 64, "cpu") | harness.random_caption(9, 1, 1000, "cpu")
    timer, order = part_timer.PartTimer(model), []
    switch = timer._switch
    timer._switch = lambda: (switch(), order.append(timer._stack[-1]))
    with timer.watching():
        loss = model(**inputs).logits.sum()
        forward, order[:] = list(dict.fromkeys(order)), []
        loss.backward()
        part_timer.differentiated()
        with part_timer.part("optimizer"):
            pass
    assert set(forward) == PARTS
    backward = [name for name in dict.fromkeys(order) if name not in ("other", "optimizer")]
    assert set(backward) == PARTS - {"other"} and backward[0] == "head"
    if not checkpointing:  # what is computed again comes forwards, in the middle of it
        assert [name for name in backward if name != "text"] == [
            *("head", "dyconv", "text layer", "fusion", "fpn", "swin")
        ]
    assert timer._stack == ["other"] and timer.seconds.keys() == PARTS | {"optimizer"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with part_timer.part("nobody is timing"):
        pass


def operations(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.no_grad()
def test_counted_operations() -> None:
    """Against PyTorch's count for the textbook form, at sizes where that does no redundant work."""
    model, side, tokens = textbook.textbook_view(GlipForGrounding(harness.tiny_config()).eval()), 128, 256
    config, base = model.config, model.model
    shapes = floor.level_shapes(side, side)
    assert shapes == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    counted = floor.parts_floor(config, side, side, [tokens])
    image = torch.randn(1, 3, side, side)
    ids = torch.ones(1, tokens, dtype=torch.int64)
    maps = base.backbone(image).feature_maps
    vision = base.get_image_features(image).last_hidden_state.detach()
    text = base.get_text_features(ids).last_hidden_state.detach()
    block, mask = base.tower["blocks"][0], torch.ones(1, tokens, dtype=torch.bool)
    found = {
        "swin": operations(lambda: base.backbone(image)),
        "fpn": operations(lambda: base.neck(maps)),
        "text": operations(lambda: base.text_model(ids)),
        "fusion": config.num_blocks * operations(lambda: block.fusion(vision, text, mask)),
        "text layer": config.num_blocks * operations(lambda: block.text_layer(text, None)),
    }
    for name, expected in found.items():
        assert counted[name].operations == expected, name
    # These also have products that do not grow with the image: gates, Dynamic ReLU, the bias of each token.
    found = {
        "dyconv": config.num_blocks * operations(lambda: block.dyconv(vision, shapes)),
        "head": operations(lambda: model.head(vision, text, shapes)),
    }
    for name, expected in found.items():
        assert expected / 1.03 < counted[name].operations <= expected, name


@torch.no_grad()
def test_the_cheaper_form_of_the_fusion_counts() -> None:
    config = harness.tiny_config()
    model = textbook.textbook_view(GlipForGrounding(config).eval())
    layer, vision = model.model.tower["blocks"][0].fusion, torch.randn(1, 500, config.d_model)
    for tokens, cheaper in ((4, False), (256, True)):
        text, mask = torch.randn(1, tokens, 24), torch.ones(1, tokens, dtype=torch.bool)
        applied = operations(lambda text=text, mask=mask: layer(vision, text, mask))
        counted = floor.fusion_floor(config, 500, tokens).operations
        assert counted == applied if cheaper else counted < 0.6 * applied


def test_work_grows_with_the_number_of_captions() -> None:
    config = harness.tiny_config()
    one, two = (floor.parts_floor(config, 64, 96, captions) for captions in ([9], [9, 9]))
    assert one["swin"] == two["swin"] and one["fpn"] == two["fpn"]
    for name in ("text", "fusion", "text layer", "dyconv", "head"):
        assert two[name] == one[name] * 2 and one[name].bytes > 0
    without = floor.parts_floor(harness.tiny_config(use_fusion=False), 64, 96, [9])
    assert without.keys() == one.keys() - {"fusion", "text layer"}
    assert floor.optimizer_floor(10).bytes == 280


# --- the data of a pre-training run


def test_pretraining_data(tmp_path, monkeypatch) -> None:
    """What is generated is read without damage, and every row has its image."""
    pytest.importorskip("datasets")
    from glip_hf.data.sources import build_source

    monkeypatch.setattr(pretraining_data, "PIXELS", 4)
    monkeypatch.setattr(pretraining_data, "POOL", 200)
    specs = pretraining_data.generate(tmp_path, 10, 12)
    objects, grounding = (build_source(spec, cache_dir=tmp_path / "cache") for spec in specs)
    assert (len(objects), len(grounding)) == (10, 12) and not objects.dropped and not grounding.dropped
    assert all(record.image.load().size == (640, 480) for source in (objects, grounding) for record in source)
    record, names = grounding[11], pretraining_data.class_names()
    assert len(set(names)) == len(objects.names) == 365
    assert {record.caption[begin:end] for [(begin, end)] in record.spans} <= set(names)
