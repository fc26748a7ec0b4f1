"""A custom COCO file and nothing else is enough; the best weights are what a run ends with."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from coco_images import write_rectangles
from PIL import Image
from random_glip import random_model, random_processor, save_random_model
from safetensors.torch import load_file

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.data.columns import DamagedData
from glip_hf.data.images import MissingImages
from glip_hf.evaluation import CocoEvaluator
from glip_hf.inference import Grounded
from glip_hf.training.finetuning import BestWeights, Validation, load_tuning_data, tuning_batches, tuning_recipe
from glip_hf.training.recipe import Recipe, RecipeError, load_recipe
from tests.data.original_formats import to_odvg, to_voc, to_yolo, voc_xml

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"
FAST = ["data.short_sides=[96]", "data.batch_size=2", "run.trackers=[]", "run.log_every=1"]


@pytest.fixture()
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    return write_rectangles(tmp_path)


def small_model(directory: Path) -> Path:
    path = save_random_model(directory)
    file = path / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["size"] = {"shortest_edge": 96, "longest_edge": 160}
    file.write_text(json.dumps(config))
    return path


def finetune(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("finetune_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    return module.main()


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [to_yolo, to_voc, to_odvg])
def test_other_formats_give_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    coco = write_rectangles(tmp_path / "images")
    spec = write(tmp_path, json.loads(coco.read_text()))
    expected = load_tuning_data(coco, shots=1, seed=3)
    data = load_tuning_data(spec["annotations"], spec.get("images"), shots=1, seed=3)
    if write is to_yolo:  # which says what is for validation
        assert "validating on the 7 of" in data.note
        expected.validation = load_tuning_data(coco, validation=coco).validation
    for ours, theirs in ((data.train, expected.train), (data.validation, expected.validation)):
        assert [record.image for record in ours] == [record.image for record in theirs]
        assert [record.boxes.tolist() for record in ours] == [record.boxes.tolist() for record in theirs]
    assert data.train.names == expected.train.names


def test_a_run_on_a_yolo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    to_yolo(tmp_path, json.loads(write_rectangles(tmp_path / "images").read_text()))
    options = [
        "--model",
        str(small_model(tmp_path / "model")),
        "--train",
        str(tmp_path / "data.yaml"),
        "--max-steps",
        "1",
    ]
    assert finetune(monkeypatch, *options, "--output-dir", str(tmp_path / "out"), "--set", *FAST) == 0
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "format: yolo" in recipe and "split: train" in recipe and (tmp_path / "out" / "final").is_dir()


def test_validation_files_without_all_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats that list no class names: validation objects may be of fewer classes, and of no other."""
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    image = {"file_name": "0.png", "width": 128, "height": 96}
    (tmp_path / "images").mkdir()
    coco = write_rectangles(tmp_path / "images")
    train = to_voc(tmp_path, json.loads(coco.read_text()))["annotations"]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.xml").write_text(voc_xml(image, [("sofa", 1, 1, 50, 60, "")]))
    data = load_tuning_data(train, tmp_path / "images", tmp_path / "val")
    assert data.validation.names == data.train.names and data.validation[0].labels.tolist() == [2]
    rows = to_odvg(tmp_path, json.loads(coco.read_text()))["annotations"]
    odvg = tmp_path / "val" / "rows.jsonl"
    box = {"bbox": [0, 0, 50, 60], "label": 1, "category": "sofa"}
    odvg.write_text(json.dumps({**image, "filename": "0.png", "detection": {"instances": [box]}}))
    data = load_tuning_data(rows, tmp_path / "images", odvg)
    assert data.validation.names == data.train.names and data.validation[0].labels.tolist() == [2]
    (tmp_path / "val" / "0.xml").write_text(voc_xml(image, [("dog", 1, 1, 50, 60, "")]))
    with pytest.raises(RecipeError, match=r"lacks \['cat', 'sofa'\] and has \['dog'\] besides"):
        load_tuning_data(train, tmp_path / "images", tmp_path / "val")
    with pytest.raises(RecipeError, match="has no split 'val' or 'test' to validate on: it has train"):
        load_tuning_data(train, tmp_path / "images", train)


