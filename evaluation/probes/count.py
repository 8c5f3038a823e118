"""Counting: "three circles" or "four circles"? And how far is the best of ten numbers from the truth?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import MOST, Pool
from evaluation.probes.questions import Question, Quiz, Reads, question
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.scenes.meaning import Count as Number
from evaluation.scenes.meaning import What

TEN = "ten numbers"


@dataclass(frozen=True)
class Counting:
    quiz: Quiz
    name: str = "count"
    reads: Reads = "both"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.quiz.pictures

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return self.quiz.texts

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """The quiz's rows, and the mean distance of the chosen number (of tied numbers: their mean distance)."""
        asked = [each for each in self.quiz.questions if each.row == TEN]
        scores = reader.scores([(each.picture, option) for each in asked for option in each.options])
        errors: list[float] = []
        for each, row in zip(asked, scores.reshape(len(asked), -1), strict=True):
            numbers = np.array([_number(option) for option in each.options])
            best = numbers[row >= row.max() - TIE]
            errors.append(float(np.abs(best - numbers[each.answer]).mean()))
        guess = float(np.mean([abs(a - b) for a in range(MOST) for b in range(MOST)]))
        clusters = [each.cluster for each in asked]
        error = mean_row("mean error", errors, clusters, chance=guess, unit="count", better="less")
        return [*self.quiz.measure(reader), error]


def build(pool: Pool) -> Counting:
    """For each shape and each n of 1 to 9 the pictures of n and of n + 1, each with both captions; then all ten."""
    questions: list[Question] = []
    for cluster, scenes in enumerate(pool.counts):
        shape = What(shape=scenes[0].things[0].shape)
        texts = [said(Number(shape, number)) for number in range(1, MOST + 1)]
        for fewer in range(MOST - 1):
            for right, wrong in ((fewer, fewer + 1), (fewer + 1, fewer)):
                picture = Picture(scenes[right])
                questions.append(
                    question(picture, texts[right], [texts[wrong]], row="one more or less", cluster=cluster)
                )
        for right, scene in enumerate(scenes):
            others = [text for index, text in enumerate(texts) if index != right]
            questions.append(question(Picture(scene), texts[right], others, row=TEN, cluster=cluster))
    return Counting(Quiz("count", tuple(questions)))


def _number(text: Sentence) -> int:
    if not isinstance(text.meaning, Number):
        raise ValueError(f"{text.text!r} is no count")
    return text.meaning.number
