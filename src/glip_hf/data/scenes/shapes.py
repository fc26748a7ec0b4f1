# Copyright 2026 The glip_hf authors. MIT licence.
"""Silhouettes of the things in scenes: polygons, drawn one after another into a mask.

Each is centred on the origin with its longer side 2 units long; x points right, y points down.
"""

import math

import numpy as np

Part = tuple[np.ndarray, bool]  # [P, 2] float32 corners; True paints, False cuts out
Points = list[tuple[float, float]]


def _arc(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 24) -> Points:
    """Points of an ellipse from `start` to `stop` degrees, clockwise from the right."""
    angles = [math.radians(start + (stop - start) * k / n) for k in range(n + (stop - start < 360))]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _box(x1: float, y1: float, x2: float, y2: float) -> Points:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _star(points: int, inner: float) -> Points:
    radii = [1.0, inner] * points
    angles = [math.pi * k / points - math.pi / 2 for k in range(2 * points)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)]


def _heart() -> Points:
    angles = [2 * math.pi * k / 32 for k in range(32)]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return [(16 * math.sin(t) ** 3 / 16, -y / 16) for t, y in zip(angles, heights)]


# A bare list of points paints; a pair (points, False) cuts out.
_DRAWINGS: dict[str, list] = {
    "star": [_star(5, 0.42)],
    "ring": [_arc(0, 0, 1, 1), (_arc(0, 0, 0.55, 0.55), False)],
    "crescent": [_arc(0, 0, 1, 1, n=32), (_arc(0.52, -0.1, 0.8, 0.8), False)],
    "heart": [_heart()],
    "arrow": [[(-1, -0.24), (0.1, -0.24), (0.1, -0.72), (1, 0), (0.1, 0.72), (0.1, 0.24), (-1, 0.24)]],
    "cross": [
        [(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)]
        + [(0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)]
    ],
    "house": [
        [(-1, -0.1), (0, -1), (1, -0.1)],
        _box(0.42, -0.95, 0.72, -0.3),
        _box(-0.75, -0.15, 0.75, 0.9),
        (_box(-0.22, 0.3, 0.22, 0.91), False),
    ],
    "tree": [
        [(0, -1), (0.5, -0.4), (-0.5, -0.4)],
        [(0, -0.75), (0.65, 0.1), (-0.65, 0.1)],
        [(0, -0.35), (0.8, 0.6), (-0.8, 0.6)],
        _box(-0.17, 0.55, 0.17, 1),
    ],
    "fish": [
        _arc(-0.25, 0, 0.75, 0.5),
        [(0.25, 0), (1, -0.55), (0.82, 0), (1, 0.55)],
        (_arc(-0.62, -0.12, 0.12, 0.12, n=8), False),
    ],
    "mug": [
        _arc(0.45, 0, 0.55, 0.5),
        (_arc(0.47, 0, 0.27, 0.24), False),
        [(-0.95, -0.8), (0.4, -0.8), (0.32, 0.8), (-0.87, 0.8)],
    ],
    "umbrella": [
        _arc(0, 0, 1, 1, 180, 360),
        *((_arc(x, 0.02, 0.3, 0.18), False) for x in (-0.67, 0, 0.67)),
        _box(-0.09, -0.2, 0.09, 0.8),
        _arc(0.17, 0.72, 0.27, 0.27, 0, 180) + _arc(0.17, 0.72, 0.09, 0.09, 0, 180)[::-1],
    ],
    "bolt": [[(0.2, -1), (-0.6, 0.18), (-0.05, 0.18), (-0.3, 1), (0.6, -0.3), (0.05, -0.3), (0.45, -1)]],
    "mushroom": [_arc(0, 0, 1, 0.95, 180, 360), [(-0.3, 0), (0.3, 0), (0.4, 0.85), (-0.4, 0.85)]],
    "boat": [
        [(-1, 0.35), (1, 0.35), (0.6, 0.95), (-0.65, 0.95)],
        _box(-0.12, -0.9, 0.04, 0.4),
        [(0.14, -0.95), (0.85, 0.2), (0.14, 0.2)],
        [(-0.22, -0.6), (-0.22, 0.2), (-0.75, 0.2)],
    ],
    "flower": [
        *(_arc(0.62 * math.cos(math.pi * k / 3), 0.62 * math.sin(math.pi * k / 3), 0.38, 0.38, n=14) for k in range(6)),
        _arc(0, 0, 0.5, 0.5, n=14),
        (_arc(0, 0, 0.24, 0.24, n=12), False),
    ],
    "butterfly": [
        *([(side * 0.1, 0.05), (side, -0.85), (side * 0.95, -0.05)] for side in (-1, 1)),
        *(_arc(x, -0.4, 0.42, 0.42, n=14) for x in (-0.62, 0.62)),
        *(_arc(x, 0.42, 0.38, 0.36, n=14) for x in (-0.46, 0.46)),
        _arc(0, 0, 0.13, 0.75, n=14),
    ],
    # kinds kept for fine-tuning
    "rocket": [
        [(0, -1), (0.34, -0.5), (0.34, 0.5), (-0.34, 0.5), (-0.34, -0.5)],
        *([(side * 0.34, 0.05), (side * 0.75, 0.6), (side * 0.75, 0.9), (side * 0.34, 0.5)] for side in (1, -1)),
        [(-0.2, 0.5), (0.2, 0.5), (0, 1)],
        (_arc(0, -0.3, 0.17, 0.17, n=12), False),
    ],
    "hammer": [_box(-0.15, -0.5, 0.15, 1), [(-0.75, -1), (0.55, -1), (0.8, -0.55), (0.8, -0.35), (-0.75, -0.35)]],
    # things without a name
    "disc": [_arc(0, 0, 1, 1)],
    "square": [_box(-1, -1, 1, 1)],
    "triangle": [[(0, -0.9), (1, 0.85), (-1, 0.85)]],
    "bar": [_box(-1, -0.2, 1, 0.2)],
    "hexagon": [_arc(0, 0, 1, 1, n=6)],
    "zigzag": [
        [(-1, -0.3), (-0.5, 0.2), (0, -0.3), (0.5, 0.2), (1, -0.3)]
        + [(1, 0.05), (0.5, 0.55), (0, 0.05), (-0.5, 0.55), (-1, 0.05)]
    ],
    "pebble": [[(-1, 0.1), (-0.6, -0.55), (0.2, -0.7), (0.9, -0.3), (1, 0.3), (0.3, 0.65), (-0.6, 0.6)]],
    "bean": [_arc(0, 0, 1, 0.7, n=20), (_arc(0, -0.75, 0.45, 0.5, n=12), False)],
}


def _normalise(drawing: list) -> list[Part]:
    parts = [part if isinstance(part, tuple) else (part, True) for part in drawing]
    painted = np.concatenate([np.array(points) for points, paints in parts if paints])
    low, high = painted.min(0), painted.max(0)
    centre, scale = (low + high) / 2, 2 / (high - low).max()
    return [(((np.array(points) - centre) * scale).astype(np.float32), paints) for points, paints in parts]


SILHOUETTES: dict[str, list[Part]] = {name: _normalise(drawing) for name, drawing in _DRAWINGS.items()}

NOVEL_KINDS = ("rocket", "hammer")
NAMELESS = ("disc", "square", "triangle", "bar", "hexagon", "zigzag", "pebble", "bean")
KINDS = tuple(name for name in _DRAWINGS if name not in (*NOVEL_KINDS, *NAMELESS))
