"""Searches that are reranked, against numpy over logits that model_store gives of the vectors that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import schemas
from model_store.store import Store
from tests.service.http.rerank_truth import Truth, mosaic, sent

PICTURES, DIM = 24, 8
QUERY, TEXT = "blue and red", "a text"


class Gallery:
    """Pictures, and among them a text and a vector, in a collection that keeps position vectors, and in numpy."""

    def __init__(self, client: TestClient, truth: Truth) -> None:
        self.client = client
        sizes = ((96, 64), (64, 112), (80, 80))
        self.pictures = {f"p/{n:02}": mosaic(n, size=sizes[n % 3]) for n in range(PICTURES)}
        body = {"model": "colours", "rerank": "judge", "metadata_schema": {"part": "number"}}
        self.made = client.put("/collections/gallery", json=body)
        assert self.made.status_code == 201, self.made.text
        items: list[dict[str, Any]] = [
            {"id": id, **sent(data), "metadata": {"part": n % 3}} for n, (id, data) in enumerate(self.pictures.items())
        ]
        items += [{"id": "text", "text": "blue red", "metadata": {"part": 1}}]
        self.vector = np.zeros(DIM, np.float32)
        self.vector[:2] = 0.8, 0.6
        items += [{"id": "vector", "vector": self.vector.tolist(), "metadata": {"part": 1}}]
        client.post("/collections/gallery/items", json={"items": items}).raise_for_status()
        self.scores = {
            id: truth.score(truth.positions(data).astype(np.float16).astype(np.float32), QUERY)
            for id, data in self.pictures.items()
        }

    def ask(self, *queries: object, **more: object) -> Any:
        return self.client.post("/collections/gallery/search", json={"queries": queries or [QUERY], **more})

    def result(self, *queries: object, **more: object) -> dict[str, Any]:
        answer = self.ask(*queries, **more)
        assert answer.status_code == 200, answer.text
        schemas.SearchResponse.model_validate_json(answer.content)
        return answer.json()["results"][0]

    def plain(self, **more: object) -> list[dict[str, Any]]:
        return self.result(top_k=100, **more)["hits"]

    def expected(self, top: int, **more: object) -> list[str]:
        """The order by its definition: of the first `top` those with a logit change places among themselves."""
        ids = [hit["id"] for hit in self.plain(**more)]
        places = [place for place, id in enumerate(ids[:top]) if id in self.scores]
        best = sorted((ids[place] for place in places), key=lambda id: -self.scores[id])
        made = list(ids)
        for place, id in zip(places, best, strict=True):
            made[place] = id
        return made


@pytest.fixture(scope="module")
def client(
    rerank_store: Path, make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory
) -> TestClient:
    data = tmp_path_factory.mktemp("data")
    return make_client(store=rerank_store, model="colours", extra_models=("judge", "tiny"), data=data)


@pytest.fixture(scope="module")
def gallery(client: TestClient, rerank_store: Path) -> Gallery:
    return Gallery(client, Truth(Store(rerank_store, builtin=False).open("judge")))


def ids_of(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["id"] for hit in hits]


def refused(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize("top", [1, 5, 20, PICTURES + 2, 100])
def test_the_first_hits_are_ordered_by_their_logits_and_the_others_stay(gallery: Gallery, top: int) -> None:
    plain = {hit["id"]: hit for hit in gallery.plain()}
    found = gallery.result(top_k=100, rerank={"model": "judge", "top": top})
    hits = found["hits"]
    assert ids_of(hits) == gallery.expected(top)
    assert len(hits) == PICTURES + 2
    matched = {id for id in list(plain)[:top] if id in gallery.scores}
    assert found["reranked"] == len(matched)
    for hit in hits:
        assert hit["score"] == plain[hit["id"]]["score"], "the cosine stays"
        assert hit["metadata"] == plain[hit["id"]]["metadata"]
        wanted = gallery.scores[hit["id"]] if hit["id"] in matched else None
        assert hit["rerank_score"] == (None if wanted is None else pytest.approx(wanted, abs=1e-5))
    assert ids_of(list(plain.values())) != ids_of(hits) or top == 1, "the case shows something"
    if top > PICTURES:
        for kept in ("text", "vector"):
            assert ids_of(hits).index(kept) == list(plain).index(kept), "it keeps its place, visibly"


def test_pages_filters_and_least_scores(gallery: Gallery) -> None:
    whole = gallery.expected(20)
    for offset in (0, 3, 18, 25):
        page = gallery.result(top_k=4, offset=offset, rerank={"top": 20}, include=["vector"])["hits"]
        assert ids_of(page) == whole[offset : offset + 4]
        assert all(hit["vector"] for hit in page)
        assert all("metadata" not in hit for hit in page)
    least = gallery.plain(filter={"part": {"$gte": 1}})[9]["score"]
    for more in ({"filter": {"part": 1}}, {"filter": {"part": {"$gte": 1}}, "min_score": least}):
        page = gallery.result(top_k=50, rerank={"top": 6}, **more)["hits"]
        assert ids_of(page) == gallery.expected(6, **more)
        assert 6 < len(page) < PICTURES
    several = gallery.ask("red", QUERY, {"text": QUERY}, top_k=7, rerank={"top": 9}).json()["results"]
    assert [ids_of(each["hits"]) for each in several[1:]] == [gallery.expected(9)[:7]] * 2
    assert ids_of(several[0]["hits"]) != ids_of(several[1]["hits"])


def test_near_duplicates_and_variety_come_after_the_reranking(gallery: Gallery) -> None:
    """Documented order: filter, cosine, rerank, group_near, diversity, page. Facets and ranks are the first stage's."""
    hits = gallery.result(top_k=100, rerank={"top": 20}, include=["vector"])["hits"]
    vectors = np.array([hit["vector"] for hit in hits])
    kept: list[int] = []
    for place in range(len(hits)):
        if not any(vectors[place] @ vectors[each] >= 0.97 for each in kept):
            kept.append(place)
    assert 3 < len(kept) < len(hits)
    grouped = gallery.result(top_k=len(kept), rerank={"top": 20}, group_near=0.97)
    assert ids_of(grouped["hits"]) == [hits[place]["id"] for place in kept]
    assert grouped["reranked"] == 20 - sum(id in ("text", "vector") for id in ids_of(gallery.plain()[:20]))
    scores = {hit["id"]: hit["rerank_score"] for hit in hits}
    assert all(hit["rerank_score"] == scores[hit["id"]] for hit in grouped["hits"])

    vectors = vectors[:20]  # the pool has all that was reranked, whatever was asked for
    relevance = 1 - np.arange(20) / 19
    least = (vectors @ vectors.T).min()
    chosen = [0]
    while len(chosen) < 6:
        likeness = ((vectors @ vectors[chosen].T - least) / (1 - least)).max(axis=1)
        worth = 0.6 * relevance - 0.4 * likeness
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    various = gallery.result(top_k=6, rerank={"top": 20}, diversity=0.4, pool=8)
    assert various["pool"] == 20
    assert ids_of(various["hits"]) == [hits[place]["id"] for place in chosen]
    assert chosen != list(range(6))

    plain = gallery.result(top_k=3, facets=["part"], histogram=5, score_of=["p/00"])
    surveyed = gallery.result(top_k=3, facets=["part"], histogram=5, score_of=["p/00"], rerank={"top": 20})
    assert {key: surveyed[key] for key in ("facets", "histogram", "scores")} == {
        key: plain[key] for key in ("facets", "histogram", "scores")
    }


