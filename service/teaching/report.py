"""The report of a taught label set: leave-one-out beside zero-shot, accuracy of each label, confusions, warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import ConfusedLabels, LeaveOneOut, TaughtLabel
from service.teaching.head import Judgement

I64 = NDArray[np.int64]
Counts = Mapping[tuple[int, int], int]
_Z = 1.959963984540054  # the normal distribution's quantile at .975
_SHOWN = 10
_MOST_CONFUSED = 50


@dataclass(frozen=True, kw_only=True)
class TeachingReport:
    """None in `leave_one_out`: no label has two examples. warnings: sentences."""

    leave_one_out: LeaveOneOut | None
    per_label: Sequence[TaughtLabel]
    confused: Sequence[ConfusedLabels]
    warnings: Sequence[str]
    mix: float | None
    predicted: I64


def report_of(names: Sequence[str], truth: I64, judged: Judgement) -> TeachingReport:
    """names: [C] labels; truth: int64 [n]."""
    tested, right = judged.tested, judged.predicted == truth
    has_texts = bool((judged.zero_shot >= 0).any())
    by_texts = judged.zero_shot == truth
    per_label: list[TaughtLabel] = []
    for index, name in enumerate(names):
        mine = truth == index
        seen = mine & tested
        per_label.append(
            TaughtLabel(
                label=name,
                examples=int(mine.sum()),
                tested=int(seen.sum()),
                accuracy=float(right[seen].mean()) if seen.any() else None,
                zero_shot=float(by_texts[seen].mean()) if seen.any() and has_texts else None,
            )
        )
    counts = _confusions(len(names), truth, judged)
    return TeachingReport(
        leave_one_out=_summary(right[tested], by_texts[tested] if has_texts else None),
        per_label=per_label,
        confused=_most_confused(names, counts),
        warnings=[*_few(names, truth), *_mixed_up(names, counts)],
        mix=judged.mix,
        predicted=judged.predicted,
    )


def untaught(names: Sequence[str], truth: I64, reason: str) -> TeachingReport:
    """The report of examples that nothing could be fitted to."""
    nothing = np.full(len(truth), -1, dtype=np.int64)
    judged = Judgement(tested=np.zeros(len(truth), dtype=np.bool_), predicted=nothing, zero_shot=nothing, mix=0.0)
    said = f"the examples change nothing, the words alone decide: {reason}"
    return replace(report_of(names, truth, judged), warnings=[said])


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, extra = right / count, _Z**2 / count
    centre = (share + extra / 2) / (1 + extra)
    half = _Z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _summary(right: NDArray[np.bool_], by_texts: NDArray[np.bool_] | None) -> LeaveOneOut | None:
    count = len(right)
    if not count:
        return None
    shown = None if by_texts is None else int(by_texts.sum())
    return LeaveOneOut(
        tested=count,
        accuracy=float(right.mean()),
        interval=wilson(int(right.sum()), count),
        zero_shot=None if shown is None else shown / count,
        zero_shot_interval=None if shown is None else wilson(shown, count),
    )


def _confusions(classes: int, truth: I64, judged: Judgement) -> Counts:
    """(label, what it was taken for) -> how many examples; right ones too."""
    codes, counts = np.unique(truth[judged.tested] * classes + judged.predicted[judged.tested], return_counts=True)
    return {divmod(code, classes): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}


def _most_confused(names: Sequence[str], counts: Counts) -> list[ConfusedLabels]:
    """The most frequent first."""
    wrong = sorted((pair for pair in counts if pair[0] != pair[1]), key=lambda pair: (-counts[pair], pair))
    return [
        ConfusedLabels(label=names[label], taken_for=names[other], count=counts[label, other])
        for label, other in wrong[:_MOST_CONFUSED]
    ]


def _few(names: Sequence[str], truth: I64) -> list[str]:
    sizes = np.bincount(truth, minlength=len(names))
    none = [name for name, size in zip(names, sizes.tolist(), strict=True) if size == 0]
    single = [name for name, size in zip(names, sizes.tolist(), strict=True) if size == 1]
    said = [f"no example of {_listed(none)}: known by the words alone, if by them"] if none else []
    if single:
        said.append(f"one example of {_listed(single)}: it cannot be left out, so nothing says how well it is known")
    return said


def _mixed_up(names: Sequence[str], counts: Counts) -> list[str]:
    """Pairs that are taken for each other, and right no more often than chance could be."""
    said: list[str] = []
    for one, other in sorted({(min(pair), max(pair)) for pair in counts if pair[0] != pair[1]}):
        right = counts.get((one, one), 0) + counts.get((other, other), 0)
        wrong = counts.get((one, other), 0) + counts.get((other, one), 0)
        if wilson(right, right + wrong)[0] <= 0.5:
            both = f"{names[one]!r} and {names[other]!r}"
            said.append(f"nothing shows that {both} are told apart: {wrong} of {right + wrong} are taken for the other")
    more = len(said) - _SHOWN
    return [*said[:_SHOWN], f"and {more} more pairs"] if more > 0 else said


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
