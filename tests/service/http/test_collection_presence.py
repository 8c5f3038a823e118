"""How likely hits show what a text says, and whether anything does, against numpy over the offline encoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from clipworks import schemas
from evaluation.encoder import ArtifactEncoder
from model_store.manifest import SearchCalibration
from model_store.seal import write_manifest
from model_store.store import Store
from service.collections.presence import SearchEvidence
from service.retrieval import StoredHit
from tests.stores import SHOP_STORE, TINY_STORE

CURVES = SearchCalibration(
    neutral_texts=("shoes", "a photo of a bag"),
    hit_slope=9.0,
    hit_offset=-2.0,
    match_slope=7.0,
    match_offset=-1.5,
    threshold=0.55,
)
SHIRT, UNKNOWN = "a blue shirt", "grass"
QUERIES = (SHIRT, "watch", "red shoes for women")
F64 = NDArray[np.float64]


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fashion-small, calibrated for searches by made-up curves; wordless, by texts that it does not know; and tiny."""
    folder = tmp_path_factory.mktemp("presence") / "store"
    shutil.copytree(SHOP_STORE, folder)
    shutil.copytree(TINY_STORE / "tiny", folder / "tiny")
    shop = Store(folder, builtin=False).open("fashion-small")
    shutil.copytree(folder / "fashion-small", folder / "wordless")
    write_manifest(shop.folder, shop.manifest.model_copy(update={"search": CURVES}))
    curves = CURVES.model_copy(update={"neutral_texts": (UNKNOWN,)})
    wordless = shop.manifest.model_copy(update={"name": "wordless", "search": curves})
    write_manifest(folder / "wordless" / shop.folder.name, wordless)
    return folder


class Shop:
    """Thirty items in a collection, and their vectors and those of texts by the offline encoder."""

    def __init__(self, client: TestClient, store: Path) -> None:
        self.client = client
        self.encoder = ArtifactEncoder(Store(store, builtin=False).open("fashion-small"))
        colours = ("red", "blue", "green", "black", "white", "pink")
        things = ("shirt", "shoes", "watch", "bag", "jeans")
        self.texts = {f"{c}-{t}": f"a {c} {t}" for c in colours for t in things}
        self.ids = list(self.texts)
        self.rows = self.encoder.encode_texts(list(self.texts.values())).astype(np.float64)
        self.rows /= np.linalg.norm(self.rows, axis=1, keepdims=True)
        self.neutral = self.unit(CURVES.neutral_texts).mean(axis=0)
        client.put("/collections/shop", json={"model": "fashion-small"}).raise_for_status()
        items = [{"id": id, "text": text, "metadata": {"thing": id.split("-")[1]}} for id, text in self.texts.items()]
        client.post("/collections/shop/items", json={"items": items}).raise_for_status()

    def unit(self, texts: tuple[str, ...]) -> F64:
        found = self.encoder.encode_texts(list(texts)).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def evidence(self, text: str) -> dict[str, float]:
        return dict(zip(self.ids, (self.rows @ (self.unit((text,))[0] - self.neutral)).tolist(), strict=True))

    def match(self, text: str, of: Callable[[str], bool] = lambda id: True) -> float:
        """Of the first ten by cosine the greatest evidence."""
        cosines = dict(zip(self.ids, (self.rows @ self.unit((text,))[0]).tolist(), strict=True))
        first = sorted((id for id in self.ids if of(id)), key=lambda id: -cosines[id])[:10]
        best = max(self.evidence(text)[id] for id in first)
        return float(sigmoid(np.array(CURVES.match_slope * best + CURVES.match_offset)))

    def ask(self, *queries: Any, **more: Any) -> Any:
        return self.client.post("/collections/shop/search", json={"queries": queries} | more)

    def search(self, *queries: Any, **more: Any) -> list[dict[str, Any]]:
        answer = self.ask(*queries, **more)
        assert answer.status_code == 200, answer.text
        schemas.SearchResponse.model_validate_json(answer.content)
        return answer.json()["results"]


@pytest.fixture(scope="module")
def shop(store: Path, make_client: Callable[..., TestClient]) -> Shop:
    return Shop(make_client(store=store, model="fashion-small", extra_models=("tiny", "wordless")), store)


def test_hits_and_matches_are_the_curves_of_the_evidence(shop: Shop) -> None:
    results = shop.search(*QUERIES, presence={}, top_k=30)
    for text, result in zip(QUERIES, results, strict=True):
        known = shop.evidence(text)
        assert len(result["hits"]) == 30
        for hit in result["hits"]:
            expected = float(sigmoid(np.array(CURVES.hit_slope * known[hit["id"]] + CURVES.hit_offset)))
            assert hit["presence"] == pytest.approx(expected, abs=1e-5)
        assert result["match"]["probability"] == pytest.approx(shop.match(text), abs=1e-5)
        assert result["match"]["threshold"] == 0.55
        assert result["match"]["good"] is (result["match"]["probability"] >= 0.55)
    assert len({result["match"]["probability"] for result in results}) == 3


def test_whoever_does_not_ask_is_told_nothing(shop: Shop) -> None:
    [result] = shop.search(SHIRT)
    assert "match" not in result
    assert "presence" not in result["hits"][0]


