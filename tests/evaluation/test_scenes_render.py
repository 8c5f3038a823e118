"""Pixels against the truth that they are drawn from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.palette import (
    BACKGROUND_SWING,
    BACKGROUND_TINT,
    COLOURS,
    PATTERNS,
    RGB,
    SHAPES,
    TEXTURES,
    TONE_LEVELS,
)
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Background, Scene, SceneError, Thing, depth_ranks
from evaluation.scenes.shapes import footprint, reach

SCENES = [sample(seed, SceneConfig(overlap="allowed")) for seed in range(30)]


def alone(shape: str, *, size: float = 0.35, texture: str = "plain", turn: int = 0, colour: str = "red") -> Scene:
    thing = Thing(shape=shape, colour=colour, texture=texture, size=size, x=0.5, y=0.5, z=0, rotation_deg=turn)
    return Scene(things=(thing,), background=Background())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [0, 37, -110])
def test_a_size_is_an_area_and_nothing_reaches_out(shape: str, turn: int) -> None:
    picture = alone(shape, turn=turn)
    rendered = render(picture, 448)
    assert rendered.visible_px[0] / 448**2 == pytest.approx(0.35**2, rel=0.015)
    rows, columns = np.nonzero(rendered.masks[0])
    farthest = np.sqrt((rows + 0.5 - 224) ** 2 + (columns + 0.5 - 224) ** 2).max() / 448
    assert farthest == pytest.approx(reach(picture.things[0]), abs=0.006)


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_antialiased_exactly(shape: str) -> None:
    """The soft edge carries the same area as the mask at a high resolution, and the window cuts nothing off."""
    scene = alone(shape, size=0.3, turn=20)
    soft = np.clip(0.5 - footprint(scene.things[0], 48).distance_px, 0, 1)
    assert soft.dtype == np.float32
    assert float(soft.sum()) / 48**2 == pytest.approx(0.3**2, rel=0.02)
    for edge in (soft[0], soft[-1], soft[:, 0], soft[:, -1]):
        assert edge.max() == 0
    assert np.unique(soft).size > 10


@pytest.mark.parametrize("size_px", [48, 97, 448])
def test_the_truth_of_pixels_hangs_together(size_px: int) -> None:
    for scene in SCENES[:10]:
        out = render(scene, size_px)
        assert out.image.shape == (size_px, size_px, 3)
        assert out.image.dtype == np.uint8
        assert out.masks.sum(axis=0).max() <= 1
        assert out.masks.sum(axis=(1, 2)).tolist() == out.visible_px.tolist()
        assert (out.visible_px <= out.full_px).all()
        assert (out.outlines | ~out.masks).all()
        for mask, (left, top, right, bottom) in zip(out.masks, out.boxes.tolist(), strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            for side in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]):
                assert side.any()


def test_the_nearer_thing_hides_the_farther_one() -> None:
    back = Thing(shape="square", colour="blue", size=0.4, x=0.4, y=0.5, z=3)
    front = Thing(shape="circle", colour="red", size=0.3, x=0.6, y=0.5, z=7)
    scene = Scene(things=(back, front), background=Background())
    out = render(scene, 96)
    assert depth_ranks(scene) == (1, 0)
    assert out.visible_px[1] == out.full_px[1]
    assert out.visible_px[0] < out.full_px[0]
    assert out.owner[48, 52] == 1  # both are there
    assert out.image[48, 52, 0] > 150 > out.image[48, 52, 2]
    behind = replace(scene, things=(replace(back, z=9), front))
    assert render(behind, 96).owner[48, 52] == 0


def test_a_hidden_thing_has_no_box() -> None:
    hidden = Thing(shape="circle", colour="red", size=0.1, x=0.5, y=0.5, z=0)
    cover = Thing(shape="square", colour="blue", size=0.5, x=0.5, y=0.5, z=1)
    out = render(Scene(things=(hidden, cover), background=Background()), 48)
    assert out.visible_px[0] == 0 < out.full_px[0]
    assert out.boxes[0].tolist() == [0, 0, 0, 0]


def test_outlines_fill_the_hole_of_a_ring_but_not_what_shows_in_it() -> None:
    ring = Thing(shape="ring", colour="red", size=0.5, x=0.5, y=0.5, z=1)
    dot = Thing(shape="circle", colour="blue", size=0.1, x=0.5, y=0.5, z=0)
    out = render(Scene(things=(ring, dot), background=Background()), 96)
    assert out.owner[48, 48] == 1
    assert not out.outlines[0, 48, 48]
    assert not out.masks[0, 48, 38]
    assert out.outlines[0, 48, 38]
    solid = render(Scene(things=(ring,), background=Background()), 96)
    assert solid.outlines[0].sum() == pytest.approx(math.pi * (reach(ring) * 96) ** 2, rel=0.02)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_a_thing_has_its_colour_and_its_texture(colour: str, texture: str) -> None:
    picture = alone("square", texture=texture, colour=colour)
    pixels = render(picture, 224).image[80:144, 80:144].reshape(-1, 3) / 255
    own = np.array(RGB[colour])
    near_own = (np.abs(pixels - own).max(axis=1) < 0.03).mean()
    assert near_own == 1.0 if texture == "plain" else 0.35 < near_own < 0.8


def test_textures_look_different() -> None:
    looks = [render(alone("circle", texture=texture), 96).image.astype(int) for texture in TEXTURES]
    for a, b in combinations(looks, 2):
        assert (np.abs(a - b).max(axis=2) > 60).sum() > 100


def test_one_scene_looks_the_same_at_every_size() -> None:
    """Shrinking a large picture by averaging gives the small one, up to what one pixel edge can hold."""
    for scene in SCENES[:12]:
        large = render(scene, 384).image.reshape(48, 8, 48, 8, 3).mean(axis=(1, 3))
        difference = np.abs(large - render(scene, 48).image)
        assert difference.mean() < 2.5


def test_backgrounds_are_varied_and_quiet() -> None:
    pictures: dict[str, NDArray[np.uint8]] = {}
    for pattern in PATTERNS:
        background = Background(pattern=pattern, tone="dark", level=0.15, tint=(0.02, -0.02), seed=5)
        pictures[pattern] = render(Scene(things=(), background=background), 96).image
        assert np.abs(pictures[pattern] / 255.0 - 0.15).max() <= BACKGROUND_SWING + 0.02 + 1 / 255
    assert pictures["plain"].std(axis=(0, 1)).max() == 0
    for a, b in combinations(pictures.values(), 2):
        assert not np.array_equal(a, b)
    other = replace(background, seed=6)
    assert not np.array_equal(pictures[PATTERNS[-1]], render(Scene(things=(), background=other), 96).image)


def test_colours_are_far_from_each_other_and_from_every_background() -> None:
    """CIELAB distance; 2.3 is just noticeable."""
    greys = [
        (level + sign * BACKGROUND_SWING + red, level + sign * BACKGROUND_SWING, level + sign * BACKGROUND_SWING + blue)
        for pair in TONE_LEVELS.values()
        for level in pair
        for sign in (-1, 0, 1)
        for red in (-BACKGROUND_TINT, BACKGROUND_TINT)
        for blue in (-BACKGROUND_TINT, BACKGROUND_TINT)
    ]
    for a, b in combinations(COLOURS, 2):
        assert math.dist(lab(RGB[a]), lab(RGB[b])) > 35, (a, b)
    for colour in COLOURS:
        for grey in greys:
            assert math.dist(lab(RGB[colour]), lab(grey)) > 35, (colour, grey)


def test_the_same_pixels_everywhere() -> None:
    """A digest that only a change of what is drawn may change; it does not depend on process or platform."""
    digest = hashlib.sha256()
    for scene in SCENES:
        digest.update(repr(scene).encode())
        digest.update(render(scene, 64).image.tobytes())
    assert digest.hexdigest()[:16] == "a80319e16a096f14"


def test_sizes_out_of_range_are_refused() -> None:
    for size_px in (47, 449):
        with pytest.raises(SceneError, match=f"48 to 448 px, got {size_px}"):
            render(SCENES[0], size_px)


def lab(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """sRGB in 0..1 -> CIELAB under D65."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (max(0.0, c) for c in rgb)]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(w * c for w, c in zip(row, linear, strict=True)) for row in rows]
    f = [
        t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
        for t in (value / white for value, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True))
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
