"""Thumbnails lie and go with their rows: counted, carried by snapshots, found by the doctor, and gone with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem
from service.retrieval.errors import CollectionConflict, InvalidItem, StorageFull, StoreCorrupt
from service.retrieval.records import KeptTotals
from service.retrieval.truth import beside, thumbnails
from service.retrieval.truth.database import CHECKSUMS, run

DIM = 8
QUIET = RetrievalSettings(checkpoint_s=3600)
SPEC = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=DIM, index=IndexSpec(kind="flat"), thumbnails=True)


def webp(seed: int, size: int = 3000) -> bytes:
    """Bytes of the form of a WebP; the store looks no further."""
    return b"RIFF\x00\x00\x00\x00WEBP" + np.random.default_rng(seed).bytes(size)


def item(id: str, picture: bytes | None, *, seed: int = 0) -> StoreItem:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return StoreItem(id, (vector / np.linalg.norm(vector)).astype(np.float32), {"seed": seed}, picture)


def picture_of(collection: Any, id: str) -> bytes | None:
    return collection.get(id, with_thumbnail=True).thumbnail


def kept(collection: Any) -> tuple[int, int]:
    found = collection.describe().thumbnails
    return found.count, found.bytes


def test_a_picture_comes_is_replaced_and_goes_with_its_row_and_is_counted(tmp_path: Path) -> None:
    one, two = webp(1), webp(2, 20_000)
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        assert kept(made) == (0, 0)
        made.upsert([item("a", one), item("b", two), item("text", None)])
        assert [picture_of(made, id) for id in ("a", "b", "text")] == [one, two, None]
        assert made.get("a").thumbnail is None, "only where it is asked for"
        assert kept(made) == (2, len(one) + len(two))
        made.upsert([item("a", two)])
        assert (picture_of(made, "a"), kept(made)) == (two, (2, 2 * len(two)))
        made.upsert([item("a", None)])
        assert (picture_of(made, "a"), kept(made)) == (None, (1, len(two)))
        made.upsert([item("c", one), item("c", two)])  # of equal ids the last one stays
        assert (picture_of(made, "c"), kept(made)) == (two, (2, 2 * len(two)))
        assert made.delete(["c", "nobody"]) == 1
        assert kept(made) == (1, len(two))
        made.upsert([item(f"many-{n}", webp(n)) for n in range(1200)])
        assert kept(made)[0] == 1201
        assert made.delete(filter={"seed": 0}) == 1203
        assert kept(made) == (0, 0)
        made.upsert([item("a", one)])
        made.compact()
        assert made.doctor().healthy
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        assert (picture_of(store.get("c"), "a"), kept(store.get("c"))) == (one, (1, len(one)))


def test_the_option_is_part_of_what_a_collection_is(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        store.create("c", SPEC)
        assert store.create("c", SPEC)[1] is False
        without = SPEC.model_copy(update={"thumbnails": False})
        with pytest.raises(CollectionConflict, match="thumbnails: it has True, asked for is False"):
            store.create("c", without)
        plain, _ = store.create("plain", without)
        assert plain.describe().thumbnails is None
        with pytest.raises(InvalidItem, match="keeps no thumbnails"):
            plain.upsert([item("a", webp(1))], all_or_nothing=True)
    # A version of before the option reads what does not use it.
    assert "thumbnails" not in without.model_dump_json()


@pytest.mark.parametrize("bad", [b"", b"<svg onload=alert(1)>", webp(1, thumbnails.MAX_THUMBNAIL_BYTES)])
def test_what_is_no_thumbnail_is_refused(tmp_path: Path, bad: bytes) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        with pytest.raises(InvalidItem, match="a thumbnail must be a WebP"):
            made.upsert([item("a", bad)], all_or_nothing=True)


def test_a_dropped_collection_takes_its_pictures_along(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        for name in ("gone", "stays"):
            store.create(name, SPEC)[0].upsert([item("a", webp(1))])
        store.drop("gone")
        with store._log.read() as db:  # noqa: SLF001
            tables = {name for (name,) in run(db, "SELECT name FROM sqlite_schema")}
            assert run(db, "SELECT pictures FROM thumbnail_totals") == [(1,)]
        assert {name for name in tables if name.startswith("thumbnails_")} == {"thumbnails_2"}


def test_a_snapshot_carries_them_and_an_interrupted_restore_leaves_none(tmp_path: Path) -> None:
    pictures = {f"r{n}": webp(n) if n % 3 else None for n in range(50)}
    file = tmp_path / "c.snapshot"
    with CollectionStore.open(tmp_path / "data", settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        made.upsert([item(id, picture) for id, picture in pictures.items()])
        made.snapshot(file)
        copy = store.restore(file, name="copy")
        assert copy.spec.thumbnails
        assert {id: picture_of(copy, id) for id in pictures} == pictures
        assert kept(copy) == kept(made)
        assert copy.doctor().healthy

        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "bad.snapshot").write_bytes(data)
        with pytest.raises(StoreCorrupt, match=r"bad\.snapshot"):
            store.restore(tmp_path / "bad.snapshot", name="bad")
        with store._log.read() as db:  # noqa: SLF001
            assert len(run(db, "SELECT * FROM thumbnail_totals")) == 2


def test_snapshots_without_thumbnails_are_as_they_were(tmp_path: Path) -> None:
    """So versions of before the option restore them."""
    with CollectionStore.open(tmp_path / "data", settings=QUIET) as store:
        made, _ = store.create("c", SPEC.model_copy(update={"thumbnails": False}))
        made.upsert([item("a", None)])
        made.snapshot(tmp_path / "c.snapshot")
    first, header = (tmp_path / "c.snapshot").read_bytes().split(b"\n")[:2]
    assert first == b"CLIPWORKS-SNAPSHOT 1"
    assert b"thumbnails" not in header


def test_the_doctor_and_the_reader_name_a_damaged_picture(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        made.upsert([item(f"r{n}", webp(n)) for n in range(600)])
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs=CHECKSUMS)
    run(db, "UPDATE thumbnails_1 SET picture = ? WHERE rid = 300", (webp(7),))
    run(db, "DELETE FROM thumbnails_1 WHERE rid = 5")
    db.close()
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        collection = store.get("c")
        with pytest.raises(StoreCorrupt, match="thumbnail of row 300"):
            picture_of(collection, "r299")
        assert collection.get("r299").metadata == {"seed": 0}
        problems = collection.doctor().problems
        assert problems[0] == "1 thumbnails are not what was written; store these items again: 'r299'"
        assert problems[1].startswith("599 thumbnails of ")
        collection.upsert([item("r299", webp(1))])
        assert picture_of(collection, "r299") == webp(1)


def test_files_of_before_take_them(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        store.create("old", SPEC.model_copy(update={"thumbnails": False}))[0].upsert([item("a", None)])
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs=CHECKSUMS)
    run(db, "DROP TABLE thumbnail_totals")
    db.close()
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        store.create("new", SPEC)[0].upsert([item("a", webp(1))])
        assert kept(store.get("new"))[0] == 1
        assert store.get("old").describe().count == 1


def test_a_refused_write_leaves_neither_row_nor_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is the last thing written of a row: when there is no room for it, the row is not there either."""
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        made.upsert([item("a", webp(1))])

        def full(*_: Any) -> None:
            raise apsw.FullError

        with monkeypatch.context() as patch:
            patch.setattr(beside.BesideTable, "insert", full)
            with pytest.raises(StorageFull):
                made.upsert([item("a", webp(2)), item("b", webp(3))])
        assert (made.describe().count, picture_of(made, "a")) == (1, webp(1))
        assert made.describe().thumbnails == KeptTotals(1, len(webp(1)))
        assert made.doctor().healthy
