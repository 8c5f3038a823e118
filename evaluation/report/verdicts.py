"""Verdicts on rows: the word for an interval beside its chance and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.report.topics import TOPICS, Claim

Verdict = Literal["yes", "partly", "texts alone", "no", "worse", "leans", "even", "unknown"]
CLEARLY = 0.8  # of the way from chance to what can be reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim about one row, and how it stands. sentence: the claim in words that fit the verdict."""

    probe: str
    row: ResultRow
    verdict: Verdict
    sentence: str


def verdict(row: ResultRow) -> Verdict:
    """yes: the whole interval lies on the good side of chance, of the blind control and of the best prior, and the
    score has gone 80 % of the way from chance to the truth's score. partly: less of the way. texts alone: better than
    chance, but not than the blind control or a prior. no: chance lies in the interval. worse: the whole interval lies
    on the bad side of chance. leans, even: for a bias, whether chance lies outside the interval; a gap or a skew, where
    none at all is ideal, leans above chance only. unknown: no score, nothing to compare with, or a gap of a file whose
    chance is 0.
    """
    if row.score is None or row.low is None or row.high is None or row.chance is None:
        return "unknown"
    if row.better == "at chance":
        return "even" if row.low <= row.chance <= row.high else "leans"
    if row.better == "less" and row.chance == 0:
        return "unknown"
    if row.better == "less" and row.unit in ("share", "log ratio"):
        return "leans" if row.low > row.chance else "even"
    sign = 1.0 if row.better == "more" else -1.0
    worst, best = sorted((sign * row.low, sign * row.high))
    chance, score = sign * row.chance, sign * row.score
    if best < chance:
        return "worse"
    if worst <= chance:
        return "no"
    if any(other is not None and worst <= sign * other for other in (row.blind, row.prior)):
        return "texts alone"
    reach = sign * (row.truth if row.truth is not None else 1.0) - chance
    return "yes" if reach > 0 and score - chance >= CLEARLY * reach else "partly"


def findings(results: Sequence[ProbeResult]) -> list[Finding]:
    """One for each claim of `topics.py` whose row is there, in the order of the results."""
    out: list[Finding] = []
    for result in results:
        topic = TOPICS.get(result.key.probe)
        for claim in topic.claims if topic else ():
            for row in result.rows:
                if row.name == claim.row:
                    found = verdict(row)
                    sentence = _sentence(claim, row, found)
                    out.append(Finding(probe=result.key.probe, row=row, verdict=found, sentence=sentence))
    return out


def _sentence(claim: Claim, row: ResultRow, found: Verdict) -> str:
    if found != "leans" or row.score is None or row.chance is None:
        return claim.says
    return claim.more if row.score > row.chance else claim.less
