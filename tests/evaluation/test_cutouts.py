"""Things cut out of drawn pictures lie where their pose says, whole, without a rim of their old background."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from evaluation.cutouts import NoPlainBackground, Pose, composed, cut_out, part_of_photograph, plain_background

RED, BLUE = (220, 20, 20), (10, 20, 240)


def ring(background: tuple[int, int, int]) -> Image.Image:
    """A red ring with the background's colour in its hole."""
    image = Image.new("RGB", (100, 80), background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 20, 70, 60), fill=RED)
    draw.ellipse((45, 35, 55, 45), fill=background)
    return image


def is_near(pixels: np.ndarray, colour: tuple[int, int, int], by: int = 40) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(axis=-1) <= by


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (90, 140, 90)])
def test_what_touches_the_frame_is_background_and_a_hole_is_not(background: tuple[int, int, int]) -> None:
    found = cut_out(ring(background))
    alpha = np.asarray(found.pixels)[..., 3]
    assert found.colour == background
    assert alpha[40, 50] == 255  # the hole is the thing's
    assert alpha[40, 35] == 255
    assert not alpha[:15].any()
    assert not alpha[:, :25].any()
    outside = is_near(np.asarray(ring(background)), background, by=0)
    outside[30:50, 40:60] = False  # the hole and around it
    assert not alpha[outside].any()  # no rim, which would show on another background
    on_blue = np.asarray(composed([(found, Pose(1.0))], plain_background(BLUE, 100)))
    # Nothing but the ring, its hole and the blue, and what is between two of them at an edge.
    rim = is_near(on_blue, background) & ~is_near(on_blue, RED)
    inside = np.zeros((100, 100), dtype=bool)
    inside[40:60, 40:60] = True
    assert not rim[~inside].any()
    assert rim[50, 50]


@given(st.floats(0.2, 1.0), st.floats(0, 1), st.floats(0, 1))
def test_a_pose_says_where_and_how_large(size: float, x: float, y: float) -> None:
    thing = cut_out(ring((255, 255, 255)))
    shown = np.asarray(composed([(thing, Pose(size, x, y))], plain_background((255, 255, 255), 200)))
    rows, columns = (np.flatnonzero(is_near(shown, RED, 60).any(axis=axis)) for axis in (1, 0))
    width, height = 200 * size, 200 * size * 0.8
    left, top = x * (200 - width), y * (200 - height)
    assert abs(columns[0] - (left + 0.3 * width)) <= 3
    assert abs(columns[-1] + 1 - (left + 0.71 * width)) <= 3
    assert abs(rows[0] - (top + 0.25 * height)) <= 3
    assert abs(rows[-1] + 1 - (top + 0.7625 * height)) <= 3


def test_later_things_lie_on_earlier_ones() -> None:
    red = cut_out(ring((255, 255, 255)))
    blue = cut_out(Image.fromarray(np.asarray(ring((255, 255, 255)))[..., ::-1].copy()))
    shown = np.asarray(composed([(red, Pose(1.0)), (blue, Pose(1.0))], plain_background((255, 255, 255), 100)))
    assert is_near(shown, (20, 20, 220)).any()
    assert not is_near(shown, RED).any()


@pytest.mark.parametrize("picture", ["plain", "noise"])
def test_without_a_plain_background_there_is_nothing_to_cut(picture: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.new("RGB", (40, 40), "white") if picture == "plain" else Image.fromarray(noise)
    with pytest.raises(NoPlainBackground):
        cut_out(image)


def test_a_background_is_square() -> None:
    with pytest.raises(ValueError, match="square background, got 20 x 30"):
        composed([], Image.new("RGB", (20, 30)))


def test_a_part_of_a_photograph_is_inside_of_it() -> None:
    gradient = np.zeros((60, 90, 3), dtype=np.uint8)
    gradient[..., 0], gradient[..., 1] = np.arange(90)[None], np.arange(60)[:, None]
    parts = [
        np.asarray(part_of_photograph(Image.fromarray(gradient), 32, np.random.default_rng(seed))) for seed in range(20)
    ]
    assert {part.shape for part in parts} == {(32, 32, 3)}
    widths = [int(part[0, -1, 0]) - int(part[0, 0, 0]) for part in parts]
    assert min(widths) >= 0.6 * 60 * 0.9
    assert max(widths) <= 60
    assert len({int(part[0, 0, 0]) for part in parts}) > 8
