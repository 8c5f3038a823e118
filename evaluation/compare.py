"""Comparison of two evaluation runs, row by row: the difference, its confidence interval and its significance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evaluation.probe_results import Outcomes, ProbeResult, ResultRow
from evaluation.probes.rows import Unit
from evaluation.significance import Difference, Means, holm, of_draws, paired_means, unpaired

ALPHA = 0.05
Verdict = Literal["better", "worse", "no difference seen"]


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One row of both runs. difference: of the scores, B less A; for a bias (`better` is "at chance") of the distances
    to chance, so that less is better there too.

    low, high: its 95 % interval, not corrected. p: two-sided. p_holm: corrected for all compared rows. groups: of
    scenes, that the paired test draws; None if the test is not paired (`unpaired` says why). verdict: B beside A, at
    p_holm below 0.05.
    """

    probe: str
    row: str
    n: tuple[int, int]
    unit: Unit
    better: Literal["more", "less", "at chance"]
    chance: float | None
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    groups: int | None
    unpaired: str | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """A probe, or one row of it, that is not compared."""

    probe: str
    row: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    rows: tuple[ComparedRow, ...]
    left_out: tuple[LeftOutRow, ...]
    same_model: bool


def compare(a: Sequence[ProbeResult], b: Sequence[ProbeResult]) -> Comparison:
    """Every row that both runs have, judged on the same questions; what cannot be compared is listed with its reason.

    Raises:
        ValueError: nothing can be compared; the message has the reasons. A run has one probe twice.
    """
    ours, theirs = _by_probe(a, "A"), _by_probe(b, "B")
    found: list[ComparedRow] = []
    left_out: list[LeftOutRow] = []
    for probe in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(probe), theirs.get(probe)
        if left is None or right is None:
            only, which = (right, "B") if left is None else (left, "A")
            if only is not None:
                left_out.append(LeftOutRow(probe=probe_title(only), row=None, reason=f"only in {which}"))
            continue
        reason = _refusal(left, right)
        if reason is not None:
            left_out.append(LeftOutRow(probe=probe_title(left), row=None, reason=reason))
            continue
        rows, missing = _rows(left, right)
        found += rows
        left_out += missing
    if not found:
        reasons = dict.fromkeys(each.reason for each in left_out)
        raise ValueError(f"no row can be compared: {'; '.join(reasons) or 'both files are empty'}")
    corrected = holm([row.p for row in found])
    judged = [replace(row, p_holm=p, verdict=_verdict(row, p)) for row, p in zip(found, corrected, strict=True)]
    same = {result.key.fingerprint for result in a} == {result.key.fingerprint for result in b}
    return Comparison(rows=tuple(judged), left_out=tuple(left_out), same_model=same)


def probe_title(result: ProbeResult) -> str:
    """The probe's name; with its data where it asks about real pictures, because a run may have several of them."""
    return f"{result.key.probe} {result.key.suite}" if _on_real_data(result) else result.key.probe


def _on_real_data(result: ProbeResult) -> bool:
    return result.key.size_px == 0


def _by_probe(results: Sequence[ProbeResult], which: str) -> dict[tuple[str, str], ProbeResult]:
    """By name; results on real data by name and by what was asked, so that a folder may have moved."""
    out: dict[tuple[str, str], ProbeResult] = {}
    for result in results:
        asked = (result.questions or result.key.suite) if _on_real_data(result) else ""
        if (result.key.probe, asked) in out:
            raise ValueError(f"{which} has two results of {probe_title(result)}")
        out[result.key.probe, asked] = result
    return out


def _refusal(a: ProbeResult, b: ProbeResult) -> str | None:
    """Why two results do not answer the same questions."""
    asked = (
        ("suites", a.key.suite, b.key.suite),
        ("seeds", a.key.seed, b.key.seed),
        ("picture sizes", f"{a.key.size_px} px", f"{b.key.size_px} px"),
    )
    for what, left, right in asked:
        if left != right and not (what == "suites" and _on_real_data(a)):
            remedy = "; give both runs the same --image-px" if what == "picture sizes" else ""
            return f"other {what}: A {left}, B {right}{remedy}"
    for which, result in (("A", a), ("B", b)):
        if result.not_applicable is not None:
            return f"n/a in {which}: {result.not_applicable}"
    if a.questions and b.questions and a.questions != b.questions:
        return "other questions under the same name (made by other versions, or of other data)"
    return None


