"""Histograms, ranks and facets against brute force over all rows, on every kind of index."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.retrieval import CollectionSpec, CollectionStore, RetrievalSettings, StoreItem
from service.retrieval.surveys import Survey, SurveySpec

SETTINGS = RetrievalSettings(threads=1, checkpoint_s=3600)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CollectionStore]:
    with CollectionStore.open(tmp_path, settings=SETTINGS) as opened:
        yield opened


def scores_of(query: np.ndarray, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """As the search counts: summed in float64, rounded to float32."""
    return {
        id: float(np.float32((row.astype(np.float64) * query.astype(np.float64)).sum())) for id, row in rows.items()
    }


def standings(survey: Survey) -> list[tuple[str, float | None, int | None]]:
    return [(each.id, each.score, each.rank) for each in survey.standings]


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf_sq8"])
def test_ranks_and_histograms_are_brute_force(
    store: CollectionStore, spec: Any, fill: Any, vectors: Any, kind: str
) -> None:
    """Equal vectors too, whose order their ids decide; the item that the query names counts for nothing."""
    collection, _ = store.create("photos", spec(dim=16, kind=kind))
    rows = {f"r{n}": row for n, row in enumerate(fill(collection, 1200))}
    twins = {id: rows["r7"] for id in ("a-twin", "r70", "z-twin")}
    collection.upsert([StoreItem(id, row, {"group": 7}) for id, row in twins.items()])
    rows |= twins
    collection.delete([f"r{n}" for n in range(100, 200)])
    for n in range(100, 200):
        del rows[f"r{n}"]
    collection.compact()
    assert collection.describe().kind == kind
    queries = np.concatenate([vectors(3, 16, 5), rows["r7"][None]])
    asked = SurveySpec(bins=11, ids=("r7", "z-twin", "r70", "r3", "r150", "nobody", "r999"))
    sevens = {id: row for id, row in rows.items() if id.endswith("7") or id in twins}
    for filter, allowed in ((None, rows), ({"group": 7}, sevens)):
        found = collection.survey(queries, asked, filter=filter, exclude_ids=[(), ("r3",), ("nobody",), ("r999",)])
        for query, out, survey in zip(queries, ("", "r3", "", "r999"), found, strict=True):
            scores = {id: score for id, score in scores_of(query, allowed).items() if id != out}
            order = sorted(scores, key=lambda id: (-scores[id], id))
            every = scores_of(query, rows)
            assert standings(survey) == [
                (id, every.get(id), order.index(id) + 1 if id in scores else None) for id in asked.ids
            ]
            assert (survey.count, survey.passing) == (len(scores), len(scores))
            assert survey.histogram is not None
            counts, edges = np.histogram(list(scores.values()), bins=11)
            assert np.abs(np.array(survey.histogram.counts) - counts).sum() <= 2  # one on an edge
            assert np.allclose(survey.histogram.edges, edges, atol=1e-5)
            assert sum(survey.histogram.counts) == len(scores)
            assert survey.histogram.mean == pytest.approx(np.mean(list(scores.values())), abs=1e-5)
            assert survey.histogram.deviation == pytest.approx(np.std(list(scores.values())), abs=1e-5)


def test_the_rank_is_the_place_among_hits(store: CollectionStore, spec: Any, fill: Any, vectors: Any) -> None:
    collection, _ = store.create("photos", spec(dim=4))
    fill(collection, 3000)
    query = vectors(1, 4, 1)
    hits = collection.search(query, top_k=3000)[0].hits
    ids = tuple(hit.id for hit in hits)[::37]
    [survey] = collection.survey(query, SurveySpec(ids=ids))
    assert standings(survey) == [(hit.id, hit.score, place + 1) for place, hit in enumerate(hits) if place % 37 == 0]


def test_scores_that_float32_cannot_tell_apart(store: CollectionStore, spec: Any, vectors: Any) -> None:
    """Ranks, and what reaches a least score, are those of exact scores, also where rows are one rounding apart."""
    collection, _ = store.create("photos", spec(dim=64))
    rough = vectors(1, 64, 0) + np.random.default_rng(1).normal(0, 2e-8, (400, 64))
    rows = (rough / np.linalg.norm(rough, axis=1, keepdims=True)).astype(np.float32)
    collection.upsert([StoreItem(f"r{n:03}", row, {"n": n}) for n, row in enumerate(rows)])
    query = vectors(1, 64, 2)
    scores = scores_of(query[0], {f"r{n:03}": row for n, row in enumerate(rows)})
    order = sorted(scores, key=lambda id: (-scores[id], id))
    assert 3 < len(set(scores.values())) < 100
    for least in sorted(set(scores.values()))[:5]:
        [survey] = collection.survey(query, SurveySpec(ids=tuple(order[:100])), min_score=least)
        assert [each.rank for each in survey.standings] == list(range(1, 101))
        assert survey.passing == sum(score >= least for score in scores.values())
        assert len(collection.search(query, top_k=400, min_score=least)[0].hits) == survey.passing


def values(item: Any) -> list[tuple[str, Any]]:
    """What a facet counts of one field: kind and value, each once."""
    listed = item if isinstance(item, list) else [item]
    kinds = {bool: "b", int: "n", float: "n", str: "s", type(None): "null"}
    return list(dict.fromkeys((kinds[type(each)], each) for each in listed if type(each) in kinds))


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.0]) | st.sampled_from("ab1é'\"")
FIELDS = st.dictionaries(
    st.sampled_from(["x", "x.y", "tags"]),
    LEAVES | st.lists(LEAVES | st.just({"y": 1}), max_size=3) | st.dictionaries(st.just("y"), LEAVES, max_size=1),
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(items=st.lists(FIELDS, min_size=1, max_size=12), shown=st.integers(1, 4))
def test_facets_count_what_items_have(items: list[dict[str, Any]], shown: int) -> None:
    """Any metadata: lists once for each value, 1 and 1.0 one number, true another value, dotted names as filters read
    them."""
    with CollectionStore.open(None, settings=SETTINGS) as store:
        collection, _ = store.create("any", CollectionSpec(model="m@1", space="s", fingerprints={}, dim=2))
        one = np.array([1, 0], np.float32)
        collection.upsert([StoreItem(f"i{n}", one, metadata) for n, metadata in enumerate(items)])
        [survey] = collection.survey(one[None], SurveySpec(facets=("x", "x.y", "tags"), facet_values=shown))
        for name in ("x", "x.y", "tags"):
            counted: Counter[tuple[str, Any]] = Counter()
            missing = 0
            for item in items:
                inner = item.get("x")
                if name in item:
                    counted.update(values(item[name]))
                elif name == "x.y" and isinstance(inner, dict) and "y" in inner:
                    counted.update(values(inner["y"]))
                else:
                    missing += 1
            facet = survey.facets[name]
            assert facet.missing == missing
            assert facet.others == max(0, len(counted) - shown)
            best = sorted(counted.values(), reverse=True)[:shown]
            assert [each.count for each in facet.values] == best
            for each in facet.values:
                [(kind, value)] = values(each.value)
                assert counted[kind, value] == each.count
            for each in facet.values:  # and a filter on the value finds as many
                assert len(collection.search(one[None], top_k=20, filter={name: each.value})[0].hits) == each.count


def test_facets_with_a_least_score_count_what_a_search_returns(
    store: CollectionStore, spec: Any, fill: Any, vectors: Any
) -> None:
    collection, _ = store.create("photos", spec(dim=4, schema={"group": "number"}))
    fill(collection, 700)
    query = vectors(2, 4, 3)
    least = 0.1
    hits = collection.search(query, top_k=700, min_score=least, filter={"n": {"$lt": 500}})
    found = collection.survey(query, SurveySpec(facets=("group",)), min_score=least, filter={"n": {"$lt": 500}})
    for outcome, survey in zip(hits, found, strict=True):
        counted = Counter(hit.metadata["group"] for hit in outcome.hits)
        assert {each.value: each.count for each in survey.facets["group"].values} == counted
        assert (survey.count, survey.passing) == (500, len(outcome.hits))


def test_facets_of_declared_fields(store: CollectionStore, spec: Any, vectors: Any) -> None:
    """All rows by the field's index, some rows by their metadata: the same kind of answer."""
    schema = {"n": "number", "s": "string", "b": "boolean", "d": "date", "a.b": "number"}
    collection, _ = store.create("photos", spec(dim=4, schema=schema))
    items: list[dict[str, Any]] = [
        {"n": n % 3 / 2, "s": "xy"[n % 2], "b": n % 5 == 0, "d": f"2024-0{1 + n % 4}-01", "a": {"b": n % 6}}
        for n in range(90)
    ]
    items += [{}, {"n": 1, "s": "", "a.b": 5}]
    rows = vectors(len(items), 4, 0)
    collection.upsert([StoreItem(f"r{n}", row, data) for n, (row, data) in enumerate(zip(rows, items, strict=True))])
    for excluded, counted in (((), items), (("r0",), items[1:])):
        [survey] = collection.survey(rows[:1], SurveySpec(facets=tuple(schema)), exclude_ids=[excluded])
        for name in schema:
            every = [data.get(name, data.get("a", {}).get("b") if name == "a.b" else None) for data in counted]
            expected = Counter(value for value in every if value is not None)
            facet = survey.facets[name]
            assert [(each.value, each.count) for each in facet.values] == sorted(
                expected.items(), key=lambda each: (-each[1], each[0])
            )
            assert all(type(each.value) is bool for each in facet.values) == (name == "b")
            assert (facet.others, facet.missing) == (0, every.count(None))


def test_a_survey_while_rows_change_is_of_one_moment(store: CollectionStore, spec: Any, vectors: Any) -> None:
    """A writer replaces all rows at once, again and again: no survey sees two generations, or a part of one."""
    collection, _ = store.create("photos", spec(dim=8, kind="sq8"))
    rows = vectors(300, 8, 0)

    def write(generation: int) -> None:
        collection.upsert([StoreItem(f"r{n}", row, {"generation": generation}) for n, row in enumerate(rows)])

    write(0)
    ended = threading.Event()

    def keep_writing() -> None:
        for generation in range(1, 25):
            write(generation)
        ended.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen: set[Any] = set()
    while not ended.is_set():
        [survey] = collection.survey(rows[:1], SurveySpec(facets=("generation",), bins=5, ids=("r0",)))
        [facet] = survey.facets["generation"].values
        assert (facet.count, survey.count, survey.standings[0].rank) == (300, 300, 1)
        assert survey.histogram is not None
        assert sum(survey.histogram.counts) == 300
        seen.add(facet.value)
    writer.join()
    assert len(seen) > 1
