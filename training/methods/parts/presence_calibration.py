"""Slope, offset and threshold of a presence, fitted on pictures whose labels are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.platt import fit_platt
from model_store.towers import activated


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """f1 and brier: of all (picture, label) decisions that it was fitted on."""

    slope: float
    offset: float
    threshold: float
    f1: float
    brier: float

    def settings(self) -> dict[str, float]:
        """As the fields of a Presence."""
        return {
            "calibration_slope": self.slope,
            "calibration_offset": self.offset,
            "threshold": self.threshold,
        }


def calibrate(scores: NDArray[np.float64], present: NDArray[np.bool_]) -> Calibrated:
    """Fit sigmoid(slope * score + offset) by logistic regression (Platt, 1999), scores and present [n, C] as one list;
    the threshold is the one with the best F1 over that list.
    """
    values, truth = scores.ravel().astype(np.float64), present.ravel()
    slope, offset = fit_platt(values, truth)
    p = activated(slope * values + offset, "sigmoid")
    threshold, f1 = _best_threshold(p, truth)
    return Calibrated(slope=slope, offset=offset, threshold=threshold, f1=f1, brier=float(np.square(p - truth).mean()))


def _best_threshold(p: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Halfway between the two neighbouring probabilities where F1 is best."""
    order = np.argsort(-p, kind="stable")
    ranked, hits = p[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal probabilities cannot be cut apart
    best = int(np.argmax(f1))
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return (float(ranked[best]) + below) / 2, float(f1[best])
