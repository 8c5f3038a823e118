"""Searches that Milvus answers and this side proves: exact scores, complete ties, one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.retrieval.backends.milvus_connection import MilvusConnection
from service.retrieval.backends.milvus_rows import built_kind, decode, search_params, vector_of
from service.retrieval.index.ranking import exact_scores, rounding_bound
from service.retrieval.records import CollectionSpec, SearchOutcome, StoredHit, Vector
from service.retrieval.stopping import NEVER, Stop

MAX_ROWS = 16_384  # Milvus' largest limit
_SPARE = 8
_GROWTH = 4
_FLOATS = 1 << 22  # of the vectors that come back with one answer


@dataclass(frozen=True)
class MilvusQuery:
    """What all queries of a request share. `expression`: empty for no filter."""

    expression: str
    top_k: int
    offset: int
    min_score: float | None
    with_metadata: bool
    with_vectors: bool


def search(
    connection: MilvusConnection,
    name: str,
    spec: CollectionSpec,
    queries: Vector,
    excluded: Sequence[frozenset[str]],
    asked: MilvusQuery,
    stop: Stop = NEVER,
) -> list[SearchOutcome]:
    """The best rows for each of unit queries [Q, D].

    Milvus' float32 scores only choose candidates. Of an exact index more of them are fetched until no row that is not
    among them can have the last score that counts.
    """
    is_exact = built_kind(spec) == "flat"
    bounds = rounding_bound(queries)
    results: dict[int, SearchOutcome] = {}
    wanted = [asked.offset + asked.top_k + len(ids) for ids in excluded]
    limit = max(wanted) * (1 if is_exact else spec.index.oversample) + _SPARE
    open_places = list(range(len(queries)))
    while open_places:
        limit = min(limit, MAX_ROWS)
        step = max(1, _FLOATS // (limit * spec.dim))
        left: list[int] = []
        for start in range(0, len(open_places), step):
            stop.check()
            places = open_places[start : start + step]
            answers = connection.ask(
                "search",
                name,
                data=queries[places],
                limit=limit,
                filter=asked.expression,
                output_fields=["vector", *(["document"] if asked.with_metadata else [])],
                search_params=search_params(spec),
            )
            for place, answer in zip(places, answers, strict=True):
                rows = [dict(hit) for hit in answer]
                ranked = _ranked(queries[place], rows)
                complete = _is_complete(ranked, rows, wanted[place], limit, bounds[place])
                if complete or not is_exact or limit == MAX_ROWS:
                    results[place] = _result(ranked, excluded[place], asked, exact=is_exact and complete)
                else:
                    left.append(place)
        open_places = left
        limit *= _GROWTH
    return [results[place] for place in range(len(queries))]


@dataclass(frozen=True)
class _Row:
    score: float
    row: Mapping[str, Any]


def _ranked(query: Vector, rows: Sequence[dict[str, Any]]) -> list[_Row]:
    """By exact score, equal ones by id: keys have the order of ids."""
    if not rows:
        return []
    scores = exact_scores(query, np.stack([vector_of(row["entity"]) for row in rows]))
    # Servers before 2.4 call the primary key "id", whatever its name is.
    found = [
        _Row(float(score), {"key": row.get("id"), **row["entity"], **row})
        for score, row in zip(scores, rows, strict=True)
    ]
    return sorted(found, key=lambda each: (-each.score, each.row["key"]))


def _is_complete(
    ranked: Sequence[_Row], rows: Sequence[Mapping[str, Any]], wanted: int, limit: int, bound: float
) -> bool:
    """No row that Milvus left out reaches the last score that counts."""
    if len(rows) < limit:
        return True
    worst = min(float(row["distance"]) for row in rows)
    return wanted <= len(ranked) and ranked[wanted - 1].score > worst + 2 * bound


def _result(ranked: Sequence[_Row], excluded: frozenset[str], asked: MilvusQuery, *, exact: bool) -> SearchOutcome:
    hits: list[StoredHit] = []
    for each in ranked:
        if asked.min_score is not None and each.score < asked.min_score:
            break
        record = decode(each.row, with_vector=asked.with_vectors)
        if record.id not in excluded:
            hits.append(StoredHit(record.id, each.score, record.metadata, record.vector))
        if len(hits) == asked.offset + asked.top_k:
            break
    return SearchOutcome(exact=exact, hits=hits[asked.offset :])
