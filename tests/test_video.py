# Copyright 2026 The glip_hf authors. MIT licence.
"""Frames are grounded as images are, in their order; videos are read, drawn on and tracked with the real libraries."""

import itertools
import json
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from random_glip import load_photo, random_model, random_processor

from glip_hf import video
from glip_hf.cli import main
from glip_hf.demo import load_demo_image
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.video import Video, ground_frames, write_video
from glip_hf.visualize import draw_detections

NAMES = ["cat", "sofa"]


def engine(**options: object) -> GroundingEngine:
    return GroundingEngine(random_model(), random_processor(64), GroundingOptions(max_detections=5, **options))


def frames(count: int, width: int = 96) -> list[np.ndarray]:
    """A camera that pans over the photo."""
    photo = np.asarray(load_photo())
    return [photo[:72, 4 * n : 4 * n + width] for n in range(count)]


def test_frames_are_images() -> None:
    asked, images = engine(), frames(7)
    expected = [found.detections[0] for found in asked.ground(Request(image, NAMES) for image in images)]
    found = list(ground_frames(asked, images, NAMES))
    assert [frame.index for frame in found] == list(range(7))
    assert all(frame.image is image for frame, image in zip(found, images))
    some = list(ground_frames(asked, (image[..., ::-1] for image in images), NAMES, bgr=True, stride=3))
    assert [frame.index for frame in some] == [0, 3, 6]
    for frame in (*found, *some):
        assert len(frame.detections["boxes"]) == 5 and (frame.image == images[frame.index]).all()
        for name, value in expected[frame.index].items():
            assert np.array_equal(frame.detections[name], value), name
    assert list(ground_frames(asked, [], NAMES)) == []


def test_the_path_of_a_video_is_no_list_of_letters(monkeypatch) -> None:
    monkeypatch.setattr(video, "Video", {"clip.mp4": frames(2)}.__getitem__)
    assert [frame.index for frame in ground_frames(engine(), "clip.mp4", NAMES)] == [0, 1]


def test_frames_of_several_sizes_keep_their_order() -> None:
    sizes = [96, 96, 48, 96, 48, 96, 96]
    images = [frames(1, width)[0] for width in sizes]
    found = list(ground_frames(engine(batch_size=2), images, NAMES))
    assert [(frame.index, frame.image.shape[1]) for frame in found] == list(enumerate(sizes))


def test_an_endless_camera() -> None:
    taken = []

    def camera():
        for number in itertools.count():
            taken.append(number)
            yield frames(1)[0]

    found = ground_frames(engine(), camera(), NAMES)
    assert [frame.index for frame in itertools.islice(found, 2)] == [0, 1]
    found.close()
    assert len(taken) <= 6  # a few are read ahead


@pytest.mark.parametrize(
    "frame, options, message",
    [
        (frames(1)[0], {"stride": 0}, "stride=0"),
        (Image.new("RGB", (9, 9)), {"bgr": True}, r"frame 0 is Image \[\].*bgr=True"),
        (frames(1)[0][..., 0], {"bgr": True}, r"frame 0 is ndarray \[72, 96\].*bgr=True"),
        ("no-such.png", {}, "no-such.png"),
    ],
)
def test_wrong_frames_are_named(frame, options, message) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(ground_frames(engine(), [frame], NAMES, **options))


