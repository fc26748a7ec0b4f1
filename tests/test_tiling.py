# Copyright 2026 The glip_hf authors. MIT licence.
"""Tiles of large images: they cover everything, small objects are found, and each object comes out once."""

import json
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_hf import GlipZeroShotObjectDetectionPipeline
from glip_hf.boxes_glip import box_area, box_iou
from glip_hf.cli import main
from glip_hf.data.scenes import SceneConfig, make_scene
from glip_hf.demo import demo_model, demo_processor
from glip_hf.inference import READER_THREAD, GroundingEngine, GroundingOptions, Request
from glip_hf.tiling import make_tiles, merge_tiles

# -- where tiles lie -------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(32, 200), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap(width, height, tile, overlap) -> None:
    tiles = make_tiles(width, height, tile, overlap)
    assert (not tiles) == (width <= tile and height <= tile)
    for low, length in ((0, width), (1, height)) if tiles else ():
        sides = sorted({(region[low], region[low + 2]) for region in tiles})
        assert sides[0][0] == 0 and sides[-1][1] == length
        assert {end - start for start, end in sides} == {min(tile, length)}
        shared = [end - start for (_, end), (start, _) in zip(sides, sides[1:])]
        assert all(pixels >= overlap * tile - 1 for pixels in shared)  # whole pixels
    assert len(tiles) == len(set(tiles))


def test_tiles_by_hand() -> None:
    assert make_tiles(100, 40, 60, 0.2) == [(0, 0, 60, 40), (40, 0, 100, 40)]
    assert make_tiles(120, 120, 60, 0) == [(x, y, x + 60, y + 60) for y in (0, 60) for x in (0, 60)]


# -- one detection per object ----------------------------------------------------------------------

SIZE = (200, 100)
LEFT, RIGHT, WHOLE = (0, 0, 120, 100), (80, 0, 200, 100), (0, 0, 200, 100)


