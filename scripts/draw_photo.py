# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the image of the tests and of README.md's examples: two cats on a pink sofa, remote control, plant and lamp.

    python scripts/draw_photo.py [OUT.jpg]  # default: tests/fixtures/images/photo.jpg; 1 second

It is drawn with PIL and a fixed seed, so no third-party rights are involved. tests/test_demo.py draws it again and
compares.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 640, 480
SCALE = 3  # drawn at three times the size and downsampled, which smooths the edges
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "tests/fixtures/images/photo.jpg"
Color = tuple[int, int, int]


def shade(color: Color, factor: float) -> Color:
    """The colour, brighter (factor > 1) or darker."""
    return tuple(min(255, round(c * factor)) for c in color)


class Brush:
    """ImageDraw in image coordinates: every coordinate is multiplied by SCALE."""

    def __init__(self, image: Image.Image) -> None:
        self.draw = ImageDraw.Draw(image)

    def box(self, x1: float, y1: float, x2: float, y2: float, fill: Color, radius: float = 0) -> None:
        corners = [v * SCALE for v in (x1, y1, x2, y2)]
        self.draw.rounded_rectangle(corners, radius * SCALE, fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        self.draw.ellipse([v * SCALE for v in (x - rx, y - ry, x + rx, y + ry)], fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Color) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def line(self, points: list[tuple[float, float]], fill: Color, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill=fill, width=round(width * SCALE), joint="curve")


def draw_room(brush: Brush) -> None:
    brush.box(0, 0, WIDTH, 340, (222, 212, 190))
    for x in range(0, WIDTH, 40):  # striped wallpaper
        brush.box(x, 0, x + 14, 340, (214, 203, 180))
    for row, y in enumerate(range(340, HEIGHT, 28)):  # floor boards
        for x in range(-120 + 75 * (row % 2), WIDTH, 150):
            brush.box(x, y, x + 148, y + 26, shade((166, 112, 66), 0.92 + 0.05 * ((x // 50 + row) % 4)))
        brush.box(0, y + 26, WIDTH, y + 28, (112, 72, 40))
    brush.box(0, 330, WIDTH, 344, (240, 236, 226))
    brush.box(60, 30, 220, 170, (120, 88, 56), 3)  # window
    brush.box(68, 38, 212, 162, (140, 196, 232))
    for x, y, rx, ry in ((110, 80, 30, 12), (132, 72, 26, 14), (180, 120, 24, 9)):
        brush.oval(x, y, rx, ry, (245, 249, 252))
    brush.box(137, 38, 143, 162, (120, 88, 56))
    brush.box(68, 97, 212, 103, (120, 88, 56))


def draw_plant(brush: Brush) -> None:
    for dx, height in ((-34, 90), (-18, 120), (0, 140), (18, 118), (34, 84)):
        tip = (46 + dx * 1.4, 350 - height)
        brush.polygon([(42, 350), tip, (56 + dx * 0.4, 350 - height * 0.45)], (46, 120 + abs(dx), 62))
    brush.polygon([(14, 340), (80, 340), (70, 410), (24, 410)], (186, 92, 52))
    brush.box(10, 334, 84, 350, (204, 106, 62), 3)


def draw_lamp(brush: Brush) -> None:
    brush.box(585, 150, 591, 400, (70, 64, 60))
    brush.oval(588, 402, 36, 9, (70, 64, 60))
    brush.polygon([(562, 84), (614, 84), (634, 160), (542, 160)], (250, 214, 120))
    brush.polygon([(562, 84), (580, 84), (566, 160), (542, 160)], (255, 232, 160))


def draw_sofa(brush: Brush) -> None:
    pink: Color = (232, 130, 162)
    for x in (130, 520):
        brush.box(x, 400, x + 14, 430, (84, 54, 34), 3)
    brush.box(110, 190, 552, 360, shade(pink, 0.88), 26)
    for left in (128, 334):
        brush.box(left, 202, left + 200, 330, shade(pink, 0.97), 20)
        brush.box(left + 4, 206, left + 196, 250, shade(pink, 1.03), 18)
    for left in (120, 331):
        brush.box(left, 312, left + 211, 366, pink, 14)
        brush.box(left, 312, left + 211, 326, shade(pink, 1.08), 10)
    brush.box(110, 356, 552, 408, shade(pink, 0.8), 12)
    for left in (92, 524):
        brush.box(left, 262, left + 46, 410, shade(pink, 0.93), 20)
        brush.box(left + 4, 264, left + 42, 290, shade(pink, 1.06), 16)


def draw_cat(brush: Brush, x: float, y: float, fur: Color, side: int) -> None:
    """A sitting cat whose feet stand at (x, y); `side` (-1 or 1) is where its tail lies."""
    dark = shade(fur, 0.66)
    tail = [
        (x + side * 20, y - 10),
        (x + side * 46, y - 6),
        (x + side * 60, y - 20),
        (x + side * 58, y - 34),
    ]
    brush.line(tail, dark, 10)
    brush.oval(*tail[-1], 5, 5, dark)
    brush.oval(x, y - 34, 31, 37, fur)
    for k in range(3):
        brush.line([(x + side * 30, y - 50 + 14 * k), (x + side * 12, y - 46 + 14 * k)], dark, 4)
    brush.oval(x, y - 30, 14, 24, shade(fur, 1.25))
    for dx in (-13, 13):
        brush.oval(x + dx, y - 3, 11, 7, shade(fur, 1.12))
    top = y - 82
    for ear in (-1, 1):
        brush.polygon([(x + ear * 27, top - 30), (x + ear * 27, top + 2), (x + ear * 4, top - 18)], fur)
        brush.polygon(
            [(x + ear * 24, top - 22), (x + ear * 24, top - 5), (x + ear * 11, top - 15)],
            (226, 150, 150),
        )
    brush.oval(x, top, 30, 26, fur)
    for k in (-8, 0, 8):
        brush.line([(x + k, top - 25), (x + k * 0.8, top - 12)], dark, 3)
    for eye in (-1, 1):
        brush.oval(x + eye * 12, top - 2, 6.5, 7, (214, 224, 120))
        brush.oval(x + eye * 12, top - 2, 2.2, 6, (24, 22, 20))
        for k in (-4, 1, 6):
            brush.line([(x + eye * 8, top + 12), (x + eye * 36, top + 10 + k)], (250, 246, 240), 0.8)
    brush.oval(x, top + 13, 12, 8, shade(fur, 1.3))
    brush.polygon([(x - 4, top + 7), (x + 4, top + 7), (x, top + 12)], (206, 104, 110))


def draw_remote(brush: Brush) -> None:
    brush.polygon([(272, 338), (366, 322), (372, 334), (278, 351)], (26, 26, 30))
    brush.polygon([(272, 338), (366, 322), (366, 326), (273, 342)], (62, 62, 70))
    brush.oval(287, 341, 4, 2.6, (208, 48, 48))
    for k in range(5):
        for row in range(2):
            brush.oval(304 + 12 * k + row, 336.5 - 2 * k + 5 * row, 3, 1.7, (170, 172, 178))


def draw_photo() -> Image.Image:
    """The image, 640 x 480 RGB, with slight lens blur, light fall-off and sensor noise."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
    brush = Brush(image)
    for part in (draw_room, draw_plant, draw_lamp, draw_sofa):
        part(brush)
    draw_cat(brush, 208, 330, (222, 142, 62), -1)
    draw_cat(brush, 448, 332, (128, 128, 136), 1)
    draw_remote(brush)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.6))

    pixels = np.asarray(image, dtype=np.float64)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    from_lamp = np.hypot((x - 588) / WIDTH, (y - 130) / HEIGHT)
    light = 0.82 + 0.36 * np.exp(-2.5 * from_lamp)
    noise = np.random.RandomState(0).normal(0, 2.5, (HEIGHT, WIDTH, 1))
    pixels = pixels * light[:, :, None] * (1.0, 0.985, 0.96) + noise
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT)
    out = parser.parse_args().out
    draw_photo().save(out, quality=88)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
