"""Closed forms that take a subspace out, against the formulas as they are printed and against least squares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.debias.closed_forms import applied, calibrated, differences, group_differences, removal, unit_rows
from training.debias.prompts_file import GroupPrompts, read_prompts

RNG = np.random.default_rng(0)
SPAN = RNG.normal(size=(3, 12))
NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompts", "pairs", "x"]), inner),
    max_leaves=8,
)


def test_removal_is_the_printed_formula() -> None:
    columns, found = SPAN.T, removal(SPAN)
    np.testing.assert_allclose(found, np.eye(12) - columns @ np.linalg.inv(columns.T @ columns) @ columns.T, atol=1e-12)
    np.testing.assert_allclose(found @ found, found, atol=1e-12)
    np.testing.assert_allclose(SPAN @ found.T, 0, atol=1e-12)
    twice = np.vstack([SPAN, SPAN.sum(axis=0)])  # V^T V has no inverse here
    np.testing.assert_allclose(removal(twice), found, atol=1e-12)
    np.testing.assert_allclose(removal(1e-3 * SPAN), found, atol=1e-9)


def test_differences_keep_what_prompts_have_in_common() -> None:
    common = np.zeros(12)
    common[0] = 5
    prompts = unit_rows(common + np.pad(np.array([[1.0], [-1.0]]), ((0, 0), (1, 10))))
    left = applied(removal(differences(prompts)), prompts)
    np.testing.assert_allclose(left, np.eye(12)[[0, 0]], atol=1e-12)
    assert not applied(removal(prompts), prompts).any()  # of the prompts themselves nothing is left


@pytest.mark.parametrize("weight", [0.0, 3.0, 1e9])
def test_calibration_is_the_least_squares_solution(weight: float) -> None:
    projection, first, second = removal(SPAN), RNG.normal(size=(5, 12)), RNG.normal(size=(5, 12))
    found = calibrated(projection, first, second, weight=weight)
    apart = unit_rows(first) - unit_rows(second)
    # Row by row: min |p - projection|^2 + weight / S |apart p|^2.
    stacked = np.vstack([np.eye(12), np.sqrt(weight / 5) * apart])
    wanted = np.linalg.lstsq(stacked, np.vstack([projection.T, np.zeros((5, 12))]), rcond=None)[0].T
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if weight == 1e9:
        np.testing.assert_allclose(found @ apart.T, 0, atol=1e-6)


def test_groups_are_compared_label_by_label() -> None:
    """Labels lie on one axis, groups on another; nine in ten pictures of a label are of one group."""
    labels = ["p"] * 10 + ["q"] * 10
    groups = ["A"] * 9 + ["B"] + ["B"] * 9 + ["A"]
    base = np.array([[1.0, 0, 0, 0.3 * (group == "A")] for group in groups])
    rows = unit_rows(base + np.array([[0, label == "p", 0, 0] for label in labels]))
    within, across = group_differences(rows, groups, labels), group_differences(rows, groups)
    assert abs(within[0, 3]) > 5 * abs(within[0, 1])
    assert abs(across[0, 1]) > abs(across[0, 3])  # the label is taken for the group
    np.testing.assert_allclose(within.sum(axis=0), 0, atol=1e-12)
    means = [rows[[g == "A" and one == label for g, one in zip(groups, labels, strict=True)]].mean(0) for label in "pq"]
    others = [
        rows[[g == "B" and one == label for g, one in zip(groups, labels, strict=True)]].mean(0) for label in "pq"
    ]
    np.testing.assert_allclose(within[0], (np.mean(means, axis=0) - np.mean(others, axis=0)) / 2)


def test_what_cannot_be_taken_out() -> None:
    for spanning, said in ((np.zeros((2, 4)), "span 0 of 4"), (np.eye(4), "span 4 of 4")):
        with pytest.raises(ValueError, match=said):
            removal(spanning)
    with pytest.raises(ValueError, match="0 pairs"):
        calibrated(np.eye(2), np.empty((0, 2)), np.empty((0, 2)), weight=1)
    with pytest.raises(ValueError, match="no label has pictures of two groups"):
        group_differences(np.eye(2), ["A", "B"], ["p", "q"])
    with pytest.raises(ValueError, match="zero or not finite"):
        unit_rows(np.zeros((1, 3)))


def test_prompts_are_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa man\n\n a woman \n")
    (tmp_path / "p.json").write_text(json.dumps({"prompts": ["a man", "a woman"], "pairs": [["a king", "a queen"]]}))
    assert read_prompts(tmp_path / "p.txt").prompts == read_prompts(tmp_path / "p.json").prompts == ("a man", "a woman")
    assert read_prompts(tmp_path / "p.json").pairs == (("a king", "a queen"),)
    for text, said in (
        ('{"prompts": ["a"]}', "prompts: Tuple should have at least 2"),
        ('{"prompts": ["a", "a"]}', "a prompt comes twice"),
        ('{"prompts": ["a", "b"], "pairs": [["c", "c"]]}', "one and the same"),
        ('{"prompts": ["a", "b"], "pair": []}', "pair: Extra inputs"),
        ("[", "Invalid JSON"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_prompts(tmp_path / "p.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | NESTED.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_prompts_or_refused(tmp_path: Path, content: bytes) -> None:
    for suffix in (".txt", ".json"):
        (tmp_path / f"p{suffix}").write_bytes(content)
        try:
            found = read_prompts(tmp_path / f"p{suffix}")
        except ValueError:
            continue
        assert isinstance(found, GroupPrompts)
        assert len(set(found.prompts)) == len(found.prompts) >= 2
