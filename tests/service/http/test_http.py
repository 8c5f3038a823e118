"""What api.md promises of good requests; vectors are compared with the graph run by hand."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import schemas
from model_store.graph import open_graph
from model_store.modality.image import decode, prepare
from model_store.store import Store

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"


@pytest.fixture(scope="module")
def reference() -> Callable[[object], np.ndarray]:
    """str or encoded image -> un-normalised vector, straight from the artifact's graphs."""
    artifact = Store(TINY_STORE, builtin=False).open("tiny")
    graphs = {role: open_graph(*artifact.graph_spec(role, "fp32")) for role in ("image_encoder", "text_encoder")}
    tokenizer = artifact.tokenizer()

    def encode(value: object) -> np.ndarray:
        if isinstance(value, str):
            return graphs["text_encoder"](tokenizer([value]))[0]
        return graphs["image_encoder"](prepare(decode(value), artifact.image_spec)[None])[0]

    return encode


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def vectors_of(response) -> np.ndarray:  # type: ignore[no-untyped-def]
    assert response.status_code == 200, response.text
    body = schemas.EmbedResponse.model_validate_json(response.content)
    assert [entry.index for entry in body.data] == list(range(len(body.data)))
    return np.array([entry.embedding for entry in body.data], dtype=np.float32)


def test_embed_mixes_texts_and_images_in_order(client: TestClient, png: bytes, jpeg: bytes, reference) -> None:
    inputs = ["a cat", {"image": as_base64(png)}, {"text": "two dogs"}, {"image": as_base64(jpeg)}]
    response = client.post("/embed", json={"inputs": inputs})
    wanted = np.stack([unit(reference(each)) for each in ("a cat", png, "two dogs", jpeg)])
    np.testing.assert_allclose(vectors_of(response), wanted, atol=2e-6)
    body = response.json()
    assert body["usage"]["texts"] == 2
    assert body["usage"]["images"] == 2
    assert body["usage"]["tokens"] >= 6
    assert body["model"] == "tiny@1"
    assert body["dim"] == 32


def test_normalize_false_returns_the_graphs_own_vector(client: TestClient, png: bytes, reference) -> None:
    found = vectors_of(client.post("/embed", json={"inputs": [{"image": as_base64(png)}], "normalize": False}))[0]
    np.testing.assert_allclose(found, reference(png), atol=1e-5)
    assert abs(np.linalg.norm(found) - 1) > 1e-3


def test_every_way_in_and_out_gives_the_same_bits(client: TestClient, png: bytes) -> None:
    body = {"inputs": [{"image": as_base64(png)}]}
    wanted = vectors_of(client.post("/embed", json=body))[0]
    uri = {"inputs": [{"image": "data:image/png;base64," + as_base64(png)}]}
    ways = [
        client.post("/embed", json=uri),
        client.post("/embed", content=png, headers={"Content-Type": "image/png"}),
        client.post("/embed", files={"image": ("a.png", png)}),
        client.post("/embed", files={"image": ("a.png", png)}, data={"request": '{"normalize": true}'}),
    ]
    for way in ways:
        assert np.array_equal(vectors_of(way)[0], wanted)
    packed = client.post("/embed", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), wanted)
    response = client.post("/embed", json=body, headers={"Accept": "application/x-npy"})
    assert response.headers["content-type"] == "application/x-npy"
    array = np.load(BytesIO(response.content), allow_pickle=False)
    assert array.dtype == np.float32
    assert np.array_equal(array, wanted[None])


def test_multipart_files_stand_after_the_requests_own_inputs(client: TestClient, png: bytes, jpeg: bytes, reference):
    response = client.post(
        "/embed",
        data={"request": '{"inputs": ["a cat"]}', "normalize": "true"},
        files=[("image", ("b.jpg", jpeg)), ("image", ("a.png", png))],
    )
    wanted = np.stack([unit(reference(each)) for each in ("a cat", jpeg, png)])
    np.testing.assert_allclose(vectors_of(response), wanted, atol=2e-6)


