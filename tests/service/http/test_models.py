"""Several models in one server: loading beside, pinning a version, unloading, and what is not loaded."""

import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from model_store.identity import space_of
from model_store.manifest import Fingerprint, Manifest
from model_store.seal import write_manifest
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


@pytest.fixture
def restarted(two_versions: Path, make_client: Callable[..., TestClient], tmp_path: Path) -> Callable[..., TestClient]:
    """A server with tiny@1 and these models beside it; each has the data of the one before."""
    settings = {"store": two_versions, "model": "tiny@1", "admin_keys": ("admin-key-1",), "data": tmp_path / "data"}
    return lambda *beside: make_client(extra_models=beside, **settings)


def classified(client: TestClient, png: bytes) -> tuple[int, object]:
    image = {"image": base64.b64encode(png).decode()}
    response = client.post("/classify", json={"inputs": [image], "label_set": "pets"})
    answer = response.json()
    return response.status_code, answer["data"] if response.status_code == 200 else answer["error"]["code"]


def finished(client: TestClient) -> dict[str, object]:
    end = time.monotonic() + 30
    while True:
        found = client.get("/label-sets/pets").json()
        if found["ready"] or time.monotonic() > end:
            return found
        time.sleep(0.02)


def stored_for_the_second(restarted: Callable[..., TestClient], png: bytes, data: Path) -> object:
    """Store the set `pets` for tiny@2; what a picture scores by it."""
    client = restarted("tiny@2")
    assert client.put("/label-sets/pets", json={"labels": ["cat", "dog"], "model": "tiny@2"}).status_code == 202
    assert finished(client)["ready"]
    status, scores = classified(client, png)
    assert status == 200
    end = time.monotonic() + 10
    while not (data / "label-sets" / "pets.npy").exists() and time.monotonic() < end:
        time.sleep(0.01)
    client.__exit__(None, None, None)
    return scores


@pytest.mark.parametrize("has_vectors", [True, False])
def test_a_restored_set_works_when_its_model_is_loaded_later(
    restarted: Callable[..., TestClient], png: bytes, tmp_path: Path, has_vectors: bool
) -> None:
    before = stored_for_the_second(restarted, png, tmp_path / "data")
    if not has_vectors:
        (tmp_path / "data" / "label-sets" / "pets.npy").unlink()
    client = restarted()
    found = client.get("/label-sets/pets").json()
    assert (found["ready"], found["failed"], found["model"]) == (has_vectors, None, "tiny@2")
    assert found["labels"] == 2
    assert found["texts"] >= 2
    assert classified(client, png) == (409, "model_not_loaded")
    assert client.post("/models/tiny@2/load", headers=ADMIN).status_code == 200
    assert finished(client)["ready"]
    assert classified(client, png) == (200, before)


@pytest.mark.parametrize("change", ["none", "put", "delete"])
def test_a_set_whose_model_was_away_is_restored_when_it_is_loaded(
    restarted: Callable[..., TestClient], two_versions: Path, png: bytes, tmp_path: Path, change: str
) -> None:
    before = stored_for_the_second(restarted, png, tmp_path / "data")
    away = shutil.move(two_versions / "tiny" / "2", tmp_path / "away")
    client = restarted()
    found = client.get("/label-sets/pets").json()
    assert found["ready"] is False
    assert "not restored: no model 'tiny@2'" in found["failed"]
    assert classified(client, png) == (409, "label_set_failed")
    if change == "put":
        assert client.put("/label-sets/pets", json={"labels": ["red", "blue"]}).status_code == 202
    elif change == "delete":
        assert client.delete("/label-sets/pets").status_code == 204
    shutil.move(away, two_versions / "tiny" / "2")
    assert client.post("/models/tiny@2/load", headers=ADMIN).status_code == 200
    if change == "delete":
        time.sleep(0.2)
        assert client.get("/label-sets/pets").status_code == 404
        return
    found = finished(client)
    assert (found["ready"], found["failed"]) == (True, None)
    assert found["label_names"] == (["red", "blue"] if change == "put" else ["cat", "dog"])
    assert classified(client, png)[0] == 200
    assert (classified(client, png) == (200, before)) == (change == "none")


def test_a_set_is_not_encoded_by_a_model_that_was_exchanged(
    restarted: Callable[..., TestClient], two_versions: Path, png: bytes, tmp_path: Path
) -> None:
    stored_for_the_second(restarted, png, tmp_path / "data")
    (tmp_path / "data" / "label-sets" / "pets.npy").unlink()
    client = restarted()
    path = two_versions / "tiny" / "2" / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes())
    other = Fingerprint(image=manifest.fingerprint.image, text="0" * 64)
    changed = manifest.model_copy(update={"fingerprint": other, "space": space_of(other)})
    path.unlink()
    write_manifest(path.parent, changed)
    loaded = client.post("/models/tiny@2/load", headers=ADMIN)
    assert loaded.status_code == 200, loaded.text
    end = time.monotonic() + 30
    while not (found := client.get("/label-sets/pets").json())["failed"] and time.monotonic() < end:
        time.sleep(0.02)
    assert (found["ready"], found["failed"]) == (False, "the text encoder of tiny@2 is another one now")
