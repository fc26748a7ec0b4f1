# Copyright 2026 The glip_hf authors. MIT licence.
"""The command from end to end, the folder it leaves, and the page in a real browser."""

import argparse
import csv
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from eval_cases import NAMES, SIZES, evaluate, recorded
from PIL import Image

from glip_hf import GlipProcessor, compilation
from glip_hf.cli.evaluate import _subset
from glip_hf.evaluation import distributed
from glip_hf.evaluation.plots import make_sets_plot
from glip_hf.evaluation.report import _write_csv, write_summary
from glip_hf.evaluation.run import Result
from glip_hf.inference import GroundingEngine
from tests.data.original_formats import to_odvg, to_voc, to_yolo

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def data_options(folder):
    return ["--annotations", f"{folder}/annotations.json", "--images", f"{folder}"]


@pytest.fixture(scope="module")
def model_folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def coco_run(model_folder, image_folder, tmp_path_factory):
    """The output of `evaluate coco`."""
    output = tmp_path_factory.mktemp("coco")
    arguments = ["--model", model_folder, *data_options(image_folder)]
    assert evaluate(["coco", *arguments, "--output", f"{output}", "--device", "cpu", "--gallery", "2"]) == 0
    return output


def read_metrics(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(coco_run, model_folder, image_folder, tmp_path, monkeypatch, mode):
    """Compiled in the mode that is asked for; the same figures."""
    modes = []

    def compiler(function, **options):
        modes.append(options["mode"])
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compilation, "_check_compiler", lambda device: None)
    arguments = ["--model", model_folder, *data_options(image_folder)]
    assert evaluate(["coco", *arguments, "--output", f"{tmp_path}", "--device", "cpu", "--compile", mode]) == 0
    assert modes and set(modes) == {mode}
    found, expected = read_metrics(tmp_path), read_metrics(coco_run)
    assert found["AP"] == pytest.approx(expected["AP"], abs=1e-6)
    assert found["run"]["options"]["caption_multiple"] == (1 if mode == "default" else 64)


# -- scoring files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "key"), [([], "fixed_topk10000"), (["--standard"], "normal")])
def test_score_only_lvis(tmp_path, flags, key, capsys):
    case = recorded("lvis")
    files = [write(tmp_path / name, case[name]) for name in ("predictions", "gt")]
    score = ["lvis", "--score-only", files[0], "--annotations", files[1], "--output", str(tmp_path / "out"), *flags]
    assert evaluate(score) == 0
    metrics, expected = read_metrics(tmp_path / "out"), case["expected"][key]
    assert {name: metrics[name] for name in expected["results"]} == pytest.approx(expected["results"], abs=1e-6)
    assert list(metrics["per_category_AP"].values()) == pytest.approx(expected["per_category_AP"], abs=1e-6)
    assert "APr" in capsys.readouterr().out


def test_score_only_coco(tmp_path):
    case = recorded("coco")
    files = [write(tmp_path / name, case[name]) for name in ("detections", "gt")]
    assert evaluate(["coco", "--score-only", files[0], "--annotations", files[1], "--output", str(tmp_path)]) == 0
    metrics, expected = read_metrics(tmp_path), case["expected"]["detections_as_given"]
    assert [metrics[name] for name in case["expected"]["stat_names"]] == pytest.approx(expected["stats"], abs=1e-6)


def test_score_only_leaves_the_metrics_of_a_run(coco_run, image_folder, capsys):
    before = (coco_run / "metrics.json").read_bytes()
    files = ["--score-only", f"{coco_run}/predictions.json", "--annotations", f"{image_folder}/annotations.json"]
    assert evaluate(["coco", *files, "--output", str(coco_run)]) == 2
    assert "holds a run, whose metrics would be replaced" in capsys.readouterr().err
    assert (coco_run / "metrics.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:multiple predictions")
