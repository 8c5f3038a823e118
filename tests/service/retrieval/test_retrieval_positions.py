"""Position vectors lie and go with their rows, as thumbnails do; files of before have none and open as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem
from service.retrieval.errors import CollectionConflict, InvalidItem, InvalidQuery, StoreCorrupt
from service.retrieval.records import KeptTotals, RerankSpec
from service.retrieval.truth.database import CHECKSUMS, run
from service.retrieval.truth.positions import MAX_POSITIONS_BYTES, pack_positions, unpack_positions

DIM, WIDTH = 8, 6
QUIET = RetrievalSettings(checkpoint_s=3600)
RERANK = RerankSpec(model="judge@1", source="s", width=WIDTH)
SPEC = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=DIM, index=IndexSpec(kind="flat"), rerank=RERANK)
PLAIN = SPEC.model_copy(update={"rerank": None})


def grid(seed: int, rows: int = 3, columns: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns, WIDTH)).astype(np.float32)


def item(id: str, positions: np.ndarray | bytes | None, **more: Any) -> StoreItem:
    vector = np.zeros(DIM, np.float32)
    vector[0] = 1
    packed = pack_positions(positions) if isinstance(positions, np.ndarray) else positions
    return StoreItem(id, vector, {}, positions=packed, **more)


def kept(collection: Any, *ids: str) -> list[Any]:
    return [None if each is None else each.tolist() for each in collection.positions_of(ids)]


def halved(*grids: np.ndarray | None) -> list[Any]:
    return [None if each is None else each.astype(np.float16).astype(np.float32).tolist() for each in grids]


def test_a_grid_is_packed_in_half_precision_and_nothing_else_is_one() -> None:
    for rows, columns in ((1, 1), (14, 9), (300, 2)):
        found = unpack_positions(pack_positions(grid(1, rows, columns)), WIDTH)
        assert found.shape == (rows, columns, WIDTH)
        np.testing.assert_array_equal(found, grid(1, rows, columns).astype(np.float16))
    for bad in (7e4, np.nan, np.inf):
        with pytest.raises(InvalidItem, match="half precision"):
            pack_positions(np.full((1, 1, WIDTH), bad, np.float32))


def test_they_come_are_replaced_and_go_with_their_rows(tmp_path: Path) -> None:
    one, two = grid(1), grid(2, 5, 2)
    size = 4 + 2 * one.size
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        made, _ = store.create("c", SPEC)
        made.upsert([item("a", one), item("b", two), item("text", None)])
        assert kept(made, "text", "b", "nobody", "a", "b") == halved(None, two, None, one, two)
        assert made.describe().positions == KeptTotals(2, size + 4 + 2 * two.size)
        made.upsert([item("b", one)])
        assert kept(made, "b") == halved(one)
        made.upsert([item("b", None)])
        assert (kept(made, "b"), made.describe().positions) == ([None], KeptTotals(1, size))
        made.delete(["a"])
        assert (kept(made, "a"), made.describe().positions) == ([None], KeptTotals(0, 0))
        made.upsert([item("a", one)])
        made.compact()
        assert made.doctor().healthy
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        assert kept(store.get("c"), "a") == halved(one)
        for bad in (b"", b"\x01\x00", pack_positions(one)[:-1], pack_positions(one) + b"\0\0", b"\0" * 4):
            with pytest.raises(InvalidItem, match="position vectors"):
                store.get("c").upsert([item("x", bad)], all_or_nothing=True)
        with pytest.raises(InvalidItem, match="the limit"):
            store.get("c").upsert([item("x", b"\1" * (MAX_POSITIONS_BYTES + 1))], all_or_nothing=True)
        store.drop("c")
        with store._log.read() as db:  # noqa: SLF001
            assert not run(db, "SELECT 1 FROM sqlite_schema WHERE name LIKE 'positions_%'")
            assert not run(db, "SELECT 1 FROM position_totals")


def test_a_collection_without_them_is_as_it_was(tmp_path: Path) -> None:
    assert "rerank" not in PLAIN.model_dump_json(), "versions of before read it"
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        plain, _ = store.create("plain", PLAIN)
        plain.upsert([item("a", None)])
        with pytest.raises(InvalidItem, match="keeps no position vectors"):
            plain.upsert([item("b", grid(1))], all_or_nothing=True)
        with pytest.raises(InvalidQuery, match="keeps no position vectors"):
            plain.positions_of(["a"])
        with pytest.raises(CollectionConflict, match="rerank: it has None, asked for is 'judge@1'"):
            store.create("plain", SPEC)
        plain.snapshot(tmp_path / "plain.snapshot")
    assert (tmp_path / "plain.snapshot").read_bytes().startswith(b"CLIPWORKS-SNAPSHOT 1\n")
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs=CHECKSUMS)
    run(db, "DROP TABLE position_totals")  # as files of before are
    db.close()
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        assert store.get("plain").get("a").id == "a"
        assert store.get("plain").describe().positions is None
        made, _ = store.create("c", SPEC)
        made.upsert([item("a", grid(1))])
        assert kept(made, "a") == halved(grid(1))


@pytest.mark.parametrize("thumbnails", [False, True])
def test_a_snapshot_carries_them(tmp_path: Path, thumbnails: bool) -> None:
    picture = b"RIFF\0\0\0\0WEBP" + bytes(100) if thumbnails else None
    grids = {f"r{n}": grid(n, 1 + n % 4) if n % 3 else None for n in range(20)}
    with CollectionStore.open(tmp_path / "data", settings=QUIET) as store:
        made, _ = store.create("c", SPEC.model_copy(update={"thumbnails": thumbnails}))
        made.upsert([item(id, each, thumbnail=picture) for id, each in grids.items()])
        made.snapshot(tmp_path / "c.snapshot")
        copy = store.restore(tmp_path / "c.snapshot", name="copy")
        assert copy.spec == made.spec
        assert kept(copy, *grids) == halved(*grids.values())
        assert copy.get("r1", with_thumbnail=True).thumbnail == picture
        assert copy.describe().positions == made.describe().positions
        assert copy.doctor().healthy


def test_the_doctor_and_the_reader_name_what_is_damaged(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        store.create("c", SPEC)[0].upsert([item(f"r{n}", grid(n)) for n in range(9)])
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs=CHECKSUMS)
    run(db, "UPDATE positions_1 SET grid = ? WHERE rid = 3", (pack_positions(grid(99)),))
    run(db, "DELETE FROM positions_1 WHERE rid = 5")
    db.close()
    with CollectionStore.open(tmp_path, settings=QUIET) as store:
        with pytest.raises(StoreCorrupt, match="position vectors of row 3"):
            store.get("c").positions_of(["r2"])
        problems = store.get("c").doctor().problems
    assert problems[0] == "1 sets of position vectors are not what was written; store these items again: 'r2'"
    assert problems[1].startswith("8 sets of position vectors")
