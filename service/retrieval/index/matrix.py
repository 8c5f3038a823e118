"""Brute force for many queries at once: a matrix product over blocks of rows, and of each block only what may win.

FAISS compares each query with each row by itself, so a batch costs as much as its queries one by one. A matrix product
reads each row once for all of them; on the processors that were measured it is 6 to 12 times as fast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.retrieval.index.slots import Bits, Slot
from service.retrieval.records import Vector

# Fewer queries are better compared by FAISS, which needs no block of rows decoded.
LEAST_QUERIES = 10
_BLOCK_FLOATS = 1 << 21


def scan_blocks(
    queries: Vector, count: int, k: int, block: Callable[[int, int], Vector], *, allowed: Bits | None
) -> tuple[NDArray[np.float32], Slot]:
    """The best inner products [Q, k], falling, and their slots [Q, k]; -1 where there are fewer.

    block: rows start to stop as float32 [n, D]. allowed: one bit for each slot; None allows all.
    """
    scores = [np.zeros(0, np.float32) for _ in queries]
    slots = [np.zeros(0, np.int64) for _ in queries]
    least = np.full(len(queries), -np.inf, np.float32)
    step = 8 * max(32, _BLOCK_FLOATS // (8 * queries.shape[1]))  # so that blocks begin at whole bytes of bits
    for start in range(0, count, step):
        stop = min(start + step, count)
        chosen = None
        if allowed is not None:
            part = np.unpackbits(allowed[start // 8 : (stop + 7) // 8], bitorder="little")[: stop - start]
            chosen = np.flatnonzero(part)
            if not len(chosen):
                continue
        rows = block(start, stop)
        found = queries @ (rows if chosen is None or len(chosen) == len(rows) else rows[chosen]).T
        for query in np.flatnonzero((found > least[:, None]).any(axis=1)).tolist():
            places = np.flatnonzero(found[query] > least[query])
            new = found[query][places]
            places = start + (places if chosen is None else chosen[places])
            joined = np.concatenate([scores[query], new])
            at = np.concatenate([slots[query], places])
            if len(joined) >= k:
                keep = np.argpartition(-joined, k - 1)[:k]
                joined, at = joined[keep], at[keep]
                least[query] = joined.min()
            scores[query], slots[query] = joined, at
    return _padded(scores, slots, min(k, count))


def _padded(scores: list[NDArray[np.float32]], slots: list[Slot], k: int) -> tuple[NDArray[np.float32], Slot]:
    all_scores = np.full((len(scores), k), -np.inf, np.float32)
    all_slots = np.full((len(scores), k), -1, np.int64)
    for query, (one, at) in enumerate(zip(scores, slots, strict=True)):
        order = np.argsort(-one, kind="stable")
        all_scores[query, : len(one)], all_slots[query, : len(one)] = one[order], at[order]
    return all_scores, all_slots
