# Copyright 2026 The glip_hf authors. MIT licence.
"""Pascal VOC, YOLO and ODVG: the same samples and ground truth as the COCO version of a data set."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from glip_hf.cli import main
from glip_hf.data import build_mixture, check_data
from glip_hf.data.sources import build_source, coco_annotations, guess_file, guess_source
from glip_hf.data.sources.coco import read_annotations
from glip_hf.data.sources.voc import voc_file
from glip_hf.evaluation.coco import CocoEvaluator
from glip_hf.formats import ImageDetections, write_voc, write_yolo
from glip_hf.training.finetuning import load_tuning_data
from tests.data.original_formats import coco_content, encoded_image, save_images, to_odvg, to_voc, to_yolo, voc_xml

pytest.importorskip("datasets")


@pytest.fixture
def build(tmp_path):
    return lambda spec, **more: build_source({**spec, **more}, cache_dir=tmp_path / "cache")


def test_ground_truth_of_a_coco_source_is_that_of_its_file(coco_set, tmp_path):
    content = coco_content()
    content["categories"].append({"id": 0, "name": "__background__"})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = build_source(coco_set, cache_dir=tmp_path / "cache")
    expected, found = read_annotations(coco_set["annotations"]), coco_annotations(source)
    assert (found.boxes, found.categories, found.image_ids) == (expected.boxes, expected.categories, expected.image_ids)
    source.file = None  # as of a source that is no such file: without crowd regions and images without boxes
    from_records = [{**box, "id": 0} for box in coco_annotations(source).boxes]
    sound = {image_id for image_id in source.image_ids()}
    whole = [{**box, "id": 0} for box in expected.boxes if box["image_id"] in sound and not box["iscrowd"]]
    assert from_records == [box for box in whole if min(box["bbox"][2:]) > 1]


def test_ground_truth_of_captions_is_refused(mdetr_set, tmp_path):
    with pytest.raises(ValueError, match="final_mixed.json: a set of captions has no classes"):
        coco_annotations(build_source(mdetr_set, cache_dir=tmp_path / "cache"))


def test_formats_are_told_from_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.jsonl", "a.yaml", "a.txt", "voc/Annotations/a.xml", "set/data.yaml", "photos/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert guess_source("a.json", "photos") == {"format": "coco", "annotations": "a.json", "images": "photos"}
    assert guess_source("voc/../a.jsonl") == {"format": "odvg", "annotations": "voc/../a.jsonl", "images": "voc/.."}
    assert guess_source("a.yaml") == {"format": "yolo", "annotations": "a.yaml"}
    assert guess_source("set") == {"format": "yolo", "annotations": "set"}
    assert guess_source("voc", "photos") == {"format": "voc", "annotations": "voc", "images": "photos"}
    (tmp_path / "train.coco").write_text('\n  {"images": []}')
    assert guess_source("train.coco", "photos") == {"format": "coco", "annotations": "train.coco", "images": "photos"}
    with pytest.raises(FileNotFoundError, match="There is no 'b.json' in"):
        guess_source("b.json")
    for path, what in {"a.txt": "a file of the kind '.txt'", "photos": "a folder without XML"}.items():
        with pytest.raises(ValueError, match=rf"^{path} is {what}.* Data is a COCO file \(.json\), a YOLO data.yaml"):
            guess_source(path)


# -- one data set in every format -----------------------------------------------------------------------------------


def random_set(folder, seed, corners=100):
    """A COCO file of 6 images with boxes of `corners`ths of a pixel, some images empty: its content."""
    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(20, 300, (6, 2))]
    save_images(folder / "images", sizes)
    boxes = []
    for image in range(5):
        width, height = sizes[image]
        for _ in range(int(rng.integers(0, 5))):
            x, x2 = sorted(rng.choice(width * corners + 1, 2, replace=False) / corners)
            y, y2 = sorted(rng.choice(height * corners + 1, 2, replace=False) / corners)
            boxes.append((image, int(rng.integers(1, 4)), [x, y, round(x2 - x, 2), round(y2 - y, 2)]))
    boxes += [(4, 1, [0, 0, 10, 12]), (4, 3, [3, 0, sizes[4][0] - 3, 9])]
    names = ["cat", "dog, small", "zebra"]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, category, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return content


WRITERS = {
    "yolo": to_yolo,
    "voc": to_voc,
    "voc from 0": lambda folder, content: to_voc(folder, content, origin=0),
    "odvg": to_odvg,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_samples_and_the_metrics_of_coco(tmp_path, build, kind, seed):
    content = random_set(tmp_path, seed, corners=1 if seed == 0 else 100)
    spec = WRITERS[kind](tmp_path, content)
    options = {"drop_empty": bool(seed % 2)}
    coco = {"format": "coco", "annotations": str(tmp_path / "coco.json"), "images": str(tmp_path / "images")}
    expected, found = build(coco, **options), build(spec, **options)
    assert (found.names, found.dropped, len(found)) == (expected.names, {}, len(expected))
    for ours, theirs in zip(found, expected):
        assert (ours.image, ours.width, ours.height, ours.caption) == (theirs.image, theirs.width, theirs.height, None)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_allclose(ours.areas, theirs.areas, rtol=1e-5)
        if kind != "odvg":  # whose images have the numbers of lines
            assert ours.image_id == theirs.image_id
    truth = [coco_annotations(source) for source in (found, expected)]
    assert truth[0].names == truth[1].names and len(truth[0].images) == len(truth[1].images) == 6
    assert [box["bbox"] for box in truth[0].boxes] == [box["bbox"] for box in truth[1].boxes]
    metrics = [noisy_metrics(annotations, seed) for annotations in truth]
    assert metrics[0] == metrics[1] and 0.1 < metrics[0]["AP"] < 0.9


def noisy_metrics(annotations, seed):
    """Of the ground truth with shifted boxes as if a model had found them."""
    rng, evaluator = np.random.default_rng(seed), CocoEvaluator(annotations)
    for image_id in annotations.image_ids:
        own = [box for box in annotations.boxes if box["image_id"] == image_id]
        boxes = np.array([box["bbox"] for box in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        boxes += rng.normal(0, 3, boxes.shape)
        labels = [box["category_id"] for box in own]
        found = {"boxes": boxes, "scores": rng.random(len(boxes)), "labels": labels}
        evaluator.update([{"image_id": image_id, **found}])
    return evaluator.summarize()


# -- layouts and conventions ----------------------------------------------------------------------------------------


def yolo_set(folder, yaml, labels):
    """`data.yaml`, and images 30 x 20 with these rows: image -> rows, None for an image without a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml)
    for name, rows in labels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded_image(30, 20))
        if rows is not None:
            path = (folder / name.replace("images/", "labels/")).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rows)
    return {"format": "yolo", "annotations": str(folder / "data.yaml")}


