"""From approximate scores to the one right order: exact scores, complete ties, proof that nothing better is missing.

Scores of a float32 matrix product depend on the batch they were computed in. So they only choose candidates here; the
score that counts is summed in float64 row by row and rounded to float32, the same in every batch, index and build.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.retrieval.index.faiss_index import VectorIndex
from service.retrieval.index.slots import Bits, Slot, Slots, count_bits
from service.retrieval.records import Vector

_SPARE = 8
_GROWTH = 4
_MATRIX_FLOATS = 1 << 24


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows of one query, best first, equal scores in no order. All rows with the last score are in it."""

    rids: NDArray[np.int64]
    scores: NDArray[np.float32]


def exact_scores(query: Vector, vectors: Vector) -> NDArray[np.float32]:
    """Inner products [n] of one query [D] and rows [n, D]."""
    return (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)


def rounding_bound(queries: Vector) -> NDArray[np.float64]:
    """Largest error of a float32 inner product with a row of unit length, in any order of summation, for each query."""
    norms = np.sqrt(np.vecdot(queries, queries).astype(np.float64))  # in float32: good to a thousandth, so 1.02 below
    return norms * (queries.shape[1] * 2.0**-23 * 1.02) + 1e-12


def best(query: Vector, rids: NDArray[np.int64], vectors: Vector, wanted: int) -> Ranked:
    """The `wanted` best rows and all that tie with the last of them."""
    scores = exact_scores(query, vectors)
    if len(scores) > wanted:
        keep = scores >= _wanted_best(scores, wanted)
        rids, scores = rids[keep], scores[keep]
    order = (-scores).argsort()
    return Ranked(rids[order], scores[order])


def rank_near(
    query: Vector, rids: NDArray[np.int64], vectors: Vector, rough: NDArray[np.float32], wanted: int, bound: float
) -> Ranked:
    """The same as `best`, but exact scores only of rows that the float32 scores `rough` [n] leave in doubt."""
    if len(rough) > wanted:
        near = (rough >= _wanted_best(rough, wanted) - 2 * bound).nonzero()[0]
        rids, vectors = rids[near], vectors.take(near, axis=0)
    return best(query, rids, vectors, wanted)


def _wanted_best(scores: NDArray[np.float32], wanted: int) -> float:
    ordered = scores.copy()
    ordered.partition(len(scores) - wanted)
    return float(ordered[len(scores) - wanted])


def rank_rows(queries: Vector, rids: NDArray[np.int64], vectors: Vector, wanted: list[int]) -> list[Ranked]:
    """Brute force over a few rows that all queries share: exact."""
    bounds = rounding_bound(queries)
    found: list[Ranked] = []
    step = max(1, _MATRIX_FLOATS // max(1, len(rids)))
    for start in range(0, len(queries), step):
        rough = queries[start : start + step] @ vectors.T
        for place, row in enumerate(rough, start):
            found.append(rank_near(queries[place], rids, vectors, row, wanted[place], bounds[place]))
    return found


def rank_flat(
    index: VectorIndex, slots: Slots, queries: Vector, wanted: list[int], allowed: Bits | None
) -> list[Ranked]:
    """Exact search of a flat index. allowed: live slots that a filter leaves; None allows every live slot.

    Asks FAISS for some more than wanted, and for ever more until the rest is provably worse than the last wanted row:
    its scores may be wrong by `rounding_bound`, and any number of rows may be equal or dead.
    """
    bounds = rounding_bound(queries)
    total = slots.live if allowed is None else count_bits(allowed)
    found: dict[int, Ranked] = {}
    todo = np.arange(len(queries))
    k = max(wanted) + _SPARE
    mask = allowed
    while len(todo):
        complete = k >= (total if mask is not None else slots.count)
        scores, places = index.scan(queries[todo], k, mask)
        for row, query in enumerate(todo.tolist()):
            here = places[row][places[row] >= 0]
            here = here[slots.is_live(here)]
            ranked = best(queries[query], slots.rids[here], index.vectors_at(here), wanted[query])
            enough = len(ranked.scores) >= wanted[query]
            if complete or (enough and ranked.scores[wanted[query] - 1] > scores[row][-1] + bounds[query]):
                found[query] = ranked
        todo = np.array([query for query in todo.tolist() if query not in found], dtype=np.int64)
        k *= _GROWTH
        if mask is None and slots.dead:
            mask = slots.bits
    return [found[query] for query in range(len(queries))]


def rough_candidates(
    index: VectorIndex, slots: Slots, queries: Vector, wanted: int, allowed: Bits | None, *, oversample: int
) -> list[Slot]:
    """Slots that may be among the wanted best, for each query; to be scored exactly.

    At most `oversample` times as many as wanted, and of these only what rounding to bytes may have put behind.
    """
    mask = allowed if allowed is not None else (slots.bits if slots.dead else None)
    scores, places = index.scan(queries, oversample * wanted + _SPARE, mask)
    if scores.shape[1] <= wanted:
        return [row[row >= 0] for row in places]
    least = scores[:, wanted - 1] - index.doubt(queries)
    kept = [row[: int(count)] for row, count in zip(places, (scores >= least[:, None]).sum(axis=1), strict=True)]
    return [row if not len(row) or row[-1] >= 0 else row[row >= 0] for row in kept]
