"""Another order of the best items of a search: unlike each other, and near duplicates as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import MAX_POOL
from service.retrieval import SearchOutcome, StoredHit
from service.retrieval.errors import ItemNotFound

if TYPE_CHECKING:
    from service.retrieval.stopping import Stop

POOL = 100  # items that are looked at unless a request says how many
_TINY = 1e-6  # of cosines of float32 vectors: what is nearer than this is equal
_GROWTH = 4


@dataclass(frozen=True)
class Arrangement:
    """diversity: 0 (best first) to 1; group_near: least cosine of two hits that are one; pool: items to look at, None:
    as many as it takes."""

    diversity: float = 0.0
    group_near: float | None = None
    pool: int | None = None

    @property
    def is_plain(self) -> bool:
        return self.diversity == 0.0 and self.group_near is None

    @property
    def largest_pool(self) -> int:
        """Items that one query may come to look at; 0 if it arranges nothing."""
        if self.is_plain:
            return 0
        return self.pool or (POOL if self.group_near is None else MAX_POOL)

    def least_pool(self, top_k: int) -> int:
        """Items to look at first."""
        return self.pool or min(max(POOL, top_k), MAX_POOL)


@dataclass(frozen=True)
class Folded:
    """An item that another one stands for. cosine: of the two."""

    id: str
    score: float
    cosine: float


@dataclass(frozen=True)
class Arranged:
    """hits: in their new order. folded: those that each stands for, best first, by its id. pool: items looked at."""

    hits: list[StoredHit]
    folded: dict[str, list[Folded]]
    pool: int


def fold_near(
    hits: Sequence[StoredHit], least: float, stop: Stop | None = None
) -> tuple[list[StoredHit], dict[str, list[Folded]]]:
    """Hits, best first, without those whose cosine to a better one is at least `least`; and these, by whom they joined.

    Each joins the best of the hits that it is near to; what has joined another draws no others. So what comes later
    in the ranking changes nothing before it.

    hits: with vectors float32 [D] of unit length.
    """
    kept: list[StoredHit] = []
    folded: dict[str, list[Folded]] = {}
    vectors = _vectors(hits).astype(np.float64)
    held = np.empty_like(vectors)
    for hit, vector in zip(hits, vectors, strict=True):
        if stop is not None:
            stop.check()
        cosines = held[: len(kept)] @ vector
        near = np.flatnonzero(cosines >= least - _TINY)
        if len(near):
            first = int(near[0])
            folded.setdefault(kept[first].id, []).append(Folded(hit.id, hit.score, min(1.0, float(cosines[first]))))
        else:
            held[len(kept)] = vector
            kept.append(hit)
    return kept, folded


def diversify(hits: Sequence[StoredHit], diversity: float, count: int) -> list[StoredHit]:
    """`count` of the hits by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each time the hit with the largest (1 - diversity) * relevance - diversity * (largest likeness to those chosen), the
    better one of equal ones. The first is the best hit. Relevance is the score, and likeness the cosine of two hits,
    both brought to 0..1 within these hits: cosines of a text and pictures lie in a narrow range, those of pictures in a
    wide one, and unscaled the second would decide alone (docs/composed.md). Of hits that were reranked relevance is the
    place in their order, because the scores of those that were not are of another kind.
    """
    vectors = _vectors(hits)
    is_reranked = any(hit.rerank_score is not None for hit in hits)
    scores = -np.arange(len(hits)) if is_reranked else [hit.score for hit in hits]
    relevance = _to_unit(np.array(scores, np.float64))
    cosines = vectors @ vectors.T
    lowest = float(cosines.min(initial=1.0))
    nearest = np.full(len(hits), -np.inf)
    value = relevance.copy()
    chosen: list[StoredHit] = []
    for _ in range(min(count, len(hits))):
        place = int(value.argmax())
        chosen.append(hits[place])
        nearest = np.maximum(nearest, (cosines[place].astype(np.float64) - lowest) / max(1 - lowest, _TINY))
        taken = value == -np.inf
        value = (1 - diversity) * relevance - diversity * nearest
        value[taken] = -np.inf
        value[place] = -np.inf
    return chosen


def _to_unit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best 1, the worst 0."""
    if not len(scores):
        return scores
    return (scores - scores.min()) / max(float(np.ptp(scores)), _TINY)


def arrange(
    hits: Sequence[StoredHit], asked: Arrangement, *, offset: int, top_k: int, stop: Stop | None = None
) -> Arranged:
    """One page of the hits of a pool, which have their vectors."""
    kept, folded = list(hits), dict[str, list[Folded]]()
    if asked.group_near is not None:
        kept, folded = fold_near(hits, asked.group_near, stop)
    if asked.diversity:
        kept = diversify(kept, asked.diversity, offset + top_k)
    page = kept[offset : offset + top_k]
    return Arranged(page, {hit.id: folded.get(hit.id, []) for hit in page}, len(hits))


def search_arranged(
    search: Callable[..., list[SearchOutcome]],
    metadata_of: Callable[[str], Mapping[str, Any]],
    asked: Arrangement,
    *,
    offset: int,
    top_k: int,
    largest: int,
    with_metadata: bool,
    with_vectors: bool,
    stop: Stop,
    least: int = 0,
    reorder: Callable[[Sequence[StoredHit]], Sequence[StoredHit]] = lambda hits: hits,
    first: SearchOutcome | None = None,
) -> tuple[SearchOutcome, Arranged]:
    """Search for a pool, and arrange it. Where near duplicates leave too few hits and no pool was asked for, search for
    a larger one, up to `largest`.

    search: by top_k, offset, with_metadata and with_vectors, of one query. metadata_of: of an id; raises ItemNotFound.
    least: items that the pool has at least. reorder: called on the hits of a pool before they are arranged. first: what
    the search for the first pool found.
    """
    pool = min(max(asked.least_pool(top_k), least), largest)
    while True:
        stop.check()
        outcome, first = first, None
        if outcome is None:
            [outcome] = search(top_k=pool, offset=0, with_metadata=False, with_vectors=True, stop=stop)
        arranged = arrange(reorder(outcome.hits), asked, offset=offset, top_k=top_k, stop=stop)
        if (
            len(arranged.hits) < top_k
            and len(outcome.hits) == pool < largest
            and not asked.pool
            and not asked.diversity
        ):
            pool = min(_GROWTH * pool, largest)
            continue
        try:
            hits = [
                replace(
                    hit,
                    vector=hit.vector if with_vectors else None,
                    metadata=dict(metadata_of(hit.id)) if with_metadata else {},
                )
                for hit in arranged.hits
            ]
        except ItemNotFound:
            continue  # it was deleted since
        return SearchOutcome(outcome.exact, hits), replace(arranged, hits=hits)


def _vectors(hits: Sequence[StoredHit]) -> NDArray[np.float32]:
    rows = [hit.vector for hit in hits if hit.vector is not None]
    if len(rows) != len(hits):
        raise ValueError("hits without vectors cannot be compared")
    return np.stack(rows) if rows else np.zeros((0, 1), np.float32)
