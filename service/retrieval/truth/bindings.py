"""Reads the model that each collection of a folder is bound to, without opening the store."""

from __future__ import annotations

from pathlib import Path

import apsw

from service.retrieval.truth.database import CHECKSUMS, DATABASE, ensure_checksums, translated
from service.retrieval.truth.tables import read_list


def bound_models(folder: Path) -> dict[str, str]:
    """Collection -> `name@version`, for a folder that no process holds.

    The connection can only read: it changes neither the database nor its write-ahead log.

    Raises:
        StoreCorrupt, StorageFailed: the list cannot be read.
    """
    path = folder / DATABASE
    if not path.is_file():
        return {}
    ensure_checksums()
    with translated(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=CHECKSUMS)
        try:
            return {tables.name: tables.spec.model for tables in read_list(connection)}
        finally:
            connection.close()
