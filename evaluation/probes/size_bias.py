"""Size bias (ComCO's image retrieval): the nearest picture of a single thing shows which of two things won."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import RATIOS, Pool
from evaluation.probes.questions import Reads
from evaluation.probes.readers import Reader, Sentence
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import What

Class = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class SizeQuery:
    """A picture of two things; `larger` is the class of the larger one (of the first, where they are equal)."""

    picture: Picture
    ratio: int
    larger: Class
    smaller: Class
    cluster: int


@dataclass(frozen=True)
class SizeBias:
    queries: tuple[SizeQuery, ...]
    gallery: tuple[tuple[Picture, Class], ...]
    name: str = "size-bias"
    reads: Reads = "images"
    texts: tuple[Sentence, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (*dict.fromkeys(query.picture for query in self.queries), *(picture for picture, _ in self.gallery))

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Rows: how often either thing is found at all, and by ratio the larger one's share of what was found."""
        gallery = reader.image_vectors([picture for picture, _ in self.gallery])
        similar = reader.image_vectors([query.picture for query in self.queries]) @ gallery.T
        larger, smaller = self._wins(similar, ties_wrong=reader.ties_wrong)
        clusters = np.array([query.cluster for query in self.queries])
        kinds = len({kind for _, kind in self.gallery})
        rows = [mean_row("a thing is found", larger + smaller, clusters, chance=2 / kinds)]
        with np.errstate(invalid="ignore"):
            share = larger / (larger + smaller)
        for ratio in RATIOS:
            at = np.array([query.ratio == ratio for query in self.queries])
            name = "first of equal things wins" if ratio == 1 else f"larger wins, area x{ratio}"
            rows.append(mean_row(name, share[at], clusters[at], chance=1 / 2, better="at chance"))
        return rows

    def _wins(self, similar: F64, *, ties_wrong: bool) -> tuple[F64, F64]:
        """Shares of the nearest gallery pictures (several where they tie) of the larger and the smaller class.

        ties_wrong: none where another class ties with them.
        """
        nearest = similar >= similar.max(axis=1, keepdims=True) - TIE
        larger, smaller = np.zeros(len(similar)), np.zeros(len(similar))
        for index, query in enumerate(self.queries):
            kinds = [kind for (_, kind), near in zip(self.gallery, nearest[index], strict=True) if near]
            larger[index] = kinds.count(query.larger) / len(kinds)
            smaller[index] = kinds.count(query.smaller) / len(kinds)
        if ties_wrong:
            tied = larger + smaller < 1 - TIE  # a picture of another class is as near
            larger[tied] = smaller[tied] = 0
        return larger, smaller


def build(pool: Pool) -> SizeBias:
    """Every picture of the squares: each thing is the larger one half the time."""
    queries: list[SizeQuery] = []
    for cluster, square in enumerate(pool.squares):
        for (ratio, larger, first, second), scene in square.scenes.items():
            kinds = (_class(square.firsts[first]), _class(square.seconds[second]))
            queries.append(SizeQuery(Picture(scene), ratio, kinds[larger], kinds[1 - larger], cluster))
    gallery = [
        (Picture(scene), _class(group.what))
        for groups in pool.class_groups
        for group in groups
        for scene in group.scenes
    ]
    return SizeBias(tuple(queries), tuple(gallery))


def _class(what: What) -> Class:
    return what.shape, what.colour
