# Copyright 2026 The glip_hf authors. MIT licence.
"""Pixels of a scene: textured background, things with pattern, shading and shadow, then lighting.

Letters: S side of the image, h and w of a patch around one thing. Colours are float32 RGB in 0..255 until the end.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .config import COLORS, Rng, SceneConfig
from .shapes import SILHOUETTES

OVERSAMPLING = 2  # silhouettes are drawn twice as large and downsampled: smooth edges
MARGIN = 4  # empty pixels around a silhouette in its patch; shading and shadows reach that far


@dataclass
class Thing:
    """One thing of a scene; kind, colour, pattern and band as captions name them."""

    kind: str | None  # None for a distractor
    color: str
    pattern: str
    band: str  # "small", "medium" or "large"
    silhouette: str  # key of `SILHOUETTES`
    side: float  # longer side when upright, in pixels
    angle: float  # degrees, clockwise
    box: tuple[int, int, int, int] | None = None  # xyxy of the visible pixels, set when the scene is finished


@dataclass
class Cutout:
    """A thing's silhouette on its own patch."""

    coverage: np.ndarray  # [h, w] float32 in 0..1
    solid: np.ndarray  # [h, w] bool, where it covers at least half of a pixel
    blurred: np.ndarray  # as coverage, for shading and shadow
    area: int  # number of solid pixels


