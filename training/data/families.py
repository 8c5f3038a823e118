"""Families of products (colourways of one model, repeated titles), and a split that keeps each of them together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.rows import Row, Split, SplitRule, group_of_name

_WITHIN = 5  # shops number the colourways of a model one after the other
_SHARED_WORDS = 0.6  # of the longer title
_MOST = 100


def families(rows: Sequence[Row]) -> NDArray[np.int64]:
    """int64 [N]: the least number (`Row.group`) of each row's family.

    Two rows are of one family when their captions are equal but for case, or when their numbers differ by 5 or less and
    the captions share 60 % of the words of the longer one; so is what is linked by such pairs.
    """
    parents = list(range(len(rows)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    order = sorted(range(len(rows)), key=lambda at: rows[at].group)
    words = [_words(row) for row in rows]
    titles: dict[str, int] = {}
    for place, at in enumerate(order):
        parents[root(at)] = root(titles.setdefault(rows[at].caption.casefold(), at))
        for other in order[place + 1 :]:
            if rows[other].group - rows[at].group > _WITHIN:
                break
            if _alike(words[at], words[other]):
                parents[root(other)] = root(at)
    least: dict[int, int] = {}
    for at in order:
        least.setdefault(root(at), rows[at].group)
    return np.array([least[root(at)] for at in range(len(rows))], dtype=np.int64)


def has_kin(rows: Sequence[Row], others: Sequence[Row]) -> NDArray[np.bool_]:
    """bool [N]: whether one of `others` is of a row's family without a third one between them."""
    titles = {other.caption.casefold() for other in others}
    ordered = sorted(others, key=lambda other: other.group)
    numbers, words = [other.group for other in ordered], [_words(other) for other in ordered]
    found: list[bool] = []
    for row in rows:
        near = range(bisect_left(numbers, row.group - _WITHIN), bisect_right(numbers, row.group + _WITHIN))
        own = _words(row)
        found.append(row.caption.casefold() in titles or any(_alike(own, words[at]) for at in near))
    return np.array(found, dtype=np.bool_)


def _words(row: Row) -> frozenset[str]:
    return frozenset(row.caption.casefold().split())


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _SHARED_WORDS * max(len(one), len(other), 1)


def split_by_family(rows: Sequence[Row], rule: SplitRule) -> list[Split | None]:
    """The split of each row by a hash of its family, with the remainders of `rule`; None: in no split.

    What `rule` holds out by number is not trained on either, nor what it validates with, so that a model can be judged
    by that rule too; and no row that it tests with validates. A family of more than 100 rows, which only repeated
    titles make, is for training.
    """
    keys = families(rows)
    sizes = Counter(keys.tolist())
    found: list[Split | None] = []
    for row, key in zip(rows, keys.tolist(), strict=True):
        by_family: Split = "train" if sizes[key] > _MOST else rule.of(group_of_name(str(key)))
        by_number = rule.of(row.group)
        if by_family == "test" or by_number == "train" or (by_family, by_number) == ("validation", "validation"):
            found.append(by_family)
        else:
            found.append(None)
    return found
