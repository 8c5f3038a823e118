"""Do 95 % intervals cover? Simulated outcomes whose truth is known, from a handful of items to thousands in groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from evaluation.confidence import jackknife_error, mean_error, share_interval, wilson
from evaluation.metrics import TIE, mean_estimate
from evaluation.probes.ranking import average_precision, lucky_precision
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.retrieval import retrieval
from evaluation.significance import Means, paired_means

TRIALS = 500
# Of 500 intervals that cover 95 % of the time, fewer than 92.5 % cover once in 200 times.
LEAST = 0.925
Draw = Callable[[np.random.Generator], NDArray[np.float64]]


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    assert len(intervals) >= 150
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def answers(share: float, groups: int, size: int, alike: float) -> Draw:
    """Right and wrong, [groups, size]; alike: the correlation of two items of a group (beta-binomial)."""

    def draw(random: np.random.Generator) -> NDArray[np.float64]:
        levels = np.full((groups, 1), share)
        if alike:
            spread = 1 / alike - 1
            levels = random.beta(share * spread, (1 - share) * spread, size=(groups, 1))
        return (random.random((groups, size)) < levels).astype(np.float64)

    return draw


def row_of(outcomes: NDArray[np.float64], chance: float | None = None) -> ProbeRow:
    groups, size = outcomes.shape
    return mean_row("share", outcomes.ravel(), np.repeat(np.arange(groups), size), chance=chance)


@pytest.mark.parametrize("alike", [0, 0.1, 0.3])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("groups", "size"), [(3, 8), (5, 18), (8, 16), (16, 16), (40, 8)])
def test_shares_of_questions_in_groups(groups: int, size: int, share: float, alike: float) -> None:
    random, draw = np.random.default_rng(1), answers(share, groups, size, alike)
    found = covered([row_of(draw(random)).interval() for _ in range(TRIALS)], share)
    assert found >= (LEAST if groups >= 5 and alike < 0.3 or share == 0.5 else 0.9)
    if groups >= 16:
        assert found <= 0.99  # no cheaper way to cover than to be wide


@pytest.mark.parametrize("share", [0.004, 0.03, 0.0625, 0.25, 0.5, 0.97])
@pytest.mark.parametrize("items", [4, 16, 64, 1000])
def test_shares_of_a_few_independent_items(items: int, share: float) -> None:
    """At 0 and n too: four sets of sixteen answers are all wrong more often than not. Wilson's interval covers 95 % on
    the average over shares, not for each of them (Brown, Cai and DasGupta, 2001)."""
    random = np.random.default_rng(2)
    outcomes = [(random.random(items) < share).astype(np.float64) for _ in range(TRIALS)]
    estimates = [mean_estimate(each) for each in outcomes]
    assert covered([(each.low, each.high) for each in estimates], share) >= 0.9
    assert all(each.low <= each.value <= each.high for each in estimates)


def test_a_rare_answer_in_groups_keeps_an_open_interval() -> None:
    """Sixteen groups of eight, nearly always without a hit: closed at 0 the interval would miss nine times of ten."""
    random = np.random.default_rng(3)
    for alike in (0, 0.1, 0.4):
        draw = answers(0.004, 16, 8, alike)
        assert covered([row_of(draw(random)).interval() for _ in range(TRIALS)], 0.004) >= LEAST


def test_one_group_settles_nothing() -> None:
    for outcomes in (np.ones((1, 1)), np.zeros((1, 1)), np.array([[1.0, 1.0, 0.0]])):
        assert row_of(outcomes, chance=0.5).interval() == (0.0, 1.0)
    two = row_of(np.ones((2, 1)), chance=0.5).interval()
    assert two[0] < 0.5
    assert two[1] == 1
    assert np.isnan(mean_row("error", [3.0], [0], chance=3.3, unit="count").interval()).all()
    assert np.isnan(mean_row("none", [], [], chance=0.5).interval()).all()


def test_a_bias_of_a_random_encoder_is_seldom_seen() -> None:
    """The larger of two things wins by luck, and only in the few pictures in which either is found at all."""
    random = np.random.default_rng(4)
    biased = trials = 0
    for _ in range(TRIALS):
        settled = int(random.binomial(24, 0.1))
        if settled:
            row = mean_row(
                "larger wins",
                random.integers(2, size=settled).astype(np.float64),
                random.integers(3, size=settled),
                chance=0.5,
            )
            low, high = row.interval()
            biased += not low <= 0.5 <= high
            trials += 1
    assert trials > 400
    assert biased / trials < 0.05


@pytest.mark.parametrize("gain", [0.0, 0.15])
@pytest.mark.parametrize("groups", [8, 40])
def test_differences_of_two_encoders_on_the_same_questions(groups: int, gain: float) -> None:
    random = np.random.default_rng(5)
    intervals: list[tuple[float, float]] = []
    for _ in range(200):
        sizes = random.integers(4, 9, groups)
        hard = random.uniform(0.2, 0.6, groups)
        drawn = [random.binomial(sizes, hard + more).astype(float) for more in (0.0, gain)]
        found = paired_means(*(Means(sums=sums, sizes=sizes.astype(float)) for sums in drawn))
        assert found is not None
        intervals.append((found.low, found.high))
    assert covered(intervals, gain) >= 0.91  # of 200 intervals once in 100 times


def test_recall_at_one_with_captions_of_one_picture() -> None:
    """Five captions of a picture are found or missed together: with the picture as their group the interval covers."""
    random = np.random.default_rng(6)
    found: dict[str, list[tuple[float, float]]] = {"groups": [], "items": []}
    scores: list[float] = []
    for _ in range(150):
        pictures = random.normal(size=(40, 24))
        seen = pictures + random.normal(size=(40, 24)) * 1.7
        texts = np.repeat(seen, 5, axis=0) + random.normal(size=(200, 24)) * 0.4
        names = [f"{picture}" for picture in range(40) for _ in range(5)]
        titles = [f"caption {at}" for at in range(200)]
        report = retrieval(np.repeat(pictures, 5, axis=0), texts, titles, pictures=names)["t2i_r@1"]
        scores.append(report.value)
        found["groups"].append((report.low, report.high))
        found["items"].append(wilson(report.value, 200, 1.96))
    truth = float(np.mean(scores))
    assert 0.2 < truth < 0.9
    assert covered(found["groups"], truth) >= 0.91
    assert covered(found["items"], truth) < 0.8


def ranking(
    random: np.random.Generator, signal: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Scores and truth [pictures, labels] of 26 groups of 6 pictures, and the groups, which share labels."""
    truth = np.zeros((156, 16), dtype=bool)
    groups = np.repeat(np.arange(26), 6)
    for group in range(26):
        four = random.permutation(16)[:4]
        for at in range(6):
            truth[6 * group + at, random.permutation(four)[:2]] = True
    alike = random.normal(size=(26, 16))[groups]
    return signal * truth + 0.8 * random.normal(size=(156, 16)) + 0.6 * alike, truth, groups


