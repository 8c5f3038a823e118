"""Kills a store over and over and holds it to what it acknowledged.

    python tests/service/retrieval/crash_harness.py --cycles 2000

Each cycle forks a child that opens the folder left by the last one, reports every row, and then works with three
threads until it is killed: by SIGKILL from outside at a random moment, or by itself at a named point (before or after
the n-th write, sync, truncation or rename). The parent is the oracle: it lives outside, hears of each request before it
starts and after it was answered, and never touches the store. After each open it requires, for each thread's rows,
exactly what was acknowledged, with or without the one request that was under way, whole.

Prints one line of JSON at the end; exit status 0 only if nothing was lost, nothing came back and every open succeeded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from service.retrieval import (
    CollectionSpec,
    CollectionStore,
    EmbeddedCollection,
    IndexSpec,
    RetrievalSettings,
    StoreItem,
)
from service.retrieval.records import KeptTotals
from service.retrieval.truth.database import CHECKSUMS, ensure_checksums

DIM = 4
THREADS = 3
REQUESTS = 10
COLLECTIONS = {"flat": IndexSpec(kind="flat"), "sq8": IndexSpec(kind="sq8")}
WITH_THUMBNAILS = frozenset({"flat"})
SETTINGS = RetrievalSettings(train_min_rows=4, checkpoint_s=0.02, threads=1, readers=3)
VFS = "crash"
# Where the process may kill itself; each before and after.
POINTS = (
    *(f"{file}-{call}" for file in ("database", "wal") for call in ("write", "sync")),
    "wal-truncate",
    "file-fsync",
    "file-rename",
    "file-write",
    "file-fdatasync",
)


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def picture(seed: int) -> bytes:
    """A thumbnail that is not to be taken for another's, of up to two pages."""
    return b"RIFF\0\0\0\0WEBP" + f"{seed},".encode() * (seed % 3000)


def item(id: str, seed: int, *, thumbnails: bool) -> StoreItem:
    """Every second one has a thumbnail, where they are kept."""
    metadata = {"owner": id[0], "seed": seed, "group": seed % 5}
    return StoreItem(id, vector(seed), metadata, picture(seed) if thumbnails and seed % 2 else None)


class Bomb:
    """Kills the process at the n-th passing of a point."""

    def __init__(self, point: str | None, side: str, left: int) -> None:
        self.point, self.side, self.left = point, side, left
        self.lock = threading.Lock()
        self.tell: Any = lambda *message: None

    def around(self, point: str, action: Any) -> Any:
        self.pass_by(point, "before")
        result = action()
        self.pass_by(point, "after")
        return result

    def pass_by(self, point: str, side: str) -> None:
        if (point, side) != (self.point, self.side):
            return
        with self.lock:
            self.left -= 1
            if self.left <= 0:
                self.tell("bomb", f"{side} {point}")
                os.kill(os.getpid(), signal.SIGKILL)


class CrashFile(apsw.VFSFile):
    def __init__(self, bomb: Bomb, name: Any, flags: list[int]) -> None:
        super().__init__(CHECKSUMS, name, flags)
        self.bomb = bomb
        self.kind = "wal" if flags[0] & apsw.SQLITE_OPEN_WAL else "database"

    def xWrite(self, data: bytes, offset: int) -> None:
        self.bomb.around(f"{self.kind}-write", lambda: super(CrashFile, self).xWrite(data, offset))

    def xSync(self, flags: int) -> None:
        self.bomb.around(f"{self.kind}-sync", lambda: super(CrashFile, self).xSync(flags))

    def xTruncate(self, size: int) -> None:
        self.bomb.around(f"{self.kind}-truncate", lambda: super(CrashFile, self).xTruncate(size))


class CrashVFS(apsw.VFS):
    def __init__(self, bomb: Bomb) -> None:
        super().__init__(VFS, CHECKSUMS)
        self.bomb = bomb

    def xOpen(self, name: Any, flags: list[int]) -> CrashFile:
        return CrashFile(self.bomb, name, flags)


def mine_the_files(bomb: Bomb) -> None:
    """Our own files go through these; the witness, each commit, through os.pwrite and os.fdatasync."""
    fsync, replace, pwrite, fdatasync = os.fsync, os.replace, os.pwrite, os.fdatasync
    os.pwrite = lambda *args: bomb.around("file-write", lambda: pwrite(*args))
    os.fdatasync = lambda descriptor: bomb.around("file-fdatasync", lambda: fdatasync(descriptor))
    os.fsync = lambda descriptor: bomb.around("file-fsync", lambda: fsync(descriptor))
    os.replace = lambda *args: bomb.around("file-rename", lambda: replace(*args))


