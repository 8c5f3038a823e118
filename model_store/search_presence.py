"""Calibrated probabilities of a search by a text: that a hit shows what the text says, and that anything does.

Pure numpy; the service and the fit call the same functions. The evidence of a picture x for a text q is s = q.x - n.x,
where n is the mean of texts that name nothing: what looks like everything is evidence of nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import SearchCalibration
from model_store.towers import Vectors, activated

FIRST = 10  # hits of which the best decides whether anything matches
F64 = NDArray[np.float64]


def neutral_mean(neutral: Vectors) -> F64:
    """The mean [D] of the unit vectors [N, D] of neutral texts; zero rows (no known word) take no part.

    Raises:
        ValueError: none of them has a known word.
    """
    known = neutral[np.any(neutral, axis=1)]
    if not len(known):
        raise ValueError("the model knows nothing of any neutral text")
    return known.astype(np.float64).mean(axis=0)


def evidence(pictures: Vectors, texts: Vectors, neutral: F64) -> F64:
    """s [n] of pictures' unit vectors [n, D] for the unit vector of a text, [D], or of each one's own, [n, D]."""
    return (pictures * (texts.astype(np.float64) - neutral)).sum(axis=1)


def hit_probabilities(found: F64, calibration: SearchCalibration) -> F64:
    """[n] that each hit shows what the text says, of their evidence [n]."""
    return activated(calibration.hit_slope * found + calibration.hit_offset, "sigmoid")


def match_probability(found: F64, calibration: SearchCalibration) -> float:
    """That any item shows what the text says, of the evidence [n] of the first `FIRST` hits; 0 where there is none."""
    if not len(found):
        return 0.0
    logit = calibration.match_slope * found.max(keepdims=True) + calibration.match_offset
    return float(activated(logit, "sigmoid")[0])
