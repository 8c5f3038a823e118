"""Several models in one server: loading beside, pinning a version, unloading, and what is not loaded."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from model_store.store import Store, file_entries

ADMIN = {"Authorization": "Bearer admin-key-1"}


@pytest.fixture
def two_versions(tiny_store: Path) -> Path:
    """tiny@1 and an equal tiny@2."""
    store = Store(tiny_store, builtin=False)
    first = store.open("tiny")
    with store.staging() as folder:
        for entry in first.manifest.files:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first.folder / entry.path, folder / entry.path)
        store.publish(folder, first.manifest.model_copy(update={"version": 2, "files": file_entries(folder)}))
    return tiny_store


@pytest.fixture
def client(two_versions: Path, make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(store=two_versions, model="tiny@1", admin_keys=("admin-key-1",))


def embed(client: TestClient, model: str | None) -> tuple[int, str]:
    body = {"inputs": ["a shoe"]} | ({"model": model} if model else {})
    response = client.post("/embed", json=body)
    answer = response.json()
    return response.status_code, answer["model"] if response.status_code == 200 else answer["error"]["code"]


def test_load_pin_and_unload(client: TestClient) -> None:
    assert embed(client, None) == (200, "tiny@1")
    assert embed(client, "tiny@2") == (409, "model_not_loaded")
    assert embed(client, "tiny@3") == (404, "model_not_found")

    assert client.post("/models/tiny@2/load", headers=ADMIN).status_code == 200
    assert embed(client, "tiny@2") == (200, "tiny@2")
    assert embed(client, "tiny") == (200, "tiny@2")
    assert embed(client, None) == (200, "tiny@1")
    listed = {(m["name"], m["version"]): m["loaded"] for m in client.get("/models").json()["data"]}
    assert listed == {("tiny", 1): True, ("tiny", 2): True}

    assert client.post("/models/tiny@2/unload", headers=ADMIN).status_code == 204
    assert embed(client, "tiny@2") == (409, "model_not_loaded")
    assert client.post("/models/tiny@1/unload", headers=ADMIN).json()["error"]["code"] == "conflict"
    assert embed(client, None) == (200, "tiny@1")


def test_a_damaged_model_is_not_loaded_and_the_others_go_on(client: TestClient, two_versions: Path) -> None:
    graph = two_versions / "tiny" / "2" / "text_encoder.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    response = client.post("/models/tiny@2/load", headers=ADMIN)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "artifact_corrupt")
    assert embed(client, None) == (200, "tiny@1")
    assert client.get("/readyz").status_code == 200


def test_a_label_set_waits_for_its_model_to_be_loaded_again(client: TestClient) -> None:
    assert client.post("/models/tiny@2/load", headers=ADMIN).status_code == 200
    body = {"labels": [f"thing {n}" for n in range(5_000)], "templates": ["{}"], "model": "tiny@2"}
    assert client.put("/label-sets/many", json=body).status_code == 202
    assert client.post("/models/tiny@2/unload", headers=ADMIN).status_code == 204
    time.sleep(1.5)
    found = client.get("/label-sets/many").json()
    assert (found["ready"], found["failed"]) == (False, None)
    assert found["encoded"] < 5_000
    assert client.post("/models/tiny@2/load", headers=ADMIN).status_code == 200
    end = time.monotonic() + 60
    while not (found["ready"] or found["failed"]) and time.monotonic() < end:
        time.sleep(0.05)
        found = client.get("/label-sets/many").json()
    assert (found["ready"], found["failed"], found["encoded"]) == (True, None, 5_000)
