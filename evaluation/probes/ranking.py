"""Average precision of a ranking, with two rules for ties, and what a random order has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import TIE
from evaluation.probes.rows import F64


def average_precision(scores: F64, relevant: NDArray[np.bool_], *, ties_wrong: bool = True) -> float:
    """Area under the steps of precision over recall, scores and relevant [N]; NaN if nothing is relevant.

    Equal scores are one step, so a constant gets the share of what is relevant and no more. Where ties are not wrong
    it is the mean over all orders of what ties (McSherry and Najork, 2008), and a constant gets what luck does.
    """
    if not relevant.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[:-1] - ranked[1:] > TIE), len(ranked) - 1)
    hits = np.cumsum(relevant[order])[ends]
    gains = np.diff(hits, prepend=0)
    if ties_wrong:
        return float(np.sum(gains * hits / (ends + 1)) / hits[-1])
    sizes = np.diff(ends, prepend=-1)
    ranks = np.arange(1, len(ranked) + 1)
    before, places = np.repeat(ends - sizes + 1, sizes), np.repeat(sizes, sizes)  # places ahead of the tie, and in it
    held, ahead = np.repeat(gains, sizes), np.repeat(hits - gains, sizes)
    others = (ranks - before - 1) * (held - 1) / np.maximum(places - 1, 1)  # right ones expected ahead in the tie
    return float(np.sum(held / places * (ahead + 1 + others) / ranks) / hits[-1])


def lucky_precision(relevant: int, candidates: int) -> float:
    """The expected average precision of a random order of `candidates`, `relevant` of which are right (Bestgen, 2015).

    It lies above their share, the more so the fewer they are: what is gained at the top outweighs what is lost. NaN if
    nothing is relevant.
    """
    return average_precision(np.zeros(candidates), np.arange(candidates) < relevant, ties_wrong=False)