def test_on_error_item_keeps_the_good_ones(client: TestClient, png: bytes) -> None:
    inputs = [
        "a cat",
        {"image": as_base64(png[:60])},
        {"image_url": "https://example.com/a.png"},
        {"image": as_base64(png)},
    ]
    body = schemas.EmbedResponse.model_validate_json(
        client.post("/embed", json={"inputs": inputs, "on_error": "item"}).content
    )
    codes = [entry.error.code if isinstance(entry, schemas.ItemError) else "ok" for entry in body.data]
    assert codes == ["ok", "invalid_image", "url_fetch_disabled", "ok"]
    assert body.data[1].error.param == "inputs[1].image"
    clean = vectors_of(client.post("/embed", json={"inputs": ["a cat", {"image": as_base64(png)}]}))
    assert np.array_equal(np.array([body.data[0].embedding, body.data[3].embedding], dtype=np.float32), clean)


@pytest.mark.parametrize(
    ("inputs", "status", "param"),
    [
        (["a", {"image": "!!!!"}, {"image_url": "https://example.com/a"}], 422, "inputs[1].image"),
        (["a", {"image_url": "https://example.com/a"}, {"image": "!!!!"}], 403, "inputs[1].image_url"),
    ],
)
def test_on_error_fail_answers_for_the_lowest_index(client: TestClient, inputs, status: int, param: str) -> None:
    response = client.post("/embed", json={"inputs": inputs})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_an_array_has_no_place_for_item_errors(client: TestClient) -> None:
    headers = {"Accept": "application/x-npy"}
    response = client.post("/embed", json={"inputs": ["a"], "on_error": "item"}, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "on_error")


def test_classify_agrees_with_the_formula(client: TestClient, png: bytes, reference) -> None:
    manifest = Store(TINY_STORE, builtin=False).open("tiny").manifest
    labels = ["cat", "dog", {"name": "car", "prompts": ["a fast car", "a car"]}]
    response = client.post(
        "/classify", json={"inputs": [{"image": as_base64(png)}], "labels": labels, "templates": ["a {}"]}
    )
    body = schemas.ClassifyResponse.model_validate_json(response.content)
    prompts = {"cat": ["a cat"], "dog": ["a dog"], "car": ["a fast car", "a car"]}
    classes = np.stack([unit(np.mean([unit(reference(p)) for p in group], axis=0)) for group in prompts.values()])
    similarities = classes @ unit(reference(png))
    logits = manifest.logit_scale * similarities
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    predictions = body.data[0].predictions
    order = np.argsort(-scores, kind="stable")
    assert [p.label for p in predictions] == [list(prompts)[i] for i in order]
    np.testing.assert_allclose([p.score for p in predictions], scores[order], atol=1e-5)
    np.testing.assert_allclose([p.similarity for p in predictions], similarities[order], atol=2e-6)


def test_classify_takes_form_fields_and_query_options(client: TestClient, png: bytes) -> None:
    json = client.post("/classify", json={"inputs": [{"image": as_base64(png)}], "labels": ["cat", "dog"], "top_k": 1})
    form = client.post("/classify", files={"image": ("a.png", png)}, data={"labels": "cat, dog", "top_k": "1"})
    raw = client.post("/classify?labels=cat,dog&top_k=1", content=png, headers={"Content-Type": "image/png"})
    assert json.status_code == 200, json.text
    assert json.json() == form.json() == raw.json()
    assert len(json.json()["data"][0]["predictions"]) == 1


def test_threshold_and_activation_none(client: TestClient, png: bytes) -> None:
    url = "/classify?labels=cat,dog,car&activation=none&threshold=-2"
    body = client.post(url, content=png, headers={"Content-Type": "image/png"}).json()
    assert all(p["score"] == p["similarity"] for p in body["data"][0]["predictions"])
    best = body["data"][0]["predictions"][0]["score"]
    url = f"/classify?labels=cat,dog,car&activation=none&threshold={best - 1e-9:.9f}"
    body = client.post(url, content=png, headers={"Content-Type": "image/png"}).json()
    assert len(body["data"][0]["predictions"]) == 1


