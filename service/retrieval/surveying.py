"""Questions about all items of a search: histogram of scores, ranks of named items, counts of metadata values.

Every answer is of one moment, and agrees with the ranking: scores that float32 leaves in doubt are compared as the
search compares them (see index/ranking.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import apsw
import numpy as np
from numpy.typing import NDArray

from service.retrieval.answering import Candidates, RowVanished, read_vectors
from service.retrieval.errors import StorageFailed
from service.retrieval.index.ranking import exact_scores, rounding_bound
from service.retrieval.index.slots import Slot, slots_in
from service.retrieval.records import FieldType, Vector
from service.retrieval.searching import IndexQuery, Searcher
from service.retrieval.surveys import Facet, Histogram, Standing, Survey, SurveySpec
from service.retrieval.truth.facets import count_values
from service.retrieval.truth.log import Log
from service.retrieval.truth.rows import RowTable

_ATTEMPTS = 3
# Rows whose vectors are in memory at one time, and scores of one hold of the index' lock.
_BLOCK = 16_384
_WORK = 8_000_000
Rids = NDArray[np.int64]
_NO_RIDS: Rids = np.zeros(0, np.int64)
ReadVectors = Callable[[Slot], Vector]  # by place among the rows of a survey


@dataclass(frozen=True)
class _Named:
    """An item whose standing is wanted, as the database has it."""

    id: str
    rid: int
    vector: Vector


@dataclass(frozen=True)
class _Place:
    """Of a named item: rows with a better score, and rows with the same one, whose ids decide."""

    better: int
    equal: Rids


@dataclass(frozen=True)
class _Scored:
    """One query's scores: rids that it may return, which of them reach `min_score`, and where named items stand."""

    rids: Rids
    passing: Rids
    histogram: Histogram | None
    places: dict[str, _Place]