ROW = "0 0.5 0.5 0.2 0.1\n"


@pytest.mark.parametrize(
    "splits",
    [
        "path: ..\ntrain: set/images/train\nval: set/images/val",
        "train: ../images/train\nvalid: ../images/val",  # Roboflow's: from a folder that is not there
        "train: [images/train, images/more]\nval: ..\\images\\val",
        "train: train.txt\nval: images/val",
        "path: nowhere\ntrain: images/train\nval: images/val",
    ],
)
def test_yolo_layouts(tmp_path, build, splits):
    images = {"images/train/a.png": ROW, "images/train/b.png": None, "images/val/c.png": "", "images/val/d.png": ROW}
    images |= {"images/more/e.PNG": ROW} if "more" in splits else {}
    spec = yolo_set(tmp_path / "set", f"{splits}\nnames: {{0: cat, 1: dog}}\n", images)
    (tmp_path / "set" / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    train, val = build(spec, drop_empty=False), build(spec, split="valid", drop_empty=False)
    names = [[record.image.path.rsplit("/", 1)[1] for record in source] for source in (train, val)]
    assert names == [["a.png", "b.png", *(["e.PNG"] if "more" in splits else [])], ["c.png", "d.png"]]
    assert [len(record.boxes) for record in train][:2] == [1, 0] and train.names == {1: "cat", 2: "dog"}
    np.testing.assert_array_equal(train[0].boxes, np.float32([[12, 9, 17, 10]]))
    assert train.file.splits == ["train", "val"] and train.name == "set/train"
    with pytest.raises(ValueError, match="data.yaml: there is no split 'test'; it has train, val."):
        build(spec, split="test")


def test_yolo_reads_the_training_split_wherever_it_stands_in_the_file(tmp_path, build):
    """Tools that write YAML sort its keys: `test` comes first."""
    images = {"images/train/a.png": ROW, "images/test/b.png": ROW}
    spec = yolo_set(tmp_path / "set", "names: [cat]\ntest: images/test\ntrain: images/train\n", images)
    assert build(spec).name == "set/train"


def test_yolo_outlines_keypoints_and_labels_beside_the_images(tmp_path, build, caplog):
    outline = "1 0.1 0.1 0.4 0.1 0.4 0.6 0.2 0.5\n"
    spec = yolo_set(tmp_path / "a", "train: photos\nnames: [cat, dog]", {"photos/1.png": ROW + outline})
    record = build(spec)[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[12, 9, 17, 10], [3, 2, 11, 11]]))
    assert record.labels.tolist() == [1, 2] and "1 row with an outline: the box around it is used" in caplog.text
    yaml = "train: images\nnames: [cat]\nkpt_shape: [2, 3]"
    spec = yolo_set(tmp_path / "b", yaml, {"images/1.png": "0 0.5 0.5 0.2 0.1 0.4 0.4 2 0 0 0\n"})
    np.testing.assert_array_equal(build(spec)[0].boxes, np.float32([[12, 9, 17, 10]]))


