"""Any file of a folder that was killed under load, flipped, cut or removed: repaired, refused or said, never wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.retrieval import CollectionStore, RetrievalSettings
from service.retrieval.errors import RetrievalError

ROOT = Path(__file__).parents[3]
SETTINGS = RetrievalSettings(checkpoint_s=3600, train_min_rows=8, threads=1, readers=2)
# Two threads write; each line says what was acknowledged. The parent kills it in the middle of that.
WRITER = """
import json, sys, threading
from pathlib import Path
import numpy as np
from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, StoreItem, RetrievalSettings
settings = RetrievalSettings(checkpoint_s=3600, train_min_rows=8, threads=1, readers=2)
rng = np.random.default_rng(3)
def unit():
    values = rng.standard_normal(8)
    return (values / np.linalg.norm(values)).astype(np.float32)
def spec(kind):
    return CollectionSpec(
        model="m@1", space="s", fingerprints={}, dim=8, index=IndexSpec(kind=kind), metadata_schema={"n": "number"}
    )
folder = Path(sys.argv[1])
with CollectionStore.open(folder, settings=settings) as store:
    for kind in ("flat", "sq8"):
        made, _ = store.create(kind, spec(kind))
        made.upsert([StoreItem(f"old{n}", unit(), {"n": n}) for n in range(40)])
        made.compact()
store = CollectionStore.open(folder, settings=settings)
say = threading.Lock()
def work(kind):
    collection = store.get(kind)
    for n in range(100000):
        if n % 5 == 4:
            collection.delete([f"old{n // 5}"])
        else:
            collection.upsert([StoreItem(f"new{n % 30}", unit(), {"n": 1000 + n})])
        with say:
            print(json.dumps([kind, n, collection.describe().sequence]), flush=True)
for kind in ("flat", "sq8"):
    threading.Thread(target=work, args=(kind,)).start()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A folder, and the sequence of each collection that was acknowledged at least."""
    folder = tmp_path_factory.mktemp("killed") / "data"
    acknowledged: dict[str, int] = {}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if not line.endswith("]\n"):
                break
            kind, _, sequence = json.loads(line)
            acknowledged[kind] = sequence
            if len(acknowledged) == 2 and min(acknowledged.values()) >= 25:
                writer.send_signal(signal.SIGKILL)  # what it had said before is still in the pipe
    return folder, acknowledged


def contents(store: CollectionStore) -> dict[str, Any]:
    """What the store answers: rows, a filter by an index, and that searches find exactly the rows."""
    found: dict[str, Any] = {}
    for info in store.list():
        collection = store.get(info.name)
        records = [record for batch in collection.export_rows() for record in batch]
        rows = {record.id: (record.vector.tobytes(), record.metadata["n"]) for record in records}
        query = np.eye(8, dtype=np.float32)
        for result in collection.search(query, top_k=1000):
            assert {hit.id for hit in result.hits} == set(rows)
        filtered = collection.search(query[:1], top_k=1000, filter={"n": {"$gte": 1000}})[0].hits
        assert {hit.id for hit in filtered} == {id for id, (_, n) in rows.items() if n >= 1000}
        found[info.name] = rows
    return found


def outcome(folder: Path, right: dict[str, Any], acknowledged: dict[str, int]) -> str:
    """refused, said, right, unanswered; or what is silently wrong.

    What the kill left in the log without an answer may go without a word: its caller was never told that it is there.
    """
    try:
        with CollectionStore.open(folder, settings=SETTINGS) as store:
            losses, warnings = store.losses(), store.warnings
            if contents(store) == right:
                return "said" if warnings else "right"
            behind = {loss.collection for loss in losses}
            found, reached = contents(store), {info.name: info.sequence for info in store.list()}
            wrong = {name for name, rows in right.items() if found.get(name) != rows} - behind
            wrong = {name for name in wrong if reached.get(name, -1) < acknowledged[name]}
            if wrong:
                return f"wrong: {wrong} differ, {behind} are said"
            return "said" if behind else "unanswered"
    except RetrievalError as error:
        return f"wrong: {error}" if str(folder) in str(error) else "refused"


def test_every_file_of_a_killed_folder(tmp_path: Path, killed: tuple[Path, dict[str, int]]) -> None:
    folder, acknowledged = killed
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    with CollectionStore.open(whole, settings=SETTINGS) as store:
        right = contents(store)
        assert store.warnings == ()
        assert {info.name: info.sequence >= acknowledged[info.name] for info in store.list()} == {
            "flat": True,
            "sq8": True,
        }
    chance = random.Random(0)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert {"collections.sqlite3", "collections.sqlite3-wal", "collections.witness", "LOCK"} < set(names)
    seen: dict[str, Counter[str]] = {}
    for name in names:
        data = (folder / name).read_bytes()
        is_log = name.endswith("-wal")
        damages: list[bytes | None] = [None, b""]
        damages += [data[: chance.randrange(len(data))] for _ in range(10 if is_log else 2)] if data else []
        for _ in range(25 if is_log else 5):
            flipped = bytearray(data)
            if flipped:
                flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                damages.append(bytes(flipped))
        seen[name] = Counter()
        for damage in damages:
            target = tmp_path / "damaged"
            shutil.copytree(folder, target)
            if damage is None:
                (target / name).unlink()
            else:
                (target / name).write_bytes(damage)
            seen[name][outcome(target, right, acknowledged)] += 1
            shutil.rmtree(target)
    assert not [(name, what) for name, found in seen.items() for what in found if what.startswith("wrong")]
    log = seen["collections.sqlite3-wal"]
    assert (set(log) <= {"said", "unanswered"}, log["said"] >= 30) == (True, True), seen
    assert seen["collections.sqlite3"]["refused"] >= 2
    assert set(seen["LOCK"]) == set(seen["collections.sqlite3-shm"]) == {"right"}


@pytest.mark.parametrize("damage", ["removed", "empty"])
def test_a_lost_database_is_not_an_empty_store(tmp_path: Path, killed: tuple[Path, Any], damage: str) -> None:
    folder = Path(shutil.copytree(killed[0], tmp_path / "data"))
    if damage == "removed":
        (folder / "collections.sqlite3").unlink()
    else:
        os.truncate(folder / "collections.sqlite3", 0)
    before = (folder / "collections.sqlite3-wal").read_bytes()
    missing = "missing" if damage == "removed" else "empty"
    with pytest.raises(RetrievalError, match=f"collections.sqlite3 is {missing}, but collections.sqlite3-wal"):
        CollectionStore.open(folder, settings=SETTINGS)
    assert (folder / "collections.sqlite3-wal").read_bytes() == before  # what may still be saved is left alone
