"""Comparing two runs: the test against scipy, its false alarms, what is refused, and the file that runs are kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from evaluation.compare import ComparedRow, compare, probe_title
from evaluation.confidence import t_p, t_quantile
from evaluation.encoder import Shown
from evaluation.probe_results import ProbeResult, RunKey, result_rows
from evaluation.probes.pool import PoolSize
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.results_file import EvaluationRun, read_run, run_from_json, run_to_json, write_run
from evaluation.significance import Means, holm, of_draws, paired_means, unpaired
from evaluation.suites import Suite, run

KEY = RunKey(probe="made", fingerprint="model A", space="s", suite="quick", seed=0, size_px=64)


def made(rows: Sequence[ProbeRow], *, fingerprint: str = "model A", **changes: Any) -> ProbeResult:
    """A result of rows; `changes` are fields of the result, `key` those of its key."""
    key = replace(KEY, fingerprint=fingerprint, **changes.pop("key", {}))
    found = ProbeResult(key=key, encoder="an encoder", pictures=1, texts=1, rows=result_rows(rows, {}), questions="q")
    return replace(found, **changes)


def share(
    outcomes: Sequence[float] | NDArray[np.float64],
    *,
    per_group: int = 1,
    better: Literal["more", "less", "at chance"] = "more",
    chance: float = 0.5,
) -> ProbeRow:
    clusters = np.arange(len(outcomes)) // per_group
    return mean_row("share", outcomes, clusters, chance=chance, better=better)


def only(a: ProbeResult, b: ProbeResult) -> ComparedRow:
    (row,) = compare([a], [b]).rows
    return row


def groups_of(random: np.random.Generator, groups: int, *, gain: float = 0.0) -> tuple[Means, Means]:
    """Two models on groups of 4 to 8 items; a group's difficulty is common to both, `gain` is what B is better by."""
    sizes = random.integers(4, 9, groups)
    hard = random.uniform(0.1, 0.9 - gain, groups)
    draw = [random.binomial(sizes, hard + more).astype(float) for more in (0.0, gain)]
    return Means(sums=draw[0], sizes=sizes.astype(float)), Means(sums=draw[1], sizes=sizes.astype(float))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 15, 128, 5001])
def test_students_t_is_scipys(degrees: int) -> None:
    for t in (0.0, 0.1, 1.0, 2.5, -2.5, 8.0):
        assert t_p(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-11)
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


@pytest.mark.parametrize("groups", [5, 40])
def test_equal_groups_give_scipys_paired_t_test(groups: int) -> None:
    random = np.random.default_rng(3)
    a = random.binomial(8, 0.5, groups).astype(float)
    b = np.clip(a + random.integers(-2, 4, groups), 0, 8)
    sizes = np.full(groups, 8.0)
    found = paired_means(Means(sums=a, sizes=sizes), Means(sums=b, sizes=sizes))
    known = stats.ttest_rel(b / 8, a / 8)
    interval = known.confidence_interval()
    assert found is not None
    assert found.value == pytest.approx(np.mean(b - a) / 8)
    assert found.high - found.low == pytest.approx(interval.high - interval.low, rel=0.035)
    assert found.low + found.high == pytest.approx(interval.low + interval.high)
    assert 1e-4 < known.pvalue < 0.7
    assert np.log(found.p) == pytest.approx(np.log(known.pvalue), abs=0.15)


