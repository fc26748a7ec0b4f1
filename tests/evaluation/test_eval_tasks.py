# Copyright 2026 The glip_hf authors. MIT licence.
"""Annotation files as users have them: where images are, names, prompts, sentences; and ODinW's mean."""

import json

import pytest
import yaml
from PIL import Image, ImageOps

from glip_hf.evaluation import FlickrEvaluator
from glip_hf.evaluation.odinw import ODINW13, mean_metrics
from glip_hf.evaluation.run import _request
from glip_hf.evaluation.tasks import Task, detection_task, flickr_task, odinw_sets, sentence_keys

CATEGORIES = [{"id": 3, "name": "fish"}, {"id": 1, "name": "shark"}]


def coco(**image):
    return {"images": [{"id": 9, **image}], "annotations": [], "categories": CATEGORIES}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_names_by_ascending_id(tmp_path):
    task = detection_task("coco", coco(file_name="a.jpg"), tmp_path)
    assert (task.names, task.category_ids) == (["shark", "fish"], [1, 3])
    assert task.images[0].path == str(tmp_path / "a.jpg")  # as a message would show it


def test_class_names_in_the_order_of_a_table():
    """The ids of an annotation file decide the order of a caption, and a prompt table belongs to one order."""
    task = Task("a", [], ["shark", "Big  fish"], [1, 3])
    ordered = task.ordered(["big fish", "shark"])
    assert (ordered.names, ordered.category_ids) == (["big fish", "shark"], [3, 1])
    for others in (["shark"], ["shark", "crab"], ["shark", "big fish", "crab"]):
        assert task.ordered(others) is task
    twice = Task("a", [], ["shark", "Shark"], [1, 3])
    assert twice.ordered(["shark", "shark"]) is twice


@pytest.mark.parametrize("place", ["val2017/000000000139.jpg", "000000000139.jpg"])
def test_lvis_images_by_url(tmp_path, place):
    path = touch(tmp_path / place)
    document = coco(coco_url="http://images.cocodataset.org/val2017/000000000139.jpg")
    assert detection_task("lvis", document, tmp_path).images[0].path == path


def test_file_name_with_folder(tmp_path):
    path = touch(tmp_path / "000000000139.jpg")
    assert detection_task("coco", coco(file_name="val2017/000000000139.jpg"), tmp_path).images[0].path == path


def test_what_is_missing_is_named_by_its_first_place(tmp_path):
    document = coco(file_name="7.jpg", coco_url="http://images.cocodataset.org/val2017/7.jpg")
    for name, place in (("coco", "7.jpg"), ("lvis", "val2017/7.jpg")):
        assert detection_task(name, document, tmp_path).missing_images() == [str(tmp_path / place)]
    assert detection_task("coco", coco(), tmp_path).missing_images() == [
        "image 9: it has neither a file_name nor a URL"
    ]


@pytest.mark.parametrize(
    "form", ["photos/7.jpg", "/home/me/7.jpg", "C:\\me\\7.jpg", "%37.jpg", "https://host/7.jpg?x=1"]
)
def test_names_as_tools_write_them(tmp_path, form):
    path = touch(tmp_path / "7.jpg")
    for entry in ({"file_name": form}, {"file_name": None, "coco_url": form}, {"flickr_url": form, "coco_url": None}):
        assert detection_task("coco", coco(**entry), tmp_path).images[0].path == path


def test_images_outside_the_folder(tmp_path):
    secret = touch(tmp_path / "secret.jpg")
    (tmp_path / "photos").mkdir()
    for name in ("../secret.jpg", secret):
        (problem,) = detection_task("coco", coco(file_name=name), tmp_path / "photos").missing_images()
        assert problem.startswith("image 9: the file name ") and "--allow-outside" in problem
        task = detection_task("coco", coco(file_name=name), tmp_path / "photos", allow_outside=True)
        assert task.missing_images() == []
    (problem,) = detection_task("coco", coco(file_name=5), tmp_path).missing_images()
    assert problem == "image 9: the file name 5 is not valid: give the name of the image file as text"


def test_turned_images_are_in_the_frame_of_the_annotations(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "7.jpg", exif=exif)
    for size, shown in (
        ({"width": 40, "height": 30}, (40, 30)),
        ({"width": 30, "height": 40}, (30, 40)),
        ({}, (30, 40)),
    ):
        task = detection_task("coco", coco(file_name="7.jpg", **size), tmp_path)
        assert ImageOps.exif_transpose(_request(task.images[0], task).image.load()).size == shown


def test_no_categories(tmp_path):
    with pytest.raises(ValueError, match="there are no 'categories'"):
        detection_task("coco", {"images": [], "categories": []}, tmp_path)


def record(number, caption, spans, **more):
    more = {"original_img_id": 5, "file_name": "5.jpg", **more}
    return {"id": number, "sentence_id": number, "caption": caption, "tokens_positive_eval": spans, **more}


