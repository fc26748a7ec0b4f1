# Copyright 2026 The glip_hf authors. MIT licence.
"""One run on several data sets: classes match by name, captions and ground truth stay those of each set."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from coco_images import write_rectangles
from random_glip import random_model, random_processor
from test_finetuning import FAST, finetune, small_model

from glip_hf import GlipProcessor
from glip_hf.data.sources import JoinedSource, coco_annotations, read_coco
from glip_hf.training.finetuning import Validation, load_tuning_data, tuning_batches, tuning_recipe
from glip_hf.training.recipe import RecipeError


@pytest.fixture()
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two sets with the same image ids: the second has the names in the other order, and a crowd region."""
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    made = []
    for name, names in (("a", ("cat", "sofa")), ("b", ("Sofa", "cat"))):
        (tmp_path / name).mkdir()
        made.append(write_rectangles(tmp_path / name, names=names))
    content = json.loads(made[1].read_text())
    content["annotations"][0]["iscrowd"] = 1
    made[1].write_text(json.dumps(content))
    return made


def test_classes_match_by_name(files: list[Path]) -> None:
    parts = [read_coco(file, file.parent, drop_empty=False) for file in files]
    joined = JoinedSource(parts)
    assert joined.names == {1: "cat", 2: "sofa"} and len(joined) == 14
    assert joined.image_ids().tolist() == [record.image_id for record in joined] == list(range(14))
    for row, record in enumerate(joined):
        other = parts[row // 7][row % 7]
        own = [joined.names[label].lower() for label in record.labels.tolist()]
        assert own == [other.names[label].lower() for label in other.labels.tolist()]
        assert record.image == other.image and (record.boxes == other.boxes).all()
        assert set(record.labels.tolist()) == joined.label_sets()[row]
    some = joined.select([12, 3, 9, 12])
    assert [len(part) for part in some.parts()] == [1, 3] and [r.image_id for r in some] == [12, 3, 9, 12]
    assert some.digest() != joined.digest() and some.sizes().shape == (4, 2)
    truth = coco_annotations(joined)
    assert truth.image_ids == list(range(14)) and truth.names == ["cat", "sofa"] and len(truth.boxes) == 12
    assert [box["image_id"] for box in truth.boxes if box["iscrowd"]] == [7]


def test_a_run_on_several_files(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--model", str(model), "--train", *map(str, files), "--images", *(str(file.parent) for file in files)]
    options += ["--mode", "linear", "--max-steps", "2", "--output-dir", str(out), "--set", *FAST]
    assert finetune(monkeypatch, *options) == 0
    assert "3 of 14 images are held out" in capsys.readouterr().out
    assert GlipProcessor.from_pretrained(out / "final").class_names == ["cat", "sofa"]
    history = json.loads((out / "history.json").read_text())
    assert 0 <= history[-1]["AP"] <= 1 and history[-1]["validation_loss"] > 0
    with pytest.raises(RecipeError, match="--train names 2 data sets and --images 3 folders"):
        load_tuning_data(files, [tmp_path] * 3)


def test_photos_of_two_sets_are_not_both_trained_and_validated_on(files: list[Path]) -> None:
    """Files of one class each for the same folder."""
    data = load_tuning_data([files[0], files[0]], files[0].parent)
    paths = [{image.path for image in source.image_files()} for source in (data.train, data.validation)]
    assert not paths[0] & paths[1] and any(data.train.label_sets())
    assert "of the same photos as held out not trained on" in data.note
    both = load_tuning_data(files[0], files[0].parent, validation=files[0])
    assert both.note.endswith("; 7 images in both: AP is better there than on other images")


def test_other_classes_keep_their_own_caption(files: list[Path], tmp_path: Path) -> None:
    """An image is not a negative for a class that its set does not know."""
    (tmp_path / "c").mkdir()
    other = write_rectangles(tmp_path / "c", names=("dog", "cat"))
    files = [files[0], other]
    data = load_tuning_data(files, [file.parent for file in files], validation=files, validation_images=[
        file.parent for file in files
    ])  # fmt: skip
    alone = load_tuning_data(files[:1] * 2, [file.parent for file in files[:1] * 2], validation=files[0])
    assert len(alone.validation) == 7  # its own folder: the two of training are not for it
    assert data.class_names == ["cat", "sofa", "dog"] and Validation(data, random_processor()).task.names[2] == "dog"
    processor = random_processor()
    recipe = tuning_recipe("base", "full", data, processor, overrides=FAST)
    assert len(recipe.data.sources) == 2
    made = tuning_batches(data.train, processor, recipe, random_model(), Accelerator(cpu=True)).dataset
    captions = [processor.decode(made[0, index]["input_ids"], skip_special_tokens=True) for index in (0, 7)]
    assert captions == ["cat. sofa", "cat. dog"]
    recipe = tuning_recipe("base", "prompt", data, processor, overrides=FAST)
    with pytest.raises(RecipeError, match="a prompt table belongs to one caption, and .* differ in their classes"):
        tuning_batches(data.train, processor, recipe, random_model(), Accelerator(cpu=True))


def test_the_loss_of_joined_validation_sets(files: list[Path]) -> None:
    """Labels are the class ids of the training data, and captions those of each set, whatever the sets are called."""
    files = [file.rename(file.with_name(f"{file.parent.name}.json")) for file in files]
    seen = []
    for order in (files, files[::-1]):
        validation = Validation(load_tuning_data(files, validation=order), random_processor(64))
        seen.append({str(record.image): record.labels.tolist() for record in validation.measured})
    assert seen[0] == seen[1] and len(seen[0]) == 14
    assert validation.loss(random_model()) > 0