def test_position_vectors_go_with_their_items(gallery: Gallery, client: TestClient) -> None:
    def shown() -> tuple[int, int]:
        found = client.get("/collections/changing").json()["rerank"]
        assert found["model"] == "judge@1"
        return found["count"], found["bytes"]

    client.put("/collections/changing", json={"rerank": "judge"}).raise_for_status()
    assert shown() == (0, 0)
    one, two = gallery.pictures["p/00"], gallery.pictures["p/01"]

    def put(**item: Any) -> None:
        client.post("/collections/changing/items", json={"items": [{"id": "a", **item}]}).raise_for_status()

    def score() -> float | None:
        body = {"queries": [QUERY], "rerank": {"top": 5}}
        [hit] = client.post("/collections/changing/search", json=body).json()["results"][0]["hits"]
        return hit["rerank_score"]

    put(**sent(one))
    cells = (14 * 21, 14 * 24)  # short side 112 px in cells of 8: of 96 x 64 and of 64 x 112 px
    assert shown() == (1, 4 + 2 * DIM * cells[0])
    assert score() == pytest.approx(gallery.scores["p/00"], abs=1e-5)
    put(**sent(two))
    assert score() == pytest.approx(gallery.scores["p/01"], abs=1e-5), "replaced with its item"
    assert shown()[0] == 1
    put(text="red")
    assert (score(), shown()) == (None, (0, 0))
    put(**sent(one))
    assert client.delete("/collections/changing/items/a").status_code == 204
    assert shown() == (0, 0)
    bad = {"items": [{"id": "a", "image": "QUJD"}, {"id": "b", **sent(two)}], "on_error": "item"}
    answer = client.post("/collections/changing/items", json=bad).json()
    assert [("error" in each) for each in answer["data"]] == [True, False]
    assert shown()[0] == 1


