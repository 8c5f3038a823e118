"""Bias between groups: MaxSkew@k and NDKL of a ranking, accuracy of the worst group; numpy only.

Geyik, Ambler and Kenthapadi, 2019, "Fairness-Aware Ranking in Search and Recommendation Systems with Application to
LinkedIn Talent Search"; Sagawa et al., 2020, "Distributionally Robust Neural Networks for Group Shifts".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.metrics import TIE

F64 = NDArray[np.float64]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Ranking:
    """Items from the best to the worst. order: int [N], the item of each place. block: int [N], ascending; places of
    one block tie. groups: int [N] of the items, by place. kinds: how many groups there are."""

    order: Ints
    block: Ints
    groups: Ints
    kinds: int

    def counts(self, picks: Ints | None = None) -> F64:
        """How many of the first i items are of each group, float64 [n + 1, kinds], i from 0 to n.

        Items that tie share their places evenly, so the order of a file decides nothing. picks: int [n], these items
        only, each as often as it is named; as places are sorted already, a resample costs no sort.
        """
        named = np.ones(len(self.order)) if picks is None else np.bincount(picks, minlength=len(self.order))[self.order]
        cells = np.bincount(self.block * self.kinds + self.groups, named, (self.block[-1] + 1) * self.kinds)
        held = cells.reshape(-1, self.kinds)
        held = held[held.sum(axis=1) > 0]
        reached = np.concatenate([np.zeros((1, self.kinds)), held.cumsum(axis=0)])
        ends, places = reached.sum(axis=1), np.arange(round(reached[-1].sum()) + 1)
        return np.stack([np.interp(places, ends, column) for column in reached.T], axis=1)


def ranking(scores: ArrayLike, groups: Ints, *, kinds: int | None = None) -> Ranking:
    """Higher scores first. scores: [N]; groups: int [N], each in 0..kinds - 1.

    Raises:
        ValueError: no items, another number of groups than of scores, or scores that are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.shape != groups.shape or not len(values):
        raise ValueError(f"scores are {values.shape}, groups {groups.shape}: expected one and the same [N], N > 0")
    if not np.isfinite(values).all():
        raise ValueError("scores are not finite")
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    block = np.concatenate([[0], np.cumsum(ranked[:-1] - ranked[1:] > TIE)])
    return Ranking(order, block, groups[order], int(groups.max()) + 1 if kinds is None else kinds)


def max_skew(counts: F64, k: int, *, target: F64 | None = None) -> float:
    """MaxSkew@k: the largest over groups of ln(share of the first k / wanted share), at least 0 (Geyik et al., 3.1).

    counts: float64 [n + 1, groups], as `Ranking.counts` gives them. target: wanted shares [groups]; None: those of
    all n. k above n is n. Groups that are not wanted at all are left out.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more")
    k = min(k, len(counts) - 1)
    wanted = counts[-1] / counts[-1].sum() if target is None else target
    found = counts[k] / k
    return float(np.log((found[wanted > 0] / wanted[wanted > 0]).max()))


def ndkl(counts: F64, *, target: F64 | None = None) -> float:
    """NDKL: the divergence of the first i from the wanted shares, over all i, the first ones weighing most; 0 is best.

    1/Z sum over i of KL(shares of the first i || target) / log2(i + 1), Z = sum over i of 1 / log2(i + 1), natural
    logarithms in KL (Geyik et al., 3.2). counts, target: as for `max_skew`. Not comparable between rankings of
    different length: the first of any ranking is of one group alone.
    """
    wanted = counts[-1] / counts[-1].sum() if target is None else target
    places = np.arange(1, len(counts))
    found = counts[1:, wanted > 0] / places[:, None]
    ratio = np.where(found > 0, found / wanted[wanted > 0], 1.0)
    weights = 1 / np.log2(places + 1)
    return float(weights @ (found * np.log(ratio)).sum(axis=1) / weights.sum())


def group_accuracies(hits: ArrayLike, groups: Ints) -> F64:
    """The mean of hits [N] in each group that occurs, float64 [groups that occur], by group number."""
    sizes = np.bincount(groups)
    return (np.bincount(groups, np.asarray(hits, dtype=np.float64)) / np.maximum(sizes, 1))[sizes > 0]


def worst_group_accuracy(hits: ArrayLike, groups: Ints) -> float:
    """The accuracy of the group that has the lowest (Sagawa et al., 2020; groups there are label x attribute)."""
    return float(group_accuracies(hits, groups).min())
