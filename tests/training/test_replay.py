# Copyright 2026 The glip_hf authors. MIT licence.
"""Other data mixed into fine-tuning: what a source may be, its share, and runs that resume to the same bits."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from coco_images import write_rectangles
from random_glip import random_model, random_processor
from safetensors.torch import load_file
from test_finetuning import FAST, finetune, small_model

from glip_hf.data.shards import GroundedPair, Pair, write_grounded
from glip_hf.training.finetuning import load_tuning_data, tuning_batches, tuning_recipe
from glip_hf.training.recipe import RecipeError
from glip_hf.training.replay import SHARE, load_replay, read_replay


@pytest.fixture()
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    return write_rectangles(tmp_path)


def write_shard(path: Path, image: Path) -> None:
    """What `examples/label_captions.py` writes."""
    things = [{"bbox": [2.0, 2.0, 20.0, 20.0], "tokens_positive": [[2, 5]], "score": 0.9}]
    pair = Pair("a-0", image.read_bytes(), "a cat to the left of a sofa")
    write_grounded(str(path), [GroundedPair(pair, 128, 96, things)])


def test_what_a_source_may_be(coco: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "labels.parquet", tmp_path / "0.png")
    (tmp_path / "one.yaml").write_text("{format: scenes, seed: 3}")
    (tmp_path / "recipe.yaml").write_text("data: {sources: [coco_2017_val, {format: scenes, copies: 2}]}")
    (tmp_path / "scenes.yaml").write_text("data: {batch_size: 2}")
    shard = {"format": "hub", "dataset": "parquet", "data_files": [str(tmp_path / "labels.parquet")]}
    for text, specs, share in (
        ("scenes", [{"format": "scenes"}], SHARE),
        ("scenes:0.5", [{"format": "scenes"}], 0.5),
        ("coco_2017_train:.1", [{"name": "coco_2017_train"}], 0.1),
        (f"{coco}:0.2", [{"format": "coco", "annotations": str(coco), "images": str(tmp_path)}], 0.2),
        (f"{tmp_path}/one.yaml", [{"format": "scenes", "seed": 3}], SHARE),
        (f"{tmp_path}/recipe.yaml", [{"name": "coco_2017_val"}, {"format": "scenes", "copies": 2}], SHARE),
        (f"{tmp_path}/scenes.yaml", [{"format": "scenes"}], SHARE),
        (f"{tmp_path}/lab*.parquet:0.3", [shard], 0.3),
        (f"{tmp_path}/labels.parquet", [shard], SHARE),
    ):
        assert read_replay(text) == (specs, share), text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scenes:1", "scenes:1: the share of replayed images must lie between 0 and 1"),
        ("scenes:-2", "must lie between 0 and 1"),
        (
            "nothing.json",
            "--replay nothing.json: There is no 'nothing.json' .* known data set.* a share follows a colon",
        ),
        ("scenes:50%", "--replay scenes:50%: There is no .* a share follows a colon, as in :0.25"),
        ("", "--replay is empty: write SOURCE or SOURCE:SHARE"),
        ("labels.tar", "labels.tar: shards are read as Parquet"),
        ("bad.yaml", "bad.yaml is not valid YAML"),
        ("stream.yaml", "replay needs stored data"),
    ],
)
def test_what_it_may_not_be(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.tar").touch()
    Path("bad.yaml").write_text("{")
    Path("stream.yaml").write_text("{format: hub, dataset: x, streaming: true}")
    with pytest.raises((RecipeError, FileNotFoundError), match=said):
        read_replay(text)


def test_shares_of_an_epoch(coco: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "labels.parquet", tmp_path / "0.png")
    found = load_replay(["scenes:0.5", f"{tmp_path}/labels.parquet:0.25"], images=8)
    assert [round(one.copies * len(one.source)) for one in found] == [16, 8]
    assert found[1].source[0].caption == "a cat to the left of a sofa"
    assert round(load_replay(["scenes:0.01"], images=8)[0].copies * 64_000) == 1  # never nothing
    with pytest.raises(RecipeError, match="leave no room for the images to tune on"):
        load_replay(["scenes:0.5", "scenes:0.5"], images=8)
    (tmp_path / "recipe.yaml").write_text(
        "data: {sources: [{format: scenes, weight: 3}, {format: scenes, seed: 1, weight: 1}]}"
    )
    parts = load_replay([f"{tmp_path}/recipe.yaml:0.5"], images=8)
    assert [round(one.copies * len(one.source)) for one in parts] == [6, 2]


def test_images_that_are_held_out_are_not_replayed(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_tuning_data(coco)
    held_out = {image.path for image in data.validation.image_files()}
    (replayed,) = load_replay([str(coco)], len(data.train), held_out=data.validation)
    assert held_out and held_out.isdisjoint(image.path for image in replayed.source.image_files())
    assert len(replayed.source) + len(held_out) == 6
    assert f"annotations.json: {len(held_out)} image held out for validation left out" in caplog.text
    with pytest.raises(RecipeError, match="all of its images are validated on, nothing is left to replay"):
        load_replay([str(coco)], 8, held_out=load_tuning_data(coco, validation=coco).validation)


def test_batches_hold_the_share(coco: Path, tmp_path: Path) -> None:
    """Over an epoch exactly, drawn anew in the next; an image whose caption says left is never mirrored."""
    write_shard(tmp_path / "labels.parquet", tmp_path / "0.png")
    data = load_tuning_data(coco, tmp_path, validation=coco)
    data.replay = load_replay(["scenes:0.3", f"{tmp_path}/labels.parquet:0.2"], images=len(data.train))
    recipe = tuning_recipe("base", "full", data, random_processor(), overrides=[*FAST, "data.flip=1"])
    assert [source.get("copies") for source in recipe.data.sources] == [None, *(one.copies for one in data.replay)]
    model, processor = random_model(), random_processor()
    batches = tuning_batches(data.train, processor, recipe, model, Accelerator(cpu=True), data.replay)
    mixture = batches.dataset.mixture
    assert mixture.lengths == [7, 4, 3] and batches.dataset.mixture.seed == recipe.run.seed
    drawn = [[mixture.locate(epoch, index) for index in range(7, 11)] for epoch in (0, 1)]
    assert drawn[0] != drawn[1] and {number for number, _ in drawn[0]} == {1}
    names = [batch["sample_ids"] for batch in itertools.islice(batches.batches(0), 8)]
    assert names[3:] == [batch["sample_ids"] for batch in itertools.islice(batches.batches(3), 5)]
    kept, mirrored = batches.dataset[0, 11]["pixel_values"], batches.dataset[0, 0]["pixel_values"]
    shown = batches.dataset.maker.image_processor
    whole = {"size": {"shortest_edge": 96, "longest_edge": 533}, "do_pad": False, "return_tensors": "np"}
    image = shown(images=data.train[0].image.load(), **whole)["pixel_values"][0]
    np.testing.assert_array_equal(kept.numpy(), image)
    np.testing.assert_array_equal(mirrored.numpy(), image[..., ::-1])


def test_data_of_one_name_keeps_its_own_captions(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_rectangles(tmp_path / "other", names=("dog", "tree"))
    data = load_tuning_data(coco, tmp_path, validation=coco)
    data.replay = load_replay([f"{other}:0.5"], images=len(data.train))
    recipe = tuning_recipe("base", "full", data, random_processor(), overrides=FAST)
    made = tuning_batches(data.train, random_processor(), recipe, random_model(), Accelerator(cpu=True), data.replay)
    processor, captions = random_processor(), set()
    for index in (0, len(data.train)):
        captions.add(processor.tokenizer.decode(made.dataset[0, index]["input_ids"], skip_special_tokens=True))
    assert len(captions) == 2
    with pytest.raises(RecipeError, match="--replay is for modes that change the model"):
        prompt = tuning_recipe("base", "prompt", data, random_processor(), overrides=FAST)
        tuning_batches(data.train, random_processor(), prompt, random_model(), Accelerator(cpu=True), data.replay)


def test_a_replaying_run_resumes_to_the_same_bits(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--model", str(model), "--train", str(coco), "--images", str(coco.parent), "--validation", str(coco)]
    options += ["--mode", "linear", "--max-steps", "6", "--output-dir", str(out), "--replay", "scenes:0.4"]
    settings = ["--set", *FAST, "run.checkpoint_every=3"]
    assert finetune(monkeypatch, *options, *settings) == 0
    assert "replaying 5 images of scenes per epoch" in capsys.readouterr().out
    whole = load_file(out / "final" / "model.safetensors")
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step_00000006")
    assert finetune(monkeypatch, *options, "--resume", "latest", *settings) == 0
    again = load_file(out / "final" / "model.safetensors")
    assert whole.keys() == again.keys() and all((again[name] == value).all() for name, value in whole.items())
    capsys.readouterr()
    options[-1] = "scenes:0.2"
    assert finetune(monkeypatch, *options, "--resume", "latest", *settings) == 2
    assert "data.sources=" in capsys.readouterr().err
