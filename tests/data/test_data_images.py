# Copyright 2026 The glip_hf authors. MIT licence.
"""Where images are that annotation files name: as other tools and systems write it, and inside the folder."""

import os

import pytest

from glip_hf.data.images import ImageFinder, RefusedImage, list_files, missing_files


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
