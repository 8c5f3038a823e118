"""The table of what methods publish: every method has a row, and the page says what the record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.methods_served import BLOCK, PAGE, RUNS, Elsewhere, check_rows, read_record, table
from training.method import available

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]


def test_every_method_has_a_row() -> None:
    check_rows(available())
    for run in RUNS.values():
        assert run.method in available()
        assert not isinstance(run, Elsewhere) or (ROOT / run.test).exists()


def test_a_method_without_a_row_or_a_measurement_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row of RUNS in methods_served.py trains dreams"):
        check_rows([*available(), "dreams"])
    record = read_record()
    del record["coop"]
    with pytest.raises(ValueError, match="has no row 'coop': run methods_served.py --only 'coop'"):
        table(record)


def test_the_page_has_the_table_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- bench:{BLOCK} -->\n{table(read_record())}\n<!-- /bench:{BLOCK} -->" in page, "run it with --table"


def test_all_doors_agree_in_the_record() -> None:
    for row, found in read_record().items():
        for what, most in (("vectors", 2e-5), ("scores", 2e-3)):
            assert max(found.get(what, {"": 0.0}).values()) <= most, row
        assert {"vectors", "scores"} & found.keys(), row
