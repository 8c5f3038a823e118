"""Families of products against a brute-force search, and the split that keeps each together."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import SplitBy, SplitConfig, divided_by, load_config
from training.data.families import families, has_kin, split_by_family
from training.data.rows import Row, SplitRule

RECIPE = Path(__file__).parents[2] / "training" / "configs" / "fashion.toml"
RULE = SplitRule(modulo=5, validation=(2,), test=(1,))
TITLES = st.lists(st.sampled_from(["Red", "blue", "Nike", "Puma", "cap", "shirt", "Men"]), min_size=1, max_size=5)
ROWS = st.lists(st.tuples(st.integers(0, 60), TITLES.map(" ".join)), min_size=1, max_size=25, unique_by=lambda r: r[0])


def rows_of(pairs: list[tuple[int, str]]) -> list[Row]:
    return [Row(image=f"{number}.jpg", caption=title, group=number) for number, title in pairs]


def related(one: Row, other: Row) -> bool:
    first, second = set(one.caption.lower().split()), set(other.caption.lower().split())
    near = abs(one.group - other.group) <= 5 and len(first & second) / max(len(first), len(second)) >= 0.6
    return near or one.caption.lower() == other.caption.lower()


@given(ROWS)
def test_families_are_the_components_of_a_brute_force_search(pairs: list[tuple[int, str]]) -> None:
    rows = rows_of(pairs)
    label = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, j in combinations(range(len(rows)), 2):
            if label[i] != label[j] and related(rows[i], rows[j]):
                label = [label[i] if each == label[j] else each for each in label]
                changed = True
    members: dict[int, list[int]] = defaultdict(list)
    for at, name in enumerate(label):
        members[name].append(rows[at].group)
    assert families(rows).tolist() == [min(members[name]) for name in label]


@given(ROWS, ROWS)
def test_kin_are_equal_titles_and_near_numbers_with_like_titles(
    pairs: list[tuple[int, str]], others: list[tuple[int, str]]
) -> None:
    rows, training = rows_of(pairs), rows_of(others)
    assert has_kin(rows, training).tolist() == [any(related(row, other) for other in training) for row in rows]


@given(ROWS)
def test_no_family_is_in_two_splits_and_what_numbers_hold_out_is_not_trained_on(pairs: list[tuple[int, str]]) -> None:
    rows = rows_of(pairs)
    splits = split_by_family(rows, RULE)
    seen: dict[int, set[str]] = defaultdict(set)
    for row, family, split in zip(rows, families(rows).tolist(), splits, strict=True):
        if split is not None:
            seen[family].add(split)
        if RULE.of(row.group) == "test":
            assert split in ("test", None)
        if RULE.of(row.group) == "validation":
            assert split != "train"
    assert all(len(each) == 1 for each in seen.values())


def test_many_families_are_divided_in_the_proportion_of_the_remainders() -> None:
    rows = rows_of([(10 * number, f"thing {number}") for number in range(3000)])
    splits = split_by_family(rows, SplitRule(modulo=10, validation=(2,), test=(1,)))
    shares = [splits.count(name) / len(rows) for name in ("train", "validation", "test")]
    # Numbers end in 0, so nothing is held out by number.
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)


def test_a_family_of_repeated_titles_beyond_a_hundred_is_for_training() -> None:
    same = [(10 * number, "Basic Black Shirt") for number in range(120)]
    splits = split_by_family(rows_of(same), SplitRule(modulo=10, validation=(2,), test=tuple(range(3, 10))))
    assert set(splits) == {"train"}
    assert set(split_by_family(rows_of(same[:90]), SplitRule(modulo=2, validation=(), test=(0, 1)))) == {"test"}


@pytest.mark.parametrize(
    ("trained", "judged"), [("number", "family"), ("name", "family"), ("number", "name"), ("family", "name")]
)
def test_a_model_is_not_judged_by_a_split_whose_held_out_rows_it_has_seen(trained: str, judged: SplitBy) -> None:
    config = load_config(RECIPE, ["data.folder=x", f"data.split.by={trained}"])
    with pytest.raises(ValueError, match=f"trained on a split by {trained}: a split by {judged} would hold out rows"):
        divided_by(config, judged)


def test_a_model_trained_by_family_is_judged_by_number_too() -> None:
    config = load_config(RECIPE, ["data.folder=x", "data.split.by=family"])
    assert divided_by(config, "number") == load_config(RECIPE, ["data.folder=x"])
    assert divided_by(config, "family") == divided_by(config, None) == config


def test_a_recipe_may_ask_for_it() -> None:
    rows = rows_of([(1, "Puma Red Cap"), (2, "Puma Blue Cap"), (40, "Nike Shirt")])
    split = SplitConfig(by="family", modulo=10, validation=(2,), test=(1,))
    assert split.of(rows) == split_by_family(rows, split.rule())
    assert split.of(rows)[0] == split.of(rows)[1] or None in split.of(rows)[:2]
    assert split.model_copy(update={"by": "number"}).of(rows) == ["test", "validation", "train"]