def test_unequal_groups_give_scipys_paired_bootstrap() -> None:
    a, b = groups_of(np.random.default_rng(5), 30, gain=0.1)

    def difference(*parts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        sums_a, sizes_a, sums_b, sizes_b = (part.sum(axis=axis) for part in parts)
        return sums_b / sizes_b - sums_a / sizes_a

    known = stats.bootstrap(
        (a.sums, a.sizes, b.sums, b.sizes),
        difference,
        paired=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    found = paired_means(a, b)
    assert found is not None
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, 29)
    assert error == pytest.approx(known.standard_error * np.sqrt(30 / 29), rel=0.04)
    # Percentiles know nothing of few groups: the same interval, a little narrower.
    assert found.low == pytest.approx(known.confidence_interval.low, abs=0.02)
    assert found.high == pytest.approx(known.confidence_interval.high, abs=0.02)
    assert found.low < known.confidence_interval.low < known.confidence_interval.high < found.high


@pytest.mark.parametrize("groups", [8, 40])
def test_equal_models_differ_in_one_of_twenty_trials(groups: int) -> None:
    random = np.random.default_rng(groups)
    trials = 600
    found = [paired_means(*groups_of(random, groups), seed=trial) for trial in range(trials)]
    alarms = np.mean([each is not None and each.p < 0.05 for each in found])
    covered = np.mean([each is not None and each.low <= 0 <= each.high for each in found])
    assert 0.02 < alarms < 0.08  # 600 trials at 5 %: 4 standard deviations are 3.6 %
    assert covered == pytest.approx(1 - alarms, abs=0.02)


def test_pairs_show_what_two_intervals_hide() -> None:
    """Groups are much harder or easier than each other, alike for both models; B is a little better in all."""
    hard = np.repeat([0.0, 1.0], 20)
    a = np.concatenate([[h, h, h, h, h, h, h, 0.0] for h in hard])
    b = np.concatenate([[h, h, h, h, h, h, h, 1.0] for h in hard])
    noise = np.random.default_rng(0).random(len(a)) < 0.02
    found = only(made([share(a, per_group=8)]), made([share(np.where(noise, 1 - b, b), per_group=8)], fingerprint="B"))
    assert (found.verdict, found.groups, found.unpaired) == ("better", 40, None)
    apart = unpaired(
        found.difference, *((row.low or 0, row.high or 0) for row in made([share(a, per_group=8)]).rows * 2)
    )
    assert apart.p > 0.05


def test_few_groups_prove_nothing() -> None:
    """Three groups that all agree are as likely as three equal coins."""
    found = only(made([share([0.0] * 30, per_group=10)]), made([share([1.0] * 30, per_group=10)]))
    assert found.difference == 1
    assert found.p == 0.25
    assert found.verdict == "no difference seen"
    assert only(made([share([0.0] * 30)]), made([share([1.0] * 30)])).verdict == "better"


def test_one_group_is_compared_by_its_intervals() -> None:
    found = only(made([share([0.0, 1.0], per_group=2)]), made([share([1.0, 1.0], per_group=2)]))
    assert found.groups is None
    assert "too few groups" in (found.unpaired or "")


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_lies_between_no_correction_and_bonferroni(values: list[float]) -> None:
    found = holm(values)
    for p, corrected in zip(values, found, strict=True):
        assert p <= corrected <= min(1.0, len(values) * p)
    order = np.argsort(values, kind="stable")
    assert all(np.diff(np.array(found)[order]) >= 0)


def test_all_rows_share_the_correction() -> None:
    random = np.random.default_rng(1)
    names = [f"row {index}" for index in range(40)]
    a = [replace(share(random.integers(0, 2, 60).astype(float)), name=name) for name in names]
    b = [replace(share(random.integers(0, 2, 60).astype(float)), name=name) for name in names]
    found = compare([made(a)], [made(b, fingerprint="B")]).rows
    assert any(row.p < 0.05 for row in found)
    assert all(row.verdict == "no difference seen" for row in found)
    assert [row.p_holm for row in found] == holm([row.p for row in found])


@pytest.mark.parametrize(("better", "verdict"), [("more", "better"), ("less", "worse")])
def test_which_way_is_better(better: Literal["more", "less"], verdict: str) -> None:
    low, high = share([0.0, 0.0, 0.0, 1.0] * 20, better=better), share([1.0, 1.0, 1.0, 0.0] * 20, better=better)
    assert only(made([low]), made([high])).verdict == verdict


@pytest.mark.parametrize(
    ("a", "b", "difference", "verdict"),
    [
        (0.5, 0.9, 0.4, "worse"),
        (0.9, 0.5, -0.4, "better"),
        (0.1, 0.5, -0.4, "better"),
        (0.1, 0.9, 0.0, "no difference seen"),
        (0.2, 0.9, 0.1, "no difference seen"),
        (0.95, 0.4, -0.35, "better"),
    ],
)
def test_a_bias_is_compared_by_its_distance_to_chance(a: float, b: float, difference: float, verdict: str) -> None:
    ours, theirs = (np.random.default_rng(7).permutation(np.arange(100) < 100 * value) for value in (a, b))
    found = only(*(made([share(each.astype(float), better="at chance")]) for each in (ours, theirs)))
    assert found.difference == pytest.approx(difference)
    assert found.verdict == verdict
    assert found.low <= difference <= found.high


def test_rows_that_are_no_means_are_paired_by_their_resamples() -> None:
    def row(values: NDArray[np.float64]) -> ProbeRow:
        clusters = np.arange(len(values)) // 2
        return ProbeRow(
            name="median", chance=None, clusters=clusters, statistic=lambda at: float(np.median(values[at]))
        )

    random = np.random.default_rng(2)
    values = random.normal(size=80)
    found = only(made([row(values)]), made([row(values + 0.1)], fingerprint="B"))
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert (found.groups, found.verdict) == (40, "better")
    other = only(made([row(values)]), made([row(values[:40])], fingerprint="B"))
    assert other.unpaired == "other groups of scenes"


def test_resamples_that_settle_nothing_are_left_out() -> None:
    draws = np.where(np.arange(200) < 40, np.nan, np.random.default_rng(0).normal(0.5, 0.1, 200))
    found = of_draws(0.5, draws, 20)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 2.093 * 0.1 * np.sqrt(20 / 19), rel=0.15)
    assert of_draws(0.5, np.where(np.arange(200) < 120, np.nan, 0.5), 20) is None


