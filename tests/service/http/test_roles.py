"""Adapters, class heads and cured towers served by the app: the numbers of torch and of the offline evaluation."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluation.encoder import ArtifactEncoder
from model_store.store import Artifact, Store, file_entries

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
LABELS = ("red", "green", "blue")
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((3, 32)) * 10, RNG.standard_normal(3)
ADMIN = {"Authorization": "Bearer admin-key-1"}
TEXTS = ["a red square", "no dog", "two small circles"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, `few` (heads on tiny), `bent` (both towers adapted, a head behind it), `cured` (another text tower)."""
    import open_clip

    from model_store.manifest import SpaceProof
    from training.exporting.derive import DerivationSource, export_derivation
    from training.exporting.derived_graphs import AdapterSource, linear_head
    from training.exporting.export import provenance
    from training.exporting.graphs import TextGraph
    from training.tiny import tiny_config

    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("roles") / "store"))
    opened = Store(folder, builtin=False)
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="t", licence="none")
    source = DerivationSource(base=opened.open("tiny"), structure="t", provenance=made)
    heads = {
        "colours": linear_head(WEIGHT, BIAS, LABELS, temperature=2.0),
        "spots": linear_head(WEIGHT[:2], None, ("many", "few"), activation="sigmoid"),
    }
    export_derivation(replace(source, heads=heads), name="few", store=opened)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapters = [AdapterSource(module=torch.nn.Linear(32, 24).eval()) for _ in range(2)]
    bent = replace(
        source,
        image_adapter=adapters[0],
        text_adapter=adapters[1],
        heads={"colours": linear_head(WEIGHT[:, :24], None, LABELS)},
    )
    export_derivation(bent, name="bent", store=opened)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clip = open_clip.CLIP(**tiny_config()).eval()
    proof = SpaceProof(tower="text", statement="a test", n=1, metric="R@1", value=1, at_least=0.5)
    cured = replace(source, text=TextGraph(clip).eval(), proofs=(proof,))
    export_derivation(cured, name="cured", store=opened, precisions=["fp32"])
    return folder


