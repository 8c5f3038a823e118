"""Adverse matching (ComCO): does a replaced object go unnoticed when it is small, or mentioned last?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.luck import lucky_value
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.probes.rows import F64, ProbeRow
from evaluation.scenes.meaning import Enumeration

RATIOS = (2, 8)
SLOTS = ("first", "last")


def cell(ratio: int, large: str, replaced: str) -> str:
    return f"area x{ratio}, large one {large}, {replaced} replaced"


def build(pool: Pool) -> Quiz:
    """2 x 2 x 2 cells: ratio of areas, place of the larger thing in the caption, place of the replaced thing.

    Within a square every caption is right for one picture and wrong for others, and each thing is the larger one half
    the time.
    """
    questions: list[Question] = []
    for cluster, square in enumerate(pool.squares):
        for (ratio, larger, first, second), scene in square.scenes.items():
            if ratio not in RATIOS:
                continue
            here = (square.firsts[first], square.seconds[second])
            gone = (square.firsts[1 - first], square.seconds[1 - second])
            for order, slot in product(((0, 1), (1, 0)), (0, 1)):
                right = [here[index] for index in order]
                wrong = list(right)
                wrong[slot] = gone[order[slot]]
                row = cell(ratio, SLOTS[order.index(larger)], SLOTS[slot])
                texts = said(Enumeration(tuple(right))), said(Enumeration(tuple(wrong)))
                questions.append(question(Picture(scene), texts[0], [texts[1]], row=row, cluster=cluster))
    return Quiz("adverse", tuple(questions), more=_gap)


def _gap(questions: Sequence[Question], outcomes: F64) -> list[ProbeRow]:
    """Best cell less worst cell. Luck makes it positive, the more so the smaller the cells: chance is measured."""
    names = list(dict.fromkeys(asked.row for asked in questions))
    cells = np.array([names.index(asked.row) for asked in questions])

    def gap(values: F64, at: NDArray[np.int64]) -> float:
        sizes = np.bincount(at, minlength=len(names))
        if not sizes.all():
            return float("nan")
        return float(np.ptp(np.bincount(at, values, minlength=len(names)) / sizes))

    return [
        ProbeRow(
            name="best cell less worst",
            chance=lucky_value(questions, lambda marks: gap(marks, cells)),
            clusters=np.array([asked.cluster for asked in questions], dtype=np.int64),
            statistic=lambda picks: gap(outcomes[picks], cells[picks]),
            better="less",
            parts=len(names),
        )
    ]
