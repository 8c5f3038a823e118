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
    """probability: that any item shows what the text says, 0 where there is none. is_good: it reaches the threshold."""

    probability: float
    threshold: float

    @property
    def is_good(self) -> bool:
        return self.probability > 0 and self.probability >= self.threshold


@dataclass(frozen=True, eq=False)
class SearchEvidence:
    """neutral: mean vector [D] of the neutral texts. threshold: from which on a match is a good one."""

    neutral: F64
    calibration: SearchCalibration
    threshold: float

    def match(self, text: Vector, first: Sequence[StoredHit]) -> Match:
        """text: unit vector [D] of the query. first: the first hits of all that pass the filter, with their vectors."""
        vectors = [hit.vector for hit in first if hit.vector is not None]
        if len(vectors) != len(first):
            raise ValueError("hits without vectors have no evidence")
        found = evidence(np.stack(vectors), text, self.neutral) if vectors else np.zeros(0)
        return Match(match_probability(found, self.calibration), self.threshold)

    def hits(
        self, hits: Sequence[StoredHit], vectors: Sequence[Vector | None], texts: Sequence[Vector]
    ) -> list[StoredHit]:
        """The hits with their probability. vectors: as they are stored now; an item that is gone has no probability.
        texts: unit vector [D] of each one's query."""
        there = [place for place, vector in enumerate(vectors) if vector is not None]
        made = list(hits)
        if there:
            rows = np.stack([vector for vector in vectors if vector is not None])
            found = evidence(rows, np.stack([texts[place] for place in there]), self.neutral)
            for place, probability in zip(there, hit_probabilities(found, self.calibration), strict=True):
                made[place] = replace(hits[place], presence=float(probability))
        return made