def test_yolo_damage_is_named_and_left_out(tmp_path, build, caplog):
    rows = ROW + "7 0.5 0.5 0.2 0.1\n" + "0 12 8 6 2\n" + "0 0.5 0.5 0.2\n" + "cat 0.5 0.5 0.2 0.1\n" + ROW
    spec = yolo_set(tmp_path / "set", "train: images\nnames: [cat, dog]", {"images/1.png": rows})
    (tmp_path / "set" / "labels" / "2.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "set" / "images" / "2.png").write_bytes(encoded_image(30, 20))
    source = build(spec)
    assert len(source) == 1 and len(source[0].boxes) == 1
    assert source.dropped == {"unknown_category": 1, "malformed": 3, "unreadable": 1, "duplicate_annotation": 1}
    label = tmp_path / "set" / "labels" / "1.txt"
    beyond = "class 7 is not among the 2 names of data.yaml (0 to 1): correct the row or add the name"
    assert f"data.yaml: {label}, line 2: {beyond}" in caplog.text
    found = {problem.where: problem.detail for problem in check_data(spec).problems}
    assert "in pixels? YOLO's are fractions" in found[f"{label}, line 3"]
    assert found[f"{label}, line 4"].startswith("4 values: a row is `class x y width height` or")
    assert found[f"{label}, line 5"].startswith("the class 'cat' is not an integer")
    with pytest.raises(ValueError, match="class 7 is not among the 2 names"):
        build(spec, strict=True)
    label.unlink()
    with pytest.raises(ValueError, match="1 unreadable .*2.txt: it is not a text file of YOLO"):
        build(spec)
    (label.parent / "2.txt").unlink()
    with pytest.raises(ValueError, match="none of 2 images has a label file; looked for .*/labels/1.txt and"):
        build(spec)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat]", "a YOLO data file has 'names' and 'train', 'val' or 'test'"),
        ("train: images\nnames: [cat", "data.yaml is not valid YAML: while parsing"),
        ("train: images", "'names' None is neither a list of class names nor a dictionary by number"),
        ("train: images\nnames: [cat]\nnc: 2", "nc is 2, but there are 1 names: correct one"),
        ("train: images\nnames: [yes, no]", "YAML reads a class name as True: write yes, no, on, off in quotes"),
        ("train: photos\nnames: [cat]", "there is no 'photos' of 'train'; looked for "),
        ("train: empty\nnames: [cat]", "there is no image in "),
        ("train: images/1.png\nnames: [cat]", "1.png is neither a folder of images nor a text file that lists some"),
        ("train: images\ntrain: empty\nnames: [cat]", "it has 'train' twice in one section: leave one"),
        ("train: images\nnames: {0: cat, '0': dog}", "it has '0' twice in one section: leave one"),
    ],
)
def test_yolo_files_that_are_none(tmp_path, build, yaml, message):
    spec = yolo_set(tmp_path / "set", yaml, {"images/1.png": ROW})
    (tmp_path / "set" / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        build(spec)
    assert "data.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_label_files_without_an_image_are_told(tmp_path, build):
    """An image may have been deleted, or have a suffix that is not read."""
    spec = yolo_set(tmp_path / "set", "train: images\nnames: [cat]", {"images/1.png": ROW, "images/2.png": ROW})
    (tmp_path / "set" / "images" / "1.png").rename(tmp_path / "set" / "images" / "1.jfif")
    (tmp_path / "set" / "labels" / "classes.txt").write_text("cat\n")
    assert len(build(spec)) == 2 and build(spec).tally.notes == []
    (tmp_path / "set" / "images" / "2.png").rename(tmp_path / "set" / "images" / "2.heic")
    source, label = build(spec), tmp_path / "set" / "labels" / "2.txt"
    assert len(source) == 1
    told = f"1 label file without an image of that name (the first: {label}): their boxes are not read."
    assert source.tally.notes == [told]


def test_lists_of_yolo_stay_in_their_folder(tmp_path, build):
    spec = yolo_set(tmp_path / "set", "train: train.txt\nnames: [cat]", {"images/1.png": ROW})
    secret = tmp_path / "images" / "secret.png"
    secret.parent.mkdir()
    secret.write_bytes(encoded_image(30, 20))
    (tmp_path / "set" / "train.txt").write_text(f"images/1.png\n{secret}\n")
    with pytest.raises(ValueError, match="secret.png' leads out of the folder .*--allow-outside"):
        build(spec)
    assert len(build(spec, allow_outside=True, drop_empty=False)) == 2


def test_a_yolo_conversion_is_made_anew_when_labels_or_images_change(tmp_path, build):
    spec = yolo_set(tmp_path / "set", "train: images\nnames: [cat]", {"images/1.png": ROW, "images/2.png": None})
    assert len(build(spec)) == 1
    (tmp_path / "set" / "labels" / "2.txt").write_text(ROW)
    assert len(build(spec)) == 2
    (tmp_path / "set" / "images" / "1.png").write_bytes(encoded_image(60, 200, (1, 2, 3)))
    assert build(spec)[0].width == 60


IMAGE = {"file_name": "a.png", "width": 30, "height": 20}


def test_voc_folders_of_other_tools(tmp_path, build, caplog):
    """Images beside the XML files, a folder for each split; names and origin are those of all splits."""
    for split, objects in {"train": [("cat", 3, 2, 12, 9, "")], "valid": [("dog", 0, 2, 12, 9, "")]}.items():
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / f"{split}.xml").write_text(voc_xml(IMAGE, objects))
        (tmp_path / "set" / split / "a.png").write_bytes(encoded_image(30, 20))
    spec = {"format": "voc", "annotations": str(tmp_path / "set")}
    train, val = build(spec), build(spec, split="val")
    assert (train.name, val.name, train.names, val.names) == ("set/train", "set/val", *[{1: "cat", 2: "dog"}] * 2)
    np.testing.assert_array_equal(train[0].boxes, np.float32([[3, 2, 11, 8]]))
    assert val[0].labels.tolist() == [2] and val[0].image.path == str(tmp_path / "set" / "valid" / "a.png")
    assert "count from 0, as valid/valid.xml has one" in caplog.text
    np.testing.assert_array_equal(build(spec, one_based=True)[0].boxes, np.float32([[2, 1, 11, 8]]))
    spec["annotations"] = str(tmp_path / "set" / "valid")  # the folder of a split: what all have counts here, too
    named = build(spec, class_names=["dog", "cat"])
    assert (named.names, named[0].labels.tolist(), named.name) == ({1: "dog", 2: "cat"}, [1], "set/val")
    spec["annotations"] = str(tmp_path / "set")
    with pytest.raises(ValueError, match=r"set: there is no split 'test'; it has \['train', 'val'\]"):
        build(spec, split="test")


