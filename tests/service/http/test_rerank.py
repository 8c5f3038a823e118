"""POST /rerank against logits that model_store gives for each pair by itself, and what it refuses before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient

from clipworks import schemas
from model_store.store import Store
from service.routes.rerank import OPTIONS
from tests.service.http.rerank_truth import Truth, mosaic, sent

TEXTS = ["red", "a green thing", "blue and red", "no green", "green"]


@pytest.fixture(scope="module")
def truth(rerank_store: Path) -> Truth:
    return Truth(Store(rerank_store, builtin=False).open("judge"))


@pytest.fixture(scope="module")
def client(rerank_store: Path, make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(store=rerank_store, model="judge", extra_models=("tiny",))


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [mosaic(seed, size=(96, 64) if seed % 2 else (64, 112)) for seed in (0, 1, 2, 3, 4, 6, 8)]


def rerank(client: TestClient, query: Any, documents: Any, **more: Any) -> dict[str, Any]:
    answer = client.post("/rerank", json={"query": query, "documents": documents, **more})
    assert answer.status_code == 200, answer.text
    schemas.RerankResponse.model_validate_json(answer.content)
    return answer.json()


def refused(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def ranked(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return [(each["index"], each["relevance_score"]) for each in answer["results"]]


def expected(scores: list[float]) -> list[tuple[int, Any]]:
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [(index, pytest.approx(scores[index], abs=1e-5)) for index in best]


def test_a_text_orders_pictures_and_a_picture_texts(client: TestClient, truth: Truth, pictures: list[bytes]) -> None:
    for text in TEXTS[:3]:
        scores = [truth.score(each, text) for each in pictures]
        assert len({round(score, 4) for score in scores}) == len(scores)
        answer = rerank(client, text, [sent(each) for each in pictures])
        assert answer["model"] == "judge@1"
        assert ranked(answer) == expected(scores)
    scores = [truth.score(pictures[0], text) for text in TEXTS]
    answer = rerank(client, sent(pictures[0]), [TEXTS[0], *({"text": text} for text in TEXTS[1:])])
    assert ranked(answer) == expected(scores)
    tokens = sum(len(truth.reranker.tokenizer.encode(text)) for text in TEXTS)
    assert answer["usage"] == {"texts": len(TEXTS), "images": 1, "tokens": tokens, "total_tokens": tokens}


def test_top_n_ties_and_returned_documents(client: TestClient, pictures: list[bytes]) -> None:
    documents: list[Any] = [sent(pictures[0]), sent(pictures[1]), sent(pictures[0]), sent(pictures[0])]
    results = rerank(client, "red", documents, return_documents=True)["results"]
    assert [each["document"] for each in results] == [documents[each["index"]] for each in results]
    equal = [each["index"] for each in results if each["index"] != 1]
    assert equal == [0, 2, 3], "equal scores by index"
    assert rerank(client, "red", documents, top_n=2)["results"] == [
        {key: value for key, value in each.items() if key != "document"} for each in results[:2]
    ]
    assert len(rerank(client, "red", documents, top_n=99)["results"]) == 4, "clamped to what there is"
    [one] = rerank(client, sent(pictures[0]), [{"text": "red"}], return_documents=True)["results"]
    assert one["document"] == {"text": "red"}


def test_files_and_raw_pictures(client: TestClient, truth: Truth, pictures: list[bytes]) -> None:
    files = [("image", ("a.png", each, "image/png")) for each in pictures[:3]]
    answer = client.post("/rerank", files=files, data={"query": "blue and red"})
    assert ranked(answer.json()) == expected([truth.score(each, "blue and red") for each in pictures[:3]])
    # Behind those in JSON; what came as a file has no document to send back.
    request = {"query": "red", "documents": [sent(pictures[3])], "return_documents": True}
    results = client.post("/rerank", files=files[:1], data={"request": json.dumps(request)}).json()["results"]
    assert {each["index"]: "document" in each for each in results} == {0: True, 1: False}
    # Without a query the first file is the query, and a text may hold a comma.
    texts = ["red, or a green thing", "blue"]
    answer = client.post("/rerank", files=files[:1], data={"documents": texts})
    assert ranked(answer.json()) == expected([truth.score(pictures[0], text) for text in texts])
    raw = client.post(
        "/rerank?documents=blue&documents=red,%20or", content=pictures[0], headers={"Content-Type": "image/png"}
    )
    assert ranked(raw.json()) == expected([truth.score(pictures[0], text) for text in ("blue", "red, or")])
    both = client.post("/rerank", files=files[:2], data={"documents": texts})
    assert refused(both) == (422, "unsupported_input", "documents[2].image")


def test_pairs_of_one_kind_and_models_without_a_reranker_are_refused(client: TestClient, pictures: list[bytes]) -> None:
    picture = sent(pictures[0])
    for query, documents, param in (
        ("red", [picture, "blue"], "documents[1]"),
        ("red", [{"text": "blue"}], "documents[0].text"),
        (picture, ["red", picture], "documents[1].image"),
    ):
        # Also with a broken picture before it, and with on_error: nothing is decoded.
        body = {"query": query, "documents": documents, "on_error": "item"}
        assert refused(client.post("/rerank", json=body)) == (422, "unsupported_input", param)
    answer = client.post("/rerank", json={"model": "tiny", "query": "red", "documents": [picture]})
    assert refused(answer) == (422, "unsupported_input", "model")
    assert "judge@1" in answer.json()["error"]["message"]
    assert refused(client.post("/rerank", json={"model": "nobody", "query": "red", "documents": [picture]}))[:2] == (
        404,
        "model_not_found",
    )
    for body in ({"query": "red"}, {"query": "red", "documents": []}, {"documents": [picture]}):
        assert client.post("/rerank", json=body).status_code == 422
    url = {"image_url": "http://a/b.png"}
    assert refused(client.post("/rerank", json={"query": "red", "documents": [url]}))[:2] == (403, "url_fetch_disabled")
    many = {"query": "red", "documents": [picture] * 257}
    assert refused(client.post("/rerank", json=many))[:2] == (413, "too_many_items")


def test_a_bad_document_is_its_own_error_and_a_bad_query_everybodys(client: TestClient, pictures: list[bytes]) -> None:
    documents: list[Any] = [sent(pictures[0]), {"image": "QUJD"}, sent(pictures[1]), {"image": "%%"}]
    failed = client.post("/rerank", json={"query": "red", "documents": documents})
    assert refused(failed) == (422, "unsupported_image", "documents[1].image")
    answer = rerank(client, "red", documents, on_error="item", top_n=1)
    good = rerank(client, "red", [documents[0], documents[2]], top_n=1)
    assert answer["results"][0]["relevance_score"] == good["results"][0]["relevance_score"]
    behind = [(each["index"], each["error"]["code"], each["error"]["param"]) for each in answer["results"][1:]]
    assert behind == [
        (1, "unsupported_image", "documents[1].image"),
        (3, "invalid_image", "documents[3].image"),
    ]
    for query, code in (({"image": "QUJD"}, "unsupported_image"), ({"image": "%%"}, "invalid_image")):
        answer = client.post("/rerank", json={"query": query, "documents": ["red"], "on_error": "item"})
        assert refused(answer) == (422, code, "query.image")
    late = client.post(
        "/rerank", json={"query": "red", "documents": documents[:1]}, headers={"X-Request-Timeout-Ms": "1"}
    )
    assert refused(late)[:2] == (504, "deadline_exceeded")
    [warning] = client.post("/rerank", json={"query": "", "documents": [sent(pictures[0])]}).json()["warnings"]
    assert warning == "query: this model knows nothing of what is there, so the score says nothing"


def test_a_full_reranker_says_so_before_any_picture_is_decoded(client: TestClient, pictures: list[bytes]) -> None:
    from service.timing import Budget

    rerank(client, "red", [sent(pictures[0])])
    app: Any = client.app
    pairs = app.state.services.registry.resolve("judge").rerank.opened.pairs
    with pairs.admit(512, Budget()):  # of one search at the limit, and others have room beside it
        rerank(client, "red", [sent(pictures[0])])
    with pairs.admit(8 * 512, Budget()):  # as if somebody else's were in work
        full = client.post("/rerank", json={"query": "red", "documents": [{"image": "QUJD"}]})
        assert refused(full)[:2] == (429, "overloaded")
        assert full.headers["Retry-After"]
    shown = client.get("/models/judge").json()
    assert {"token_encoder", "reranker"} <= {*shown["roles"]}
    assert {"dense_encoder", "token_encoder", "reranker"} <= {*shown["sessions"]}


_leaf = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=8)
_any = _leaf | st.lists(_leaf, max_size=2) | st.dictionaries(st.text(max_size=5), _leaf, max_size=2)
_text = st.text("red, blue\u00e9", max_size=8)
_good = st.fixed_dictionaries(
    {
        "query": _text | st.builds(lambda text: {"text": text}, _text),
        "documents": st.lists(st.just({"image": "QUJD"}) | _text, min_size=1, max_size=3),
    },
    optional={
        "model": st.just("judge"),
        "top_n": st.integers(1, 3),
        "return_documents": st.booleans(),
        "on_error": st.sampled_from(["fail", "item"]),
        "on_unknown": st.sampled_from(["warn", "error"]),
    },
)
_fields = st.sampled_from([*schemas.RerankRequest.model_fields, "x"])
_bodies = st.builds(lambda good, odd: good | odd, _good, st.dictionaries(_fields, _any, max_size=1))


@settings(max_examples=40, deadline=None)
@given(body=_bodies)
def test_any_body_is_a_request_or_refused(client: TestClient, body: dict[str, Any]) -> None:
    """What the wire model takes the route takes, and nothing else; no body is a server error."""
    answer = client.post("/rerank", json=body)
    try:
        schemas.RerankRequest.model_validate(body, strict=True)
    except ValidationError:
        assert answer.status_code == 422
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    else:
        assert answer.status_code in (200, 403, 404, 422)


def test_options_are_fields_of_the_request() -> None:
    assert OPTIONS.keys() == schemas.RerankRequest.model_fields.keys()
