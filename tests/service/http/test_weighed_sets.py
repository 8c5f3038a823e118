"""Label sets whose templates are weighed by pictures without labels: the numbers, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import Client
from clipworks.schemas import WeighTemplates
from service.tasks.label_set_files import LabelSetFiles
from service.tasks.weighed_sets import kept_pictures

LABELS = ["red apple", "green tree", "blue car"]
TEMPLATES = ["{}", "a photo of a {}", "a tattoo of a {}", "{} at night"]


def units(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def put_vectors(client: Any, name: str, vectors: np.ndarray, model: str) -> dict[str, np.ndarray]:
    """A collection of vectors of pictures."""
    client.put(f"/collections/{name}", json={"model": model})
    found = {f"{name}/{index}": vector for index, vector in enumerate(vectors)}
    items = [{"id": id, "vector": vector.tolist()} for id, vector in found.items()]
    answer = client.post(f"/collections/{name}/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    return found


def ready(client: Any, name: str) -> dict[str, Any]:
    end = time.monotonic() + 30
    while True:
        found = client.get(f"/label-sets/{name}").json()
        if found["ready"] or found["failed"] or time.monotonic() > end:
            return found
        time.sleep(0.02)


def expected_weights(
    texts: np.ndarray, pictures: np.ndarray, reference: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [P] and label vectors [C, D] from unit texts [C, P, D], in float64 and in the paper's order of steps."""
    logits = scale * np.einsum("nd,cpd->ncp", pictures.astype(float), texts.astype(float))
    of_reference = scale * np.einsum("nd,cpd->ncp", reference.astype(float), texts.astype(float))
    normalised = logits - (logits.mean(axis=0) + of_reference.mean(axis=0)) / 2
    scores = normalised.max(axis=1).mean(axis=0)
    weights = np.exp(scores) / np.exp(scores).sum()
    mixed = (texts * weights[:, None]).sum(axis=1)
    return weights, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def test_weights_and_scores_are_those_of_numpy(serve: Callable[..., Any], make_picture: Callable[..., bytes]) -> None:
    """Over HTTP, by the Python client, with a shipped model; the pictures of a limit are chosen by their ids."""
    server = serve(builtin="true", model="everyday-tiny")
    server.wait_for("ready")
    with Client(server.address) as client, httpx2.Client(base_url=server.address, timeout=30) as http:
        manifest = http.get("/models/everyday-tiny").json()
        photos = put_vectors(http, "photos", units(14, manifest["dim"], 1), "everyday-tiny")
        others = put_vectors(http, "others", units(11, manifest["dim"], 2), "everyday-tiny")
        prompts = [template.replace("{}", label) for label in LABELS for template in TEMPLATES]
        texts = np.asarray(client.embed(texts=prompts)).reshape(len(LABELS), len(TEMPLATES), -1)
        chosen = sorted(photos, key=lambda id: hashlib.sha256(id.encode()).digest())[:12]
        weights, vectors = expected_weights(
            texts, np.stack([photos[id] for id in chosen]), np.stack(list(others.values())), manifest["logit_scale"]
        )
        weighing = {"collection": "photos", "reference": "others", "limit": 12}
        client.put_label_set("w", LABELS, templates=TEMPLATES, weigh_templates=weighing)
        shown = client.label_set("w")
        assert shown.weighed is not None
        assert shown.weighed.weights is not None
        assert (shown.weighed.pictures, shown.weighed.how, shown.templates) == (12, "softmax", TEMPLATES)
        assert max(weights) - min(weights) > 0.001, "else this test sees nothing"
        np.testing.assert_allclose(shown.weighed.weights, weights, atol=1e-4)
        picture = make_picture("PNG", 60, 40)
        found = client.classify([picture], label_set="w", activation="none")[0]
        image = np.asarray(client.embed(images=[picture]))[0]
        scores = dict(zip(LABELS, vectors @ image, strict=True))
        assert {each.label: each.score for each in found} == pytest.approx(scores, abs=1e-5)
        client.put_label_set("s", LABELS, templates=TEMPLATES, weigh_templates=weighing | {"how": "select"})
        selected = client.label_set("s").weighed
        assert selected is not None
        chosen_weights = {round(each, 9) for each in selected.weights or ()}
        assert chosen_weights <= {0.0, 1.0, 0.5, round(1 / 3, 9)}
        assert client.put_label_set("plain", LABELS, templates=TEMPLATES).ready
        assert client.label_set("plain").weighed is None
    assert server.stop() == 0


