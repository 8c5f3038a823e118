"""The embedded store and Milvus behind one interface: the same life, held against a dict and numpy."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem
from service.retrieval.backends.errors import NotSupported
from service.retrieval.backends.milvus import MilvusBackend
from service.retrieval.backends.protocol import Backend, BackendCollection
from service.retrieval.errors import (
    CollectionConflict,
    CollectionNotFound,
    InvalidCollection,
    InvalidFilter,
    InvalidItem,
    InvalidQuery,
    ItemNotFound,
)
from tests.milvus import DURABILITY, empty_milvus

pytest.importorskip("milvus_lite", reason="the milvus backend is tested with milvus-lite")
SETTINGS = RetrievalSettings(threads=1, checkpoint_s=3600)
DIM = 3
SCHEMA: dict[str, Any] = {
    "n": "number",
    "s": "string",
    "f": "boolean",
    "a.b": "number",
    "tags": "string[]",
    "sizes": "number[]",
}
# Few directions, so that ties and duplicates are common.
WAYS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (1, 1, 0), (1, 1, 1), (0.3, 0.2, 0.9), (-0.7, 0.1, 0.4)]
IDS = [*(f"i{n}" for n in range(12)), "é/x", "a b", '"q"', "it's", "back\\slash", "𝄞", "a" * 512]


def spec_of(
    kind: str = "flat", *, schema: dict[str, Any] | None = None, dim: int = DIM, **index: Any
) -> CollectionSpec:
    return CollectionSpec(
        model="m@1",
        space="s",
        fingerprints={"image": "f"},
        dim=dim,
        index=IndexSpec(kind=kind, **index),
        metadata_schema=SCHEMA if schema is None else schema,
    )


def unit(way: Any) -> np.ndarray:
    values = np.array(way, dtype=np.float64)
    return (values / np.linalg.norm(values)).astype(np.float32)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Generator[MilvusBackend]:
    backend = MilvusBackend(empty_milvus(tmp_path_factory.mktemp("milvus") / "test.db"), settings=SETTINGS)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Generator[CollectionStore]:
    with CollectionStore.open(tmp_path_factory.mktemp("embedded"), settings=SETTINGS) as store:
        yield store


@pytest.fixture(params=["embedded", "milvus"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


@pytest.fixture
def collection(backend: Backend) -> Generator[BackendCollection]:
    yield backend.create("life", spec_of())[0]
    backend.drop("life")


Model = dict[str, tuple[np.ndarray, dict[str, Any]]]


def some_metadata(chance: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"owner": chance.choice("abc")}
    if chance.random() < 0.7:
        made["n"] = chance.choice([0, 1, 2.5, -3])
    if chance.random() < 0.5:
        made["tags"] = chance.sample(["x", "y", "z"], chance.randint(0, 2))
    return made


FILTERS: list[tuple[dict[str, Any] | None, Callable[[dict[str, Any]], bool]]] = [
    (None, lambda m: True),
    ({"owner": "a"}, lambda m: m["owner"] == "a"),
    ({"n": {"$gte": 0, "$lt": 2}}, lambda m: 0 <= m.get("n", -1) < 2),
    ({"tags": {"$in": ["x", "q"]}}, lambda m: "x" in m.get("tags", [])),
    ({"$not": {"n": {"$gt": 0}}}, lambda m: not m.get("n", 0) > 0),
]


def test_a_random_life_equals_a_dictionary(collection: BackendCollection) -> None:
    """Upserts, deletes, filters, pages, searches with ties, offsets and exclusions; every answer is compared."""
    chance, model = random.Random(5), Model()
    for _ in range(120):
        dice = chance.random()
        if dice < 0.4:
            rows = [
                (chance.choice(IDS), chance.choice(WAYS), some_metadata(chance)) for _ in range(chance.randint(1, 5))
            ]
            outcomes = collection.upsert([StoreItem(id, unit(way), data) for id, way, data in rows])
            for (id, way, data), outcome in zip(rows, outcomes, strict=True):
                assert (outcome.error, outcome.created) == (None, id not in model)
                model[id] = (unit(way), data)
        elif dice < 0.5:
            chosen = chance.choices(IDS, k=3)
            assert collection.delete(chosen) == len({id for id in chosen if model.pop(id, None)})
        elif dice < 0.56:
            wanted, matches = chance.choice(FILTERS[1:])
            gone = [id for id, (_, data) in model.items() if matches(data)]
            assert collection.delete(filter=wanted) == len(gone)
            for id in gone:
                del model[id]
        elif dice < 0.9:
            compare_search(collection, model, chance)
        else:
            compare_rows(collection, model, limit=chance.randint(1, 7))
    compare_rows(collection, model, limit=100)
    report = collection.doctor(queries=5, recall_at=3)
    assert (report.healthy, report.rows, report.indexed, report.recall) == (True, len(model), len(model), 1.0)


def compare_search(collection: BackendCollection, model: Model, chance: random.Random) -> None:
    wanted, matches = chance.choice(FILTERS)
    queries = np.stack([unit(chance.choice(WAYS)) for _ in range(2)])
    top_k, offset, excluded = chance.randint(1, 12), chance.randint(0, 3), chance.sample(IDS, 2)
    least = chance.choice([None, -0.5, 0.5])
    results = collection.search(
        queries,
        top_k=top_k,
        offset=offset,
        filter=wanted,
        min_score=least,
        exclude_ids=[excluded, ()],
        with_vectors=True,
    )
    for query, result, hidden in zip(queries, results, (excluded, ()), strict=True):
        scored = sorted(
            (-float(np.float32((row.astype(np.float64) * query.astype(np.float64)).sum())), id)
            for id, (row, data) in model.items()
            if matches(data) and id not in hidden
        )
        kept = [(score, id) for score, id in scored if least is None or -score >= least]
        assert result.exact
        assert [(-hit.score, hit.id) for hit in result.hits] == kept[offset : offset + top_k]
        for hit in result.hits:
            assert hit.metadata == model[hit.id][1]
            assert hit.vector is not None
            assert (hit.vector == model[hit.id][0]).all()


def compare_rows(collection: BackendCollection, model: Model, *, limit: int) -> None:
    found, cursor = [], None
    while True:
        page = collection.items(cursor=cursor, limit=limit, with_vectors=True)
        found += page.records
        if (cursor := page.cursor) is None:
            break
    assert [record.id for record in found] == sorted(model)
    for record in found:
        assert record.vector is not None
        assert (record.vector == model[record.id][0]).all()
        assert record.metadata == model[record.id][1]
    assert collection.describe().count == len(model)
    exported = {record.id for batch in collection.export_rows(batch=3) for record in batch}
    assert exported == set(model)
    if model:
        some = sorted(model)[0]
        assert collection.get(some).metadata == model[some][1]
        stored, none = collection.vector_of([some, "not there"])
        assert none is None
        assert stored is not None
        assert (stored == model[some][0]).all()


KEYS = ("a", "b", "n", "s", "née", "a b", "x'y")
texts = st.sampled_from(["", "x", "X", "1", "true", "é", "z\x00z", '"q"', "'", "\\", "𝄞"]) | st.text(max_size=3)
numbers = (
    st.integers(-2, 2)
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 0.1, 5e-324, 1e308, 2.0**53])
)
wild_numbers = numbers | st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | wild_numbers | texts
free_values = st.recursive(
    scalars, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.sampled_from(KEYS), deeper, max_size=2)
)
metadatas = st.builds(
    lambda declared, free: {**free, **declared},
    st.fixed_dictionaries(
        {},
        optional={
            "n": numbers,
            "s": texts,
            "f": st.booleans(),
            "a": st.fixed_dictionaries({"c": free_values}, optional={"b": numbers}),
            "tags": st.lists(texts, max_size=3),
            "sizes": st.lists(numbers, max_size=3),
        },
    ),
    st.dictionaries(
        st.sampled_from(["free", "née", "a b", "x'y", "dot.ted", "dot", "$x", ""]), free_values, max_size=3
    ),
)
anything = {"$eq": scalars, "$ne": scalars, "$in": st.lists(scalars, min_size=1, max_size=3), "$exists": st.booleans()}


def typed(kind: str) -> st.SearchStrategy[Any]:
    """What may be asked of a declared field."""
    values = {"n": wild_numbers, "s": texts, "b": st.booleans()}[kind[0]]
    asked = {"$eq": values, "$ne": values, "$in": st.lists(values, min_size=1, max_size=3), "$exists": st.booleans()}
    if kind[0] != "b":
        asked |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), values)
    if kind == "string":
        asked["$prefix"] = values
    return values | st.fixed_dictionaries({}, optional=asked).filter(bool)


conditions = st.one_of(
    # What a declared field never holds is refused by both.
    st.dictionaries(st.sampled_from(sorted(SCHEMA)), scalars | st.fixed_dictionaries({"$gte": scalars}), max_size=2),
    st.fixed_dictionaries({}, optional={field: typed(kind) for field, kind in SCHEMA.items()}),
    st.dictionaries(
        st.sampled_from(
            ["free", "free.a", "free.n", "née", "a b", "x'y", "a", "a.c", "no", "dot.ted", "dot\\.ted", "free.d\\.t"]
        ),
        scalars | st.fixed_dictionaries({}, optional=anything).filter(bool),
        max_size=2,
    ),
)
filters = st.recursive(
    conditions,
    lambda deeper: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(deeper, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(deeper, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": deeper}),
    ),
    max_leaves=6,
)
QUERY = unit((1, 2, 3))[None]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(rows=st.lists(metadatas, min_size=1, max_size=12), wanted=st.lists(filters, min_size=1, max_size=8))
@example(
    rows=[{"free": True}, {"free": 1}, {"free": "1"}, {"free": [1]}, {"free": None}, {"free": []}, {"free": {}}, {}],
    wanted=[{"free": 1}, {"free": True}, {"free": None}, {"free": {"$ne": 1}}, {"free": {"$exists": False}}],
)
@example(
    rows=[{"dot.ted": 1}, {"dot": {"ted": 1}}, {"dot.ted": 2, "dot": {"ted": 1}}, {"free": {"d.t": 1}}, {"a.b": 3}],
    wanted=[
        {"dot.ted": 1}, {"dot\\.ted": 1}, {"dot.ted": {"$exists": False}}, {"free.d\\.t": 1}, {"free.d.t": 1},
        {"a.b": {"$gt": 2}}, {"a.b": 3},
    ],
)  # fmt: skip
@example(
    rows=[
        {"n": 2**53}, {"n": 2.0**53 + 4}, {"n": 1e300}, {"sizes": [1, 9]}, {"sizes": []}, {"s": "x" * 5000},
        {"s": "x" * 4096},
    ],
    wanted=[
        {"n": {"$gt": 2**53 + 3}}, {"n": {"$lte": 2**53 + 3}}, {"n": {"$gte": 2**53 + 5}}, {"n": {"$lt": 2**53 + 5}},
        {"sizes": {"$gt": 5, "$lt": 2}}, {"$not": {"sizes": {"$gte": 0}}}, {"s": {"$gt": "x" * 4096}},
        {"s": {"$lte": "x" * 4096}}, {"s": "x" * 4096},
    ],
)  # fmt: skip
def test_a_filter_means_the_same_in_both(
    embedded: CollectionStore, milvus: MilvusBackend, rows: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> None:
    """The embedded one is held against the language's definition in test_retrieval_filters.py."""
    both = [backend.create("filters", spec_of())[0] for backend in (embedded, milvus)]
    for collection in both:
        collection.delete(filter={})
        outcomes = collection.upsert([StoreItem(f"r{place:02}", QUERY[0], row) for place, row in enumerate(rows)])
        assert [outcome.error for outcome in outcomes] == [None] * len(rows)
    for filter in wanted:
        answers = [answer(collection, filter) for collection in both]
        assert answers[0] == answers[1], filter