def test_few_shots_and_what_is_held_out(coco: Path) -> None:
    data = load_tuning_data(coco, coco.parent, shots=1, seed=3)
    assert len(data.train) == 2  # one per class
    used = set(data.train.image_ids().tolist())
    assert not used & set(data.validation.image_ids().tolist())
    assert "2 of 7 images (1 per class)" in data.note and "no validation file was given" in data.note
    again = load_tuning_data(coco, coco.parent, shots=1, seed=3)
    assert again.train.image_ids().tolist() == data.train.image_ids().tolist()


def test_all_images_are_split(coco: Path) -> None:
    data = load_tuning_data(coco, coco.parent)
    ids = sorted([*data.train.image_ids(), *data.validation.image_ids()])
    assert ids == list(range(7)) and len(data.validation) == 1
    assert "1 of 7 images are held out" in data.note


def test_a_validation_file_is_taken_as_it_is(coco: Path) -> None:
    data = load_tuning_data(coco, coco.parent, validation=coco)
    assert len(data.train) == len(data.validation) == 7


def test_nothing_to_hold_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match="has boxes in 1 of 10 images: give a validation file"):
        load_tuning_data(write_rectangles(tmp_path, count=1, empty=9), tmp_path)


@pytest.mark.parametrize("shots", [None, 1, 9])
@pytest.mark.parametrize("boxes", [2, 4, 9])
def test_held_out_images_have_boxes(boxes: int, shots: int | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    path = write_rectangles(tmp_path, count=boxes, empty=10 - boxes)
    for seed in range(8):
        data = load_tuning_data(path, tmp_path, shots=shots, seed=seed)
        for part in (data.train, data.validation):
            assert any(part.label_sets()), (seed, data.note)
        assert not set(data.train.image_ids()) & set(data.validation.image_ids())


def renamed(coco: Path, *categories: tuple[int | str, str]) -> Path:
    """The same file with other category ids and names, in the old order of ids."""
    document = json.loads(coco.read_text())
    new = {old["id"]: category_id for old, (category_id, _) in zip(document["categories"], categories)}
    document["categories"] = [{"id": category_id, "name": name} for category_id, name in categories]
    for box in document["annotations"]:
        box["category_id"] = new[box["category_id"]]
    path = coco.with_name("validation.json")
    path.write_text(json.dumps(document))
    return path


class Perfect:
    """Stands in for the engine: the true boxes, whose labels count the class names of the caption."""

    def __init__(self, *_: object) -> None: ...

    def ground(self, requests):
        truth = json.loads(self.coco.read_text())
        names = [category["name"] for category in truth["categories"]]
        for index, request in enumerate(requests):
            number = int(Path(str(getattr(request.image, "path", request.image))).stem)
            boxes = [box for box in truth["annotations"] if box["image_id"] == number]
            corners = [[x, y, x + w - 1, y + h - 1] for x, y, w, h in (box["bbox"] for box in boxes)]
            found = {
                "boxes": torch.tensor(corners, dtype=torch.float64).reshape(-1, 4),
                "scores": torch.ones(len(boxes)),
                "labels": torch.tensor([request.text.index(names[box["category_id"] - 1]) for box in boxes]),
            }
            yield Grounded(index, detections=[found])


@pytest.mark.parametrize(
    "categories",
    [
        [(1, "cat"), (2, "sofa")],
        [(2, "cat"), (1, "sofa")],
        [("b", " Cat"), ("a", "sofa")],
        [(10**20, "cat"), (7, "SOFA")],
    ],
)
def test_validation_classes_match_by_name(categories, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_tuning_data(coco, coco.parent, validation=renamed(coco, *categories))
    validation = Validation(data, random_processor())
    assert validation.task.names == ["cat", "sofa"]
    monkeypatch.setattr(Perfect, "coco", coco, raising=False)
    monkeypatch.setattr("glip_hf.training.finetuning.GroundingEngine", Perfect)
    monkeypatch.setattr(Validation, "loss", lambda self, model: 0.0)  # there is no model
    assert validation(None)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([(1, "cat"), (2, "couch")], r"lacks \['sofa'\] and has \['couch'\] besides"),
        ([(1, "cat"), (2, "sofa"), (3, "dog")], r"lacks \[\] and has \['dog'\] besides"),
        ([(1, "cat"), (2, "Cat")], r"lacks \['sofa'\]"),
        (
            [(1, "cat"), (2, "sofa"), (3, "Cat ")],
            r"lacks \[\] and has \[\] besides, and one has \['cat'\] more than once",
        ),
    ],
)
def test_other_validation_classes_are_refused(categories, said: str, coco: Path) -> None:
    with pytest.raises(RecipeError, match=f"validation.json are not those of .*annotations.json: it {said}"):
        load_tuning_data(coco, coco.parent, validation=renamed(coco, *categories))