def part(region, *rows):
    """Detections (score, box in pixels of the image, label) as they come from a region."""
    scores, boxes, labels = zip(*rows) if rows else ((), (), ())
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4) - torch.tensor(region[:2] * 2)
    return {"scores": torch.tensor(scores), "boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}


def merged(*parts, size=SIZE, threshold=0.6):
    """(score, box, label) of what comes out, the best first; the order of the parts does not matter."""
    rows = []
    for order in (parts, parts[::-1]):
        found = merge_tiles([part(*own) for own in order], [region for region, *_ in order], size, threshold)
        columns = (found["scores"].tolist(), found["boxes"].tolist(), found["labels"].tolist())
        rows.append(sorted(((round(score, 4), box, label) for score, box, label in zip(*columns)), reverse=True))
    assert rows[0] == rows[1]
    return rows[0]


SMALL = [90, 20, 110, 50]
CASES = {
    "nothing": ([(LEFT,), (RIGHT,)], []),
    "whole in both": ([(LEFT, (0.8, SMALL, 0)), (RIGHT, (0.9, [91, 20, 110, 50], 0))], [(0.9, [91, 20, 110, 50], 0)]),
    "cut on the left": ([(LEFT, (0.9, [100, 20, 119, 50], 0)), (RIGHT, (0.7, [100, 20, 140, 50], 0))],
                        [(0.9, [100, 20, 140, 50], 0)]),
    "cut on both sides": ([(LEFT, (0.6, [60, 20, 119, 50], 0)), (RIGHT, (0.8, [81, 20, 140, 50], 0))],
                          [(0.8, [60, 20, 140, 50], 0)]),
    "large": ([(LEFT, (0.9, [20, 10, 119, 90], 0)), (RIGHT, (0.8, [80, 10, 180, 90], 0)),
               (WHOLE, (0.6, [21, 11, 180, 90], 0))], [(0.9, [21, 11, 180, 90], 0)]),
    "a piece within": ([(LEFT, (0.5, [100, 60, 119, 80], 0)), (WHOLE, (0.6, [20, 10, 180, 90], 0))],
                       [(0.6, [20, 10, 180, 90], 0)]),
    "a whole one within": ([(LEFT, (0.5, [60, 60, 80, 80], 0)), (WHOLE, (0.6, [20, 10, 180, 90], 0))],
                           [(0.6, [20, 10, 180, 90], 0), (0.5, [60, 60, 80, 80], 0)]),
    "two labels": ([(LEFT, (0.8, SMALL, 0)), (RIGHT, (0.9, SMALL, 1))], [(0.9, SMALL, 1), (0.8, SMALL, 0)]),
    "two of one tile": ([(LEFT, (0.8, SMALL, 0), (0.7, [92, 20, 112, 50], 0)), (RIGHT,)],
                        [(0.8, SMALL, 0), (0.7, [92, 20, 112, 50], 0)]),
    "neighbours at the border": ([(LEFT, (0.8, [70, 20, 98, 50], 0)), (RIGHT, (0.7, [99, 20, 130, 50], 0))],
                                 [(0.8, [70, 20, 98, 50], 0), (0.7, [99, 20, 130, 50], 0)]),
    "one above the other": ([(LEFT, (0.8, [60, 10, 119, 40], 0)), (RIGHT, (0.7, [80, 60, 140, 90], 0))],
                            [(0.8, [60, 10, 119, 40], 0), (0.7, [80, 60, 140, 90], 0)]),
    "at the image's border": ([(LEFT, (0.8, [0, 0, 60, 99], 0)), (RIGHT,)], [(0.8, [0, 0, 60, 99], 0)]),
}  # fmt: skip


@pytest.mark.parametrize("parts, expected", CASES.values(), ids=CASES)
def test_pieces_join_by_hand(parts, expected) -> None:
    assert merged(*parts) == expected


def test_an_object_through_many_tiles_and_its_further_entries() -> None:
    regions = make_tiles(400, 60, 100, 0.25)
    assert len(regions) == 5
    parts = []
    for number, (left, top, right, bottom) in enumerate(regions):
        own = part((left, top, right, bottom), (0.5 + number / 100, [max(left, 30), 5, min(right - 1, 380), 50], 2))
        parts.append({**own, "track_ids": torch.tensor([number]), "features": torch.full((1, 3), float(number))})
    found = merge_tiles(parts, regions, (400, 60), 0.6)
    assert found["boxes"].tolist() == [[30, 5, 380, 50]] and found["labels"].tolist() == [2]
    assert found["scores"].tolist() == pytest.approx([0.54])
    assert found["track_ids"].tolist() == [4] and found["features"].tolist() == [[4, 4, 4]]


objects = st.lists(  # in cells of a grid, so that no two overlap
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 30), st.integers(0, 30), st.integers(12, 100)),
    unique_by=lambda one: one[:2],
    max_size=12,
)


@given(objects, st.integers(90, 250), st.sampled_from([0.2, 0.3, 0.5]))
@settings(max_examples=25, deadline=None)
def test_a_perfect_detector_finds_each_object_once(objects, tile, overlap) -> None:
    """Every region shows the visible part of each object, but for slivers; pieces of all tiles become the object."""
    size = (6 * 130, 4 * 130)
    boxes = [[130 * x + dx, 130 * y + dy, 130 * x + dx + 99, 130 * y + dy + side - 1] for x, y, dx, dy, side in objects]
    regions = make_tiles(*size, tile, overlap)
    parts = []
    for left, top, right, bottom in regions:
        seen = [[max(x1, left), max(y1, top), min(x2, right - 1), min(y2, bottom - 1)] for x1, y1, x2, y2 in boxes]
        rows = [(0.9, box, 0) for box in seen if box[2] - box[0] >= 8 and box[3] - box[1] >= 8]
        parts.append(part((left, top, right, bottom), *rows))
    found = merge_tiles(parts, regions, size, 0.6)
    assert sorted(found["boxes"].tolist()) == sorted(boxes)


# -- the engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return demo_model(), demo_processor()


@pytest.fixture(scope="module")
def scene():
    """Many small things: 400 x 400 pixels, of which the shipped model sees two fifths."""
    sizes = {"small": (0.055, 0.065), "medium": (0.075, 0.095), "large": (0.11, 0.14)}
    config = SceneConfig(resolution=400, things=(16, 20), size_weights=(0.6, 0.3, 0.1), distractors=(0, 0), **sizes)
    return make_scene("detection", seed=3, index=2, config=config)


