"""One collection in Milvus, through the same calls as an embedded one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.retrieval.backends.errors import NotSupported
from service.retrieval.backends.facts import expression_of, ordered_fields
from service.retrieval.backends.milvus_check import examine
from service.retrieval.backends.milvus_connection import MilvusConnection
from service.retrieval.backends.milvus_rows import (
    MAX_DOCUMENT_BYTES,
    built_kind,
    decode,
    encode,
    id_of,
    key_of,
    name_there,
    vector_of,
    weight_of,
)
from service.retrieval.backends.milvus_search import MilvusQuery, search
from service.retrieval.errors import InvalidItem, InvalidQuery, ItemNotFound
from service.retrieval.queries import check_queries, cursor_of, id_of_cursor
from service.retrieval.records import (
    CollectionDescription,
    CollectionSpec,
    CompactReport,
    DoctorReport,
    ItemOutcome,
    Page,
    Positions,
    Record,
    RetrievalSettings,
    SearchOutcome,
    SnapshotInfo,
    StoreItem,
    Vector,
)
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.surveys import Survey, SurveySpec
from service.retrieval.truth.items import ItemChecks, check_id
from service.retrieval.truth.rows import Prepared

_WRITE_BYTES = 8 * 2**20  # of one request; Milvus takes 64 MiB
_KEYS = 500  # named in one expression


class Ticks(Protocol):
    def tick(self, name: str) -> int: ...
    def of(self, name: str) -> int: ...


class MilvusCollection:
    """See `service.retrieval.EmbeddedCollection`. Cheap to make: it holds nothing but names."""

    def __init__(
        self,
        name: str,
        spec: CollectionSpec,
        *,
        connection: MilvusConnection,
        clock: Ticks,
        settings: RetrievalSettings,
    ) -> None:
        self.name = name
        self.spec = spec
        self._there = name_there(name)
        self._connection = connection
        self._clock = clock
        self._settings = settings
        self._fields = ordered_fields(spec.metadata_schema)
        limit = min(settings.max_metadata_bytes, MAX_DOCUMENT_BYTES)
        self._checks = ItemChecks(spec, max_metadata_bytes=limit)

    def upsert(self, items: Sequence[StoreItem], *, all_or_nothing: bool = False) -> list[ItemOutcome]:
        good: dict[str, dict[str, Any]] = {}
        bad: dict[int, InvalidItem] = {}
        sequence = self._clock.tick(self.name)
        for place, item in enumerate(items):
            try:
                good[item.id] = encode(self._checks.prepare(item), self._fields, sequence=sequence)
            except InvalidItem as error:
                bad[place] = InvalidItem(str(error), index=place)
                if all_or_nothing:
                    raise bad[place] from None
        there: set[str] = set()
        if good:

            def replace() -> None:
                there.update(self._present(list(good)))
                self._send(list(good.values()))

            self._connection.write_many(replace)
        outcomes: list[ItemOutcome] = []
        for place, item in enumerate(items):
            if error := bad.get(place):
                outcomes.append(ItemOutcome(place, str(item.id), error=error))
            else:
                outcomes.append(ItemOutcome(place, item.id, created=item.id not in there))
                there.add(item.id)
        return outcomes

    def put(self, rows: Sequence[Prepared]) -> None:
        """Rows that are known to be good, as a snapshot has them."""
        sequence = self._clock.tick(self.name)
        found = [encode(row, self._fields, sequence=sequence) for row in rows]
        self._connection.write_many(lambda: self._send(found))

    def delete(
        self, ids: Sequence[str] | None = None, *, filter: dict[str, Any] | None = None, stop: Stop = NEVER
    ) -> int:
        stop.check()  # Milvus cannot be interrupted; each call to it has its own limit of time
        if (ids is None) == (filter is None):
            raise InvalidQuery("give ids or a filter, not both")
        if ids is None:
            expression = expression_of(filter or {}, self.spec.metadata_schema)

            def remove() -> int:
                count = self.count(expression)
                if count:
                    self._connection.ask("delete", self._there, filter=expression)
                return count
        else:
            for id in ids:
                check_id(id)

            def remove() -> int:
                there = sorted(self._present(list(dict.fromkeys(ids))))
                for start in range(0, len(there), _KEYS):
                    keys = [key_of(id) for id in there[start : start + _KEYS]]
                    self._connection.ask("delete", self._there, ids=keys)
                return len(there)

        self._clock.tick(self.name)
        return self._connection.write_many(remove)

    def get(self, id: str, *, with_vector: bool = False, with_thumbnail: bool = False) -> Record:
        """with_thumbnail: changes nothing, for there is none."""
        check_id(id)
        fields = ["key", "document", "sequence", *(["vector"] if with_vector else [])]
        found = self._rows_of([id], fields)
        if not found:
            raise ItemNotFound(f"collection {self.name} has no item with this id")
        return decode(found[0], with_vector=with_vector)

    def vector_of(self, ids: Sequence[str]) -> list[Vector | None]:
        for id in ids:
            check_id(id)
        rows = self._rows_of(list(dict.fromkeys(ids)), ["key", "vector"])
        found = {id_of(row["key"]): vector_of(row) for row in rows}
        return [found.get(id) for id in ids]

    def positions_of(self, ids: Sequence[str]) -> list[Positions | None]:
        raise NotSupported("rerank: the milvus backend keeps no position vectors")

    def items(
        self, *, cursor: str | None = None, limit: int = 100, with_vectors: bool = False, stop: Stop = NEVER
    ) -> Page:
        stop.check()
        if not 1 <= limit <= self._settings.max_results:
            raise InvalidQuery(f"limit must be 1 to {self._settings.max_results}, got {limit}")
        fields = ["key", "document", "sequence", *(["vector"] if with_vectors else [])]
        rows = self._after(key_of(id_of_cursor(cursor)), limit + 1, fields)
        found = [decode(row, with_vector=with_vectors) for row in rows[:limit]]
        return Page(found, cursor_of(found[-1].id) if len(rows) > limit else None)

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
        queries = check_queries(vectors, self.spec.dim)
        if top_k < 1 or offset < 0 or offset + top_k > self._settings.max_results:
            raise InvalidQuery(
                f"top_k must be at least 1, offset at least 0 and their sum at most {self._settings.max_results},"
                f" got top_k {top_k} and offset {offset}"
            )
        excluded = [frozenset(ids) for ids in ([()] * len(queries) if exclude_ids is None else exclude_ids)]
        asked = MilvusQuery(
            expression="" if not filter else expression_of(filter, self.spec.metadata_schema),
            top_k=top_k,
            offset=offset,
            min_score=min_score,
            with_metadata=with_metadata,
            with_vectors=with_vectors,
        )
        return search(self._connection, self._there, self.spec, queries, excluded, asked, stop)

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
        """Milvus answers with its best rows and no others, and counts no values of a field."""
        raise NotSupported("the milvus backend has no facets, no histogram and no ranks of named items")

    def scan(self, filter: dict[str, Any], *, stop: Stop = NEVER) -> None:
        """Milvus has an index of facts, so nothing has to be looked at first."""

    def unknown_fields(self, filter: dict[str, Any]) -> Sequence[str]:
        """None are named: it would take one more question to Milvus for each field of each search."""
        return ()

    def export_rows(self, *, batch: int = 1000) -> Iterator[list[Record]]:
        """In the order of ids; rows that change meanwhile may be of several moments."""
        last = ""
        while rows := self._after(last, batch, ["key", "document", "sequence", "vector"]):
            last = rows[-1]["key"]
            yield [decode(row, with_vector=True) for row in rows]

    def describe(self) -> CollectionDescription:
        kind = built_kind(self.spec)
        return CollectionDescription(
            name=self.name,
            spec=self.spec,
            count=self.count(),
            dead=0,
            sequence=self._clock.of(self.name),
            kind=kind,
            exact=kind == "flat",
            index_bytes=None,
            disk_bytes=None,
            durability=self._connection.durability,
            rebuilding=False,
            warnings=(),
            backend="milvus",
        )

    def compact(self) -> CompactReport:
        """Milvus does it in its own time and does not say what it freed."""
        self._connection.write("compact", self._there)
        return CompactReport(slots_removed=0, bytes_freed=0)

    def snapshot(self, path: Path, *, stop: Stop = NEVER) -> SnapshotInfo:
        raise NotSupported(
            "the milvus backend has no snapshots of one moment: use its own backup, or `clipworks collections export`"
        )

    def doctor(self, *, queries: int = 100, recall_at: int = 10, stop: Stop = NEVER) -> DoctorReport:
        def blocks() -> Iterator[list[dict[str, Any]]]:
            last = ""
            while rows := self._after(last, 1000, ["key", "document", "sequence", "checksum", "vector"]):
                stop.check()
                last = rows[-1]["key"]
                yield rows

        return examine(
            blocks,
            count=self.count,
            search=self.search,
            exact=built_kind(self.spec) == "flat",
            queries=queries,
            recall_at=recall_at,
        )

    def count(self, expression: str = "") -> int:
        found = self._connection.ask("query", self._there, filter=expression, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def _present(self, ids: Sequence[str]) -> set[str]:
        return {id_of(row["key"]) for row in self._rows_of(ids, ["key"])}

    def _rows_of(self, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _KEYS):
            keys = ", ".join(f'"{key_of(id)}"' for id in ids[start : start + _KEYS])
            found += self._connection.ask(
                "query", self._there, filter=f"key in [{keys}]", output_fields=list(fields), limit=_KEYS
            )
        return found

    def _after(self, key: str, limit: int, fields: Sequence[str]) -> list[dict[str, Any]]:
        """The next rows in the order of keys, as many as `limit` unless there are no more.

        The two flags make each part of Milvus give its smallest keys; then a server stops at the end of the first part
        that has no more, so a short answer is not yet the last one.
        """
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            rows: list[dict[str, Any]] = self._connection.ask(
                "query",
                self._there,
                filter=f'key > "{found[-1]["key"] if found else key}"',
                output_fields=list(fields),
                limit=limit - len(found),
                iterator="True",
                reduce_stop_for_best="True",
            )
            if not rows:
                break
            found += sorted(rows, key=lambda row: row["key"])
        return found

    def _send(self, rows: Sequence[dict[str, Any]]) -> None:
        batch: list[dict[str, Any]] = []
        weight = 0
        for row in rows:
            if batch and weight + weight_of(row) > _WRITE_BYTES:
                self._connection.ask("upsert", self._there, batch)
                batch, weight = [], 0
            batch.append(row)
            weight += weight_of(row)
        if batch:
            self._connection.ask("upsert", self._there, batch)
