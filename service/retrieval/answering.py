"""From the rows that an index found to an answer: exact scores, ids, metadata. Nothing here needs a lock of the index.

Rows never change their content, so what was found is either still so in the database, or a row is gone (RowVanished).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import apsw
import numpy as np
import orjson
from numpy.typing import NDArray

from service.retrieval.index.mapped import MappedVectors
from service.retrieval.index.ranking import Ranked, rank_near, rank_rows, rounding_bound
from service.retrieval.index.slots import Slot
from service.retrieval.records import SearchOutcome, StoredHit, Vector
from service.retrieval.truth.rows import RowTable

log = logging.getLogger("clipworks.retrieval")
_NO_RIDS = np.zeros(0, np.int64)


class RowVanished(Exception):
    """A row that the index found was removed before it could be read: look again."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """What a caller wants to see of the ranked rows. hits: offset + top_k."""

    hits: int
    offset: int
    min_score: float | None
    with_metadata: bool
    with_vectors: bool


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows to be scored exactly: one list for each query, or a single one that all share.

    vectors: float32 of the shared list, where the index had them. mapped: where others are read, by slot.
    """

    rids: list[NDArray[np.int64]]
    slots: list[Slot]
    shared: bool
    vectors: Vector | None = None
    mapped: MappedVectors | None = None


def rescore(
    db: apsw.Connection,
    rows: RowTable,
    queries: Vector,
    wanted: Sequence[int],
    found: Candidates,
    *,
    damaged: Callable[[], None],
) -> list[Ranked]:
    """The best of the candidates by exact score. damaged: called if the mapped file is not what was written.

    Raises:
        RowVanished
    """
    rids = _joined(found.rids)
    vectors = found.vectors
    if vectors is None:
        vectors = read_vectors(db, rows, found, damaged)
    if found.shared:
        return rank_rows(queries, rids, vectors, list(wanted))
    bounds = rounding_bound(queries)
    ranked: list[Ranked] = []
    start = 0
    for place, own in enumerate(found.rids):
        part = vectors[start : start + len(own)]
        start += len(own)
        ranked.append(rank_near(queries[place], own, part, part @ queries[place], wanted[place], bounds[place]))
    return ranked


def read_vectors(db: apsw.Connection, rows: RowTable, found: Candidates, damaged: Callable[[], None]) -> Vector:
    """Vectors [n, D] of all candidates, one list after the other. damaged: as in `rescore`. Raises RowVanished."""
    rids = _joined(found.rids)
    if found.mapped is None:
        return _from_truth(db, rows, rids)
    vectors, good = found.mapped.rows(_joined(found.slots))
    if not good.all():
        log.error("%s is damaged; %d rows were read from the database", found.mapped.path, int((~good).sum()))
        damaged()
        vectors[~good] = _from_truth(db, rows, rids[~good])
    return vectors


def _from_truth(db: apsw.Connection, rows: RowTable, rids: NDArray[np.int64]) -> Vector:
    every, place = np.unique(rids, return_inverse=True)
    held, vectors = rows.vectors_of(db, every)
    if len(held) != len(every):
        raise RowVanished
    return vectors[place]


def answer(
    db: apsw.Connection,
    rows: RowTable,
    ranked: Sequence[Ranked],
    excluded: Sequence[frozenset[str]],
    wanted: AnswerShape,
    *,
    exact: bool,
) -> list[SearchOutcome]:
    """Hits of each query, best first, equal scores by id. Raises RowVanished."""
    every = ranked[0].rids if len(ranked) == 1 else np.unique(_joined([one.rids for one in ranked]))
    text_of: dict[int, str] = {}
    if wanted.with_metadata and not wanted.offset:  # then nearly all that is ranked is shown
        both = rows.shown_of(db, every)
        id_of = {rid: id for rid, (id, _) in both.items()}
        text_of = {rid: text for rid, (_, text) in both.items()}
    else:
        id_of = rows.ids_of(db, every)
    if len(id_of) != len(every):
        raise RowVanished
    chosen: list[list[tuple[float, str, int]]] = []
    for one, out in zip(ranked, excluded, strict=True):
        scored = [(-score, id_of[rid], rid) for rid, score in zip(one.rids.tolist(), one.scores.tolist(), strict=True)]
        if out or wanted.min_score is not None:
            least = -np.inf if wanted.min_score is None else wanted.min_score
            scored = [hit for hit in scored if hit[1] not in out and -hit[0] >= least]
        scored.sort()
        chosen.append(scored[wanted.offset : wanted.hits])
    vector_of: dict[int, Vector] = {}
    if wanted.with_vectors or (wanted.with_metadata and wanted.offset):
        shown = np.array(sorted({rid for scored in chosen for _, _, rid in scored}), dtype=np.int64)
        if wanted.with_metadata and wanted.offset:
            text_of = rows.metadata_of(db, shown)
        if wanted.with_vectors:
            held, vectors = rows.vectors_of(db, shown)
            vector_of = dict(zip(held.tolist(), vectors, strict=True))
    return [
        SearchOutcome(
            exact,
            [
                StoredHit(id, -score, orjson.loads(text_of[rid]) if text_of else {}, vector_of.get(rid))
                for score, id, rid in scored
            ],
        )
        for scored in chosen
    ]


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.concatenate([_NO_RIDS, *parts])
