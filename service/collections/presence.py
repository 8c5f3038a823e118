"""Of a search by a text: how likely its hits show what the text says, and whether anything does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from model_store.manifest import SearchCalibration
from model_store.search_presence import F64, evidence, hit_probabilities, match_probability
from service.collections.vectors import Vector

if TYPE_CHECKING:
    from service.retrieval import StoredHit


@dataclass(frozen=True)
class Match:
    """probability: that any item shows what the text says. is_good: it reaches the threshold."""

    probability: float
    threshold: float

    @property
    def is_good(self) -> bool:
        return self.probability >= self.threshold


@dataclass(frozen=True, eq=False)
class SearchEvidence:
    """neutral: mean vector [D] of the neutral texts. threshold: from which on a match is a good one."""

    neutral: F64
    calibration: SearchCalibration
    threshold: float

    def match(self, first: Sequence[StoredHit]) -> Match:
        """first: the first hits of all that pass the filter, with their vectors."""
        vectors = [hit.vector for hit in first if hit.vector is not None]
        if len(vectors) != len(first):
            raise ValueError("hits without vectors have no evidence")
        return Match(match_probability(self._of(first, vectors), self.calibration), self.threshold)

    def hits(self, hits: Sequence[StoredHit], vectors: Sequence[Vector | None]) -> list[StoredHit]:
        """The hits with their probability, of their stored vectors; an item that is gone by now has none."""
        there = [place for place, vector in enumerate(vectors) if vector is not None]
        found = self._of([hits[place] for place in there], [vector for vector in vectors if vector is not None])
        made = list(hits)
        for place, probability in zip(there, hit_probabilities(found, self.calibration), strict=True):
            made[place] = replace(hits[place], presence=float(probability))
        return made

    def _of(self, hits: Sequence[StoredHit], vectors: Sequence[Vector]) -> F64:
        if not hits:
            return np.zeros(0)
        return evidence(np.array([hit.score for hit in hits]), np.stack(vectors), self.neutral)