def mean_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The mean of `average_precision` over the labels, all at once; equal scores are one step."""
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, relevant = (np.take_along_axis(each, order, axis=0) for each in (scores, truth))
    ends = np.vstack([ranked[:-1] - ranked[1:] > TIE, np.ones((1, scores.shape[1]), dtype=bool)])
    hits, ranks = relevant.cumsum(axis=0), np.arange(1, len(scores) + 1)[:, None]
    hits_then, ranks_then = (  # where the step of each ends
        np.minimum.accumulate(np.where(ends, each, np.inf)[::-1])[::-1] for each in (hits, ranks)
    )
    known = hits[-1] > 0
    return float(((relevant * hits_then / ranks_then).sum(axis=0)[known] / hits[-1][known]).mean())


def precision_row(scores: NDArray[np.float64], truth: NDArray[np.bool_], groups: NDArray[np.int64]) -> ProbeRow:
    def statistic(picks: NDArray[np.intp]) -> float:
        return mean_precision(scores[picks], truth[picks])

    return ProbeRow(name="mAP", chance=None, clusters=groups, statistic=statistic)


@pytest.mark.parametrize("twice", [False, True])
def test_mean_precision_here_is_that_of_the_probes(twice: bool) -> None:
    random = np.random.default_rng(3)
    scores, truth, _ = ranking(random, 1.5)
    picks = random.integers(8, size=20) if twice else np.arange(5)  # some labels are on none of so few pictures
    found = [average_precision(scores[picks, at], truth[picks, at]) for at in range(16)]
    assert mean_precision(scores[picks], truth[picks]) == pytest.approx(np.nanmean(found), abs=1e-12)
    assert np.isnan(found).any()


@pytest.mark.parametrize("signal", [0.0, *(pytest.param(each, marks=pytest.mark.long) for each in (1.5, 4.0))])
def test_mean_average_precision(signal: float) -> None:
    """The interval lies around the score and covers; the middle of resampled rankings does neither."""
    random = np.random.default_rng(7)
    rows = [precision_row(*ranking(random, signal)) for _ in range(150)]
    truth = float(np.mean([row.value for row in rows]))
    intervals = [row.interval() for row in rows]
    assert all(low <= row.value <= high for row, (low, high) in zip(rows, intervals, strict=True))
    assert covered(intervals, truth) >= 0.91
    if signal == 0:
        assert truth == pytest.approx(np.mean([lucky_precision(19, 156), lucky_precision(20, 156)]), abs=0.01)
        resampled = [np.percentile(row.draws(), [2.5, 97.5]) for row in rows[:20]]
        assert np.mean([low <= truth <= high for low, high in resampled]) < 0.9


def test_more_than_all_is_no_share_and_has_an_interval() -> None:
    outcomes = np.random.default_rng(11).random(50)
    row = ProbeRow(
        name="kept", chance=None, clusters=np.arange(50), statistic=lambda picks: float(2.2 * outcomes[picks].mean())
    )
    low, high = row.interval()
    assert row.value > 1
    assert low < row.value < high


def test_the_jackknife_of_a_mean_is_its_error() -> None:
    random = np.random.default_rng(8)
    groups = np.repeat(np.arange(30), 10)
    outcomes = random.normal(size=300) + random.normal(size=30)[groups]
    found = jackknife_error(lambda picks: float(outcomes[picks].mean()), groups)
    assert found == pytest.approx(mean_error(outcomes, groups))
    assert found == pytest.approx(outcomes.reshape(30, 10).mean(axis=1).std(ddof=1) / 30**0.5)
    many = random.normal(size=2000)
    parted = jackknife_error(lambda picks: float(many[picks].mean()), np.arange(2000))
    assert parted == pytest.approx(mean_error(many, np.arange(2000)), rel=0.15)


def test_items_of_one_group_count_as_fewer() -> None:
    random = np.random.default_rng(9)
    groups = np.repeat(np.arange(20), 10)
    twins = np.repeat(random.random(20) < 0.4, 10).astype(np.float64)
    assert mean_error(twins, groups) == pytest.approx(np.std(twins) / 19**0.5)
    assert mean_error(twins, np.arange(200)) == pytest.approx(np.std(twins) / 199**0.5)
    balanced = np.tile([0.0, 1.0], 100)  # each group is right in half: no less error than of independent items
    assert mean_error(balanced, groups) == mean_error(balanced, np.arange(200))
    assert np.isnan(mean_error(twins, np.zeros(200, dtype=np.int64)))


def test_wilson_is_scipys() -> None:
    for hits, number in ((0, 16), (1, 16), (7, 40), (40, 40), (500, 1000)):
        known = stats.binomtest(hits, number).proportion_ci(method="wilson")
        assert wilson(hits / number, number, float(stats.norm.ppf(0.975))) == pytest.approx((known.low, known.high))
    low, high = share_interval(0.3, (0.3 * 0.7 / 50) ** 0.5, np.arange(1_000_000))
    known = stats.binomtest(15, 50).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-4)


def test_the_precision_of_luck_is_that_of_all_orders() -> None:
    random = np.random.default_rng(10)
    for relevant, candidates in ((1, 1), (1, 5), (3, 12), (4, 124)):
        right = np.arange(candidates) < relevant
        drawn = [average_precision(random.normal(size=candidates), right) for _ in range(4000)]
        assert lucky_precision(relevant, candidates) == pytest.approx(np.mean(drawn), rel=0.05)
    assert lucky_precision(4, 124) == pytest.approx(0.0669, abs=1e-4)
    assert np.isnan(lucky_precision(0, 5))
    scores, right = np.array([3.0, 2, 2, 2, 1]), np.array([False, True, False, True, True])
    orders = [average_precision(scores + random.uniform(0, 0.5, 5), right) for _ in range(4000)]
    assert average_precision(scores, right, ties_wrong=False) == pytest.approx(np.mean(orders), rel=0.02)
    assert average_precision(scores, right) == pytest.approx((2 * 2 / 4 + 3 / 5) / 3)