def test_groups_without_an_outcome_count_nothing() -> None:
    """A model that found nothing in some groups is compared over the groups of both."""
    a = np.array([1.0, 0.0] * 10 + [np.nan] * 10)
    b = np.array([np.nan] * 6 + [1.0] * 24)
    found = only(made([share(a, per_group=2)]), made([share(b, per_group=2)], fingerprint="B"))
    assert found.n == (20, 24)
    assert found.groups == 15
    assert found.difference == pytest.approx(0.5)


def refusals() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"key": {"suite": "full"}}, "other suites: A quick, B full"),
        ({"key": {"seed": 1}}, "other seeds: A 0, B 1"),
        ({"key": {"size_px": 224}}, "other picture sizes: A 64 px, B 224 px; give both runs the same --image-px"),
        ({"not_applicable": "no grid"}, "n/a in B: no grid"),
        ({"questions": "others"}, "other questions under the same name"),
        ({"key": {"probe": "another"}}, "only in A; only in B"),
    ]


@pytest.mark.parametrize(("changes", "reason"), refusals())
def test_other_questions_are_refused(changes: dict[str, Any], reason: str) -> None:
    a, b = made([share([0.0, 1.0] * 9)]), made([share([1.0, 1.0] * 9)], **changes)
    with pytest.raises(ValueError, match=reason):
        compare([a], [b])
    good = made([share([1.0, 0.0] * 9)], key={"probe": "good"})
    found = compare([a, good], [b, good])
    assert [row.probe for row in found.rows] == ["good"]
    assert reason.startswith(found.left_out[0].reason[:20])


def test_files_without_outcomes_are_compared_unpaired_and_say_so() -> None:
    a, b = made([share([0.0, 1.0, 0.0] * 20)]), made([share([1.0, 1.0, 0.0] * 20)])
    old = replace(b, questions=None, rows=tuple(replace(row, outcomes=None) for row in b.rows))
    found = only(a, old)
    assert found.unpaired == "not known to be the same questions"
    assert found.groups is None
    expected = unpaired(found.difference, *((row.low or 0, row.high or 0) for row in (a.rows[0], b.rows[0])))
    assert (found.low, found.high, found.p) == (expected.low, expected.high, expected.p)


