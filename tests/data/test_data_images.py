# Copyright 2026 The glip_hf authors. MIT licence.
"""Where images are that annotation files name: as other tools and systems write it, and inside the folder."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from glip_hf.data.check import check_data
from glip_hf.data.images import ImageFinder, RefusedImage, list_files, missing_files
from glip_hf.data.records import ImageRef
from glip_hf.data.sources import HubStream, build_source
from glip_hf.data.sources.hub import CellImages
from glip_hf.image_processing_pil_glip import read_pixels, upright
from tests.data.original_formats import encoded_image

Dataset = pytest.importorskip("datasets").Dataset


@pytest.fixture
def folder(tmp_path):
    """train/ with a few files, and a file beside it."""
    for name in ("a.png", "b c.png", "100%.png", "d%20e.png", "é.png", "UPPER.JPG", "sub/s.png", "x\\y.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "secret.png").touch()
    return tmp_path / "train"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("sub/s.png", "sub/s.png"),
        ("sub/../a.png", "a.png"),
        ("train/a.png", "a.png"),
        ("data/train/sub/s.png", "sub/s.png"),
        ("../train/a.png", "a.png"),
        ("../../label-studio/media/1/a.png", "a.png"),
        ("/home/somebody/train/a.png", "a.png"),
        ("C:\\Users\\somebody\\train\\a.png", "a.png"),
        ("train\\sub\\s.png", "sub/s.png"),
        ("x\\y.png", "x\\y.png"),
        ("\\\\server\\share\\a.png", "a.png"),
        ("b%20c.png", "b c.png"),
        ("100%.png", "100%.png"),
        ("d%20e.png", "d%20e.png"),
        ("http://images.cocodataset.org/train/a.png", "a.png"),
        ("https://host/sub/s.png?size=large#x", "sub/s.png"),
        ("https://host/b%20c.png", "b c.png"),
        ("s3://bucket/train/a.png", "a.png"),
        ("file:///home/somebody/a.png", "a.png"),
        ("e\u0301.png", "é.png"),
        ("upper.jpg", "UPPER.JPG"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_names_as_tools_write_them(folder, name, file, relative, monkeypatch):
    monkeypatch.chdir(folder if relative else folder.parent)
    given = "." if relative else folder
    assert os.path.realpath(ImageFinder(given).find(name)) == str(folder / file)


def test_the_first_name_that_is_there(folder):
    finder = ImageFinder(folder)
    assert finder.find(None, "", "no.png", "https://host/sub/s.png") == str(folder / "sub" / "s.png")
    assert finder.find("https://host/val/no.png", "no.png") == str(folder / "val" / "no.png")
    assert finder.find("/elsewhere/no.png") == str(folder / "elsewhere" / "no.png")
    assert finder.find("../../no.png") == str(folder / "no.png")


@pytest.mark.parametrize("name", [5, ["a.png"], {"a": 1}, True, 1.5, "a\0.png"])
def test_a_name_that_is_not_a_name(folder, name):
    with pytest.raises(ValueError, match="the file name .* is not valid"):
        ImageFinder(folder).find(name)


@pytest.mark.parametrize("names", [(), (None,), ("", None)])
def test_no_name(folder, names):
    with pytest.raises(ValueError, match="neither a file_name nor a URL"):
        ImageFinder(folder).find(*names)


@pytest.mark.parametrize("name", ["x" * 100_000, "\udcff.png", "/", ".", "..", "%", "://", "https://", "a/" * 500])
def test_odd_names_are_missing(folder, name):
    assert not os.path.isfile(ImageFinder(folder).find(name))


@pytest.mark.parametrize("form", ["../secret.png", "{}", "sub/../../secret.png", "..\\secret.png", "%2e%2e/secret.png"])
def test_files_outside_the_folder(folder, form):
    name, secret = form.format(folder.parent / "secret.png"), folder.parent / "secret.png"
    with pytest.raises(RefusedImage, match=r"leads out of the folder .*secret.png\).*--allow-outside"):
        ImageFinder(folder).find(name)
    assert ImageFinder(folder, allow_outside=True).find(name) == str(secret)


def test_absolute_names_inside_the_folder(folder, tmp_path):
    assert ImageFinder(folder).find(str(folder / "a.png")) == str(folder / "a.png")
    link = tmp_path / "elsewhere"
    link.symlink_to(folder, target_is_directory=True)
    assert ImageFinder(link).find("a.png") == str(link / "a.png")
    assert ImageFinder(link).find(str(folder / "a.png")) == str(folder / "a.png")


def test_links_that_lead_out(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "o.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "links").symlink_to(tmp_path / "other")
    (folder / "within.png").symlink_to(folder / "a.png")
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    for name in ("link.png", "links/o.png"):
        with pytest.raises(RefusedImage, match="leads out of the folder"):
            ImageFinder(folder).find(name)
        assert ImageFinder(folder, allow_outside=True).find(name) == str(folder / name)
    assert ImageFinder(folder).find("within.png") == str(folder / "within.png")
    assert set(list_files(str(folder))) >= {"within.png", "link.png"} and "broken.png" not in list_files(str(folder))


def test_snapshots_of_the_hub(tmp_path):
    """Their files are links into the folder of contents beside them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").touch()
    images = tmp_path / "snapshots" / "abc" / "images"
    images.mkdir(parents=True)
    (images / "a.png").symlink_to("../../../blobs/0123")
    assert ImageFinder(images).find("a.png") == str(images / "a.png")


