"""Average precision with ties treated as one step, so that a constant score gets the prevalence and no more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.questions import TIE
from evaluation.probes.rows import F64


def average_precision(scores: F64, relevant: NDArray[np.bool_]) -> float:
    """Area under the steps of precision over recall, scores and relevant [N]; NaN if nothing is relevant."""
    if not relevant.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[:-1] - ranked[1:] > TIE), len(ranked) - 1)
    hits = np.cumsum(relevant[order])[ends]
    gains = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(gains * hits / (ends + 1)))
