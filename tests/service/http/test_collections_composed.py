"""Searches that ask for more than the best hits, against numpy: diversity, folding, facets, histograms, ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from clipworks import schemas

DIM, ROWS = 32, 400
F64 = np.ndarray


class Gallery:
    """Rows in bunches of near duplicates, in a collection and in numpy."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        rng = np.random.default_rng(3)
        centres = rng.standard_normal((ROWS // 4, DIM))
        raw = np.repeat(centres, 4, axis=0) + 0.06 * rng.standard_normal((ROWS, DIM))
        self.vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        self.ids = [f"row/{n:03}" for n in rng.permutation(ROWS)]
        self.metadata: list[dict[str, Any]] = [
            {"year": 2000 + n % 7, "tags": ["a", "b"][: n % 3], "camera": {"maker": "XY"[n % 2]}} for n in range(ROWS)
        ]
        items = [
            {"id": id, "vector": row.tolist(), "metadata": data}
            for id, row, data in zip(self.ids, self.vectors, self.metadata, strict=True)
        ]
        client.put("/collections/gallery", json={}).raise_for_status()
        client.post("/collections/gallery/items", json={"items": items}).raise_for_status()

    def ask(self, *queries: object, **more: object) -> Any:
        return self.client.post("/collections/gallery/search", json={"queries": queries, **more})

    def search(self, *queries: object, **more: object) -> list[dict[str, Any]]:
        answer = self.ask(*queries, **more)
        assert answer.status_code == 200, answer.text
        schemas.SearchResponse.model_validate_json(answer.content)
        return answer.json()["results"]

    def ranked(self, query: F64) -> list[int]:
        scores = self.scores(query)
        return sorted(range(ROWS), key=lambda row: (-np.float32(scores[row]), self.ids[row]))

    def scores(self, query: F64) -> F64:
        unit = (query / np.linalg.norm(query)).astype(np.float32)
        return self.vectors.astype(np.float64) @ unit.astype(np.float64)


@pytest.fixture(scope="module")
def gallery(make_client: Callable[..., TestClient]) -> Iterator[Gallery]:
    return Gallery(make_client())


def given_query(seed: int) -> F64:
    return np.random.default_rng(seed).standard_normal(DIM)


def by_relevance(gallery: Gallery, query: F64, diversity: float, pool: int, count: int) -> list[int]:
    """Maximal marginal relevance by its definition, one pick after the other, of cosines scaled within the pool."""
    scores, vectors = gallery.scores(query), gallery.vectors.astype(np.float64)
    left, chosen = gallery.ranked(query)[:pool], list[int]()
    low, high = scores[left].min(), scores[left].max()
    least = (vectors[left] @ vectors[left].T).min()
    while left and len(chosen) < count:

        def worth(row: int) -> float:
            near = max((float(vectors[row] @ vectors[each] - least) / (1 - least) for each in chosen), default=0.0)
            return (1 - diversity) * float(scores[row] - low) / (high - low) - diversity * near

        best = max(left, key=worth) if chosen else left[0]
        left.remove(best)
        chosen.append(best)
    return chosen


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), diversity=st.floats(0.01, 1), pool=st.integers(12, 60), offset=st.integers(0, 6))
def test_diversity_is_maximal_marginal_relevance(
    gallery: Gallery, seed: int, diversity: float, pool: int, offset: int
) -> None:
    query = given_query(seed)
    [result] = gallery.search({"vector": query.tolist()}, diversity=diversity, pool=pool, top_k=6, offset=offset)
    expected = by_relevance(gallery, query, diversity, pool, offset + 6)[offset:]
    assert [hit["id"] for hit in result["hits"]] == [gallery.ids[row] for row in expected]
    scores = gallery.scores(query)
    assert [hit["score"] for hit in result["hits"]] == pytest.approx([scores[row] for row in expected], abs=1e-6)
    assert result["pool"] == pool
    assert "vector" not in result["hits"][0]


def folded(gallery: Gallery, order: list[int], least: float) -> dict[int, list[int]]:
    leaders: dict[int, list[int]] = {}
    for row in order:
        near = [each for each in leaders if float(gallery.vectors[each] @ gallery.vectors[row]) >= least]
        if near:
            leaders[near[0]].append(row)
        else:
            leaders[row] = []
    return leaders