def test_recipe_defaults_by_mode(coco: Path) -> None:
    data = load_tuning_data(coco, coco.parent, shots=1)
    recipe = tuning_recipe("base", "prompt", data, random_processor(), shots=1)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.05, 0.25)
    assert (recipe.schedule.name, recipe.schedule.patience, recipe.tuning.early_stopping) == ("plateau", 3, 8)
    assert (recipe.schedule.epochs, recipe.run.evaluate_every, recipe.run.ema_decay) == (200, 25, 0)
    assert recipe.data.short_sides == [192, 224, 256, 288, 320] and recipe.data.long_side == 533
    recipe = tuning_recipe("base", "full", data, random_processor(), overrides=["optimizer.lr=1e-3", *FAST])
    assert recipe.optimizer.lr == 1e-3 and recipe.data.short_sides == [96] and recipe.model.frozen_stages == 1
    with pytest.raises(RecipeError, match="unknown key optimizer.learning"):
        tuning_recipe("base", "full", data, random_processor(), overrides=["optimizer.learning=1"])


def test_a_small_model_follows_larger_images(coco: Path, tmp_path: Path) -> None:
    """All of it is trained, at one rate; a model of the released size, and frozen parts, stay as they are."""
    processor = random_processor()
    processor.image_processor.size = {"shortest_edge": 60, "longest_edge": 100}
    data = load_tuning_data(coco, coco.parent)  # of 128 x 96 pixels

    def made(mode: str = "full", shots: int | None = None, *overrides: str) -> Recipe:
        return tuning_recipe("base", mode, data, processor, shots, overrides)

    recipe = made()
    assert recipe.model.image_size == 96 and recipe.data.short_sides == [77, 86, 96, 106]
    assert recipe.data.long_side == 176  # 1.1 times 96 / 60 * 100: the largest scale keeps its shape
    assert recipe.model.frozen_stages == -1 and recipe.optimizer.lr == recipe.optimizer.text_lr == 1e-3
    assert recipe.schedule.name == "cosine" and recipe.schedule.warmup_steps == 50
    assert recipe.schedule.epochs * (len(data.train) // 4) >= 1200 and recipe.run.evaluate_every == 100
    assert made("full", 1).schedule.epochs == 200 and made("full", 1).model.image_size == 96
    assert made("full", None, "schedule.epochs=3").schedule.epochs == 3
    assert made("full", None, "optimizer.lr=1e-4").optimizer.lr == 1e-4
    asked = made("full", None, "model.image_size=640")
    assert asked.data.short_sides[2] == 640 and asked.optimizer.lr == 1e-3
    for mode, rate in (("prompt", 0.05), ("linear", 1e-3), ("head", 1e-3), ("lora", 1e-2)):
        assert made(mode).model.image_size == 0 and made(mode).schedule.name == "plateau"
        assert made(mode).optimizer.lr == rate
    for size in (320, 800):
        processor.image_processor.size = {"shortest_edge": size, "longest_edge": 1333}
        assert made().model.image_size == 0 and made().optimizer.lr == made("linear").optimizer.lr == 1e-4
        assert made("lora").optimizer.lr == 1e-3
        assert made("full", None, "model.image_size=1000").schedule.name == "plateau"


def test_sides_are_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    data = load_tuning_data(write_rectangles(tmp_path, names=("Left hand", "sofa")), tmp_path)
    assert tuning_recipe("base", "full", data, random_processor()).data.flip == 0
    assert tuning_recipe("base", "full", data, random_processor(), overrides=["data.flip=0.5"]).data.flip == 0.5


def test_sizes_follow_the_image_size(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--size` is that of training, of validation, and of the processor that is saved with the result."""
    data = load_tuning_data(coco, coco.parent)
    recipe = tuning_recipe("base", "full", data, random_processor(), overrides=["model.image_size=640"])
    assert recipe.data.short_sides == [384, 448, 512, 576, 640] and recipe.data.long_side == 1066
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--model", str(model), "--train", str(coco), "--images", str(tmp_path), "--max-steps", "1"]
    options += ["--mode", "linear", "--size", "64", "--output-dir", str(out), "--set", "run.trackers=[]"]
    assert finetune(monkeypatch, *options) == 0
    size = GlipProcessor.from_pretrained(out / "final").image_processor.size
    assert dict(size) == {"shortest_edge": 64, "longest_edge": 107}
    assert "- 64\n  long_side: 107" in (out / "recipe.yaml").read_text()


# -- validation ------------------------------------------------------------------------------------


def test_validation_is_coco_ap(coco: Path) -> None:
    data = load_tuning_data(coco, coco.parent, validation=coco)
    validation = Validation(data, random_processor())
    coco.unlink()  # annotations are read once per run
    figures = validation(random_model())
    assert 0 <= figures["AP"] <= figures["AP50"] <= 1


def test_the_validation_loss_is_that_of_training(coco: Path) -> None:
    """Whatever the class ids of the validation file, and however many images share a batch."""
    model, other = random_model(), renamed(coco, (7, "cat"), (3, "sofa"))
    first, second = (
        Validation(load_tuning_data(coco, coco.parent, validation=file), random_processor(96), size)
        for file, size in ((coco, 4), (other, 4))
    )
    assert first(model)["validation_loss"] == pytest.approx(second.loss(model), rel=1e-5)
    data = load_tuning_data(coco, coco.parent, validation=coco)
    size = ["data.short_sides=[96]", "data.long_side=160", "data.flip=0", "data.batch_size=7"]
    recipe = tuning_recipe("base", "full", data, random_processor(96), overrides=size)
    batches = tuning_batches(data.train, random_processor(96), recipe, model, Accelerator(cpu=True))
    batch = next(batches.batches(0))
    assert batch.pop("sample_ids") and len(batch["labels"]) == 7
    with torch.no_grad():
        whole = Validation(data, random_processor(96), 7).loss(model)
        assert whole == pytest.approx(model(**batch).loss.item(), rel=1e-4)


def test_validation_images_are_read_before_the_run(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_tuning_data(coco, coco.parent, validation=coco)
    whole = len(Validation(data, random_processor()).task.images)
    (coco.parent / "3.png").unlink()
    (coco.parent / "4.png").write_bytes((coco.parent / "4.png").read_bytes()[:60])
    rest = Validation(data, random_processor())
    assert len(rest.task.images) == whole - 2
    assert f"2 of {whole} images cannot be read" in caplog.text and "3.png" in caplog.text and "4.png" in caplog.text
    assert rest(random_model())["AP"] >= 0
    with pytest.raises(ValueError, match="3.png.*set data.on_broken=skip"):
        Validation(data, random_processor(), on_broken="fail")
    for number in (0, 1, 2, 5):  # all that have boxes
        (coco.parent / f"{number}.png").unlink()
    with pytest.raises(ValueError, match="none of the 1 validation images has a box to find"):
        Validation(data, random_processor())


def test_validation_images_without_pixel_values_are_left_out_before_the_run(coco: Path, caplog) -> None:
    """32 bits hold numbers that no image has: they ended the run at its first evaluation."""
    content = json.loads(coco.read_text())
    content["images"][0]["file_name"] = "0.tif"
    coco.write_text(json.dumps(content))
    Image.fromarray(np.full((96, 128), 70_000, np.int32)).save(coco.parent / "0.tif")
    data = load_tuning_data(coco, coco.parent, validation=coco)
    assert len(Validation(data, random_processor()).task.images) == len(content["images"]) - 1
    assert "Cannot read the image" in caplog.text and "0.tif: Pixels of type torch.int32 must be 0..255" in caplog.text
    with pytest.raises(ValueError, match="1 of 7 images cannot be read: .*0.tif: Pixels of type"):
        Validation(data, random_processor(), on_broken="fail")


def test_the_evaluator_is_rehearsed_before_the_run(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: CocoEvaluator) -> None:
        raise ValueError("its area is None")

    data = load_tuning_data(coco, coco.parent, validation=coco)
    monkeypatch.setattr(CocoEvaluator, "_accumulate", fails)
    with pytest.raises(ValueError, match="its area is None"):
        Validation(data, random_processor())


def test_a_class_name_that_no_caption_holds_is_refused_before_the_run(coco: Path) -> None:
    document = json.loads(coco.read_text())
    document["categories"][0]["name"] = "very " * 300
    coco.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="tokens, but a caption holds"):
        Validation(load_tuning_data(coco, coco.parent), random_processor())


def test_images_are_settled_before_the_model(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All that are missing are listed; those without a header are left out, or refused."""
    (coco.parent / "4.png").write_bytes(b"no image")
    data = load_tuning_data(coco, coco.parent)
    assert len(data.train) + len(data.validation) == 6 and "1 image that cannot be read left out" in data.note
    assert "1 of " in caplog.text and "4.png" in caplog.text
    with pytest.raises(ValueError, match="4.png.* --on-broken skip"):
        load_tuning_data(coco, coco.parent, on_broken="fail")
    for name in ("2.png", "3.png"):
        (coco.parent / name).unlink()
    with pytest.raises(MissingImages, match=r"(?s)2 of 7 images are missing.*2.png\n.*3.png"):
        load_tuning_data(coco, coco.parent, validation=coco)


def test_images_that_can_be_read_are_held_out(coco: Path) -> None:
    for number in (0, 3, 4, 5):
        (coco.parent / f"{number}.png").write_bytes(b"no image")
    for seed in range(6):
        data = load_tuning_data(coco, coco.parent, seed=seed)
        assert (
            len(data.validation) == 1 and len(data.train) == 2 and "4 images that cannot be read left out" in data.note
        )


def test_images_of_another_size_are_told(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    width, height = Image.open(coco.parent / "1.png").size
    content = json.loads(coco.read_text())
    content["images"][1] |= {"file_name": "1.png", "width": width + 4, "height": height}
    coco.write_text(json.dumps(content))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (width + 4, height)).save(coco.parent / "1.png", exif=exif)
    Image.new("RGB", (width * 2, height)).save(coco.parent / "2.png")
    load_tuning_data(coco, coco.parent)
    assert "1 photo annotated as stored" in caplog.text and "1.png" in caplog.text
    assert "1 image of another size than annotated" in caplog.text and "2.png has " in caplog.text


def test_best_weights_come_back() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    best = BestWeights()
    best.take(7, [("w", parameter)])
    with torch.no_grad():
        parameter.zero_()
    best.put([("w", parameter)])
    assert parameter.tolist() == [1, 1] and best.step == 7


# -- the example -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "linear", "prompt"])
def test_example(mode: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--train", str(coco), "--images", str(coco.parent), "--mode", mode, "--shots", "1"]
    options += ["--max-steps", "2", "--output-dir", str(out), "--set", *FAST]
    assert finetune(monkeypatch, "--model", str(model), *options) == 0
    assert "no validation file was given" in capsys.readouterr().out
    files = {path.name for path in (out / "final").iterdir()}
    base = GlipForGrounding.from_pretrained(model)
    assert GlipProcessor.from_pretrained(out / "final").class_names == ["cat", "sofa"]
    if mode == "prompt":
        processor = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
        assert files == {"prompt_table.json", "prompt_table.safetensors", "README.md", *processor}
        assert str(model) in (out / "final" / "README.md").read_text()
        assert sum(f.stat().st_size for f in (out / "final").iterdir()) < 100_000
        base.load_prompt_table(out / "final")
        return
    tuned = GlipForGrounding.from_pretrained(out / "final")
    changed = {n for n, v in tuned.state_dict().items() if not torch.equal(v, base.state_dict()[n])}
    assert changed and (mode == "full" or all(name.startswith("head.") for name in changed))
    assert not any("embeddings.patch" in name for name in changed)  # frozen as in the original


def test_example_names_what_is_wrong(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model = small_model(tmp_path / "model")
    options = ["--model", str(model), "--train", str(coco), "--images", str(coco.parent)]
    assert finetune(monkeypatch, *options, "--set", "optimizer.learning=1") == 2
    assert "finetune: unknown key optimizer.learning" in capsys.readouterr().err
    assert finetune(monkeypatch, *options, "--seed", "-1") == 2
    assert "finetune: run.seed=-1: Input should be greater" in capsys.readouterr().err
    assert finetune(monkeypatch, *options, "--validation-images", str(tmp_path)) == 2
    assert f"finetune: --validation-images {tmp_path} needs --validation" in capsys.readouterr().err
    assert finetune(monkeypatch, *options[:-1], str(tmp_path / "elsewhere")) == 2
    error = capsys.readouterr().err
    assert "7 of 7 images are missing" in error and "is --images the right folder?" in error


def test_a_resumed_run_ends_the_same(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--model", str(model), "--train", str(coco), "--images", str(coco.parent), "--validation", str(coco)]
    options += ["--mode", "prompt", "--max-steps", "6", "--output-dir", str(out)]
    settings = ["--set", *FAST, "run.evaluate_every=2", "run.checkpoint_every=3"]
    assert finetune(monkeypatch, *options, *settings) == 0
    whole = load_file(out / "final" / "prompt_table.safetensors")["prompt_table"]
    assert whole.any()
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step_00000006")
    assert finetune(monkeypatch, *options, "--resume", "latest", *settings) == 0
    assert torch.equal(load_file(out / "final" / "prompt_table.safetensors")["prompt_table"], whole)


def test_another_run_is_refused_by_name(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A run that goes on has the same data, mode, seed and rates; nothing is lost to a command given twice."""
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    given = {"--model": str(model), "--train": str(coco), "--images": str(tmp_path), "--validation": str(coco)}
    given |= {"--mode": "linear", "--output-dir": str(out), "--max-steps": "2"}

    def started(resume: bool = True, **changes: str) -> tuple[int, str]:
        options = given | {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
        words = [word for option in options.items() for word in option] + ["--resume", "latest"] * resume
        code = finetune(monkeypatch, *words, "--set", *FAST)
        return code, capsys.readouterr().err.splitlines()[-1]

    def written(name: str, change) -> str:
        document = json.loads(coco.read_text())
        change(document)
        (tmp_path / name).write_text(json.dumps(document))
        return str(tmp_path / name)

    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("moved", "cache", "out"))
    other = written("other.json", lambda document: document["annotations"].pop())
    assert started(False)[0] == 0
    kept = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    refusals = [
        (started(False), "holds an earlier run (checkpoints/step_00000002, final, history.json): --resume latest goes"),
        (started(train=other), "data.sources[0]=annotations (7 images), this one has other (7 images): give"),
        (started(validation=other), "validation data=annotations (7 images), this one has other (7 images): give"),
        (started(mode="full"), "tuning.mode=linear, this one has full; "),
        (started(seed="1"), "run.seed=0, this one has 1: give"),
        (started(lr="0.5"), "optimizer.lr=0.001, this one has 0.5: give"),
    ]
    coco.write_text(Path(other).read_text())  # edited in place
    refusals.append((started(), "data.sources[0] (annotations (7 images)) of another content than this one"))
    for (code, error), expected in refusals:
        assert code == 2 and expected in error, error
        assert "--overwrite" in error and "--output-dir" in error
    assert kept == {path: path.read_bytes() for path in kept}
    # The same data elsewhere, under other names, is the same data.
    places = {"train": str(moved / coco.name), "validation": str(moved / coco.name), "images": str(moved)}
    assert started(**places, model=str(moved / "model"))[0] == 0


def test_the_best_weights_are_what_is_saved(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.2, None, 0.5])
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {"AP": next(scores) + 0})
    taken = {}
    monkeypatch.setattr(BestWeights, "take", spy(BestWeights.take, taken))
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--model", str(model), "--train", str(coco), "--images", str(coco.parent), "--mode", "linear"]
    options += ["--max-steps", "9", "--output-dir", str(out)]
    early = ["run.evaluate_every=1", "tuning.early_stopping=2"]
    # What follows the last step fails: nothing of the run is lost.
    assert finetune(monkeypatch, *options, "--set", *FAST, *early) == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]
    assert list(taken) == [1, 2]  # steps 3 and 4 were no better, and the run stopped
    taken = dict(taken)
    assert finetune(monkeypatch, *options, "--resume", "latest", "--set", *FAST, *early) == 0
    saved = load_file(out / "final" / "model.safetensors")
    assert torch.equal(saved["head.bias0"], taken[2]["head.bias0"])
    assert not torch.equal(saved["head.bias0"], taken[1]["head.bias0"])
    history = json.loads((out / "history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 4] and history[-1]["AP"] == 0.5


@pytest.mark.parametrize(("scores", "best"), [([-1.0, -1.0, -1.0], None), ([-1.0, 0.0, float("nan"), 0.0], 2)])
def test_what_was_not_measured_is_never_the_best(
    scores: list[float], best: int | None, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """An AP of 0 is one; the run neither stops early nor lowers its learning rate for an AP of -1."""
    given = iter(scores)
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {"AP": next(given)})
    taken = {}
    monkeypatch.setattr(BestWeights, "take", spy(BestWeights.take, taken))
    model, out = small_model(tmp_path / "model"), tmp_path / "out"
    options = ["--train", str(coco), "--images", str(coco.parent), "--mode", "linear", "--max-steps", "3"]
    early = ["run.evaluate_every=1", "tuning.early_stopping=1", "schedule.patience=1"]
    assert finetune(monkeypatch, "--model", str(model), *options, "--output-dir", str(out), "--set", *FAST, *early) == 0
    said = capsys.readouterr().out
    assert list(taken) == ([best] if best else []) and "step 1: no AP was measured" in said
    assert ("no evaluation measured an AP: these are the last weights" in said) == (best is None)
    card = (out / "final" / "README.md").read_text()
    assert "-1.0" not in card and (out / "final" / "model.safetensors").is_file()


def spy(take, taken: dict):
    def noted(self: BestWeights, step: int, named_tensors) -> None:
        take(self, step, named_tensors)
        taken[step] = {name: value.clone() for name, value in self.weights.items()}

    return noted


# -- damaged data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"image_id": None}, {"category_id": "x"}, {"bbox": None}, {"bbox": [0.1, 0.1, 0.5, 0.5]}, {"iscrowd": 1}],
)
@pytest.mark.parametrize("which", ["--train", "--validation"])
def test_nothing_starts_without_boxes(coco: Path, tmp_path, monkeypatch, capsys, change, which) -> None:
    """Before the model loads: there is none at this place."""
    content = json.loads(coco.read_text())
    content["annotations"] = [annotation | change for annotation in content["annotations"]]
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    files = {"--train": coco, "--validation": coco} | {which: tmp_path / "damaged.json"}
    paths = [str(part) for pair in files.items() for part in pair]
    out = tmp_path / "out"
    given = ["--model", "nowhere", "--images", str(coco.parent), "--output-dir", str(out), *paths]
    assert finetune(monkeypatch, *given, "--allow-damage", "1") == 2 and not out.exists()
    message = capsys.readouterr().err
    count = len(content["annotations"])
    assert f"damaged.json: nothing was started: 0 of {count} boxes are used" in message and "annotation 1" in message
    assert message.count("\n") == 1


def test_how_much_damage_is_allowed(coco: Path) -> None:
    content = json.loads(coco.read_text())
    half = (len(content["annotations"]) + 1) // 2 + 1
    for annotation in content["annotations"][:half]:
        annotation["bbox"][2] = 0
    coco.write_text(json.dumps(content))
    with pytest.raises(DamagedData, match=rf"{half} empty_box .the first: .*allow-damage 0\.\d+") as error:
        load_tuning_data(coco, coco.parent)
    share = float(str(error.value).rsplit("=", 1)[1].rstrip(")."))
    assert len(load_tuning_data(coco, coco.parent, allow_damage=share).train) > 0
    with pytest.raises(RecipeError, match="allow_damage=nan"):
        load_recipe(None, ["data.allow_damage=.nan"])
    coco.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DamagedData, match="there are no annotations"):
        load_tuning_data(coco, coco.parent)


@pytest.mark.parametrize("option", ["train", "validation"])
def test_a_misspelt_file_is_named_by_its_option(coco: Path, option: str) -> None:
    paths = {"train": coco, "validation": coco} | {option: coco / "nowhere"}
    with pytest.raises(FileNotFoundError, match=f"^--{option} .*nowhere: no such file in ") as error:
        load_tuning_data(images=coco.parent, **paths)
    assert "data_root" not in str(error.value)
