"""Tables and plot of docs/robustness.md from the record of benchmarks/robustness.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.marked import ROOT

PAGE, RECORD = ROOT / "docs" / "robustness.md", ROOT / "benchmarks" / "lab" / "robustness.json"


def write_docs(record: Mapping[str, Any]) -> None:
    raise NotImplementedError