@pytest.mark.parametrize("least", [0.5, 0.9, 1.0])
def test_near_duplicates_are_folded_into_the_best_of_them(gallery: Gallery, least: float) -> None:
    """More are looked at until there are enough hits, and what is folded says into what, and how near."""
    query = given_query(1)
    leaders = folded(gallery, gallery.ranked(query), least)
    [result] = gallery.search({"vector": query.tolist()}, group_near=least, top_k=90, offset=3)
    expected = list(leaders)[3:93]
    assert [hit["id"] for hit in result["hits"]] == [gallery.ids[row] for row in expected]
    assert (result["pool"] == 100) == (least == 1.0)
    looked_at = set(gallery.ranked(query)[: result["pool"]])
    for row, hit in zip(expected, result["hits"], strict=True):
        inside = [each for each in leaders[row] if each in looked_at]
        assert [near["id"] for near in hit["near"]] == [gallery.ids[each] for each in inside]
        for each, near in zip(inside, hit["near"], strict=True):
            assert near["similarity"] == pytest.approx(float(gallery.vectors[each] @ gallery.vectors[row]), abs=1e-6)
            assert near["similarity"] >= least - 1e-6


def test_pages_of_folded_hits_meet_every_group_once(gallery: Gallery) -> None:
    query = {"vector": given_query(5).tolist()}
    pages = [gallery.search(query, group_near=0.9, top_k=20, offset=start)[0]["hits"] for start in range(0, 120, 20)]
    found = [hit["id"] for hits in pages for hit in hits]
    assert len(found) == len(set(found)) == ROWS // 4
    whole = gallery.search(query, group_near=0.9, top_k=200)[0]["hits"]
    assert [hit["id"] for hit in whole] == found
    assert sorted(id for hit in whole for id in [hit["id"], *(near["id"] for near in hit["near"])]) == sorted(
        gallery.ids
    )


def test_folded_and_diverse(gallery: Gallery) -> None:
    """Diversity chooses among those that stand for their groups; filters, named items and vectors go as ever."""
    options = {"group_near": 0.9, "diversity": 0.5, "pool": 100, "top_k": 8, "filter": {"year": {"$lt": 2005}}}
    [result] = gallery.search({"id": gallery.ids[10]}, **options, include=["vector"])
    vectors = np.array([hit["vector"] for hit in result["hits"]])
    assert gallery.ids[10] not in [hit["id"] for hit in result["hits"]]
    assert (vectors @ vectors.T - np.eye(8)).max() < 0.9
    plain = gallery.search({"id": gallery.ids[10]}, **{**options, "diversity": 0}, include=["vector"])[0]["hits"]
    others = np.array([hit["vector"] for hit in plain])
    assert (vectors @ vectors.T).mean() < (others @ others.T).mean()
    assert result["hits"][0]["id"] == plain[0]["id"]


def test_facets_histogram_and_ranks(gallery: Gallery) -> None:
    query = given_query(8)
    scores = gallery.scores(query).astype(np.float32)
    order = gallery.ranked(query)
    asked = [gallery.ids[order[0]], gallery.ids[order[250]], "nobody", gallery.ids[order[399]]]
    [result] = gallery.search(
        {"vector": query.tolist()}, top_k=2, facets=["year", "tags", "camera.maker", "none"], facet_values=3,
        histogram=9, score_of=asked,
    )  # fmt: skip
    years = Counter(data["year"] for data in gallery.metadata)
    values = sorted(years.items(), key=lambda each: (-each[1], each[0]))
    assert result["facets"]["year"] == {
        "values": [{"value": value, "count": count} for value, count in values[:3]], "others": 4, "missing": 0,
    }  # fmt: skip
    tags = Counter(tag for data in gallery.metadata for tag in data["tags"])
    assert result["facets"]["tags"]["values"] == [{"value": tag, "count": tags[tag]} for tag in ("a", "b")]
    assert result["facets"]["tags"]["missing"] == 0  # an empty list is there
    assert [each["value"] for each in result["facets"]["camera.maker"]["values"]] == ["X", "Y"]
    assert result["facets"]["none"] == {"values": [], "others": 0, "missing": ROWS}
    counts, edges = np.histogram(scores, bins=9)
    assert sum(result["histogram"]["counts"]) == ROWS
    assert np.abs(np.array(result["histogram"]["counts"]) - counts).max() <= 1
    assert result["histogram"]["edges"] == pytest.approx(edges.tolist(), abs=1e-6)
    assert [(each["id"], each["rank"]) for each in result["scores"]] == list(
        zip(asked, [1, 251, None, 400], strict=True)
    )
    assert result["scores"][2]["score"] is None
    assert result["scores"][1]["score"] == pytest.approx(float(scores[order[250]]), abs=1e-6)