WEIGHED = {"labels": LABELS, "templates": TEMPLATES, "weigh_templates": {"collection": "photos"}}


def test_what_survives_and_what_is_known_already(make_app: Callable[..., Any], tmp_path: Path, png: bytes) -> None:
    folder = tmp_path / "label-sets"

    def opened() -> TestClient:
        return TestClient(make_app(data=tmp_path))

    def ask(client: TestClient) -> Any:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        ready(client, "w")
        answer = client.post(
            "/classify?label_set=w&activation=none", content=png, headers={"Content-Type": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    with opened() as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        dim = client.get("/models/tiny").json()["dim"]
        vectors = units(20, dim, 3)
        put_vectors(client, "photos", vectors, "tiny")
        told = client.put("/label-sets/w", json=WEIGHED)
        assert told.status_code == 202, told.text
        shown, scored = ready(client, "w"), ask(client)
        assert shown["encoded"] == shown["texts"] == 12
        assert client.put("/label-sets/w", json=WEIGHED).json()["ready"], "nothing changed, so nothing is encoded"
        assert [path.name for path in folder.glob("*.examples")] == []
    with opened() as client:
        assert (ask(client), ready(client, "w")) == (scored, shown), "the weights are in its file"
    # As a crash would leave it before the weights were known: the pictures are there, and the collection is not needed.
    files = LabelSetFiles(folder)
    stored = files.read("w")
    assert stored.weighed is not None
    pictures = kept_pictures(WeighTemplates(collection="photos"), ids_and(vectors), {})
    assert pictures.digest == stored.weighed.sha256
    files.write("w", replace(stored, weighed=replace(stored.weighed, weights=None)), pictures=pictures)
    (folder / "w.npy").unlink()
    assert len(list(folder.glob("*.examples"))) == 1
    with opened() as client:
        assert ask(client) == scored
        assert client.get("/label-sets/w").json() == shown
        assert list(folder.glob("*.examples")) == []
        client.delete("/collections/photos/items/photos/0")
        client.put("/label-sets/w", json=WEIGHED)
        again = ready(client, "w")["weighed"]
        assert again["pictures"] == 19
        assert again["weights"] != shown["weighed"]["weights"], "other pictures, other weights"
    whole = json.loads((folder / "w.json").read_bytes())
    assert whole["format"] == 4, "versions that know no weights refuse it"


def ids_and(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """In the order in which the server keeps them."""
    ids = sorted(
        (f"photos/{index}" for index in range(len(vectors))), key=lambda id: hashlib.sha256(id.encode()).digest()
    )
    return {id: vectors[int(id.partition("/")[2])] for id in ids}


def test_what_cannot_be_weighed_is_said(client: TestClient) -> None:
    dim = client.get("/models/tiny").json()["dim"]
    put_vectors(client, "w-photos", units(12, dim, 4), "tiny")
    put_vectors(client, "w-few", units(9, dim, 5), "tiny")
    own = [{"name": label, "prompts": [label]} for label in LABELS]
    for change, status, param, words in [
        ({"weigh_templates": {"collection": "none"}}, 404, "weigh_templates.collection", "none"),
        ({"weigh_templates": {"collection": "w-few"}}, 422, "weigh_templates", "has 9 items"),
        ({"weigh_templates": {"collection": "w-photos", "reference": "w-few"}}, 422, "weigh_templates", "w-few"),
        ({"weigh_templates": {"collection": "w-photos", "reference": "w-photos"}}, 422, "weigh_templates", "other"),
        ({"weigh_templates": {"collection": "w-photos", "limit": 5}}, 422, "weigh_templates.limit", "10"),
        ({"templates": "none"}, 422, "weigh_templates", "one template"),
        ({"labels": ["cat"]}, 422, "weigh_templates", "1 labels"),
        ({"labels": own}, 422, "weigh_templates", "0 labels"),
    ]:
        answer = client.put("/label-sets/bad", json=WEIGHED | {"weigh_templates": {"collection": "w-photos"}} | change)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), error
        assert words in error["message"]
    assert client.get("/label-sets/bad").status_code == 404
    for name in ("w-photos", "w-few"):
        client.delete(f"/collections/{name}")