def ground(shipped, *requests, **options):
    engine = GroundingEngine(*shipped, GroundingOptions(**{"threshold": 0.4, **options}))
    return sorted(engine.ground(requests), key=lambda found: found.index)


def matches(found, scene) -> torch.Tensor:
    """[K, objects] bool: detections of the right class with IoU 0.5 or more."""
    same = found["labels"][:, None] == torch.from_numpy(scene.labels)
    return same & (box_iou(found["boxes"], torch.from_numpy(scene.boxes)) >= 0.5)


@pytest.fixture(scope="module")
def tiled(shipped, scene):
    (found,) = ground(shipped, Request(scene.pil, scene.names), tile=160, overlap=0.25)
    return found


def test_small_objects_are_found_in_tiles_only_and_once(shipped, scene, tiled) -> None:
    (whole,) = ground(shipped, Request(scene.pil, scene.names))
    whole, in_tiles = (matches(found.detections[0], scene).sum(0) for found in (whole, tiled))
    assert (tiled.width, tiled.height) == (400, 400) and len(whole) >= 16
    assert (whole > 0).float().mean() <= 0.25
    assert (in_tiles > 0).float().mean() >= 0.9
    assert in_tiles.max() == 1
    borders = {side for region in make_tiles(400, 400, 160, 0.25) for side in region} - {0, 400}
    lines = torch.tensor(sorted(borders))
    boxes = torch.from_numpy(scene.boxes)[in_tiles > 0, :, None]
    cut = ((boxes[:, :2] < lines) & (lines < boxes[:, 2:])).any(-1).any(-1)
    assert cut.sum() >= 5  # of those that are found once
    found = tiled.detections[0]
    for box, label in zip(found["boxes"], found["labels"]):  # and no piece of one is left
        others = found["boxes"][found["labels"] == label]
        common = box_area(torch.cat([torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])], 1))
        assert (common >= 0.8 * box_area(box)).sum() == 1


def assert_same(one, other) -> None:
    assert len(one["scores"]) == len(other["scores"]) > 0 and one["text_labels"] == other["text_labels"]
    assert torch.allclose(one["scores"], other["scores"], atol=1e-4)
    assert torch.allclose(one["boxes"], other["boxes"], atol=0.05)


@pytest.fixture(scope="module")
def strip(shipped, scene):
    """A part of the scene that two tiles cover, and what is found in it."""
    image = scene.pil.crop((0, 120, 200, 280))
    (found,) = ground(shipped, Request(image, scene.names), tile=160, overlap=0.25)
    assert len(found.detections[0]["scores"]) >= 3
    return image, found.detections[0]


def test_batches_of_tiles_are_tiles(shipped, scene, tiled, strip) -> None:
    """Two images, six tiles at a time: the results of one by one. An image is decoded once, a text encoded once."""
    (crop, alone), reads, texts = strip, [], []

    class Source:
        def load(self):
            reads.append(1)
            return scene.pil

    requests = [Request(Source(), scene.names), Request(crop, scene.names), Request(crop, None)]
    hook = shipped[0].model.text_model.register_forward_pre_hook(lambda *_: texts.append(1))
    both = ground(shipped, *requests, tile=160, overlap=0.25, batch_size=6)
    hook.remove()
    assert_same(both[0].detections[0], tiled.detections[0])
    assert_same(both[1].detections[0], alone)
    assert (both[2].width, both[2].height, both[2].detections) == (200, 160, [])
    assert len(reads) == len(texts) == 1


def test_an_image_no_larger_than_a_tile_is_seen_as_ever(shipped, scene) -> None:
    image = scene.pil.crop((0, 0, 160, 140))
    (plain,), (tile) = (
        ground(shipped, Request(image, scene.names)),
        ground(shipped, Request(image, scene.names), tile=160),
    )
    for name, value in plain.detections[0].items():
        assert (
            (value == tile[0].detections[0][name])
            if name == "text_labels"
            else torch.equal(value, tile[0].detections[0][name])
        )


def test_tiles_at_several_scales_and_mirrored(shipped, scene) -> None:
    image = scene.pil.crop((0, 0, 400, 160))
    (found,) = ground(shipped, Request(image, scene.names), tile=160, flip=True, scales=(160,))
    inside = torch.from_numpy(scene.boxes)
    inside = (inside[:, 2] < 400) & (inside[:, 3] < 160)
    hits = matches(found.detections[0], scene).sum(0)[inside]
    assert len(hits) >= 3 and hits.float().mean() >= 0.75 and hits.max() == 1


