"""Marking of answers: ranks in which a tie is wrong, means over classes, and the score of chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import TIE, first_hit_rank
from evaluation.probes.rows import F64, ProbeRow

_QUERIES = 512


def ranks(queries: NDArray[np.floating], candidates: NDArray[np.floating], relevant: NDArray[np.bool_]) -> F64:
    """0-based rank of the best relevant candidate of each query, float64 [Q]; a wrong one that ties ranks first.

    queries [Q, D], candidates [C, D], unit rows; relevant bool [Q, C], at least one True per row.
    """
    table = np.asarray(candidates, dtype=np.float64).T
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        scores = np.asarray(queries[part], dtype=np.float64) @ table
        found.append(first_hit_rank(scores - TIE * relevant[part], relevant[part]))
    return np.concatenate(found).astype(np.float64)


@dataclass(frozen=True)
class MacroMean:
    """The mean over groups of each group's mean outcome, so that a frequent group cannot carry the number.

    outcomes: [n], none NaN; groups: int [n]. Groups that a resample misses are left out of it.
    """

    outcomes: F64
    groups: NDArray[np.int64]

    def __call__(self, picks: NDArray[np.intp]) -> float:
        sizes = np.bincount(self.groups[picks])
        sums = np.bincount(self.groups[picks], self.outcomes[picks])
        return float((sums[sizes > 0] / sizes[sizes > 0]).mean())


def macro_row(
    name: str, outcomes: F64, groups: NDArray[np.int64], clusters: Sequence[int], *, chance: float
) -> ProbeRow:
    at = np.asarray(clusters, dtype=np.int64)
    return ProbeRow(name=name, chance=chance, clusters=at, statistic=MacroMean(outcomes, groups))


def chance_of_hit(relevant: NDArray[np.integer], candidates: int, cut: int) -> float:
    """How often one of the first `cut` of a random order is relevant; `relevant` [Q] says how many each query has."""
    misses = np.ones(len(relevant))
    for drawn in range(min(cut, candidates)):
        misses *= np.maximum(0, candidates - relevant - drawn) / (candidates - drawn)
    return float(np.mean(1 - misses))