@pytest.mark.parametrize(("flags", "key"), [([], "test_separate"), (["--protocol", "merged"], "test_merged")])
def test_score_only_flickr(tmp_path, flickr_case, flags, key):
    case, folder = flickr_case
    predictions = write(tmp_path / "predictions.json", case["predictions_test"])
    score = ["flickr", "--score-only", predictions, "--annotations", f"{folder}", "--output", f"{tmp_path}", *flags]
    assert evaluate(score) == 0
    metrics, expected = read_metrics(tmp_path), case["expected"][key]["scores"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_score_only_with_images_has_a_gallery(coco_run, image_folder, tmp_path):
    files = ["--score-only", f"{coco_run}/predictions.json", "--annotations", f"{image_folder}/annotations.json"]
    more = ["--images", f"{image_folder}", "--gallery", "1", "--output", f"{tmp_path}"]
    assert evaluate(["coco", *files, *more]) == 0
    assert (tmp_path / "report.html").read_text().count("<figure") == 2
    assert not (tmp_path / "predictions.json").exists()  # what was scored is where it was


@pytest.mark.parametrize(
    ("name", "subset"),
    [("final_flickr_separateGT_val.json", "val"), ("test.json", "test"), ("latest_val", "val"), ("flickr30k", "test")],
)
def test_subset_said_by_a_name(name, subset):
    arguments = argparse.Namespace(annotations=f"/data/{name}", subset=None)
    assert _subset(arguments) == subset
    assert _subset(argparse.Namespace(annotations=name, subset="train")) == "train"


def test_only_one_process_scores_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world", lambda: (1, 2))
    assert evaluate(["coco", "--score-only", "x.json", "--annotations", "y.json", "--output", f"{tmp_path}/out"]) == 0
    assert not capsys.readouterr().out and not (tmp_path / "out").exists()


# -- whole runs ------------------------------------------------------------------------------------


def test_metrics_say_where_they_come_from(coco_run, model_folder):
    run = read_metrics(coco_run)["run"]
    assert run["model"] == model_folder and run["images"] == len(SIZES) and run["benchmark"] == "coco"
    assert {"torch", "transformers", "glip_hf"} <= set(run["versions"])
    assert {"command", "commit", "options", "device", "seconds", "processes"} <= set(run)


def test_predictions_are_coco_results_that_score_the_same(coco_run, image_folder, tmp_path):
    entries = json.loads((coco_run / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == {10 + index for index in range(len(SIZES))}
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    files = ["--score-only", f"{coco_run}/predictions.json", "--annotations", f"{image_folder}/annotations.json"]
    assert evaluate(["coco", *files, "--output", f"{tmp_path}"]) == 0
    first, second = read_metrics(coco_run), read_metrics(tmp_path)
    names = [name for name, value in first.items() if isinstance(value, float)]
    assert len(names) == 12 and {n: second[n] for n in names} == pytest.approx({n: first[n] for n in names}, abs=1e-9)


@pytest.mark.parametrize("write_as", [to_yolo, to_voc, to_odvg])
def test_a_set_in_another_format_has_the_same_metrics(coco_run, model_folder, image_folder, tmp_path, write_as):
    shutil.copytree(image_folder, tmp_path / "images")
    spec = write_as(tmp_path, json.loads((image_folder / "annotations.json").read_text()))
    if write_as is to_odvg:  # of which objects alone would tell the class names
        write(tmp_path / "label_map.json", dict(enumerate(NAMES)))
    where = ["--annotations", spec["annotations"], *(["--images", spec["images"]] if "images" in spec else [])]
    options = ["--output", f"{tmp_path}/out", "--device", "cpu", "--gallery", "0"]
    assert evaluate(["coco", "--model", model_folder, *where, *options]) == 0
    ours = read_metrics(tmp_path / "out")
    if write_as is to_voc:  # whose class names are those of objects: another caption
        assert list(ours["per_category_AP"]) == ["1", "2", "3", "4", "5"]
        return
    theirs = read_metrics(coco_run)
    del ours["run"], theirs["run"]
    assert list(ours.pop("per_category_AP").values()) == list(theirs.pop("per_category_AP").values())
    assert ours == theirs
    entries = [json.loads((folder / "predictions.json").read_text()) for folder in (coco_run, tmp_path / "out")]
    expected, found = ([(one["category_id"], one["bbox"], one["score"]) for one in entry] for entry in entries)
    assert [(label + 1, *more) for label, *more in found] == expected


def test_class_table(coco_run):
    with open(coco_run / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert sum(int(row["objects"]) for row in rows) == len(SIZES)


def test_plots_are_images(coco_run):
    if not HAS_MATPLOTLIB:
        pytest.skip("matplotlib (extra eval) is not installed: the plots go unchecked")
    for name in ("precision_recall.png", "size_frequency.png"):
        plot = Image.open(coco_run / name).convert("L")
        low, high = plot.getextrema()
        assert plot.width > 400 and low < 100 and high == 255


def test_lvis_flickr_and_odinw_runs(model_folder, image_folder, flickr_case, tmp_path):
    """Each benchmark once over a few images; what the metrics are worth is tested elsewhere."""
    document = json.loads((image_folder / "annotations.json").read_text())
    for category, frequency in zip(document["categories"], "rcf" * 4):
        category["frequency"] = frequency
    gt = write(tmp_path / "lvis.json", document)
    common = ["--model", model_folder, "--device", "cpu", "--limit", "2", "--gallery", "1"]
    options = ["--chunk-size", "5", "--score-agg", "MAX", "--suppress", "window", "--batch-size", "2"]
    run = ["lvis", "--annotations", gt, "--images", f"{image_folder}", "--output", f"{tmp_path}/lvis"]
    assert evaluate([*run, *common, *options]) == 0
    metrics = read_metrics(tmp_path / "lvis")
    assert "APr" in metrics and metrics["run"]["options"]["max_detections"] == 300
    assert metrics["run"]["options"]["merged_limit"] is None

    folder = flickr_case[1]
    image_id = (folder / "test.txt").read_text().split()[0]
    from glip_hf.evaluation.flickr import read_boxes, read_sentences

    image = read_boxes(folder / "Annotations" / f"{image_id}.xml")
    records = []
    for number, (text, phrases) in enumerate(read_sentences(folder / "Sentences" / f"{image_id}.txt")):
        spans, at = [], 0
        for phrase in phrases:
            at = text.index(phrase.text, at)
            if phrase.chain in image.boxes:
                spans.append([[at, at + len(phrase.text)]])
        record = {"id": number, "sentence_id": number, "caption": text, "tokens_positive_eval": spans}
        records.append({**record, "original_img_id": int(image_id), "file_name": "0.png"})
    sentences = write(tmp_path / "final_flickr_separateGT_test.json", {"images": records})
    run = ["flickr", "--annotations", sentences, "--images", f"{image_folder}", "--entities", f"{folder}"]
    assert evaluate([*run, *common, "--output", f"{tmp_path}/flickr"]) == 0
    assert 0 <= read_metrics(tmp_path / "flickr")["Recall@1_all"] <= 1

    place = {"ann_file": "annotations.json", "img_dir": "."}
    (tmp_path / "tasks").mkdir()
    for name in ("one", "two"):  # JSON is YAML
        write(tmp_path / "tasks" / f"{name}.yaml", {"DATASETS": {"REGISTER": {"test": place}, "TEST": ["test"]}})
    sets = ["odinw", "--config", f"{tmp_path}/tasks", "--data-root", f"{image_folder}"]
    assert evaluate([*sets, *common, "--output", f"{tmp_path}/odinw"]) == 0
    again = ["--score-only", f"{tmp_path}/odinw", "--limit", "2", "--output", f"{tmp_path}/again"]
    assert evaluate([*sets, *again]) == 0
    assert read_metrics(tmp_path / "again")["sets"] == read_metrics(tmp_path / "odinw")["sets"]
    metrics = read_metrics(tmp_path / "odinw")
    assert metrics["AP"] == pytest.approx((metrics["AP/one"] + metrics["AP/two"]) / 2)
    assert set(metrics["sets"]) == {"one", "two"} and metrics["run"]["images"] == 4
    assert (tmp_path / "odinw" / "two" / "report.html").is_file()
    page = (tmp_path / "odinw" / "report.html").read_text()
    assert "Data sets" in page and "AP, mean of 2 data sets" in page
    for link in re.findall(r'<a href="([^"]+)"', page):
        assert (tmp_path / "odinw" / link).is_file()
    assert page.count("<a href") == 2 and page.count("data:image/png") == HAS_MATPLOTLIB
    with open(tmp_path / "odinw" / "per_set.csv", newline="") as file:
        assert [(row["name"], row["images"]) for row in csv.DictReader(file)] == [("one", "2"), ("two", "2")]
    phrases = (tmp_path / "flickr" / "report.html").read_text()
    assert "Recall@1, all phrases" in phrases and phrases.count("<table") == 1 and "Classes" not in phrases


@pytest.mark.parametrize("benchmark", ["coco", "odinw"])
def test_missing_images_come_before_the_model(benchmark, image_folder, tmp_path, capsys):
    """All of all data sets, before a model is looked for."""
    document = json.loads((image_folder / "annotations.json").read_text())
    (tmp_path / "tasks").mkdir()
    (tmp_path / "0.png").write_bytes((image_folder / "0.png").read_bytes())
    for name, images in (("one", document["images"][:3]), ("two", document["images"][3:])):
        boxes = [box for box in document["annotations"] if box["image_id"] in {image["id"] for image in images}]
        write(tmp_path / f"{name}.json", document | {"images": images, "annotations": boxes})
        place = {"ann_file": f"{name}.json", "img_dir": "."}
        write(tmp_path / "tasks" / f"{name}.yaml", {"DATASETS": {"REGISTER": {"test": place}, "TEST": ["test"]}})
    data = ["--annotations", f"{image_folder}/annotations.json", "--images", f"{tmp_path}"]
    data = ["--config", f"{tmp_path}/tasks", "--data-root", f"{tmp_path}"] if benchmark == "odinw" else data
    assert evaluate([benchmark, *data, "--model", f"{tmp_path}/no-model", "--output", f"{tmp_path}/out"]) == 1
    error = capsys.readouterr().err
    assert "4 of 5 images are missing" in error and all(f"{n}.png" in error for n in range(1, 5))
    assert len((tmp_path / "out" / "missing_images.txt").read_text().splitlines()) == 4


def test_test_time_options_reach_the_run(model_folder, image_folder, tmp_path):
    """Two sizes, mirrored, voting, power mean, text around names: all in metrics.json, and boxes in the images."""
    run = [
        "coco",
        "--annotations",
        f"{image_folder}/annotations.json",
        "--images",
        f"{image_folder}",
        "--model",
        model_folder,
    ]
    options = ["--scales", "48", "64", "--max-size", "96", "--flip", "--vote", "0.5", "--score-agg", "power"]
    options += ["--prefix", "a ", "--suffix", " here", "--separator", " . ", "--suppress", "window", "lamp"]
    options += ["--chunk-size", "7", "--max-detections", "9", "--nms", "0.5", "--batch-size", "2", "--pairs", "3"]
    assert evaluate([*run, *options, "--device", "cpu", "--output", f"{tmp_path}", "--gallery", "0"]) == 0
    chosen = read_metrics(tmp_path)["run"]["options"]
    expected = {"scales": [48, 64], "max_size": 96, "flip": True, "vote_threshold": 0.5, "aggregation": "power"}
    expected |= {"prefix": "a ", "suffix": " here", "separator": " . ", "negative_names": ["window", "lamp"]}
    expected |= {"chunk_size": 7, "max_detections": 9, "nms_threshold": 0.5, "batch_size": 2, "pairs": 3}
    assert {name: chosen[name] for name in expected} == expected
    entries = json.loads((tmp_path / "predictions.json").read_text())
    sizes = {10 + index: size for index, size in enumerate(SIZES)}
    assert {entry["category_id"] for entry in entries} <= set(range(1, len(NAMES) + 1))
    for entry in entries:
        (x, y, w, h), (width, height) = entry["bbox"], sizes[entry["image_id"]]
        assert x >= 0 and y >= 0 and x + w <= width + 0.01 and y + h <= height + 0.01
    counts = [sum(entry["image_id"] == image_id for entry in entries) for image_id in sizes]
    assert all(0 < count <= 9 for count in counts)


def test_caption_prompts_of_a_task_file_are_asked(model_folder, image_folder, tmp_path, monkeypatch):
    """`--prompts glip` against `names`: the words that reach the processor; override categories are the classes."""
    document = json.loads((image_folder / "annotations.json").read_text())
    override = [{"id": index, "name": f"kind {index}", "supercategory": "x"} for index in range(1, 13)]
    prompts = [{"prefix": " ", "name": f"thing {index}", "suffix": " which is round"} for index in range(1, 13)]
    write(tmp_path / "annotations.json", document)
    place = {"ann_file": f"{tmp_path}/annotations.json", "img_dir": f"{image_folder}"}
    settings = {"REGISTER": {"val": place}, "TEST": '("val",)', "CAPTION_PROMPT": str(prompts)}
    write(tmp_path / "one.yaml", {"DATASETS": {**settings, "OVERRIDE_CATEGORY": str(override)}})
    asked, call = [], GlipProcessor.__call__

    def noting(self, *args, **kwargs):
        asked.append(kwargs.get("text"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(GlipProcessor, "__call__", noting)
    run = ["odinw", "--config", f"{tmp_path}/one.yaml", "--data-root", f"{tmp_path}", "--model", model_folder]
    for chosen, words in (("names", [one["name"] for one in override]), ("glip", prompts)):
        output = tmp_path / chosen
        assert evaluate([*run, "--prompts", chosen, "--limit", "1", "--device", "cpu", "--output", f"{output}"]) == 0
        assert asked.pop() == words
        with open(output / "one" / "per_class.csv", newline="") as file:
            assert [row["name"] for row in csv.DictReader(file)] == [one["name"] for one in override]


def test_a_tuned_model_is_asked_in_the_order_of_its_training(model_folder, image_folder, tmp_path, monkeypatch):
    """The ids of the annotations may give another one; what is found keeps its category."""
    names = ["sofa", "CAT", "dog"]
    monkeypatch.setattr(GlipProcessor, "from_pretrained", with_class_names(names))
    document = json.loads((image_folder / "annotations.json").read_text())
    document["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "Sofa"}]
    document["annotations"] = [{**box, "category_id": 1 + box["category_id"] % 3} for box in document["annotations"]]
    write(tmp_path / "annotations.json", document)
    asked, ask = [], GroundingEngine.tokenize
    monkeypatch.setattr(
        GroundingEngine, "tokenize", lambda self, text, *more: asked.append(text) or ask(self, text, *more)
    )
    data = ["coco", "--annotations", f"{tmp_path}/annotations.json", "--images", f"{image_folder}", "--limit", "1"]
    assert evaluate([*data, "--model", model_folder, "--device", "cpu", "--output", f"{tmp_path}/out"]) == 0
    assert asked and all(text == names for text in asked)
    with open(tmp_path / "out" / "per_class.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["cat", "dog", "Sofa"]


def with_class_names(names):
    load = GlipProcessor.from_pretrained

    def loaded(*arguments, **options):
        processor = load(*arguments, **options)
        processor.class_names = names
        return processor

    return loaded


def test_plot_of_data_sets():
    if not HAS_MATPLOTLIB:
        pytest.skip("matplotlib (extra eval) is not installed: the plots go unchecked")
    sets = {"a": {"AP": 0.5}, "b" * 60: {"AP": -1.0}, "c": {"AP": 0.25}}
    plot = Image.open(io.BytesIO(make_sets_plot(sets, 0.375))).convert("RGB")
    blue = [(x, y) for x in range(plot.width) for y in range(plot.height) if plot.getpixel((x, y)) == (0, 114, 178)]
    lengths = [sum(y == row for _, y in blue) for row in sorted({y for _, y in blue})]
    assert max(lengths) == pytest.approx(2 * min(lengths), rel=0.05)  # two bars, the better one on top
    assert lengths[0] == max(lengths)


SCORE = ["coco", "--score-only", "nowhere.json", "--annotations", "none.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["coco", "--images", "x"], 2, "coco needs --annotations, --model"),
        (["odinw", "--model", "x"], 2, "odinw needs --config"),
        (["odinw", "--config", "nowhere", "--score-only", "y"], 1, "nowhere: no task file"),
        ([*SCORE, "--split", "val"], 2, "--split is of odinw, coco of YOLO or VOC, not of coco: leave it out"),
        (
            ["coco", "--model", "x", "--annotations", "a.jsonl", "--split", "val"],
            2,
            "--split is of odinw, coco of YOLO",
        ),
        ([*SCORE, "--giou"], 2, "--giou is of refcoco, refcoco+, refcocog, not of coco"),
        ([*SCORE, "--standard"], 2, "--standard is of lvis"),
        ([*SCORE, "--protocol", "merged"], 2, "--protocol is of flickr, refcoco"),
        ([*SCORE, "--prompts", "glip"], 2, "--prompts is of odinw"),
        ([*SCORE, "--subset", "test"], 2, "--subset is of flickr"),
        (["flickr", *SCORE[1:], "--suppress", "cat"], 2, "--suppress is of coco, lvis, odinw, not of flickr"),
        (["refcoco", *SCORE[1:], "--chunk-size", "4"], 2, "--chunk-size is of coco, lvis, odinw, not of refcoco"),
        ([*SCORE, "--overlap", "0.5"], 2, "--overlap does nothing without --tile: add it, or leave this out"),
        ([*SCORE, "--max-size", "600", "--flip"], 2, "--max-size does nothing without --scales"),
        ([*SCORE, "--vote", "0.5"], 2, "--vote does nothing without --scales or --flip or --tile"),
        (["coco", "--score-only", "nowhere.json", "--annotations", "none.json"], 1, "none.json"),
    ],
)
def test_errors_are_one_line(arguments, code, message, capsys, tmp_path):
    assert evaluate([*arguments, "--output", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# -- the page --------------------------------------------------------------------------------------


def test_page_is_self_contained(coco_run):
    page = (coco_run / "report.html").read_text()
    for outside in ('src="http', "src='http", "@import", 'href="http', "url(http"):
        assert outside not in page
    assert page.count("<figure") == 4 and page.count("data:image/jpeg") == 8


CHECK = """
<script>
window.addEventListener("load", function () {
  var images = Array.from(document.images), heads = document.querySelectorAll("#classes th");
  var names = function () { return document.querySelector("#classes tbody tr td").textContent; };
  var before = names();
  heads[0].click();
  document.title = JSON.stringify({
    images: images.length,
    broken: images.filter(function (image) { return !image.naturalWidth; }).length,
    rows: document.querySelectorAll("#classes tbody tr").length,
    before: before, after: names(), errors: window.failures,
    wide: document.documentElement.scrollWidth > window.innerWidth
  });
});
</script>
"""


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """Opens a run's page in a browser, clicks on its first table's first head, and tells what is to be seen."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        warnings.warn("no Chromium is installed: reports are not opened in a browser", stacklevel=1)
        pytest.skip("no Chromium is installed: the HTML page goes unchecked (apt-get install chromium)")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(output):
        page = (Path(output) / "report.html").read_text()
        catch = "<head><script>window.failures=[];onerror=function(m){failures.push(m)}</script>"
        page = page.replace("<head>", catch).replace("</body>", CHECK + "</body>")
        (folder / "report.html").write_text(page)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=3000", "--dump-dom"]
        command += [(folder / "report.html").as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        seen = json.loads(html.unescape(shown.split("<title>")[1].split("</title>")[0]))
        assert (seen["broken"], seen["errors"], seen["wide"]) == (0, [], False)
        return seen

    return open_page


def test_page_in_a_browser(coco_run, look):
    """Every image loads, the table sorts, no script fails, nothing hangs over the edge."""
    seen = look(coco_run)
    assert seen["images"] == 8 + (2 if HAS_MATPLOTLIB else 0)
    assert seen["rows"] == len(NAMES)
    assert (seen["before"], seen["after"]) == ("cat", "sofa")  # descending by name


@pytest.mark.filterwarnings("ignore:multiple predictions")
def test_other_pages_in_a_browser(flickr_case, look, tmp_path):
    """LVIS, Flickr30k, and ODinW with a name that has to be escaped and does not fit."""
    lvis, (case, folder) = recorded("lvis"), flickr_case
    files = [write(tmp_path / name, lvis[name]) for name in ("predictions", "gt")]
    assert evaluate(["lvis", "--score-only", files[0], "--annotations", files[1], "--output", f"{tmp_path}/lvis"]) == 0
    seen = look(tmp_path / "lvis")
    assert (seen["rows"], seen["images"]) == (40, 2 if HAS_MATPLOTLIB else 0)

    found = write(tmp_path / "found.json", case["predictions_test"])
    assert (
        evaluate(["flickr", "--score-only", found, "--annotations", f"{folder}", "--output", f"{tmp_path}/flickr"]) == 0
    )
    seen = look(tmp_path / "flickr")
    assert seen["rows"] == len(case["expected"]["test_separate"]["scores"]) // 4
    assert seen["images"] == (1 if HAS_MATPLOTLIB else 0)

    name = "<b>&" + 60 * "x"
    info = {"benchmark": "odinw", "model": "<i>m</i>", "date": "today", "command": "glip evaluate <x>"}
    sets = {name: {"AP": 0.5, "APs": -1.0}, "a": {"AP": 0.25, "APs": 0.5}}
    write_summary(tmp_path / "odinw", Result({"AP": 0.375, "APs": 0.5}, info), "AP", sets, {name: 3, "a": 2})
    seen = look(tmp_path / "odinw")
    assert (seen["rows"], seen["before"], seen["after"]) == (2, name, "a")


def test_cells_are_no_formulas_and_names_no_markup(tmp_path):
    names = ["=1+1", "+1", "-1", "@x", "\t=1", "a=1", "$x$"]
    _write_csv(tmp_path / "a.csv", [{"name": name, "AP": -1.0} for name in names])
    with open(tmp_path / "a.csv", newline="") as file:
        rows = [(row["name"], row["AP"]) for row in csv.DictReader(file)]
    assert rows == [(name if name in ("a=1", "$x$") else f"'{name}", "-1.0") for name in names]
    assert make_sets_plot({r"$\frac": {"AP": 0.5}, "$": {"AP": -1.0}}, 0.5).startswith(b"\x89PNG")
