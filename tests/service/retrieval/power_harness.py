"""Cuts the power of a store over and over, on paper, and opens what a disk could then hold.

    python tests/service/retrieval/power_harness.py --states 5000

Killing a process leaves the page cache to the kernel; a power cut does not. So one life of a store is recorded: each
write, truncation and sync of SQLite's files through a VFS below the checksums, every change of the other files and of
names, each request before it starts and after it was answered. Then states are built for random moments: what was
synced is there, of the rest nothing, everything, a prefix, any subset, and writes torn at sectors of 512 bytes. A store
must open on each without a warning, hold for each thread's rows exactly what was acknowledged, with or without the one
request that was under way, and find it all.

Prints one line of JSON; exit status 0 only if every state was right.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
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
from service.retrieval.truth.database import ensure_checksums

DIM = 4
THREADS = 3
SECTOR = 512
COLLECTIONS = {"flat": IndexSpec(kind="flat"), "sq8": IndexSpec(kind="sq8")}
SETTINGS = RetrievalSettings(train_min_rows=4, checkpoint_s=0.05, threads=1, readers=3)
VARIANTS = ("synced", "everything", "prefix", "subset", "torn")
FOLDER = "data"
# A copy that cannot be used costs time and no item: counted, and only many of them are a fault.
# The file of mapped vectors is a cache: too short, it is made anew; wrong rows of it are answered from the truth.
REBUILT = ("cannot be used: ValueError", "vectors of the index are not those stored")
REAL = (os.fsync, os.fdatasync, os.replace, os.pwrite)


# ---------------------------------------------------------------- what happened


@dataclass(frozen=True)
class Event:
    """kind: write (file, offset, data), truncate (file, size), sync (file), names (folder, changes), sync-names
    (folder), begin (owner, name, change), done (owner), made (name)."""

    kind: str
    what: Any
    value: Any = None
    data: bytes = b""


@dataclass
class Recorder:
    """Events in their order. SQLite's files come through the VFS; all others are looked at when anything happens."""

    root: Path
    events: list[Event] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    is_on: bool = False
    _next: int = 0
    _files: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    _content: dict[int, bytes] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)

    def say(self, kind: str, what: Any, value: Any = None, data: bytes = b"") -> None:
        with self.lock:
            if self.is_on:
                self.events.append(Event(kind, what, value, data))

    def name_of(self, path: str | Path) -> str:
        return str(Path(path).relative_to(self.root))

    def new_file(self, name: str) -> int:
        self._next += 1
        self._files[name] = self._next
        self.say("names", str(Path(name).parent), {name: self._next})
        return self._next

    def forget(self, name: str) -> None:
        if self._files.pop(name, None) is not None:
            self.say("names", str(Path(name).parent), {name: None})

    def look(self) -> None:
        """Note what changed in files and names that are not SQLite's. All names that changed at once are one change."""
        found: dict[str, tuple[int, int, int, int]] = {}
        for folder, folders, files in os.walk(self.root):
            for each in folders:
                name = self.name_of(Path(folder) / each)
                if name not in self._folders:
                    self._folders.add(name)
                    self.say("names", str(Path(name).parent), {name: 0})
            for each in files:
                name = self.name_of(Path(folder) / each)
                if "sqlite3" not in each and each != "LOCK":
                    facts = (Path(folder) / each).lstat()
                    found[name] = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        known = {facts[0]: self._files[name] for name, facts in self._seen.items()}
        changes: dict[str, dict[str, int | None]] = {}
        for name, facts in found.items():
            if facts[0] not in known:
                self._next += 1
                known[facts[0]] = self._next
                self._content[self._next] = b""
            if self._files.get(name) != known[facts[0]]:
                self._files[name] = known[facts[0]]
                changes.setdefault(str(Path(name).parent), {})[name] = known[facts[0]]
        for name in self._seen.keys() - found.keys():
            del self._files[name]
            changes.setdefault(str(Path(name).parent), {})[name] = None
        for folder, changed in changes.items():
            self.say("names", folder, changed)
        for name, facts in found.items():
            if self._seen.get(name) != facts or name in changes:
                self._compare(self._files[name], (self.root / name).read_bytes())
        self._seen = found

    def _compare(self, file: int, now: bytes) -> None:
        before = self._content.get(file, b"")
        if now == before:
            return
        for start in range(0, len(now), SECTOR):
            if now[start : start + SECTOR] != before[start : start + SECTOR]:
                self.say("write", file, start, now[start : start + SECTOR])
        if len(now) < len(before):
            self.say("truncate", file, len(now))
        self._content[file] = now

    def around(self, action: Callable[[], Any]) -> Any:
        """Do it with nobody else between, having looked before and looking after."""
        with self.lock:
            if self.is_on:
                self.look()
            result = action()
            if self.is_on:
                self.look()
            return result

    def syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        """os.fsync or os.fdatasync, noted: SQLite's own do not come through Python."""
        return lambda descriptor: self._sync(descriptor, real)

    def _sync(self, descriptor: int, real: Callable[[int], None]) -> None:
        def action() -> None:
            facts = os.fstat(descriptor)
            names = [name for name, seen in self._seen.items() if seen[0] == facts.st_ino]
            if names:  # read, whatever its times say: two writes within one tick of the clock look like one
                self._compare(self._files[names[0]], (self.root / names[0]).read_bytes())
            real(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                self.say("sync-names", self.name_of(os.readlink(f"/proc/self/fd/{descriptor}")))
            elif names:
                self.say("sync", self._files[names[0]])

        if self.is_on:
            self.around(action)
        else:
            real(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        """Noted at once and in its place: the witness writes after the log was synced, and nothing looks then."""

        def action() -> int:
            written = REAL[3](descriptor, data, offset)
            number = os.fstat(descriptor).st_ino
            for name in [name for name, seen in self._seen.items() if seen[0] == number]:
                self._compare(self._files[name], (self.root / name).read_bytes())
            return written

        return self.around(action) if self.is_on else REAL[3](descriptor, data, offset)

    def replace(self, source: Any, target: Any) -> None:
        self.around(lambda: REAL[2](source, target))


class RecordedFile(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.recorder = recorder
        self.file = 0
        self.names_synced = True
        with recorder.lock:
            if recorder.is_on and path:
                there = recorder.name_of(path)
                recorder.look()
                is_new = not os.path.exists(path)
                super().__init__("unix", name, flags)
                self.file = recorder.new_file(there) if is_new else recorder._files[there]
                # The first sync of a log or journal that was opened to be created syncs the folder too (unixSync in
                # SQLite's os_unix.c); that of a database does not.
                may_create = bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
                self.names_synced = not (may_create and there.endswith(("-wal", "-journal")))
            else:
                super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        with self.recorder.lock:
            super().xWrite(data, offset)
            if self.file:
                self.recorder.say("write", self.file, offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        with self.recorder.lock:
            super().xTruncate(size)
            if self.file:
                self.recorder.say("truncate", self.file, size)

    def xSync(self, flags: int) -> None:
        with self.recorder.lock:
            super().xSync(flags)
            if self.file:
                self.recorder.say("sync", self.file)
                if not self.names_synced:
                    self.recorder.say("sync-names", FOLDER)
                    self.names_synced = True


class RecordedVFS(apsw.VFS):
    """The default one, so that the checksumming layer is put on top of it."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__("recorded", "unix", makedefault=True)
        self.recorder = recorder

    def xOpen(self, name: Any, flags: list[int]) -> RecordedFile:
        return RecordedFile(self.recorder, name, flags)

    def xDelete(self, name: str, sync_folder: bool) -> None:
        with self.recorder.lock:
            super().xDelete(name, sync_folder)
            if self.recorder.is_on:
                self.recorder.forget(self.recorder.name_of(name))
                if sync_folder:
                    self.recorder.say("sync-names", FOLDER)


# ---------------------------------------------------------------- the life


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def live(root: Path, recorder: Recorder, *, seed: int, requests: int) -> None:
    """Open a new folder, work with three threads, close, open again, go on, and stop in the middle of it."""
    for turn in range(3):
        store = CollectionStore.open(root / FOLDER, settings=SETTINGS)
        collections: dict[str, EmbeddedCollection] = {}
        for name, index in COLLECTIONS.items():
            spec = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=DIM, index=index)
            collections[name] = store.create(name, spec)[0]
            recorder.say("made", name)
        threads = [
            threading.Thread(target=work, args=(collections, owner, 100 * turn + seed + place, recorder, requests))
            for place, owner in enumerate("abc"[:THREADS])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if turn == 2:
            recorder.is_on = False
        store.close()


def work(collections: dict[str, EmbeddedCollection], owner: str, seed: int, recorder: Recorder, requests: int) -> None:
    chance = random.Random(seed)
    for _ in range(requests):
        name = chance.choice(list(COLLECTIONS))
        dice = chance.random()
        ids = [f"{owner}{chance.randrange(12)}" for _ in range(chance.randint(1, 4))]
        if dice < 0.7:
            change: dict[str, Any] = {"put": {id: chance.randrange(10**9) for id in ids}}
            recorder.say("begin", owner, (name, change))
            collections[name].upsert(
                [StoreItem(id, vector(n), {"owner": owner, "seed": n}) for id, n in change["put"].items()]
            )
        elif dice < 0.93:
            recorder.say("begin", owner, (name, {"delete": ids}))
            collections[name].delete(ids)
        else:
            recorder.say("begin", owner, (name, {}))
            collections[name].compact()
        recorder.say("done", owner)
        if chance.random() < 0.3:
            time.sleep(0.01)  # for the log to be truncated, and progress to be noted, between requests


# ---------------------------------------------------------------- the cut


Rows = dict[tuple[str, str], dict[str, int]]


@dataclass
class Disk:
    """What is durable, and what is on its way, after each event."""

    content: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    waiting: list[Event] = field(default_factory=list)
    rows: Rows = field(default_factory=dict)
    pending: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def apply(self, event: Event) -> None:
        match event.kind:
            case "write" | "truncate" | "names":
                self.waiting.append(event)
            case "sync":
                self._settle(lambda each: each.kind != "names" and each.what == event.what)
            case "sync-names":
                self._settle(lambda each: each.kind == "names" and each.what == event.what)
            case "begin":
                self.pending[event.what] = event.value
            case "done":
                name, change = self.pending.pop(event.what)
                self.rows[name, event.what] = applied(self.rows.get((name, event.what), {}), change)
            case _:
                self.made.add(event.what)

    def _settle(self, is_meant: Callable[[Event], bool]) -> None:
        for each in self.waiting:
            if is_meant(each):
                carry_out(each, self.content, self.names)
        self.waiting = [each for each in self.waiting if not is_meant(each)]

    def after(self, variant: str, chance: random.Random) -> tuple[dict[int, bytearray], dict[str, int]]:
        """One state that the disk could be in."""
        content = {file: bytearray(data) for file, data in self.content.items()}
        names = dict(self.names)
        chosen = list(self.waiting) if variant != "synced" else []
        if variant == "prefix":
            chosen = chosen[: chance.randint(0, len(chosen))]
        elif variant in ("subset", "torn"):
            share = chance.choice([0.2, 0.5, 0.8])
            chosen = [each for each in chosen if chance.random() < share]
        for place, each in enumerate(chosen):
            is_torn = each.kind == "write" and (variant == "torn" or (variant == "prefix" and place == len(chosen) - 1))
            carry_out(each, content, names, torn=chance if is_torn else None)
        return content, names


def carry_out(
    event: Event, content: dict[int, bytearray], names: dict[str, int], *, torn: random.Random | None = None
) -> None:
    """torn: each sector of a write arrives, or does not."""
    if event.kind == "names":
        for name, file in event.value.items():
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return
    data = content.setdefault(event.what, bytearray())
    if event.kind == "truncate":
        if event.value < len(data):
            del data[event.value :]
        else:
            data.extend(bytes(event.value - len(data)))
        return
    end = event.value + len(event.data)
    start = event.value
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if torn is None or torn.random() < 0.5:
            if len(data) < stop:
                data.extend(bytes(stop - len(data)))
            data[start:stop] = event.data[start - event.value : stop - event.value]
        start = stop


def applied(rows: dict[str, int], change: dict[str, Any]) -> dict[str, int]:
    after = {**rows, **change.get("put", {})}
    for id in change.get("delete", []):
        after.pop(id, None)
    return after


def put_down(root: Path, content: dict[int, bytearray], names: dict[str, int]) -> None:
    """Names below a folder whose own name is not there are lost with it."""
    for name, file in sorted(names.items()):
        path = root / name
        if any(str(parent) not in names for parent in list(Path(name).parents)[:-1]):
            continue
        if file == 0:
            path.mkdir()
        else:
            path.write_bytes(content.get(file, b""))


def problems_of(root: Path, disk: Disk) -> list[str]:
    """Open the store, compare rows with what was acknowledged, and searches with rows."""
    try:
        store = CollectionStore.open(root / FOLDER, settings=SETTINGS)
    except Exception as error:
        return [f"it does not open: {type(error).__name__}: {error}"]
    with store:
        found = [f"warned: {warning}" for warning in store.warnings]
        held = {info.name for info in store.list()}
        found += [f"collection {name} is gone" for name in disk.made - held]
        for name in held:
            try:
                found += compare(name, store.get(name), disk)
            except Exception as error:
                found.append(f"{name} cannot be read: {type(error).__name__}: {error}")
        return found


def is_repaired(problem: str) -> bool:
    return any(known in problem for known in REBUILT)


def compare(name: str, collection: EmbeddedCollection, disk: Disk) -> list[str]:
    records = [record for batch in collection.export_rows() for record in batch]
    found: list[str] = []
    for owner in "abc"[:THREADS]:
        rows = {record.id: record.metadata["seed"] for record in records if record.id[0] == owner}
        before = disk.rows.get((name, owner), {})
        on, change = disk.pending.get(owner, (name, {}))
        if rows not in ([before] if on != name else [before, applied(before, change)]):
            lost, back = sorted(before.keys() - rows.keys()), sorted(rows.keys() - before.keys())
            found.append(f"{name}: rows of {owner} differ; lost {lost}, came back {back}, under way {change}")
    for record in records:
        if record.vector is None or record.vector.tobytes() != vector(record.metadata["seed"]).tobytes():
            found.append(f"{name}: {record.id} has another vector than was sent with it")
    if records:
        query = vector(1)
        hits = collection.search(query[None], top_k=len(records))[0].hits
        if sorted(hit.id for hit in hits) != sorted(record.id for record in records):
            found.append(f"{name}: a search does not find exactly the rows")
        found += [f"{name}: {problem}" for problem in collection.doctor(queries=2, recall_at=2).problems]
    return found


def run(states: int, *, seed: int, requests: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    chance = random.Random(seed)
    started = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="clipworks-power-"))
    recorder = Recorder(root)
    vfs = RecordedVFS(recorder)  # before the checksums, which go on top of whatever is the default then
    ensure_checksums()
    os.fsync, os.fdatasync = recorder.syncing(os.fsync), recorder.syncing(os.fdatasync)
    os.replace, os.pwrite = recorder.replace, recorder.pwrite
    recorder.is_on = True
    live(root, recorder, seed=seed, requests=requests)
    recorder.is_on = False
    os.fsync, os.fdatasync, os.replace, os.pwrite = REAL
    shutil.rmtree(root)
    lived_s = time.monotonic() - started
    cuts = Counter(chance.randrange(len(recorder.events) + 1) for _ in range(states))
    disk, tried, problems, rebuilt = Disk(), Counter[str](), list[str](), 0
    for place in range(len(recorder.events) + 1):
        for _ in range(cuts[place]):
            variant = VARIANTS[tried.total() % len(VARIANTS)]
            tried[variant] += 1
            with tempfile.TemporaryDirectory(prefix="clipworks-power-") as folder:
                put_down(Path(folder), *disk.after(variant, chance))
                found = problems_of(Path(folder), disk)
                rebuilt += any(is_repaired(each) for each in found)
                problems += [f"{variant} at event {place}: {each}" for each in found if not is_repaired(each)]
        if place < len(recorder.events):
            disk.apply(recorder.events[place])
    vfs.unregister()
    kinds = Counter(event.kind for event in recorder.events)
    return {
        "states": tried.total(),
        "variants": dict(tried),
        "events": dict(sorted(kinds.items())),
        "acknowledged": kinds["done"],
        "problems": problems[:20],
        "rebuilt": rebuilt,
        "bad_states": len({problem.split(":")[0] for problem in problems}),
        "seconds": [round(lived_s, 1), round(time.monotonic() - started - lived_s, 1)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--states", type=int, default=400)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.states, seed=arguments.seed, requests=arguments.requests)
    print(json.dumps(result))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
