"""Outlines as signed distances: where a thing is, at any resolution, with a sub-pixel edge.

Each formula is written in the shape's own coordinates (outline centred on 0, y downwards, about 1 from the middle to
the farthest tip). The zero contour is exact; away from it the distance is a bound, which is all antialiasing needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.scene import Thing

F32 = NDArray[np.floating]  # float32 when run (a test looks); numpy's stubs widen it in mixed arithmetic
_ROOT_HALF = math.sqrt(0.5)
_CROSS_ARM = 0.36  # half the width of an arm
_RING_HOLE = 0.58  # radius
_STAR_INNER = 0.45  # radius of the five inner corners
_HEART = 0.74  # half the diagonal of the square in the middle
_HEART_SHIFT = (_ROOT_HALF + 0.5 - 1) / 2 * _HEART  # brings the middle of the heart's height to 0
_MOON_BITE = (0.55, 0.80)  # centre and radius of the circle that is cut away
_MOON_SHIFT = 0.2


def circle(u: F32, v: F32) -> F32:
    return np.sqrt(u * u + v * v) - np.float32(1)


def square(u: F32, v: F32) -> F32:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(_ROOT_HALF)


def triangle(u: F32, v: F32) -> F32:
    """Equilateral, one tip up."""
    sides = np.float32(math.sqrt(0.75)) * np.abs(u) - np.float32(0.5) * v
    return np.maximum(sides, v) - np.float32(0.5)


def cross(u: F32, v: F32) -> F32:
    a, b = np.abs(u), np.abs(v)
    arm, tip = np.float32(_CROSS_ARM), np.float32(0.94)
    return np.minimum(np.maximum(a - tip, b - arm), np.maximum(a - arm, b - tip))


def ring(u: F32, v: F32) -> F32:
    middle, half = (1 + _RING_HOLE) / 2, (1 - _RING_HOLE) / 2
    return np.abs(np.sqrt(u * u + v * v) - np.float32(middle)) - np.float32(half)


def star(u: F32, v: F32) -> F32:
    """Five tips, one up: mirrored into a tenth of the plane, where the edge is one straight line."""
    x, y = np.abs(u), -v
    for degrees in (72, 144):  # normals of the two mirrors, on the side that is kept
        nx, ny = np.float32(_cos(degrees)), np.float32(_sin(degrees))
        outside = np.minimum(x * nx + y * ny, np.float32(0)) * np.float32(2)
        x, y = x - outside * nx, y - outside * ny
    x = np.abs(x)
    ex, ey = _STAR_INNER * _cos(54), _STAR_INNER * _sin(54) - 1  # from the tip to the inner corner
    length = math.sqrt(ex * ex + ey * ey)
    return (x * np.float32(-ey) + (y - np.float32(1)) * np.float32(ex)) / np.float32(length)


def heart(u: F32, v: F32) -> F32:
    """A square on its corner with a circle on each upper side."""
    x, y = np.abs(u), v - np.float32(_HEART_SHIFT)
    h = np.float32(_HEART)
    body = (x + np.abs(y) - h) * np.float32(_ROOT_HALF)
    cheek_x, cheek_y = x - h / 2, y + h / 2
    cheek = np.sqrt(cheek_x * cheek_x + cheek_y * cheek_y) - h * np.float32(_ROOT_HALF)
    return np.minimum(body, cheek)


def moon(u: F32, v: F32) -> F32:
    """A crescent, open to the right."""
    x = u - np.float32(_MOON_SHIFT)
    centre, radius = _MOON_BITE
    bite_x = x - np.float32(centre)
    y2 = v * v
    return np.maximum(np.sqrt(x * x + y2) - np.float32(1), np.float32(radius) - np.sqrt(bite_x * bite_x + y2))


_DISTANCE = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "moon": moon,
}
# Area and farthest point of each outline, in its own coordinates; a test integrates them.
AREA = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * _STAR_INNER * math.sin(math.radians(36)),
    "cross": 4 * _CROSS_ARM * (2 * 0.94 - _CROSS_ARM),
    "ring": math.pi * (1 - _RING_HOLE**2),
    "heart": (2 + math.pi / 2) * _HEART**2,
    "moon": 1.6090,
}
OUTER = {
    "circle": 1.0,
    "square": 1.0,
    "triangle": 1.0,
    "star": 1.0,
    "cross": 1.0066,
    "ring": 1.0,
    "heart": 0.9955,
    "moon": 1.1315,
}


def unit(thing: Thing) -> float:
    """How long 1 of the shape's own coordinates is, in image sides."""
    return thing.size / math.sqrt(AREA[thing.shape])


def reach(thing: Thing) -> float:
    """From the middle of the thing to its farthest point, in image sides."""
    return unit(thing) * OUTER[thing.shape]


@dataclass(frozen=True, slots=True)
class Footprint:
    """A thing on a pixel grid: the window that holds it, and per pixel of the window its own coordinates.

    `u`, `v` float32 [h, w] are in image sides, turned with the thing; `distance_px` float32 [h, w] is negative inside;
    `outline_px` is the same for the filled outline (a ring's hole counts).
    """

    window: tuple[slice, slice]
    u: F32
    v: F32
    distance_px: F32
    outline_px: F32


def footprint(thing: Thing, size_px: int) -> Footprint:
    scale = unit(thing)
    margin = reach(thing) + 1.5 / size_px
    columns = _window(thing.x, margin, size_px)
    rows = _window(thing.y, margin, size_px)
    grid = _pixel_middles(size_px)
    across, down = grid[columns] - np.float32(thing.x), (grid[rows] - np.float32(thing.y))[:, None]
    cos, sin = np.float32(_cos(thing.rotation_deg)), np.float32(_sin(thing.rotation_deg))
    u, v = across * cos + down * sin, down * cos - across * sin
    own_u, own_v = u / np.float32(scale), v / np.float32(scale)
    to_px = np.float32(scale * size_px)
    distance_px = _DISTANCE[thing.shape](own_u, own_v) * to_px
    outline_px = circle(own_u, own_v) * to_px if thing.shape == "ring" else distance_px
    return Footprint((rows, columns), u, v, distance_px, outline_px)


def _window(middle: float, margin: float, size_px: int) -> slice:
    low = max(0, int((middle - margin) * size_px))
    return slice(low, max(low, min(size_px, int((middle + margin) * size_px) + 1)))


@lru_cache(maxsize=64)
def _pixel_middles(size_px: int) -> F32:
    middles = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    middles.flags.writeable = False
    return middles


# The last digits of sine and cosine differ between C libraries; twelve decimals do not.
def _cos(degrees: int) -> float:
    return round(math.cos(math.radians(degrees)), 12)


def _sin(degrees: int) -> float:
    return round(math.sin(math.radians(degrees)), 12)
