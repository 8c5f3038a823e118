"""Mention bias (ComCO's text retrieval): the nearest text of a single thing shows which mention of a list won."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Reads
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration, What

_PLACES = ("first", "second", "third")


@dataclass(frozen=True, slots=True)
class MentionQuery:
    """A list of things in one order of mention."""

    whats: tuple[What, ...]
    cluster: int

    @property
    def text(self) -> Sentence:
        return said(Enumeration(self.whats))


@dataclass(frozen=True)
class MentionBias:
    queries: tuple[MentionQuery, ...]
    gallery: tuple[What, ...]
    name: str = "mention-bias"
    reads: Reads = "texts"
    pictures: tuple[Picture, ...] = ()

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return (*dict.fromkeys(query.text for query in self.queries), *self._gallery_texts())

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """By length of the list: how often a mentioned thing is nearest at all, and the share of each place in the
        list among those."""
        gallery = reader.text_vectors(self._gallery_texts())
        rows: list[ProbeRow] = []
        for length in sorted({len(query.whats) for query in self.queries}):
            queries = [query for query in self.queries if len(query.whats) == length]
            similar = reader.text_vectors([query.text for query in queries]) @ gallery.T
            nearest = similar >= similar.max(axis=1, keepdims=True) - TIE
            at = np.array([[self.gallery.index(what) for what in query.whats] for query in queries])
            wins = np.take_along_axis(nearest, at, axis=1) / nearest.sum(axis=1, keepdims=True)  # [Q, length]
            if reader.ties_wrong:
                wins[wins.sum(axis=1) < 1 - TIE] = 0  # a text that nobody mentioned is as near
            found = wins.sum(axis=1)
            clusters = [query.cluster for query in queries]
            name = f"{length} things"
            rows.append(
                mean_row(f"{name}, a mentioned one is found", found, clusters, chance=length / len(self.gallery))
            )
            with np.errstate(invalid="ignore"):
                shares = wins / found[:, None]
            rows += [
                mean_row(f"{name}, {place} wins", shares[:, index], clusters, chance=1 / length, better="at chance")
                for index, place in enumerate(_PLACES[:length])
            ]
        return rows

    def _gallery_texts(self) -> list[Sentence]:
        return [said(Enumeration((what,))) for what in self.gallery]


def build(pool: Pool) -> MentionBias:
    """Every order of mention of two things (compass groups) and of three (additions)."""
    queries: list[MentionQuery] = []
    for cluster, group in enumerate(pool.compass):
        for scenes in (group.plain, group.swapped):
            whats = [named(thing) for thing in scenes["left of"].things]
            queries += [MentionQuery(order, cluster) for order in permutations(whats)]
    for cluster, group in enumerate(pool.additions, start=len(pool.compass)):
        a, b, c, d = group.whats
        queries += [MentionQuery(order, cluster) for whats in ((a, b, c), (a, d, c)) for order in permutations(whats)]
    return MentionBias(tuple(queries), tuple(What(shape=shape, colour=colour) for shape, colour in pool.pairs))