def _rows(a: ProbeResult, b: ProbeResult) -> tuple[list[ComparedRow], list[LeftOutRow]]:
    rows: list[ComparedRow] = []
    left_out: list[LeftOutRow] = []
    ours, theirs = ({row.name: row for row in result.rows} for result in (a, b))
    certain = a.questions is not None and a.questions == b.questions
    for name in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            made: ComparedRow | str = f"only in {'B' if left is None else 'A'}"
        else:
            made = _compared(probe_title(a), left, right, certain=certain)
        if isinstance(made, str):
            left_out.append(LeftOutRow(probe=probe_title(a), row=name, reason=made))
        else:
            rows.append(made)
    return rows, left_out


def _compared(probe: str, a: ResultRow, b: ResultRow, *, certain: bool) -> ComparedRow | str:
    """The row, or why there is none. certain: both files prove that the same questions were asked."""
    if a.score is None or b.score is None:
        return f"no score in {'A' if a.score is None else 'B'}"
    if (a.unit, a.better) != (b.unit, b.better):
        return f"another measure: A {a.unit}, {a.better} is better; B {b.unit}, {b.better} is better"
    axes = _axis(a), _axis(b)
    value = axes[1].of(b.score) - axes[0].of(a.score)
    tested = _paired((a, b), axes, value) if certain else "not known to be the same questions"
    why: str | None = None
    if isinstance(tested, str):
        why = tested
        if a.low is None or a.high is None or b.low is None or b.high is None:
            return f"not testable: {why}, and no intervals"
        tested = unpaired(value, (a.low, a.high), (b.low, b.high))
    return ComparedRow(
        probe=probe,
        row=a.name,
        n=(a.n, b.n),
        unit=a.unit,
        better=a.better,
        chance=a.chance,
        a=a.score,
        b=b.score,
        difference=tested.value,
        low=tested.low,
        high=tested.high,
        p=tested.p,
        p_holm=1.0,
        groups=tested.groups,
        unpaired=why,
        verdict="no difference seen",
    )


@dataclass(frozen=True)
class _Axis:
    """What is compared: the score itself, or for a bias how far it lies from chance on its own side."""

    origin: float = 0.0
    sign: float = 1.0

    def of(self, score: float) -> float:
        return self.sign * (score - self.origin)


def _axis(row: ResultRow) -> _Axis:
    if row.better != "at chance" or row.chance is None or row.score is None:
        return _Axis()
    return _Axis(row.chance, -1.0 if row.score < row.chance else 1.0)


def _paired(rows: tuple[ResultRow, ResultRow], axes: tuple[_Axis, _Axis], value: float) -> Difference | str:
    """The paired test, or why there is none."""
    a, b = rows[0].outcomes, rows[1].outcomes
    if a is None or b is None:
        return "no outcomes by group"
    found: Difference | None = None
    if a.sums is not None and b.sums is not None:
        clusters = sorted({*a.clusters, *b.clusters})
        found = paired_means(_means(a, clusters, axes[0]), _means(b, clusters, axes[1]))
    elif a.draws is not None and b.draws is not None:
        if (a.clusters, a.sizes, len(a.draws)) != (b.clusters, b.sizes, len(b.draws)):
            return "other groups of scenes"
        left, right = (np.array(draws, dtype=np.float64) for draws in (a.draws, b.draws))
        moved = axes[1].sign * (right - axes[1].origin) - axes[0].sign * (left - axes[0].origin)
        found = of_draws(value, moved, len(a.clusters))
    return found or "too few groups of scenes"


def _means(found: Outcomes, clusters: Sequence[int], axis: _Axis) -> Means:
    """Over all the clusters; one without an outcome in this run counts nothing."""
    at = np.searchsorted(clusters, found.clusters)
    sums, sizes = np.zeros(len(clusters)), np.zeros(len(clusters))
    sizes[at] = found.sizes
    sums[at] = axis.sign * (np.array(found.sums) - axis.origin * sizes[at])
    return Means(sums=sums, sizes=sizes)


def _verdict(row: ComparedRow, p_holm: float) -> Verdict:
    if p_holm >= ALPHA or row.difference == 0:
        return "no difference seen"
    return "better" if (row.difference > 0) == (row.better == "more") else "worse"
