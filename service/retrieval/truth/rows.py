"""Rows of one collection in SQL: written with checksums, read back with checksums verified."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import numpy as np
import orjson
from numpy.typing import NDArray

from service.retrieval.errors import CollectionNotFound, StoreCorrupt
from service.retrieval.records import CollectionSpec, Record, Vector
from service.retrieval.truth.beside import BesideTable
from service.retrieval.truth.database import rows_of, run, run_many
from service.retrieval.truth.positions import POSITIONS
from service.retrieval.truth.tables import Counters, read_counters, write_counters
from service.retrieval.truth.thumbnails import THUMBNAILS

_VARIABLES = 500


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated item, as it will lie in the file."""

    id: str
    vector: bytes
    metadata: str
    thumbnail: bytes | None = None
    positions: bytes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What one committed request did to the live rows: the index needs no more.

    added: row numbers, growing, with their vectors [n, D]. replaced: of the added ids, those that were there.
    """

    counters: Counters
    removed: NDArray[np.int64]
    added: NDArray[np.int64]
    vectors: Vector
    replaced: frozenset[str] = frozenset()


class RowTable:
    """Statements on the tables of collection `number`; the caller brings the connection.

    thumbnails, positions: None where the collection keeps none.
    """

    def __init__(self, number: int, spec: CollectionSpec) -> None:
        self.number = number
        self.dim = spec.dim
        self.thumbnails = BesideTable(THUMBNAILS, number) if spec.thumbnails else None
        self.positions = BesideTable(POSITIONS, number) if spec.rerank is not None else None
        self._items = f"items_{number}"
        self._vectors = f"vectors_{number}"
        self._metadata = f"metadata_{number}"

    def counters(self, db: apsw.Connection) -> Counters:
        """Raises CollectionNotFound: it was dropped."""
        found = read_counters(db, self.number)
        if found is None:
            raise CollectionNotFound("the collection was dropped")
        return found

    def upsert(self, db: apsw.Connection, rows: Sequence[Prepared]) -> Change:
        """Insert rows of distinct ids under new numbers; rows that had these ids are deleted."""
        before = self.counters(db)
        old = self.rids_of(db, [row.id for row in rows])
        self._remove(db, old.values())
        first = before.last_rid + 1
        after = Counters(before.sequence + 1, before.rows - len(old) + len(rows), before.last_rid + len(rows))
        write_counters(db, self.number, after)
        sums = [vector_checksum(rid, row.vector) for rid, row in enumerate(rows, first)]
        run_many(
            db,
            f"INSERT INTO {self._items} VALUES (?, ?, ?, ?)",
            (
                (
                    rid,
                    row.id,
                    after.sequence,
                    row_checksum(rid, row.id, after.sequence, sums[rid - first], row.metadata),
                )
                for rid, row in enumerate(rows, first)
            ),
        )
        run_many(
            db,
            f"INSERT INTO {self._vectors} VALUES (?, ?, ?)",
            ((rid, sums[rid - first], row.vector) for rid, row in enumerate(rows, first)),
        )
        run_many(
            db,
            f"INSERT INTO {self._metadata} VALUES (?, ?)",
            ((rid, row.metadata) for rid, row in enumerate(rows, first)),
        )
        if self.thumbnails is not None:
            pictures = {rid: row.thumbnail for rid, row in enumerate(rows, first) if row.thumbnail is not None}
            self.thumbnails.insert(db, pictures)
        if self.positions is not None:
            tokens = {rid: row.positions for rid, row in enumerate(rows, first) if row.positions is not None}
            self.positions.insert(db, tokens)
        return Change(
            after,
            removed=np.array(sorted(old.values()), dtype=np.int64),
            added=np.arange(first, first + len(rows), dtype=np.int64),
            vectors=np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4").reshape(len(rows), self.dim),
            replaced=frozenset(old),
        )

    def delete(self, db: apsw.Connection, rids: Sequence[int]) -> Change:
        """Delete rows that are there, by number."""
        before = self.counters(db)
        self._remove(db, rids)
        after = Counters(before.sequence + bool(rids), before.rows - len(rids), before.last_rid)
        if rids:
            write_counters(db, self.number, after)
        return Change(
            after,
            removed=np.array(sorted(rids), dtype=np.int64),
            added=np.zeros(0, np.int64),
            vectors=np.zeros((0, self.dim), np.float32),
        )

    def _remove(self, db: apsw.Connection, rids: Iterable[int]) -> None:
        rids = list(rids)
        for table in self.beside():
            table.remove(db, rids)
        gone = [(rid,) for rid in rids]
        for table in (self._items, self._vectors, self._metadata):
            run_many(db, f"DELETE FROM {table} WHERE rid = ?", gone)

    def beside(self) -> list[BesideTable]:
        """What the collection keeps beside its rows."""
        return [table for table in (self.thumbnails, self.positions) if table is not None]

    def rids_of(self, db: apsw.Connection, ids: Sequence[str]) -> dict[str, int]:
        """Row numbers of those ids that are there."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            marks = ",".join("?" * len(part))
            for id, rid in rows_of(db, f"SELECT id, rid FROM {self._items} WHERE id IN ({marks})", part):
                found[id] = rid
        return found

    def present(self, db: apsw.Connection, rids: NDArray[np.int64]) -> list[int]:
        """Those row numbers that are there."""
        statement = f"SELECT rid FROM {self._items} WHERE rid IN carray(?)"
        return [rid for (rid,) in rows_of(db, statement, (_array(rids),))] if len(rids) else []

    def ids_of(self, db: apsw.Connection, rids: NDArray[np.int64]) -> dict[int, str]:
        """Ids of those row numbers that are there."""
        statement = f"SELECT rid, id FROM {self._items} WHERE rid IN carray(?)"
        return dict(rows_of(db, statement, (_array(rids),))) if len(rids) else {}

    def shown_of(self, db: apsw.Connection, rids: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
        """Id and metadata, as JSON, of those row numbers that are there: in one statement, as most searches want it."""
        statement = (
            f"SELECT i.rid, i.id, m.document FROM carray(?) AS c JOIN {self._items} AS i ON i.rid = c.value"
            f" JOIN {self._metadata} AS m ON m.rid = c.value"
        )
        if not len(rids):
            return {}
        return {rid: (id, text) for rid, id, text in rows_of(db, statement, (_array(rids),))}

    def metadata_of(self, db: apsw.Connection, rids: NDArray[np.int64]) -> dict[int, str]:
        """Metadata, as JSON, of those row numbers that are there."""
        statement = f"SELECT rid, document FROM {self._metadata} WHERE rid IN carray(?)"
        return dict(rows_of(db, statement, (_array(rids),))) if len(rids) else {}

    def vectors_of(self, db: apsw.Connection, rids: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vector]:
        """Row numbers, growing, of those that are there, and their vectors. Raises StoreCorrupt."""
        if not len(rids):
            return np.zeros(0, np.int64), np.zeros((0, self.dim), np.float32)
        statement = f"SELECT rid, checksum, vector FROM {self._vectors} WHERE rid IN carray(?) ORDER BY rid"
        return self._verified(run(db, statement, (_array(rids),)))

    def block_after(self, db: apsw.Connection, rid: int, *, limit: int) -> tuple[NDArray[np.int64], Vector]:
        """The next rows by number after `rid`, with their vectors. Raises StoreCorrupt."""
        statement = f"SELECT rid, checksum, vector FROM {self._vectors} WHERE rid > ? ORDER BY rid LIMIT ?"
        return self._verified(run(db, statement, (rid, limit)))

    def all_rids(self, db: apsw.Connection) -> NDArray[np.int64]:
        """Every live row number, growing."""
        return np.fromiter((rid for (rid,) in rows_of(db, f"SELECT rid FROM {self._items} ORDER BY rid")), np.int64)

    def records_after(self, db: apsw.Connection, id: str, *, limit: int, with_vectors: bool) -> list[Record]:
        """Rows in the order of ids. Raises StoreCorrupt."""
        return list(self._records(db, "WHERE i.id > ? ORDER BY i.id LIMIT ?", (id, limit), with_vectors=with_vectors))

    def record(self, db: apsw.Connection, id: str, *, with_vector: bool, with_thumbnail: bool = False) -> Record | None:
        """Raises StoreCorrupt."""
        found = self._records(db, "WHERE i.id = ?", (id,), with_vectors=with_vector, with_thumbnails=with_thumbnail)
        return next(found, None)

    def records(self, db: apsw.Connection) -> Generator[Record]:
        """Every row with its vector and all that is kept beside it, in the order of writing. Raises StoreCorrupt."""
        return self._records(db, "ORDER BY i.rid", (), with_vectors=True, with_thumbnails=True, with_positions=True)

    def _records(
        self,
        db: apsw.Connection,
        which: str,
        values: Sequence[Any],
        *,
        with_vectors: bool,
        with_thumbnails: bool = False,
        with_positions: bool = False,
    ) -> Generator[Record]:
        thumbnails = self.thumbnails if with_thumbnails else None
        positions = self.positions if with_positions else None
        statement = (
            f"SELECT i.rid, i.id, i.sequence, i.checksum, m.document, v.checksum{', v.vector' if with_vectors else ''}"
            f" FROM {self._items} AS i LEFT JOIN {self._metadata} AS m ON m.rid = i.rid"
            f" LEFT JOIN {self._vectors} AS v ON v.rid = i.rid {which}"
        )
        for rid, id, sequence, checksum, text, vector_sum, *vector in rows_of(db, statement, values):
            if text is None or vector_sum is None or row_checksum(rid, id, sequence, vector_sum, text) != checksum:
                raise StoreCorrupt(f"row {rid} (id {id!r}) is not what was written: its checksum differs")
            if with_vectors and vector_checksum(rid, vector[0]) != vector_sum:
                raise StoreCorrupt(f"the vector of row {rid} (id {id!r}) is not what was written: its checksum differs")
            values_read = np.frombuffer(vector[0], dtype="<f4").astype(np.float32) if with_vectors else None
            yield Record(
                id=id,
                metadata=orjson.loads(text),
                sequence=sequence,
                vector=values_read,
                thumbnail=None if thumbnails is None else thumbnails.one(db, rid),
                positions=None if positions is None else positions.one(db, rid),
            )

    def _verified(self, found: list[tuple[Any, ...]]) -> tuple[NDArray[np.int64], Vector]:
        for rid, checksum, vector in found:
            if len(vector) != 4 * self.dim or vector_checksum(rid, vector) != checksum:
                raise StoreCorrupt(f"the vector of row {rid} is not what was written: its checksum differs")
        rids = np.fromiter((row[0] for row in found), np.int64, len(found))
        joined = np.frombuffer(b"".join(row[2] for row in found), dtype="<f4")
        return rids, joined.reshape(len(found), self.dim).astype(np.float32, copy=False)


def vector_checksum(rid: int, vector: bytes) -> int:
    """Of the bytes and of whose they are."""
    return zlib.crc32(vector, rid & 0xFFFFFFFF)


def row_checksum(rid: int, id: str, sequence: int, vector: int, metadata: str) -> int:
    """Over id, vector (through its own checksum) and metadata, and over what binds them together."""
    return zlib.crc32(metadata.encode(), zlib.crc32(f"{rid}\0{id}\0{sequence}\0{vector}\0".encode()))


def _array(rids: NDArray[np.int64]) -> Any:
    return apsw.carray(np.ascontiguousarray(rids, dtype=np.int64))  # pyright: ignore
