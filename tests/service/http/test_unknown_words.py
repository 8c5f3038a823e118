"""Words that a model does not know are answered with a warning, or refused where that is asked for."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from clipworks import schemas
from tests.stores import SHOP_STORE

LABELS = ["grass", "dress", "hello", "shoes"]


@pytest.fixture(scope="module")
def shop_server(serve_module: Callable[..., Any]) -> Any:
    """A server of its own process whose model knows some thousands of tokens and no others."""
    server = serve_module(store=SHOP_STORE)
    server.wait_for("ready")
    return server


@pytest.fixture(scope="module")
def shop(shop_server: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=shop_server.address, timeout=60) as client:
        yield client


def picture(colour: str = "red") -> dict[str, str]:
    buffer = BytesIO()
    Image.new("RGB", (64, 80), colour).save(buffer, "PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode()}


def answered(response: httpx2.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx2.Response, status: int = 422) -> tuple[str, str, str]:
    error = schemas.ErrorResponse.model_validate_json(response.content).error
    assert response.status_code == status, response.text
    return error.code, error.param or "", error.message


def test_an_unknown_text_has_a_vector_of_zeros_and_is_named(shop: httpx2.Client) -> None:
    inputs = ["red dress", "grass", {"text": "hello"}, picture(), ""]
    body = answered(shop.post("/embed", json={"inputs": inputs}))
    schemas.EmbedResponse.model_validate(body)
    vectors = np.array([each["embedding"] for each in body["data"]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1, 0], atol=1e-6)
    assert [each.get("weak", False) for each in body["data"]] == [False, True, True, False, True]
    [warning] = body["warnings"]
    assert warning.startswith("inputs[1], inputs[2].text, inputs[4]: ")
    known = answered(shop.post("/embed", json={"inputs": ["red dress"]}))
    assert "warnings" not in known
    assert known["data"][0] == body["data"][0]


def test_an_array_says_it_in_a_header(shop: httpx2.Client) -> None:
    accept = {"Accept": "application/x-npy"}
    answer = shop.post("/embed", json={"inputs": ["grass", "dress"]}, headers=accept)
    assert np.load(BytesIO(answer.content))[0].any() == np.False_
    assert answer.headers["x-warnings"].startswith("inputs[0]: ")
    assert "x-warnings" not in shop.post("/embed", json={"inputs": ["dress"]}, headers=accept).headers


def test_the_strict_form_refuses_and_goes_with_on_error(shop: httpx2.Client) -> None:
    asked = {"inputs": ["dress", "grass"], "on_unknown": "error"}
    assert refused(shop.post("/embed", json=asked))[:2] == ("no_direction", "inputs[1]")
    known, unknown = answered(shop.post("/embed", json={**asked, "on_error": "item"}))["data"]
    assert (known["index"], unknown["error"]["code"]) == (0, "no_direction")
    assert refused(shop.post("/embed", json={**asked, "on_unknown": "no"}))[:2] == ("invalid_field", "on_unknown")
    assert refused(shop.post("/v1/embeddings", json={"input": ["dress", "grass"], "on_unknown": "error"}))[:2] == (
        "no_direction",
        "input[1]",
    )


def test_an_openai_client_gets_its_vectors(shop: httpx2.Client) -> None:
    body = answered(shop.post("/v1/embeddings", json={"input": ["grass", "dress"]}))
    schemas.V1EmbeddingsResponse.model_validate(body)
    assert [any(each["embedding"]) for each in body["data"]] == [False, True]
    assert [set(each) for each in body["data"]] == [{"object", "index", "embedding"}] * 2
    assert body["warnings"][0].startswith("input[0]: ")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_unknown_labels_come_last_and_take_nothing_from_the_others(shop: httpx2.Client, activation: str) -> None:
    def predictions(labels: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
        body = answered(
            shop.post("/classify", json={"inputs": [picture()], "labels": labels, "activation": activation})
        )
        schemas.ClassifyResponse.model_validate(body)
        return body["data"][0]["predictions"], body.get("warnings", [])

    found, warnings = predictions(LABELS)
    known, none = predictions(["dress", "shoes"])
    assert none == []
    for ours, alone in zip(found[:2], known, strict=True):
        assert ours["label"] == alone["label"]
        # Not the same bits: products of matrices of other sizes, and the vectors of texts in other company.
        assert ours["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert ours["similarity"] == pytest.approx(alone["similarity"], abs=1e-6)
    unknown = {"score": 0.0, "similarity": None, "weak": True}
    assert found[2:] == [{"label": "grass", **unknown}, {"label": "hello", **unknown}]
    assert warnings == ["labels: this model knows nothing of 'grass', 'hello'; try other words, or another model"]


def test_every_bad_label_is_named_at_once(shop: httpx2.Client) -> None:
    asked = {"inputs": [picture()], "labels": LABELS, "on_unknown": "error"}
    code, param, message = refused(shop.post("/classify", json=asked))
    assert (code, param) == ("no_direction", "labels")
    assert "'grass', 'hello';" in message
    assert refused(shop.post("/localize", json=asked))[:2] == ("no_direction", "labels")


def test_softmax_of_the_only_known_label_says_what_it_is_worth(shop: httpx2.Client) -> None:
    body = answered(shop.post("/classify", json={"inputs": [picture()], "labels": ["grass", "dress"]}))
    assert [each["score"] for each in body["data"][0]["predictions"]] == [1.0, 0.0]
    assert "one is left to compare" in body["warnings"][1]
    body = answered(shop.post("/classify", json={"inputs": [picture()], "labels": ["grass", "hello"]}))
    assert [each["score"] for each in body["data"][0]["predictions"]] == [0.0, 0.0]


def test_prompts_of_a_label_count_without_their_unknown_ones(shop: httpx2.Client) -> None:
    def similarity(prompts: list[str]) -> Any:
        labels = [{"name": "it", "prompts": prompts}, "shoes"]
        body = answered(shop.post("/classify", json={"inputs": [picture()], "labels": labels}))
        return next(each["similarity"] for each in body["data"][0]["predictions"] if each["label"] == "it")

    assert similarity(["grass", "dress"]) == similarity(["dress"])
    assert similarity(["grass", "hello"]) is None


def test_an_unknown_label_is_nowhere(shop: httpx2.Client) -> None:
    asked = {"inputs": [picture()], "labels": LABELS, "threshold": 0.0, "include": ["mask", "heatmap"]}
    body = answered(shop.post("/localize", json=asked))
    schemas.LocalizeResponse.model_validate(body)
    labels = {each["label"]: each for each in body["data"][0]["labels"]}
    assert {name for name, each in labels.items() if each.get("weak")} == {"grass", "hello"}
    for name, each in labels.items():
        assert each["present"] is (name in ("dress", "shoes"))
        assert bool(each["boxes"]) is each["present"]
    assert (labels["grass"]["score"], np.any(labels["grass"]["heatmap"]["values"])) == (0.0, False)
    assert "'grass', 'hello';" in body["warnings"][0]


def wait_for_set(client: httpx2.Client, name: str) -> dict[str, Any]:
    while not ((info := answered(client.get(f"/label-sets/{name}")))["ready"] or info["failed"]):
        pass
    return info


def test_a_label_set_says_which_labels_are_unknown(shop: httpx2.Client, shop_server: Any) -> None:
    answered(shop.put("/label-sets/kinds", json={"labels": LABELS}), 202)
    info = wait_for_set(shop, "kinds")
    assert "'grass', 'hello';" in info["warnings"][0]
    by_name = answered(shop.post("/classify", json={"inputs": [picture()], "label_set": "kinds"}))
    inline = answered(shop.post("/classify", json={"inputs": [picture()], "labels": LABELS}))
    assert by_name == inline
    strict = {"inputs": [picture()], "label_set": "kinds", "on_unknown": "error"}
    assert refused(shop.post("/classify", json=strict))[:2] == ("no_direction", "label_set")
    answered(shop.put("/label-sets/strict", json={"labels": LABELS, "on_unknown": "error"}), 202)
    assert "'grass', 'hello';" in wait_for_set(shop, "strict")["failed"]
    end = time.monotonic() + 20  # another process writes it, and a thread reads it
    while "label set strict: no_direction" not in (log := "".join(shop_server.log)):
        assert time.monotonic() < end, log
        time.sleep(0.02)
    assert "grass" not in log, "labels are a user's"


def test_a_search_goes_on_without_what_is_unknown(shop: httpx2.Client) -> None:
    answered(shop.put("/collections/things", json={}), 201)
    rows = [{"id": name, "text": name} for name in ("dress", "shoes", "bag")]
    answered(shop.post("/collections/things/items", json={"items": rows}))
    parts = [{"text": "dress"}, {"text": "grass", "weight": 3}, {"text": "shoes", "weight": 0.5}]
    queries = ["grass", "dress", {"combine": parts}, {"combine": [{"text": "grass"}, {"text": "hello"}]}]
    body = answered(shop.post("/collections/things/search", json={"queries": queries}))
    schemas.SearchResponse.model_validate(body)
    nothing, one, joined, none = body["results"]
    assert (nothing["hits"], none["hits"]) == ([], [])
    assert [each.get("weak", False) for each in body["results"]] == [True, False, False, True]
    assert one["hits"][0]["id"] == "dress"
    without = [{"combine": [parts[0], parts[2]]}]
    assert (
        joined["hits"]
        == answered(shop.post("/collections/things/search", json={"queries": without}))["results"][0]["hits"]
    )
    assert body["warnings"][0].startswith(
        "queries[0], queries[2].combine[1].text, queries[3].combine[0].text, queries[3].combine[1].text: "
    )
    strict = {"queries": queries[1:], "on_unknown": "error"}
    assert refused(shop.post("/collections/things/search", json=strict))[:2] == (
        "no_direction",
        "queries[1].combine[1].text",
    )


def test_what_has_no_direction_is_not_stored(shop: httpx2.Client) -> None:
    """No search would ever find it, and a search for nothing would."""
    answered(shop.put("/collections/rows", json={}), 201)
    items = [{"id": "a", "text": "dress"}, {"id": "b", "text": "grass"}]
    code, param, message = refused(shop.post("/collections/rows/items", json={"items": items}))
    assert (code, param) == ("no_direction", "items[1].text")
    assert "no search would find it" in message
    mixed = answered(shop.post("/collections/rows/items", json={"items": items, "on_error": "item"}))
    assert (mixed["upserted"], mixed["data"][1]["error"]["code"]) == (1, "no_direction")
