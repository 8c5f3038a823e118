"""MaxSkew@k, NDKL and the worst group against numbers worked out by hand and against plain loops over the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.bias.metrics import group_accuracies, max_skew, ndkl, ranking, worst_group_accuracy


def counted(groups: str) -> np.ndarray:
    """Counts of a ranking that is written from the best to the worst, such as "AAB"."""
    numbers = np.array([ord(letter) - ord("A") for letter in groups])
    return ranking(-np.arange(len(groups), dtype=float), numbers).counts()


@pytest.mark.parametrize(
    ("groups", "k", "known"),
    [
        ("AABB", 2, math.log(2)),  # all of the first two, half of all
        ("ABAB", 2, 0.0),
        ("ABBB", 1, math.log(4)),  # the rare one first: 1 of 1, and 1 of 4
        ("BBBA", 2, math.log(4 / 3)),
        ("AAABBB", 6, 0.0),  # everything is nobody's skew
        ("AABB", 99, 0.0),
        ("ABC" * 4 + "AAA", 3, math.log((1 / 3) / (4 / 15))),  # B's share of all is the least
    ],
)
def test_max_skew_by_hand(groups: str, k: int, known: float) -> None:
    assert max_skew(counted(groups), k) == pytest.approx(known, abs=1e-12)


def test_ndkl_by_hand() -> None:
    total = 1 + 1 / math.log2(3)
    assert ndkl(counted("AB")) == pytest.approx(math.log(2) / total)  # the second place brings it back to even
    # AAB B: KL is ln 2 twice, then that of (2/3, 1/3), then nothing.
    third = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    known = (math.log(2) * total + third / 2) / (total + 1 / 2 + 1 / math.log2(5))
    assert ndkl(counted("AABB")) == pytest.approx(known)
    wanted = np.array([2 / 3, 1 / 3])
    assert max_skew(counted("AABB"), 2, target=wanted) == pytest.approx(math.log(3 / 2))
    assert ndkl(counted("AB"), target=wanted) == pytest.approx(
        (math.log(3 / 2) + (0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)) / math.log2(3)) / total
    )


@pytest.mark.parametrize("seed", range(5))
def test_both_are_the_formulas_spelt_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, scores = rng.integers(4, size=60), rng.normal(size=60)
    ranked = groups[np.argsort(-scores)].tolist()
    shares = [ranked.count(group) / 60 for group in range(4)]
    skews = [ranked[:15].count(group) / 15 / shares[group] for group in range(4)]
    divergence = [
        stats.entropy([ranked[:i].count(group) / i for group in range(4)], shares) / math.log2(i + 1)
        for i in range(1, 61)
    ]
    counts = ranking(scores, groups).counts()
    assert max_skew(counts, 15) == pytest.approx(math.log(max(skews)))
    assert ndkl(counts) == pytest.approx(sum(divergence) / sum(1 / math.log2(i + 1) for i in range(1, 61)))


def test_who_ties_shares_places_whatever_the_order_of_the_file() -> None:
    groups = np.array([0, 0, 1, 1, 1, 0])
    counts = ranking(np.zeros(6), groups).counts()
    assert (max_skew(counts, 2), ndkl(counts)) == pytest.approx((0, 0), abs=1e-12)
    scores = np.array([3.0, 2, 2, 2, 1, 1])  # place 1 is a 0; places 2 to 4 hold one 0 and two 1
    expected = [[0, 0], [1, 0], [4 / 3, 2 / 3], [5 / 3, 4 / 3], [2, 2], [2.5, 2.5], [3, 3]]
    np.testing.assert_allclose(ranking(scores, groups).counts(), expected)
    turned = np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(ranking(scores[turned], groups[turned]).counts(), expected)


def test_a_resample_is_the_ranking_of_what_it_holds() -> None:
    rng = np.random.default_rng(3)
    scores, groups = rng.integers(9, size=40).astype(float), rng.integers(3, size=40)
    picks = rng.integers(40, size=25)
    again = ranking(scores[picks], groups[picks], kinds=3).counts()
    np.testing.assert_allclose(ranking(scores, groups, kinds=3).counts(picks), again)


def test_worst_group() -> None:
    hits, groups = np.array([1, 1, 0, 1, 0, 0]), np.array([0, 0, 0, 2, 2, 5])
    np.testing.assert_allclose(group_accuracies(hits, groups), [2 / 3, 1 / 2, 0])
    assert worst_group_accuracy(hits, groups) == 0
    assert worst_group_accuracy(hits[:5], groups[:5]) == 0.5


def test_what_is_no_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one and the same"):
        ranking(np.zeros(3), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="not finite"):
        ranking(np.array([1.0, np.nan]), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="k is 0"):
        max_skew(counted("AB"), 0)
