"""Second names of collections, which can be moved from one to another at once.

An alias points to a collection's number, not to its name, so a collection may be renamed under it. The table is made in
files of before when they are opened; a version that does not know it keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from service.retrieval.truth.database import run


def create_table(db: apsw.Connection) -> None:
    run(db, "CREATE TABLE IF NOT EXISTS aliases (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")


def read_all(db: apsw.Connection) -> Mapping[str, int]:
    """Number of the collection by alias; an alias whose name or collection is not as it must be is left out."""
    statement = (
        "SELECT a.name, a.number FROM aliases AS a JOIN collections AS c ON c.number = a.number"
        " WHERE c.ready AND a.name NOT IN (SELECT name FROM collections)"
    )
    return dict(run(db, statement))


def point(db: apsw.Connection, name: str, number: int, *, renamed: tuple[int, str] | None) -> None:
    """Let an alias name a collection from this transaction on. renamed: a collection's number and its new name."""
    if renamed:
        run(db, "UPDATE collections SET name = ? WHERE number = ?", (renamed[1], renamed[0]))
    run(db, "INSERT OR REPLACE INTO aliases (name, number) VALUES (?, ?)", (name, number))


def remove(db: apsw.Connection, name: str) -> None:
    run(db, "DELETE FROM aliases WHERE name = ?", (name,))
