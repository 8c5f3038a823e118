"""Significance of a difference: paired bootstrap over groups, Student's t for few groups, Holm for many rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.confidence import t_p, t_quantile
from evaluation.probes.rows import F64

DRAWS = 4000
_AT_ONCE = 2_000_000  # drawn group numbers held in memory
_FINEST_P = 1e-12  # of the series below in float64


@dataclass(frozen=True, kw_only=True)
class Means:
    """A mean by groups: the sum of the items' outcomes and how many items there are, each float64 [groups]."""

    sums: F64
    sizes: F64


@dataclass(frozen=True, kw_only=True)
class Difference:
    """low, high: 95 % interval. p: two-sided. groups: what was drawn, None where the test is not paired."""

    value: float
    low: float
    high: float
    p: float
    groups: int | None


def paired_means(a: Means, b: Means, *, seed: int = 0) -> Difference | None:
    """mean(b) - mean(a), where both have the same groups; None with fewer than two groups.

    Groups are drawn again with their items (Efron and Tibshirani, 1993). The standard deviation of the draws, times
    sqrt(k / (k - 1)) for k groups, goes into Student's t with k - 1 degrees of freedom: percentiles of a few groups
    are too narrow.
    """
    groups = len(a.sums)
    if groups < 2 or not a.sizes.sum() or not b.sizes.sum():
        return None
    value = b.sums.sum() / b.sizes.sum() - a.sums.sum() / a.sizes.sum()
    random = np.random.default_rng(seed)
    table = np.stack([a.sums, a.sizes, b.sums, b.sizes], axis=1)
    part = max(1, min(DRAWS, _AT_ONCE // groups))
    drawn = np.concatenate(
        [
            table[random.integers(groups, size=(min(part, DRAWS - start), groups))].sum(axis=1)
            for start in range(0, DRAWS, part)
        ]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1]
    return of_draws(float(value), draws, groups)


def of_draws(value: float, draws: F64, groups: int) -> Difference | None:
    """A difference whose paired resamples over `groups` are known; None if fewer than half of them settle anything."""
    kept = draws[np.isfinite(draws)]
    if groups < 2 or not len(kept) or len(kept) < len(draws) / 2:
        return None
    error = float(kept.std(ddof=1)) * math.sqrt(groups / (groups - 1))
    reach = t_quantile(groups - 1) * error
    # k groups that all agree are no rarer under luck than k equal coins: no p is finer than that.
    p = max(_p(value, error, groups - 1), 2.0 ** (1 - groups))
    return Difference(value=value, low=value - reach, high=value + reach, p=p, groups=groups)


def unpaired(value: float, a: tuple[float, float], b: tuple[float, float]) -> Difference:
    """From two 95 % intervals as if other items had been asked: valid, but blind to small differences."""
    errors = [(high - low) / (2 * _Z) for low, high in (a, b)]
    error = math.hypot(*errors)
    p = 1.0 if value == 0 else math.erfc(abs(value) / error / math.sqrt(2)) if error else _FINEST_P
    return Difference(value=value, low=value - _Z * error, high=value + _Z * error, p=max(p, _FINEST_P), groups=None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for the number of rows (Holm, 1979); order kept."""
    out = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = highest
    return out


def _p(value: float, error: float, degrees: int) -> float:
    if value == 0:
        return 1.0
    return max(_FINEST_P, t_p(value / error, degrees)) if error else _FINEST_P


_Z = 1.959963984540054
