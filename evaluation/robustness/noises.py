"""Noise of a camera: on float64 [H, W, 3] in [0, 1], see `evaluation.robustness.corruptions`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def gaussian_noise(x: F64, severity: int, rng: np.random.Generator) -> F64:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return x + deviation * rng.standard_normal(x.shape)


def shot_noise(x: F64, severity: int, rng: np.random.Generator) -> F64:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """Values that are all or nothing, each channel by itself."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(hit, salt, x)


def speckle_noise(x: F64, severity: int, rng: np.random.Generator) -> F64:
    deviation = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return x + x * deviation * rng.standard_normal(x.shape)
