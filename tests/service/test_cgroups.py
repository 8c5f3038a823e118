"""Limits of control groups: files of both versions, and what a server makes of a quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cgroups import cpu_quota, memory_limit
from service.settings import available_cores


def test_quotas_of_every_group_above_count(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/a/b\n3:cpu,cpuacct:/a\n0::/slice/unit\n")
    files = {
        "slice/cpu.max": "150000 100000",
        "slice/unit/cpu.max": "max 100000",
        "slice/unit/memory.max": "max",
        "cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        "memory/a/memory.limit_in_bytes": str(2**30),
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert cpu_quota(tmp_path, own) == 1.5
    assert memory_limit(tmp_path, own) == 2**30
    (tmp_path / "cpu,cpuacct/a/cpu.cfs_quota_us").write_text("50000\n")
    assert cpu_quota(tmp_path, own) == 0.5
    assert cpu_quota(tmp_path / "nowhere", tmp_path / "nothing") is None


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("50000", 1), ("150000", 2), ("200000", 2), ("6400000", 8)])
def test_a_quota_cuts_the_cores_of_the_affinity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/unit\n")
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "cpu.max").write_text(f"{quota} 100000\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores(tmp_path, own) == cores