def test_each_query_has_its_own_survey(gallery: Gallery) -> None:
    """Also beside a query that fails and one whose own item is left out."""
    results = gallery.search(
        {"id": gallery.ids[4]}, {"id": "none"}, "a cat", on_error="item", facets=["year"], min_score=0.1, histogram=4,
        score_of=[gallery.ids[4]], top_k=ROWS,
    )  # fmt: skip
    assert results[1]["error"]["code"] == "item_not_found"
    assert [sum(result["histogram"]["counts"]) for result in (results[0], results[2])] == [ROWS - 1, ROWS]
    assert results[0]["scores"] == [{"id": gallery.ids[4], "score": pytest.approx(1, abs=1e-6), "rank": None}]
    for result in (results[0], results[2]):
        years = Counter(hit["metadata"]["year"] for hit in result["hits"])
        assert {each["value"]: each["count"] for each in result["facets"]["year"]["values"]} == years


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"diversity": 1.5}, "invalid_field", "diversity"),
        ({"group_near": 0}, "invalid_field", "group_near"),
        ({"pool": 5000}, "invalid_field", "pool"),
        ({"diversity": 0.5, "top_k": 10, "offset": 300}, "invalid_field", "pool"),
        ({"group_near": 0.9, "offset": 1995}, "invalid_field", "offset"),
        ({"diversity": 0.4, "top_k": 2001}, "invalid_field", "top_k"),
        ({"group_near": 0.9, "pool": 10, "offset": 1}, "invalid_field", "pool"),
        ({"facets": ["year", "a..b"]}, "invalid_query", "facets[1]"),
        ({"facets": [str(n) for n in range(9)]}, "invalid_field", "facets"),
        ({"histogram": 1000}, "invalid_field", "histogram"),
        ({"score_of": ["a\nb"]}, "invalid_item", "score_of[0]"),
    ],
)
def test_what_is_refused(gallery: Gallery, more: dict[str, Any], code: str, param: str) -> None:
    answer = gallery.ask("a cat", **more)
    assert answer.status_code == 422, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param), answer.text


def test_too_many_items_to_arrange_or_to_count(gallery: Gallery) -> None:
    queries = [{"id": id} for id in gallery.ids[:30]]
    for more in ({"group_near": 0.5}, {"diversity": 0.5, "pool": 2000}, {"facets": ["year"], "min_score": 0.5}):
        answer = gallery.ask(*queries, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items"), answer.text


def test_a_facet_that_no_item_has_is_told(gallery: Gallery) -> None:
    said = gallery.ask("a cat", facets=["yaer", "year"]).json()
    assert said["warnings"] == ["facets: no item of the collection has a field 'yaer'"]


def test_equal_scores_fill_one_bin(gallery: Gallery) -> None:
    gallery.client.put("/collections/same", json={}).raise_for_status()
    items = [{"id": f"s{n}", "vector": gallery.vectors[3].tolist()} for n in range(50)]
    gallery.client.post("/collections/same/items", json={"items": items}).raise_for_status()
    body = {"queries": [{"vector": gallery.vectors[5].tolist()}], "histogram": 5}
    counts = gallery.client.post("/collections/same/search", json=body).json()["results"][0]["histogram"]["counts"]
    assert sorted(counts) == [0, 0, 0, 0, 50]


def test_the_old_answer_for_who_does_not_ask(gallery: Gallery) -> None:
    [result] = gallery.search("a cat", top_k=1)
    assert set(result) == {"index", "exact", "hits"}
    assert set(result["hits"][0]) == {"id", "score", "metadata"}


def test_forms_take_the_same_fields(gallery: Gallery) -> None:
    """Multipart fields are what JSON is."""
    fields = {
        "request": '{"queries": ["a cat"]}',
        "facets": "year,tags",
        "histogram": "3",
        "diversity": "0.5",
        "pool": "20",
    }
    fields |= {"group_near": "0.9", "score_of": gallery.ids[0], "facet_values": "2"}
    answer = gallery.client.post(
        "/collections/gallery/search", files=[(name, (None, text)) for name, text in fields.items()]
    )
    assert answer.status_code == 200, answer.text
    [result] = gallery.search(
        "a cat", facets=["year", "tags"], histogram=3, diversity=0.5, pool=20, group_near=0.9,
        score_of=[gallery.ids[0]], facet_values=2,
    )  # fmt: skip
    assert answer.json()["results"] == [result]
