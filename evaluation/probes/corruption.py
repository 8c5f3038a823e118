"""Corrupted pictures: how well things are still named under noise, blur, low contrast and compression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.probes.pictures import CORRUPTIONS, Corruption, Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration

CLEAN = "clean"


def build(pool: Pool) -> Quiz:
    """One picture a turn of each class in turn, named among all classes: clean, then spoilt in four ways.

    The number of pictures is rounded down to whole rounds over the classes, at least one round.
    """
    texts = [said(Enumeration((what,))) for what in pool.classes]
    rounds = max(1, pool.size.spoilt // len(texts))
    kinds: tuple[Corruption | None, ...] = (None, *CORRUPTIONS)
    questions: list[Question] = []
    for turn in range(rounds):
        for label, groups in enumerate(pool.class_groups):
            group = groups[turn % len(groups)]
            scene = group.scenes[(turn // len(groups) + label) % len(group.scenes)]
            others = [text for index, text in enumerate(texts) if index != label]
            for kind in kinds:
                picture = Picture(scene, kind)
                cluster = label * len(groups) + turn % len(groups)
                questions.append(question(picture, texts[label], others, row=kind or CLEAN, cluster=cluster))
    return Quiz("corruption", tuple(questions), more=_mean)


def _mean(questions: Sequence[Question], outcomes: F64) -> list[ProbeRow]:
    at = np.array([asked.row != CLEAN for asked in questions])
    clusters = np.array([asked.cluster for asked in questions])
    return [mean_row("mean of corrupted", outcomes[at], clusters[at], chance=1 / len(questions[0].options))]
