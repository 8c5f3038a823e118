"""What the store takes and refuses at its doors, and what the doctor tells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from model_store.errors import SpaceMismatch
from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem
from service.retrieval.errors import (
    CollectionConflict,
    CollectionNotFound,
    InvalidCollection,
    InvalidFilter,
    InvalidItem,
    InvalidQuery,
    ItemNotFound,
    StoreClosed,
    StoreCorrupt,
)
from service.retrieval.truth.database import CHECKSUMS

SETTINGS = RetrievalSettings(threads=1, checkpoint_s=3600)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CollectionStore]:
    with CollectionStore.open(tmp_path, settings=SETTINGS) as opened:
        yield opened


def good(**change: Any) -> StoreItem:
    given = {"id": "a", "vector": np.eye(8, dtype=np.float32)[0], "metadata": {}, **change}
    return StoreItem(**given)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (good(id=""), "1 to 512 bytes"),
        (good(id="é" * 257), "got 514"),
        (good(id="a\nb"), "control"),
        (good(id="\ud800"), "Unicode"),
        (good(id=7), "must be a string"),
        (good(vector=np.ones(8, np.float32)), "length 1"),
        (good(vector=np.full(8, np.nan, np.float32)), "finite"),
        (good(vector=np.full(8, np.inf, np.float32)), "finite"),
        (good(vector=np.eye(7, dtype=np.float32)[0]), "8 numbers"),
        (good(vector=np.eye(8)[0]), "float32, got float64"),
        (good(metadata=[]), "object"),
        (good(metadata={"a": float("nan")}), "NaN"),
        (good(metadata={"a": 2**63}), "64 bits"),
        (good(metadata={"a": "\ud800"}), "Unicode"),
        (good(metadata={1: 2}), "key must be a string"),
        (good(metadata={"a": object()}), "JSON does not know"),
        (good(metadata={"a": "x" * 70_000}), "the limit is 65536"),
        (good(metadata={"n": "three"}), "'n' must be of type number"),
    ],
)
def test_bad_items_are_refused_alone_or_all(store: CollectionStore, spec: Any, item: StoreItem, reason: str) -> None:
    collection, _ = store.create("photos", spec(schema={"n": "number"}))
    outcomes = collection.upsert([good(id="before"), item, good(id="after")])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert reason in str(outcomes[1].error)
    with pytest.raises(InvalidItem, match=r".") as refused:
        collection.upsert([good(id="more"), item], all_or_nothing=True)
    assert refused.value.index == 1
    assert [record.id for record in collection.items().records] == ["after", "before"]


@pytest.mark.parametrize(
    ("vectors", "options", "reason"),
    [
        (np.zeros((1, 8), np.float32), {}, "zero vector"),
        (np.full((1, 8), np.nan, np.float32), {}, "not finite"),
        (np.ones((1, 7), np.float32), {}, "float32 .n, 8."),
        (np.ones(8, np.float32), {}, "float32 .n, 8."),
        (np.ones((1, 8)), {}, "float64"),
        (np.ones((1, 8), np.float32), {"top_k": 0}, "top_k"),
        (np.ones((1, 8), np.float32), {"offset": -1}, "offset"),
        (np.ones((1, 8), np.float32), {"top_k": 9000, "offset": 1001}, "10000"),
        (np.ones((1, 8), np.float32), {"exclude_ids": []}, "exclude_ids"),
    ],
)
def test_bad_queries_are_refused(
    store: CollectionStore, spec: Any, vectors: Any, options: dict[str, Any], reason: str
) -> None:
    collection, _ = store.create("photos", spec())
    with pytest.raises(InvalidQuery, match=reason):
        collection.search(vectors, **options)


def test_doors_of_store_and_collection(tmp_path: Path, spec: Any, fill: Any) -> None:
    """Names, conflicts, drops, pages, cursors, and what a closed store says."""
    store = CollectionStore.open(tmp_path, settings=SETTINGS)
    collection, new = store.create("photos", spec())
    assert new
    for name in ("", "A", "../x", "a/b", "-x", "x" * 65, "con\0"):
        with pytest.raises(InvalidCollection):
            store.create(name, spec())
    with pytest.raises(CollectionConflict, match="dim: it has 8, asked for is 9$"):
        store.create("photos", spec(dim=9))
    with pytest.raises(CollectionConflict, match="kind: it has 'flat', asked for is 'sq8'; index.oversample: it has 4"):
        store.create("photos", spec(kind="sq8", oversample=5))
    assert collection.search(np.ones((1, 8), np.float32))[0].hits == []
    rows = fill(collection, 25)
    first = collection.items(limit=10)
    second = collection.items(limit=10, cursor=first.cursor)
    third = collection.items(limit=10, cursor=second.cursor)
    assert third.cursor is None
    listed = [record.id for page in (first, second, third) for record in page.records]
    assert listed == sorted(f"r{n}" for n in range(25))
    for cursor in ("?", "////", "gA=="):
        with pytest.raises(InvalidQuery, match="cursor"):
            collection.items(cursor=cursor)
    with pytest.raises(InvalidQuery):
        collection.delete()
    with pytest.raises(InvalidFilter):
        collection.delete(filter={"$x": 1})
    assert (collection.get("r3", with_vector=True).vector == rows[3]).all()
    with pytest.raises(ItemNotFound):
        collection.get("r99")
    assert [None if row is None else row.tolist() for row in collection.vector_of(["r1", "no", "r1"])] == [
        rows[1].tolist(),
        None,
        rows[1].tolist(),
    ]
    store.drop("photos")
    with pytest.raises(CollectionNotFound):
        collection.upsert([])
    with pytest.raises(CollectionNotFound):
        store.get("photos")
    store.close()
    store.close()
    with pytest.raises(StoreClosed):
        store.create("more", spec())
    with pytest.raises(StoreClosed):
        store.get("photos")


def test_without_a_folder_nothing_is_left(
    spec: Any, fill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with CollectionStore.open(None, settings=SETTINGS) as store:
        collection, _ = store.create("photos", spec())
        fill(collection, 5)
        assert collection.describe().durability == "none"
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_the_pins_of_a_collection() -> None:
    pinned = CollectionSpec(model="m@1", space="s1", fingerprints={"image": "f1"}, dim=8, index=IndexSpec())
    pinned.require_space("s1", of="the query")
    pinned.require_fingerprint("image", "f1", of="the row")
    with pytest.raises(SpaceMismatch, match="the query is of space s2.*s1"):
        pinned.require_space("s2", of="the query")
    with pytest.raises(SpaceMismatch, match="text encoder f1"):
        pinned.require_fingerprint("text", "f1", of="the row")


def test_doctor_finds_what_is_wrong(tmp_path: Path, store: CollectionStore, spec: Any, fill: Any) -> None:
    """A row changed by a hand that knows page checksums but not the row's own, and one that is only in the index."""
    collection, _ = store.create("photos", spec())
    fill(collection, 30)
    assert collection.doctor().healthy
    other_hand = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs=CHECKSUMS)
    other_hand.execute("UPDATE metadata_1 SET document = '{}' WHERE rid = 3")
    report = collection.doctor()
    assert (report.bad_rows, report.healthy) == (("r2",), False)
    with pytest.raises(StoreCorrupt, match="row 3"):
        collection.get("r2")
    collection.delete(["r2"])
    for table in ("items", "metadata", "vectors"):
        other_hand.execute(f"DELETE FROM {table}_1 WHERE rid = 7")
    other_hand.close()
    problems = collection.doctor().problems
    assert problems[0] == "28 rows are there, 29 should be"
    assert "does not hold exactly the rows" in problems[1]
