"""The writer: requests that wait together share one sync, and one that fails takes nobody with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from service.retrieval.errors import StoreClosed
from service.retrieval.truth.database import CHECKSUMS, ensure_checksums, run
from service.retrieval.truth.log import Log


class CountingFile(apsw.VFSFile):
    def __init__(self, counts: dict[str, int], name: Any, flags: list[int]) -> None:
        super().__init__(CHECKSUMS, name, flags)
        self.counts = counts
        self.kind = "wal" if flags[0] & apsw.SQLITE_OPEN_WAL else "database"

    def xSync(self, flags: int) -> None:
        self.counts[self.kind] = self.counts.get(self.kind, 0) + 1
        super().xSync(flags)


class CountingVFS(apsw.VFS):
    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__("counting", CHECKSUMS)
        self.counts = counts

    def xOpen(self, name: Any, flags: list[int]) -> CountingFile:
        return CountingFile(self.counts, name, flags)


@pytest.fixture
def syncs() -> Iterator[dict[str, int]]:
    ensure_checksums()
    counts: dict[str, int] = {}
    vfs = CountingVFS(counts)
    yield counts
    vfs.unregister()


@pytest.fixture
def log(tmp_path: Path, syncs: dict[str, int]) -> Iterator[Log]:
    made = Log(tmp_path / "log.sqlite3", vfs="counting", readers=1, group_items=1000, checkpoint_s=3600)
    made.write(lambda db: run(db, "CREATE TABLE things (name TEXT)"))
    yield made
    made.close()


def names(log: Log) -> list[str]:
    with log.read() as db:
        return sorted(name for (name,) in run(db, "SELECT name FROM things"))


def test_a_group_shares_one_sync_and_a_failure_is_its_own(log: Log, syncs: dict[str, int]) -> None:
    """Every third of 30 requests fails after it has written: its rows are gone, the others' are there."""
    enter, leave = threading.Event(), threading.Event()

    def hold(db: apsw.Connection) -> None:
        run(db, "INSERT INTO things VALUES ('held')")
        enter.set()
        leave.wait(10)

    published: list[int] = []
    outcomes: dict[int, str] = {}

    def request(n: int) -> None:
        def work(db: apsw.Connection) -> int:
            run(db, "INSERT INTO things VALUES (?)", (f"n{n:02}",))
            if n % 3 == 0:
                raise ValueError(f"no {n}")
            return n

        try:
            outcomes[n] = f"done {log.write(work, publish=published.append)}"
        except ValueError as error:
            outcomes[n] = str(error)

    first = threading.Thread(target=log.write, args=(hold,))
    first.start()
    assert enter.wait(10)
    others = [threading.Thread(target=request, args=(n,)) for n in range(30)]
    for thread in others:
        thread.start()
    until = time.monotonic() + 10
    while log._jobs.qsize() < 30 and time.monotonic() < until:
        time.sleep(0.005)
    before = syncs["wal"]
    leave.set()
    for thread in (first, *others):
        thread.join()
    assert syncs["wal"] - before == 2  # the request that held the writer, and one group of 30
    good = [n for n in range(30) if n % 3]
    assert outcomes == {n: f"done {n}" if n % 3 else f"no {n}" for n in range(30)}
    assert sorted(published) == good
    assert names(log) == ["held", *(f"n{n:02}" for n in good)]


def test_a_closed_log_says_so_and_leaves_no_write_ahead_log(tmp_path: Path, syncs: dict[str, int]) -> None:
    log = Log(tmp_path / "log.sqlite3", vfs="counting", readers=1, group_items=10, checkpoint_s=3600)
    log.write(lambda db: run(db, "CREATE TABLE things (name TEXT)"))
    log.checkpoint()
    assert (tmp_path / "log.sqlite3-wal").stat().st_size > 0  # before a witness is there nothing is emptied
    log.attach(tmp_path, [])
    log.checkpoint()
    assert (tmp_path / "log.sqlite3-wal").stat().st_size == 0
    log.close()
    log.close()
    assert not (tmp_path / "log.sqlite3-wal").exists()
    for call in (lambda: log.write(lambda db: None), log.checkpoint, lambda: names(log)):
        with pytest.raises(StoreClosed):
            call()
