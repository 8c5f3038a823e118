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

_SAME = 1e-3  # from which difference of cosines on a vector is another one; rounding is far below


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
        if not first:
            return Match(match_probability(np.zeros(0), self.calibration), self.threshold)
        found = evidence(np.array([hit.score for hit in first]), np.stack(vectors), self.neutral)
        return Match(match_probability(found, self.calibration), self.threshold)

    def hits(self, hits: Sequence[StoredHit], vectors: Sequence[Vector | None], query: Vector) -> list[StoredHit]:
        """The hits of a query [D] with their probability, of their stored vectors as they were read after the search.

        An item that is gone by now has none, and neither has one whose vector is another by now: its score is of the
        one that was found.
        """
        there = [(place, vector) for place, vector in enumerate(vectors) if vector is not None]
        made = list(hits)
        if not there:
            return made
        rows = np.stack([vector for _, vector in there])
        cosines = np.array([hits[place].score for place, _ in there])
        is_found = np.abs(rows @ query - cosines) < _SAME
        probabilities = hit_probabilities(evidence(cosines, rows, self.neutral), self.calibration)
        for (place, _), is_same, probability in zip(there, is_found, probabilities, strict=True):
            if is_same:
                made[place] = replace(hits[place], presence=float(probability))
        return made
