"""One line of a probe's result before it is printed: a statistic over items, its chance, its confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.confidence import jackknife_error, mean_error, share_interval, t_quantile

Unit = Literal["share", "count", "cosine", "log ratio"]
F64 = NDArray[np.float64]
_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """`statistic` maps item indexes to a number; NaN where those items settle nothing (no hits, one class missing).

    clusters: int [n], items of one cluster come from one group of scenes and are drawn together, because they are
    answered alike. parts: of how many parts of the items the statistic takes the best or the worst; 1 if of none, and
    then a little change of the items changes it a little. better: whether more, less, or nearness to chance is good.
    """

    name: str
    chance: float | None
    clusters: NDArray[np.int64]
    statistic: Callable[[NDArray[np.intp]], float]
    unit: Unit = "share"
    better: Literal["more", "less", "at chance"] = "more"
    parts: int = 1

    @property
    def n(self) -> int:
        return len(self.clusters)

    @property
    def value(self) -> float:
        return self.statistic(np.arange(self.n)) if self.n else float("nan")

    def interval(self) -> tuple[float, float]:
        """95 %, from the score's standard error over groups of scenes; NaN where the items settle nothing.

        Of shares: `evaluation.confidence.share_interval`; of anything else Student's t about the score. The error of a
        best or a worst of parts is that of resampled clusters, because a jackknife knows nothing of jumps.
        """
        value = self.value
        if np.isnan(value):
            return float("nan"), float("nan")
        error = self._error()
        if self.unit == "share" and 0 <= value <= 1:  # a share that is kept of another may be more than all of it
            return share_interval(value, error, self.clusters, parts=self.parts)
        groups = len(np.unique(self.clusters))
        reach = t_quantile(groups - 1) * error if groups > 1 else float("nan")
        return value - reach, value + reach

    def draws(self, *, seed: int = 0) -> F64:
        """The statistic of resampled clusters (Efron and Tibshirani, 1993), float64 [draws], empty without items.

        Equal clusters and an equal seed give equal resamples, so the draws of two encoders are paired. They are for
        differences: one resample holds items twice, and lifts rankings of both encoders alike.
        """
        if not self.n:
            return np.zeros(0)
        random = np.random.default_rng(seed)
        ids, inverse = np.unique(self.clusters, return_inverse=True)
        members = [np.flatnonzero(inverse == index) for index in range(len(ids))]
        picks = random.integers(len(ids), size=(_DRAWS, len(ids)))
        return np.array([self.statistic(np.concatenate([members[at] for at in drawn])) for drawn in picks])

    def _error(self) -> float:
        if isinstance(self.statistic, Mean):
            return mean_error(self.statistic.outcomes, self.clusters)
        if self.parts == 1:
            return jackknife_error(self.statistic, self.clusters)
        draws, groups = self.draws(), len(np.unique(self.clusters))
        kept = draws[~np.isnan(draws)]
        if groups < 2 or len(kept) < 2:
            return float("nan")
        return float(kept.std(ddof=1)) * (groups / (groups - 1)) ** 0.5


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
