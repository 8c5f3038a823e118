"""Connections to the one SQLite file, and its errors in this project's words."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import apsw.sqlite_extra

from service.retrieval.errors import (
    Interrupted,
    RetrievalError,
    StatementRefused,
    StorageFailed,
    StorageFull,
    StoreCorrupt,
)

log = logging.getLogger("clipworks.retrieval")
# A page holds seven 512-wide vectors with 12 % to spare; at SQLite's 4 KiB one vector fills a page and half is lost.
PAGE_BYTES = 16_384
# SQLite's page checksums: 8 bytes of each page, checked at every read from disk, so a flipped bit is an error.
DATABASE = "collections.sqlite3"  # in its data folder
CHECKSUMS = "cksmvfs"
_CHECKSUM_BYTES = 8
_DAMAGE = frozenset({apsw.SQLITE_IOERR_DATA, apsw.SQLITE_IOERR_CORRUPTFS})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


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
            raise StorageFailed(f"{path.name} cannot use a write-ahead log, SQLite says {mode}")
        run(connection, "PRAGMA synchronous=FULL")
        run(connection, "PRAGMA cache_size=-16384")
        connection.set_busy_timeout(100)
        connection.wal_autocheckpoint(0)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # see open_reader
        if connection.reserve_bytes() != _CHECKSUM_BYTES or run(connection, "PRAGMA checksum_verification") != [("1",)]:
            raise StoreCorrupt(f"{path.name} has no page checksums, so this project did not write it")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, *, vfs: str) -> apsw.Connection:
    """A connection that can only read.

    Neither kind checkpoints when it is closed: the log does, which tells the witness before.
    """
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.set_busy_timeout(2000)
    run(connection, "PRAGMA query_only=1")
    run(connection, "PRAGMA cache_size=-8192")
    return connection


def run(connection: apsw.Connection, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    return list(rows_of(connection, statement, values))


def rows_of(connection: apsw.Connection, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows of one statement as they come."""
    return connection.execute(statement, values)  # pyright: ignore[reportUnknownMemberType]


def run_many(connection: apsw.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """One statement for each of many value lists."""
    connection.executemany(statement, rows).fetchall()  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn errors of SQLite and of the file system into those of service.retrieval.errors, and log what they hide."""
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise translate(error, path) from error


def translate(error: Exception, path: Path, *, system_errno: int = 0) -> RetrievalError:
    """What an error of SQLite or of the file system means to a caller.

    The message names the file, for it goes to clients; its folder and SQLite's own words go to the log.
    system_errno: what the operating system said, where the connection knows (SQLite folds a quota into EIO).
    """
    if isinstance(error, RetrievalError):
        return error
    if isinstance(error, apsw.InterruptError):
        return Interrupted("stopped before it was done: the deadline passed, or nobody waits for it any more")
    extended = getattr(error, "extendedresult", 0)
    number = (error.errno if isinstance(error, OSError) else system_errno) or 0
    made = _meaning(error, path.name, extended, number)
    log.error("%s: %s %s (SQLite %s, errno %s)", path, type(error).__name__, error, extended, number)
    return made


def is_system_error(error: Exception) -> bool:
    """Whether the operating system's own number says more than SQLite's."""
    return isinstance(error, (apsw.IOError, apsw.CantOpenError))


def _meaning(error: Exception, name: str, extended: int, number: int) -> RetrievalError:
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)) or extended in _DAMAGE:
        return StoreCorrupt(f"{name} is damaged: SQLite says {extended}, and the server's log has the rest")
    if isinstance(error, apsw.FullError) or number in _NO_SPACE:
        return StorageFull(f"no space left for {name}: nothing of the request was written")
    if isinstance(error, (apsw.SQLError, apsw.TooBigError, apsw.RangeError)):
        return StatementRefused("SQLite refuses the statement; a simpler one may be taken")
    if number in _NO_DESCRIPTORS:
        return StorageFailed(f"{name} cannot be opened: the server has too many files open; try again soon")
    reason = os.strerror(number) if number else type(error).__name__
    return StorageFailed(f"{name} cannot be read or written: {reason} (SQLite {extended})")
