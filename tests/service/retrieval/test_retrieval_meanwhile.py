"""Collections that come and go while others read: gone is gone, and nobody waits for a stranger's restore."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.retrieval.errors import CollectionConflict, CollectionNotFound
from service.retrieval.records import CollectionSpec, StoreItem
from service.retrieval.store import CollectionStore

DIM = 8
SPEC = CollectionSpec(
    dim=DIM, space="0" * 64, fingerprints={"image": "f"}, model="tiny@1", metadata_schema={"n": "number"}
)


def items(count: int) -> list[StoreItem]:
    vectors = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [StoreItem(id=f"{n:06}", vector=vector, metadata={"n": n}) for n, vector in enumerate(vectors)]


def until(stop: threading.Event, work: Callable[[], None], errors: list[Exception]) -> threading.Thread:
    """A thread that repeats `work`; a dropped collection is what it may meet."""

    def loop() -> None:
        while not stop.is_set():
            try:
                work()
            except CollectionNotFound:
                time.sleep(0)
            except Exception as error:  # whatever it is, the test must see it
                errors.append(error)
                return

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def test_reads_of_a_collection_that_is_being_dropped_say_that_it_is_gone(tmp_path: Path) -> None:
    rows, query = items(30), np.ones((1, DIM), dtype=np.float32)
    with CollectionStore.open(tmp_path / "data") as store:
        stop, errors, listed = threading.Event(), list[Exception](), list[int]()

        def count() -> None:
            try:
                listed.append(len(store.list()))
            except CollectionNotFound as error:
                raise RuntimeError("a list of collections cannot be missing one") from error

        work: list[Callable[[], object]] = [
            lambda: store.get("c").search(query, filter={"n": {"$lt": 20}}),
            lambda: store.get("c").items(),
            lambda: store.get("c").vector_of(["000001"]),
            count,
        ]
        threads = [until(stop, lambda one=one: one() and None, errors) for one in work]
        for _ in range(60):
            store.create("c", SPEC)[0].upsert(rows)
            store.drop("c")
        stop.set()
        for thread in threads:
            thread.join(30)
        assert errors == []
        assert {0, 1} == set(listed)


def test_a_restore_keeps_nobody_waiting_but_for_its_name(tmp_path: Path) -> None:
    with CollectionStore.open(tmp_path / "data") as store:
        store.create("old", SPEC)[0].upsert(items(20_000))
        store.get("old").snapshot(tmp_path / "old.snapshot")
        restoring = threading.Thread(target=store.restore, args=(tmp_path / "old.snapshot",), kwargs={"name": "new"})
        restoring.start()
        meanwhile: list[str] = []
        conflicts = 0
        while restoring.is_alive():
            assert [one.name for one in store.list()][-1:] in (["old"], ["new"])
            try:
                store.create("new", SPEC)
            except CollectionConflict as error:
                conflicts += "is being restored" in str(error)
            name = f"a{len(meanwhile)}"
            store.create(name, SPEC)
            store.drop(name)
            meanwhile.append(name)
        restoring.join()
        assert min(len(meanwhile), conflicts) >= 3
        assert store.get("new").describe().count == 20_000
        with pytest.raises(CollectionConflict, match="exists"):
            store.restore(tmp_path / "old.snapshot", name="new")
