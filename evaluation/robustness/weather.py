"""Fog, frost and snow: on float64 [H, W, 3] in [0, 1], see `evaluation.robustness.corruptions`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.robustness.blurs import moved, scale_of, zoomed

F64 = NDArray[np.float64]
_LUMA = np.array([0.299, 0.587, 0.114])
_FROST = np.array([0.72, 0.80, 0.88])  # the mean colour of ice in front of a window


def fog(x: F64, severity: int, rng: np.random.Generator) -> F64:
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    brightest = x.max()
    veil = strength * plasma(x.shape[0], x.shape[1], decay, rng)[:, :, None]
    return (x + veil) * brightest / (brightest + strength)


def frost(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """Ice on a window: ridges of a fractal, more of it and less of the picture."""
    kept, ice = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    ridges = 1 - np.abs(2 * plasma(x.shape[0], x.shape[1], 1.6, rng) - 1)
    return kept * x + ice * (ridges**2)[:, :, None] * _FROST


def snow(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """Flakes that fall, and a picture that is paler behind them."""
    mean, deviation, size, least, radius, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    scale, drawn, degrees = scale_of(x), rng.standard_normal(x.shape[:2]), rng.uniform(-135, -45)
    flakes = zoomed(mean + deviation * drawn, max(1.0, size * scale))
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = moved(flakes, radius=radius * scale, sigma=sigma * scale, degrees=degrees)[:, :, None]
    grey = (x @ _LUMA)[:, :, None]
    paler = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return paler + flakes + flakes[::-1, ::-1]


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> F64:
    """A fractal of heights in [0, 1], [height, width], by the diamond-square algorithm (Fournier et al., 1982).

    Each octave moves what lies between its corners `decay` times less than the one before; opposite edges meet.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    out, step, reach = np.zeros((side, side)), side, 1.0
    while step >= 2:
        half = step // 2
        rows = out[::step, ::step]
        squares = rows + np.roll(rows, -1, axis=0)
        squares = (squares + np.roll(squares, -1, axis=1)) / 4
        out[half::step, half::step] = squares + reach * rng.uniform(-1, 1, squares.shape)
        middles, corners = out[half::step, half::step], out[::step, ::step]
        beside = (middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)) / 4
        out[::step, half::step] = beside + reach * rng.uniform(-1, 1, beside.shape)
        below = (middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)) / 4
        out[half::step, ::step] = below + reach * rng.uniform(-1, 1, below.shape)
        step, reach = half, reach / decay
    out -= out.min()
    return (out / out.max())[:height, :width]
