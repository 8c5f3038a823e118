"""The official client, unchanged, against a real server; and the dialects of infinity and Jina."""

import base64
import threading
from collections.abc import Callable

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import schemas

openai = pytest.importorskip("openai")


def embed(client: TestClient, inputs: list[object]) -> np.ndarray:
    body = client.post("/embed", json={"inputs": inputs}).json()
    return np.array([entry["embedding"] for entry in body["data"]], dtype=np.float32)


def v1(client: TestClient, **body: object) -> schemas.V1EmbeddingsResponse:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    return schemas.V1EmbeddingsResponse.model_validate_json(response.content, extra="forbid")


@pytest.fixture(scope="module")
def address(serve_module: Callable[..., object]) -> str:
    """A server that wants a key, and takes one request's items at a time."""
    server = serve_module(api_keys="the-right-key", max_queue_items=1)
    server.wait_for("ready")
    return server.address


def official(address: str, *, key: str = "the-right-key", max_retries: int = 0) -> "openai.OpenAI":
    return openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=max_retries)


def test_the_official_client_gets_the_same_vectors(address: str, client: TestClient) -> None:
    wanted = embed(client, ["a cat", "two dogs"])
    with official(address) as sdk:
        assert [model.id for model in sdk.models.list()] == ["tiny@1"]
        packed = sdk.embeddings.create(model="tiny@1", input=["a cat", "two dogs"])  # asks for base64 by itself
        plain = sdk.embeddings.create(model="tiny", input="a cat", encoding_format="float")
    assert packed.usage.total_tokens > 0
    found = np.array([entry.embedding for entry in packed.data], dtype=np.float32)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(plain.data[0].embedding, wanted[0], atol=2e-6)


def test_the_official_client_raises_its_own_errors(address: str) -> None:
    with official(address) as sdk:
        with pytest.raises(openai.NotFoundError) as missing:
            sdk.embeddings.create(model="text-embedding-3-small", input="a cat")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.UnprocessableEntityError):
            sdk.embeddings.create(model="tiny", input=[[1, 2, 3]])
        with pytest.raises(openai.UnprocessableEntityError):
            sdk.embeddings.create(model="tiny", input="a cat", dimensions=7)
    with official(address, key="the-wrong-key") as sdk, pytest.raises(openai.AuthenticationError):
        sdk.embeddings.create(model="tiny", input="a cat")


def test_the_official_client_comes_back_after_429(address: str) -> None:
    failures: list[Exception] = []
    done = threading.Event()

    def work(sdk: "openai.OpenAI") -> None:
        try:
            while not done.is_set():
                sdk.embeddings.create(model="tiny", input=["some words " * 50] * 60)
        except Exception as error:
            failures.append(error)

    keys = {"Authorization": "Bearer the-right-key"}
    with official(address, max_retries=20) as sdk:
        threads = [threading.Thread(target=work, args=(sdk,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(400):
            metrics = httpx2.get(address + "/metrics", headers=keys).text
            if 'route="/v1/embeddings",status="429"' in metrics:
                break
            done.wait(0.02)
        done.set()
        for thread in threads:
            thread.join(60)
    assert 'status="429"' in metrics
    assert not failures


def test_infinity_and_jina_dialects(client: TestClient, png: bytes, jpeg: bytes) -> None:
    one, two = (base64.b64encode(data).decode() for data in (png, jpeg))
    images = embed(client, [{"image": one}, {"image": two}])
    infinity = v1(client, input=[one, "data:image/jpeg;base64," + two], modality="image", model="tiny", user="x")
    np.testing.assert_array_equal(np.array([e.embedding for e in infinity.data], dtype=np.float32), images)
    single = v1(client, input=one, modality="image")
    np.testing.assert_array_equal(np.array(single.data[0].embedding, dtype=np.float32), images[0])
    jina = v1(client, input=[{"text": "a cat"}, {"image": one}], unknown="ignored")
    wanted = np.stack([embed(client, ["a cat"])[0], images[0]])
    np.testing.assert_array_equal(np.array([e.embedding for e in jina.data], dtype=np.float32), wanted)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": [1, 2]}, 422, "tokens_not_supported", "input[0]"),
        ({"input": [[1, 2]]}, 422, "tokens_not_supported", "input[0]"),
        ({"input": "http://x/a.png", "modality": "image"}, 403, "url_fetch_disabled", "input"),
        ({"input": ["QUJD", "HTTPS://x/a.png"], "modality": "image"}, 422, "unsupported_image", "input[0].image"),
        ({"input": [{"image": "https://x/a.png"}]}, 403, "url_fetch_disabled", "input[0].image_url"),
        ({"input": []}, 422, "invalid_field", "input"),
    ],
)
def test_refusals(client: TestClient, body: dict[str, object], status: int, code: str, param: str) -> None:
    response = client.post("/v1/embeddings", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
