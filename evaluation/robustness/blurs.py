"""Blurs and elastic shifts: on float64 [H, W, 3] in [0, 1], see `evaluation.robustness.corruptions`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

F64 = NDArray[np.float64]
_REFERENCE_PX = 224
_FINE = 8  # samples a pixel, each way, of a disk


def scale_of(x: F64) -> float:
    """How much smaller the picture is than those that the numbers are for."""
    return min(x.shape[:2]) / _REFERENCE_PX


def gaussian_blur(x: F64, severity: int, rng: np.random.Generator) -> F64:
    return _smooth(x, (1, 2, 3, 4, 6)[severity - 1] * scale_of(x))


def defocus_blur(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """The mean over a disk, as a lens out of focus gives it."""
    kernel = disk((3, 4, 6, 8, 10)[severity - 1] * scale_of(x))
    return ndimage.convolve(x, kernel[:, :, None], mode="reflect")


def disk(radius: float) -> F64:
    """Weights of a disk of `radius` px, sum 1; pixels on its edge count by the share that is inside."""
    reach = math.ceil(radius)
    fine = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).astype(np.float64)
    kernel = inside.reshape(2 * reach + 1, _FINE, 2 * reach + 1, _FINE).mean(axis=(1, 3))
    return kernel / kernel.sum()


def glass_blur(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """Pixels looked up at random places near by, between two blurs."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    scale = scale_of(x)
    drawn = rng.uniform(-1, 1, (3, 2, *x.shape[:2]))
    found = _smooth(x, sigma * scale)
    for shift in drawn[:times]:
        found = looked_up(found, reach * scale * shift)
    return _smooth(found, sigma * scale)


def motion_blur(x: F64, severity: int, rng: np.random.Generator) -> F64:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return moved(x, radius=radius * scale_of(x), sigma=sigma * scale_of(x), degrees=rng.uniform(-45, 45))


def moved(x: F64, *, radius: float, sigma: float, degrees: float) -> F64:
    """[H, W] or [H, W, 3] averaged over a way of two radii at an angle, with weights of half a Gaussian."""
    ways = np.linspace(0, 2 * radius, max(2, math.ceil(2 * radius) + 1))
    weights = np.exp(-0.5 * (ways / sigma) ** 2)
    down, right = math.sin(math.radians(degrees)) * ways, math.cos(math.radians(degrees)) * ways
    margin = math.ceil(2 * radius) + 1
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0))[: x.ndim], mode="edge")
    total = np.zeros_like(x)
    for (row, column), weight in _whole_shifts(down, right, weights / weights.sum()).items():
        top, left = margin + row, margin + column
        total += weight * padded[top : top + x.shape[0], left : left + x.shape[1]]
    return total


def _whole_shifts(down: F64, right: F64, weights: F64) -> dict[tuple[int, int], float]:
    """Shifts by parts of pixels as weights of shifts by whole ones (bilinear)."""
    found: dict[tuple[int, int], float] = {}
    for row, column, weight in zip(down.tolist(), right.tolist(), weights.tolist(), strict=True):
        top, left = math.floor(row), math.floor(column)
        for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            if share > 0:
                found[y, x] = found.get((y, x), 0.0) + weight * share
    return found


def zoom_blur(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """The mean of the picture and of enlargements of its middle."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, end, step)
    return (x + sum((zoomed(x, factor) for factor in factors), start=np.zeros_like(x))) / (len(factors) + 1)


def zoomed(x: F64, factor: float) -> F64:
    """The middle of [H, W] or [H, W, C], `factor` times as large."""
    height, width = x.shape[:2]
    left, top = (width - width / factor) / 2, (height - height / factor) / 2
    box = (left, top, width - left, height - top)
    channels = [x] if x.ndim == 2 else [x[:, :, at] for at in range(x.shape[2])]
    made = [
        np.asarray(
            Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR, box=box)
        )
        for channel in channels
    ]
    return (made[0] if x.ndim == 2 else np.stack(made, axis=2)).astype(np.float64)


def elastic_transform(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """A random affine map, and smooth random shifts.

    The authors' first two severities are mostly the affine map and the last three mostly the shifts, so that a higher
    one is not always further from the clean picture.
    """
    strength, sigma, affine = (
        (488.0, 170.8, 24.4),
        (488.0, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    )[severity - 1]
    scale, height, width = scale_of(x), x.shape[0], x.shape[1]
    corners, drawn = rng.uniform(-1, 1, (3, 2)), rng.uniform(-1, 1, (2, height, width))
    middle, third = np.array([height // 2, width // 2]), min(height, width) // 3
    seen = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    matrix = _affine(seen + affine * scale * corners, seen)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    places = np.einsum("ij,jhw->ihw", matrix[:, :2], grid) + matrix[:, 2, None, None]
    # The mean of noise shrinks with the width of its window in pixels: hence the square.
    shifts = np.stack([_smooth(each, sigma * scale) for each in drawn]) * strength * scale**2
    return looked_up(x, places + shifts - grid)


def looked_up(x: F64, shifts: F64) -> F64:
    """x [H, W, 3] read at each place plus `shifts` [2, H, W], rows and columns, between pixels by interpolation."""
    height, width = x.shape[:2]
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")) + shifts
    channels = [ndimage.map_coordinates(x[:, :, at], places, order=1, mode="mirror") for at in range(x.shape[2])]
    return np.stack(channels, axis=2)


def _smooth(x: F64, sigma: float) -> F64:
    """[H, W] or [H, W, 3] under a Gaussian of `sigma` px."""
    return ndimage.gaussian_filter(x, sigma=(sigma, sigma, 0)[: x.ndim], truncate=3)


def _affine(source: F64, target: F64) -> F64:
    """The map [2, 3] that takes three points `target` [3, 2] to `source` [3, 2]."""
    return np.linalg.solve(np.column_stack([target, np.ones(3)]), source).T.astype(np.float64)
