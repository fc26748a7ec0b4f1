# Copyright 2026 The glip_hf authors. MIT licence.
"""The command line: images and class names told apart, every output, every error in one line."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from random_glip import PHOTO, random_model, save_random_model

from glip_hf import GlipForGrounding, GlipProcessor, formats, kernels
from glip_hf.cli import build_parser, ground, main
from glip_hf.cli.common import load_model
from glip_hf.cli.ground import read_words, save_targets
from glip_hf.conversion.weight_map import to_original
from glip_hf.demo import ASSETS, DEMO_CAPTION, DEMO_IMAGE
from glip_hf.formats import ImageDetections
from glip_hf.inference import GroundingEngine

ANYTHING = ["--threshold", "0", "--max-detections", "3"]  # untrained weights are sure of nothing


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_random_model(tmp_path_factory.mktemp("cli") / "model"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small random model in the original's format, beside its config."""
    path = tmp_path_factory.mktemp("checkpoint") / "original.pth"
    small = random_model()
    torch.save({"model": to_original(small.state_dict(), small.config.anchor_scale), "iteration": 7}, path)
    small.config.save_pretrained(path.parent / "sizes")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for name in ("photo.jpg", "more/photo.jpg", "more/b.png"):
        Image.open(PHOTO).resize((160, 120)).save(tmp_path / name)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").write_text("a file that happens to be called dog")
    return tmp_path


def words(*arguments: str) -> tuple[list[str], list[str] | None, str | None]:
    return read_words(build_parser().parse_args(["ground", *arguments, "--model", "m"]))


@pytest.mark.parametrize(
    "arguments, paths, names, caption",
    [
        (["photo.jpg", "cat"], ["photo.jpg"], ["cat"], None),
        (["photo.jpg", "cat", "remote control"], ["photo.jpg"], ["cat", "remote control"], None),
        (["photo.jpg", "remote control"], ["photo.jpg"], ["remote control"], None),
        (["photo.jpg", "two cats on a pink sofa"], ["photo.jpg"], None, "two cats on a pink sofa"),
        (["photo.jpg", "a red ball", "cat"], ["photo.jpg"], ["a red ball", "cat"], None),
        (["photo.jpg", "--names", "a red ball"], ["photo.jpg"], ["a red ball"], None),
        (["photo.jpg", "--caption", "sofa"], ["photo.jpg"], None, "sofa"),
        (
            ["photo.jpg", "cat", "dog"],
            ["photo.jpg"],
            ["cat", "dog"],
            None,
        ),  # both exist, neither is an image
        (["more/*.jpg", "cat"], ["more/photo.jpg"], ["cat"], None),
        (["more", "cat"], ["more/b.png", "more/photo.jpg"], ["cat"], None),
        (["photo.jpg", "more/b.png", "what?"], ["photo.jpg", "more/b.png"], ["what?"], None),
        (["photo.jpg", "more/", "cat"], ["photo.jpg", "more/b.png", "more/photo.jpg"], ["cat"], None),
        (["photo.jpg", "a 5* hotel"], ["photo.jpg"], ["a 5* hotel"], None),
        (["photo.jpg", "his/hers"], ["photo.jpg"], ["his/hers"], None),
        (
            ["photo.jpg", "https://host/x.jpg", "cat"],
            ["photo.jpg", "https://host/x.jpg"],
            ["cat"],
            None,
        ),
        (
            ["photo.jpg", "more/*", "--names", "cat"],
            ["photo.jpg", "more/b.png", "more/photo.jpg"],
            ["cat"],
            None,
        ),
    ],
)
def test_images_names_and_captions_are_told_apart(folder, arguments, paths, names, caption) -> None:
    assert words(*arguments) == (paths, names, caption)