class Wire:
    """JSON lines to the oracle, whole or not at all."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lock = threading.Lock()

    def say(self, *message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self.lock:
            while line:
                line = line[os.write(self.descriptor, line) :]


def child(folder: Path, seed: int, bomb: Bomb, wire: Wire) -> None:
    """One life: open, report, work until killed, or close."""
    try:
        bomb.tell = wire.say
        mine_the_files(bomb)
        vfs = CrashVFS(bomb)  # registered for as long as it is referred to
        started = time.perf_counter()
        store = CollectionStore.open(folder, settings=SETTINGS, vfs=VFS)
        wire.say("opened", time.perf_counter() - started, store.warnings)
        bound: dict[str, Any] = {"model": "m@1", "space": "s", "fingerprints": {}, "dim": DIM}
        collections = {
            name: store.create(name, CollectionSpec(**bound, index=index, thumbnails=name in WITH_THUMBNAILS))[0]
            for name, index in COLLECTIONS.items()
        }
        for name, collection in collections.items():
            report(name, collection, wire)
        wire.say("ready")
        workers = [threading.Thread(target=work, args=(collections, "abc"[n], seed + n, wire)) for n in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        store.close()
        wire.say("closed", "closed")
        vfs.unregister()
    except BaseException as error:
        wire.say("failed", f"{type(error).__name__}: {error}")


def report(name: str, collection: EmbeddedCollection, wire: Wire) -> None:
    """Every row with a sum of its vector, and whether search and truth agree, and thumbnails with their rows."""
    records = [record for batch in collection.export_rows() for record in batch]
    rows = {record.id: [record.metadata["seed"], zlib.crc32(record.vector.tobytes())] for record in records}
    problems = list(collection.doctor(queries=3, recall_at=3).problems)
    for record in records:
        wanted = item(record.id, record.metadata["seed"], thumbnails=collection.spec.thumbnails).thumbnail
        if record.thumbnail != wanted:
            problems.append(f"{record.id} has {'another' if record.thumbnail else 'no'} thumbnail")
    if collection.spec.thumbnails:
        found = [record.thumbnail for record in records if record.thumbnail is not None]
        if collection.describe().thumbnails != KeptTotals(len(found), sum(map(len, found))):
            problems.append("the totals of the thumbnails are not those of the thumbnails")
    if records:
        queries = np.stack([record.vector for record in records[:4]])
        for query, result in zip(queries, collection.search(queries, top_k=len(records)), strict=True):
            scores = [
                (-float(np.float32((r.vector.astype(np.float64) * query.astype(np.float64)).sum())), r.id)
                for r in records
            ]
            if [(-hit.score, hit.id) for hit in result.hits] != sorted(scores):
                problems.append("search differs from brute force")
    wire.say("rows", name, rows, problems)


def work(collections: dict[str, EmbeddedCollection], owner: str, seed: int, wire: Wire) -> None:
    """Random requests on this thread's own ids, each announced before and confirmed after."""
    chance = random.Random(seed)
    try:
        for _ in range(REQUESTS):
            name = chance.choice(list(COLLECTIONS))
            collection = collections[name]
            dice = chance.random()
            ids = [f"{owner}{chance.randrange(12)}" for _ in range(chance.randint(1, 4))]
            if dice < 0.6:
                change = {id: chance.randrange(10**9) for id in ids}
                wire.say("begin", owner, name, {"put": change})
                kept = collection.spec.thumbnails
                collection.upsert([item(id, number, thumbnails=kept) for id, number in change.items()])
                hit = collection.search(vector(change[ids[0]])[None], top_k=1, filter={"owner": owner})[0].hits[0]
                if hit.score < 0.99999:
                    raise RuntimeError(f"acknowledged {ids[0]} is not found, best is {hit}")
            elif dice < 0.8:
                wire.say("begin", owner, name, {"delete": ids})
                collection.delete(ids)
                found = collection.search(vector(seed)[None], top_k=100)[0].hits
                if {hit.id for hit in found} & set(ids):
                    raise RuntimeError("an acknowledged delete is found")
            elif dice < 0.9:
                group = chance.randrange(5)
                wire.say("begin", owner, name, {"delete_group": group})
                collection.delete(filter={"owner": owner, "group": group})
            else:
                wire.say("begin", owner, name, {})
                collection.compact()
            wire.say("done", owner)
    except BaseException as error:
        wire.say("failed", f"{type(error).__name__}: {error}")


