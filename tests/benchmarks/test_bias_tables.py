"""docs/bias.md says what the record of benchmarks/bias.py says."""

from __future__ import annotations

import json

from benchmarks.bias_tables import PAGE, blocks, cell
from benchmarks.marked import ROOT, replace_blocks

RECORD = ROOT / "benchmarks" / "lab" / "bias.json"


def test_the_page_has_the_tables_of_the_record() -> None:
    record, page = json.loads(RECORD.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    found = blocks(record)
    assert all(f"<!-- bench:{name} -->" in page for name in found)
    assert replace_blocks(page, found) == page, "run benchmarks/bias.py --write-docs"


def test_a_cell_is_a_mean_its_interval_and_its_range() -> None:
    runs = [{"score": 0.5, "low": 0.4, "high": 0.6}, {"score": 0.7, "low": 0.6, "high": 0.8}]
    assert cell(runs, "accuracy") == "60.0 [50.0, 70.0]; 50.0 to 70.0"
    assert cell(runs[:1], "NDKL") == "0.500 [0.400, 0.600]"
