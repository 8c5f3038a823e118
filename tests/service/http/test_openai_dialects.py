"""/v1 as clients speak it: requests of theirs byte for byte, null fields, pictures in `input`, limits of its own."""

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import schemas

# Recorded from openai 3.57 (LangChain 1.7, LiteLLM 1.83), openai.js 6.49 and infinity_client 0.0.78, the model's name
# and the image changed.
RECORDED = {
    "langchain, check_embedding_ctx_length=False": b'{"model":"tiny","input":["a"],"encoding_format":"base64"}',
    "litellm openai/": b'{"model":"tiny","input":["a"],"encoding_format":null}',
    "litellm infinity/": b'{"input": ["a"], "model": "tiny"}',
    "litellm jina_ai/": b'{"model": "tiny", "input": [{"text": "a"}]}',
    "openai.js": b'{"model":"tiny","input":["a"],"encoding_format":"base64"}',
    "infinity_client": b'{"input": ["a"], "model": "default/not-specified", "dimensions": 0, "modality": "text"}',
    "java with null fields": b'{"model":"tiny","input":["a"],"encoding_format":null,"dimensions":null,"user":null}',
    "jina": b'{"model":"tiny","input":[{"text":"a","image":null}],"task":"retrieval.query","normalized":true}',
    "powershell with a byte order mark": b'\xef\xbb\xbf{"model":"tiny","input":"a"}',
}


def ask(client: TestClient, content: bytes | dict[str, object]) -> schemas.V1EmbeddingsResponse:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return schemas.V1EmbeddingsResponse.model_validate_json(response.content, extra="forbid")


def vectors(answer: schemas.V1EmbeddingsResponse) -> np.ndarray:
    def vector(given: list[float] | str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else np.array(given, np.float32)

    return np.stack([vector(entry.embedding) for entry in answer.data])


def refused(client: TestClient, body: dict[str, object]) -> tuple[int, str, str | None, str]:
    response = client.post("/v1/embeddings", json=body)
    error = schemas.ErrorResponse.model_validate_json(response.content).error
    return response.status_code, error.code, error.param, error.message


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests_are_answered(client: TestClient, name: str) -> None:
    found = vectors(ask(client, RECORDED[name]))
    np.testing.assert_array_equal(found, vectors(ask(client, {"input": ["a"]})))


def test_token_ids_are_refused_with_the_remedy(client: TestClient) -> None:
    """LangChain without check_embedding_ctx_length=False sends the token ids of another model."""
    for given in ([[64, 15253]], [64, 15253], [[64]] * 3):
        status, code, param, message = refused(client, {"model": "tiny", "input": given})
        assert (status, code, param) == (422, "tokens_not_supported", "input[0]")
        assert "check_embedding_ctx_length=False" in message


@pytest.mark.parametrize("modality", ["text", None, "image"])
def test_a_data_uri_in_input_is_a_picture(client: TestClient, png: bytes, modality: str | None) -> None:
    plain = base64.b64encode(png).decode()
    wanted = client.post("/embed", json={"inputs": [{"image": plain}]}).json()["data"][0]["embedding"]
    for uri in ("data:image/png;base64," + plain, "DATA:image/png;charset=utf-8;BASE64," + plain):
        for given in (uri, [uri], [{"image": uri}]):
            found = vectors(ask(client, {"input": given, "modality": modality}))
            np.testing.assert_array_equal(found[0], np.array(wanted, np.float32))
    mixed = vectors(ask(client, {"input": ["a shirt", "data:image/png;base64," + plain], "modality": "text"}))
    np.testing.assert_array_equal(mixed[1], np.array(wanted, np.float32))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("data:image/png;base64,AAAA", "unsupported_image"),
        ("data:image/png;base64,A", "invalid_image"),
        ("data:image/svg+xml,%3Csvg/%3E", "invalid_image"),
        ("data:audio/wav;base64,UklGRgAA", "unsupported_image"),
    ],
)
def test_a_data_uri_is_never_a_sentence(client: TestClient, given: str, code: str) -> None:
    assert refused(client, {"input": [given]})[:3] == (422, code, "input[0].image")


def test_an_encoded_picture_in_the_place_of_a_text_is_refused_everywhere(client: TestClient, png: bytes) -> None:
    plain = base64.b64encode(png).decode()
    uri = "data:image/png;base64," + plain
    assert refused(client, {"input": plain})[:3] == (422, "invalid_text", "input")
    assert refused(client, {"input": [{"text": uri}]})[:3] == (422, "invalid_text", "input[0].text")
    for text in (uri, plain, "/9j/" + "A" * 80):
        response = client.post("/embed", json={"inputs": ["a", text]})
        assert (response.status_code, response.json()["error"]["param"]) == (422, "inputs[1]")
        assert '{"image": "..."}' in response.json()["error"]["message"]
    for sentence in ("data: the new oil", "/9j/ is how it begins", "iVBORw0KGgo"):
        assert client.post("/embed", json={"inputs": [sentence]}).status_code == 200


def test_the_limit_of_v1_is_that_of_its_dialect(make_client: Callable[..., TestClient], png: bytes) -> None:
    small = make_client(max_items=2, max_v1_inputs=5)
    assert len(ask(small, {"input": ["a"] * 5}).data) == 5
    status, code, _, message = refused(small, {"input": ["a"] * 6})
    assert (status, code) == (413, "too_many_items")
    assert "CLIPWORKS_MAX_V1_INPUTS" in message
    picture = {"image": base64.b64encode(png).decode()}
    assert len(ask(small, {"input": [picture, picture, {"text": "a"}]}).data) == 3
    status, code, _, message = refused(small, {"input": [picture] * 3})
    assert (status, code) == (413, "too_many_items")
    assert "CLIPWORKS_MAX_ITEMS" in message


def test_2048_texts_are_answered_with_the_default_settings(client: TestClient) -> None:
    answer = ask(client, {"input": [f"shirt {number % 7}" for number in range(2048)], "encoding_format": "base64"})
    assert [entry.index for entry in answer.data] == list(range(2048))
    found = vectors(answer)
    np.testing.assert_allclose(found[7:], found[:-7], atol=1e-6)


@pytest.mark.parametrize("name", ["tiny", "tiny@1", "tiny%401"])
def test_one_model_is_shown(client: TestClient, name: str) -> None:
    response = client.get(f"/v1/models/{name}")
    assert response.status_code == 200, response.text
    shown = schemas.V1Model.model_validate_json(response.content, extra="forbid")
    assert [shown.model_dump()] == client.get("/v1/models").json()["data"]


@pytest.mark.parametrize(
    "name", ["none", "tiny@2", "org/name", "org%2Fname@1", "a/b/c", "", "..%2f..", "tiny@", "x" * 500]
)
def test_unknown_models_are_404_in_the_shape_of_openai(client: TestClient, name: str) -> None:
    response = client.get(f"/v1/models/{name}")
    error = schemas.ErrorResponse.model_validate_json(response.content).error
    assert (response.status_code, error.code, error.param) == (404, "model_not_found", "model")


def test_usage_counts_tokens_of_texts(client: TestClient, png: bytes) -> None:
    one, both = ask(client, {"input": "a shirt"}).usage, ask(client, {"input": ["a shirt", "a shirt"]}).usage
    assert 0 < one.prompt_tokens == one.total_tokens
    assert both.total_tokens == 2 * one.total_tokens
    picture = ask(client, {"input": [{"image": base64.b64encode(png).decode()}, {"text": "a shirt"}]}).usage
    assert picture.total_tokens == one.total_tokens
