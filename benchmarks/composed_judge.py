"""Judges the formulas of benchmarks/composed.py: weights from validation, numbers from held-out pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.composed_data import QuestionSet
from benchmarks.composed_formulas import FORMULAS, NAMED, AskedPair
from evaluation.significance import Means, paired_means

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
TOP = 10
POOLS = (20, 50, 100, 200)
BASE, ALONE = "plain", "positive alone"
_DRAWS = 2000
_LAST = -1e6


@dataclass(frozen=True, eq=False)
class FormulaOutcomes:
    """Of each question, [Q]: average precision, share of right and of harmful pictures among the first ten."""

    ap: F64
    right: F64
    harmful: F64

    def of(self, name: str) -> F64:
        return {"mAP": self.ap, "P@10": self.right, "harmful@10": self.harmful}[name]


Split = Sequence[tuple[QuestionSet, AskedPair]]


def outcomes(scores: F64, asked: QuestionSet) -> FormulaOutcomes:
    """Of scores [Q, N]. Pictures that a question ignores are taken out of its ranking."""
    relevant, harmful, ignored = (
        np.stack([getattr(one, name) for one in asked.questions]) for name in ("relevant", "harmful", "ignored")
    )
    order = np.argsort(-np.where(ignored, -np.inf, scores), axis=1, kind="stable")
    right, wrong = (np.take_along_axis(each, order, axis=1) for each in (relevant, harmful))
    found = np.cumsum(right, axis=1)
    ap = (right * found / np.arange(1, found.shape[1] + 1)).sum(axis=1) / found[:, -1]
    return FormulaOutcomes(ap, right[:, :TOP].mean(axis=1), wrong[:, :TOP].mean(axis=1))


def in_pool(first: F64, scores: F64, size: int) -> F64:
    """Scores of the `size` best by `first`; all others behind them, in the order of `first`."""
    places = np.argsort(np.argsort(-first, axis=1, kind="stable"), axis=1)
    return np.where(places < size, scores, _LAST + first)


def by_weight(split: Split) -> dict[str, dict[str, dict[float, float]]]:
    """Formula -> set -> weight -> mAP."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for formula in FORMULAS:
        found[formula.name] = {
            questions.name: {
                weight: float(outcomes(formula.score(asked, weight), questions).ap.mean()) for weight in formula.weights
            }
            for questions, asked in split
        }
    return found


def is_tuned(name: str) -> bool:
    return not name.startswith("unrelated")


def chosen_weights(curves: Mapping[str, Mapping[float, float]]) -> tuple[dict[str, float], float]:
    """(the best weight of each set, the best one for all sets: their mean mAP counts each alike)."""
    tuned = {name: curve for name, curve in curves.items() if is_tuned(name)}
    own = {name: max(curve, key=lambda weight: curve[weight]) for name, curve in curves.items()}
    weights = next(iter(tuned.values()))
    return own, max(weights, key=lambda weight: sum(curve[weight] for curve in tuned.values()))


def tolerance(curves: Mapping[str, Mapping[float, float]], best: float, *, points: float = 0.01) -> tuple[float, float]:
    """The range of weights around `best` whose mean mAP over the sets is within `points` of the best."""
    tuned = [curve for name, curve in curves.items() if is_tuned(name)]
    weights = sorted(tuned[0])
    means = {weight: float(np.mean([curve[weight] for curve in tuned])) for weight in weights}
    at = low = high = weights.index(best)
    while low > 0 and means[weights[low - 1]] >= means[best] - points:
        low -= 1
    while high + 1 < len(weights) and means[weights[high + 1]] >= means[best] - points:
        high += 1
    assert low <= at <= high
    return weights[low], weights[high]


def interval(values: F64, groups: Sequence[str]) -> tuple[float, float]:
    """95 % percentiles of the mean when groups (the positive of each question) are drawn again."""
    names, at = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(at, values), np.bincount(at)
    drawn = np.random.default_rng(0).integers(len(names), size=(_DRAWS, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def difference(values: F64, base: F64, groups: Sequence[str]) -> dict[str, float] | None:
    """values - base, paired by question, drawn again by group."""
    names, at = np.unique(groups, return_inverse=True)
    sizes = np.bincount(at).astype(np.float64)
    sums = [np.bincount(at, each).astype(np.float64) for each in (base, values)]
    found = paired_means(Means(sums=sums[0], sizes=sizes), Means(sums=sums[1], sizes=sizes))
    if found is None or len(names) < 2:
        return None
    return {"value": found.value, "low": found.low, "high": found.high}


def heldout(split: Split, weights: Mapping[str, tuple[Mapping[str, float], float]]) -> dict[str, Any]:
    """Set -> formula -> numbers with the set's own weight, with the one for all sets, and with weight 1."""
    found: dict[str, Any] = {}
    for questions, asked in split:
        groups = [one.wanted for one in questions.questions]
        entry: dict[str, Any] = {"questions": len(groups), "groups": len(set(groups)), "formulas": {}}
        entry["pictures"] = len(questions.gallery.names)
        entry["right_ones"] = float(np.median([one.relevant.sum() for one in questions.questions]))
        bases: dict[str, FormulaOutcomes] = {}
        for formula in sorted(
            FORMULAS, key=lambda each: each.name != BASE
        ):  # what others are compared with comes first
            own, shared = weights[formula.name]
            numbers: dict[str, Any] = {}
            for kind, weight in (("own", own.get(questions.name, shared)), ("shared", shared), ("one", 1.0)):
                result = outcomes(formula.score(asked, weight), questions)
                base = bases.setdefault(kind, result)
                means = {"weight": weight, "mAP": {"value": float(result.ap.mean())}}
                numbers[kind] = means if kind != "shared" else means | _numbers(result, base, groups)
            entry["formulas"][formula.name] = numbers
        found[questions.name] = entry
    return found


def _numbers(result: FormulaOutcomes, base: FormulaOutcomes, groups: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("mAP", "P@10", "harmful@10"):
        values = result.of(name)
        found[name] = {"value": float(values.mean()), "interval": interval(values, groups)}
        if name != "harmful@10":
            found[name]["to_plain"] = difference(values, base.of(name), groups)
    return found


def pools(split: Split, names: Sequence[str], weights: Mapping[str, float], first: str) -> dict[str, Any]:
    """Set -> formula -> pool -> numbers: the best by the positive alone, or by the formula `first`, ranked again."""
    found: dict[str, Any] = {}
    for questions, asked in split:
        if not is_tuned(questions.name):
            continue
        entry: dict[str, Any] = {}
        for name in names:
            scores = NAMED[name].score(asked, weights[name])
            for by in (ALONE, first):
                order = NAMED[by].score(asked, weights[by])
                entry[f"{name}; candidates: {by}"] = {
                    str(size): _means(outcomes(in_pool(order, scores, size), questions)) for size in POOLS
                }
        found[questions.name] = entry
    return found


def _means(result: FormulaOutcomes) -> dict[str, float]:
    return {name: float(result.of(name).mean()) for name in ("mAP", "P@10", "harmful@10")}