def test_annotated_images_get_distinct_names() -> None:
    assert save_targets(None, ["a.jpg"]) == [None]
    assert save_targets("out/x.png", ["a.jpg"]) == [Path("out/x.png")]
    several = save_targets("out/", ["d/a.jpg", "e/a.jpg", "https://host/b.jpg?size=2"])
    assert several == [Path("out/a.png"), Path("out/a-2.png"), Path("out/b.png")]
    numbered = save_targets("out/", ["d/a.jpg", "e/a.jpg", "d/a-2.jpg", "d/a.webp"])
    assert numbered == [Path(f"out/{name}.png") for name in ("a", "a-2", "a-2-2", "a-3")]


def test_annotated_images_never_replace_the_images_themselves(folder, model, capsys) -> None:
    Image.open("photo.jpg").save("photo.png")
    before = Path("photo.png").read_bytes()
    assert main(["ground", "photo.png", "--names", "cat", "--model", model, "--save", "./", *ANYTHING]) == 0
    assert Path("photo-2.png").is_file() and Path("photo.png").read_bytes() == before
    assert main(["ground", "photo.png", "cat", "--model", model, "--save", "./photo.png", *ANYTHING]) == 2
    assert "would replace the image itself" in capsys.readouterr().err and Path("photo.png").read_bytes() == before
    assert save_targets("clips/", ["clips/a.mp4"]) == [Path("clips/a-2.mp4")]


def test_file_names_that_are_not_utf8_are_told_before_work(folder, model, capsys) -> None:
    name = "caf\udce9.jpg"  # what Python makes of a name in Latin-1
    Path("photo.jpg").rename(name)
    assert main(["ground", name, "cat", "--model", "nowhere", "--json"]) == 2
    assert "is not valid Unicode text" in capsys.readouterr().err
    assert main(["ground", name, "cat", "--model", model, "--format", "yolo", "--output", "labels"]) == 0


