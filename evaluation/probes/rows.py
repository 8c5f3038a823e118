"""One line of a probe's result before it is printed: a statistic over items, its chance, its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["share", "count", "cosine", "log ratio"]
F64 = NDArray[np.float64]
_DRAWS, _SLOW_DRAWS = 1000, 200


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """`statistic` maps item indexes to a number; NaN where those items settle nothing (no hits, one class missing).

    clusters: int [n], items of one cluster come from one group of scenes and are resampled together, because they
    are answered alike. better: whether more, less, or nearness to chance is good.
    """

    name: str
    chance: float | None
    clusters: NDArray[np.int64]
    statistic: Callable[[NDArray[np.intp]], float]
    unit: Unit = "share"
    better: Literal["more", "less", "at chance"] = "more"

    @property
    def n(self) -> int:
        return len(self.clusters)

    @property
    def value(self) -> float:
        return self.statistic(np.arange(self.n)) if self.n else float("nan")

    def interval(self, *, seed: int = 0) -> tuple[float, float]:
        """Percentile 95 % interval over resampled clusters (Efron and Tibshirani, 1993); NaN without items."""
        return interval(self.draws(seed=seed))

    def draws(self, *, seed: int = 0) -> F64:
        """The statistic of resampled clusters, float64 [draws], empty without items.

        Equal clusters and an equal seed give equal resamples, so the draws of two encoders are paired.
        """
        if not self.n:
            return np.zeros(0)
        random = np.random.default_rng(seed)
        ids, inverse = np.unique(self.clusters, return_inverse=True)
        if isinstance(self.statistic, Mean):
            sums, sizes = np.bincount(inverse, self.statistic.outcomes), np.bincount(inverse)
            picks = random.integers(len(ids), size=(_DRAWS, len(ids)))
            return sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
        members = [np.flatnonzero(inverse == index) for index in range(len(ids))]
        picks = random.integers(len(ids), size=(_SLOW_DRAWS, len(ids)))
        return np.array([self.statistic(np.concatenate([members[at] for at in drawn])) for drawn in picks])


def interval(draws: F64) -> tuple[float, float]:
    """The middle 95 % of the draws that are not NaN; NaN if none is."""
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Mean:
    """The mean of the items' outcomes, none of them NaN."""

    outcomes: F64

    def __call__(self, picks: NDArray[np.intp]) -> float:
        return float(self.outcomes[picks].mean())


def mean_row(
    name: str,
    outcomes: Sequence[float] | F64,
    clusters: Sequence[int] | NDArray[np.int64],
    *,
    chance: float | None,
    unit: Unit = "share",
    better: Literal["more", "less", "at chance"] = "more",
) -> ProbeRow:
    """A row that averages; items without an outcome (NaN) are left out of n."""
    values, groups = np.asarray(outcomes, dtype=np.float64), np.asarray(clusters, dtype=np.int64)
    kept = ~np.isnan(values)
    return ProbeRow(
        name=name, chance=chance, clusters=groups[kept], statistic=Mean(values[kept]), unit=unit, better=better
    )