@pytest.fixture(scope="module")
def client(store: Path, make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    data = tmp_path_factory.mktemp("data")
    models = {"model": "tiny", "extra_models": ("few", "bent", "cured"), "admin_keys": ("admin-key-1",)}
    return make_client(store=store, data=data, **models)


@pytest.fixture(scope="module")
def pictures(make_picture: Callable[..., bytes]) -> list[bytes]:
    return [make_picture("PNG", 50 + 7 * seed, 61, seed=seed) for seed in range(5)]


def artifact(store: Path, name: str) -> Artifact:
    return Store(store, builtin=False).open(name)


def sent(pictures: list[bytes]) -> list[dict[str, str]]:
    return [{"image": base64.b64encode(data).decode()} for data in pictures]


def answered(client: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def scores_of(client: TestClient, pictures: list[bytes], **body: Any) -> np.ndarray:
    """Scores [n, C] in the order of LABELS."""
    data = answered(client, "/classify", {"inputs": sent(pictures), **body})["data"]
    by_label = [{p["label"]: p["score"] for p in entry["predictions"]} for entry in data]
    return np.array([[row[label] for label in LABELS] for row in by_label])


def unit(vectors: Any) -> np.ndarray:
    values = np.asarray(vectors, dtype=np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["few", "bent", "cured"])
def test_embeddings_over_http_are_those_of_the_offline_evaluation(
    client: TestClient, store: Path, pictures: list[bytes], name: str
) -> None:
    answer = answered(client, "/embed", {"model": name, "inputs": [*TEXTS, *sent(pictures)]})
    got = np.array([entry["embedding"] for entry in answer["data"]])
    encoder = ArtifactEncoder(artifact(store, name))
    expected = np.concatenate([encoder.encode_texts(TEXTS), encoder.encode_images(pictures)])
    assert got.shape == expected.shape == (8, 24 if name == "bent" else 32)
    assert answer["dim"] == got.shape[1]
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert (answer["space"] == artifact(store, "tiny").manifest.space) == (name != "bent")


def test_adapters_are_applied_to_unit_vectors_of_both_towers(client: TestClient, pictures: list[bytes]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapters = [torch.nn.Linear(32, 24) for _ in range(2)]
    for adapter, inputs in zip(adapters, [sent(pictures), TEXTS], strict=True):
        base, bent = (
            [entry["embedding"] for entry in answered(client, "/embed", {"model": name, "inputs": inputs})["data"]]
            for name in ("tiny", "bent")
        )
        with torch.inference_mode():
            expected = adapter(torch.tensor(unit(base), dtype=torch.float32)).numpy()
        np.testing.assert_allclose(bent, unit(expected), atol=1e-5)
    raw = answered(client, "/embed", {"model": "bent", "inputs": TEXTS, "normalize": False})["data"]
    np.testing.assert_allclose([entry["embedding"] for entry in raw], expected, atol=1e-5)


def test_zero_shot_goes_through_the_adapters(client: TestClient, store: Path, pictures: list[bytes]) -> None:
    from evaluation.zero_shot import class_matrix

    encoder, manifest = ArtifactEncoder(artifact(store, "bent")), artifact(store, "bent").manifest
    classes = class_matrix(encoder.encode_texts, LABELS, manifest.templates)
    cosines = encoder.encode_images(pictures) @ classes.T
    got = scores_of(client, pictures, model="bent", labels=list(LABELS), activation="none")
    np.testing.assert_allclose(got, cosines, atol=1e-5)


def test_a_heads_scores_are_numpys_and_those_of_the_offline_evaluation(
    client: TestClient, store: Path, pictures: list[bytes]
) -> None:
    embedded = answered(client, "/embed", {"model": "tiny", "inputs": sent(pictures)})["data"]
    logits = unit([entry["embedding"] for entry in embedded]) @ WEIGHT.T + BIAS
    exponentials = np.exp(logits / 2.0)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    body = {"model": "few", "label_set": "colours"}
    np.testing.assert_allclose(scores_of(client, pictures, **body), expected, atol=1e-5)
    np.testing.assert_allclose(scores_of(client, pictures, **body, activation="none"), logits, atol=1e-4)
    sigmoid = 1 / (1 + np.exp(-logits / 2.0))
    np.testing.assert_allclose(scores_of(client, pictures, **body, activation="sigmoid"), sigmoid, atol=1e-5)
    for name in ("few", "bent"):
        offline = ArtifactEncoder(artifact(store, name)).class_scores("colours", pictures)
        served = scores_of(client, pictures, model=name, label_set="colours")
        np.testing.assert_allclose(served, offline, atol=2e-6)
        alone = [scores_of(client, [picture], model=name, label_set="colours")[0] for picture in pictures]
        np.testing.assert_allclose(served, alone, atol=2e-6)


def test_a_heads_predictions_are_ranked_cut_and_have_no_similarity(client: TestClient, pictures: list[bytes]) -> None:
    body = {"inputs": [*sent(pictures[:1]), {"image": "AAAA"}], "label_set": "spots", "on_error": "item"}
    answer = answered(client, "/classify", body)
    assert answer["model"] == "few@1"  # the only model with such a head
    first, failed = answer["data"]
    scores = [prediction["score"] for prediction in first["predictions"]]
    assert {prediction["similarity"] for prediction in first["predictions"]} == {None}
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) != pytest.approx(1, abs=1e-3)  # the head's own activation is sigmoid
    assert failed["error"]["code"] in ("invalid_image", "unsupported_image")
    best = {**body, "inputs": sent(pictures[:1]), "top_k": 1}
    assert len(answered(client, "/classify", best)["data"][0]["predictions"]) == 1
    none = {**best, "threshold": 1.5}
    assert answered(client, "/classify", none)["data"][0]["predictions"] == []


def test_a_head_of_many_labels_is_ranked_off_the_loop(client: TestClient, store: Path, pictures: list[bytes]) -> None:
    from training.exporting.derive import DerivationSource, export_derivation
    from training.exporting.derived_graphs import linear_head
    from training.exporting.export import provenance

    names = [f"thing {n}" for n in range(10_001)]
    weight = np.random.default_rng(5).standard_normal((len(names), 32))
    opened = Store(store, builtin=False)
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="t", licence="none")
    head = linear_head(weight, None, names, activation="sigmoid")
    source = DerivationSource(base=opened.open("tiny"), structure="t", provenance=made, heads={"things": head})
    export_derivation(source, name="wide", store=opened)
    assert client.post("/models/wide/load", headers=ADMIN).status_code == 200
    try:
        embedded = answered(client, "/embed", {"model": "wide", "inputs": sent(pictures[:1])})["data"]
        logits = weight @ unit([embedded[0]["embedding"]])[0]
        body = {"inputs": sent(pictures[:1]), "label_set": "things", "activation": "none"}
        response = client.post("/classify", json=body)
        found = response.json()["data"][0]["predictions"]
        assert [each["label"] for each in found[:3]] == [names[n] for n in np.argsort(-logits)[:3]]
        np.testing.assert_allclose([each["score"] for each in found], np.sort(logits)[::-1], atol=1e-4)
        assert "rank;" in response.headers["server-timing"]
    finally:
        assert client.post("/models/wide/unload", headers=ADMIN).status_code == 204


def test_heads_are_listed_and_cannot_be_replaced_or_deleted(client: TestClient) -> None:
    listed = client.get("/label-sets").json()["data"]
    assert [(each["name"], each["model"], each["labels"], each["built_in"], each["ready"]) for each in listed] == [
        ("colours", "bent@1", 3, True, True),
        ("colours", "few@1", 3, True, True),
        ("spots", "few@1", 2, True, True),
    ]
    detail = client.get("/label-sets/spots").json()
    assert (detail["label_names"], detail["templates"], detail["built_in"]) == (["many", "few"], [], True)
    for response in (client.put("/label-sets/spots", json={"labels": ["a", "b"]}), client.delete("/label-sets/spots")):
        status, code, message = refused(response)
        assert (status, code) == (409, "conflict")
        assert "class head of few@1" in message
    assert client.get("/label-sets").json()["data"] == listed
    assert client.delete("/label-sets/nothing").status_code == 404


def test_a_head_of_two_models_needs_the_models_name(client: TestClient, pictures: list[bytes]) -> None:
    body = {"inputs": sent(pictures[:1]), "label_set": "colours"}
    status, code, message = refused(client.post("/classify", json=body))
    assert (status, code) == (409, "conflict")
    assert "bent@1, few@1: name the model" in message
    assert refused(client.get("/label-sets/colours"))[:2] == (409, "conflict")
    assert refused(client.post("/classify", json={**body, "model": "tiny"}))[0] == 409
    status, _, message = refused(client.post("/classify", json={**body, "model": "tiny", "label_set": "spots"}))
    assert status == 409
    assert "head of few@1, the request is for tiny@1" in message
    assert refused(client.post("/classify", json={**body, "label_set": "shapes"}))[:2] == (404, "not_found")


def test_stored_sets_go_on_beside_heads(client: TestClient, pictures: list[bytes]) -> None:
    labels = list(LABELS)
    assert client.put("/label-sets/mine", json={"labels": labels, "model": "few"}).status_code == 202
    while not client.get("/label-sets/mine").json()["ready"]:
        pass
    stored = client.get("/label-sets/mine").json()
    assert (stored["built_in"], stored["model"]) == (False, "few@1")
    cosines = scores_of(client, pictures[:1], label_set="mine", activation="none")
    assert np.abs(cosines).max() <= 1
    assert client.delete("/label-sets/mine").status_code == 204


def test_models_show_roles_heads_base_and_proof(client: TestClient) -> None:
    few, bent, cured = (client.get(f"/models/{name}").json() for name in ("few", "bent", "cured"))
    assert few["heads"] == [
        {"name": "colours", "labels": 3, "activation": "softmax"},
        {"name": "spots", "labels": 2, "activation": "sigmoid"},
    ]
    assert (few["base"], few["kind"], few["space_proofs"]) == ("tiny@1", "derivation", [])
    assert set(bent["roles"]) == {"image_encoder", "text_encoder", "image_adapter", "text_adapter", "class_head"}
    assert bent["dim"] == 24
    (proof,) = cured["space_proofs"]
    assert (proof["metric"], proof["fingerprint"]) == ("R@1", cured["fingerprint"]["text"])
    assert cured["space"] == client.get("/models/tiny").json()["space"]
    tiny = next(m for m in client.get("/models").json()["data"] if m["name"] == "tiny")
    assert (tiny["base"], tiny["heads"]) == (None, [])


def test_an_int8_image_encoder_works_with_an_fp32_head(
    store: Path, make_client: Callable[..., TestClient], pictures: list[bytes]
) -> None:
    client = make_client(store=store, model="few", precision="int8")
    precision = client.get("/models/few").json()["precision"]
    assert precision == {"image_encoder": "int8", "text_encoder": "int8", "dense_encoder": "fp32"}
    served = scores_of(client, pictures, label_set="colours")
    offline = ArtifactEncoder(artifact(store, "few"), precision="int8").class_scores("colours", pictures)
    exact = ArtifactEncoder(artifact(store, "few")).class_scores("colours", pictures)
    np.testing.assert_allclose(served, offline, atol=2e-6)
    assert 1e-6 < np.abs(served - exact).max() < 0.05


def test_tampered_labels_are_not_served(store: Path, tmp_path: Path, make_client: Callable[..., TestClient]) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    path = folder / "few" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["heads"][0]["labels"] = ["green", "red", "blue"]
    path.write_text(json.dumps(manifest))
    path.with_name("manifest.sha256").unlink()  # what is checked is behind the seal
    client = make_client(store=folder, model="tiny", admin_keys=("admin-key-1",))
    status, code, message = refused(client.post("/models/few/load", headers=ADMIN))
    assert (status, code) == (500, "golden_mismatch")
    assert "the server's log says why" in message
    another = Store(folder, builtin=False).open("tiny")
    names = {"image": "0" * 64, "text": another.manifest.fingerprint.text}
    manifest = json.loads((another.folder / "manifest.json").read_text())
    manifest |= {"fingerprint": names, "files": [entry.model_dump() for entry in file_entries(another.folder)]}
    (another.folder / "manifest.json").write_text(json.dumps(manifest))
    status, code, message = refused(client.post("/models/cured/load", headers=ADMIN))
    assert (status, code) == (500, "artifact_corrupt")
    assert "the server's log says why" in message
