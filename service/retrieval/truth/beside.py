"""Blobs that lie beside the rows of one collection in SQL, written and removed in the transaction of their row.

Only a collection that keeps such things has the table. What they take is counted as they come and go, because to add it
up would mean to read as many pages as there are things. The tables of these totals are made in files of before when
they are opened.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apsw

from service.retrieval.errors import StoreCorrupt
from service.retrieval.records import KeptTotals
from service.retrieval.truth.database import rows_of, run, run_many

_VARIABLES = 500


@dataclass(frozen=True)
class BesideKind:
    """What is kept: names of its tables and columns, and what one of it and all of them are called in messages."""

    tables: str
    totals: str
    column: str
    counted: str
    one: str
    many: str

    def create_totals(self, db: apsw.Connection) -> None:
        run(
            db,
            f"CREATE TABLE IF NOT EXISTS {self.totals}"
            f" (number INTEGER PRIMARY KEY, {self.counted} INTEGER NOT NULL, bytes INTEGER NOT NULL)",
        )

    def create(self, db: apsw.Connection, number: int) -> None:
        """The table of a new collection that keeps them."""
        run(
            db,
            f"CREATE TABLE {self.tables}_{number}"
            f" (rid INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, {self.column} BLOB NOT NULL)",
        )
        run(db, f"INSERT INTO {self.totals} VALUES (?, 0, 0)", (number,))

    def drop(self, db: apsw.Connection, number: int) -> None:
        """Also of a collection that keeps none."""
        run(db, f"DROP TABLE IF EXISTS {self.tables}_{number}")
        run(db, f"DELETE FROM {self.totals} WHERE number = ?", (number,))


class BesideTable:
    """Statements on what collection `number` keeps of one kind, by row number; the caller brings the connection."""

    def __init__(self, kind: BesideKind, number: int) -> None:
        self.kind = kind
        self._number = number
        self._table = f"{kind.tables}_{number}"

    def insert(self, db: apsw.Connection, kept: Mapping[int, bytes]) -> None:
        """By the numbers of rows that are written in the same transaction."""
        if kept:
            rows = ((rid, _checksum(rid, data), data) for rid, data in kept.items())
            run_many(db, f"INSERT INTO {self._table} VALUES (?, ?, ?)", rows)
            self._count(db, len(kept), sum(map(len, kept.values())))

    def remove(self, db: apsw.Connection, rids: Sequence[int]) -> None:
        """What is there of rows that are deleted in the same transaction."""
        count = size = 0
        for start in range(0, len(rids), _VARIABLES):
            part = rids[start : start + _VARIABLES]
            which = f"FROM {self._table} WHERE rid IN ({','.join('?' * len(part))})"
            [(found, bytes_found)] = run(
                db, f"SELECT count(*), ifnull(sum(length({self.kind.column})), 0) {which}", part
            )
            if found:
                run(db, f"DELETE {which}", part)
            count, size = count + found, size + bytes_found
        if count:
            self._count(db, -count, -size)

    def one(self, db: apsw.Connection, rid: int) -> bytes | None:
        """Raises StoreCorrupt."""
        return self.several(db, [rid]).get(rid)

    def several(self, db: apsw.Connection, rids: Iterable[int]) -> dict[int, bytes]:
        """What is there, by row number. Raises StoreCorrupt."""
        statement = f"SELECT checksum, {self.kind.column} FROM {self._table} WHERE rid = ?"
        found: dict[int, bytes] = {}
        for rid in rids:
            for checksum, data in run(db, statement, (rid,)):
                if not _is_sound(rid, checksum, data):
                    raise StoreCorrupt(
                        f"the {self.kind.one} of row {rid} is not what was written: its checksum differs"
                    )
                found[rid] = data
        return found

    def totals(self, db: apsw.Connection) -> KeptTotals:
        statement = f"SELECT {self.kind.counted}, bytes FROM {self.kind.totals} WHERE number = ?"
        found = run(db, statement, (self._number,))
        return KeptTotals(*found[0]) if found else KeptTotals(0, 0)

    def examined_after(self, db: apsw.Connection, rid: int, *, limit: int) -> Iterator[tuple[int, int, bool]]:
        """(row number, bytes, whether it is what was written) of what comes next after `rid`."""
        statement = f"SELECT rid, checksum, {self.kind.column} FROM {self._table} WHERE rid > ? ORDER BY rid LIMIT ?"
        for found, checksum, data in rows_of(db, statement, (rid, limit)):
            is_sound = _is_sound(found, checksum, data)
            yield found, len(data) if isinstance(data, bytes) else 0, is_sound

    def _count(self, db: apsw.Connection, count: int, size: int) -> None:
        counted = self.kind.counted
        statement = f"UPDATE {self.kind.totals} SET {counted} = {counted} + ?, bytes = bytes + ? WHERE number = ?"
        run(db, statement, (count, size, self._number))


def _checksum(rid: int, data: bytes) -> int:
    """Of the bytes and of whose they are."""
    return zlib.crc32(data, rid & 0xFFFFFFFF)


def _is_sound(rid: int, checksum: int, data: object) -> bool:
    return isinstance(data, bytes) and _checksum(rid, data) == checksum
