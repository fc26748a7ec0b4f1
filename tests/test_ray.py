# Copyright 2026 The glip_hf authors. MIT licence.
"""Labelling and detection on a local Ray cluster (`make ray`): the rows of one machine, whatever happens to actors."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_glip import save_random_model
from training.test_self_training import ROWS, png, write_parquet, write_tar

ray = pytest.importorskip("ray", reason="Ray is not installed: make ray runs these tests")

from glip_hf import ray as glip_ray  # noqa: E402
from glip_hf.data.sources import build_source  # noqa: E402
from glip_hf.inference import GroundingEngine, GroundingOptions, Request  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS = ["--threshold", "0.05", "--batch-size", "2", "--format", "parquet"]
TABLES = [ROWS, [{**row, "image": png((160 - 8 * i, 96 + 8 * i))} for i, row in enumerate([*ROWS, *ROWS, *ROWS])]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """On this machine, with more CPUs in its books than there are, so that three actors find theirs."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # workers import `Killed`
    options = {"num_cpus": 4, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 200 << 20}
    for attempt in range(3):  # Ray gives its processes 15 seconds to start, which a busy machine may not have
        try:
            ray.init(log_to_driver=False, **options)
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `model`, shards in `in`, one of them broken, and `one`, what one machine makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    save_random_model(folder / "model")
    (folder / "in").mkdir()
    write_parquet(folder / "in" / "a.parquet", TABLES[0])
    write_parquet(folder / "in" / "b.parquet", TABLES[1])
    write_tar(folder / "in" / "c.tar", TABLES[1])
    (folder / "in" / "d.tar").write_bytes(b"no tar" * 100)
    assert run("label_captions", folder, "one") == 0
    return folder


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, folder: Path, output: str, *options: str) -> int:
    """The script's exit code."""
    own = ["--teacher", f"{folder}/model", "--input", f"{folder}/in/*", "--output", f"{folder}/{output}", *OPTIONS]
    before, sys.argv = sys.argv, ["x", *own, *options]
    try:
        return load(name).main()
    finally:
        sys.argv = before


def table(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("*.parquet")))).sort_by("image_id")


@pytest.mark.parametrize("actors", [1, 3])
def test_the_rows_of_one_machine(folder: Path, actors: int, capsys) -> None:
    output = f"ray-{actors}"
    assert run("label_captions_ray", folder, output, "--num-actors", str(actors), "--pairs-per-part", "3") == 0
    counts, spec = capsys.readouterr().out.strip().splitlines()[-2:]
    assert table(folder / output).equals(table(folder / "one"))
    reports = table(folder / output / "report").to_pylist()
    assert len(reports) == len({row["image_id"] for row in reports}) == len(TABLES[0]) + 2 * len(TABLES[1])
    assert {row["outcome"] for row in reports} == {"labelled", "broken_image", "no_caption", "no_phrase"}
    assert all(bool(row["error"]) == (row["outcome"] == "broken_image") for row in reports)
    assert "broken_shard 1" in counts and len(build_source(json.loads(spec), cache_dir=folder / "cache"))