def test_the_folder_of_a_split_stands_for_that_split_alone(tmp_path, build):
    """Also where the other splits beside it would be preferred (`val` before `test` in evaluation)."""
    for split in ("train", "valid", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "a.xml").write_text(voc_xml(IMAGE, [(split, 3, 2, 12, 9, "")]))
    for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
        file, spec = guess_file(tmp_path / "set" / split, splits=["train"] if split == "train" else ["val", "test"])
        assert (file.name, file.splits, "split" in spec) == (f"set/{name}", [], False)
        assert voc_file(tmp_path / "set" / split, split=split).name == f"set/{name}"
    assert guess_file(tmp_path / "set", splits=["val", "test"])[0].name == "set/val"


def test_voc_lists_name_images_with_spaces_and_marks_of_a_class(tmp_path, build):
    for name in ("a photo", "b", "b 1"):
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(
            voc_xml(IMAGE, [("cat", 3, 2, 12, 9, "")], True, f"{name}.png")
        )
        (tmp_path / f"{name}.png").write_bytes(encoded_image(30, 20))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    lists = {"train": "a photo\r\nb 1\r\n", "cat_val": "a photo  1\nb -1\n", "files": "JPEGImages/b.png\na photo.png\n"}
    for split, lines in lists.items():
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    spec = {"format": "voc", "annotations": str(tmp_path), "images": str(tmp_path)}
    found = {split: [Path(record.image.path).stem for record in build(spec, split=split)] for split in lists}
    assert found == {"train": ["a photo", "b 1"], "cat_val": ["a photo", "b"], "files": ["b", "a photo"]}
    (tmp_path / "kit").mkdir()
    (tmp_path / "ImageSets").rename(tmp_path / "kit" / "ImageSets")
    (tmp_path / "Annotations").rename(tmp_path / "kit" / "Annotations")
    with pytest.raises(ValueError, match="has no annotations of its own: give one of .*kit"):
        build({"format": "voc", "annotations": str(tmp_path)})


