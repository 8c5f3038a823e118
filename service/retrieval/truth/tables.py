"""The list of collections of one database file, and the tables of each.

Rows are immutable: an update deletes a row and inserts one with a new row number (`rid`), which is never used again.
So row numbers grow in the order of commits, and an index needs no log to catch up: rows it lacks have larger numbers,
rows that are gone are dead.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from service.retrieval.errors import StoreCorrupt
from service.retrieval.paths import readings, sql_path
from service.retrieval.records import CollectionSpec
from service.retrieval.truth.database import run
from service.retrieval.truth.positions import POSITIONS
from service.retrieval.truth.thumbnails import THUMBNAILS

FORMAT = 1


@dataclass(frozen=True)
class Tables:
    """A collection's identity in the file. `epoch` is of these rows alone, so a cache of other rows never fits."""

    number: int
    name: str
    spec: CollectionSpec
    epoch: str


@dataclass(frozen=True)
class Counters:
    """`sequence` grows by one with each change, `last_rid` with each row; `rows` are those alive."""

    sequence: int
    rows: int
    last_rid: int


NOTHING = Counters(0, 0, 0)


def create_list(db: apsw.Connection) -> None:
    """Make the list of collections, or check that the file's format is ours.

    Raises:
        StoreCorrupt: a newer format, or none.
    """
    found = run(db, "PRAGMA user_version")[0][0]
    if found == FORMAT:
        return
    if found != 0 or run(db, "SELECT count(*) FROM sqlite_schema") != [(0,)]:
        raise StoreCorrupt(f"the database has format {found}, this version of clipworks reads format {FORMAT}")
    run(
        db,
        "CREATE TABLE collections (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,"
        " spec TEXT NOT NULL, epoch TEXT NOT NULL, ready INTEGER NOT NULL,"
        " sequence INTEGER NOT NULL, row_count INTEGER NOT NULL, last_rid INTEGER NOT NULL)",
    )
    run(db, f"PRAGMA user_version={FORMAT}")


def read_list(db: apsw.Connection) -> list[Tables]:
    """Collections that are complete, by number. Raises StoreCorrupt."""
    found: list[Tables] = []
    for number, name, spec, epoch in run(
        db, "SELECT number, name, spec, epoch FROM collections WHERE ready ORDER BY number"
    ):
        try:
            found.append(Tables(number, name, CollectionSpec.model_validate_json(spec), epoch))
        except ValueError as error:
            raise StoreCorrupt(f"collection {name!r} has a specification that cannot be read: {error}") from None
    return found


def insert_collection(db: apsw.Connection, name: str, spec: CollectionSpec, *, epoch: str, ready: bool) -> Tables:
    """Add the entry, the tables, and an index for each declared field that is no list."""
    run(
        db,
        "INSERT INTO collections (name, spec, epoch, ready, sequence, row_count, last_rid)"
        " VALUES (?, ?, ?, ?, 0, 0, 0)",
        (name, spec.model_dump_json(), epoch, int(ready)),
    )
    number = db.last_insert_rowid()
    run(
        db,
        f"CREATE TABLE items_{number} (rid INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
        " sequence INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    )
    run(db, f"CREATE TABLE vectors_{number} (rid INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, vector BLOB NOT NULL)")
    run(db, f"CREATE TABLE metadata_{number} (rid INTEGER PRIMARY KEY, document TEXT NOT NULL)")
    if spec.thumbnails:
        THUMBNAILS.create(db, number)
    if spec.rerank is not None:
        POSITIONS.create(db, number)
    ensure_indexes(db, number, spec)
    return Tables(number, name, spec, epoch)


def ensure_indexes(db: apsw.Connection, number: int, spec: CollectionSpec) -> None:
    """An index for each declared field that is no list, as filters ask for it.

    Files of before had another one for names with two readings, which saw only the nested one.
    """
    for place, (field, kind) in enumerate(sorted(spec.metadata_schema.items())):
        if kind.endswith("[]"):
            continue
        name = f"field_{number}_{place}"
        if len(readings(field)) > 1:
            run(db, f"DROP INDEX IF EXISTS {name}")
            name = f"dotted_{number}_{place}"
        run(db, f"CREATE INDEX IF NOT EXISTS {name} ON metadata_{number} ({extract(field)})")


def read_counters(db: apsw.Connection, number: int) -> Counters | None:
    """None: the collection is gone."""
    found = run(db, "SELECT sequence, row_count, last_rid FROM collections WHERE number = ?", (number,))
    return Counters(*found[0]) if found else None


def write_counters(db: apsw.Connection, number: int, counters: Counters) -> None:
    run(
        db,
        "UPDATE collections SET sequence = ?, row_count = ?, last_rid = ? WHERE number = ?",
        (counters.sequence, counters.rows, counters.last_rid, number),
    )


def renew_epoch(db: apsw.Connection, number: int, epoch: str) -> None:
    """Disown every cache of these rows: numbers that a lost change had used will be used again."""
    run(db, "UPDATE collections SET epoch = ? WHERE number = ?", (epoch, number))


def mark_ready(db: apsw.Connection, number: int, name: str) -> None:
    """Show a restored collection under its name."""
    run(db, "UPDATE collections SET ready = 1, name = ? WHERE number = ?", (name, number))


def drop_collection(db: apsw.Connection, number: int) -> None:
    for table in ("items", "vectors", "metadata"):
        run(db, f"DROP TABLE {table}_{number}")
    THUMBNAILS.drop(db, number)
    POSITIONS.drop(db, number)
    run(db, "DELETE FROM collections WHERE number = ?", (number,))


def drop_unready(db: apsw.Connection) -> int:
    """Remove what an interrupted restore left; the number of such collections."""
    found = run(db, "SELECT number FROM collections WHERE NOT ready")
    for (number,) in found:
        drop_collection(db, number)
    return len(found)


def extract(field: str) -> str:
    """The expression of an indexed field; a query uses the index only if it repeats these very words."""
    return f"json_extract(document, {sql_path(field)})"