def test_two_images_are_not_one_file(folder):
    finder = ImageFinder(folder)
    assert finder.find("val/a.png") == finder.find("val/a.png") == str(folder / "a.png")
    with pytest.raises(RefusedImage, match="'val/a.png' and 'test/a.png' both lead to .*a.png"):
        finder.find("test/a.png")


def test_a_pipe_is_not_an_image(folder):
    os.mkfifo(folder / "pipe.png")
    assert "pipe.png" not in list_files(str(folder))
    assert missing_files([str(folder / "pipe.png")]) == [str(folder / "pipe.png")]


def test_missing_files(folder, tmp_path):
    paths = [str(folder / "a.png"), str(folder / "no.png"), str(tmp_path / "none" / "x.png"), str(folder / "no.png")]
    assert missing_files(paths) == paths[1:3]
    assert missing_files([]) == []


def test_a_folder_that_changed(folder):
    finder = ImageFinder(folder)
    absent, present = finder.find("val/new.png"), finder.find("val/a.png")
    assert not finder.has_changed(absent, False) and not finder.has_changed(present, True)
    (folder / "new.png").touch()
    assert finder.has_changed(absent, False)
    (folder / "a.png").unlink()
    assert finder.has_changed(present, True)


# -- readers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    return lambda spec, **more: build_source({**spec, **more}, cache_dir=tmp_path / "cache")


def rewrite(spec, change):
    """Change the images' entries of a set's file, one by one."""
    path = Path(spec["annotations"])
    content = json.loads(path.read_text())
    for entry in content["images"]:
        change(entry)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "form",
    ["{folder}/{name}", "photos/{name}", "C:\\me\\{name}", "http://host/photos/{name}", "{coded}", "../photos/{name}"],
)
def test_images_as_other_tools_name_them(build, coco_set, form):
    def change(entry):
        name = entry["file_name"]
        entry["file_name"] = form.format(name=name, folder=coco_set["images"], coded=name.replace(".", "%2E"))

    expected = [record.image.path for record in build(coco_set)]
    rewrite(coco_set, change)
    assert [os.path.realpath(record.image.path) for record in build(coco_set)] == expected


@pytest.mark.parametrize("field", ["coco_url", "flickr_url", "url"])
def test_images_named_by_urls_alone(build, coco_set, field):
    rewrite(coco_set, lambda entry: entry.update({field: f"https://host/x/{entry.pop('file_name')}?size=big"}))
    assert [Path(record.image.path).name for record in build(coco_set)] == ["0.png", "1.png", "2.png", "4.png"]
    rewrite(coco_set, lambda entry: entry.update(coco_url=None, file_name=entry[field]))  # null is missing
    assert len(build(coco_set)) == 4


def test_images_outside_the_folder_are_refused(build, coco_set, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded_image(40, 30))
    rewrite(coco_set, lambda entry: entry.update(file_name="../secret.png") if entry["id"] == 10 else None)
    with pytest.raises(ValueError, match="image 10: the file name '../secret.png' leads out of .*--allow-outside"):
        build(coco_set)
    assert build(coco_set, allow_outside=True)[0].image.load().size == (40, 30)


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": -1}])
def test_sizes_are_read_from_images(build, coco_set, size):
    expected = [(record.width, record.height) for record in build(coco_set)]

    def change(entry):
        del entry["width"], entry["height"]
        entry.update(size)

    rewrite(coco_set, change)
    assert [(record.width, record.height) for record in build(coco_set)] == expected
    (Path(coco_set["images"]) / "2.png").write_bytes(b"damaged")
    rewrite(coco_set, lambda entry: entry.update(seen=True))
    assert build(coco_set).dropped["broken_image"] == 1
    (Path(coco_set["images"]) / "1.png").unlink()
    rewrite(coco_set, lambda entry: entry.update(seen=2))
    with pytest.raises(ValueError, match="image 11: There is no image file .*1.png"):
        build(coco_set)


def test_images_that_come_later_are_found(build, coco_set):
    """A stored conversion does not keep places of an incomplete folder."""
    rewrite(coco_set, lambda entry: entry.update(file_name=f"train/{entry['file_name']}"))
    folder = Path(coco_set["images"])
    (folder / "1.png").rename(folder / "later.png")
    assert build(coco_set)[1].image.path == str(folder / "train" / "1.png")
    (folder / "later.png").rename(folder / "1.png")
    source = build(coco_set)
    assert source[1].image.path == str(folder / "1.png")
    assert build(coco_set).table.cache_files == source.table.cache_files
    (folder / "train").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "train" / path.name)
    assert build(coco_set)[1].image.load().size == (30, 40)


