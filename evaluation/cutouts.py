"""Things cut out of photographs with a plain background, and pictures that are made of them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import binary_propagation

U8 = NDArray[np.uint8]
_PLAIN_FRAME = 0.5  # a thing may reach the frame, but not fill it
_PLAIN = 12  # a pixel that differs by no more in any channel from the background belongs to it
_SOFT_EDGE_PX = 0.7
_LEAST_SIDE_PX = 8


class NoPlainBackground(ValueError):
    """There is nothing to cut out: all is background, or nothing is."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """pixels: RGBA, the whole photograph, transparent where its background was; colour: what the background had."""

    pixels: Image.Image
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Pose:
    """Where a cutout's photograph lies on a square canvas. size: its longer side, as a share of the canvas's. x, y:
    where in the room that is left, 0 is left or top, 1 is right or bottom, .5 the middle."""

    size: float
    x: float = 0.5
    y: float = 0.5


def cut_out(image: Image.Image) -> Cutout:
    """The background is what has the colour of the frame (the median of its pixels) and touches it.

    Raises:
        NoPlainBackground: half of the frame has another colour, or nothing but background is there.
    """
    rgb = np.asarray(image.convert("RGB"))
    frame = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    colour = np.median(frame, axis=0)
    plain = np.abs(rgb.astype(np.int16) - colour.astype(np.int16)).max(axis=2) <= _PLAIN
    edges = np.concatenate([plain[0], plain[-1], plain[:, 0], plain[:, -1]])
    thing = ~_touching_the_frame(plain)
    if edges.mean() < _PLAIN_FRAME or not thing.any():
        raise NoPlainBackground("expected a thing on a background of one colour")
    alpha = Image.fromarray(thing.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(_SOFT_EDGE_PX))
    # The blur reaches into the background, whose colour would be a rim on another one.
    alpha = np.minimum(np.asarray(alpha), thing.astype(np.uint8) * 255)
    red, green, blue = (int(value) for value in colour)
    return Cutout(Image.fromarray(np.dstack([rgb, alpha])), (red, green, blue))


def composed(things: Sequence[tuple[Cutout, Pose]], background: Image.Image) -> Image.Image:
    """The things on a square background, in their order.

    Raises:
        ValueError: a background that is no square.
    """
    if background.width != background.height:
        raise ValueError(f"expected a square background, got {background.width} x {background.height}")
    canvas = background.convert("RGB")
    for thing, pose in things:
        pixels = thing.pixels
        scale = pose.size * canvas.width / max(pixels.size)
        width, height = (max(_LEAST_SIDE_PX, round(side * scale)) for side in pixels.size)
        small = _resized(pixels, (width, height))
        place = (round(pose.x * (canvas.width - width)), round(pose.y * (canvas.height - height)))
        canvas.paste(small, place, small)
    return canvas


def plain_background(colour: tuple[int, int, int], side_px: int) -> Image.Image:
    return Image.new("RGB", (side_px, side_px), colour)


def part_of_photograph(
    image: Image.Image, side_px: int, rng: np.random.Generator, *, least: float = 0.6
) -> Image.Image:
    """A random square part, at least `least` of the shorter side wide."""
    side = min(image.size) * rng.uniform(least, 1.0)
    x, y = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
    box = (x, y, x + side, y + side)
    return image.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC, box=box)


def _resized(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow weighs the colours of RGBA by their alpha, so a background that is gone does not bleed in."""
    return pixels.resize(size, Image.Resampling.BICUBIC)


def _touching_the_frame(plain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of a mask [H, W] that is connected with the edge of the picture, over sides of pixels."""
    frame = np.zeros_like(plain)
    frame[0], frame[-1], frame[:, 0], frame[:, -1] = True, True, True, True
    return np.asarray(binary_propagation(frame & plain, mask=plain), dtype=np.bool_)
