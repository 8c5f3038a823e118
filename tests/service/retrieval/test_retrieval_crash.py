"""Kills at named points and at random moments: nothing acknowledged is lost, nothing deleted comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("crash_harness.py")
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [50, pytest.param(200, marks=pytest.mark.long)])
def test_many_kills(cycles: int) -> None:
    """Also: the harness must really have killed at every named point, and most requests must have been answered."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HARNESS), "--cycles", str(cycles)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    result = json.loads(run.stdout)
    assert (run.returncode, result["problems"], result["cycles"]) == (0, [], cycles), run.stderr
    points = {end.split(" ", 1)[1] for end in result["ends"] if end.startswith(("before", "after"))}
    assert points == {
        *("database-write", "database-sync", "wal-write", "wal-sync", "wal-truncate"),
        *("file-fsync", "file-rename", "file-write", "file-fdatasync"),
    }
    assert result["ends"].get("killed from outside", 0) >= 0.4 * cycles
    assert result["acknowledged"] >= 2 * cycles
