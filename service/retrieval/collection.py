"""One collection: its rows read, written and searched. Every method blocks; call them in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import apsw
import numpy as np

from service.retrieval.answering import AnswerShape
from service.retrieval.doctor import examine
from service.retrieval.errors import (
    CollectionNotFound,
    InvalidItem,
    InvalidQuery,
    ItemNotFound,
    StorageFailed,
)
from service.retrieval.index.live import LiveIndex, build, catch_up, wanted_kind
from service.retrieval.queries import check_queries, cursor_of, id_of_cursor
from service.retrieval.records import (
    CollectionDescription,
    CollectionSpec,
    CompactReport,
    DoctorReport,
    ItemOutcome,
    Loss,
    Page,
    Positions,
    Record,
    RetrievalSettings,
    SearchOutcome,
    SnapshotInfo,
    StoreItem,
    Vector,
)
from service.retrieval.searching import IndexQuery, Searcher
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.surveying import Surveyor
from service.retrieval.surveys import Survey, SurveySpec
from service.retrieval.truth import archive
from service.retrieval.truth.database import rows_of
from service.retrieval.truth.filters import compile_filter
from service.retrieval.truth.items import ItemChecks, check_id
from service.retrieval.truth.log import Log
from service.retrieval.truth.losses import seen_of, sentence
from service.retrieval.truth.positions import unpack_positions
from service.retrieval.truth.rows import Change, Prepared, RowTable
from service.retrieval.truth.tables import Tables

log = logging.getLogger("clipworks.retrieval")
_LEAST_DEAD = 256
_GROWN = 4


class EmbeddedCollection:
    """Rows of one space. All methods may be called from any number of threads at once.

    When a method that writes returns, its change is on disk and every later search sees it.
    Besides the errors named below any method raises StoreClosed, StorageFailed, StoreCorrupt, or CollectionNotFound
    once the collection is dropped.

    Locks, always taken in this order: `_rebuilding` (one rebuild at a time), the gate (no commit between the
    database and the index; see log.py), the searcher's read-write lock (FAISS).
    """

    def __init__(
        self,
        tables: Tables,
        *,
        log: Log,
        settings: RetrievalSettings,
        durability: Literal["full", "none"],
        live: LiveIndex,
        folder: Path,
        warnings: tuple[str, ...] = (),
        losses: Callable[[str], tuple[Loss, ...]] = lambda _: (),
        wake: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """The store makes collections; `live` must be of the database's present moment.

        folder: for files of indexes. losses: by name, that are not acknowledged. wake: upkeep may be due.
        stop: whether the store is closing.
        """
        self.name = tables.name
        self.spec: CollectionSpec = tables.spec
        self._tables = tables
        self._log = log
        self._settings = settings
        self._durability: Literal["full", "none"] = durability
        self._warnings = warnings
        self._losses = losses
        self._folder = folder
        self._wake = wake
        self._stop = stop
        self._rows = RowTable(tables.number, self.spec)
        self._checks = ItemChecks(self.spec, max_metadata_bytes=settings.max_metadata_bytes)
        self._gate = threading.Lock()
        self._rebuilding = threading.Lock()
        self._searcher = Searcher(log, self._rows, self.spec.index, settings, gate=self._gate, live=live)
        self._going = self._dropped = False

    def upsert(self, items: Sequence[StoreItem], *, all_or_nothing: bool = False) -> list[ItemOutcome]:
        """Add or replace rows by id, in one transaction; of equal ids the last one stays.

        all_or_nothing: a bad item raises, and nothing is written; else it only gets its own error in its outcome.
        Returns one outcome for each item, in order.

        Raises:
            InvalidItem: with the index of the first bad item, if all_or_nothing.
            StorageFull: nothing was applied.
        """
        self._check_open()
        good: dict[str, Prepared] = {}
        bad: dict[int, InvalidItem] = {}
        for place, item in enumerate(items):
            try:
                good[item.id] = self._checks.prepare(item)
            except InvalidItem as error:
                bad[place] = InvalidItem(str(error), index=place)
                if all_or_nothing:
                    raise bad[place] from None
        replaced: set[str] = set()
        if good:
            rows = list(good.values())
            replaced |= self._write(lambda db: self._rows.upsert(db, rows), weight=len(rows)).replaced
        outcomes: list[ItemOutcome] = []
        for place, item in enumerate(items):
            if error := bad.get(place):
                outcomes.append(ItemOutcome(place, str(item.id), error=error))
            else:
                outcomes.append(ItemOutcome(place, item.id, created=item.id not in replaced))
                replaced.add(item.id)
        return outcomes

    def delete(
        self, ids: Sequence[str] | None = None, *, filter: dict[str, Any] | None = None, stop: Stop = NEVER
    ) -> int:
        """Remove rows by ids or by filter (exactly one of them); ids that are not there are no error.

        A filter looks at the rows before anything waits for it; the writer only looks at those that came since.
        Returns the number of rows removed.

        Raises:
            InvalidFilter, InvalidQuery, StorageFull
            Interrupted: nothing was removed.
        """
        self._check_open()
        if (ids is None) == (filter is None):
            raise InvalidQuery("give ids or a filter, not both")
        if ids is not None:
            wanted = list(dict.fromkeys(ids))
            for id in wanted:
                check_id(id)
            change = self._write(
                lambda db: self._rows.delete(db, list(self._rows.rids_of(db, wanted).values())), weight=len(wanted)
            )
        else:
            condition = compile_filter(filter, self.spec.metadata_schema)
            with self._there():
                looked = self._searcher.select(condition, stop)

            def remove(db: apsw.Connection) -> Change:
                with stop.watching(db):
                    there = self._rows.present(db, looked.rids)
                    statement = f"SELECT rid FROM metadata_{self._tables.number} WHERE ({condition.sql}) AND rid > ?"
                    since = [rid for (rid,) in rows_of(db, statement, (*condition.values, looked.last_rid))]
                return self._rows.delete(db, [*there, *since])

            change = self._write(remove, weight=1000)
        return len(change.removed)

    def get(self, id: str, *, with_vector: bool = False, with_thumbnail: bool = False) -> Record:
        """Raises ItemNotFound."""
        check_id(id)
        with self._there(), self._log.read() as db:
            found = self._rows.record(db, id, with_vector=with_vector, with_thumbnail=with_thumbnail)
        if found is None:
            raise ItemNotFound(f"collection {self.name} has no item with this id")
        return found

    def vector_of(self, ids: Sequence[str]) -> list[Vector | None]:
        """Stored float32 vectors [D], None where there is no such id: for queries by stored id."""
        for id in ids:
            check_id(id)
        with self._there(), self._log.read() as db:
            rid_of = self._rows.rids_of(db, list(dict.fromkeys(ids)))
            rids, vectors = self._rows.vectors_of(db, np.array(sorted(rid_of.values()), dtype=np.int64))
        by_rid = dict(zip(rids.tolist(), vectors, strict=True))
        return [by_rid[rid_of[id]] if id in rid_of else None for id in ids]

    def positions_of(self, ids: Sequence[str]) -> list[Positions | None]:
        """Position vectors float32 [rows, columns, width] of items; None where there is no such item, or it has none.

        Raises:
            InvalidQuery: the collection keeps none.
        """
        kept, spec = self._rows.positions, self.spec.rerank
        if kept is None or spec is None:
            raise InvalidQuery(f"collection {self.name} keeps no position vectors")
        with self._there(), self._log.read() as db:
            rid_of = self._rows.rids_of(db, list(dict.fromkeys(ids)))
            found = kept.several(db, rid_of.values())
        by_id = {id: unpack_positions(found[rid], spec.width) for id, rid in rid_of.items() if rid in found}
        return [by_id.get(id) for id in ids]

    def items(
        self, *, cursor: str | None = None, limit: int = 100, with_vectors: bool = False, stop: Stop = NEVER
    ) -> Page:
        """One page of rows in the order of their ids; pass `Page.cursor` for the next.

        A row that is there the whole time appears exactly once; others may or may not.

        Raises:
            InvalidQuery: a cursor that is not from here, or a limit outside 1 .. settings.max_results.
        """
        if not 1 <= limit <= self._settings.max_results:
            raise InvalidQuery(f"limit must be 1 to {self._settings.max_results}, got {limit}")
        with self._there(), self._log.read(stop) as db:
            found = self._rows.records_after(db, id_of_cursor(cursor), limit=limit + 1, with_vectors=with_vectors)
        more = len(found) > limit
        return Page(found[:limit], cursor_of(found[limit - 1].id) if more else None)

    def search(
        self,
        vectors: Vector,
        *,
        top_k: int = 10,
        offset: int = 0,
        filter: dict[str, Any] | None = None,
        min_score: float | None = None,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exclude_ids: Sequence[Sequence[str]] | None = None,
        may_scan: bool = True,
        stop: Stop = NEVER,
    ) -> list[SearchOutcome]:
        """The best rows for each query.

        vectors: float32 [Q, D], finite and not zero; scores are inner products, so cosines for unit queries.
        offset: hits to skip, for the next page. min_score: hits below it are left out.
        exclude_ids: for each query the ids that it must not return (a query by stored id does not return itself).
        may_scan: False raises ScanNeeded where a filter has to look at many rows first; `scan` does that.

        Raises:
            InvalidQuery: shape, values, or offset + top_k above settings.max_results.
            InvalidFilter: with the place in the filter.
            Interrupted: `stop` was due.
        """
        self._check_open()
        queries = check_queries(vectors, self.spec.dim)
        if top_k < 1 or offset < 0 or offset + top_k > self._settings.max_results:
            raise InvalidQuery(
                f"top_k must be at least 1, offset at least 0 and their sum at most {self._settings.max_results},"
                f" got top_k {top_k} and offset {offset}"
            )
        excluded = self._excluded(queries, exclude_ids)
        condition = None if filter is None else compile_filter(filter, self.spec.metadata_schema)
        shown = AnswerShape(offset + top_k, offset, min_score, with_metadata, with_vectors)
        with self._there():
            return self._searcher.search(IndexQuery(queries, condition, excluded, shown, may_scan, stop))

    def survey(
        self,
        vectors: Vector,
        asked: SurveySpec,
        *,
        filter: dict[str, Any] | None = None,
        min_score: float | None = None,
        exclude_ids: Sequence[Sequence[str]] | None = None,
        may_scan: bool = True,
        stop: Stop = NEVER,
    ) -> list[Survey]:
        """What is asked about all rows that a search with these arguments ranks: exact on every kind of index.

        Reads every vector that the filter leaves unless only facets without `min_score` are asked for.

        Raises:
            InvalidQuery, InvalidFilter, Interrupted: as `search`.
        """
        self._check_open()
        queries = check_queries(vectors, self.spec.dim)
        for id in asked.ids:
            check_id(id)
        condition = None if filter is None else compile_filter(filter, self.spec.metadata_schema)
        shown = AnswerShape(0, 0, min_score, with_metadata=False, with_vectors=False)
        query = IndexQuery(queries, condition, self._excluded(queries, exclude_ids), shown, may_scan, stop)
        surveyor = Surveyor(self._log, self._rows, self._searcher, gate=self._gate)
        with self._there():
            return surveyor.survey(query, asked, self.spec.metadata_schema)

    def scan(self, filter: dict[str, Any], *, stop: Stop = NEVER) -> None:
        """Look at all rows for a filter and remember what was found, so that a search by it need not. May take long.

        Raises:
            InvalidFilter, Interrupted
        """
        condition = compile_filter(filter, self.spec.metadata_schema)
        with self._there():
            self._searcher.scan(condition, stop)

    def unknown_fields(self, filter: dict[str, Any]) -> tuple[str, ...]:
        """Undeclared fields of a filter, of the first eight, that no row has: after a search by it, and free then."""
        return self._searcher.unknown_fields(compile_filter(filter, self.spec.metadata_schema))

    def describe(self) -> CollectionDescription:
        """Counts, kinds and sizes now."""
        self._check_open()
        state = self._searcher.state()
        losses = self._losses(self.name)
        thumbnails = positions = None
        if self._rows.beside():
            with self._there(), self._log.read() as db:
                thumbnails = self._rows.thumbnails.totals(db) if self._rows.thumbnails else None
                positions = self._rows.positions.totals(db) if self._rows.positions else None
        return CollectionDescription(
            name=self.name,
            spec=self.spec,
            count=state.live,
            dead=state.dead,
            sequence=state.sequence,
            kind=state.kind,
            exact=state.kind == "flat",
            index_bytes=state.nbytes,
            disk_bytes=self._log.disk_bytes(),
            durability=self._durability,
            rebuilding=self._rebuilding.locked(),
            warnings=(*self._warnings, *map(sentence, losses)),
            losses=losses,
            thumbnails=thumbnails,
            positions=positions,
        )

    def compact(self) -> CompactReport:
        """Rebuild the index without dead slots, train it anew, and give unused pages of the database back."""
        self._check_open()
        removed = self._rebuild()
        return CompactReport(slots_removed=removed, bytes_freed=self._log.free_pages())

    def snapshot(self, path: Path, *, stop: Stop = NEVER) -> SnapshotInfo:
        """Write a portable copy of the rows at one sequence to `path`, atomically; writes go on meanwhile.

        Raises:
            InvalidCollection: `path` exists.
            StorageFull
            Interrupted: `stop` was due, and there is no file.
        """
        with self._there(), self._log.read_long(stop) as db:
            counters = self._rows.counters(db)
            return archive.write(path, self.spec, counters, self._rows.records(db))

    def export_rows(self, *, batch: int = 1000) -> Iterator[list[Record]]:
        """All rows, with vectors and all that is kept beside them, in the order they were written, as of one sequence.

        Close the iterator (or run it to its end) soon: while it is open the write-ahead log cannot shrink.
        """
        self._check_open()
        with self._log.read_long() as db:
            held: list[Record] = []
            for record in self._rows.records(db):
                held.append(record)
                if len(held) == batch:
                    yield held
                    held = []
            if held:
                yield held

    def doctor(self, *, queries: int = 100, recall_at: int = 10, stop: Stop = NEVER) -> DoctorReport:
        """Check every row's checksum, that the index holds exactly the rows, and its recall against brute force.

        Reads everything; searches and writes go on meanwhile, and rows changed while it runs are not counted as faults.
        Raises Interrupted: `stop` was due.
        A loss that nobody has acknowledged is a problem too.
        """
        search = partial(self.search, stop=stop)
        with self._there():
            found = examine(
                self._log,
                self._rows,
                self._searcher,
                search,
                queries=queries,
                recall_at=recall_at,
                views=self.spec.views,
                stop=stop,
            )
        return replace(found, problems=(*found.problems, *map(sentence, self._losses(self.name))))

    # What the store needs of a collection; not for its users.

    @property
    def tables(self) -> Tables:
        return self._tables

    def rename(self, name: str) -> None:
        """Its entry in the database has this name now."""
        self.name = name
        self._tables = replace(self._tables, name=name)

    @property
    def gate(self) -> threading.Lock:
        return self._gate

    @property
    def searcher(self) -> Searcher:
        return self._searcher

    @contextmanager
    def being_dropped(self) -> Generator[None]:
        """Around the deletion of its tables; an error in there leaves the collection as it was."""
        self._going = True
        try:
            yield
        except BaseException:
            self._going = False
            raise
        self._dropped = True
        self._searcher.discard()

    def keep_up(self) -> bool:
        """Rebuild the index if it is due; whether it was. For the upkeep thread."""
        if self._dropped or not self._rebuild_due():
            return False
        self._rebuild()
        return True

    def _rebuild_due(self) -> bool:
        state = self._searcher.state()
        if state.broken or state.damaged:
            return True
        if state.dead >= _LEAST_DEAD and state.dead > self._settings.rebuild_dead_share * (state.live + state.dead):
            return True
        if wanted_kind(self.spec.index, state.live, self._settings, now=state.kind) != state.kind:
            return True
        # Trained on a fraction of what is there now: its ranges and lists may no longer fit.
        return state.kind != "flat" and state.live > _GROWN * max(state.trained_rows, _LEAST_DEAD)

    def _rebuild(self) -> int:
        """Build beside the present index, catch up without holding anybody up, then swap; slots that it saved."""
        with self._rebuilding:
            before = self._searcher.state()
            fresh = build(
                self._log,
                self._rows,
                self.spec.index,
                self._settings,
                folder=self._folder,
                now=before.kind,
                stop=lambda: self._dropped or self._stop(),
            )
            try:
                with self._gate:
                    broken = self._searcher.state().broken
                    catch_up(self._log, self._rows, fresh, alive=None if broken else self._searcher.live_rids())
                    self._searcher.replace(fresh)
            except BaseException:
                fresh.discard()
                raise
            return max(0, before.dead - fresh.slots.dead)

    def _write(self, work: Callable[[apsw.Connection], Change], *, weight: int) -> Change:
        change = self._log.write(work, publish=self._publish, gate=self._gate, weight=weight)
        if self._rebuild_due():
            self._wake()
        return change

    def _publish(self, change: Change) -> None:
        self._log.note(seen_of(self._tables, change.counters))
        try:
            self._searcher.apply(change)
        except BaseException:
            self._wake()
            raise

    @contextmanager
    def _there(self) -> Generator[None]:
        """Around reads: whose tables vanish meanwhile was dropped, the database is not broken."""
        self._check_open()
        try:
            yield
        except StorageFailed as error:
            if self._going:
                raise CollectionNotFound(f"collection {self.name} was dropped") from error
            raise

    def _excluded(self, queries: Vector, ids: Sequence[Sequence[str]] | None) -> list[frozenset[str]]:
        """For each query the ids that it must not return. Raises InvalidQuery."""
        excluded = [frozenset(each) for each in ([()] * len(queries) if ids is None else ids)]
        if len(excluded) != len(queries):
            raise InvalidQuery(f"exclude_ids has {len(excluded)} entries for {len(queries)} queries")
        if max((len(each) for each in excluded), default=0) > self._settings.max_results:
            raise InvalidQuery(f"more than {self._settings.max_results} ids to exclude")
        return excluded

    def _check_open(self) -> None:
        if self._dropped:
            raise CollectionNotFound(f"collection {self.name} was dropped")
