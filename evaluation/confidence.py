"""95 % confidence intervals of scores whose items come in groups, such as the questions about one scene."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.intp]], float]
_MOST_PARTS = 200  # of a jackknife: more groups are left out several at a time
_UNSEEN_CORRELATION = 0.5  # inside of a group, where nothing varies and so nothing can be estimated
_HALVINGS = 60


def share_interval(value: float, error: float, groups: NDArray[np.int64], *, parts: int = 1) -> tuple[float, float]:
    """Of a score in 0..1 with the standard error `error`: Wilson's (1927) at the effective number of items.

    value (1 - value) / error^2 is how many independent items would have this error (Korn and Graubard, 1998); groups
    (int [n], the number of each item's group) give Student's t its degrees of freedom. Without an error, at 0 and 1
    above all, items of one group are taken to be correlated by one half, and so n items are fewer, but never none:
    the interval stays open; of a best or a worst of `parts` parts only one part's items count. One group says nothing
    about the next, nor does an error that is not known (NaN): 0..1.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    if len(sizes) < 2 or math.isnan(error):
        return 0.0, 1.0
    if error > 0 and 0 < value < 1:
        return wilson(value, value * (1 - value) / error**2, t_quantile(len(sizes) - 1))
    size = float((sizes**2).sum() / sizes.sum())  # of the group that an item is in
    return wilson(value, len(groups) / parts / (1 + (size - 1) * _UNSEEN_CORRELATION), _Z)


def wilson(share: float, number: float, quantile: float) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share of `number` independent items; quantile: 1.96 for 95 %."""
    square = quantile**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    reach = quantile / (1 + square / number) * math.sqrt(share * (1 - share) / number + square / (4 * number**2))
    # At 0 and 1 the two terms are equal but for rounding, and the score belongs to its interval.
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


def mean_error(outcomes: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """The standard error of the mean of outcomes [n] when groups are drawn again, not items; NaN for one group.

    The linearised variance of a ratio, groups being of unequal size (Cochran, 1977, 6.4), and at least that of
    independent items: a design effect below one is luck or a balance that other questions need not have.
    """
    at, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    count = len(sizes)
    if count < 2:
        return float("nan")
    residuals = np.bincount(at, outcomes - outcomes.mean(), minlength=count)
    between = count / (count - 1) * float((residuals**2).sum()) / len(outcomes) ** 2
    return math.sqrt(max(between, float(outcomes.var()) / (len(outcomes) - 1)))


def jackknife_error(statistic: Statistic, groups: NDArray[np.int64]) -> float:
    """The standard error of a smooth statistic of the items [n], by leaving each group out in turn (Tukey, 1958).

    Unlike a bootstrap it never shows an item twice, which lifts a ranking's average precision. Of more than 200 groups
    several are left out together (Kott, 2001). NaN for one group, or if a part of the groups settles nothing.
    """
    ids, at = np.unique(groups, return_inverse=True)
    parts = min(len(ids), _MOST_PARTS)
    if parts < 2:
        return float("nan")
    part_of = np.random.default_rng(0).permutation(len(ids)) % parts if len(ids) > parts else np.arange(len(ids))
    found = np.array([statistic(np.flatnonzero(part_of[at] != part)) for part in range(parts)])
    return math.sqrt((parts - 1) / parts * float(((found - found.mean()) ** 2).sum()))


def t_p(t: float, degrees: int) -> float:
    """P(|T| >= t) of Student's t (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4), to about 1e-12.

    Raises:
        ValueError: no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom: expected 1 or more, got {degrees}")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = cos if odd else 1.0
    for index in range(2 + odd, degrees, 2):
        term *= cos * cos * (index - 1) / index
        total += term
    if odd:
        total = 2 / math.pi * (angle + (sin * total if degrees > 1 else 0.0))
    else:
        total *= sin
    return min(1.0, max(0.0, 1.0 - total))


@lru_cache(maxsize=1024)
def t_quantile(degrees: int, *, p: float = 0.05) -> float:
    """The t with P(|T| >= t) = p, by halving."""
    low, high = 0.0, 1.0
    while t_p(high, degrees) > p:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_p(middle, degrees) > p else (low, middle)
    return (low + high) / 2


_Z = 1.959963984540054
