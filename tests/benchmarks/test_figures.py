"""Ratios of paired runs, and generated blocks in hand-written pages."""

from __future__ import annotations

import pytest

from benchmarks.figures import circumstances, column, ratio_of_runs, spread
from benchmarks.marked import markdown_table, replace_blocks


def test_ratio_is_the_median_of_paired_ratios() -> None:
    """The ratio of medians would be 30 / 2 = 15: pairs cancel a machine that was slow for both."""
    ratio = ratio_of_runs([10.0, 40.0, 30.0], [1.0, 2.0, 10.0])
    assert ratio == {"median": 10.0, "min": 3.0, "max": 20.0, "n": 3}


@pytest.mark.parametrize(("over", "under"), [([1.0, 2.0], [1.0]), ([], [])])
def test_runs_that_are_not_paired_have_no_ratio(over: list[float], under: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio_of_runs(over, under)


def test_spread_and_column() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert column([{"rate": 2.0}, {"rate": None}], "rate") == [2.0, 0.0]


def test_circumstances_name_machine_load_and_versions() -> None:
    found = circumstances()
    assert found["cores"] >= 1
    assert len(found["load_average"]) == 3
    assert found["versions"]["numpy"]
    assert found["cpu"]


def test_blocks_are_replaced_and_the_rest_is_kept() -> None:
    page = "a\n<!-- bench:x -->\nold | text\n<!-- /bench:x -->\nb\n<!-- bench:y -->\nkept\n<!-- /bench:y -->\n"
    updated = replace_blocks(page, {"x": r"new \1 text", "z": "nowhere"})
    assert updated == page.replace("old | text", r"new \1 text")
    assert replace_blocks(updated, {"x": r"new \1 text"}) == updated


def test_an_unclosed_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="bench:x"):
        replace_blocks("<!-- bench:x -->\nold", {"x": "new"})


def test_table_escapes_bars() -> None:
    assert markdown_table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"