def cut_out(thing: Thing, rng: Rng) -> Cutout:
    """Draw the silhouette at a random subpixel position."""
    angle = math.radians(thing.angle)
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, s], [-s, c]], dtype=np.float32) * (thing.side / 2)
    parts = [(points @ turn, paints) for points, paints in SILHOUETTES[thing.silhouette]]
    low = np.min([points.min(0) for points, paints in parts if paints], axis=0)
    high = np.max([points.max(0) for points, paints in parts if paints], axis=0)
    w, h = (int(side) + 2 + 2 * MARGIN for side in (high - low).tolist())
    origin = np.array([rng() + MARGIN, rng() + MARGIN], dtype=np.float32) - low
    mask = Image.new("L", (w * OVERSAMPLING, h * OVERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for points, paints in parts:
        draw.polygon(((points + origin) * OVERSAMPLING).ravel().tolist(), fill=255 if paints else 0)
    mask = mask.reduce(OVERSAMPLING)
    coverage = np.asarray(mask, dtype=np.float32) * np.float32(1 / 255)
    blurred = np.asarray(mask.filter(ImageFilter.BoxBlur(1.5)), dtype=np.float32)
    solid = coverage >= 0.5
    return Cutout(coverage, solid, blurred * np.float32(1 / 255), int(solid.sum()))


def _pattern(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Share of the second colour, [h, w], at coordinates (u, v) along the pattern, in pixels."""
    if thing.pattern == "striped":
        k = np.float32(2 * math.pi / max(4.0, 0.25 * thing.side))
        return np.clip(np.sin(k * u) / k + 0.3, 0, 1)
    if thing.pattern == "checkered":
        k = np.float32(2 * math.pi / max(6.0, 0.36 * thing.side))
        return np.clip(np.sin(k * u) * np.sin(k * v) * (2 / k) + 0.35, 0, 1)
    if thing.pattern == "dotted":
        period = np.float32(max(4.5, 0.27 * thing.side))
        du, dv = (np.mod(x, period) - period / 2 for x in (u, v))
        return np.clip(0.33 * period + 0.5 - np.sqrt(du * du + dv * dv), 0, 1)
    return None


def second_color(name: str, color: np.ndarray) -> np.ndarray:
    """What a pattern on `color` [3] is drawn in: a dark shade on bright colours, a pale one on dark ones.

    Black and white, whose patterns would look alike, get grey. The name decides and not the jittered colour, so that
    like things stay alike.
    """
    if name in ("black", "white"):
        return np.full(3, 165 if name == "white" else 95, dtype=np.float32)
    bright = float(np.dot(COLORS[name], (0.299, 0.587, 0.114))) > 88
    return color * np.float32(0.5) if bright else 255 - (255 - color) * np.float32(0.5)


@lru_cache(maxsize=8)
def _noise_bank(side: int) -> np.ndarray:
    """[side + 64, side + 64, 3] float32 of standard deviation 1: sensor noise is a random window of it."""
    noise = np.random.Generator(np.random.PCG64(5)).random((2, side + 64, side + 64, 3), np.float32)
    return (noise.sum(0) - 1) * np.float32(math.sqrt(6))


@lru_cache(maxsize=8)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """y [S, 1] and x [1, S] in -1..1."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    return line[:, None], line[None, :]


def _smooth(values: np.ndarray, side: int) -> np.ndarray:
    """A few values [n, m], upsampled smoothly to [S, S]."""
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))


def _muted(rng: Rng) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(rng(), rng.uniform(0.02, 0.25), rng.uniform(0.3, 0.85))
    return np.array(rgb, dtype=np.float32) * 255


def _texture(rng: Rng, side: int) -> np.ndarray:
    """[S, S] float32, mostly in -1..1: clouds, grain, tiles or planks."""
    y, x = _grid(side)
    style = rng.choice(("clouds", "grain", "tiles", "planks"))
    coarse = rng.integer(3, 6)
    field = _smooth(rng.array(coarse, coarse) - np.float32(0.5), side)
    if style == "clouds":
        n = rng.integer(9, 16)
        fine = _smooth(rng.array(n, n) - np.float32(0.5), side)
        return field + fine * np.float32(0.8)
    if style == "grain":
        shape = (4, rng.integer(30, 60)) if rng.chance(0.5) else (rng.integer(30, 60), 4)
        return field * np.float32(0.7) + _smooth(rng.array(*shape) - np.float32(0.5), side)
    angle = rng.uniform(-0.5, 0.5)
    c, s = math.cos(angle), math.sin(angle)
    u, v = x * c + y * s, y * c - x * s
    n = rng.uniform(3, 6)
    lines = np.abs(np.mod(u * n, 1) - 0.5)
    if style == "tiles":
        lines = np.maximum(lines, np.abs(np.mod(v * n, 1) - 0.5))
    return field * np.float32(0.8) - np.clip((lines - 0.44) * 12, 0, 0.5)


class Canvas:
    """An image under construction.

    Attributes:
        pixels: [S, S, 3] float32.
        owner: [S, S] int16, index of the thing that each pixel shows, -1 for the background.
    """

    def __init__(self, config: SceneConfig, rng: Rng) -> None:
        self.config, self.rng, self.side = config, rng, config.resolution
        self.owner = np.full((self.side, self.side), -1, dtype=np.int16)
        angle = rng.uniform(0, 2 * math.pi)
        reach = 0.02 * self.side
        self.shadow = round(math.cos(angle) * reach), round(math.sin(angle) * reach)
        self.light_from = -math.cos(angle), -math.sin(angle)
        self.pixels = self._background()

    def _background(self) -> np.ndarray:
        rng, side = self.rng, self.side
        y, x = _grid(side)
        angle = rng.uniform(0, 2 * math.pi)
        slope = rng.uniform(0, 0.5)
        ground = self._surface(x * (math.cos(angle) * slope) + y * (math.sin(angle) * slope))
        if rng.chance(0.35):  # a wall behind a floor
            row = round(rng.uniform(0.25, 0.7) * side)
            ground[row:] = self._surface()[row:]
        return ground

    def _surface(self, slope: np.ndarray | float = 0.0) -> np.ndarray:
        """Two colours blended by a texture, plus a slope [S, S] of brightness: [S, S, 3]."""
        first, second = _muted(self.rng), _muted(self.rng)
        share = np.clip(_texture(self.rng, self.side) + slope + np.float32(0.5), 0, 1)[..., None]
        return first + (second - first) * (share * np.float32(0.7))

    def window(self, left: int, top: int, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Slices of image and patch where a patch [h, w] at (left, top) lies in the image."""
        ys, xs = (slice(max(start, 0), min(start + size, self.side)) for start, size in zip((top, left), shape))
        patch = slice(ys.start - top, ys.stop - top), slice(xs.start - left, xs.stop - left)
        return (ys, xs), patch

    def paint(self, thing: Thing, cutout: Cutout, left: int, top: int, index: int) -> None:
        """Draw a thing with the corner of its patch at (left, top)."""
        rng = self.rng
        h, w = cutout.coverage.shape
        angle = math.radians(thing.angle)
        y = np.arange(h, dtype=np.float32)[:, None] - np.float32(h / 2)
        x = np.arange(w, dtype=np.float32)[None, :] - np.float32(w / 2)
        jitter = self.config.color_jitter
        color = np.array(COLORS[thing.color], dtype=np.float32)
        color = np.clip(color + (rng.array(3) * 2 - 1) * np.float32(jitter), 0, 255)
        turn = rng.choice((0.0, 0.25, 0.5, 0.75)) * math.pi
        cp, sp = math.cos(angle + turn), math.sin(angle + turn)
        share = _pattern(thing, x * cp + y * sp, y * cp - x * sp)
        lx, ly = self.light_from
        bend = rng.uniform(0.1, 0.3) / thing.side
        # brighter towards the light, darker at the rim
        shade = 1 + (x * (lx * bend) + y * (ly * bend)) - (1 - cutout.blurred) * np.float32(0.35)
        if share is not None:
            color = color + (second_color(thing.color, color) - color) * share[..., None]
        body = color * shade[..., None]

        area, patch = self.window(left + self.shadow[0], top + self.shadow[1], (h, w))
        self.pixels[area] *= 1 - cutout.blurred[patch][..., None] * np.float32(0.4 * self.config.light)
        area, patch = self.window(left, top, (h, w))
        region = self.pixels[area]
        region += (body[patch] - region) * cutout.coverage[patch][..., None]
        self.owner[area][cutout.solid[patch]] = index

    def finish(self) -> np.ndarray:
        """Add lighting, noise and blur; [S, S, 3] uint8."""
        config, rng, side = self.config, self.rng, self.side
        y, x = _grid(side)
        light = 1 + _smooth(rng.array(3, 3) - np.float32(0.55), side) * np.float32(0.45 * config.light)
        if rng.chance(0.5):
            light -= (x * x + y * y) * np.float32(rng.uniform(0.03, 0.14) * config.light)
        if rng.chance(0.4):  # the soft edge of a large shadow
            angle, at = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)
            ramp = x * (math.cos(angle) * 6) + y * (math.sin(angle) * 6) + np.float32(at * 6)
            light *= 1 - np.clip(ramp, 0, 1) * np.float32(rng.uniform(0.1, 0.3) * config.light)
        cast = 1 + (rng.array(3) - np.float32(0.5)) * np.float32(0.16 * config.light)
        pixels = self.pixels * (light[..., None] * cast)
        top, left = rng.integer(0, 63), rng.integer(0, 63)
        bank = _noise_bank(side)[top : top + side, left : left + side]
        pixels += bank * np.float32(config.noise * rng.uniform(0.3, 1.5))
        image = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
        if rng.chance(config.blur_chance):
            blur = ImageFilter.BoxBlur(rng.uniform(0.3, 0.7))
            image = np.asarray(Image.fromarray(image).filter(blur))
        return image