def test_track_ids_belong_to_their_rows(monkeypatch) -> None:
    """A tracker may leave detections out, and give them in any order."""

    class Detections:
        def __init__(self, xyxy, mask, confidence, class_id, data) -> None:
            self.confidence, self.data, self.tracker_id = confidence, data, None

        def __len__(self) -> int:
            return len(self.data["row"])

    def track(found: Detections) -> Detections:
        assert found.confidence.shape == (5,)
        found.data = {"row": found.data["row"][[3, 1]]}
        found.tracker_id = np.array([7, 9], dtype=np.int32)
        return found

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Detections))
    (frame,) = ground_frames(engine(), frames(1), NAMES, track=track)
    assert frame.detections["track_ids"].tolist() == [-1, 9, -1, 7, -1]
    assert frame.detections["track_ids"].dtype == torch.int64
    plain = {name: value for name, value in frame.detections.items() if name != "track_ids"}
    drawn = [draw_detections(frame.image, found).tobytes() for found in (frame.detections, plain)]
    assert drawn[0] != drawn[1], "the numbers are drawn"


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["photo.png", "cat", "--stride", "2"], 2, "--stride and --track are for videos"),
        (["photo.png", "cat", "--track"], 2, "--stride and --track are for videos"),
        (["https://host/clip.mp4?x=1", "cat"], 2, "download it first"),
        (["clip.mp4", "cat", "--save", "x.png"], 2, "--save x.png: a video is saved as .mp4 or .webm"),
        (
            ["clip.mp4", "clip.mov", "--names", "cat", "--format", "csv", "--output", "x"],
            2,
            "would both be called clip",
        ),
        (["clip.mp4", "cat"], 1, "this needs av, of the extra `video`"),
    ],
)
def test_wrong_requests_are_told_before_work(arguments, code, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("photo.png", "clip.mp4", "clip.mov"):
        Path(name).touch()
    assert main(["ground", *arguments, "--model", "nowhere"]) == code
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


# -- with PyAV and trackers ------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes a video of a camera that pans over the shipped scene."""
    pytest.importorskip("av", reason="PyAV is not installed (make adapters): videos are not read and written")
    monkeypatch.chdir(tmp_path)
    scene = load_demo_image()

    def make(name: str, count: int = 6, size: tuple[int, int] = (400, 400), rate: float = 10) -> Path:
        with write_video(name, rate) as write:
            for n in range(count):
                write(scene.crop((8 * n, 0, 8 * n + size[0], size[1])))
        return Path(name)

    return make


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.mkv", "clip.avi"])
def test_a_video_is_read_as_it_was_written(name, clip) -> None:
    video = Video(clip(name, 5, (201, 99), rate=30 / 7))
    assert video.rate == Fraction(30, 7) and video.count in (0, 5)
    found = list(video)
    assert [frame.shape for frame in found] == [(100, 202, 3)] * 5  # colours come in blocks of 2 x 2
    expected = np.asarray(load_demo_image().crop((16, 0, 217, 99))).astype(int)
    assert abs(found[2][:99, :201].astype(int) - expected).mean() < 8  # lossy
    assert [(a == b).all() for a, b in zip(video, found)] == [True] * 5, "again from the start"


def test_a_video_of_a_phone_is_upright(clip) -> None:
    """Its file says how to turn it: a quarter with the clock, in the matrix of the track's header."""
    data = clip("clip.mp4", 2, (64, 48)).read_bytes()
    matrix = data.index(b"tkhd") + 44
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    Path("turned.mp4").write_bytes(data[:matrix] + quarter + data[matrix + 36 :])
    for plain, turned in zip(Video("clip.mp4"), Video("turned.mp4")):
        assert (np.rot90(plain, -1) == turned).all()


def test_names_that_look_like_a_protocol_and_images_of_any_mode(clip) -> None:
    assert len(list(Video(clip("12:30.mp4", 2, (64, 48))))) == 2
    with write_video("modes.mp4", 5) as write:
        for mode in ("L", "RGBA", "P", "I;16"):
            write(Image.new(mode, (32, 32)))
    assert len(list(Video("modes.mp4"))) == 4


def test_videos_that_cannot_be_read_or_written(clip, tmp_path) -> None:
    data = clip("clip.avi", 40, (160, 160)).read_bytes()
    Path("cut.avi").write_bytes(data[: len(data) * 4 // 5])
    data = clip("clip.mkv", 40, (160, 160)).read_bytes()  # does not tell how many frames it has
    assert len(list(Video("clip.mkv"))) == 40
    Path("cut.mkv").write_bytes(data[: len(data) * 19 // 20])
    Path("page.mp4").write_text("<html>404</html>")
    for name, message in (
        ("cut.avi", "breaks off after .* frames of 40"),
        ("cut.mkv", r"breaks off after [\d.]+ of 4.0 seconds"),
        ("page.mp4", "not a readable video"),
    ):
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            list(Video(name))
    with pytest.raises(FileNotFoundError, match=r"none.mp4: no such file"):
        Video("none.mp4")
    for image in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), "x.png"):
        with pytest.raises(ValueError, match=r"new.mp4: a frame is .* give PIL images, or arrays \[H, W, 3\] uint8"):
            with write_video("new.mp4", 5) as write:
                write(image)
    with pytest.raises(
        ValueError, match="new.mpg: its codec mpeg1video does not take 100 x 100 pixels, 5 frames per second; save .mp4"
    ):
        with write_video("new.mpg", 5) as write:
            write(Image.new("RGB", (99, 99)))
    for images, message in (([], "no frame to write"), ([(9, 9), (20, 20)], "20 x 20 pixels after others")):
        with pytest.raises(ValueError, match=message), write_video("new.mp4", 5) as write:
            for size in images:
                write(Image.new("RGB", size))
    with pytest.raises(ValueError, match=r"new.docx: not a suffix of a video"), write_video("new.docx", 5):
        pass
    assert not list(tmp_path.glob("*new*"))


def test_ground_a_clip(clip, capsys) -> None:
    """Numbers stay with their objects; what a broken video holds is kept; frames have names in formats."""
    pytest.importorskip("trackers", reason="trackers is not installed (make adapters): no object is tracked")
    command = ["ground", str(clip("clip.mp4")), "yellow cross", "fish", "--model", "demo", "--stride", "2"]
    assert main([*command, "--track", "--save", "found.mp4", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["photos"]
    assert (record["width"], record["height"], record["frame_rate"], record["saved"]) == (400, 400, 10, "found.mp4")
    assert [(frame["frame"], frame["time"]) for frame in record["frames"]] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    second, third = ({found["track_id"]: found for found in frame["detections"]} for frame in record["frames"][1:])
    assert second.keys() == third.keys() and len(second) == len(record["frames"][1]["detections"]) >= 2
    for number, found in second.items():
        assert number >= 0 and found["text_label"] == third[number]["text_label"]
        np.testing.assert_allclose(np.subtract(third[number]["box"], found["box"]), [-16, 0, -16, 0], atol=6)
    annotated = Video("found.mp4")
    assert annotated.rate == 5 and len(list(annotated)) == 3
    assert abs(next(iter(annotated)).astype(int) - next(iter(Video("clip.mp4"))).astype(int)).max() > 100, "drawn"

    assert main([*command, "--format", "coco", "--output", "found.json"]) == 0
    capsys.readouterr()
    images = json.loads(Path("found.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"clip/{number:06d}.jpg" for number in (0, 2, 4)]

    data = clip("long.avi", 40, (160, 160)).read_bytes()
    Path("cut.avi").write_bytes(data[: len(data) * 4 // 5])
    assert main(["ground", "cut.avi", "clip.mp4", "--names", "fish", *command[4:], "--save", "both", "--track"]) == 1
    printed = capsys.readouterr()
    assert "cut.avi: the video breaks off" in printed.err and len(printed.err.strip().splitlines()) == 1
    assert "clip.mp4 frame 4 (400x400)" in printed.out and "  #0 fish\n" in printed.out
    assert len(list(Video("both/cut.mp4"))) >= 2 and len(list(Video("both/clip.mp4"))) == 3


BLOCKS = re.findall(
    r"^```python\n(.*?)^```$",
    (Path(__file__).resolve().parents[1] / "docs/video.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_the_page_with_a_camera(capsys) -> None:
    exec(BLOCKS[0], {"frame": np.asarray(load_demo_image())[..., ::-1]})
    printed = capsys.readouterr().out
    assert "0 [" in printed and "2 [" in printed and printed.count("'fish'") == 2


def test_the_page_with_a_file(clip) -> None:
    pytest.importorskip("trackers", reason="trackers is not installed (make adapters): no object is tracked")
    clip("clip.mp4")
    names = {"frame": np.asarray(load_demo_image())[..., ::-1]}
    for block in BLOCKS:
        exec(block, names)
    assert len(list(Video("found.mp4"))) == 2 and names["found"].detections["track_ids"].min() >= 0


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_is_above_0(rate) -> None:
    with pytest.raises(ValueError, match=f"rate={rate} must be frames per second, above 0"), write_video("a.mp4", rate):
        raise AssertionError("nothing is written at this rate")
