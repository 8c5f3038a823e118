"""Copies of pictures: equal files, and pictures whose 256 bits differ in few places."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from training.building.pair_table import PairTable
from training.building.picture_code import WORD_BITS, WORDS

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near duplicate"
_ROWS, _COLUMNS = 512, 4096  # codes of a bucket that are compared with each other at a time
BEST = "pixels DESC, rank, id"  # of copies the largest stays; of equally large ones chance decides


def drop_duplicates(table: PairTable) -> None:
    """Of pairs with byte-equal pictures the first by chance stays."""
    with table.db:
        table.db.execute(
            "UPDATE pairs SET state = ?, twin = best FROM (SELECT id AS one, first_value(id) OVER"
            f" (PARTITION BY picture ORDER BY {BEST}) AS best FROM pairs WHERE state = '')"
            " WHERE id = one AND one <> best",
            (DUPLICATE,),
        )


def drop_near_duplicates(table: PairTable, *, distance: int) -> None:
    """Largest pictures first, each stays unless a picture that stays is within `distance` bits of it.

    So of what stays no two are that near, and what goes has its twin among what stays. Exact: codes that differ in d
    bits agree in one of d + 1 bands (Manku et al., 2007). The codes are sorted by one band after the other on the disk;
    memory is a byte for each different code, and one bucket.
    """
    db = table.db
    db.executescript(
        "CREATE TEMP TABLE codes(place INTEGER PRIMARY KEY, a INTEGER, b INTEGER, c INTEGER, d INTEGER, best INTEGER);"
        "CREATE TEMP TABLE near(one INTEGER, other INTEGER, PRIMARY KEY(one, other)) WITHOUT ROWID;"
        "CREATE TEMP TABLE gone(place INTEGER PRIMARY KEY, keeper INTEGER)"
    )
    with db:
        db.execute(
            "INSERT INTO codes(a, b, c, d, best) SELECT a, b, c, d, id FROM (SELECT *, row_number() OVER"
            f" (PARTITION BY a, b, c, d ORDER BY {BEST}) AS n FROM pairs WHERE state = '')"
            f" WHERE n = 1 ORDER BY {BEST}"
        )
        for word, shift, width in bands(distance):
            for one, other in _near_in_band(table, word, shift, width, distance):
                rows = zip(one.tolist(), other.tolist(), strict=True)
                db.executemany("INSERT OR IGNORE INTO near VALUES(?, ?)", rows)
        db.executemany("INSERT INTO gone VALUES(?, ?)", _greedy(table))
        db.execute("CREATE UNIQUE INDEX temp.by_code ON codes(a, b, c, d)")
        db.execute(
            "UPDATE pairs SET state = ?, twin = stays FROM (SELECT pairs.id AS one, coalesce(kept.best, codes.best)"
            " AS stays FROM pairs JOIN codes USING(a, b, c, d) LEFT JOIN gone ON gone.place = codes.place"
            " LEFT JOIN codes AS kept ON kept.place = gone.keeper WHERE state = '') WHERE id = one AND one <> stays",
            (NEAR_DUPLICATE,),
        )
    for name in ("codes", "near", "gone"):
        db.execute(f"DROP TABLE temp.{name}")


def bands(distance: int) -> list[tuple[str, int, int]]:
    """(word, shift, width) of `distance` + 1 parts of the code, at least one of which two codes this near share.

    Raises:
        ValueError: a distance for which parts would be too short to tell pictures apart.
    """
    if not 0 <= distance <= 15:
        raise ValueError(f"near duplicates within {distance} of {WORDS * WORD_BITS} bits: expected 0 to 15")
    found: list[tuple[str, int, int]] = []
    for place, word in enumerate("abcd"):
        parts = (distance + WORDS - place) // WORDS  # distance + 1 in all four
        edges = np.linspace(0, WORD_BITS, parts + 1).astype(int).tolist()
        found += [(word, low, high - low) for low, high in zip(edges, edges[1:], strict=False) if parts]
    return found


def _near_in_band(
    table: PairTable, word: str, shift: int, width: int, distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of codes that share this band and are near: the later one, and the earlier one."""
    part = f"({word} >> {shift}) & {(1 << width) - 1}" if width < WORD_BITS else word
    rows = table.db.execute(f"SELECT {part} AS part, place, a, b, c, d FROM codes ORDER BY part, place")
    for _, found in groupby(rows, key=lambda row: row[0]):
        bucket = np.array(list(found), dtype=np.int64)[:, 1:]
        for start in range(0, len(bucket) - 1, _ROWS):
            for begin in range(start, len(bucket), _COLUMNS):
                block, rest = bucket[start : start + _ROWS], bucket[begin : begin + _COLUMNS]
                late, early = np.nonzero(_apart(rest, block) <= distance)
                follows = begin + late > start + early
                if follows.any():
                    yield rest[late[follows], 0], block[early[follows], 0]


def _apart(ones: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Bits in which codes differ, uint16 [ones, others]; columns 1 to 4 hold their words."""
    apart = np.zeros((len(ones), len(others)), dtype=np.uint16)
    for column in range(1, 1 + WORDS):
        words = np.bitwise_xor(ones[:, None, column], others[None, :, column])
        apart += np.bitwise_count(words.view(np.uint64))
    return apart


def _greedy(table: PairTable) -> Iterator[tuple[int, int]]:
    """(place, place of its keeper) of each code that goes; best ones come first."""
    codes = table.db.execute("SELECT coalesce(max(place), 0) FROM codes").fetchone()[0]
    gone = bytearray(codes + 1)
    for one, other in table.db.execute("SELECT one, other FROM near ORDER BY one, other"):
        if not gone[one] and not gone[other]:
            gone[one] = 1
            yield one, other