def test_flickr_sentences_of_an_image(tmp_path):
    path = touch(tmp_path / "val" / "5.jpg")
    records = [record(1, "a dog", [[[0, 5]]]), record(0, "a cat", [[[0, 5]]]), record(2, "nothing", [])]
    task = flickr_task({"images": records}, tmp_path)
    (image,) = task.images
    assert (image.image_id, image.path) == (5, path)
    assert [(s.number, s.text, s.spans) for s in image.sentences] == [
        (0, "a cat", [[(0, 5)]]),
        (1, "a dog", [[(0, 5)]]),
    ]
    assert sentence_keys(task.images) == [(5, 0), (5, 1)]
    with pytest.raises(ValueError, match="MDETR.*entry 0 has no caption, tokens_positive_eval, file_name"):
        flickr_task({"images": [{"id": 1}]}, tmp_path)


@pytest.mark.parametrize(
    ("number", "caption", "spans"),
    [
        (0, "a cat", [[[0, 6]]]),
        (0, "a cat", [[[3, 3]]]),
        (0, "a cat", [[[0, 2, 5]]]),
        (0, "a cat", [[0, 5]]),
        (0, "a cat", [[[0, 5]], []]),
        (0, None, [[[0, 5]]]),
        ("first", "a cat", [[[0, 5]]]),
    ],
)
def test_sentences_that_are_damaged(tmp_path, number, caption, spans):
    """Told when the file is read, not when the image's turn comes."""
    with pytest.raises(ValueError, match="sentence .*tokens_positive_eval .* is not, for each phrase, a list"):
        flickr_task({"images": [record(number, caption, spans)]}, tmp_path)


def test_flickr_from_the_native_folder(flickr_case, tmp_path):
    """The questions the evaluator asks, each phrase at its place in the sentence."""
    folder = flickr_case[1]
    task, evaluator = flickr_task(folder, tmp_path, "val"), FlickrEvaluator(folder, "val")
    first = touch(tmp_path / "val" / f"{task.images[0].image_id}.jpg")
    assert flickr_task(folder, tmp_path, "val").images[0].path == first
    assert sentence_keys(task.images) == list(evaluator.truth)
    for image in task.images:
        for sentence in image.sentences:
            phrases = [phrase.text for phrase, _ in evaluator.truth[image.image_id, sentence.number]]
            assert [sentence.text[begin:end] for ((begin, end),) in sentence.spans] == phrases
    with pytest.raises(FileNotFoundError, match="train.txt"):
        flickr_task(folder, tmp_path, "train")


PROMPT = [{"prefix": " ", "name": "fish", "suffix": ""}, {"prefix": "", "name": "shark", "suffix": " in water"}]


@pytest.fixture
def odinw(tmp_path):
    """Two data sets: one with override categories and prompts, one plain."""
    for name in ("Aquarium", "pothole"):
        folder = tmp_path / "odinw" / name / "valid"
        touch(folder / "a.jpg")
        (folder / "gt.json").write_text(json.dumps(coco(file_name="a.jpg")))
        place = f"odinw/{name}/valid"
        settings = {"REGISTER": {"val": {"ann_file": f"{place}/gt.json", "img_dir": place}}, "TEST": '("val",)'}
        if name == "Aquarium":
            settings |= {"CAPTION_PROMPT": str(PROMPT), "OVERRIDE_CATEGORY": str(CATEGORIES[::-1])}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"DATASETS": settings}))
    return tmp_path


def test_odinw_prompts(odinw):
    plain, other = odinw_sets(odinw, odinw)
    assert (plain.name, plain.names, plain.category_ids) == ("Aquarium", ["shark", "fish"], [1, 3])
    prompted, other = odinw_sets(odinw, odinw, "glip")
    assert prompted.names == PROMPT
    assert other.names == ["shark", "fish"]  # no prompt in its file
    assert [one.missing_images() for one in (prompted, other)] == [[], []]


def test_prompts_that_nobody_wrote_are_told(odinw):
    with pytest.warns(UserWarning, match="no task file has caption prompts"):
        odinw_sets(odinw / "pothole.yaml", odinw, "glip")


