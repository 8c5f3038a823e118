"""What a lost write-ahead log took is counted by collection, and said until somebody acknowledges it."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.retrieval import CollectionStore, RetrievalSettings, StoreItem
from service.retrieval.errors import CollectionNotFound, RetrievalError, StoreCorrupt
from service.retrieval.truth.witness import AcknowledgedState, LogPosition, Witness, load

SETTINGS = RetrievalSettings(checkpoint_s=3600, train_min_rows=8, threads=1, readers=2)
OLD = Path(__file__).parents[2] / "fixtures" / "collections-format-1.tar.xz"


def item(id: str, seed: int) -> StoreItem:
    values = np.random.default_rng(seed).standard_normal(8)
    return StoreItem(id, (values / np.linalg.norm(values)).astype(np.float32), {"seed": seed})


@pytest.fixture
def killed(tmp_path: Path, spec: Any) -> Path:
    """As a kill leaves it, with the last changes in the log only: some of `kept`, all of `young`, the end of `old`."""
    folder = tmp_path / "data"
    with CollectionStore.open(folder, settings=SETTINGS) as store:
        for name in ("kept", "old", "untouched"):
            store.create(name, spec())[0].upsert([item(f"r{n}", n) for n in range(20)])
    with CollectionStore.open(folder, settings=SETTINGS) as store:
        for n in range(12):
            store.get("kept").upsert([item(f"new{n}", n)])
        store.get("kept").delete(["new0", "r1"])
        store.create("young", spec())[0].upsert([item("one", 1), item("two", 2)])
        store.drop("old")
        return Path(shutil.copytree(folder, tmp_path / "killed"))


def test_an_intact_log_brings_everything_and_no_alarm(killed: Path) -> None:
    with CollectionStore.open(killed, settings=SETTINGS) as store:
        assert (store.warnings, store.losses()) == ((), ())
        assert {info.name: info.count for info in store.list()} == {"kept": 30, "young": 2, "untouched": 20}


@pytest.mark.parametrize("damage", ["removed", "first frame flipped", "cut to its header"])
def test_each_collection_says_how_many_changes_it_lost(killed: Path, damage: str) -> None:
    log = killed / "collections.sqlite3-wal"
    data = bytearray(log.read_bytes())
    data[60] ^= 1
    if damage == "removed":
        log.unlink()
    else:
        log.write_bytes(data if damage == "first frame flipped" else data[:32])
    with CollectionStore.open(killed, settings=SETTINGS) as store:
        losses = {loss.collection: loss for loss in store.losses()}
        assert {name: loss.kind for name, loss in losses.items()} == {
            "kept": "changes",
            "young": "collection",
            "old": "deletion",
        }
        kept = losses["kept"]
        assert (kept.reached - kept.found, kept.items_before, kept.items_after) == (13, 30, 20)
        assert (losses["young"].reached, losses["young"].items_before) == (1, 2)
        info = store.get("kept").describe()
        assert info.losses == (kept,)
        assert "lost 13 acknowledged changes" in info.warnings[0]
        assert not store.get("kept").doctor().healthy
        assert store.get("untouched").describe().losses == ()
        assert store.get("untouched").doctor().healthy
        store.get("kept").upsert([item("after", 5)])  # it is used again all the same
    with CollectionStore.open(killed, settings=SETTINGS) as again:
        assert {loss.collection for loss in again.losses()} == {"kept", "old", "young"}  # said until acknowledged
        assert [again.acknowledge_loss(name) for name in ("kept", "young", "untouched")] == [1, 1, 0]
        with pytest.raises(CollectionNotFound):
            again.acknowledge_loss("young")
        assert again.get("kept").doctor().healthy
        assert again.get("kept").describe().warnings == ()
    with CollectionStore.open(killed, settings=SETTINGS) as last:
        assert [loss.collection for loss in last.losses()] == ["old"]
        assert last.get("kept").describe().count == 21


def test_a_loss_follows_a_collection_that_gets_another_name(killed: Path, spec: Any) -> None:
    """Also the witness knows the new name, which a version at its end makes longer than 64 characters."""
    (killed / "collections.sqlite3-wal").unlink()
    long = "k" * 64 + "@12345"
    with CollectionStore.open(killed, settings=SETTINGS) as store:
        store.create("next", spec())
        store.set_alias("kept", "next", keep_as=long)
        assert [loss.kind for loss in store.get(long).describe().losses] == ["changes"]
        assert store.get("kept").describe().losses == ()
        found = load(killed)
        assert found is not None
        assert {seen.name for seen in found.seen.values() if seen.state == "live"} >= {long, "next"}
    with CollectionStore.open(killed, settings=SETTINGS) as again:
        assert len(again.get(long).describe().losses) == 1
        assert (again.acknowledge_loss("kept"), again.acknowledge_loss(long)) == (0, 1)


WITNESS_DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut to its header": lambda data: data[:512],
    "cut to the log's record": lambda data: data[: 512 + 256],
    "slots zeroed": lambda data: data[:512].ljust(len(data), b"\0"),
    "records zeroed": lambda data: data[: 512 + 256].ljust(len(data), b"\0"),
    "the log's record zeroed": lambda data: data[:512] + bytes(256) + data[768:],
}


@pytest.mark.parametrize("damage", WITNESS_DAMAGES)
def test_a_witness_that_says_too_little_is_said_until_acknowledged(killed: Path, damage: str) -> None:
    """Also without the log, whose loss it cannot tell any more: each collection may have lost changes."""
    witness = killed / "collections.witness"
    left = WITNESS_DAMAGES[damage](witness.read_bytes())
    witness.unlink()
    if left is not None:
        witness.write_bytes(left)
    (killed / "collections.sqlite3-wal").unlink()
    with CollectionStore.open(killed, settings=SETTINGS) as store:
        said = {loss.collection for loss in store.losses()}
        assert said >= {"kept", "untouched"}
        assert not store.get("untouched").doctor().healthy
        assert "collections.witness" in store.get("untouched").describe().warnings[0]
    with CollectionStore.open(killed, settings=SETTINGS) as again:
        assert {loss.collection for loss in again.losses()} == said
        for name in said:
            assert again.acknowledge_loss(name) == 1
        assert again.get("untouched").doctor().healthy
    with CollectionStore.open(killed, settings=SETTINGS) as last:
        assert (last.losses(), last.warnings) == ((), ())


@pytest.mark.parametrize("damage", ["cut to its header", "slots zeroed"])
def test_a_damaged_witness_without_a_database_is_no_new_store(killed: Path, damage: str) -> None:
    witness = killed / "collections.witness"
    witness.write_bytes(WITNESS_DAMAGES[damage](witness.read_bytes()) or b"")
    for path in killed.glob("collections.sqlite3*"):
        path.unlink()
    shutil.rmtree(killed / "indexes")
    with pytest.raises(StoreCorrupt, match=r"collections.sqlite3 is missing, but collections.witness beside it"):
        CollectionStore.open(killed, settings=SETTINGS)


def test_a_used_folder_without_any_file_of_the_database_says_that_it_starts_empty(killed: Path) -> None:
    for path in [*killed.glob("collections.*"), *(killed / "indexes").iterdir()]:
        path.unlink()
    with CollectionStore.open(killed) as store:
        assert store.list() == []
        (warning,) = store.warnings
        assert "was used before, and has no collections.sqlite3" in warning
    with CollectionStore.open(killed) as store:
        assert store.warnings == ()


def test_a_kill_at_any_commit_of_a_creation_or_a_drop_raises_no_alarm(tmp_path: Path, spec: Any) -> None:
    """The folder is copied after the commit and before the witness is told, and by the side of every note of it."""
    folder = tmp_path / "data"
    copies: list[Path] = []

    def copy() -> None:
        copies.append(Path(shutil.copytree(folder, tmp_path / f"copy{len(copies)}")))

    with CollectionStore.open(folder, settings=SETTINGS) as store:
        store.create("there", spec())[0].upsert([item("one", 1)])
        snapshot = tmp_path / "there.snapshot"
        store.get("there").snapshot(snapshot)
        log, testify = store._log, store._log._testify

        def copy_and_testify() -> None:
            copy()
            testify()
            copy()

        log._testify = copy_and_testify  # pyright: ignore[reportAttributeAccessIssue]
        store.create("made", spec())[0].upsert([item("one", 1)])
        store.restore(snapshot, name="restored")
        store.drop("made")
        log._testify = testify  # pyright: ignore[reportAttributeAccessIssue]
    assert len(copies) >= 10
    for each in copies:
        with CollectionStore.open(each, settings=SETTINGS) as store:
            assert (store.warnings, store.losses()) == ((), ())


@pytest.mark.parametrize(
    "name", ["LOCK", "collections.witness", "collections.sqlite3-wal", "indexes/x", "progress.json"]
)
def test_a_pipe_in_the_place_of_a_file_is_refused_by_name(killed: Path, name: str) -> None:
    (killed / name).unlink(missing_ok=True)
    os.mkfifo(killed / name)
    assert CollectionStore.holder(killed) is None
    with pytest.raises(RetrievalError, match=f"{name}.* is no plain file"):
        CollectionStore.open(killed, settings=SETTINGS)
    (killed / name).unlink()
    assert CollectionStore.open(killed, settings=SETTINGS).close() is None  # nobody holds it still


def test_drops_and_creations_without_end_do_not_grow_the_witness(tmp_path: Path, spec: Any) -> None:
    settings = RetrievalSettings(checkpoint_s=0.01, threads=1, readers=1)
    with CollectionStore.open(tmp_path, settings=settings) as store:
        for n in range(25):
            store.create(f"c{n}", spec())
            store.drop(f"c{n}")
        assert (tmp_path / "collections.witness").stat().st_size < 25 * 256
        assert store.list() == []


def test_the_witness_keeps_its_last_whole_word(tmp_path: Path) -> None:
    """A slot that was written in part leaves the one before it; records of dropped collections are used again."""
    one, two = AcknowledgedState("a" * 32, "one", 4, 2), AcknowledgedState("b" * 32, "two", 0, 0)
    witness = Witness(tmp_path, [one], position=LogPosition(7, 9))
    witness.note(two)
    witness.note(AcknowledgedState("a" * 32, "one", 5, 3))
    found = load(tmp_path)
    assert found is not None
    assert (found.position, found.problem) == (LogPosition(7, 9), None)
    assert found.seen == {"a" * 32: AcknowledgedState("a" * 32, "one", 5, 3), "b" * 32: two}
    data = bytearray((tmp_path / "collections.witness").read_bytes())
    second_slot = 512 + 256 + 128
    data[second_slot + 40 : second_slot + 128] = bytes(88)
    (tmp_path / "collections.witness").write_bytes(data)
    torn = load(tmp_path)
    assert torn is not None
    assert torn.seen["a" * 32] == one
    witness.note(AcknowledgedState("b" * 32, "two", 0, 0, "dropped"))
    witness.settle()
    witness.note(AcknowledgedState("c" * 32, "three", 1, 1))
    after = load(tmp_path)
    assert after is not None
    assert (after.position, set(after.seen)) == (LogPosition(), {"a" * 32, "c" * 32})
    witness.close()


# ---------------------------------------------------------------- folders of the release before the witness


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Written by commit 2684e2d: `closed` cleanly, `killed` with ten more rows in the log; the rows' vectors."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def rows_of(store: CollectionStore, name: str) -> dict[str, bytes]:
    batches = store.get(name).export_rows()
    return {record.id: record.vector.tobytes() for batch in batches for record in batch if record.vector is not None}


@pytest.mark.parametrize("folder", ["closed", "killed"])
def test_folders_of_before_open_with_all_they_had(before: Path, folder: str) -> None:
    vectors = np.load(before / "vectors.npy")
    right = {f"r{n}": vectors[n].tobytes() for n in range(5, 50)}
    more = {f"r{n}": vectors[n].tobytes() for n in range(50, 60)} if folder == "killed" else {}
    for _ in range(2):
        with CollectionStore.open(before / folder, settings=SETTINGS) as store:
            assert store.warnings == ()
            assert rows_of(store, "flat") == right | more
            assert rows_of(store, "sq8") == right
            assert store.get("sq8").doctor().healthy
    assert not (before / folder / "progress.json").exists()  # the witness has taken its place
    with CollectionStore.open(before / "new", settings=SETTINGS) as store:
        assert store.restore(before / "sq8.snapshot", name="sq8").describe().count == 45


def test_the_note_of_before_still_knows_a_lost_log(before: Path) -> None:
    (before / "killed" / "collections.sqlite3-wal").unlink()
    with CollectionStore.open(before / "killed", settings=SETTINGS) as store:
        (loss,) = store.get("flat").describe().losses
        assert (loss.kind, loss.reached - loss.found, loss.items_after) == ("changes", 10, 45)
        assert loss.items_before is None
