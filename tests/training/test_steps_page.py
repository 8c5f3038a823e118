"""docs/training-steps.md names every setting of a step and of a run, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.run_config import OptimConfig, RunConfig

pytestmark = pytest.mark.torch
PAGE = (Path(__file__).parents[2] / "docs" / "training-steps.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "table"), [("optim", OptimConfig), ("run", RunConfig)])
def test_every_setting_is_in_its_table(name: str, table: type[OptimConfig] | type[RunConfig]) -> None:
    start = PAGE.index(f"| `[{name}]` |")
    rows = PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]
    named = [each for row in rows for each in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(table.model_fields)
    told = {each: row.split("|")[2].strip() for row in rows for each in re.findall(r"`(\w+)`", row.split("|")[1])}
    for field, info in table.model_fields.items():
        if isinstance(info.default, bool | int) or info.default == "auto":
            assert told[field].strip("`") == str(info.default).lower(), field
