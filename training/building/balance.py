"""The choice among clean pairs: those that fit best, at most so many a query, and so many in all."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.building.pair_table import PairTable, blob_of

LOW_SCORE, OVER_THE_CAP, OVER_THE_TOTAL = "low score", "over the cap", "over the total"
CLIPS_MOST = 20_000
Balance = Literal["wit", "metaclip", "none"]


def drop_low_scores(table: PairTable, *, share: float | None, least: float | None) -> float | None:
    """Keep the best `share` of what is alive, or what scores `least`; the lowest score that stays. (Fang et al., 2024)

    Ties at the edge stay.
    """
    db = table.db
    if share is not None and (alive := table.alive()):
        stays = max(1, round(share * alive))
        ranked = "SELECT score FROM pairs WHERE state = '' ORDER BY score DESC LIMIT 1 OFFSET ?"
        least = db.execute(ranked, (stays - 1,)).fetchone()[0]
    if least is not None:
        with db:
            db.execute("UPDATE pairs SET state = ? WHERE state = '' AND score < ?", (LOW_SCORE, least))
    return least


def balance(
    table: PairTable, kind: Balance, texts: Sequence[str], *, most: int | None, total: int | None, seed: int
) -> int | None:
    """Leave out what makes frequent queries frequent; what stays is noted with the queries it was chosen for.

    wit: every query chooses the first `most` of its pairs by chance, and a pair stays that was chosen by one (Radford
    et al., 2021). metaclip: every query of n pairs chooses each of them with the chance `most` / n, on its own, and a
    pair stays that was chosen by one (Xu et al., 2024). Neither depends on the order of the pairs.

    most: None is the least with which `total` pairs stay, found in some twenty passes over the queries of all pairs,
    or CLIP's 20,000 where there is no total. What it was is returned.
    """
    if kind == "none":
        return None
    counts = table.matches(len(texts))

    def choices(most: int) -> Iterator[tuple[int, bytes]]:
        return _capped(table, counts, most) if kind == "wit" else _drawn(table, counts, texts, most, seed)

    if most is None and total is None:
        most = CLIPS_MOST
    elif most is None:
        # Both kinds choose more with a larger number, and everything with that of the most frequent query.
        most = 1 + bisect_left(
            range(1, int(counts.max(initial=1)) + 1), total or 0, key=lambda each: sum(1 for _ in choices(each))
        )
        most = min(most, int(counts.max(initial=1)))
    with table.db:
        table.db.executemany("INSERT INTO chosen VALUES(?, ?)", choices(most))
        table.db.execute(
            "UPDATE pairs SET state = ? WHERE state = '' AND id NOT IN (SELECT id FROM chosen)", (OVER_THE_CAP,)
        )
    return most


def drop_over_total(table: PairTable, total: int) -> None:
    """`total` of what is alive, by chance; another chance than that of the balance."""
    alive = "SELECT id FROM pairs WHERE state = '' ORDER BY draw, id LIMIT -1 OFFSET ?"
    with table.db:
        table.db.execute(f"UPDATE pairs SET state = ? WHERE id IN ({alive})", (OVER_THE_TOTAL, total))


def effective(counts: NDArray[np.int64]) -> float:
    """How many queries of equal counts would be as even: e to the entropy of their shares."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _capped(table: PairTable, counts: NDArray[np.int64], most: int) -> Iterator[tuple[int, bytes]]:
    taken = np.zeros(len(counts), dtype=np.int64)
    for number, _, queries in table.by_chance():
        room = queries[taken[queries] < most]
        taken[room] += 1
        if len(room):
            yield number, blob_of(room.tolist())


def _drawn(
    table: PairTable, counts: NDArray[np.int64], texts: Sequence[str], most: int, seed: int
) -> Iterator[tuple[int, bytes]]:
    chances = [min(1.0, most / count) if count else 0.0 for count in counts.tolist()]
    for number, pair, queries in table.by_chance():
        chosen = [query for query in map(int, queries) if _uniform(seed, pair, texts[query]) < chances[query]]
        if chosen:
            yield number, blob_of(chosen)


def _uniform(seed: int, pair: bytes, query: str) -> float:
    """In [0, 1): of the pair and the query's words, so that other queries and other pairs change nothing."""
    drawn = hashlib.blake2b(pair + query.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return math.ldexp(int.from_bytes(drawn, "big") >> 11, -53)