def test_label_sets_live_and_answer_like_inline_labels(client: TestClient, png: bytes) -> None:
    request = {"labels": ["cat", "dog"], "templates": "simple"}
    put = client.put("/label-sets/pets", json=request)
    try:
        assert put.status_code == 202
        assert schemas.LabelSetInfo.model_validate_json(put.content).texts == 14
        for _ in range(500):
            detail = schemas.LabelSetDetail.model_validate_json(client.get("/label-sets/pets").content)
            if detail.ready:
                break
        assert detail.ready
        assert detail.label_names == ["cat", "dog"]
        assert [each.name for each in schemas.LabelSetList.model_validate_json(client.get("/label-sets").content).data]
        body = {"inputs": [{"image": as_base64(png)}]}
        stored = client.post("/classify", json={**body, "label_set": "pets"}).json()
        inline = client.post("/classify", json={**body, **request}).json()
        assert stored == inline
    finally:
        assert client.delete("/label-sets/pets").status_code == 204
    missing = client.post("/classify", json={**body, "label_set": "pets"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "label_set")


def test_models_are_listed_and_shown(client: TestClient) -> None:
    listed = schemas.ModelList.model_validate_json(client.get("/models").content).data
    assert [(m.name, m.version, m.loaded) for m in listed] == [("tiny", 1, True)]
    shown = schemas.ModelDetail.model_validate_json(client.get("/models/tiny@1").content)
    assert shown.fingerprint == listed[0].fingerprint
    assert shown.image_spec
    assert shown.provenance


def test_headers_of_every_answer(client: TestClient) -> None:
    response = client.post("/embed", json={"inputs": ["a"]}, headers={"X-Request-Id": "my-id.7"})
    assert response.headers["x-request-id"] == "my-id.7"
    stages = {part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")}
    assert {"queue", "infer", "total"} <= stages
    fingerprint = client.get("/models/tiny").json()["fingerprint"]
    assert response.headers["x-model-fingerprint"] == f"image={fingerprint['image']}, text={fingerprint['text']}"
    minted = client.get("/nowhere", headers={"X-Request-Id": "bad id\x7f"}).headers["x-request-id"]
    assert len(minted) == 16
    assert minted != client.get("/nowhere").headers["x-request-id"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 10])
def test_a_bad_timeout_header_is_refused(client: TestClient, value: str) -> None:
    response = client.post("/embed", json={"inputs": ["a"]}, headers={"X-Request-Timeout-Ms": value})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_header")


def test_work_that_misses_its_deadline_is_504(client: TestClient) -> None:
    body = {"inputs": ["some words " * 60] * 256}
    response = client.post("/embed", json=body, headers={"X-Request-Timeout-Ms": "1"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert client.post("/embed", json={"inputs": ["a"]}).status_code == 200


def test_the_timeout_header_is_capped(make_client: Callable[..., TestClient]) -> None:
    client = make_client(request_timeout_s=0.001, max_request_timeout_s=0.001)
    headers = {"X-Request-Timeout-Ms": "60000"}
    assert client.post("/embed", json={"inputs": ["words " * 60] * 256}, headers=headers).status_code == 504


def test_head_is_get_without_its_body(client: TestClient) -> None:
    response = client.head("/livez")
    assert response.status_code == 200
    assert response.headers["content-length"] == client.get("/livez").headers["content-length"]
    assert client.head("/embed").status_code == 405


def test_readyz_is_503_until_the_models_have_proven_themselves(make_app) -> None:
    with TestClient(make_app()) as client:
        first = client.get("/readyz")
        assert (first.status_code, first.json()["error"]["code"]) == (503, "starting")
        assert client.get("/livez").json()["status"] == "ok"
        refused = client.post("/embed", json={"inputs": ["a"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "1"


def test_a_corrupt_artifact_never_gets_ready(make_app, tiny_store: Path) -> None:
    graph = next((tiny_store / "tiny" / "1").glob("image_encoder*.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with TestClient(make_app(store=tiny_store)) as client:
        for _ in range(2000):
            answer = client.get("/readyz").json()["error"]
            if answer["code"] != "starting":
                break
        assert answer["code"] == "failed"
        assert "sha256" in answer["message"]


def test_the_reference_page_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