def test_ground_prints_and_saves(folder, model, capsys) -> None:
    assert main(["ground", "photo.jpg", "cat", "--model", model, "--save", "new/x.png", *ANYTHING]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("photo.jpg (160x120)\n") and "  cat\n" in printed and "new/x.png" in printed
    with Image.open("new/x.png") as image:
        assert image.size == (160, 120)
        assert image.convert("RGB").tobytes() != Image.open("photo.jpg").tobytes()


def test_ground_json_of_several_images(folder, model, capsys) -> None:
    arguments = [
        "ground",
        "photo.jpg",
        "more/*",
        "--names",
        "cat",
        "sofa",
        "--save",
        "found",
        "--json",
    ]
    assert main([*arguments, "--model", model, *ANYTHING]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == model and document["names"] == ["cat", "sofa"]
    assert [record["photo"] for record in document["photos"]] == [
        "photo.jpg",
        "more/b.png",
        "more/photo.jpg",
    ]
    assert [record["saved"] for record in document["photos"]] == [
        "found/photo.png",
        "found/b.png",
        "found/photo-2.png",
    ]
    for record in document["photos"]:
        assert (record["width"], record["height"]) == (160, 120)
        assert len(record["detections"]) >= 3
        for found in record["detections"]:
            assert found["text_label"] == ["cat", "sofa"][found["label"]]
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= 160 and 0 <= y1 <= y2 <= 120 and 0 <= found["score"] <= 1


def test_a_folder_gives_what_each_image_gives(folder, model, capsys) -> None:
    """In its order, whatever its shapes and the batches, with what cannot be read named in its place."""
    photo = Image.open("photo.jpg")
    for name, shape in {"a": (120, 160), "c": (120, 160)}.items():
        photo.resize(shape).save(f"more/{name}.png")
    Path("more/d.jpg").write_bytes(b"not an image")
    names = ["a.png", "b.png", "c.png", "d.jpg", "photo.jpg"]

    def found(*words: str) -> list[dict]:
        main(["ground", *words, "--names", "cat", "sofa", "--model", model, "--json", *ANYTHING])
        return json.loads(capsys.readouterr().out)["photos"]

    alone = [found(f"more/{name}")[0] for name in ("a.png", "b.png")]
    for speed in (["--workers", "1"], ["--batch-size", "2", "--workers", "3"]):
        together = found("more", *speed)
        assert [record["photo"] for record in together] == [f"more/{name}" for name in names]
        assert "d.jpg" in together[3].pop("error") and set(together.pop(3)) == {"photo"}
        for one, expected in zip(together, [*alone, alone[0], None]):
            if expected is None:  # a JPEG of other pixels
                assert one["detections"]
                continue
            assert (one["width"], one["height"]) == (expected["width"], expected["height"])
            assert [own["label"] for own in one["detections"]] == [own["label"] for own in expected["detections"]]
            for own, other in zip(one["detections"], expected["detections"], strict=True):
                assert own["score"] == pytest.approx(other["score"], abs=2e-4)
                assert own["box"] == pytest.approx(other["box"], abs=0.11)


def test_images_are_saved_while_the_model_works(folder, model, monkeypatch, capsys) -> None:
    """The first is saved only once the model has the second; it would wait in vain otherwise. No thread is left."""
    passes, second, detect, save = [], threading.Event(), GroundingEngine.detect, ground._save

    def detecting(*arguments):
        passes.append(threading.current_thread())
        if len(passes) == 2:
            second.set()
        return detect(*arguments)

    def saving(*arguments):
        assert second.wait(60), "the second image is not looked at before the first is saved"
        return save(*arguments)

    monkeypatch.setattr(GroundingEngine, "detect", detecting)
    monkeypatch.setattr(ground, "_save", saving)
    before = threading.active_count()
    words = ["ground", "more", "--names", "cat", "--save", "new", "--workers", "1"]
    assert main([*words, "--model", model, *ANYTHING]) == 0
    assert len(passes) == 2 and threading.active_count() == before
    assert sorted(path.name for path in Path("new").iterdir()) == ["b.png", "photo.png"]
    assert capsys.readouterr().out.count("-> new/") == 2


def test_photos_and_videos_come_in_their_turn(folder, model, monkeypatch) -> None:
    Path("clip.mp4").touch()
    nothing = {"scores": torch.zeros(0), "boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "text_labels": []}

    def frames(engine, text, arguments, target, file_name, record):
        yield ImageDetections(f"{file_name}/000000.jpg", 8, 8, nothing)

    monkeypatch.setattr(ground, "require", lambda *_: None)
    monkeypatch.setattr(ground, "_ground_video", frames)
    words = ["ground", "more/b.png", "clip.mp4", "photo.jpg", "--names", "cat", "--format", "jsonl", "--workers", "3"]
    assert main([*words, "--output", "found.jsonl", "--model", model, *ANYTHING]) == 0
    lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["more/b.png", "clip.mp4/000000.jpg", "photo.jpg"]


def test_an_interruption_keeps_what_is_done(model, folder, capsys, monkeypatch) -> None:
    """Of three images the third is interrupted; what other formats and no format at all do is the same."""
    detect, done = GroundingEngine.detect, []

    def interrupted(*arguments):
        done.append(0)
        if len(done) == 3:
            raise KeyboardInterrupt
        return detect(*arguments)

    monkeypatch.setattr(GroundingEngine, "detect", interrupted)
    images = ["ground", "more/b.png", "more/photo.jpg", "photo.jpg", "cat", "--model", model, *ANYTHING]
    for output in (["--format", "coco", "--output", "found.json"], ["--json", "photos.json"]):
        assert main([*images, *output]) == 130
        assert "2 of 3 images done\nglip ground: interrupted" in capsys.readouterr().err
        done.clear()
    assert len(json.loads(Path("found.json").read_text())["images"]) == 2
    assert ["detections" in one for one in json.loads(Path("photos.json").read_text())["photos"]] == [True, True]
    done += [0, 0]
    assert main([*images, "--json", "nothing.json"]) == 130 and not Path("nothing.json").exists()


def test_an_interruption_while_it_is_written_keeps_all(model, folder, capsys, monkeypatch) -> None:
    images, calls = ["ground", "photo.jpg", "cat", "--model", model, *ANYTHING], []

    def interrupted(function):
        def call(*arguments, **keywords):
            calls.append(0)
            if len(calls) <= times:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr("glip_hf.formats.write_json", interrupted(formats.write_json))
    monkeypatch.setattr("glip_hf.cli.ground.write_json", interrupted(formats.write_json))
    for times in (1, 2):
        for output in (["--format", "coco", "--output", f"found{times}.json"], ["--json", f"images{times}.json"]):
            calls.clear()
            assert main([*images, *output]) == 130
            assert "glip ground: interrupted" in capsys.readouterr().err
            assert Path(output[-1]).exists() == (times == 1)
    assert len(json.loads(Path("images1.json").read_text())["photos"]) == 1


def test_an_image_may_come_through_a_pipe(model, folder, capsys) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(Path("photo.jpg").read_bytes()))
    writer.start()
    assert main(["ground", "pipe", "cat", "--model", model, *ANYTHING]) == 0
    writer.join()
    assert "pipe (160x120)" in capsys.readouterr().out


def test_an_image_that_the_model_fails_at_loses_itself_alone(folder, model, monkeypatch, capsys) -> None:
    detect, turns = GroundingEngine.detect, iter(range(9))

    def failing(*arguments):
        if next(turns) == 0:
            raise ValueError("the scores are NaN")
        return detect(*arguments)

    monkeypatch.setattr(GroundingEngine, "detect", failing)
    assert main(["ground", "more", "--names", "cat", "--model", model, "--json", *ANYTHING]) == 1
    first, second = json.loads(capsys.readouterr().out)["photos"]
    assert first == {"photo": "more/b.png", "error": "the scores are NaN"}
    assert second["photo"] == "more/photo.jpg" and second["detections"]


def test_an_image_that_fails_its_batch_loses_itself_alone(folder, model, monkeypatch, capsys) -> None:
    """Neither the others of its batch, nor those of another shape that still wait for theirs."""
    photo, detect = Image.open("photo.jpg"), GroundingEngine.detect
    photo.resize((120, 160)).save("more/a.png")
    Image.new("RGB", photo.size).save("more/c.png")

    def failing(engine, pixels, captions):
        if any(values.std() < 0.5 for values in pixels["pixel_values"]):
            raise ValueError("the scores are NaN")
        return detect(engine, pixels, captions)

    monkeypatch.setattr(GroundingEngine, "detect", failing)
    words = ["ground", "more", "--names", "cat", "--batch-size", "2", "--model", model, "--json", *ANYTHING]
    assert main(words) == 1
    records = {Path(record["photo"]).name: record for record in json.loads(capsys.readouterr().out)["photos"]}
    assert records.pop("c.png") == {"photo": "more/c.png", "error": "the scores are NaN"}
    assert list(records) == ["a.png", "b.png", "photo.jpg"] and all(one["detections"] for one in records.values())


def test_ground_a_caption_and_given_phrases(folder, model, capsys) -> None:
    caption = "two cats on a pink sofa"
    assert main(["ground", "photo.jpg", caption, "--model", model, "--json", *ANYTHING]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["caption"] == caption
    phrases = ["--caption", caption, "--phrases", "pink sofa"]
    assert main(["ground", "photo.jpg", *phrases, "--model", model, "--json", *ANYTHING]) == 0
    (record,) = json.loads(capsys.readouterr().out)["photos"]
    assert {found["text_label"] for found in record["detections"]} == {"pink sofa"}


def test_chunks_keep_the_labels_of_the_names(folder, model, capsys) -> None:
    names = ["cat", "sofa", "lamp", "plant", "window"]
    options = ["--chunk-size", "2", "--threshold", "0", "--max-detections", "300", "--json"]
    assert main(["ground", "photo.jpg", "--names", *names, "--model", model, *options]) == 0
    (record,) = json.loads(capsys.readouterr().out)["photos"]
    assert {found["label"] // 2 for found in record["detections"]} == {0, 1, 2}  # every caption found something
    assert all(found["text_label"] == names[found["label"]] for found in record["detections"])


def test_options_may_stand_between_images_and_names(folder, model, capsys) -> None:
    assert main(["ground", "--model", model, "photo.jpg", "cat", *ANYTHING]) == 0
    assert main(["ground", "photo.jpg", "--model", model, "cat", *ANYTHING]) == 0
    first, second = capsys.readouterr().out.split("photo.jpg")[1:]
    assert first == second


def test_a_broken_image_does_not_stop_the_others(folder, model, capsys) -> None:
    whole = PHOTO.read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_text("<html>404</html>")
    arguments = [
        "ground",
        "half.jpg",
        "page.png",
        "photo.jpg",
        "cat",
        "--model",
        model,
        "--json",
        *ANYTHING,
    ]
    assert main(arguments) == 1
    output = capsys.readouterr()
    half, page, fine = json.loads(output.out)["photos"]
    assert "half.jpg" in half["error"] and "page.png" in page["error"] and "error" not in fine
    assert len(output.err.strip().splitlines()) == 2


def test_a_tuned_model_knows_what_to_look_for(folder, model, tmp_path, capsys) -> None:
    """`glip ground` asks for the class names that fine-tuning saved; `glip info` shows them."""
    tuned = shutil.copytree(model, tmp_path / "tuned")
    config = json.loads((tuned / "processor_config.json").read_text())
    (tuned / "processor_config.json").write_text(json.dumps(config | {"class_names": ["a=b|cat", "sofa"]}))
    found = []
    for words in (["photo.jpg"], ["photo.jpg", "more"], ["photo.jpg", "dog"]):
        words = words if "more" not in words else ["more"]
        assert main(["ground", *words, "--model", str(tuned), "--json", *ANYTHING]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [document["names"] for document in found] == [["a=b|cat", "sofa"]] * 2 + [["dog"]]
    assert len(found[1]["photos"]) == 2 and found[0]["photos"][0]["detections"]
    assert main(["info", str(tuned)]) == 0
    assert "class names:          a=b|cat, sofa" in capsys.readouterr().out
    (tuned / "processor_config.json").write_text("{")
    assert main(["ground", "photo.jpg", "--model", str(tuned)]) == 1
    error = capsys.readouterr().err
    assert "processor_config.json cannot be read" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["ground", "photo.jpg"], 2, "nothing to look for"),
        (["ground", "photo.jpg", "other.jpg", "cat"], 2, "other.jpg: no such image"),
        (["ground", "photo.jpg", "cat", "--phrases", "cat"], 2, "--caption"),
        (["ground", "photo.jpg", "  "], 2, "empty class name"),
        (["ground", "photo.jpg", "more", "cat", "--save", "x.png"], 2, "2 images need a directory"),
        (["ground", "photo.jpg", "cat", "--save", "x.docx"], 2, ".docx is not a supported image format"),
        (["ground", "photo.jpg", "cat", "--save", ""], 2, "--save is empty: name a file, or a directory"),
        (["ground", "photo.jpg", "cat", "--frobnicate"], 2, "--frobnicate"),
        (["ground", "none.jpg", "cat"], 1, "none.jpg: no such file"),
        (["ground", "none/*.jpg", "cat"], 1, "no file matches"),
        (["ground", "cat", "cat"], 1, "no images in this directory"),
        (["ground", "photo.jpg", "notes.txt", "cat"], 2, "notes.txt: not an image by its name (--names takes"),
        (["ground", "photo.jpg", "cat/*", "cat"], 2, "cat/*: no file matches"),
        (["ground", "photo.jpg", "cat", "--format", "coco", "--output", "./photo.jpg"], 2, "replace the image itself"),
        (["ground", "photo.jpg", "cat", "--format", "coco", "--output", "/proc/x"], 1, "/proc/x cannot be written"),
        (["ground", "photo.jpg", "cat", "--json", "folder.json"], 2, "folder.json is a folder: name a file"),
        (["ground", "photo.jpg", "cat", "--device", "cuda:77"], 1, "--device cuda:77"),
        (["ground", "photo.jpg", "cat", "--device", "meta"], 1, "--device meta: not available"),
        (["ground", "photo.jpg", "--caption", "a cat", "--phrases", "dog"], 1, "dog"),
    ],
)
def test_errors_are_one_line(folder, model, capsys, arguments, code, message) -> None:
    (folder / "notes.txt").touch()
    (folder / "folder.json").mkdir()
    if "more" in arguments:  # a directory counts as an image only as the first word or with --names
        arguments = ["ground", "more", "--names", *arguments[3:]]
    assert main([*arguments, "--model", model]) == code
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_folders_and_files_that_are_left_out_are_told(folder, capsys) -> None:
    (folder / "more" / "a.heic").touch()
    (folder / "more" / ".hidden").touch()
    assert words("more", "cat", "dog", "more")[0] == ["more/b.png", "more/photo.jpg"]
    notes = capsys.readouterr().err.splitlines()
    assert notes == [
        "note: more: 1 file left out, not images by name (a.heic)",
        "note: more is a class name here; the folder is more/",
    ]


@pytest.mark.parametrize(
    "option",
    [["--threshold", "1.5"], ["--nms", "x"], ["--max-detections", "0"], ["--aggregation", "sum"]],
)
def test_values_out_of_range_are_wrong_usage(folder, model, capsys, option) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ground", "photo.jpg", "cat", "--model", model, *option])
    assert stop.value.code == 2 and option[0] in capsys.readouterr().err


def test_wrong_models_are_named(folder, checkpoint, capsys) -> None:
    (folder / "empty").mkdir()
    (folder / "bert").mkdir()
    (folder / "bert/config.json").write_text('{"model_type": "bert"}')
    (folder / "odd").mkdir()
    (folder / "odd/config.json").write_text('{"model_type": "glip", "d_model": 65}')
    for source, message in (
        ("./nowhere", "no such directory"),
        ("empty", "no config.json"),
        ("bert", "'bert', not a GLIP"),
        ("odd", "its config.json is not valid (ValueError: d_model=65 is not divisible"),
        (str(checkpoint), "glip convert"),
    ):
        assert main(["ground", "photo.jpg", "cat", "--model", source]) == 1
        error = capsys.readouterr().err
        assert source in error and message in error and len(error.strip().splitlines()) == 1


def test_info_of_a_directory(model, capsys) -> None:
    assert main(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    small = random_model()
    assert facts["parameters"] == sum(p.numel() for p in small.parameters())
    assert sum(facts["parameters_by_part"].values()) == facts["parameters"]
    assert facts["variant"] == "none of the released sizes"
    assert facts["config"]["d_model"] == small.config.d_model
    assert main(["info", model]) == 0
    assert f"{facts['parameters']:,}" in capsys.readouterr().out


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_dtype_that_is_fastest(native, dtype, model, monkeypatch, capsys) -> None:
    monkeypatch.setattr("glip_hf.kernels.cpu_linear.bfloat16_is_native", lambda: native)
    loaded, _ = load_model(model, "cpu", "auto")
    assert loaded.dtype == kernels.fastest_dtype() == getattr(torch, dtype)
    assert kernels.fastest_dtype("cuda") == torch.float32, "nothing has been measured there"
    assert capsys.readouterr().err == f"--dtype auto: {dtype} on this cpu\n"
    monkeypatch.setattr("glip_hf.cli.common.choose_device", lambda _: torch.device("cpu"))
    assert main(["info", model]) == 0
    assert f"dtype auto:           {dtype} on cpu\n" in capsys.readouterr().out


def test_a_prompt_table_is_a_model_on_the_command_line(folder, model, capsys) -> None:
    tuned = GlipForGrounding.from_pretrained(model)
    torch.nn.init.normal_(tuned.add_prompt_table(16))
    tuned.save_prompt_table("table")
    found = {}
    for source in (model, "table"):
        assert main(["ground", "photo.jpg", "cat", "--model", source, "--json", *ANYTHING]) == 0
        found[source] = json.loads(capsys.readouterr().out)["photos"]
    assert found[model] != found["table"]
    loaded, _ = load_model("table")
    assert torch.equal(loaded.model.prompt_table, tuned.model.prompt_table)
    assert main(["info", "table", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tuned"], facts["base"]) == ("prompt table", model)
    assert facts["bytes"] == Path("table/prompt_table.safetensors").stat().st_size
    assert main(["restore", "table", "back.pth"]) == 1
    assert "has a prompt table alone" in capsys.readouterr().err
    info = json.loads(Path("table/prompt_table.json").read_text())
    for base, message in (("", "there is no model"), ("gone/model", "Hub"), ("table", "there is no model")):
        Path("table/prompt_table.json").write_text(json.dumps(info | {"base_model": base}))
        assert main(["ground", "photo.jpg", "cat", "--model", "table"]) == 1
        error = capsys.readouterr().err
        assert message in error and "base_model of prompt_table.json" in error and error.count("\n") == 1


def test_a_model_on_the_hub_is_looked_up_twice(folder, model, monkeypatch) -> None:
    """Its configuration before its weights, so that another model is refused before gigabytes have come."""
    asked = []

    def snapshot(name, allow_patterns):
        asked.append("*.safetensors" in allow_patterns)
        return model

    monkeypatch.setattr("glip_hf.conversion.restore.snapshot_download", snapshot)
    load_model("user/glip")
    assert asked == [False, True]


def test_info_names_the_released_architecture(tmp_path, capsys) -> None:
    from glip_hf import GlipConfig

    for preset, variant in (("glip_a_tiny_o365", "GLIP-A"), ("glip_large_model", "GLIP-L")):
        GlipConfig.from_preset(preset).save_pretrained(tmp_path / preset)
        assert main(["info", str(tmp_path / preset), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["variant"].startswith(variant) and preset in facts["variant"]


def test_info_of_a_checkpoint(checkpoint, tmp_path, capsys) -> None:
    assert main(["info", str(checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(p.numel() for p in random_model().parameters())
    assert facts["weights_under"] == "model" and facts["beside_them"] == ["iteration"]
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    assert main(["info", str(tmp_path / "page.pth")]) == 1
    assert "web page" in capsys.readouterr().err


def test_convert_makes_a_model_that_grounds(checkpoint, folder, capsys) -> None:
    options = [
        "--config",
        str(checkpoint.parent / "sizes"),
        "--tokenizer",
        str(ASSETS / "vocab.txt"),
    ]
    assert main(["convert", str(checkpoint), "converted", *options]) == 0
    assert main(["ground", "photo.jpg", "cat", "--model", "converted", *ANYTHING]) == 0
    assert main(["convert", str(checkpoint), "converted", *options]) == 1, "an existing conversion is not overwritten"


def test_the_processor_of_an_exported_folder_makes_images_of_its_size(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("glip_hf.export.export_onnx", lambda _model, output, **_: output.mkdir() or output)
    words = ["export", "--model", model, "--output", str(tmp_path / "a"), "--height", "128", "--width", "160"]
    assert main(words) == 0
    processor = GlipProcessor.from_pretrained(tmp_path / "a")
    for size in ((640, 480), (100, 300), (50, 20)):
        made = processor.image_processor([Image.new("RGB", size)], return_tensors="pt")
        assert made.pixel_values.shape == (1, 3, 128, 160) and made.original_sizes.tolist() == [[*size[::-1]]]


def test_an_exported_folder_without_a_processor(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "head.onnx").touch()
    monkeypatch.setattr("glip_hf.export.OnnxGlip", lambda *_, **__: SimpleNamespace(processor=None))
    assert main(["ground", str(PHOTO), "--names", "cat", "--model", str(tmp_path)]) == 1
    assert f"{tmp_path}: no processor_config.json" in capsys.readouterr().err


def test_it_is_installed_as_a_command() -> None:
    """The package's entry point is `program`; `python -m` works wherever the package can be
    imported.
    """
    for entry in importlib.metadata.entry_points(group="console_scripts", name="glip"):
        assert entry.value == "glip_hf.cli:program"
        assert shutil.which("glip", path=str(Path(sys.executable).parent))
    done = subprocess.run([sys.executable, "-m", "glip_hf.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in ("ground", "convert", "info"))


def test_restore_is_the_way_back(checkpoint, model, tmp_path, capsys) -> None:
    back = tmp_path / "back.pth"
    assert main(["restore", model, str(back)]) == 0
    source, restored = torch.load(checkpoint)["model"], torch.load(back)["model"]
    assert source.keys() == restored.keys() and all(torch.equal(source[key], restored[key]) for key in source)
    assert main(["restore", model, str(back)]) == 1
    output = capsys.readouterr()
    assert str(back) in output.out and "--force" in output.err and "Loading" not in output.err


def test_quantised_weights_are_not_restored(tmp_path, capsys) -> None:
    fields = {"model_type": "glip", "quantization_config": {"quant_method": "torchao"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert main(["restore", str(tmp_path), str(tmp_path / "back.pth")]) == 1
    assert "has quantised weights: restore the model that they were made of" in capsys.readouterr().err


def test_the_shipped_model_is_demo(folder, capsys) -> None:
    assert main(["info", "demo"]) == 0
    assert main(["ground", str(DEMO_IMAGE), DEMO_CAPTION, "--model", "demo"]) == 0
    assert "dotted yellow cross" in capsys.readouterr().out
    (folder / "demo").mkdir()
    assert main(["info", "demo"]) == 1, "a directory of that name comes first"


def test_a_misspelt_model_is_told_at_once(folder, capsys) -> None:
    for model in ("more/glip", "glip", "/nowhere/glip"):
        assert main(["ground", "photo.jpg", "cat", "--model", model]) == 1
        assert f"{model}: no such directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["photo.jpg", "cat", "--json", "out.json"],
        ["photo.jpg", "--json", "out.json", "cat"],
        ["--json", "out.json", "photo.jpg", "cat"],
        ["photo.jpg", "--names", "cat", "--json", "out.json"],
    ],
)
def test_json_may_name_a_file(folder, model, capsys, arguments) -> None:
    assert main(["ground", *arguments, "--model", model, *ANYTHING]) == 0
    assert capsys.readouterr().out == "-> out.json\n"
    document = json.loads((folder / "out.json").read_text())
    assert document["names"] == ["cat"] and [photo["photo"] for photo in document["photos"]] == ["photo.jpg"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["photo.jpg", "cat", "out.json"], "to write JSON: --json out.json"),
        (["photo.jpg", "cat", "--json", "none/out.json"], "there is no folder none"),
        (["photo.jpg", "a.json", "b.json", "--json"], "a.json: neither an image nor a class name"),
        (["--json", "out.json"], "no image"),
        (["photo.jpg", "cat", "--json", "out.jsonl"], "--json out.jsonl: the file must be called .json"),
    ],
)
def test_a_file_of_json_is_no_class_name(folder, capsys, arguments, message) -> None:
    assert main(["ground", *arguments, "--model", "demo"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
