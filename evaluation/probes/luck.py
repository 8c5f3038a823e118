"""Chance in rows for which there is no formula: the scores of seeded random encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.probes.pictures import Picture
from evaluation.probes.questions import Question
from evaluation.probes.rows import F64

_DRAWS = 400


def lucky_value(questions: Sequence[Question], statistic: Callable[[F64], float], *, draws: int = _DRAWS) -> float:
    """The mean of `statistic` over the outcomes of random encoders, float64 [questions], 0 or 1.

    A random encoder has one score, normal and independent, for each pair of a picture and a text: questions that share
    a pair share its score. So has one whose vectors are drawn at random, but for their finite length.
    """
    pairs: dict[tuple[Picture, str], int] = {}
    slots = [[pairs.setdefault((one.picture, text.text), len(pairs)) for text in one.options] for one in questions]
    answers = np.array([one.answer for one in questions])
    widest = max(map(len, slots))
    table = np.array([[*row, *[len(pairs)] * (widest - len(row))] for row in slots])
    random = np.random.default_rng(0)
    found: list[float] = []
    for _ in range(draws):
        scores = np.append(random.normal(size=len(pairs)), -np.inf)  # the last one fills up shorter questions
        found.append(statistic((scores[table].argmax(axis=1) == answers).astype(np.float64)))
    return float(np.mean(found))