class Surveyor:
    """Surveys of one collection. Blocks; reads the index first and the database after, as a search does."""

    def __init__(self, log: Log, rows: RowTable, searcher: Searcher, *, gate: threading.Lock) -> None:
        self._log = log
        self._rows = rows
        self._searcher = searcher
        self._gate = gate

    def survey(self, query: IndexQuery, asked: SurveySpec, schema: dict[str, FieldType]) -> list[Survey]:
        """One for each query vector. Of `query.shown` only `min_score` counts.

        Raises:
            ScanNeeded, Interrupted, StorageFailed
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._attempt(query, asked, schema, gated=False)
            except RowVanished:
                query.stop.check()
        with self._gate:  # nothing changes meanwhile
            try:
                return self._attempt(query, asked, schema, gated=True)
            except RowVanished:
                raise StorageFailed("the index holds rows that the database does not have") from None

    def _attempt(
        self, query: IndexQuery, asked: SurveySpec, schema: dict[str, FieldType], *, gated: bool
    ) -> list[Survey]:
        with self._log.read(query.stop) as db:
            named = self._named(db, asked.ids)
            out = self._rows.rids_of(db, sorted({id for ids in query.excluded for id in ids}))
        scored = [each for part in self._parts(query, asked, gated=gated) for each in self._scored(part, named, out)]
        with self._log.read(query.stop) as db:
            return self._surveys(db, query, asked, schema, scored, named)

    def _named(self, db: apsw.Connection, ids: Sequence[str]) -> list[_Named]:
        rid_of = self._rows.rids_of(db, list(dict.fromkeys(ids)))
        rids, vectors = self._rows.vectors_of(db, np.array(sorted(rid_of.values()), dtype=np.int64))
        vector_of = dict(zip(rids.tolist(), vectors, strict=True))
        return [_Named(id, rid, vector_of[rid]) for id, rid in rid_of.items()]

    def _parts(self, query: IndexQuery, asked: SurveySpec, *, gated: bool) -> Iterator[_Part]:
        step = max(1, _WORK // max(1, self._searcher.state().live))
        for start in range(0, len(query.vectors), step):
            query.stop.check()
            yield _Part(query, slice(start, start + step), asked, gated=gated)

    def _scored(self, part: _Part, named: Sequence[_Named], out: dict[str, int]) -> list[_Scored]:
        query = part.query
        with self._searcher.entered(query, gated=part.gated) as (live, allowed):
            slots = slots_in(live.slots.bits if allowed is None else allowed)
            rids, mapped = live.slots.rids[slots], live.mapped
            alive = live.slots.slots_of(np.array([each.rid for each in named], dtype=np.int64))
            if len(alive) < len(named) or not live.slots.is_live(alive).all():
                raise RowVanished  # replaced since it was looked up
            if live.index.kind == "flat":  # FAISS may move its vectors once the lock is free
                return part.measured(rids, lambda places: live.index.vectors_at(slots[places]), named, out)
        with self._log.read(query.stop) as db:

            def read(places: Slot) -> Vector:
                chosen = Candidates([rids[places]], [slots[places]], True, mapped=mapped)
                return read_vectors(db, self._rows, chosen, self._searcher.note_damage)

            return part.measured(rids, read, named, out)

    def _surveys(
        self,
        db: apsw.Connection,
        query: IndexQuery,
        asked: SurveySpec,
        schema: dict[str, FieldType],
        scored: Sequence[_Scored],
        named: Sequence[_Named],
    ) -> list[Survey]:
        """The rest, from the database. Raises RowVanished."""
        equal = np.unique(
            np.concatenate([_NO_RIDS, *(place.equal for each in scored for place in each.places.values())])
        )
        id_of = self._rows.ids_of(db, equal)
        if len(id_of) < len(equal):
            raise RowVanished
        counted: dict[bytes, dict[str, Facet]] = {}
        surveys: list[Survey] = []
        for vector, each in zip(query.vectors, scored, strict=True):
            query.stop.check()
            key = each.passing.tobytes()  # without `min_score` all queries count the same rows
            if asked.facets and key not in counted:
                counted[key] = self._facets(db, each.passing, asked, schema)
            standings = tuple(_standing(id, vector, named, each, id_of) for id in asked.ids)
            surveys.append(Survey(len(each.rids), len(each.passing), each.histogram, counted.get(key, {}), standings))
        return surveys

    def _facets(
        self, db: apsw.Connection, rids: Rids, asked: SurveySpec, schema: dict[str, FieldType]
    ) -> dict[str, Facet]:
        if len(self._rows.present(db, rids)) < len(rids):
            raise RowVanished
        count = partial(
            count_values, schema=schema, shown=asked.facet_values, is_all=self._rows.counters(db).rows == len(rids)
        )
        return {field: count(db, self._rows.number, field, rids) for field in dict.fromkeys(asked.facets)}


@dataclass(frozen=True)
class _Part:
    """Some queries of a survey, which are measured against the index of one moment."""

    query: IndexQuery
    which: slice
    asked: SurveySpec
    gated: bool

    def measured(self, rids: Rids, read: ReadVectors, named: Sequence[_Named], out: dict[str, int]) -> list[_Scored]:
        """read: unit vectors of rows by their places among `rids`."""
        queries, excluded = self.query.vectors[self.which], self.query.excluded[self.which]
        rough = np.empty((len(queries), len(rids)), np.float32)
        if self._needs_scores:
            for start in range(0, len(rids), _BLOCK):
                self.query.stop.check()
                places = np.arange(start, min(start + _BLOCK, len(rids)))
                rough[:, places] = queries @ read(places).T
        bounds = rounding_bound(queries)
        return [
            self._one(
                queries[row], rough[row], float(bounds[row]), rids, read, named, [out[id] for id in ids if id in out]
            )
            for row, ids in enumerate(excluded)
        ]

    @property
    def _needs_scores(self) -> bool:
        return bool(self.asked.bins or self.asked.ids) or self.query.shown.min_score is not None

    def _one(
        self,
        query: Vector,
        rough: Vector,
        bound: float,
        rids: Rids,
        read: ReadVectors,
        named: Sequence[_Named],
        out: Sequence[int],
    ) -> _Scored:
        kept = np.flatnonzero(~np.isin(rids, out)) if out else np.arange(len(rids))
        scores = rough[kept]

        def compared(score: float) -> tuple[NDArray[np.bool_], Slot]:
            """Which of `kept` have a better score, and places in `kept` with the same one."""
            better = scores > score + 2 * bound
            doubtful = np.flatnonzero(~better & (scores >= score - 2 * bound))
            # As float64, like the search: `score` may be a number that float32 does not have.
            exact = exact_scores(query, read(kept[doubtful])).astype(np.float64)
            better[doubtful[exact > score]] = True
            return better, doubtful[exact == score]

        passing = kept
        if (least := self.query.shown.min_score) is not None:
            enough, equal = compared(least)
            enough[equal] = True
            passing = kept[enough]
        places: dict[str, _Place] = {}
        possible = set(rids[kept].tolist()) if named else set[int]()
        for each in named:
            if each.rid in possible:
                better, equal = compared(float(exact_scores(query, each.vector[None])[0]))
                places[each.id] = _Place(int(better.sum()), rids[kept[equal]])
        histogram = None if self.asked.bins is None else _histogram(scores, self.asked.bins)
        return _Scored(rids[kept], rids[passing], histogram, places)


def _histogram(scores: Vector, bins: int) -> Histogram:
    if not len(scores):
        return Histogram((), (), 0.0, 0.0)
    values = scores.astype(np.float64)
    counts, edges = np.histogram(values, bins=bins)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), float(values.mean()), float(values.std()))


def _standing(id: str, query: Vector, named: Sequence[_Named], scored: _Scored, id_of: dict[int, str]) -> Standing:
    item = next((each for each in named if each.id == id), None)
    if item is None:
        return Standing(id, None, None)
    score = float(exact_scores(query, item.vector[None])[0])
    place = scored.places.get(id)
    if place is None:
        return Standing(id, score, None)
    before = sum(id_of[rid] < id for rid in place.equal.tolist())
    return Standing(id, score, 1 + place.better + before)
