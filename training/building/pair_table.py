"""All pairs of a build in one SQLite file: what was found of them, and what became of each.

Memory is SQLite's page cache and one unit's lines at a time, however many pairs there are; sorting is done in files.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIVE = ""
_CACHE_KB = 64_000
_PAIRS = """
CREATE TABLE pairs(
    id INTEGER PRIMARY KEY,  -- in the order of units and of pairs in them
    unit INTEGER, place INTEGER, at INTEGER,
    state TEXT NOT NULL,     -- '' as long as nothing speaks against it, then why it was left out
    twin INTEGER,            -- the pair that it is a copy of
    rank INTEGER, draw INTEGER,  -- two numbers by chance, of the seed and of what the pair holds
    pair BLOB, picture BLOB, a INTEGER, b INTEGER, c INTEGER, d INTEGER, pixels INTEGER, score REAL, queries BLOB);
CREATE TABLE chosen(id INTEGER PRIMARY KEY, picked BLOB);
CREATE TABLE kept(place INTEGER PRIMARY KEY, id INTEGER);
"""


class PairTable:
    """The table in `path`, made anew; use `reopened` to read one that is complete."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.db = _connected(path)
        self.db.executescript(_PAIRS)

    def take_in(self, unit: int, facts: Path, *, seed: int) -> None:
        """The facts of the unit with this number; numbers rise. Raises OSError."""
        with facts.open("rb") as lines, self.db:
            rows = (_row(unit, json.loads(line), seed) for line in lines)
            marks = ", ".join("?" * 15)
            self.db.executemany(
                "INSERT INTO pairs(unit, place, at, state, rank, draw, pair, picture, a, b, c, d, pixels, score,"
                f" queries) VALUES({marks})",
                rows,
            )

    def counts(self) -> dict[str, int]:
        """How many pairs are in each state."""
        return dict(self.db.execute("SELECT state, count(*) FROM pairs GROUP BY state"))

    def alive(self) -> int:
        return self.db.execute("SELECT count(*) FROM pairs WHERE state = ''").fetchone()[0]

    def matches(self, queries: int, *, where: str = "state = ''", column: str = "queries") -> NDArray[np.int64]:
        """How many pairs contain each query, int64 [queries]; column picked: how many it has chosen."""
        found = np.zeros(queries, dtype=np.int64)
        for (held,) in self.db.execute(f"SELECT {column} FROM pairs LEFT JOIN chosen USING(id) WHERE {where}"):
            if held:
                found[numbers_of(held)] += 1
        return found

    def by_chance(self) -> Iterator[tuple[int, bytes, NDArray[np.uint32]]]:
        """(id, pair, its queries) of all that are alive, in the order of their ranks."""
        rows = "SELECT id, pair, queries FROM pairs WHERE state = '' ORDER BY rank, id"
        for number, pair, queries in self.db.execute(rows):
            yield number, pair, numbers_of(queries)

    def keep(self) -> int:
        """Number those that are alive, in their order, for `kept_rows`; how many."""
        with self.db:
            self.db.execute("INSERT INTO kept(id) SELECT id FROM pairs WHERE state = '' ORDER BY id")
        return self.db.execute("SELECT count(*) FROM kept").fetchone()[0]

    def close(self) -> None:
        self.db.close()


def reopened(path: Path) -> sqlite3.Connection:
    """For reading, in any process."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def kept_rows(db: sqlite3.Connection, start: int, count: int) -> Iterator[dict[str, Any]]:
    """Kept pairs `start` to `start + count` in order, with the queries that they were chosen for."""
    columns = ("unit", "place", "at", "picture", "score", "queries", "chosen")
    rows = db.execute(
        "SELECT unit, pairs.place, at, picture, score, queries, picked FROM kept"
        " JOIN pairs USING(id) LEFT JOIN chosen USING(id) WHERE kept.place > ? AND kept.place <= ? ORDER BY kept.place",
        (start, start + count),
    )
    for row in rows:
        yield dict(zip(columns, row, strict=True))


def numbers_of(blob: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(blob, dtype="<u4")


def blob_of(numbers: Sequence[int]) -> bytes:
    return np.array(numbers, dtype="<u4").tobytes()


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    # It is made again when it was cut: nothing is gained by a journal.
    db.executescript(
        f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KB}; PRAGMA temp_store=FILE"
    )
    return db


def _row(unit: int, fact: dict[str, Any], seed: int) -> tuple[Any, ...]:
    if fact["fault"] is not None:
        return (unit, fact["i"], fact["at"], fact["fault"], *[None] * 11)
    pair, code = bytes.fromhex(fact["pair"]), bytes.fromhex(fact["code"])
    drawn = hashlib.blake2b(seed.to_bytes(8, "big") + pair, digest_size=16).digest()
    width, height = fact["size"]
    return (
        unit,
        fact["i"],
        fact["at"],
        ALIVE,
        _signed(drawn[:8]),
        _signed(drawn[8:]),
        pair,
        bytes.fromhex(fact["picture"]),
        *(_signed(code[start : start + 8]) for start in range(0, 32, 8)),
        width * height,
        fact.get("score"),
        blob_of(fact["queries"]),
    )


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)