@pytest.mark.parametrize(
    "page",
    [
        {"top_k": 1},
        {"top_k": 3, "offset": 20},
        {"min_score": 0.99},
        {"diversity": 0.7, "top_k": 5},
        {"group_near": 0.9, "top_k": 5},
        {"include": ["vector"], "top_k": 4},
        {"histogram": 5},
    ],
)
def test_a_match_is_of_the_collection_and_not_of_the_page(shop: Shop, page: dict[str, Any]) -> None:
    [plain] = shop.search(SHIRT, **page)
    [result] = shop.search(SHIRT, presence={}, **page)
    assert result["match"]["probability"] == pytest.approx(shop.match(SHIRT), abs=1e-5)
    known = shop.evidence(SHIRT)
    for hit in result["hits"]:
        expected = sigmoid(np.array(CURVES.hit_slope * known[hit["id"]] + CURVES.hit_offset))
        assert hit.pop("presence") == pytest.approx(float(expected), abs=1e-5)
    del result["match"]
    assert result == plain  # beside it the answer is the same


def test_hits_that_are_cut_off_still_match(shop: Shop) -> None:
    """`min_score` is of the page: a match with a low cosine is one."""
    [result] = shop.search(QUERIES[2], presence={}, min_score=0.9999)
    assert result["hits"] == []
    assert result["match"]["probability"] == pytest.approx(shop.match(QUERIES[2]), abs=1e-5)


def test_what_the_filter_leaves_out_is_no_match(shop: Shop) -> None:
    [result] = shop.search("watch", presence={}, filter={"thing": "bag"}, top_k=2)
    assert result["match"]["probability"] == pytest.approx(shop.match("watch", lambda id: id.endswith("bag")), abs=1e-5)
    assert result["match"]["probability"] < shop.match("watch")
    for threshold in (0.55, 0):
        [nothing] = shop.search("watch", presence={"threshold": threshold}, filter={"thing": "boat"})
        assert nothing["hits"] == []
        assert nothing["match"] == {"probability": 0.0, "threshold": threshold, "good": False}


@pytest.mark.parametrize(("threshold", "good"), [(0.0, True), (1.0, False)])
def test_the_threshold_is_the_askers(shop: Shop, threshold: float, good: bool) -> None:
    [result] = shop.search(SHIRT, presence={"threshold": threshold})
    assert (result["match"]["threshold"], result["match"]["good"]) == (threshold, good)


def test_only_a_text_has_probabilities(shop: Shop) -> None:
    other: list[Any] = [
        {"id": "red-bag"},
        {"vector": shop.rows[0].tolist()},
        {"combine": [{"text": SHIRT}, {"text": "red", "weight": -0.3}]},
        UNKNOWN,
    ]
    results = shop.search(*other, SHIRT, {"text": SHIRT}, presence={}, on_unknown="warn")
    for result in results[:4]:
        assert result["match"] is None
        assert all(hit["presence"] is None for hit in result["hits"])
    assert results[3]["weak"] is True
    assert (
        results[4]["match"]["probability"]
        == results[5]["match"]["probability"]
        == pytest.approx(shop.match(SHIRT), abs=1e-5)
    )
    [alone] = shop.search({"id": "red-bag"}, presence={})  # and no model is wanted where there is nothing to encode
    assert alone["match"] is None


def test_one_query_that_fails_takes_nothing_from_the_others(shop: Shop) -> None:
    failed, found = shop.search({"id": "no-such"}, SHIRT, presence={}, on_error="item")
    assert failed["error"]["code"] == "item_not_found"
    assert found["match"]["probability"] == pytest.approx(shop.match(SHIRT), abs=1e-5)


def test_a_model_without_curves_says_so(shop: Shop) -> None:
    shop.client.put("/collections/plain", json={"model": "tiny"}).raise_for_status()
    answer = shop.client.post("/collections/plain/search", json={"queries": ["a"], "presence": {}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "unsupported_input", "presence")
    assert "tiny@1 was not calibrated for searches" in error["message"]


def test_a_model_that_does_not_know_its_own_neutral_texts_says_so(shop: Shop) -> None:
    answer = shop.ask(SHIRT, presence={}, model="wordless")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "unsupported_input", "presence")
    assert "wordless@1 knows nothing of its own neutral texts" in error["message"]


def test_an_item_that_is_gone_by_now_has_no_probability_and_a_replaced_one_that_of_what_it_is(shop: Shop) -> None:
    rows = shop.rows.astype(np.float32)
    query = shop.unit((SHIRT,))[0].astype(np.float32)
    hits = [StoredHit(shop.ids[place], float(rows[place] @ query), {}) for place in (0, 1, 3)]
    now = [rows[0], None, rows[2]]
    found = SearchEvidence(shop.neutral, CURVES, 0.5).hits(hits, now, [query] * 3)
    assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in hits]
    known = list(shop.evidence(SHIRT).values())
    first, third = sigmoid(np.array([CURVES.hit_slope * known[at] + CURVES.hit_offset for at in (0, 2)]))
    assert [hit.presence for hit in found] == [pytest.approx(first, abs=1e-5), None, pytest.approx(third, abs=1e-5)]


@pytest.mark.parametrize(
    ("presence", "param"),
    [
        ({"threshold": 1.5}, "presence.threshold"),
        ({"threshold": "high"}, "presence.threshold"),
        ({"least": 0.5}, "presence.least"),
        (True, "presence"),
    ],
)
def test_what_is_no_threshold_is_refused(shop: Shop, presence: Any, param: str) -> None:
    answer = shop.ask(SHIRT, presence=presence)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_the_model_tells_its_curves(shop: Shop) -> None:
    assert shop.client.get("/models/fashion-small").json()["search"] == CURVES.model_dump(mode="json")
    assert shop.client.get("/models/tiny").json()["search"] is None