def test_a_broken_image_among_tiled_ones(shipped, scene, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    requests = [Request(tmp_path / "broken.png", scene.names), Request(scene.pil.crop((0, 0, 300, 128)), scene.names)]
    with pytest.raises(ValueError, match="broken.png"):
        ground(shipped, *requests, tile=128)
    engine = GroundingEngine(*shipped, GroundingOptions(tile=128))
    broken, good = engine.ground(requests, skip_broken=True)
    assert "broken.png" in str(broken.error) and good.error is None and good.width == 300


def test_tiled_images_are_read_ahead_by_the_threads(shipped, scene) -> None:
    """While the model works, not in between; and no more of them than there are threads."""
    reading = []

    class File:
        def __init__(self, number: int) -> None:
            self.number = number

        def load(self) -> Image.Image:
            reading.append((self.number, threading.current_thread().name))
            return scene.pil.crop((0, 0, 300 - self.number, 128))

    engine, sizes = GroundingEngine(*shipped, GroundingOptions(tile=128, workers=2)), []
    results = engine.ground(Request(File(number)) for number in range(6))
    for found in results:
        sizes.append(found.width)
        assert len(reading) <= min(len(sizes) + 5, 6)
    assert sizes == [300 - number for number in range(6)]
    assert sorted(number for number, _ in reading) == list(range(6))
    assert all(name.startswith(READER_THREAD) for _, name in reading)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile": 31}, "tile=31 must be at least 32"),
        ({"tile": 100.5}, "tile=100.5 must be one whole number"),
        ({"tile": 100, "overlap": 1.0}, "overlap=1.0 must be a share of a tile from 0 to 0.9"),
        ({"overlap": -0.1}, "overlap=-0.1 must be a share"),
        ({"overlap": "a"}, "overlap='a' must be one number"),
    ],
)
def test_other_values_are_refused(options, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GroundingOptions(**options)


# -- pipeline and command line ---------------------------------------------------------------------


def test_pipeline(shipped, scene, strip) -> None:
    (model, processor), (image, expected) = shipped, strip
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")
    options = {"candidate_labels": scene.names, "threshold": 0.4, "tile": 160, "overlap": 0.25}
    images = [image, image.crop((0, 0, 128, 128))]
    found = detector(images, batch_size=6, **options)
    assert [one["label"] for one in found[0]] == expected["text_labels"]
    for one, box in zip(found[0], expected["boxes"].tolist()):
        assert list(one["box"].values()) == pytest.approx(box, abs=1.01)  # whole pixels
    alone = detector(images[1], **options)
    assert [(one["label"], one["box"]) for one in found[1]] == [(one["label"], one["box"]) for one in alone]
    assert [one["score"] for one in found[1]] == pytest.approx([one["score"] for one in alone], abs=1e-5)
    with pytest.raises(ValueError, match="overlap=2"):
        detector(images, candidate_labels=scene.names, tile=256, overlap=2)


def test_command(scene, strip, tmp_path, capsys) -> None:
    image, found = strip
    image.save(tmp_path / "scene.png")
    command = ["ground", str(tmp_path / "scene.png"), "--names", *scene.names, "--model", "demo", "--tile", "160"]
    assert main([*command, "--overlap", "0.25", "--json"]) == 0
    (photo,) = json.loads(capsys.readouterr().out)["photos"]
    assert [one["text_label"] for one in photo["detections"]] == found["text_labels"]
    assert [one["score"] for one in photo["detections"]] == pytest.approx(found["scores"].tolist(), abs=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tile", "5"], "tile=5 must be at least 32"),
        (["--overlap", "0.3"], "--overlap 0.3 is of tiles: add --tile"),
        (["--tile", "64", "--overlap", "0.95"], "overlap=0.95 must be a share"),
    ],
)
def test_wrong_usage_is_told_before_the_model_is_loaded(tmp_path, capsys, options, message) -> None:
    (tmp_path / "a.png").touch()
    assert main(["ground", str(tmp_path / "a.png"), "cat", "--model", "no such model", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