def applied(rows: dict[str, int], change: dict[str, Any]) -> dict[str, int]:
    after = {**rows, **change.get("put", {})}
    for id in change.get("delete", []):
        after.pop(id, None)
    return {id: seed for id, seed in after.items() if seed % 5 != change.get("delete_group", -1)}


class Oracle:
    """What must be there, by collection and thread; `pending` is the request of each thread that has no answer yet."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, int]] = {}
        self.pending: dict[str, tuple[str, dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.acknowledged = 0
        self.open_s: list[float] = []

    def hear(self, message: list[Any]) -> str:
        kind, *rest = message
        if kind == "begin":
            self.pending[rest[0]] = (rest[1], rest[2])
        elif kind == "done":
            name, change = self.pending.pop(rest[0])
            self.rows[name, rest[0]] = applied(self.rows.get((name, rest[0]), {}), change)
            self.acknowledged += 1
        elif kind == "opened":
            self.open_s.append(rest[0])
            self.problems += [f"warned at open: {warning}" for warning in rest[1]]
        elif kind == "rows":
            self._compare(*rest)
        elif kind == "ready":
            self.pending.clear()
        elif kind == "failed":
            self.problems.append(rest[0])
        return kind

    def _compare(self, name: str, found: dict[str, list[int]], problems: list[str]) -> None:
        self.problems += [f"{name}: {problem}" for problem in problems]
        for id, (seed, sum) in found.items():
            if zlib.crc32(vector(seed).tobytes()) != sum:
                self.problems.append(f"{name}: {id} has another vector than was sent with it")
        for owner in "abc"[:THREADS]:
            held = {id: seed for id, (seed, _) in found.items() if id[0] == owner}
            before = self.rows.get((name, owner), {})
            on, change = self.pending.get(owner, (name, {}))
            allowed = [before] if on != name else [before, applied(before, change)]
            if held not in allowed:
                lost = {id for id in before if id not in held}
                back = {id for id in held if id not in before}
                self.problems.append(
                    f"{name}: rows of {owner} differ; lost {lost}, came back {back}, under way {change}"
                )
            self.rows[name, owner] = held


def run(cycles: int, *, seed: int, folder: Path) -> dict[str, Any]:
    chance = random.Random(seed)
    oracle = Oracle()
    ends: Counter[str] = Counter()
    ensure_checksums()
    started = time.monotonic()
    for cycle in range(cycles):
        bomb, kill = Bomb(None, "", 0), None
        if cycle % 2:
            point = POINTS[cycle // 2 % len(POINTS)]
            bomb = Bomb(point, chance.choice(["before", "after"]), chance.randint(1, 12 if "write" in point else 4))
        else:
            kill = Kill(after_messages=chance.randint(0, 50), delay_s=chance.uniform(0, 0.003))
        ends[one_life(folder, chance.randrange(2**31), bomb, kill, oracle)] += 1
        if oracle.problems:
            break
    one_life(folder, 1, Bomb(None, "", 0), None, oracle)  # opens, reports, works and closes: nobody kills it
    return {
        "cycles": sum(ends.values()),
        "acknowledged": oracle.acknowledged,
        "problems": oracle.problems,
        "ends": dict(sorted(ends.items())),
        "slowest_open_s": round(max(oracle.open_s, default=0.0), 3),
        "seconds": round(time.monotonic() - started, 1),
    }


@dataclass(frozen=True)
class Kill:
    """SIGKILL from outside; counted in messages, so a cycle reaches as far on a busy machine as on an idle one."""

    after_messages: int
    delay_s: float


def one_life(folder: Path, seed: int, bomb: Bomb, kill: Kill | None, oracle: Oracle) -> str:
    """Fork, listen, kill; how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        logging.disable(logging.CRITICAL)
        child(folder, seed, bomb, Wire(write))
        os._exit(0)
    os.close(write)
    end = "failed"
    heard = 0
    with os.fdopen(read, "rb") as stream:
        if kill and not kill.after_messages:
            time.sleep(10 * kill.delay_s)  # while it opens
            os.kill(pid, signal.SIGKILL)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            message = json.loads(line)
            heard += 1
            if oracle.hear(message) in ("closed", "bomb"):
                end = str(message[-1])
            if kill and heard == kill.after_messages:
                time.sleep(kill.delay_s)
                os.kill(pid, signal.SIGKILL)  # what it said before is still in the pipe, and is heard
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and end == "failed":
        return "killed from outside"
    return end


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="clipworks-crash-"))
    try:
        result = run(arguments.cycles, seed=arguments.seed, folder=folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