def save_turned(path, width, height, orientation=6):
    """A photo of this size as stored, whose EXIF orientation turns it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turned_images_are_in_the_frame_of_their_boxes(suffix, tmp_path):
    save_turned(tmp_path / f"p.{suffix}", 40, 30)
    for annotated, shown in (((40, 30), (40, 30)), ((30, 40), (30, 40)), (None, (30, 40)), ((80, 60), (30, 40))):
        image = ImageRef(str(tmp_path / f"p.{suffix}"), size=annotated).load()
        assert ImageOps.exif_transpose(image).size == shown
        assert tuple(read_pixels(image).shape[1:]) == shown[::-1]


DAMAGED_EXIF = [
    b"Exif\0\0garbage",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40,
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abcd\0\0\0\0",  # the orientation is text
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", DAMAGED_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_says_nothing(kind, exif):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, kind, exif=exif)
    image = ImageRef("x", data=buffer.getvalue(), size=(40, 30)).load()
    assert read_pixels(image).shape == (3, 30, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_makes_of_it(orientation, tmp_path):
    pixels = np.arange(40 * 30, dtype=np.uint8).reshape(30, 40)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "p.png", exif=exif)
    shown = upright(Image.open(tmp_path / "p.png"))
    np.testing.assert_array_equal(shown, ImageOps.exif_transpose(Image.open(tmp_path / "p.png")))
    assert upright(shown).size == shown.size and np.array_equal(upright(shown), shown)


def test_a_check_finds_what_a_run_refuses(coco_set, tmp_path):
    folder = Path(coco_set["images"])
    save_turned(folder / "0.png", 40, 30)
    assert check_data(coco_set).counts == {"turned_photo": 1} and not check_data(coco_set).refusal
    (folder / "1.png").unlink()
    report = check_data(coco_set)
    assert report.counts["missing_image"] == 1 and "1 of 4 images are missing" in report.refusal
    (tmp_path / "1.png").write_bytes(encoded_image(30, 40))
    rewrite(coco_set, lambda entry: entry.update(file_name=f"../{entry['file_name']}"))
    report = check_data(coco_set)
    assert report.counts["refused_image"] == 1 and "leads out of the folder" in report.refusal


def parquet(tmp_path, paths, sizes=True):
    """A Parquet file whose rows name image files; keyword arguments of its spec."""
    table = {
        "image": [{"bytes": None, "path": path} for path in paths],
        "objects": [{"bbox": [[2.0, 3, 10, 12]], "category": ["cat"]} for _ in paths],
    }
    if sizes:
        table |= {"width": [40] * len(paths), "height": [30] * len(paths)}
    (tmp_path / "rows").mkdir(exist_ok=True)
    Dataset.from_dict(table).to_parquet(tmp_path / "rows" / "rows.parquet")
    return {"format": "hub", "dataset": "parquet", "data_files": str(tmp_path / "rows" / "*.parquet")}


@pytest.mark.parametrize("sizes", [True, False])
def test_rows_that_name_files(build, tmp_path, sizes):
    for folder in ("rows/photos", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encoded_image(40, 30))
    inside, outside = str(tmp_path / "rows" / "photos" / "a.png"), str(tmp_path / "elsewhere" / "a.png")
    source = build(parquet(tmp_path, [inside, "photos/a.png"], sizes))
    assert [record.image.load().size for record in source] == [(40, 30)] * 2
    spec = parquet(tmp_path, [inside, outside, "../elsewhere/a.png"], sizes)
    with pytest.raises(ValueError, match="elsewhere/a.png' leads out of the folder"):
        build(spec)
    source = build(spec, allow_outside=True)
    assert [record.image.load().size for record in source] == [(40, 30)] * 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.png", "zip://a.png::https://host/a.zip", "s3://bucket/a.png"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_that_name_urls_fetch_nothing(build, tmp_path, url, in_memory):
    spec = parquet(tmp_path, [url])
    if in_memory:
        spec = {"format": "hub", "dataset": Dataset.from_parquet(str(tmp_path / "rows" / "rows.parquet"))}
    with pytest.raises(ValueError, match="is a URL, and none is fetched unless the data set has allow_urls: true"):
        build(spec)
    assert CellImages(None, allow_urls=True).place(url) == url


def test_streams_fetch_nothing(tmp_path):
    parquet(tmp_path, ["http://127.0.0.1:9/a.png", "zip://a.png::http://127.0.0.1:9/a.zip"])
    rows = Dataset.from_parquet(str(tmp_path / "rows" / "rows.parquet")).to_iterable_dataset()
    stream, told = HubStream(rows, names=["cat"]), []
    stream.on_broken = told.append
    assert list(stream) == [] and len(told) == 2 and all("is a URL" in what for what in told)
