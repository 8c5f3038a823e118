"""Several labels in one picture (Unmix): which shapes and which colours occur, by "there is a ..." and "no ..."."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Reads
from evaluation.probes.ranking import average_precision, lucky_precision
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import What, is_true
from evaluation.scenes.negation import has, has_no


@dataclass(frozen=True)
class MultiLabel:
    """Pictures with the cluster each came from, and labels, each a shape or a colour."""

    shown: tuple[tuple[Picture, int], ...]
    labels: tuple[What, ...]
    name: str = "multi-label"
    reads: Reads = "both"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(picture for picture, _ in self.shown)

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return (*self._yes(), *self._no())

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Mean over labels of the average precision over pictures; and how alike the labels' texts are."""
        vectors = reader.text_vectors(self._yes())
        pairs = np.triu_indices(len(self.labels), k=1)
        alike = (vectors @ vectors.T)[pairs]
        cosine = mean_row("cosine between labels' texts", alike, pairs[0], chance=None, unit="cosine", better="less")
        return [*self.precision_rows(reader), cosine]

    def precision_rows(self, reader: Reader) -> list[ProbeRow]:
        """The rows that rank pictures."""
        yes, no = self._table(reader, self._yes()), self._table(reader, self._no())
        truth = np.array([[is_true(has(label), picture.scene) for label in self.labels] for picture in self.pictures])
        clusters = np.array([cluster for _, cluster in self.shown], dtype=np.int64)
        chance = float(np.mean([lucky_precision(int(held), len(truth)) for held in truth.sum(axis=0) if held]))

        def row(name: str, table: F64) -> ProbeRow:
            def statistic(picks: NDArray[np.intp]) -> float:
                found = [
                    average_precision(table[picks, at], truth[picks, at], ties_wrong=reader.ties_wrong)
                    for at in range(len(self.labels))
                ]
                kept = [value for value in found if not np.isnan(value)]
                return float(np.mean(kept)) if kept else float("nan")

            return ProbeRow(name=name, chance=chance, clusters=clusters, statistic=statistic)

        return [row("mAP, there is", yes), row("mAP, there is less there is no", yes - no)]

    def _table(self, reader: Reader, texts: tuple[Sentence, ...]) -> F64:
        asked = [(picture, text) for picture in self.pictures for text in texts]
        return reader.scores(asked).reshape(len(self.shown), len(texts))

    def _yes(self) -> tuple[Sentence, ...]:
        return tuple(said(has(label), "there is {a}") for label in self.labels)

    def _no(self) -> tuple[Sentence, ...]:
        return tuple(said(has_no(label), "there is no {no}") for label in self.labels)


def build(pool: Pool) -> MultiLabel:
    """All compass scenes (two things) and additions (two and three). A label that no picture has is left out."""
    shown = [(Picture(scene), cluster) for cluster, group in enumerate(pool.compass) for scene in group.scenes]
    for cluster, group in enumerate(pool.additions, start=len(pool.compass)):
        shown += [(Picture(scene), cluster) for scene in (*group.two, *group.three)]
    things = [thing for picture, _ in shown for thing in picture.scene.things]
    shapes, colours = sorted({thing.shape for thing in things}), sorted({thing.colour for thing in things})
    labels = [*(What(shape=shape) for shape in shapes), *(What(colour=colour) for colour in colours)]
    return MultiLabel(tuple(shown), tuple(labels))