def test_real_data_is_matched_by_what_was_asked() -> None:
    """A folder may have moved; two folders of one kind stand in one file."""
    here = made([share([0.0, 1.0] * 9)], key={"size_px": 0, "suite": "folder:here (data 1)"}, questions="1")
    more = made([share([0.0, 1.0] * 9)], key={"size_px": 0, "suite": "folder:more (data 2)"}, questions="2")
    there = made([share([1.0, 1.0] * 9)], key={"size_px": 0, "suite": "folder:there (data 1)"}, questions="1")
    found = compare([here, more], [there])
    assert [row.probe for row in found.rows] == [probe_title(here)] == ["made folder:here (data 1)"]
    assert [(each.probe, each.reason) for each in found.left_out] == [("made folder:more (data 2)", "only in A")]
    with pytest.raises(ValueError, match="A has two results of made folder:here"):
        compare([here, here], [there])


class SeededEncoder:
    """Random vectors by digest of the input: knows nothing, says the same each time."""

    image_px: int | None = 48

    def __init__(self, seed: int) -> None:
        self.name = self.space = self.fingerprint = f"seed {seed}"
        self._seed = seed

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._draw([image if isinstance(image, bytes) else image.tobytes() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._draw([text.encode() for text in texts])

    def _draw(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        rows = [np.random.default_rng([self._seed, *each[:4000:7], len(each)]).normal(size=32) for each in inputs]
        return np.array(rows, dtype=np.float32)


def test_real_runs_of_two_models_are_paired_row_by_row(tmp_path: Path) -> None:
    size = PoolSize(compass=4, class_groups=2, squares=2, counts=2, additions=3, spoilt=16)
    chosen = Suite(name="some", probes=("binding", "mention-bias", "adverse", "few-shot", "multi-label"), size=size)
    ours, theirs = (run(SeededEncoder(seed), chosen) for seed in (1, 2))
    for number, results in enumerate((ours, theirs), start=1):
        facts = EvaluationRun(
            encoder=f"seed {number}",
            fingerprint=f"seed {number}",
            space=f"seed {number}",
            suite="some",
            seed=0,
            size_px=48,
            date="2026-01-01T00:00:00+00:00",
            clipworks="0",
            results=tuple(results),
        )
        write_run(facts, tmp_path / f"{number}.json")
        assert read_run(tmp_path / f"{number}.json") == facts
    found = compare(read_run(tmp_path / "1.json").results, read_run(tmp_path / "2.json").results)
    scores = {(result.key.probe, row.name): row for result in ours for row in result.rows}
    assert len(found.rows) > 15
    assert not found.same_model
    for row in found.rows:
        assert row.a == scores[row.probe, row.row].score
        assert row.groups, (row.probe, row.row, row.unpaired)
        if row.better != "at chance":
            assert row.difference == pytest.approx(row.b - row.a)
        assert row.verdict == "no difference seen", (row.probe, row.row)
    same = compare(ours, ours)
    assert same.same_model
    assert all(row.p == 1 and row.difference == 0 for row in same.rows)
    assert all(row.low == row.high == 0 for row in same.rows if row.groups)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    good = run_to_json(
        EvaluationRun(
            encoder="e",
            fingerprint="model A",
            space="s",
            suite=None,
            seed=0,
            size_px=64,
            date="",
            clipworks="0",
            results=(made([share([1.0])]),),
        )
    )
    assert run_from_json(json.loads(json.dumps(good))).results[0].rows[0].score == 1
    cases = (
        ("{", "x.json: "),
        ("[]", "list instead of an object"),
        ("{}", "expected kind 'clipworks evaluation', got None"),
        (json.dumps(good | {"format": 9}), "format 9, this version reads 1"),
        (json.dumps(good | {"results": [{}]}), "not the result of a probe"),
        (json.dumps(good | {"more": 1}), "not the JSON of an evaluation"),
        (json.dumps(good | {"fingerprint": "model B"}), "results of another model than 'model B': made"),
    )
    for text, reason in cases:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=reason) as caught:
            read_run(path)
        assert "x.json" in str(caught.value)