def test_images_of_a_test_list_are_not_trained_on(tmp_path, monkeypatch):
    """Of VOC's own lists `trainval`, where there is no `train`; it has the images of `val` as well."""
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in "abcd":
        (tmp_path / f"{name}.xml").write_text(
            voc_xml(IMAGE, [("cat", 1, 1, 12, 9, "")]).replace("a.png", f"{name}.png")
        )
        (tmp_path / f"{name}.png").write_bytes(encoded_image(30, 20))
    for split, lines in {"trainval": "a\nb\nc\n", "val": "c\n", "test": "d\n"}.items():
        (lists / f"{split}.txt").write_text(lines)
    data = load_tuning_data(tmp_path)
    used = [Path(record.image.path).stem for source in (data.train, data.validation) for record in source]
    assert sorted(used) == ["a", "b", "c"]


def test_options_of_voc_are_lists_and_flags(tmp_path, build):
    spec = to_voc(tmp_path, coco_content())
    for option, message in (
        ({"class_names": "cat"}, "class_names 'cat' is not a list of class names, such as [cat, dog]"),
        ({"one_based": "yes"}, "one_based='yes' must be true or false"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(spec, **option)


def test_voc_damage_is_named_and_left_out(tmp_path, build, caplog):
    files = {
        "no_size": voc_xml(IMAGE, [("cat", 1, 1, 12, 9, "<difficult>True</difficult>")], size=False),
        "box": voc_xml(IMAGE, [("cat", 1, "x", 12, 9, ""), ("zebra", 1, 1, 5, 5, ""), ("cat", 9, 9, 3, 3, "")]),
        "bomb": '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>',
        "other": "<html></html>",
        "broken": "<annotation><object>",
        "coded": '<?xml version="1.0" encoding="none"?><annotation/>',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.xml").write_text(text.replace("a.png", f"{name}.png"))
        (tmp_path / f"{name}.png").write_bytes(encoded_image(30, 20))
    (tmp_path / "again.xml").write_text(files["no_size"].replace("a.png", "no_size.png"))
    spec = {"format": "voc", "annotations": str(tmp_path), "class_names": ["cat"]}
    source = build(spec)
    assert [record.image.path for record in source] == [str(tmp_path / "no_size.png")]
    assert (source[0].width, source[0].height, len(source[0].boxes)) == (30, 20, 1)
    assert source.dropped == {
        "unreadable": 4,
        "malformed": 1,
        "unknown_category": 1,
        "empty_box": 1,
        "duplicate_image": 1,
    }
    size = "1 file without a valid <size> (the first: again.xml): it is read from the image; write <size> with"
    assert size in caplog.text and "1 object marked difficult: trained on, ignored in evaluation" in caplog.text
    assert [box["iscrowd"] for box in coco_annotations(source).boxes] == [1]
    found = {problem.where: problem.detail for problem in check_data(spec).problems}
    assert found["bomb.xml"] == "it has a document type (<!DOCTYPE>), which is not read: remove it"
    assert found["other.xml"] == "it is <html>, not VOC's <annotation>"
    assert found["broken.xml"].startswith("it is not XML: no element found")
    assert found["coded.xml"] == "it is not XML: unknown encoding: none"
    assert found["box.xml, object 1"] == "its <bndbox> has ['1', 'x', '12', '9'] as xmin, ymin, xmax, ymax"
    assert found["annotation 3 of image 'box.png'"] == "box [8.0, 8.0, -5.0, -5.0] in 30 x 20"
    assert found["box.xml, object 2"] == "'zebra' is not among the 1 class names"
    with pytest.raises(ValueError, match="no_size.xml is a file: give the folder of the XML files"):
        build({**spec, "annotations": str(tmp_path / "no_size.xml")})
    (tmp_path / "alone").mkdir()
    (tmp_path / "other.xml").rename(tmp_path / "alone" / "other.xml")
    with pytest.raises(ValueError, match="no 'categories'.* Left out: alone: other.xml: it is <html>"):
        build({"format": "voc", "annotations": str(tmp_path / "alone")})


def test_voc_that_was_written_is_read_again(tmp_path, build):
    boxes = np.array([[3.0, 2, 12, 9], [0, 0, 30, 20]])
    found = {"boxes": boxes, "scores": np.ones(2), "text_labels": ["dog", "cat"]}
    write_voc(tmp_path / "voc", [ImageDetections("deep/a.png", 30, 20, found)], ["dog", "cat"])
    save_images(tmp_path / "photos" / "deep", [(30, 20)])
    (tmp_path / "photos" / "deep" / "0.png").rename(tmp_path / "photos" / "deep" / "a.png")
    spec = guess_source(tmp_path / "voc", tmp_path / "photos")
    record = build(spec)[0]
    np.testing.assert_array_equal(record.boxes, boxes - [0, 0, 1, 1])
    assert [record.names[label] for label in record.labels.tolist()] == ["dog", "cat"]


def test_yolo_that_was_written_is_read_again(tmp_path, build):
    boxes = np.array([[3.25, 2, 12, 9], [0, 0, 30, 20]])
    found = {"boxes": boxes, "scores": np.ones(2), "text_labels": ["dog", "cat"]}
    write_yolo(tmp_path / "yolo", [ImageDetections("0.png", 30, 20, found)], ["dog", "cat"])
    save_images(tmp_path / "yolo" / "images", [(30, 20)])
    record = build(guess_source(tmp_path / "yolo"))[0]
    np.testing.assert_array_equal(record.boxes, np.float32(boxes - [0, 0, 1, 1]))


# -- ODVG -----------------------------------------------------------------------------------------------------------


def odvg_set(folder, *rows):
    save_images(folder, [(30, 20)] * len(rows))
    lines = [json.dumps({"filename": f"{n}.png", "width": 30, "height": 20} | row) for n, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return {"format": "odvg", "annotations": str(folder / "rows.jsonl"), "images": str(folder)}


def instance(label, category=None, box=(3, 2, 12, 9)):
    return {"bbox": list(box), "label": label} | ({"category": category} if category else {})


BOXES = [(3, 2, 12, 9), (15, 2, 20, 9)]


def test_odvg_labels(tmp_path, build, caplog):
    rows = [{"detection": {"instances": [instance(7, "cat"), instance(2, "dog", (0, 0, 5, 5))]}}, {"detection": {}}]
    spec = odvg_set(tmp_path, *rows)
    source = build(spec, drop_empty=False)
    assert (source.names, source.category_ids, [len(record.boxes) for record in source]) == (
        {1: "dog", 2: "cat"}, {1: 2, 2: 7}, [2, 0],
    )  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps({"7": "kitten", "0": "bird"}))
    mapped = build(spec, label_map=str(tmp_path / "labels.json"))
    assert (mapped.names, mapped[0].labels.tolist()) == ({1: "bird", 2: "kitten"}, [2])
    assert mapped.dropped == {"unknown_category": 1}
    assert "line 1, instance 1: the label 2 is not among the 2 of label_map" in caplog.text
    assert "1 object of another category than label_map has for the label (the first: line 1" in caplog.text
    spec = odvg_set(tmp_path, rows[0], {"detection": {"instances": [instance(7, "horse")]}})
    with pytest.raises(ValueError, match="line 2, instance 0: the label 7 is 'horse' here and 'cat' before"):
        build(spec)


def test_odvg_boxes_of_text_are_corners_too(tmp_path, build):
    boxes = [["3", "2", "12", "9"], "[3, 2, 12, 9]", [3, 2, 12, 9]]
    rows = [{"detection": {"instances": [instance(0, "cat", ()) | {"bbox": box}]}} for box in boxes]
    for record in build(odvg_set(tmp_path, *rows)):
        np.testing.assert_array_equal(record.boxes, np.float32([[3, 2, 11, 8]]))


def test_odvg_without_class_names(tmp_path, build):
    spec = odvg_set(tmp_path, {"detection": {"instances": [instance(0)]}})
    with pytest.raises(ValueError, match="rows.jsonl: line 1, instance 0 has no category: put label_map.json beside"):
        build(spec)


def test_images_of_one_file_are_told(tmp_path, build, caplog):
    """Each would be trained to see background where the other has a box."""
    rows = [{"detection": {"instances": [instance(0, "cat", box)]}, "filename": "0.png"} for box in BOXES]
    build(odvg_set(tmp_path, *rows))
    assert f"1 image of the same file as another (2 times '{tmp_path / '0.png'}')" in caplog.text
    assert "Give all boxes of a file one image id" in caplog.text


def test_odvg_captions(tmp_path, build):
    caption = "A cat next to cats, and the sofa"
    regions = [
        {"bbox": [3, 2, 12, 9], "phrase": "cats"},
        {"bbox": [[0, 0, 5, 5], [1, 1, 9, 9]], "phrase": ["A cat", "the sofa"]},
        {"bbox": [3, 3, 9, 9], "phrase": "anything", "tokens_positive": [[28, 32]]},
        {"bbox": [3, 3, 9, 9], "phrase": "dog"},
    ]
    other = {"detection": {"instances": [instance(1, "cat")]}}
    spec = odvg_set(tmp_path, {"grounding": {"caption": caption, "regions": regions}}, other)
    source = build(spec)
    assert (len(source), source.names, source.captions, source[0].caption) == (1, {}, "given", caption)
    np.testing.assert_array_equal(
        source[0].boxes, np.float32([[3, 2, 11, 8], [0, 0, 4, 4], [1, 1, 8, 8], [3, 3, 8, 8]])
    )
    assert source[0].spans == [[(14, 18)], [(0, 5), (24, 32)], [(0, 5), (24, 32)], [(28, 32)]]
    found = {problem.where: problem.detail for problem in check_data(spec).problems}
    assert found["line 1, region 3"].startswith("the phrase 'dog' is not in the caption 'A cat next")
    assert found["line 2"] == "it is not a grounding row as the first: a file has either"


def test_odvg_damage_is_named_and_left_out(tmp_path, build):
    spec = odvg_set(tmp_path, {"detection": {"instances": [instance(0, "cat"), instance(0, "cat", (9, 9, 3, 3)), 5]}})
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('\n{"filename": "0.png"\n[1]\n' + "[" * 10**5)
    source = build(spec)
    assert len(source[0].boxes) == 1 and source.dropped == {"malformed": 1, "unreadable": 3, "empty_box": 1}
    (tmp_path / "rows.jsonl").write_text('{"images": []}\n')
    with pytest.raises(ValueError, match="rows.jsonl: no row has 'detection' or 'grounding'"):
        build(spec)


def test_a_mixture_of_formats(tmp_path):
    yolo = yolo_set(tmp_path / "set", "train: images\nnames: [cat]", {"images/1.png": ROW})
    region = {"bbox": [3, 2, 12, 9], "phrase": "a cat"}
    odvg = odvg_set(tmp_path / "rows", {"grounding": {"caption": "a cat", "regions": [region]}})
    specs = [{**yolo, "annotations": "set/data.yaml"}, {**odvg, "annotations": "rows/rows.jsonl", "images": "rows"}]
    mixture = build_mixture(specs, tmp_path, tmp_path / "cache")
    assert len(mixture) == 2 and [len(source) for source in mixture.sources] == [1, 1]
    assert [source.captions for source in mixture.sources] == ["all", "given"]


def test_xml_of_any_depth_and_voc_without_objects(tmp_path, build):
    deep = "<a>" * 50_000 + "</a>" * 50_000
    (tmp_path / "0.xml").write_text(f"<annotation><filename>0.png</filename>{deep}</annotation>")
    save_images(tmp_path, [(30, 20)])
    with pytest.raises(ValueError, match="there are no 'categories'"):
        build(guess_source(tmp_path), drop_empty=False)
    assert len(build(guess_source(tmp_path), class_names=["cat"], drop_empty=False)) == 1


def test_every_format_is_checked_from_the_command_line(tmp_path, capsys):
    yolo_set(tmp_path / "set", "train: images\nnames: [cat]", {"images/1.png": ROW + "3 0.5 0.5 0.1 0.1\n"})
    assert main(["check-data", str(tmp_path / "set" / "data.yaml")]) == 0
    assert "1 image, 1 annotation" in (out := capsys.readouterr().out) and "line 2: class 3 is not among the 1" in out
    assert main(["check-data", str(tmp_path / "set")]) == 0
    assert main(["check-data", str(tmp_path / "set" / "images" / "1.png")]) == 2
    assert "Data is a COCO file (.json), a YOLO data.yaml" in capsys.readouterr().err
