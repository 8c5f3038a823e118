"""Questions about all items of a search: histogram of scores, ranks of named items, counts of metadata values.

Every answer is of one moment, and agrees with the ranking: scores that float32 leaves in doubt are compared as the
search compares them (see index/ranking.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
# Rows whose vectors are in memory at one time, and scores.
_BLOCK = 16_384
_WORK = 8_000_000
Rids = NDArray[np.int64]
_NO_RIDS: Rids = np.zeros(0, np.int64)
ReadVectors = Callable[[Slot], Vector]  # by place among the rows of a survey


class _Moved(Exception):
    """A change came between the look at the index and the one at the database: look again."""


@dataclass(frozen=True)
class _Moment:
    """Index and database at one sequence. rids: rows that pass the filter, growing; read: their vectors."""

    db: apsw.Connection
    rids: Rids
    read: ReadVectors


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
    """Surveys of one collection. Blocks.

    The index is looked at under its lock for as long as it takes to copy which rows there are, or a block of their
    vectors; nothing is worked out under a lock. A database transaction of the same sequence holds the moment.
    """

    def __init__(self, log: Log, rows: RowTable, searcher: Searcher, *, gate: threading.Lock) -> None:
        self._log = log
        self._rows = rows
        self._searcher = searcher
        self._gate = gate

    def survey(self, query: IndexQuery, asked: SurveySpec, schema: dict[str, FieldType]) -> list[Survey]:
        """One for each query vector, all of one moment. Of `query.shown` only `min_score` counts.

        Raises:
            ScanNeeded, Interrupted, StorageFailed
        """
        for _ in range(_ATTEMPTS):
            try:
                with self._moment(query, gated=False) as moment:
                    return self._surveys(moment, query, asked, schema)
            except (_Moved, RowVanished):
                query.stop.check()
        # The gate is held for the look at both, and let go before anything is worked out.
        try:
            with self._moment(query, gated=True) as moment:
                return self._surveys(moment, query, asked, schema)
        except (_Moved, RowVanished):
            raise StorageFailed("the index holds rows that the database does not have") from None

    @contextmanager
    def _moment(self, query: IndexQuery, *, gated: bool) -> Generator[_Moment]:
        """Raises _Moved."""
        with ExitStack() as held:
            with self._gate if gated else nullcontext():
                with self._searcher.entered(query, gated=gated) as (live, allowed):
                    slots = slots_in(live.slots.bits if allowed is None else allowed)
                    rids, mapped, sequence = live.slots.rids[slots], live.mapped, live.counters.sequence
                db = held.enter_context(self._log.read(query.stop))
                if self._rows.counters(db).sequence != sequence:
                    raise _Moved

            def read(places: Slot) -> Vector:
                if live.index.kind == "flat":
                    with self._searcher.reading():  # FAISS moves its vectors when it grows
                        return live.index.vectors_at(slots[places])
                chosen = Candidates([rids[places]], [slots[places]], True, mapped=mapped)
                return read_vectors(db, self._rows, chosen, self._searcher.note_damage)

            yield _Moment(db, rids, read)

    def _surveys(
        self, moment: _Moment, query: IndexQuery, asked: SurveySpec, schema: dict[str, FieldType]
    ) -> list[Survey]:
        db = moment.db
        named = self._named(db, asked.ids)
        out = self._rows.rids_of(db, sorted({id for ids in query.excluded for id in ids}))
        rows = self._rows.counters(db).rows
        counted: dict[bytes, dict[str, Facet]] = {}
        surveys: list[Survey] = []
        step = max(1, _WORK // max(1, len(moment.rids)))
        for start in range(0, len(query.vectors), step):
            part = slice(start, start + step)
            for vector, each in zip(query.vectors[part], measured(moment, query, part, asked, named, out), strict=True):
                query.stop.check()
                # Without `min_score` all queries count the same rows.
                key = hashlib.blake2b(each.passing.data, digest_size=16).digest() if asked.facets else b""
                if asked.facets and key not in counted:
                    count = partial(
                        count_values, schema=schema, shown=asked.facet_values, is_all=rows == len(each.passing)
                    )
                    counted[key] = {
                        field: count(db, self._rows.number, field, each.passing)
                        for field in dict.fromkeys(asked.facets)
                    }
                id_of = self._rows.ids_of(db, np.unique(_joined([place.equal for place in each.places.values()])))
                standings = tuple(_standing(id, vector, named, each, id_of) for id in asked.ids)
                surveys.append(
                    Survey(len(each.rids), len(each.passing), each.histogram, counted.get(key, {}), standings)
                )
        return surveys

    def _named(self, db: apsw.Connection, ids: Sequence[str]) -> list[_Named]:
        rid_of = self._rows.rids_of(db, list(dict.fromkeys(ids)))
        rids, vectors = self._rows.vectors_of(db, np.array(sorted(rid_of.values()), dtype=np.int64))
        vector_of = dict(zip(rids.tolist(), vectors, strict=True))
        return [_Named(id, rid, vector_of[rid]) for id, rid in rid_of.items()]


def measured(
    moment: _Moment,
    query: IndexQuery,
    part: slice,
    asked: SurveySpec,
    named: Sequence[_Named],
    out: dict[str, int],
) -> Iterator[_Scored]:
    """Scores of some of the queries, one after the other."""
    queries, rids, least = query.vectors[part], moment.rids, query.shown.min_score
    rough = np.empty((len(queries), len(rids)), np.float32)
    if asked.bins or asked.ids or least is not None:
        for start in range(0, len(rids), _BLOCK):
            query.stop.check()
            places = np.arange(start, min(start + _BLOCK, len(rids)))
            rough[:, places] = queries @ moment.read(places).T
    bounds = rounding_bound(queries)
    for row, ids in enumerate(query.excluded[part]):
        one = _OneQuery(queries[row], rough[row], float(bounds[row]), moment, [out[id] for id in ids if id in out])
        yield one.scored(asked, named, least)


@dataclass(frozen=True)
class _OneQuery:
    """rough: float32 scores of the moment's rows, wrong by at most `bound`. out: row numbers that it may not return."""

    query: Vector
    rough: Vector
    bound: float
    moment: _Moment
    out: Sequence[int]

    def scored(self, asked: SurveySpec, named: Sequence[_Named], least: float | None) -> _Scored:
        rids = self.moment.rids
        kept = np.flatnonzero(~np.isin(rids, self.out)) if self.out else np.arange(len(rids))
        passing = kept
        if least is not None:
            enough, equal = self._compared(kept, least)
            enough[equal] = True
            passing = kept[enough]
        places: dict[str, _Place] = {}
        for each in named:
            at = int(np.searchsorted(rids, each.rid))
            if at < len(rids) and rids[at] == each.rid and each.rid not in self.out:
                better, equal = self._compared(kept, float(exact_scores(self.query, each.vector[None])[0]))
                places[each.id] = _Place(int(better.sum()), rids[kept[equal]])
        histogram = None if asked.bins is None else _histogram(self.rough[kept], asked.bins, self.bound)
        return _Scored(rids[kept], rids[passing], histogram, places)

    def _compared(self, kept: Slot, score: float) -> tuple[NDArray[np.bool_], Slot]:
        """Which of `kept` have a better score, and places in `kept` with the same one."""
        scores = self.rough[kept]
        better = scores > score + 2 * self.bound
        doubtful = np.flatnonzero(~better & (scores >= score - 2 * self.bound))
        # As float64, like the search: `score` may be a number that float32 does not have.
        exact = exact_scores(self.query, self.moment.read(kept[doubtful])).astype(np.float64)
        better[doubtful[exact > score]] = True
        return better, doubtful[exact == score]


def _histogram(scores: Vector, bins: int, bound: float) -> Histogram:
    if not len(scores):
        return Histogram((), (), 0.0, 0.0)
    values = scores.astype(np.float64)
    if np.ptp(values) <= 2 * bound:  # one score, but for rounding
        values[:] = values.mean()
    counts, edges = np.histogram(values, bins=bins)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), float(values.mean()), float(values.std()))


def _joined(parts: Sequence[Rids]) -> Rids:
    return np.concatenate([_NO_RIDS, *parts])


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
