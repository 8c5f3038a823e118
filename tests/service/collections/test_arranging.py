"""Folding where cosines are exact: which hits are near enough, and whom a hit joins that is near to several."""

from __future__ import annotations

import numpy as np
import pytest

from service.collections.arranging import fold_near
from service.retrieval import StoredHit

HALF = [0.5, 0.5, 0.5, 0.5]
ROWS = {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0], "c": HALF, "d": [0.5, -0.5, 0.5, 0.5], "e": HALF}


def hits() -> list[StoredHit]:
    return [StoredHit(id, 1 - n / 10, {}, np.array(row, np.float32)) for n, (id, row) in enumerate(ROWS.items())]


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.5, {"a": ["c", "d", "e"], "b": []}),  # c is as near to b; a is the better one
        (0.51, {"a": [], "b": [], "c": ["e"], "d": []}),
        (1.0, {"a": [], "b": [], "c": ["e"], "d": []}),
    ],
)
def test_a_hit_joins_the_best_one_that_is_near(least: float, expected: dict[str, list[str]]) -> None:
    kept, folded = fold_near(hits(), least)
    assert {hit.id: [each.id for each in folded.get(hit.id, [])] for hit in kept} == expected
    assert all(each.cosine >= least for every in folded.values() for each in every)


def test_equal_vectors_are_near_duplicates_at_1() -> None:
    """Whatever rounding makes of their cosines."""
    rows = np.random.default_rng(0).standard_normal((200, 96)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    twice = [StoredHit(f"r{n}", 1 - n / 1000, {}, rows[n // 2]) for n in range(400)]
    kept, folded = fold_near(twice, 1.0)
    assert len(kept) == 200
    assert all(each.cosine <= 1 for every in folded.values() for each in every)
