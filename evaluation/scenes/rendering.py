"""Rendering of a scene: its pixels and their truth (the owner of each pixel, boxes, visible areas)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.dice import Dice
from evaluation.scenes.palette import BACKGROUND_SWING, RGB, SECOND_RGB, SHADE_SWING
from evaluation.scenes.scene import Background, Scene, SceneError, Thing
from evaluation.scenes.shapes import F32, Footprint, footprint

SMALLEST_PX, LARGEST_PX = 48, 448
_CELLS = {"clouds": 5, "grain": 24}  # random grey values along one side of a pattern
_RIM = 0.014  # a texture leaves this much of the edge in the thing's own colour, in image sides


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture and its truth.

    image: uint8 [H, W, 3]. owner: int8 [H, W], index of the thing that is seen there, -1 for the background.
    boxes: int32 [N, 4], left, top, right, bottom of what is seen; right and bottom are one past the last pixel;
    all 0 for a thing that is not seen. visible_px: int64 [N]. full_px: int64 [N], the area were nothing in front.
    outlines: bool [N, H, W], what is seen plus the holes of rings (the background seen through them).
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    boxes: NDArray[np.int32]
    visible_px: NDArray[np.int64]
    full_px: NDArray[np.int64]
    outlines: NDArray[np.bool_]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool [N, H, W]: what is seen of each thing."""
        return self.owner[None] == np.arange(len(self.boxes), dtype=np.int8)[:, None, None]


def render(scene: Scene, size_px: int) -> Rendered:
    """Draw a scene as a square of `size_px` (48 to 448); the same scene looks the same at every size.

    Only elementwise float32 arithmetic with correctly rounded results is used, so pixels do not depend on the
    platform's linear algebra or vector library.
    """
    if not SMALLEST_PX <= size_px <= LARGEST_PX:
        raise SceneError(f"size must be {SMALLEST_PX} to {LARGEST_PX} px, got {size_px}")
    canvas = _background(scene.background, size_px)
    count = len(scene.things)
    owner = np.full((size_px, size_px), -1, dtype=np.int8)
    outlines = np.zeros((count, size_px, size_px), dtype=bool)
    full_px = np.zeros(count, dtype=np.int64)
    boxes = np.zeros((count, 4), dtype=np.int32)
    places = [footprint(thing, size_px) for thing in scene.things]
    order = sorted(range(count), key=lambda index: scene.things[index].z)
    for index in order:
        thing, place = scene.things[index], places[index]
        inside = place.distance_px <= 0
        _paint(canvas[place.window], thing, place, size_px)
        owner[place.window][inside] = index
        full_px[index] = np.count_nonzero(inside)
    for index in range(count):
        place = places[index]
        mine = owner[place.window] == index
        outlines[index][place.window] = mine
        if place.outline_px is not place.distance_px:
            outlines[index][place.window] |= (place.outline_px <= 0) & (owner[place.window] == -1)
        boxes[index] = _box(mine, place)
    visible_px = np.bincount(owner.ravel() + 1, minlength=count + 1)[1:].astype(np.int64)
    image = (canvas * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return Rendered(image, owner, boxes, visible_px, full_px, outlines)


def _paint(window: F32, thing: Thing, place: Footprint, size_px: int) -> None:
    """Blend a thing over the canvas: float32 [h, w, 3], changed in place."""
    lighter = np.float32(1 + SHADE_SWING * thing.shade)
    first = np.minimum(np.array(RGB[thing.colour], dtype=np.float32) * lighter, np.float32(1))
    alpha = _inside(place.distance_px)[..., None]
    if thing.texture == "plain":
        window += alpha * (first - window)
        return
    second = np.array(SECOND_RGB[thing.colour], dtype=np.float32)
    pattern = _texture(thing, place) * np.float32(size_px)
    share = np.minimum(_inside(pattern), _inside(place.distance_px + np.float32(_RIM * size_px)))[..., None]
    window += alpha * (first + share * (second - first) - window)


def _inside(distance_px: F32) -> F32:
    """How much of a pixel lies inside, 0..1."""
    return np.clip(np.float32(0.5) - distance_px, np.float32(0), np.float32(1))


def _texture(thing: Thing, place: Footprint) -> F32:
    """Signed distance to the second colour, in image sides; the pattern turns and grows with the thing."""
    if thing.texture == "striped":
        return _wave(place.u, max(0.072, 0.28 * thing.size))
    if thing.texture == "dotted":
        period = np.float32(max(0.075, 0.28 * thing.size))
        u, v = _centred(place.u, period), _centred(place.v, period)
        return np.sqrt(u * u + v * v) - np.float32(0.31) * period
    period = max(0.10, 0.38 * thing.size)
    a, b = _wave(place.u, period, shift=0.25), _wave(place.v, period, shift=0.25)
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))


def _wave(along: F32, period: float, *, shift: float = 0.0) -> F32:
    """Signed distance to bands half a period wide."""
    length = np.float32(period)
    return np.abs(_centred(along + np.float32(shift) * length, length)) - length / 4


def _centred(along: F32, period: np.float32) -> F32:
    """Distance with sign to the nearest multiple of the period."""
    turns = along / period
    return (turns - np.floor(turns + np.float32(0.5))) * period


def _box(mine: NDArray[np.bool_], place: Footprint) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    top, left = place.window[0].start, place.window[1].start
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _background(background: Background, size_px: int) -> F32:
    """float32 [H, W, 3] in 0..1."""
    red, blue = background.tint
    rgb = np.array([background.level + red, background.level, background.level + blue], dtype=np.float32)
    canvas = np.empty((size_px, size_px, 3), dtype=np.float32)
    canvas[:] = rgb
    if background.pattern != "plain":
        canvas += (_pattern(background, size_px) * np.float32(BACKGROUND_SWING))[..., None]
    return canvas


def _pattern(background: Background, size_px: int) -> F32:
    """float32 [H, W] in -1..1, the same picture at every size."""
    dice = Dice("background", background.seed)
    middles = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    if background.pattern == "gradient":
        across, down = dice.uniform(-1, 1), dice.uniform(-1, 1)
        length = np.float32(2 / max(0.25, abs(across) + abs(down)))
        tilt = (middles - np.float32(0.5)) * np.float32(across) + ((middles - np.float32(0.5)) * np.float32(down))[
            :, None
        ]
        return np.clip(tilt * length, np.float32(-1), np.float32(1))
    if background.pattern == "spot":
        dx, dy = middles - np.float32(dice.uniform(0.2, 0.8)), middles - np.float32(dice.uniform(0.2, 0.8))
        fall = np.sqrt(dx * dx + (dy * dy)[:, None]) * np.float32(2)
        return np.maximum(np.float32(1) - fall, np.float32(-1))
    cells = _CELLS[background.pattern]
    knots = np.array(dice.fractions(cells * cells), dtype=np.float32).reshape(cells, cells) * np.float32(
        2
    ) - np.float32(1)
    low, high, part = _between_knots(size_px, cells)
    lines = knots[low] + (knots[high] - knots[low]) * part[:, None]
    return lines[:, low] + (lines[:, high] - lines[:, low]) * part


@lru_cache(maxsize=64)
def _between_knots(size_px: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], F32]:
    """Per pixel the knots on both sides and how far it is from the lower one, 0..1."""
    along = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px) * np.float32(cells - 1)
    low = np.minimum(along.astype(np.intp), cells - 2)
    return low, low + 1, along - low.astype(np.float32)