def test_what_a_reranked_search_refuses(gallery: Gallery, client: TestClient) -> None:
    client.put("/collections/old", json={}).raise_for_status()
    old = client.post("/collections/old/search", json={"queries": ["red"], "rerank": {}})
    assert refused(old) == (422, "invalid_query", "rerank")
    assert '"rerank": "MODEL"' in old.json()["error"]["message"]
    ask = gallery.ask
    for query, param in (
        ({"vector": [1.0] * DIM}, "queries[0].vector"),
        ({"id": "p/00"}, "queries[0].id"),
        (sent(mosaic(1)), "queries[0].image"),
        ({"combine": [{"text": "red"}]}, "queries[0]"),
    ):
        assert refused(ask(query, rerank={})) == (422, "unsupported_input", param)
    assert refused(ask(rerank={"model": "tiny"})) == (422, "unsupported_input", "rerank.model")
    assert refused(ask(rerank={"model": "nobody"}))[:2] == (404, "model_not_found")
    assert refused(ask(rerank={"top": 0})) == (422, "invalid_field", "rerank.top")
    assert refused(ask(rerank={"top": 1001})) == (422, "invalid_field", "rerank.top")
    assert refused(ask(*["red"] * 6, rerank={"top": 100})) == (413, "too_many_items", "rerank.top")
    for body, status, code in (
        ({"rerank": "tiny"}, 422, "unsupported_input"),
        ({"rerank": "nobody"}, 404, "model_not_found"),
    ):
        assert refused(client.put("/collections/none", json=body)) == (status, code, "rerank")
    assert client.put("/collections/gallery", json={"model": "colours"}).status_code == 409
    body = {"model": "colours", "rerank": "judge", "metadata_schema": {"part": "number"}}
    assert client.put("/collections/gallery", json=body).status_code == 200, "equal again"


def test_company_changes_nothing(gallery: Gallery, client: TestClient) -> None:
    """The same bits alone and in one run with others, of equal shapes and of other ones."""
    documents = [{"item": {"collection": "gallery", "id": id}} for id in gallery.pictures]

    def scores(*places: int) -> list[float]:
        body = {"model": "judge", "query": QUERY, "documents": [documents[place] for place in places]}
        found = {each["index"]: each["relevance_score"] for each in client.post("/rerank", json=body).json()["results"]}
        return [found[index] for index in range(len(places))]

    assert scores(*range(PICTURES)) == [score for place in range(PICTURES) for score in scores(place)]


def test_stored_pictures_are_documents_of_rerank(gallery: Gallery, client: TestClient) -> None:
    def item(id: str, collection: str = "gallery") -> dict[str, Any]:
        return {"item": {"collection": collection, "id": id}}

    ids = ["p/03", "p/00", "p/07"]
    body = {"model": "judge", "query": QUERY, "documents": [item(id) for id in ids], "return_documents": True}
    results = client.post("/rerank", json=body).json()["results"]
    best = sorted(ids, key=lambda id: -gallery.scores[id])
    assert [each["document"] for each in results] == [item(id) for id in best]
    assert [each["relevance_score"] for each in results] == pytest.approx([gallery.scores[id] for id in best], abs=1e-5)
    missing = {**body, "documents": [item("p/00"), item("text"), item("gone")]}
    assert refused(client.post("/rerank", json=missing)) == (404, "item_not_found", "documents[1].item")
    kept = client.post("/rerank", json={**missing, "on_error": "item"}).json()["results"]
    assert [each["index"] for each in kept] == [0, 1, 2]
    assert refused(client.post("/rerank", json={**body, "documents": [item("a", "nowhere")]}))[:2] == (
        404,
        "collection_not_found",
    )
    texts = {"model": "judge", "query": sent(gallery.pictures["p/00"]), "documents": [item("p/00")]}
    assert refused(client.post("/rerank", json=texts)) == (422, "unsupported_input", "documents[0].item")
