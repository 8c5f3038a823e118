"""200 kills at named points and at random moments: nothing acknowledged is lost, nothing deleted comes back."""

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
def test_two_hundred_kills() -> None:
    """Also: the harness must really have killed at every named point, and most requests must have been answered."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HARNESS), "--cycles", "200"], env=environment, capture_output=True, text=True, timeout=280
    )
    result = json.loads(run.stdout)
    assert (run.returncode, result["problems"], result["cycles"]) == (0, [], 200), run.stderr
    points = {end.split(" ", 1)[1] for end in result["ends"] if end.startswith(("before", "after"))}
    assert points == {
        *("database-write", "database-sync", "wal-write", "wal-sync", "wal-truncate"),
        *("file-fsync", "file-rename", "file-write", "file-fdatasync"),
    }
    assert result["ends"].get("killed from outside", 0) >= 80
    assert result["acknowledged"] >= 400