def test_odinw_errors(odinw, tmp_path):
    with pytest.raises(ValueError, match="no split 'test' in REGISTER; it has val"):
        odinw_sets(odinw / "pothole.yaml", odinw, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no task file"):
        odinw_sets(tmp_path / "empty", odinw)
    (tmp_path / "pothole.yaml").write_text("MODEL: {}")
    with pytest.raises(ValueError, match="DATASETS.REGISTER"):
        odinw_sets(tmp_path / "pothole.yaml", odinw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"REGISTER": {"val": {"img_dir": "a"}}}, "REGISTER of 'val': .*'img_dir'.* must have ann_file"),
        ({"REGISTER": {"val": "a"}}, "REGISTER of 'val': 'a' must have ann_file and img_dir"),
        ({"CAPTION_PROMPT": str([{"prefix": "a"}] * 2)}, "CAPTION_PROMPT: entry 0 has no name, suffix"),
        ({"CAPTION_PROMPT": str(PROMPT[:1])}, "1 caption prompts for 2 categories"),
        ({"OVERRIDE_CATEGORY": str([{"id": 3}])}, "the category None with the id 3 has no name"),
        ({"TEST": []}, "no split 'test'"),
        ({"TEST": '("gone")'}, "no split 'gone' in REGISTER; it has val"),
        ({"TEST": "gone"}, "no split 'gone' in REGISTER; it has val"),
        ({"TEST": 5}, "Aquarium.yaml: TEST 5 is not a list of splits, such as"),
        ({"GENERAL_COPY": "x"}, "Aquarium.yaml: GENERAL_COPY 'x' is not an integer"),
        ({"OVERRIDE_CATEGORY": "5"}, "Aquarium.yaml: OVERRIDE_CATEGORY 5 is not a list"),
        ({"CAPTION_PROMPT": "'a'"}, "Aquarium.yaml: CAPTION_PROMPT 'a' is not a list"),
    ],
)
def test_task_files_that_are_damaged(odinw, change, message):
    settings = yaml.safe_load((odinw / "Aquarium.yaml").read_text())
    settings["DATASETS"] |= change
    (odinw / "Aquarium.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        odinw_sets(odinw / "Aquarium.yaml", odinw, "glip")


def test_task_file_that_is_not_yaml(odinw):
    (odinw / "pothole.yaml").write_text("DATASETS: [unclosed")
    with pytest.raises(ValueError, match="pothole.yaml is not valid YAML: .*line 1"):
        odinw_sets(odinw, odinw)


def test_task_files_of_one_name(odinw):
    (odinw / "pothole.yml").write_text((odinw / "pothole.yaml").read_text())
    with pytest.raises(ValueError, match="both pothole.yaml and pothole.yml: results would get the same name"):
        odinw_sets(odinw, odinw)


def test_mean_over_sets_by_hand():
    figures = mean_metrics({"a": {"AP": 0.2, "APs": -1.0}, "b": {"AP": 0.4, "APs": 0.1}})
    assert figures == pytest.approx({"AP": 0.3, "APs": 0.1, "AP/a": 0.2, "AP/b": 0.4})
    with pytest.raises(ValueError, match="no data sets"):
        mean_metrics({})


THIRTEEN = """AerialMaritimeDrone_large Aquarium_Aquarium_Combined.v2-raw-1024.coco CottontailRabbits EgoHands_generic
NorthAmericaMushrooms_North_American_Mushrooms.v1-416x416.coco Packages_Raw PascalVOC Raccoon_Raccoon.v2-raw.coco
ShellfishOpenImages_raw VehiclesOpenImages_416x416 pistols_export pothole thermalDogsAndPeople""".split()
OTHERS = """AerialMaritimeDrone_tiled AmericanSignLanguageLetters_American_Sign_Language_Letters.v1-v1.coco
BCCD_BCCD.v3-raw.coco ChessPieces_Chess_Pieces.v23-raw.coco DroneControl_Drone_Control.v3-raw.coco EgoHands_specific
HardHatWorkers_raw MaskWearing_raw MountainDewCommercial OxfordPets_by-breed OxfordPets_by-species PKLot_640
ThermalCheetah UnoCards_raw WildfireSmoke boggleBoards_416x416AutoOrient_export_ brackishUnderwater_960x540
dice_mediumColor_export openPoetryVision_512x512 plantdoc_416x416 selfdrivingCar_fixedLarge_export_
websiteScreenshots""".split()


def test_the_13_among_the_35():
    """The task files of GLIP's configs/odinw_35 (and odinw_13) by name: the mean of 13 takes those of the 13 alone."""
    sets = {name: {"AP": 0.5 if name in THIRTEEN else 0.0} for name in sorted(THIRTEEN + OTHERS)}
    assert len(sets) == 35 and len(THIRTEEN) == len(ODINW13) == 13
    assert mean_metrics(sets)["AP_odinw13"] == pytest.approx(0.5)
    assert mean_metrics(sets)["AP"] == pytest.approx(0.5 * 13 / 35)


def test_mean_over_13_among_35():
    sets = {f"{name}_v1": {"AP": 0.5} for name in ODINW13} | {"BCCD": {"AP": 0.0}}
    figures = mean_metrics(sets)
    assert figures["AP"] == pytest.approx(0.5 * 13 / 14) and figures["AP_odinw13"] == pytest.approx(0.5)
    assert "AP_odinw13" not in mean_metrics({name: {"AP": 0.5} for name in ODINW13})
