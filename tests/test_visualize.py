# Copyright 2026 The glip_hf authors. MIT licence.
"""Drawing: only the copy changes, colours and places are as promised, any size and name goes."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from glip_hf.visualize import BLACK, PALETTE, WHITE, draw_detections, label_color, text_color

# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0; they act on linear RGB
SEEN_BY = {
    "normal": np.eye(3),
    "red-blind": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "green-blind": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: tuple[int, int, int]) -> np.ndarray:
    c = np.array(color) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(color: tuple[int, int, int], eyes: str) -> np.ndarray:
    xyz = RGB_TO_XYZ @ np.clip(SEEN_BY[eyes] @ linear(color), 0, 1) / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    """[H, W] bool, the pixels that differ."""
    return (np.asarray(before.convert("RGB")) != np.asarray(after)).any(-1)


def test_no_detections_give_an_equal_copy() -> None:
    photo = grey(20, 10)
    for empty in ([], torch.zeros(0, 4), np.zeros((0, 4))):
        result = draw_detections(photo, {"boxes": empty, "scores": [], "labels": [], "text_labels": []})
        assert result is not photo
        assert not changed(photo, result).any()
        assert result.size == (20, 10) and result.mode == "RGB"


def test_box_lies_where_it_should_and_the_photo_is_untouched() -> None:
    photo = grey(200, 100)
    before = photo.tobytes()
    result = draw_detections(photo, {"boxes": [[50, 40, 149, 89]], "labels": [1]}, line_width=1)
    assert photo.tobytes() == before
    pixels = np.asarray(result)
    for x, y in ((50, 89), (149, 89), (149, 60), (50, 60), (100, 89)):
        assert tuple(pixels[y, x]) == label_color(1), (x, y)
    assert not changed(photo, result)[60:88, 52:148].any(), "the inside of the box stays"


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_tensors_arrays_and_lists_draw_the_same(kind) -> None:
    boxes, scores, labels = [[10.0, 30.0, 60.0, 80.0], [5.0, 20.0, 90.0, 95.0]], [0.9, 0.5], [3, 0]
    names = {"text_labels": ["cat", "dog"]}
    plain = {"boxes": boxes, "scores": scores, "labels": labels, **names}
    other = {"boxes": kind(boxes), "scores": kind(scores), "labels": kind(labels), **names}
    assert draw_detections(grey(100, 100), plain) == draw_detections(grey(100, 100), other)


def test_a_label_has_one_colour_in_every_picture() -> None:
    def line_color(size: int, labels: list[int], index: int) -> tuple[int, ...]:
        boxes = [[size * 0.1 + 20 * k, size * 0.5, size * 0.1 + 20 * k + 14, size * 0.8] for k in range(len(labels))]
        picture = draw_detections(grey(size, size), {"boxes": boxes, "labels": labels}, line_width=1)
        return picture.getpixel((round(boxes[index][0]), round(size * 0.75)))

    assert line_color(100, [7], 0) == line_color(300, [2, 7, 0], 1) == label_color(7)
    assert len({label_color(k) for k in range(len(PALETTE))}) == len(PALETTE)
    assert label_color("remote control") == label_color("remote control") in PALETTE


def test_colours_differ_for_colour_blind_eyes_too() -> None:
    for eyes in SEEN_BY:
        distances = [np.linalg.norm(lab(a, eyes) - lab(b, eyes)) for a, b in itertools.combinations(PALETTE, 2)]
        assert min(distances) > 17, eyes
        neighbours = [np.linalg.norm(lab(a, eyes) - lab(b, eyes)) for a, b in itertools.pairwise(PALETTE)]
        assert min(neighbours) > 50, eyes


@pytest.mark.parametrize("background", [*PALETTE, BLACK, WHITE])
def test_text_is_readable_on_its_background(background) -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        return float(RGB_TO_XYZ[1] @ linear(color))

    dark, light = sorted((luminance(text_color(background)), luminance(background)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


SIZES = [(1, 1), (1, 500), (500, 1), (12, 12), (64, 64), (33, 900), (800, 600), (1200, 900)]
NAMES = [
    "cat",
    "the left ear of a sleeping ginger cat " * 8,
    "",
    "  ",
    "\u732b",
    "\u043a\u043e\u0448\u043a\u0430",
    "caf\u00e9 \U0001f408",
    "two\nlines\ttab",
    "nul \x00 byte",
    "\u0645\u0631\u062d\u0628\u0627",
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_and_any_name_can_be_drawn(size) -> None:
    width, height = size
    rng = np.random.default_rng(0)
    low = rng.uniform(-0.2, 0.9, (len(NAMES), 2)) * size
    boxes = np.concatenate([low, low + rng.uniform(0, 0.6, (len(NAMES), 2)) * size], axis=1)
    detections = {
        "boxes": boxes,
        "scores": rng.uniform(0, 1, len(NAMES)),
        "labels": list(range(len(NAMES))),
        "text_labels": NAMES,
    }
    result = draw_detections(grey(width, height), detections)
    assert result.size == size
    assert changed(grey(width, height), result).any()


@pytest.mark.parametrize("box", [[0, 0, 60, 60], [740, 0, 799, 40], [700, 560, 799, 599], [0, 590, 30, 599]])
def test_the_whole_label_is_inside_the_picture(box) -> None:
    """At each corner, the label has the area that it has in the middle of the picture."""
    text = {"scores": [0.5], "labels": [1], "text_labels": ["remote control"]}

    def area(box: list[int]) -> int:
        blank = draw_detections(grey(800, 600), {"boxes": [box]}, line_width=1)
        named = draw_detections(grey(800, 600), {"boxes": [box], **text}, line_width=1)
        return int(changed(blank, named).sum())

    middle = area([300, 300, 400, 400])
    assert area(box) > 0.9 * middle


def test_labels_step_aside_for_each_other() -> None:
    """Four equal boxes: four labels, none covering another."""
    box = [300, 250, 500, 400]
    four = {
        "boxes": [box] * 4,
        "scores": [0.9, 0.8, 0.7, 0.6],
        "labels": [0, 1, 2, 3],
        "text_labels": ["name"] * 4,
    }
    pixels = np.asarray(draw_detections(grey(800, 600), four, line_width=1))
    areas = [int((pixels == label_color(k)).all(-1).sum()) for k in range(4)]
    assert min(areas) > 0.6 * max(areas)


def test_high_scores_are_on_top() -> None:
    box = [20, 40, 80, 90]
    for scores, top in (([0.2, 0.9], 1), ([0.9, 0.2], 0)):
        picture = draw_detections(
            grey(100, 100), {"boxes": [box, box], "scores": scores, "labels": [0, 1]}, line_width=1
        )
        assert picture.getpixel((20, 85)) == label_color(top)


def test_line_and_letters_grow_with_the_picture() -> None:
    def changed_share(scale: int) -> float:
        size = (200 * scale, 150 * scale)
        box = [v * scale for v in (40, 40, 160, 120)]
        found = {"boxes": [box], "scores": [0.5], "labels": [0], "text_labels": ["cat"]}
        return float(changed(grey(*size), draw_detections(grey(*size), found)).mean())

    assert changed_share(16) == pytest.approx(changed_share(4), rel=0.25)


def test_exif_orientation_is_honoured(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    grey(60, 40).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as photo:
        assert draw_detections(photo, {"boxes": [[1, 1, 30, 50]]}).size == (40, 60)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_any_mode_becomes_rgb(mode) -> None:
    photo = Image.new(mode, (40, 30))
    assert draw_detections(photo, {"boxes": [[5, 5, 20, 20]], "labels": [0]}).mode == "RGB"


@pytest.mark.parametrize(
    "detections, message",
    [
        ({"scores": [0.5]}, "no 'boxes'"),
        ({"boxes": [[0, 0, 1, 1]], "scores": [0.5, 0.4]}, "1 boxes but 2 scores"),
        ({"boxes": [[0, 0, 1, 1]], "labels": []}, "1 boxes but 0 labels"),
        ({"boxes": [[5, 0, 1, 1]]}, "box 0 is"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, float("nan"), 1]]}, "box 1 is"),
        ({"boxes": [[0, 0, 1]]}, "box 0 is"),
    ],
)
def test_contradictory_detections_are_refused(detections, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(grey(10, 10), detections)


def test_results_of_all_kinds_draw_the_same() -> None:
    boxes, names = [[2, 3, 30, 20], [10, 10, 40, 38]], ["cat", "dog"]
    result = {"boxes": torch.tensor(boxes), "scores": torch.tensor([0.75, 0.5]), "text_labels": names}
    sides = ("xmin", "ymin", "xmax", "ymax")
    of_pipeline = [
        {"score": score, "label": name, "box": dict(zip(sides, box))}
        for score, name, box in zip((0.75, 0.5), names, boxes)
    ]
    expected = draw_detections(grey(60, 40), result).tobytes()
    for same in ([result], (result,), of_pipeline, [of_pipeline]):
        assert draw_detections(grey(60, 40), same).tobytes() == expected
    for nothing in ([], [[]], {"boxes": torch.zeros(0, 4)}):
        assert draw_detections(grey(60, 40), nothing).tobytes() == grey(60, 40).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("detections", "options", "words"),
    [
        ([{"boxes": []}, {"boxes": []}], {}, "2 results for one image: draw each on its own"),
        ([[], []], {}, "2 results for one image"),
        (None, {}, "detections are a NoneType"),
        ({"boxes": [1, 2, 3, 4]}, {}, r"boxes=\[1, 2, 3, 4\] must be \[K, 4\] numbers"),
        ({"boxes": [[1, 2, "x", 4]]}, {}, "must be"),
        ({"boxes": []}, {"line_width": 0}, "line_width=0 must be at least 1"),
        ({"boxes": []}, {"font_size": float("nan")}, "font_size=nan must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_says_so(detections, options, words) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        draw_detections(grey(10, 10), detections, **options)
