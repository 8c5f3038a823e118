"""Limits that a container or a unit sets for this process: its control group's and those of all groups above it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
_NO_LIMIT_BYTES = 2**60  # version 1 writes "none" as a number near 2**63


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_GROUP) -> float | None:
    """Cores' worth of time; None: no quota is known."""
    found: list[float] = []
    for folder in _groups("cpu", root, own):
        quota, period = (
            _words(folder / "cpu.max")
            or [
                *_words(folder / "cpu.cfs_quota_us"),
                *_words(folder / "cpu.cfs_period_us"),
            ]
            or ["max", "1"]
        )
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_GROUP) -> int | None:
    """Bytes; None: no limit is known."""
    found: list[int] = []
    for folder in _groups("memory", root, own):
        for word in [*_words(folder / "memory.max"), *_words(folder / "memory.limit_in_bytes")]:
            if word.isdigit() and int(word) < _NO_LIMIT_BYTES:
                found.append(int(word))
    return min(found, default=None)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Folders of the process's group and of those above, of version 2 and of version 1; some may not be there."""
    try:
        lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        tops = [root / controller, root / controllers] if controllers else [root]
        for top in dict.fromkeys(tops):
            folder = top / path.lstrip("/")
            yield from (folder, *(each for each in folder.parents if each.is_relative_to(top)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
