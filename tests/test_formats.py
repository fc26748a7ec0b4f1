# Copyright 2026 The glip_hf authors. MIT licence.
"""Every format is written and read back by its own tool, with equal boxes."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from glip_hf.cli import build_parser, main
from glip_hf.cli.ground import read_format
from glip_hf.data.check import check_data
from glip_hf.data.sources import read_coco
from glip_hf.demo import DEMO_IMAGE
from glip_hf.formats import FOLDERS, FORMATS, ImageDetections, check_output, detection_records, encode_mask, write_coco

NAMES = ["yellow cross", "fish", "naïve “café” \\ : #"]
SIZE = (64, 48)


def found(*rows: tuple[float, int, list[float]], **more: object) -> dict[str, object]:
    """Detections of (score, label, box)."""
    labels = [label for _, label, _ in rows]
    return {
        "scores": torch.tensor([score for score, _, _ in rows]),
        "boxes": torch.tensor([box for _, _, box in rows]).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "text_labels": [NAMES[label] for label in labels],
        **more,
    }


def images() -> list[ImageDetections]:
    """Zero detections first, then some in a folder of images."""
    some = found((0.9, 2, [1.25, 2.5, 30.75, 40.125]), (0.5, 0, [0.0, 0.0, 63.0, 47.0]), (0.4, 2, [5, 5, 5.2, 5.3]))
    return [ImageDetections("none.png", *SIZE, found()), ImageDetections("sub/some.jpg", *SIZE, some)]


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("none.png", "sub/some.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_coco_is_read_by_pycocotools_check_data_and_training(photos, tmp_path) -> None:
    from pycocotools.coco import COCO

    write_coco(tmp_path / "coco.json", iter(images()), NAMES)
    coco = COCO(tmp_path / "coco.json")
    assert [coco.cats[number]["name"] for number in (1, 2, 3)] == NAMES
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["none.png", "sub/some.jpg"]
    entries, expected = coco.loadAnns(coco.getAnnIds([2])), images()[1].detections
    assert not coco.getAnnIds([1]) and [entry["category_id"] for entry in entries] == [3, 1, 3]
    torch.testing.assert_close(torch.tensor([entry["score"] for entry in entries]), expected["scores"])
    boxes = torch.tensor([entry["bbox"] for entry in entries])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-4, rtol=0)

    spec = {"annotations": str(tmp_path / "coco.json"), "images": str(photos)}
    report = check_data([{"format": "coco", **spec}])
    assert report.ok and not report.refusal and not report.problems
    source = read_coco(**spec, drop_empty=False, cache_dir=tmp_path / "cache")
    records = [source[row] for row in range(len(source))]
    assert [len(record.boxes) for record in records] == [0, 2]
    both_corners_inside = expected["boxes"][:2] - torch.tensor([0, 0, 1, 1])  # how GLIP's readers take COCO's widths
    torch.testing.assert_close(torch.as_tensor(records[1].boxes), both_corners_inside, atol=1e-4, rtol=0)


def test_yolo_and_voc_are_read_by_supervision(photos, tmp_path) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed (make adapters): it is not tested")
    FORMATS["yolo"](tmp_path / "yolo", images(), NAMES)
    FORMATS["voc"](tmp_path / "voc", images(), NAMES)
    (tmp_path / "yolo/images").mkdir()
    for image in images():  # supervision looks into no folder of a folder
        (photos / image.file_name).rename(tmp_path / "yolo/images" / Path(image.file_name).name)
    for written in (tmp_path / "yolo/labels", tmp_path / "voc"):
        for path in (written / "sub").iterdir():
            path.rename(written / path.name)
    (none, some), read = (image.detections for image in images()), sv.DetectionDataset
    for dataset, tolerance in (
        (read.from_yolo(tmp_path / "yolo/images", tmp_path / "yolo/labels", tmp_path / "yolo/data.yaml"), 1e-4),
        (read.from_pascal_voc(tmp_path / "yolo/images", tmp_path / "voc"), 1.0),  # whole pixels
    ):
        detections = {Path(path).name: detections for path, _, detections in dataset}
        assert len(detections["none.png"]) == len(none["boxes"]) == 0
        assert [dataset.classes[label] for label in detections["some.jpg"].class_id] == some["text_labels"]
        torch.testing.assert_close(torch.tensor(detections["some.jpg"].xyxy), some["boxes"], atol=tolerance, rtol=0)


def test_yolo_and_voc_files(tmp_path) -> None:
    FORMATS["yolo"](tmp_path / "yolo", images(), NAMES)
    assert (tmp_path / "yolo/labels/none.txt").read_text() == ""
    lines = (tmp_path / "yolo/labels/sub/some.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [2, 0, 2]
    assert lines[1] == "0 0.4921875 0.4895833 0.9843750 0.9791667"
    FORMATS["voc"](tmp_path / "voc", images(), NAMES)
    assert len(ElementTree.parse(tmp_path / "voc/none.xml").findall("object")) == 0
    tree = ElementTree.parse(tmp_path / "voc/sub/some.xml")
    assert tree.findtext("filename") == "some.jpg" and tree.findtext("size/height") == "48"
    assert [entry.findtext("name") for entry in tree.findall("object")] == [NAMES[2], NAMES[0], NAMES[2]]
    corners = [[int(side.text) for side in entry.find("bndbox")] for entry in tree.findall("object")]
    assert corners == [[2, 3, 31, 40], [1, 1, 63, 47], [6, 6, 6, 6]]


def test_label_studio(tmp_path) -> None:
    FORMATS["label-studio"](tmp_path / "tasks.json", images(), NAMES)
    none, some = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert none == {"data": {"image": "none.png"}, "predictions": [{"model_version": "glip", "result": []}]}
    regions, expected = some["predictions"][0]["result"], images()[1].detections
    assert [region["value"]["rectanglelabels"] for region in regions] == [[name] for name in expected["text_labels"]]
    values = [[region["value"][side] / 100 for side in ("x", "y", "width", "height")] for region in regions]
    boxes = torch.tensor(values) * torch.tensor(SIZE * 2)
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected["boxes"])
    assert {(region["original_width"], region["original_height"]) for region in regions} == {SIZE}


def test_csv_and_jsonl(tmp_path) -> None:
    for name in ("csv", "jsonl"):
        FORMATS[name](tmp_path / name, images(), NAMES)
    expected = [*map(list, images()[1].detections["boxes"].tolist())]
    with open(tmp_path / "csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["file_name", "width", "height", "text_label", "label", "score"]
    assert [row["text_label"] for row in rows] == images()[1].detections["text_labels"]
    found = [[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in rows]
    np.testing.assert_allclose(found, expected, atol=0.005001)
    none, some = map(json.loads, (tmp_path / "jsonl").read_text(encoding="utf-8").splitlines())
    assert none == {"file_name": "none.png", "width": 64, "height": 48, "detections": []}
    np.testing.assert_allclose([entry["box"] for entry in some["detections"]], expected, atol=0.005001)


def test_cells_of_a_csv_file_are_no_formulas(tmp_path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "a=1"]
    detections = {"boxes": torch.ones(5, 4), "scores": torch.ones(5), "text_labels": names}
    FORMATS["csv"](tmp_path / "a.csv", [ImageDetections("=1.png", *SIZE, detections)], names)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text_label"] for row in rows] == [*(f"'{name}" for name in names[:4]), "a=1"]
    assert {row["file_name"] for row in rows} == {"'=1.png"}


def test_voc_boxes_at_the_far_corner_stay_in_the_image(tmp_path) -> None:
    image = ImageDetections("a.png", 4, 3, found((0.9, 0, [3.7, 2.6, 3.9, 2.9])))
    FORMATS["voc"](tmp_path / "voc", [image], NAMES)
    box = ElementTree.parse(tmp_path / "voc/a.xml").find("object/bndbox")
    assert [int(side.text) for side in box] == [4, 3, 4, 3]


def test_a_csv_file_has_the_columns_of_all_images(tmp_path) -> None:
    # An image in tiles has no locations, a small one after it has; frames have track_ids, an image before them has not.
    row = (0.9, 2, [1, 2, 30, 40])
    mixed = [found(row), found(row, locations=torch.tensor([5])), found(row, track_ids=torch.tensor([7]))]
    FORMATS["csv"](tmp_path / "a.csv", [ImageDetections(f"{n}.png", *SIZE, one) for n, one in enumerate(mixed)], NAMES)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["location"], row["track_id"]) for row in rows] == [("", ""), ("5", ""), ("", "7")]


def test_masks_and_all_other_entries_stay_with_their_box(tmp_path) -> None:
    from pycocotools.coco import COCO

    masks = torch.rand(2, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[1] = False
    masks[0, 0, 0] = True
    more = {"masks": masks, "track_ids": torch.tensor([7, 3]), "features": torch.eye(2)}
    image = ImageDetections("a.png", *SIZE, found((0.9, 2, [1, 2, 30, 40]), (0.5, 0, [0, 0, 63, 47]), **more))
    write_coco(tmp_path / "coco.json", [image], NAMES)
    coco = COCO(tmp_path / "coco.json")
    first, second = coco.loadAnns([1, 2])
    for entry, mask in ((first, masks[0]), (second, masks[1])):
        assert (coco.annToMask(entry) == mask.numpy()).all() and entry["area"] == mask.sum()
    assert (first["track_id"], second["track_id"]) == (7, 3) and second["features"] == [0, 1]
    FORMATS["csv"](tmp_path / "a.csv", [image], NAMES)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["track_id"] for row in rows] == ["7", "3"] and json.loads(rows[0]["mask"]) == encode_mask(masks[0])
    assert detection_records(image.detections)[1]["mask"] == {"size": [48, 64], "counts": [48 * 64]}


def test_yolo_has_outlines_of_masks(tmp_path) -> None:
    """Of a mask's largest part; the box where that is no more than a pixel."""
    masks = torch.zeros(5, 48, 64, dtype=torch.bool)
    masks[0, 3:20, 0:30] = True
    masks[1] = torch.rand(48, 64, generator=torch.Generator().manual_seed(0)) > 0.3  # ragged, up to the border
    masks[2, 5, 7:30] = masks[3, 9, 9] = True
    rows = [(0.9, 1, [10, 10, 30, 40])] * len(masks)
    FORMATS["yolo"](tmp_path / "yolo", [ImageDetections("a.png", *SIZE, found(*rows, masks=masks))], NAMES)
    lines = [line.split() for line in (tmp_path / "yolo/labels/a.txt").read_text().splitlines()]
    polygons = [np.array(line[1:], dtype=float).reshape(-1, 2) * SIZE for line in lines]
    assert {line[0] for line in lines} == {"1"} and min(map(len, polygons)) >= 3
    for polygon in polygons[3:]:
        assert polygon.round(3).tolist() == [[10, 10], [30, 10], [30, 40], [10, 40]]
    corners = [[polygon.min(0).round(3).tolist(), polygon.max(0).round(3).tolist()] for polygon in polygons]
    assert corners[0] == [[0, 3], [29, 19]] and corners[2] == [[7, 5], [29, 5]]


