"""docs/robustness.md says what the record of benchmarks/robustness.py says."""

from __future__ import annotations

import json

from benchmarks.marked import replace_blocks
from benchmarks.robustness_tables import PAGE, RECORD, blocks, kept


def test_the_page_has_the_tables_of_the_record() -> None:
    record, page = json.loads(RECORD.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    found = blocks(record)
    assert all(f"<!-- bench:{name} -->" in page for name in found)
    assert replace_blocks(page, found) == page, "run benchmarks/robustness.py --write-docs"


def test_what_is_kept_is_a_share_of_the_same_pictures() -> None:
    row = {"clean": [1.0], "clean, of those attacked": [0.8], "attacks": {"1": {"named": [0.4, 0.3, 0.5]}}}
    assert kept(row) == 50


def test_no_pixel_of_the_record_moved_further_than_its_radius() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    for row in rows.values():
        for epsilon, found in row["attacks"].items():
            if epsilon != "wall_s":
                assert found["largest step"] <= float(epsilon)
                assert found["named"][0] >= found["named, floats"][0]
