"""Spurious colour: is a shape named as well in every colour, and does a neutral query prefer one colour?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evaluation.bias.metrics import worst_group_accuracy
from evaluation.metrics import TIE
from evaluation.probes.luck import lucky_value
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Question, Quiz, Reads, question
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration, What

_CHANCE_DRAWS = 300
_TOP_SHARE = 0.25


@dataclass(frozen=True)
class Spurious:
    """Every shape of the grid in every colour equally often; the queries name no colour.

    aligned: the colour that each shape had in 95 % of a model's training pictures; None: not known.
    """

    quiz: Quiz
    aligned: Mapping[str, str] | None
    name: str = "spurious"
    reads: Reads = "both"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.quiz.pictures

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return self.quiz.texts

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Rows: the shape is named (all, worst group of shape and colour), the skew of neutral queries; and, where the
        training's correlation is known, pictures that keep it and pictures that break it."""
        marks, groups = self.quiz.outcomes(reader), self._groups
        clusters = np.array([asked.cluster for asked in self.quiz.questions], dtype=np.int64)
        worst = ProbeRow(
            name=f"worst of {groups.max() + 1} groups",
            chance=self._lucky_worst,
            clusters=clusters,
            statistic=lambda picks: worst_group_accuracy(marks[picks], groups[picks]),
            parts=int(groups.max()) + 1,
        )
        chance = 1 / len(self.quiz.questions[0].options)
        rows = [mean_row("shape named", marks, clusters, chance=chance), worst]
        if self.aligned is not None:
            things = [asked.picture.scene.things[0] for asked in self.quiz.questions]
            keeps = np.array([self.aligned.get(thing.shape) == thing.colour for thing in things])
            for name, at in (("shape named, training's colour", keeps), ("shape named, other colours", ~keeps)):
                rows.append(mean_row(name, marks[at], clusters[at], chance=chance))
        scores = reader.scores([(asked.picture, asked.options[asked.answer]) for asked in self.quiz.questions])
        skew = ProbeRow(
            name="skew of neutral queries",
            chance=self._lucky_skew,
            clusters=clusters,
            statistic=lambda picks: self._skew(scores[picks], picks),
            unit="log ratio",
            better="less",
            parts=int(self._kinds[1].max()) + 1,
        )
        return [*rows, skew]

    @cached_property
    def _kinds(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The numbers of each question's shape and colour."""
        things = [asked.picture.scene.things[0] for asked in self.quiz.questions]
        shapes = np.unique([thing.shape for thing in things], return_inverse=True)[1]
        return shapes, np.unique([thing.colour for thing in things], return_inverse=True)[1]

    @cached_property
    def _groups(self) -> NDArray[np.intp]:
        shapes, colours = self._kinds
        return np.unique(shapes * (colours.max() + 1) + colours, return_inverse=True)[1]

    @cached_property
    def _lucky_worst(self) -> float:
        return lucky_value(self.quiz.questions, lambda marks: worst_group_accuracy(marks, self._groups))

    @cached_property
    def _lucky_skew(self) -> float:
        random, everyone = np.random.default_rng(0), np.arange(len(self.quiz.questions))
        return float(np.mean([self._skew(random.normal(size=len(everyone)), everyone) for _ in range(_CHANCE_DRAWS)]))

    def _skew(self, scores: F64, picks: NDArray[np.intp]) -> float:
        """MaxSkew (Geyik et al., 2019): of the quarter of a shape's pictures that fit "a circle" best, the log ratio
        of the most frequent colour's share to its even share; mean over shapes."""
        shapes, colours = (kind[picks] for kind in self._kinds)
        return float(np.mean([_max_skew(scores[own], colours[own]) for own in shapes == np.unique(shapes)[:, None]]))


def _max_skew(scores: F64, colours: NDArray[np.intp]) -> float:
    """`evaluation.bias.metrics.max_skew` of even groups at one k, without the counts of every other place.

    Pictures that tie at the end of the top share its last places evenly.
    """
    top = max(1, round(_TOP_SHARE * len(scores)))
    last = np.sort(scores)[-top]
    above, level = scores > last + TIE, np.abs(scores - last) <= TIE
    weights = above + level * (top - above.sum()) / level.sum()
    sizes = np.bincount(colours)
    shares, even = np.bincount(colours, weights) / top, sizes / len(scores)
    return float(np.log(shares.max() / even[shares.argmax()]))


def build(pool: Pool, *, aligned: Mapping[str, str] | None = None) -> Spurious:
    """All pictures of single things, asked for their shape among the grid's four."""
    texts = {shape: said(Enumeration((What(shape=shape),))) for shape in pool.grid[0]}
    questions: list[Question] = []
    groups = [group for groups in pool.class_groups for group in groups]
    for cluster, group in enumerate(groups):
        shape = group.what.shape or ""
        wrong = [text for other, text in texts.items() if other != shape]
        for scene in group.scenes:
            questions.append(question(Picture(scene), texts[shape], wrong, row="shape named", cluster=cluster))
    return Spurious(Quiz("spurious", tuple(questions)), aligned)
