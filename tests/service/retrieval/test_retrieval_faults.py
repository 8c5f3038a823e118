"""Full and failing disks, flipped bits, cut logs, second owners: refused or repaired by name, never half-applied."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem
from service.retrieval.errors import FolderInUse, StorageFailed, StorageFull, StoreCorrupt
from service.retrieval.records import KeptTotals
from service.retrieval.truth.database import CHECKSUMS, ensure_checksums

QUIET = RetrievalSettings(checkpoint_s=3600, train_min_rows=8, threads=1)
ROOT = Path(__file__).parents[3]


class Faults:
    """Raises `error` at the n-th write, sync or truncation after `arm`, and for ever after until `disarm`."""

    def __init__(self) -> None:
        self.error: type[apsw.Error] | None = None
        self.left = 0
        self.struck = False

    def arm(self, error: type[apsw.Error], after: int) -> None:
        self.error, self.left, self.struck = error, after, False

    def disarm(self) -> None:
        self.error = None

    def check(self) -> None:
        if self.error is None:
            return
        self.left -= 1
        if self.left <= 0:
            self.struck = True
            raise self.error("injected")


class FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, name: Any, flags: list[int]) -> None:
        super().__init__(CHECKSUMS, name, flags)
        self.faults = faults

    def xWrite(self, data: bytes, offset: int) -> None:
        self.faults.check()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self.faults.check()
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:
        self.faults.check()
        super().xTruncate(size)


class FaultyVFS(apsw.VFS):
    def __init__(self, faults: Faults) -> None:
        super().__init__("faulty", CHECKSUMS)
        self.faults = faults

    def xOpen(self, name: Any, flags: list[int]) -> FaultyFile:
        return FaultyFile(self.faults, name, flags)


@pytest.fixture
def faults() -> Iterator[Faults]:
    ensure_checksums()
    made = Faults()
    vfs = FaultyVFS(made)
    yield made
    vfs.unregister()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("thumbnails", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(apsw.FullError, StorageFull), pytest.param(apsw.IOError, StorageFailed, marks=pytest.mark.long)],
)
def test_failing_at_the_nth_write(
    tmp_path: Path,
    faults: Faults,
    spec: Any,
    fill: Any,
    contents: Any,
    error: type[apsw.Error],
    expected: type,
    thumbnails: bool,
) -> None:
    """For every n until nothing fails: a refused request left nothing, reads go on, and writing resumes by itself."""
    store = CollectionStore.open(tmp_path, settings=QUIET, vfs="faulty")
    collection, _ = store.create("photos", spec(thumbnails=thumbnails))
    fill(collection, 20)
    query = np.eye(8, dtype=np.float32)[:1]
    after, refused = 0, 0
    struck = True
    while struck:
        after += 1
        before = contents(collection)
        faults.arm(error, after)
        for step in range(3):
            try:
                if step == 1:
                    collection.delete([f"new-{after - 1}-0", "r3"])
                else:
                    fill_one(collection, f"new-{after}-{step}", after)
                before = contents(collection)  # acknowledged, so this is what must stay
            except expected:
                refused += 1
            assert contents(collection) == before
            if thumbnails:
                pictures = [picture for *_, picture in before.values() if picture is not None]
                assert collection.describe().thumbnails == KeptTotals(len(pictures), sum(map(len, pictures)))
            assert {hit.id for hit in collection.search(query, top_k=1000)[0].hits} == set(before)
        struck = faults.struck
        faults.disarm()
        fill_one(collection, f"again-{after}", after)  # without a restart
        assert f"again-{after}" in contents(collection)
    expected_contents = contents(collection)
    store.close()
    assert after > 5
    assert refused > 5
    with CollectionStore.open(tmp_path, settings=QUIET) as reopened:
        assert contents(reopened.get("photos")) == expected_contents
        assert reopened.get("photos").doctor().healthy
        assert reopened.warnings == ()


def fill_one(collection: Any, id: str, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(8)
    metadata = {"long": "x" * 5000}
    picture = b"RIFF\0\0\0\0WEBP" + bytes(8000) if collection.spec.thumbnails else None
    collection.upsert([StoreItem(id, (values / np.linalg.norm(values)).astype(np.float32), metadata, picture)])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A closed folder with a flat and an sq8 collection, a portable snapshot, and what they answer."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with CollectionStore.open(folder, settings=QUIET) as store:
        for kind in ("flat", "sq8"):
            made, _ = store.create(
                kind,
                CollectionSpec(
                    model="m@1",
                    space="s",
                    fingerprints={},
                    dim=8,
                    index=IndexSpec(kind=kind),
                    metadata_schema={"n": "number"},
                ),
            )
            made.upsert([StoreItem(f"r{n}", vectors[n], {"n": n, "word": f"w{n % 7}"}) for n in range(300)])
            made.compact()
        made.snapshot(folder / "sq8.snapshot")
        answers = {kind: ask(store.get(kind)) for kind in ("flat", "sq8")}
    return folder, answers


def ask(collection: Any) -> list[Any]:
    query = np.eye(8, dtype=np.float32)
    return [
        [(hit.id, hit.score, hit.metadata) for result in found for hit in result.hits]
        for found in (
            collection.search(query, top_k=5),
            collection.search(query, top_k=5, filter={"n": {"$lt": 40}}),
            collection.search(query, top_k=5, filter={"word": "w3"}),
        )
    ] + [[(record.id, record.metadata) for record in collection.items(limit=400).records]]


def flipped(stored: Path, target: Path, name: str, chance: random.Random) -> None:
    shutil.copytree(stored, target)
    data = bytearray((target / name).read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (target / name).write_bytes(data)


def test_bit_flips_in_the_database_are_refused_by_name(tmp_path: Path, stored: Any) -> None:
    """Or harmless, in a page that is not used: 80 flips, no wrong answer."""
    folder, answers = stored
    chance = random.Random(0)
    refused = 0
    for turn in range(80):
        target = tmp_path / str(turn)
        flipped(folder, target, "collections.sqlite3", chance)
        said = ""
        try:
            with CollectionStore.open(target, settings=QUIET) as store:
                assert {kind: ask(store.get(kind)) for kind in answers} == answers
        except StoreCorrupt as error:
            said = str(error)
        assert not said or "collections.sqlite3" in said
        refused += bool(said)
        shutil.rmtree(target)
    assert refused > 60


@pytest.mark.parametrize("name", ["indexes/2.index", "collections.witness"])
def test_bit_flips_in_caches_are_repaired_from_the_truth(tmp_path: Path, stored: Any, name: str) -> None:
    folder, answers = stored
    chance = random.Random(1)
    repaired = 0
    for turn in range(60):
        target = tmp_path / str(turn)
        flipped(folder, target, name, chance)
        with CollectionStore.open(target, settings=QUIET) as store:
            assert {kind: ask(store.get(kind)) for kind in answers} == answers
            repaired += any(name in warning for warning in store.warnings)
        shutil.rmtree(target)
    assert repaired == 60 if name.endswith(".index") else repaired < 60


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_cut_or_foreign_index_snapshot_is_rebuilt(tmp_path: Path, stored: Any, damage: bytes | None) -> None:
    folder, answers = stored
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    path = target / "indexes/2.index"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with CollectionStore.open(target, settings=QUIET) as store:
        assert ask(store.get("sq8")) == answers["sq8"]
        assert "2.index" in store.warnings[0]
    with CollectionStore.open(target, settings=QUIET) as again:
        assert again.warnings == ()


def test_bit_flips_in_mapped_vectors_are_answered_from_the_truth(tmp_path: Path, stored: Any) -> None:
    """Also those that no query reads: the doctor finds them, and a rebuild writes the file anew."""
    folder, answers = stored
    chance = random.Random(4)
    (mapped,) = (folder / "indexes").glob("2-*.vectors")
    used = 300 * 8 * 4
    noticed = 0
    for turn in range(10):
        target = tmp_path / str(turn)
        shutil.copytree(folder, target)
        path = target / "indexes" / mapped.name
        data = bytearray(path.read_bytes())
        for place in range(chance.randrange(32), used, 32):
            data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with CollectionStore.open(target, settings=QUIET) as store:
            collection = store.get("sq8")
            if turn % 2:
                noticed += not collection.doctor().healthy
            else:
                assert ask(collection) == answers["sq8"]
                until = time.monotonic() + 20
                while path.exists() and time.monotonic() < until:
                    time.sleep(0.02)
                assert not path.exists()  # the upkeep thread has heard of it
            collection.compact()
            assert collection.doctor().healthy
            assert ask(collection) == answers["sq8"]
        assert not path.exists()
        shutil.rmtree(target)
    assert noticed == 5


@pytest.mark.parametrize("cut", [None, 1000])
def test_mapped_vectors_that_are_gone_or_cut_are_made_anew(tmp_path: Path, stored: Any, cut: int | None) -> None:
    folder, answers = stored
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    (path,) = (target / "indexes").glob("2-*.vectors")
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:cut])
    with CollectionStore.open(target, settings=QUIET) as store:
        assert ask(store.get("sq8")) == answers["sq8"]
        assert bool(store.warnings) == (cut is not None)
    assert len(list((target / "indexes").glob("2-*.vectors"))) == 1
    with CollectionStore.open(target, settings=QUIET) as again:
        assert again.warnings == ()
        assert ask(again.get("sq8")) == answers["sq8"]


def test_damaged_snapshots_are_refused_whole(tmp_path: Path, stored: Any) -> None:
    folder, _ = stored
    chance = random.Random(2)
    data = (folder / "sq8.snapshot").read_bytes()
    with CollectionStore.open(tmp_path / "other", settings=QUIET) as store:
        for turn in range(60):
            damaged = bytearray(data)
            damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path = tmp_path / f"{turn}.snapshot"
            path.write_bytes(damaged if turn % 3 else damaged[: chance.randrange(len(data))])
            with pytest.raises(StoreCorrupt, match=path.name):
                store.restore(path, name="restored")
        assert store.list() == []
        assert store.restore(folder / "sq8.snapshot", name="restored").describe().count == 300


def test_a_missing_database_is_not_an_empty_store(tmp_path: Path, stored: Any) -> None:
    target = tmp_path / "copy"
    shutil.copytree(stored[0], target)
    (target / "collections.sqlite3").unlink()
    with pytest.raises(StoreCorrupt, match="collections.sqlite3 is missing"):
        CollectionStore.open(target, settings=QUIET)


def test_one_owner_and_freedom_after_a_kill(tmp_path: Path) -> None:
    """The second process is told where the first one is; the kernel frees the folder of a killed one."""
    code = (
        "import sys, time; from pathlib import Path; from service.retrieval import CollectionStore\n"
        "store = CollectionStore.open(Path(sys.argv[1]), address='http://127.0.0.1:1')\n"
        "store.announce('http://127.0.0.1:8123'); print('up', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        started = time.monotonic()
        with pytest.raises(FolderInUse, match=r"in use by process \d+ at http://127.0.0.1:8123") as refused:
            CollectionStore.open(tmp_path)
        assert time.monotonic() - started < 2
        assert (refused.value.address, refused.value.pid) == ("http://127.0.0.1:8123", owner.pid)
        assert CollectionStore.holder(tmp_path) == "http://127.0.0.1:8123"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    assert CollectionStore.holder(tmp_path) is None
    with CollectionStore.open(tmp_path) as store:
        with pytest.raises(FolderInUse):
            CollectionStore.open(tmp_path)
        assert store.list() == []
