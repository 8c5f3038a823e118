"""Connections to the one SQLite file, and its errors in this project's words."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import apsw.sqlite_extra

from service.retrieval.errors import Interrupted, RetrievalError, StorageFailed, StorageFull, StoreCorrupt

# A page holds seven 512-wide vectors with 12 % to spare; at SQLite's 4 KiB one vector fills a page and half is lost.
PAGE_BYTES = 16_384
# SQLite's page checksums: 8 bytes of each page, checked at every read from disk, so a flipped bit is an error.
CHECKSUMS = "cksmvfs"
_CHECKSUM_BYTES = 8


def ensure_checksums() -> None:
    """Register the checksumming file layer that comes with apsw; once a process is enough.

    Raises:
        StorageFailed: this build of apsw has none.
    """
    if CHECKSUMS in apsw.vfs_names():
        return
    connection = apsw.Connection(":memory:")
    try:
        apsw.sqlite_extra.load(connection, "cksumvfs")
    except Exception as error:
        raise StorageFailed(f"apsw's page checksums (cksumvfs) cannot be loaded: {error}") from error
    finally:
        connection.close()


def open_writer(path: Path, *, vfs: str) -> apsw.Connection:
    """The one connection that writes and checkpoints. A commit is on disk when it returns."""
    connection = apsw.Connection(str(path), vfs=vfs)
    try:
        # Only an empty file takes these two; a file without checksums is not ours.
        run(connection, f"PRAGMA page_size={PAGE_BYTES}")
        connection.reserve_bytes(reserve=_CHECKSUM_BYTES)
        run(connection, "PRAGMA auto_vacuum=INCREMENTAL")
        mode = run(connection, "PRAGMA journal_mode=WAL")
        if mode != [("wal",)]:
            raise StorageFailed(f"{path} cannot use a write-ahead log, SQLite says {mode}")
        run(connection, "PRAGMA synchronous=FULL")
        run(connection, "PRAGMA cache_size=-16384")
        connection.set_busy_timeout(100)
        connection.wal_autocheckpoint(0)
        if connection.reserve_bytes() != _CHECKSUM_BYTES or run(connection, "PRAGMA checksum_verification") != [("1",)]:
            raise StoreCorrupt(f"{path} has no page checksums, so this project did not write it")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, *, vfs: str) -> apsw.Connection:
    """A connection that can only read, and never checkpoints."""
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.wal_autocheckpoint(0)
    connection.set_busy_timeout(2000)
    run(connection, "PRAGMA query_only=1")
    run(connection, "PRAGMA cache_size=-8192")
    return connection


def run(connection: apsw.Connection, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    return list(each(connection, statement, values))


def each(connection: apsw.Connection, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows of one statement as they come."""
    return connection.execute(statement, values)  # pyright: ignore[reportUnknownMemberType]


def run_many(connection: apsw.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """One statement for each of many value lists."""
    connection.executemany(statement, rows).fetchall()  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn SQLite's errors into StorageFull, StorageFailed or StoreCorrupt that name the file."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error


def translate(error: Exception, path: Path) -> RetrievalError:
    """What an error of SQLite or of the file system means to a caller."""
    if isinstance(error, RetrievalError):
        return error
    if isinstance(error, apsw.InterruptError):
        return Interrupted("stopped before it was done: the deadline passed, or nobody waits for it any more")
    extended = getattr(error, "extendedresult", 0)
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)) or extended in (
        apsw.SQLITE_IOERR_DATA,
        apsw.SQLITE_IOERR_CORRUPTFS,
    ):
        return StoreCorrupt(f"{path} is damaged: {error} (SQLite {extended})")
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno in (28, 122)):
        return StorageFull(f"no space left for {path.name}: nothing of the request was written")
    return StorageFailed(f"{path} cannot be read or written: {type(error).__name__} {error} (SQLite {extended})")
