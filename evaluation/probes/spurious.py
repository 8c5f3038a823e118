"""Spurious colour: is a shape named as well in every colour, and does a neutral query prefer one colour?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import TIE, Question, Quiz, Reads, question
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
        marks = self.quiz.outcomes(reader)
        clusters = np.array([asked.cluster for asked in self.quiz.questions], dtype=np.int64)
        things = [asked.picture.scene.things[0] for asked in self.quiz.questions]
        groups = [(thing.shape, thing.colour) for thing in things]
        chance = 1 / len(self.quiz.questions[0].options)
        rows = [mean_row("shape named", marks, clusters, chance=chance), _worst(marks, groups, clusters)]
        if self.aligned is not None:
            keeps = np.array([self.aligned.get(shape) == colour for shape, colour in groups])
            for name, at in (("shape named, training's colour", keeps), ("shape named, other colours", ~keeps)):
                rows.append(mean_row(name, marks[at], clusters[at], chance=chance))
        return [*rows, self._skew(reader)]

    def _skew(self, reader: Reader) -> ProbeRow:
        """MaxSkew (Geyik et al., 2019): of the quarter of a shape's pictures that fit "a circle" best, the log ratio
        of the most frequent colour's share to its even share; mean over shapes."""
        pictures = self.pictures
        items: list[float] = []
        chances: list[float] = []
        random = np.random.default_rng(0)
        for text in self.texts:
            shape = text.meaning.whats[0].shape if isinstance(text.meaning, Enumeration) else None
            own = [picture for picture in pictures if picture.scene.things[0].shape == shape]
            colours = np.array([picture.scene.things[0].colour for picture in own])
            scores = reader.scores([(picture, text) for picture in own])
            items.append(_max_skew(scores, colours))
            chances += [
                _max_skew(random.permutation(len(own)).astype(np.float64), colours) for _ in range(_CHANCE_DRAWS)
            ]
        chance = float(np.mean(chances))
        clusters = np.arange(len(items))
        return mean_row("skew of neutral queries", items, clusters, chance=chance, unit="log ratio", better="less")


def _worst(marks: F64, groups: list[tuple[str, str]], clusters: NDArray[np.int64]) -> ProbeRow:
    names = sorted(set(groups))
    at = np.array([names.index(group) for group in groups])

    def worst(picks: NDArray[np.intp]) -> float:
        values = [marks[picks][at[picks] == index] for index in range(len(names))]
        return float(min(part.mean() for part in values if len(part))) if len(picks) else float("nan")

    return ProbeRow(name=f"worst of {len(names)} groups", chance=None, clusters=clusters, statistic=worst)


def _max_skew(scores: F64, colours: NDArray[np.str_]) -> float:
    """Pictures that tie at the end of the top share its last places evenly."""
    top = max(1, round(_TOP_SHARE * len(scores)))
    last = np.sort(scores)[-top]
    above, level = scores > last + TIE, np.abs(scores - last) <= TIE
    weights = above + level * (top - above.sum()) / level.sum()
    names = np.unique(colours)
    shares = np.array([weights[colours == name].sum() for name in names]) / top
    even = np.array([(colours == name).mean() for name in names])
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