def test_outlines_are_read_by_supervision(tmp_path) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed (make adapters): it is not tested")
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 3:20, 0:30] = True
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    masks[1] = (y - 24) ** 2 + (x - 30) ** 2 < 15**2
    some = found((0.9, 0, [0.0, 3, 29, 19]), (0.8, 1, [16, 10, 44, 38]), masks=masks.clone())
    some["masks"][1, 0, 0] = True  # a smaller part
    FORMATS["yolo"](tmp_path / "yolo", [ImageDetections("a.png", *SIZE, some)], NAMES)
    (tmp_path / "yolo/images").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "yolo/images/a.png")
    paths = (tmp_path / "yolo" / name for name in ("images", "labels", "data.yaml"))
    ((_, _, read),) = sv.DetectionDataset.from_yolo(*map(str, paths))
    assert (read.mask == masks.numpy()).all() and read.class_id.tolist() == [0, 1]
    torch.testing.assert_close(torch.tensor(read.xyxy), some["boxes"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_no_image_and_broken_detections(name, tmp_path) -> None:
    FORMATS[name](tmp_path / "empty", [], [])
    assert (tmp_path / "empty").is_dir() == (name in FOLDERS)
    row, output = (0.5, 1, [0, 0, 9, 9]), tmp_path / "broken"
    with pytest.raises(ValueError, match="1 boxes, but 2 track_ids"):
        FORMATS[name](output, [ImageDetections("a.png", *SIZE, found(row, track_ids=[1, 2]))], NAMES)
    with pytest.raises(ValueError, match="no text_labels"):
        FORMATS[name](output, [ImageDetections("a.png", *SIZE, {"boxes": [], "scores": []})], NAMES)
    if name not in ("csv", "jsonl"):  # these have no list of class names
        with pytest.raises(ValueError, match="'fish' is not among the class names"):
            FORMATS[name](output, [ImageDetections("a.png", *SIZE, found(row))], ["cat"])
    assert not output.exists()


@pytest.mark.parametrize(
    "files, message", [(["a.png", "a.jpg"], "would hold two images"), (["../a.png"], "leads out of the folder")]
)
def test_files_of_images_are_told_apart(files, message, tmp_path) -> None:
    for name in FOLDERS:
        with pytest.raises(ValueError, match=message):
            FORMATS[name](tmp_path / "out", [ImageDetections(file, *SIZE, found()) for file in files], NAMES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    for output, is_folder in (
        (tmp_path / "full", True),
        (tmp_path / "full/note.txt", True),
        (tmp_path / "full", False),
    ):
        with pytest.raises(ValueError, match="full"):
            check_output(output, is_folder)
    check_output(tmp_path / "new", True)


def test_what_it_imports() -> None:
    code = (
        "import sys, glip_hf.formats; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_ground_writes_formats(photos, tmp_path, capsys, monkeypatch) -> None:
    """File names begin at the folder of all images; a broken image is left out and makes exit code 1."""
    monkeypatch.chdir(tmp_path)
    Image.open(DEMO_IMAGE).save(photos / "sub/some.jpg", quality=95)
    (photos / "broken.png").write_text("<html>")
    words = ["ground", "photos", "photos/sub/some.jpg", "--names", "yellow cross", "fish", "--model", "demo"]
    assert main([*words, "--format", "coco", "--output", "out/coco.json", "--image-prefix", "x/"]) == 1
    output = capsys.readouterr()
    assert output.out == "-> out/coco.json\n" and "broken.png" in output.err
    coco = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["x/none.png", "x/sub/some.jpg"]
    assert [category["name"] for category in coco["categories"]] == ["yellow cross", "fish"]
    assert {entry["image_id"] for entry in coco["annotations"]} == {2}
    assert (
        main(["ground", "photos/sub/some.jpg", *words[3:], "--format", "yolo", "--output", "yolo", "--save", "a.png"])
        == 0
    )
    assert Path("a.png").is_file() and len(Path("yolo/labels/some.txt").read_text().splitlines()) >= 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "coco"], "--format coco needs --output PATH"),
        (["--output", "a.csv"], "--output and --image-prefix belong to --format (coco, yolo"),
        (["--format", "yolo", "--output", "photos"], "--output photos exists: name a new or an empty folder"),
        (["--format", "csv", "--output", "photos"], "--output photos is a folder"),
        (["photos/a.png", "--format", "voc", "--output", "v"], "photos/a.jpg and photos/a.png would both be called a"),
        (["--format", "yolo", "--output", "v", "--image-prefix", "../x/"], "--image-prefix ../x/ leads out"),
        (["--format", "voc", "--output", "v", "--image-prefix", "/x/"], "--image-prefix /x/ leads out"),
        (
            ["--format", "voc", "--output", "v", "--masks", "sam"],
            "has no place for what --masks gives: leave it out, or",
        ),
        (["--format", "label-studio", "--output", "v", "--masks", "sam"], "or write coco, yolo, csv, jsonl"),
        (["clip.mp4", "--format", "yolo", "--output", "v", "--track"], "has no place for what --track gives"),
        (
            ["clip.mp4", "clip/000012.jpg", "--format", "coco", "--output", "c"],
            "a frame of clip.mp4 and clip/000012.jpg",
        ),
        (
            ["clip.mp4", "clip/000012.png", "--format", "yolo", "--output", "c"],
            "a frame of clip.mp4 and clip/000012.png",
        ),
    ],
)
def test_a_wrong_format_is_told_before_work(arguments, message, photos, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    Path("clip.mp4").touch()
    for name in ("photos/a.jpg", "photos/a.png", "clip/000012.jpg", "clip/000012.png", "clip/cat.jpg"):
        Image.new("RGB", SIZE).save(name)
    assert main(["ground", "photos/a.jpg", *arguments, "--names", "cat", "--model", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_images_in_a_folder_called_like_a_video(photos, tmp_path, monkeypatch) -> None:
    """They are told apart as long as they are not called like frames."""
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    files = ["clip.mp4", "clip/cat.jpg", "clip/000012.png", "clip/12.jpg"]
    for name in files:
        Path(name).touch()
    given = ["ground", *files, "--names", "cat", "--model", "m", "--format", "csv", "--output", "out.csv"]
    assert read_format(build_parser().parse_args([*given, "--image-prefix", "x/"]), files) == [f"x/{f}" for f in files]


@pytest.mark.parametrize(
    "arguments, place",
    [
        (["--format", "coco", "--output", "note.txt/out/found.json"], "note.txt/out/found.json"),
        (["--format", "yolo", "--output", "note.txt/found"], "note.txt/found"),
        (["--save", "note.txt/found/a.png"], "note.txt/found/a.png"),
        (["--json", "/sys/found.json"], "/sys/found.json"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_work(
    arguments, place, photos, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").touch()
    assert main(["ground", "photos/none.png", *arguments, "--names", "cat", "--model", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert f"{place} cannot be written" in error and len(error.strip().splitlines()) == 1
