"""The choice of pairs: against references in plain Python, over many seeds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.building.raw import states, table_of
from training.building.balance import (
    LOW_SCORE,
    OVER_THE_CAP,
    OVER_THE_TOTAL,
    Balance,
    balance,
    drop_low_scores,
    drop_over_total,
    effective,
)
from training.building.pair_table import numbers_of

TEXTS = ("a", "red mug", "red", "owl")
MATCHES = st.lists(st.sets(st.integers(0, 3), min_size=1).map(sorted), max_size=25)


def chosen_of(
    folder: Path,
    matches: Sequence[Sequence[int]],
    kind: Balance,
    *,
    most: int | None,
    total: int | None = None,
    seed: int = 0,
) -> tuple[dict[int, list[int]], list[int], int | None]:
    """(pair -> the queries that chose it, pairs by rank, the cap)."""
    table = table_of(folder / "t", [{"queries": queries} for queries in matches], seed=seed)
    by_rank = [row[0] - 1 for row in table.by_chance()]
    cap = balance(table, kind, TEXTS, most=most, total=total, seed=seed)
    found = {n - 1: numbers_of(blob).tolist() for n, blob in table.db.execute("SELECT id, picked FROM chosen")}
    assert states(table) == ["" if number in found else OVER_THE_CAP for number in range(len(matches))]
    table.close()
    return found, by_rank, cap


@settings(max_examples=25)
@given(matches=MATCHES, most=st.integers(1, 8), seed=st.integers(0, 9))
def test_wit_every_query_chooses_its_first_pairs_by_chance(matches: list[list[int]], most: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found, by_rank, _ = chosen_of(Path(folder), matches, "wit", most=most, seed=seed)
    expected: dict[int, list[int]] = {}
    for query in range(len(TEXTS)):
        for pair in [pair for pair in by_rank if query in matches[pair]][:most]:
            expected.setdefault(pair, []).append(query)
    assert found == expected
    assert all(count <= most for count in Counter(query for chosen in found.values() for query in chosen).values())


def test_metaclip_every_query_chooses_with_its_chance(tmp_path: Path) -> None:
    """Over 30 seeds chosen `most` times in the mean; queries choose on their own."""
    matches, most, seeds = [[0, 2]] * 40 + [[0]] * 40 + [[3]] * 5, 8, 30
    found = [chosen_of(tmp_path, matches, "metaclip", most=most, seed=seed)[0] for seed in range(seeds)]
    chosen = Counter(query for each in found for queries in each.values() for query in queries)
    assert chosen[3] == seeds * 5  # no more than most: all of them
    for query in (0, 2):
        assert abs(chosen[query] / seeds - most) < 4 * (most / seeds) ** 0.5
    kept = np.mean([sum(pair < 40 for pair in each) for each in found])
    expected = 40 * (1 - (1 - most / 80) * (1 - most / 40))
    assert abs(kept - expected) < 4 * (expected / seeds) ** 0.5
    assert len({tuple(each) for each in found}) == seeds


@pytest.mark.parametrize("kind", ["wit", "metaclip"])
def test_what_a_pair_decides_does_not_depend_on_other_queries(tmp_path: Path, kind: Balance) -> None:
    """A query more, and a smaller cap, only ever add and take away."""
    rng = np.random.default_rng(0)
    matches = [sorted({int(rng.integers(3)), int(rng.integers(3))}) for _ in range(60)]
    few, more = (chosen_of(tmp_path, matches, kind, most=most)[0] for most in (4, 9))
    wider = chosen_of(
        tmp_path, [[*queries, 3] if pair % 2 else queries for pair, queries in enumerate(matches)], kind, most=9
    )
    for pair, queries in few.items():
        assert {*queries} <= {*more[pair]}
    assert {
        pair: [query for query in queries if query < 3] for pair, queries in wider[0].items() if pair in more
    } == more


@pytest.mark.parametrize("kind", ["wit", "metaclip"])
def test_a_total_is_made_by_the_smallest_cap(tmp_path: Path, kind: Balance) -> None:
    matches = [[0] if number % 3 else [0, 2] for number in range(50)] + [[3]] * 7
    found, _, cap = chosen_of(tmp_path, matches, kind, most=None, total=20)
    assert cap is not None
    assert len(found) >= 20 > len(chosen_of(tmp_path, matches, kind, most=cap - 1)[0])
    assert len(chosen_of(tmp_path, matches, kind, most=None, total=999)[0]) == len(matches)
    assert chosen_of(tmp_path, matches, kind, most=None)[2] == 20_000
    assert chosen_of(tmp_path, [], kind, most=None, total=5) == ({}, [], 1)


@given(scores=st.lists(st.integers(0, 9), min_size=1, max_size=20), share=st.floats(0, 1))
@settings(max_examples=25)
def test_the_best_share_stays_with_ties(scores: list[int], share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = table_of(Path(folder) / "t", [{"score": score} for score in scores])
        least = drop_low_scores(table, share=share, least=None)
        found = states(table)
        table.close()
    edge = sorted(scores, reverse=True)[max(1, round(share * len(scores))) - 1]
    assert least == edge
    assert found == [LOW_SCORE if score < edge else "" for score in scores]


def test_over_the_total_by_chance(tmp_path: Path) -> None:
    left: Counter[int] = Counter()
    for seed in range(40):
        table = table_of(tmp_path / "t", [{}] * 8, seed=seed)
        drop_over_total(table, 2)
        left.update(number for number, state in enumerate(states(table)) if not state)
        assert states(table).count(OVER_THE_TOTAL) == 6
        table.close()
    assert len(left) == 8
    assert max(left.values()) < 22


def test_as_even_as_so_many() -> None:
    assert effective(np.array([5, 5, 0, 5])) == pytest.approx(3)
    assert effective(np.array([0])) == pytest.approx(1)
