"""What one store refuses: a second owner whatever is deleted, forged snapshots, too many collections; and its end."""

from __future__ import annotations

import hashlib
import json
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.retrieval import CollectionStore, RetrievalSettings, StoreItem
from service.retrieval.errors import FolderInUse, Interrupted, StoreClosed, StoreCorrupt, TooManyCollections

ROOT = Path(__file__).parents[3]
SETTINGS = RetrievalSettings(checkpoint_s=3600, threads=1, readers=2)


def test_nobody_opens_the_folder_whose_lock_file_was_deleted(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=SETTINGS, address="http://127.0.0.1:1") as store:
        assert CollectionStore.holder(tmp_path) == "http://127.0.0.1:1"
        (tmp_path / "LOCK").unlink()
        assert CollectionStore.holder(tmp_path) == ""
        with pytest.raises(FolderInUse):
            CollectionStore.open(tmp_path)
        assert store.list() == []
    assert CollectionStore.holder(tmp_path) is None
    CollectionStore.open(tmp_path, settings=SETTINGS).close()


def test_what_a_killed_store_in_memory_left_is_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folder of one that runs is not touched."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = (
        "from service.retrieval import CollectionStore; import time\n"
        "store = CollectionStore.open(None); print('up', flush=True); time.sleep(60)"
    )
    (tmp_path / "clipworks-collections-foreign").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        (left,) = [path for path in tmp_path.iterdir() if (path / "LOCK").exists()]
        with CollectionStore.open(None, settings=SETTINGS):
            assert (left / "collections.sqlite3").exists()
        owner.send_signal(signal.SIGKILL)
    with CollectionStore.open(None, settings=SETTINGS):
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["clipworks-collections-foreign"]


def test_the_number_of_collections_has_a_limit(tmp_path: Path, spec: Any) -> None:
    with CollectionStore.open(tmp_path, settings=RetrievalSettings(max_collections=2, threads=1)) as store:
        made, _ = store.create("a", spec())
        made.upsert([item("r", 0)])
        made.snapshot(tmp_path / "a.snapshot")
        store.create("b", spec())
        assert store.create("a", spec())[1] is False
        with pytest.raises(TooManyCollections, match="the limit is 2"):
            store.create("c", spec())
        with pytest.raises(TooManyCollections):
            store.restore(tmp_path / "a.snapshot", name="c")
    with CollectionStore.open(tmp_path, settings=RetrievalSettings(max_collections=1, threads=1)) as store:
        assert len(store.list()) == 2  # those that are there are opened all the same
        store.drop("b")
        with pytest.raises(TooManyCollections):
            store.create("b", spec())


# ---------------------------------------------------------------- snapshots with a right checksum


def item(id: str, seed: int) -> StoreItem:
    values = np.random.default_rng(seed).standard_normal(8)
    return StoreItem(id, (values / np.linalg.norm(values)).astype(np.float32), {"seed": seed})


def forged(path: Path, *, header: str | None = None, metadata: str = "{}", rows: int = 2, **changes: Any) -> Path:
    spec = {"model": "m@1", "space": "s", "fingerprints": {}, "dim": 8}
    line = header or json.dumps({"spec": spec, "count": 2, "sequence": 1} | changes)
    data = b"CLIPWORKS-SNAPSHOT 1\n" + line.encode() + b"\n"
    for n in range(rows):
        id = f"r{n}".encode()
        data += struct.pack("<II", len(id), len(metadata)) + id + metadata.encode() + item("", n).vector.tobytes()
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


@pytest.mark.parametrize(
    "forgery",
    [
        {"header": '{"spec": ' + "[" * 200_000}, {"metadata": '{"a":' * 60_000}, {"count": -1}, {"count": 1},
        {"count": 3}, {"count": 2.0}, {"count": True}, {"count": "2"}, {"sequence": -1}, {"rows": 3}, {"count": 10**30},
        {"header": "[]"}, {"header": "null"}, {"metadata": "[]"}, {"spec": None},
    ],
)  # fmt: skip
def test_forged_snapshots_are_refused_whole(tmp_path: Path, forgery: dict[str, Any]) -> None:
    with CollectionStore.open(tmp_path / "data", settings=SETTINGS) as store:
        with pytest.raises(StoreCorrupt):
            store.restore(forged(tmp_path / "bad.snapshot", **forgery), name="bad")
        assert store.list() == []
        assert store.restore(forged(tmp_path / "good.snapshot"), name="good").describe().count == 2


# ---------------------------------------------------------------- the end


def test_closing_is_bounded_whatever_a_reader_does(tmp_path: Path, spec: Any, fill: Any) -> None:
    """A statement that would run for minutes is interrupted; what was acknowledged is there afterwards."""
    store = CollectionStore.open(tmp_path, settings=SETTINGS)
    collection, _ = store.create("photos", spec())
    fill(collection, 300)
    errors: list[Exception] = []
    begun = threading.Event()

    def hold() -> None:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        try:
            with store._log.read() as db:
                begun.set()
                list(db.execute(endless))
        except Exception as error:
            errors.append(error)

    def write() -> None:
        try:
            store._log.write(
                lambda db: list(
                    db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
                )
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=hold), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    begun.wait()
    started = time.monotonic()
    store.close(timeout_s=2.0)
    assert time.monotonic() - started < 6
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert {type(error) for error in errors} <= {Interrupted, StoreClosed}
    assert len(errors) == 2
    with CollectionStore.open(tmp_path, settings=SETTINGS) as again:
        assert (again.warnings, again.get("photos").describe().count) == ((), 300)


def test_closing_returns_though_a_thread_holds_a_reader_for_ever(tmp_path: Path, spec: Any, fill: Any) -> None:
    """A search that computes and a paused export are not SQLite's to interrupt; the folder stays locked meanwhile."""
    code = """
import os, sys, time
from pathlib import Path
import numpy as np
from service.retrieval import *
store = CollectionStore.open(Path(sys.argv[1]))
spec = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=8)
made, _ = store.create("photos", spec)
made.upsert([StoreItem("r", np.eye(8, dtype=np.float32)[0], {})])
import threading
held = threading.Event()
def hold():
    with store._log.read():
        held.set()
        time.sleep(600)
threading.Thread(target=hold, daemon=True).start()
held.wait()
started = time.monotonic()
store.close(timeout_s=1.0)
assert time.monotonic() - started < 4
assert CollectionStore.holder(Path(sys.argv[1])) is not None
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with CollectionStore.open(tmp_path, settings=SETTINGS) as again:
        assert (again.warnings, again.get("photos").describe().count) == ((), 1)