def answer(collection: BackendCollection, filter: dict[str, Any]) -> list[str] | str:
    """Ids, or where the filter is wrong."""
    try:
        return [hit.id for hit in collection.search(QUERY, top_k=100, filter=filter)[0].hits]
    except InvalidFilter as error:
        return error.path


def test_what_milvus_cannot_say_is_refused_with_the_place(milvus: MilvusBackend) -> None:
    collection = milvus.create("refusals", spec_of())[0]
    for filter, place in (
        ({"free": {"$gt": 3}}, "filter.free.$gt"),
        ({"$or": [{"n": 1}, {"free": {"$lte": "x"}}]}, "filter.$or[1].free.$lte"),
        ({"tags": {"$prefix": "x"}}, "filter.tags.$prefix"),
        ({"free": {"$prefix": "x"}}, "filter.free.$prefix"),
    ):
        with pytest.raises(InvalidFilter, match="metadata_schema") as refused:
            collection.search(QUERY, filter=filter)
        assert refused.value.path == place
        with pytest.raises(InvalidFilter):
            collection.delete(filter=filter)
    good = StoreItem("good", QUERY[0], {})
    bad = StoreItem("bad", QUERY[0], {"n": 2**53 + 1})
    many = StoreItem("many", QUERY[0], {"free": list(range(5000))})
    outcomes = collection.upsert([good, bad, many])
    assert outcomes[0].error is None
    assert "2^53" in str(outcomes[1].error)
    assert "4096" in str(outcomes[2].error)
    with pytest.raises(InvalidItem) as first:
        collection.upsert([bad, good], all_or_nothing=True)
    assert first.value.index == 0
    assert collection.describe().count == 1
    with pytest.raises(NotSupported):
        collection.snapshot(Path("never"))
    with pytest.raises(InvalidCollection, match="sq8"):
        milvus.create("kind", spec_of("sq8"))
    with pytest.raises(InvalidCollection, match="66 columns"):
        milvus.create("wide", spec_of(schema={f"list{n}": "number[]" for n in range(33)}))


