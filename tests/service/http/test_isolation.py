"""A poisoned input fails alone: its neighbours' answers are those of a clean request, bit for bit."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

BATCH = 32
CODES = {
    "truncated": "invalid_image",
    "not an image": "unsupported_image",
    "not base64": "invalid_image",
    "too many pixels": "image_too_large",
    "empty": "invalid_image",
    "url": "url_fetch_disabled",
    "lone surrogate as bytes": "unsupported_image",
    "text too long": "invalid_text",
}


def image_input(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def poisons(make_picture: Callable[..., bytes]) -> dict[str, Any]:
    picture = make_picture("JPEG", 300, 200)
    return {
        "truncated": image_input(picture[: len(picture) // 2]),
        "not an image": image_input(b"<svg/>"),
        "not base64": {"image": "%%%"},
        "too many pixels": image_input(make_picture("PNG", 700, 700)),
        "empty": {"image": ""},
        "url": {"image_url": "http://127.0.0.1:1/x.png"},
        "lone surrogate as bytes": image_input(b"\xed\xa0\x80"),
        "text too long": "word " * 2000,
    }


@pytest.fixture(scope="module", params=["fp32", "int8"])
def small_client(request: pytest.FixtureRequest, make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(max_pixels=300_000, precision=request.param)


@pytest.fixture(scope="module")
def clean_inputs(make_picture: Callable[..., bytes]) -> list[Any]:
    """31 different inputs: photographs of odd sizes, and texts of different lengths."""
    pictures = [image_input(make_picture("PNG", 40 + 7 * i, 90 - 2 * i, seed=i)) for i in range(24)]
    return [*pictures, *("a red shoe " * length for length in range(1, 8))]


def embed(client: TestClient, inputs: list[Any]) -> list[Any]:
    body = {"inputs": inputs, "encoding_format": "base64", "on_error": "item"}
    response = client.post("/embed", json=body)
    assert response.status_code == 200, response.text
    return response.json()["data"]


@pytest.mark.parametrize("kind", list(CODES))
def test_each_poison_at_each_position(
    kind: str, small_client: TestClient, clean_inputs: list[Any], make_picture: Callable[..., bytes]
) -> None:
    poison = poisons(make_picture)[kind]
    clean = [entry["embedding"] for entry in embed(small_client, clean_inputs)]
    for position in range(BATCH):
        entries = embed(small_client, [*clean_inputs[:position], poison, *clean_inputs[position:]])
        assert entries[position]["error"]["code"] == CODES[kind]
        rest = [entry["embedding"] for index, entry in enumerate(entries) if index != position]
        assert rest == clean
    assert small_client.get("/readyz").status_code == 200


def test_an_answer_does_not_depend_on_company(small_client: TestClient, clean_inputs: list[Any]) -> None:
    together = [entry["embedding"] for entry in embed(small_client, clean_inputs)]
    alone = [embed(small_client, [each])[0]["embedding"] for each in clean_inputs]
    assert alone == together


def test_without_on_error_the_bad_item_of_lowest_index_decides(
    small_client: TestClient, clean_inputs: list[Any], make_picture: Callable[..., bytes]
) -> None:
    bad = poisons(make_picture)
    inputs = [*clean_inputs[:5], bad["not an image"], *clean_inputs[5:9], bad["truncated"]]
    response = small_client.post("/embed", json={"inputs": inputs})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "unsupported_image"
    assert response.json()["error"]["param"] == "inputs[5].image"


def test_different_pictures_have_different_vectors(small_client: TestClient, clean_inputs: list[Any]) -> None:
    vectors = [np.frombuffer(base64.b64decode(e["embedding"]), "<f4") for e in embed(small_client, clean_inputs[:24])]
    products = np.stack(vectors) @ np.stack(vectors).T
    assert np.diag(products) == pytest.approx(1, abs=1e-5)
    assert (products - np.eye(24)).max() < 0.99999