class Killed(glip_ray.LabelParts):
    """One of these actors is killed, once, when it has written what Ray does not know yet."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        labelled, killed = super().__call__(rows), Path(self.output, "killed")
        if rows["part"][0].as_py() == 2 and not killed.exists():
            killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return labelled


def test_a_killed_actor_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glip_ray, "LabelParts", Killed)
    assert run("label_captions_ray", folder, "ray-2", "--num-actors", "2", "--pairs-per-part", "3") == 0
    assert not Path(f"/proc/{(folder / 'ray-2' / 'killed').read_text()}").exists()
    assert table(folder / "ray-2").equals(table(folder / "one"))
    # A second run does what is missing, and nothing else.
    output = folder / "ray-2"
    lost, *kept = sorted((output / "report").iterdir())
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept}
    monkeypatch.undo()
    assert run("label_captions_ray", folder, "ray-2", "--pairs-per-part", "3") == 0
    assert lost.exists() and before == {path: path.stat().st_mtime_ns for path in kept}
    assert table(output).equals(table(folder / "one"))
    # Other options, and the command for one machine, are refused there.
    assert run("label_captions_ray", folder, "ray-2", "--pairs-per-part", "4") == 2
    assert run("label_captions", folder, "ray-2") == 2


def test_rows_of_any_data_set(folder: Path, tmp_path: Path) -> None:
    """Read and written by Ray: as many rows as came, each with its own result, whatever is beside it."""
    (tmp_path / "photos").mkdir()
    for row, name in ((0, "a"), (4, "b")):
        (tmp_path / "photos" / f"{name}.png").write_bytes(ROWS[row]["image"])
    pixels = ray.data.read_images(str(tmp_path / "photos"), mode="RGB", include_paths=True, override_num_blocks=1)
    images = [png(), b"no picture", png((96, 128))]
    rows = [{"image": image, "path": f"{number}"} for number, image in enumerate(images)]
    pool = {"compute": ray.data.ActorPoolStrategy(size=1), "batch_format": "pyarrow", "batch_size": 2}
    options = GroundingOptions(threshold=0.05)
    given = [str(folder / "model"), ["cat", "lamp"], options]
    held = ray.data.from_items(rows).map_batches(glip_ray.DetectObjects, fn_constructor_args=given, **pool)
    held.write_parquet(str(tmp_path / "found"))
    found = sorted(pq.read_table(tmp_path / "found").to_pylist(), key=lambda row: row["path"])
    assert [bool(row["error"]) for row in found] == [False, True, False] and found[1]["boxes"] is None
    engine = GroundingEngine(*glip_ray.load_model(given[0]), options)
    for row, result in zip(found[::2], engine.ground(Request(image, given[1]) for image in images[::2])):
        (expected,) = result.detections
        assert len(row["scores"]) and row["text_labels"] == expected["text_labels"]
        assert row["boxes"] == expected["boxes"].tolist() and row["scores"] == expected["scores"].tolist()
    detector = glip_ray.DetectObjects.__new__(glip_ray.DetectObjects)  # rows of pixels, in this process
    detector.engine, detector.text, detector.image, detector.text_column = engine, given[1], "image", None
    (batch,) = pixels.iter_batches(batch_size=None, batch_format="pyarrow")
    assert detector(batch).sort_by("path")["boxes"].to_pylist() == [found[0]["boxes"], found[2]["boxes"]]
    # A text of a row that cannot be asked for costs that row alone.
    detector.text_column = "text"
    texts = ["cat. lamp", "   ", None]
    answers = detector(pa.table({"image": [images[0]] * len(texts), "text": texts}))
    assert [bool(error) for error in answers["error"].to_pylist()] == [False, True, True]
    assert [bool(scores) for scores in answers["scores"].to_pylist()] == [True, False, False]
    (error,) = detector(pa.table({"image": [list(images[0])], "text": ["cat"]}))["error"].to_pylist()
    assert error.startswith("[137, 80, 78") and len(error) < 200  # bytes as a list


@pytest.mark.parametrize("given", [{}, {"text": ""}, {"text": []}, {"text": ["cat"], "text_column": "names"}])
def test_what_to_find_is_said_once(given: dict) -> None:
    """Of an empty text every row would say that a column of the name None has no text."""
    with pytest.raises(ValueError, match="exactly one of them says what to find"):
        glip_ray.DetectObjects("model", **given)


def test_models_and_options_of_another_kind() -> None:
    for given in ({"model": None}, {"model": "m", "options": {"threshold": 0.1}}):
        with pytest.raises(TypeError, match="model=None must be a directory|options=.* must be .* GroundingOptions"):
            glip_ray.DetectObjects(text=["cat"], **given)
    with pytest.raises(TypeError, match="options=.* must be glip_hf's LabelOptions"):
        glip_ray.LabelCaptions("m", {"threshold": 0.1})


@pytest.mark.parametrize("captions", [[5], [["a cat"]], [{"a": "a cat"}]])
def test_captions_that_are_no_text(captions: list) -> None:
    labeller = glip_ray.LabelCaptions.__new__(glip_ray.LabelCaptions)
    labeller.columns = "image", "caption"
    with pytest.raises(ValueError, match=r"column 'caption' holds .*, a caption is text: name another column"):
        labeller(pa.table({"image": [png()], "caption": captions}))


def test_the_reason_is_ours_not_the_advice_of_ray() -> None:
    def fail(rows: pa.Table) -> pa.Table:
        raise ValueError("a.parquet has changed.")

    with pytest.raises(ray.exceptions.RayError) as error:
        ray.data.from_items([{"a": 1}]).map_batches(fail, batch_format="pyarrow").take_all()
    assert glip_ray.reason(error.value) == "a.parquet has changed."


def test_a_worker_without_the_model(folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "model"
    with pytest.raises(ray.exceptions.RayError) as error:
        ray.data.from_items([{"image": png()}]).map_batches(
            glip_ray.DetectObjects,
            fn_constructor_args=[str(gone), ["cat"]],
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_format="pyarrow",
        ).take_all()
    message = glip_ray.reason(error.value)
    assert message.startswith(f"the worker on {os.uname().nodename} has no model: {gone}: no such directory")
    assert message.endswith("on a disk that all machines of the cluster share.") and "\n" not in message