def test_refusals_that_both_share(backend: Backend) -> None:
    collection, is_new = backend.create("a.b-c_d", spec_of())
    assert is_new
    assert not backend.create("a.b-c_d", spec_of())[1]
    with pytest.raises(CollectionConflict):
        backend.create("a.b-c_d", spec_of(dim=4))
    assert "a.b-c_d" in {info.name for info in backend.list()}
    assert backend.get("a.b-c_d").spec == spec_of()
    for name in ("a_b-c_d", "nope", "UPPER", "x" * 65):
        with pytest.raises(CollectionNotFound):
            backend.get(name)
    with pytest.raises(InvalidCollection):
        backend.create("UPPER", spec_of())
    with pytest.raises(ItemNotFound):
        collection.get("x")
    with pytest.raises(InvalidQuery):
        collection.search(np.zeros((1, DIM), np.float32))
    with pytest.raises(InvalidQuery):
        collection.items(cursor="=/=")
    with pytest.raises(InvalidQuery):
        collection.search(QUERY, top_k=10_001)
    with pytest.raises(InvalidItem):
        collection.delete(["\x00"])
    backend.drop("a.b-c_d")
    with pytest.raises(CollectionNotFound):
        backend.drop("a.b-c_d")
    with pytest.raises(CollectionNotFound):
        collection.search(QUERY)


