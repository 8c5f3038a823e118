"""Corruptions: the same again from the same seed, whole bytes of the same shape, and worse at a higher severity."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from evaluation.robustness.blurs import disk, moved, zoomed
from evaluation.robustness.corruptions import all_corrupted, corrupted
from evaluation.robustness.kinds import JUDGED_KINDS, KINDS, SEVERITIES, Kind
from evaluation.robustness.noises import F64
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample

PICTURES = np.stack([render(sample(seed, SceneConfig()), 48).image for seed in range(4)])
RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
}
RANDOM |= {"fog", "elastic_transform"}
# Their authors' severities are no ladder: an affine map and then shifts, less colour and then more.
NO_LADDER = {"elastic_transform", "saturate"}


def far(pictures: np.ndarray) -> float:
    return float(np.abs(pictures.astype(float) - PICTURES).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_pictures_and_get_worse(kind: Kind) -> None:
    made = [all_corrupted(PICTURES, kind, severity, seed=3) for severity in SEVERITIES]
    assert all(each.shape == PICTURES.shape and each.dtype == np.uint8 for each in made)
    again, other = (all_corrupted(PICTURES, kind, 4, seed=seed) for seed in (3, 4))
    assert np.array_equal(made[3], again)
    assert np.array_equal(made[3], other) != (kind in RANDOM)
    assert np.array_equal(made[3][:2], all_corrupted(PICTURES[:2], kind, 4, seed=3))  # a stream for each picture
    steps = [far(each) for each in made]
    assert steps[-1] > 0.5
    # Two severities of fog differ in roughness, by which a single draw may come out a little paler.
    assert all(b > 0.97 * a for a, b in zip(steps, steps[1:], strict=False)) or kind in NO_LADDER, steps


def test_fifteen_kinds_judge() -> None:
    assert len(JUDGED_KINDS) == 15
    assert len(set(KINDS)) == 18


def test_sides_need_not_be_equal() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 37, 3)).astype(np.uint8)
    for kind in KINDS:
        assert corrupted(picture, kind, 5, np.random.default_rng(0)).shape == picture.shape, kind


def test_a_severity_takes_the_same_share_at_any_size() -> None:
    """A disk of as many parts of the side: the blurred picture, made smaller, is the smaller picture, blurred."""
    large, small = (render(sample(1, SceneConfig()), side).image for side in (192, 48))
    blurred = [corrupted(each, "defocus_blur", 5, np.random.default_rng(0)).astype(float) for each in (large, small)]
    shrunk = blurred[0].reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - blurred[1]).mean() < 0.2 * np.abs(small.astype(float) - blurred[1]).mean()


@pytest.mark.parametrize(("kind", "severity"), [("brightness", 2), ("saturate", 1), ("saturate", 4)])
def test_colours_are_those_of_hsv(kind: Kind, severity: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(1, 256, (8, 8, 3)).astype(np.uint8)
    picture[0] = 90  # grey has the hue of red

    def changed(colour: np.ndarray) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(colour / 255))
        if kind == "brightness":
            return colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))
        times, more = {1: (0.3, 0.0), 4: (5.0, 0.1)}[severity]
        return colorsys.hsv_to_rgb(hue, min(1, saturation * times + more), value)

    wanted = np.array([[changed(colour) for colour in row] for row in picture]) * 255
    assert np.abs(corrupted(picture, kind, severity, rng) - wanted).max() <= 0.51


def test_kernels_keep_brightness() -> None:
    assert disk(0.4).shape == (3, 3)
    for radius in (0.4, 2.3, 5.0):
        kernel = disk(radius)
        assert kernel.sum() == pytest.approx(1)
        assert np.count_nonzero(kernel) >= np.pi * radius**2
    flat: F64 = np.full((12, 12, 3), 0.25)
    np.testing.assert_allclose(moved(flat, radius=2.0, sigma=1.0, degrees=30), flat)
    np.testing.assert_allclose(zoomed(flat, 1.3), flat, atol=1e-6)
    point = np.zeros((9, 9))
    point[4, 5] = 1
    way = moved(point, radius=1.0, sigma=1.0, degrees=0)
    assert np.argwhere(way).tolist() == [[4, 3], [4, 4], [4, 5]]  # read to the right of each place
    np.testing.assert_allclose(way[4, 5:2:-1], np.exp([0, -0.5, -2]) / np.exp([0, -0.5, -2]).sum())


@pytest.mark.parametrize(
    ("shape", "kind", "severity", "said"),
    [((16, 16, 3), "smoke", 1, "smoke"), ((16, 16, 3), "fog", 6, "severity 6"), ((4, 16, 3), "fog", 1, "8 px")],
)
def test_what_cannot_be_corrupted(shape: tuple[int, ...], kind: Kind, severity: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        corrupted(np.zeros(shape, dtype=np.uint8), kind, severity, np.random.default_rng(0))
