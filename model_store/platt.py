"""A logistic curve from scores to probabilities (Platt, 1999, "Probabilistic outputs for support vector machines")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_store.towers import activated

_STEPS = 100
_RIDGE = 1e-6
_LONGEST_STEP = 4.0
F64 = NDArray[np.float64]
Truth = NDArray[np.bool_] | F64


def fit_platt(scores: F64, truth: Truth, weights: F64 | None = None) -> tuple[float, float]:
    """Slope and offset of the likeliest sigmoid(slope * score + offset), by Newton's steps.

    scores, truth, weights: [n]; truth as booleans or as probabilities in [0, 1]; equal weights by default. Where scores
    tell both answers apart without an error the likeliest slope is infinite; a little ridge on the slope in units of
    the scores' spread keeps it finite.

    Raises:
        ValueError: only one answer occurs.
    """
    (slope,), offset = fit_logistic(scores[:, None], truth, weights)
    return float(slope), offset


def fit_logistic(inputs: F64, truth: Truth, weights: F64 | None = None) -> tuple[F64, float]:
    """Slopes [K] and offset of the likeliest sigmoid(inputs @ slopes + offset), for inputs [n, K]; as `fit_platt`.

    Raises:
        ValueError: only one answer occurs.
    """
    if (truth > 0.5).all() or not (truth > 0.5).any():
        raise ValueError("every label is there, or none is: nothing to tell apart")
    share = np.full(len(inputs), 1 / len(inputs)) if weights is None else weights / weights.sum()
    centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs = np.concatenate([(inputs - centre) / spread, np.ones((len(inputs), 1))], axis=1)
    found = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        p = activated(inputs @ found, "sigmoid")
        gradient = inputs.T @ (share * (p - truth)) + _RIDGE * found
        curvature = (inputs * (share * p * (1 - p))[:, None]).T @ inputs + _RIDGE * np.eye(len(found))
        change = np.linalg.solve(curvature, gradient)
        change *= min(1.0, _LONGEST_STEP / max(float(np.abs(change).max()), 1e-12))
        found = found - change
        if np.abs(change).max() < 1e-9:
            break
    slopes = found[:-1] / spread
    return slopes, float(found[-1] - slopes @ centre)