def test_more_ties_than_milvus_gives_at_once(milvus: MilvusBackend) -> None:
    """300 equal vectors: the answer is by id all the same, from whatever candidates come first."""
    collection = milvus.create("ties", spec_of())[0]
    order = random.Random(1).sample(range(300), 300)
    collection.upsert([StoreItem(f"{n:03}", QUERY[0], {}) for n in order])
    found = collection.search(QUERY, top_k=3, offset=2)[0]
    assert ([hit.id for hit in found.hits], found.exact) == (["002", "003", "004"], True)


def test_a_short_answer_of_milvus_is_not_its_last(milvus: MilvusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server stops at the end of a segment, which milvus-lite has only one of. Seen with Milvus 2.3.5: pages and an
    export of 100,000 rows ended at 40,000."""
    from pymilvus import MilvusClient

    collection = milvus.create("parts", spec_of())[0]
    ids = [f"r{n:02}" for n in range(50)]
    collection.upsert([StoreItem(id, unit([1, n, 2]), {}) for n, id in enumerate(ids)])
    query = MilvusClient.query

    def stopping(client: MilvusClient, *args: Any, **options: Any) -> Any:
        rows = query(client, *args, **options)
        is_page = "reduce_stop_for_best" in options
        return sorted(rows, key=lambda row: row["key"])[:7] if is_page else rows

    monkeypatch.setattr(MilvusClient, "query", stopping)
    first = collection.items(limit=20)
    assert [each.id for each in first.records] == ids[:20]
    rest = collection.items(cursor=first.cursor, limit=40)
    assert ([each.id for each in rest.records], rest.cursor) == (ids[20:], None)
    assert [each.id for batch in collection.export_rows(batch=9) for each in batch] == ids
    milvus.drop("parts")


def test_an_approximate_index_says_so_and_finds_most(milvus: MilvusBackend) -> None:
    collection = milvus.create("ivf", spec_of("auto", dim=16))[0]
    values = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    collection.upsert([StoreItem(f"r{n}", row, {}) for n, row in enumerate(values)])
    info = collection.describe()
    assert (info.kind, info.exact, info.count, info.backend, info.durability) == (
        "ivf_sq8", False, 3000, "milvus", DURABILITY,
    )  # fmt: skip
    assert not collection.search(values[:1])[0].exact
    report = collection.doctor(queries=20)
    assert report.healthy
    assert report.recall is not None
    assert report.recall > 0.8


def test_a_snapshot_of_the_embedded_store_is_restored_into_milvus(
    embedded: CollectionStore, milvus: MilvusBackend, tmp_path: Path
) -> None:
    source = embedded.create("moved", spec_of())[0]
    source.upsert([StoreItem(id, unit(WAYS[place % len(WAYS)]), {"n": place}) for place, id in enumerate(IDS)])
    source.snapshot(tmp_path / "moved.snapshot")
    milvus.restore(tmp_path / "moved.snapshot", name="moved")
    with pytest.raises(CollectionConflict):
        milvus.restore(tmp_path / "moved.snapshot", name="moved")
    moved = milvus.get("moved")
    rows = {
        r.id: (r.metadata, r.vector.tobytes()) for batch in source.export_rows() for r in batch if r.vector is not None
    }
    there = {
        r.id: (r.metadata, r.vector.tobytes()) for batch in moved.export_rows() for r in batch if r.vector is not None
    }
    assert rows == there
