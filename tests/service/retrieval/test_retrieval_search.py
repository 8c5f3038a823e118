"""Search against numpy brute force: exactness, ties, filters, kinds of index, and searching while others write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.retrieval import CollectionStore, RetrievalSettings, StoreItem
from service.retrieval.errors import InvalidItem, StoreClosed
from service.retrieval.index.faiss_index import VectorIndex

SETTINGS = RetrievalSettings(threads=1, checkpoint_s=3600)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CollectionStore]:
    with CollectionStore.open(tmp_path, settings=SETTINGS) as opened:
        yield opened


def truth(query: np.ndarray, rows: dict[str, np.ndarray], k: int) -> list[tuple[str, float]]:
    """Scores in float64, rounded to float32, best first, ties by id."""
    scored = [(-np.float32((row.astype(np.float64) * query.astype(np.float64)).sum()), id) for id, row in rows.items()]
    return [(id, -float(score)) for score, id in sorted(scored)[:k]]


def found(result: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in result.hits]


def test_flat_search_is_brute_force_to_the_last_bit(store: CollectionStore, spec: Any, fill: Any, vectors: Any) -> None:
    """The same scores alone and in a batch of 128, with and without dead slots in the way."""
    collection, _ = store.create("photos", spec(dim=512))
    rows = {f"r{n}": row for n, row in enumerate(fill(collection, 600))}
    queries = vectors(128, 512, 9)
    for _ in range(2):
        batch = collection.search(queries, top_k=10)
        assert [found(result) for result in batch] == [truth(query, rows, 10) for query in queries]
        assert all(result.exact for result in batch)
        assert [found(collection.search(query[None], top_k=10)[0]) for query in queries[:8]] == [
            found(result) for result in batch[:8]
        ]
        nearest = [truth(queries[0], rows, 100)[place][0] for place in range(100)]
        assert collection.delete(nearest) == 100
        for id in nearest:
            del rows[id]


def test_a_thousand_equal_vectors_come_by_id(store: CollectionStore, spec: Any, vectors: Any) -> None:
    """Pages through them meet each one once, in order, though FAISS has no order for them."""
    collection, _ = store.create("photos", spec(dim=16))
    one, others = vectors(1, 16, 0)[0], vectors(200, 16, 1)
    ids = [f"same{n:04}" for n in np.random.default_rng(2).permutation(1000)]
    collection.upsert(
        [StoreItem(id, one, {}) for id in ids] + [StoreItem(f"other{n}", row, {}) for n, row in enumerate(others)]
    )
    pages = [collection.search(one[None], top_k=100, offset=start)[0].hits for start in range(0, 1000, 100)]
    assert [hit.id for hits in pages for hit in hits] == sorted(ids)
    assert [hit.id for hit in collection.search(one[None], top_k=3, min_score=0.999)[0].hits] == sorted(ids)[:3]


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf_sq8"])
def test_filters_exclusions_and_vectors(store: CollectionStore, spec: Any, fill: Any, vectors: Any, kind: str) -> None:
    """A filter that leaves few rows is exact on every kind of index."""
    collection, _ = store.create("photos", spec(dim=16, kind=kind, schema={"group": "number"}))
    rows = fill(collection, 1500)
    collection.compact()
    assert collection.describe().kind == kind
    queries = vectors(3, 16, 7)
    allowed = {f"r{n}": row for n, row in enumerate(rows) if n % 10 == 3 and n != 13}
    results = collection.search(
        queries, top_k=5, filter={"group": 3}, exclude_ids=[["r13", "nobody"]] * 3, with_vectors=True
    )
    for query, result in zip(queries, results, strict=True):
        assert result.exact
        assert found(result) == truth(query, allowed, 5)
        for hit in result.hits:
            assert (hit.vector == allowed[hit.id]).all()
            assert hit.metadata == {"n": int(hit.id[1:]), "group": 3}
    assert collection.search(queries[:1], filter={"group": 99})[0].hits == []
    assert collection.search(queries[:1], with_metadata=False)[0].hits[0].metadata == {}


def test_a_broad_filter_on_a_flat_index_is_exact(store: CollectionStore, spec: Any, fill: Any, vectors: Any) -> None:
    collection, _ = store.create("photos", spec(dim=4))
    rows = fill(collection, 12_000)
    allowed = {f"r{n}": row for n, row in enumerate(rows) if n % 10 != 3}  # more than the exact path takes
    for query in vectors(4, 4, 7):
        result = collection.search(query[None], top_k=20, filter={"group": {"$ne": 3}})[0]
        assert (found(result), result.exact) == (truth(query, allowed, 20), True)


def test_remembered_filters_see_changes_and_rebuilds(
    store: CollectionStore, spec: Any, fill: Any, vectors: Any
) -> None:
    collection, _ = store.create("photos", spec(dim=8))
    rows = {f"r{n}": row for n, row in enumerate(fill(collection, 500))}
    query = vectors(1, 8, 3)
    for turn in range(6):
        wanted = {id: row for id, row in rows.items() if int(id[1:]) % 10 == 4}
        assert found(collection.search(query, top_k=10, filter={"group": 4})[0]) == truth(query[0], wanted, 10)
        if turn % 3 == 0:
            added = fill(collection, 50, seed=turn + 10, first=500 + 100 * turn)
            rows.update({f"r{500 + 100 * turn + n}": row for n, row in enumerate(added)})
        elif turn % 3 == 1:
            best = [id for id, _ in truth(query[0], wanted, 4)]
            collection.delete(best)
            for id in best:
                del rows[id]
        else:
            collection.compact()


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((64, dim))
    values = centres[rng.integers(0, 64, rows)] + 0.6 * rng.standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("kind", "least"), [("sq8", 0.99), ("ivf_sq8", 0.95)])
def test_recall_of_approximate_kinds(store: CollectionStore, spec: Any, kind: str, least: float) -> None:
    """Scores of approximate answers are exact all the same, and the answer admits what it is."""
    collection, _ = store.create("photos", spec(dim=64, kind=kind))
    values = clustered(6000, 64, 0)
    collection.upsert([StoreItem(f"r{n}", row, {}) for n, row in enumerate(values)])
    collection.compact()
    rows = {f"r{n}": row for n, row in enumerate(values)}
    queries = clustered(50, 64, 0)
    hits = 0
    for query, result in zip(queries, collection.search(queries, top_k=10), strict=True):
        expected = dict(truth(query, rows, 10))
        assert not result.exact
        assert all(
            score == np.float32((rows[id].astype(float) * query.astype(float)).sum()) for id, score in found(result)
        )
        hits += len(expected.keys() & {id for id, _ in found(result)})
    assert hits / 500 >= least
    report = collection.doctor(queries=50)
    assert report.healthy
    assert report.recall is not None
    assert report.recall >= least


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf_sq8"])
def test_a_batch_finds_what_its_queries_find_alone(store: CollectionStore, spec: Any, kind: str) -> None:
    """Batches go through a matrix product of blocks, single queries through FAISS; also with dead slots, filters."""
    collection, _ = store.create("photos", spec(dim=64, kind=kind))
    values = clustered(21_000, 64, 0)
    collection.upsert([StoreItem(f"r{n}", row, {"odd": n % 2}) for n, row in enumerate(values)])
    collection.compact()
    collection.delete([f"r{n}" for n in range(0, 21_000, 7)])
    queries = clustered(20, 64, 1)
    for filter in (None, {"odd": 1}):
        asked = {"top_k": 10, "filter": filter}
        batch = collection.search(queries, **asked)
        alone = [collection.search(query[None], **asked)[0] for query in queries]
        assert [found(result) for result in batch] == [found(result) for result in alone]
        assert all(int(hit.id[1:]) % 7 for result in batch for hit in result.hits)
        assert filter is None or all(hit.metadata == {"odd": 1} for result in batch for hit in result.hits)


def test_closing_ends_a_training(tmp_path: Path, spec: Any) -> None:
    """The rebuild is given up or done, nothing else; and the next owner finds every row."""
    values = clustered(12_000, 64, 0)
    store = CollectionStore.open(tmp_path, settings=RetrievalSettings(threads=1))
    collection, _ = store.create("photos", spec(dim=64, kind="ivf_sq8"))
    collection.upsert([StoreItem(f"r{n}", row, {}) for n, row in enumerate(values)])
    with ThreadPoolExecutor(1) as pool:
        rebuilt = pool.submit(collection.compact)
        store.close()
        assert isinstance(rebuilt.exception(), (StoreClosed, type(None)))
    with pytest.raises(StoreClosed, match="left unfinished"):
        VectorIndex.train(
            "ivf_sq8", values, dim=64, rows=len(values), nprobe=None, threads=1, stop=iter([False, True]).__next__
        )
    with CollectionStore.open(tmp_path) as again:
        assert again.get("photos").describe().count == 12_000
        assert len(list((tmp_path / "indexes").glob("*.vectors"))) == 1


def test_auto_goes_from_kind_to_kind_and_survives_a_restart(tmp_path: Path, spec: Any, fill: Any) -> None:
    settings = RetrievalSettings(flat_max_rows=300, sq8_max_rows=900, threads=1, checkpoint_s=3600)
    seen: list[str] = []
    with CollectionStore.open(tmp_path, settings=settings) as store:
        collection, _ = store.create("photos", spec(dim=8, kind="auto"))
        for turn in range(5):
            fill(collection, 250, seed=turn, first=250 * turn)
            wanted = ["flat", "sq8", "sq8", "ivf_sq8", "ivf_sq8"][turn]
            until = time.monotonic() + 20
            while collection.describe().kind != wanted and time.monotonic() < until:
                time.sleep(0.01)
            seen.append(collection.describe().kind)
        assert collection.doctor(queries=5).problems == ()
    assert seen == ["flat", "sq8", "sq8", "ivf_sq8", "ivf_sq8"]
    with CollectionStore.open(tmp_path, settings=settings) as store:
        info = store.get("photos").describe()
        assert (info.kind, info.count, info.exact, store.warnings) == ("ivf_sq8", 1250, False, ())


def test_dead_slots_are_cleared_in_the_background(store: CollectionStore, spec: Any, fill: Any) -> None:
    collection, _ = store.create("photos", spec(dim=8))
    fill(collection, 1000)
    fill(collection, 500, seed=1)  # the same ids again
    until = time.monotonic() + 20
    while collection.describe().dead and time.monotonic() < until:
        time.sleep(0.01)
    info = collection.describe()
    assert (info.count, info.dead) == (1000, 0)


@pytest.mark.parametrize("kind", ["flat", "sq8"])
def test_searching_while_writing_and_rebuilding(store: CollectionStore, spec: Any, vectors: Any, kind: str) -> None:
    """No search fails, shows an acknowledged delete, misses an acknowledged add, or loses a row that is updated."""
    collection, _ = store.create("photos", spec(dim=8, kind=kind))
    values = vectors(400, 8, 0)
    fixed = values[0]
    collection.upsert([StoreItem(f"old{n}", row, {"keep": n % 2 == 0}) for n, row in enumerate(values)])
    problems: list[str] = []
    stop = threading.Event()
    updates = 0

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except Exception as error:
                problems.append(repr(error))
                stop.set()

        return run

    def update() -> None:
        nonlocal updates
        while not stop.is_set():
            updates += 1
            collection.upsert([StoreItem("steady", fixed, {"keep": True, "turn": updates})])

    def add_and_delete() -> None:
        fresh = vectors(60, 8, 5)
        for n, row in enumerate(fresh):
            collection.upsert([StoreItem(f"new{n}", row, {"keep": True})])
            best = collection.search(row[None], top_k=1, filter={"keep": True} if n % 2 else None)[0].hits
            if best[0].id != f"new{n}":
                problems.append(f"acknowledged new{n} is not found: {best}")
            collection.delete([f"new{n}"])
            if f"new{n}" in {hit.id for hit in collection.search(row[None], top_k=5)[0].hits}:
                problems.append(f"deleted new{n} is found")

    def look() -> None:
        while not stop.is_set():
            for filter in ({"keep": True}, None):
                hits = collection.search(fixed[None], top_k=2, filter=filter)[0].hits
                if "steady" not in {hit.id for hit in hits}:
                    problems.append(f"a row that is only ever updated is missing with filter {filter}")

    def rebuild() -> None:
        while not stop.is_set():
            collection.compact()

    collection.upsert([StoreItem("steady", fixed, {"keep": True})])
    helpers = [threading.Thread(target=guarded(work)) for work in (update, look, look, rebuild)]
    for thread in helpers:
        thread.start()
    guarded(add_and_delete)()
    stop.set()
    for thread in helpers:
        thread.join()
    assert problems == []
    assert updates > 5
    assert collection.doctor(queries=5).problems == ()


def test_many_writers_share_commits(store: CollectionStore, spec: Any, vectors: Any) -> None:
    """Each gets its own outcome, a refused one hurts nobody, and the sequence counts every change once."""
    collection, _ = store.create("photos", spec(dim=8))
    values = vectors(80, 8, 0)

    def write(owner: int) -> None:
        for n in range(10):
            assert collection.upsert([StoreItem(f"{owner}-{n}", values[8 * n + owner], {})])[0].error is None
            with pytest.raises(InvalidItem):
                collection.upsert([StoreItem("", values[0], {})], all_or_nothing=True)

    threads = [threading.Thread(target=write, args=(owner,)) for owner in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = collection.describe()
    assert (info.count, info.sequence) == (80, 80)
    assert len(collection.search(values[:1], top_k=100)[0].hits) == 80
