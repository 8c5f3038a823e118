"""Small pictures of the rows of one collection in SQL, written and removed in the transaction of their rows.

Only a collection that keeps them has the table. What they take is counted as they come and go, because to add it up
would mean to read as many pages as there are pictures. The table of these totals is made in files of before when they
are opened.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import apsw

from service.retrieval.errors import StoreCorrupt
from service.retrieval.records import KeptThumbnails
from service.retrieval.truth.database import rows_of, run, run_many

MAX_THUMBNAIL_BYTES = 2**20
_VARIABLES = 500


def create_totals(db: apsw.Connection) -> None:
    run(
        db,
        "CREATE TABLE IF NOT EXISTS thumbnail_totals"
        " (number INTEGER PRIMARY KEY, pictures INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    )


def create_pictures(db: apsw.Connection, number: int) -> None:
    """The table of a new collection that keeps thumbnails."""
    run(
        db,
        f"CREATE TABLE thumbnails_{number} (rid INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, picture BLOB NOT NULL)",
    )
    run(db, "INSERT INTO thumbnail_totals VALUES (?, 0, 0)", (number,))


def drop_pictures(db: apsw.Connection, number: int) -> None:
    """Also of a collection that keeps none."""
    run(db, f"DROP TABLE IF EXISTS thumbnails_{number}")
    run(db, "DELETE FROM thumbnail_totals WHERE number = ?", (number,))


class ThumbnailTable:
    """Statements on the thumbnails of collection `number`, by row number; the caller brings the connection."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._table = f"thumbnails_{number}"

    def insert(self, db: apsw.Connection, pictures: Mapping[int, bytes]) -> None:
        """Pictures by the numbers of rows that are written in the same transaction."""
        if pictures:
            rows = ((rid, _checksum(rid, picture), picture) for rid, picture in pictures.items())
            run_many(db, f"INSERT INTO {self._table} VALUES (?, ?, ?)", rows)
            self._count(db, len(pictures), sum(map(len, pictures.values())))

    def remove(self, db: apsw.Connection, rids: Sequence[int]) -> None:
        """Those that are there of rows that are deleted in the same transaction."""
        pictures = size = 0
        for start in range(0, len(rids), _VARIABLES):
            part = rids[start : start + _VARIABLES]
            which = f"FROM {self._table} WHERE rid IN ({','.join('?' * len(part))})"
            [(found, bytes_found)] = run(db, f"SELECT count(*), ifnull(sum(length(picture)), 0) {which}", part)
            if found:
                run(db, f"DELETE {which}", part)
            pictures, size = pictures + found, size + bytes_found
        if pictures:
            self._count(db, -pictures, -size)

    def picture(self, db: apsw.Connection, rid: int) -> bytes | None:
        """Raises StoreCorrupt."""
        for checksum, picture in run(db, f"SELECT checksum, picture FROM {self._table} WHERE rid = ?", (rid,)):
            if not _is_sound(rid, checksum, picture):
                raise StoreCorrupt(f"the thumbnail of row {rid} is not what was written: its checksum differs")
            return picture
        return None

    def totals(self, db: apsw.Connection) -> KeptThumbnails:
        found = run(db, "SELECT pictures, bytes FROM thumbnail_totals WHERE number = ?", (self._number,))
        return KeptThumbnails(*found[0]) if found else KeptThumbnails(0, 0)

    def examined_after(self, db: apsw.Connection, rid: int, *, limit: int) -> Iterator[tuple[int, int, bool]]:
        """(row number, bytes, whether it is what was written) of the next pictures after `rid`."""
        statement = f"SELECT rid, checksum, picture FROM {self._table} WHERE rid > ? ORDER BY rid LIMIT ?"
        for found, checksum, picture in rows_of(db, statement, (rid, limit)):
            is_sound = _is_sound(found, checksum, picture)
            yield found, len(picture) if isinstance(picture, bytes) else 0, is_sound

    def _count(self, db: apsw.Connection, pictures: int, size: int) -> None:
        statement = "UPDATE thumbnail_totals SET pictures = pictures + ?, bytes = bytes + ? WHERE number = ?"
        run(db, statement, (pictures, size, self._number))


def _checksum(rid: int, picture: bytes) -> int:
    """Of the bytes and of whose they are."""
    return zlib.crc32(picture, rid & 0xFFFFFFFF)


def _is_sound(rid: int, checksum: int, picture: object) -> bool:
    return isinstance(picture, bytes) and _checksum(rid, picture) == checksum
