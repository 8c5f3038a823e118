"""What a collection keeps: its rows over restarts and kills, its model's identity, and order among many clients."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from model_store.manifest import Manifest
from model_store.store import Store, file_entries
from service.http.errors import problem_of
from service.retrieval import errors as retrieval

DIM = 32
ADMIN = {"Authorization": "Bearer admin-key-1"}
OTHER = "1" * 64


def unit(seed: int) -> list[float]:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).tolist()


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{n:05}", "vector": unit(n), "metadata": {"n": n}} for n in range(first, first + count)]


def error(response: Any, status: int, code: str, param: str | None) -> str:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert (found["code"], found["param"]) == (code, param), found
    return found["message"]


def publish(folder: Path, **changes: Any) -> None:
    """A copy of tiny@1 in the same store with other fields in its manifest; `base`: as a derivation of it."""
    store = Store(folder, builtin=False)
    tiny = store.open("tiny@1")
    with store.staging() as staged:
        for entry in tiny.manifest.files:
            (staged / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny.folder / entry.path, staged / entry.path)
        if proofs := changes.get("space_proofs"):
            cases = json.loads((staged / "goldens/cases.json").read_text()) | {"space_proofs": proofs}
            (staged / "goldens/cases.json").write_text(json.dumps(cases))
        fields = tiny.manifest.model_dump() | {"files": file_entries(staged)} | changes
        store.publish(staged, Manifest.model_validate(fields))


def reason_why_not(app: FastAPI) -> str:
    """Run an app that must fail to start."""
    with TestClient(app) as client:
        while client.get("/readyz").json()["error"]["code"] != "failed":
            pass
        return client.get("/readyz").json()["error"]["message"]


def test_everything_is_there_after_a_kill_and_nobody_else_may_open_it(
    serve: Callable[..., Any], make_app: Callable[..., FastAPI], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    server = serve(data=data)
    server.wait_for("ready")
    made = httpx2.put(f"{server.address}/collections/kept", json={"metadata_schema": {"n": "number"}})
    assert (made.status_code, made.json()["durability"]) == (201, "full")
    for first in range(0, 300, 100):
        body = {"items": rows(first, 100)}
        assert httpx2.post(f"{server.address}/collections/kept/items", json=body).status_code == 200
    assert httpx2.delete(f"{server.address}/collections/kept/items/00007").status_code == 204
    query = {"queries": [{"vector": unit(n)} for n in range(20)], "filter": {"n": {"$lt": 200}}}

    def answers(address: str) -> tuple[Any, Any]:
        info = httpx2.get(f"{address}/collections/kept").json()
        kept = {name: info[name] for name in ("model", "space", "fingerprint", "count", "sequence", "metadata_schema")}
        return kept, httpx2.post(f"{address}/collections/kept/search", json=query).json()

    before = answers(server.address)
    assert before[0]["count"] == 299
    server.process.kill()
    server.wait()
    server = serve(data=data)
    server.wait_for("ready")
    assert answers(server.address) == before

    reason = reason_why_not(make_app(data=data))
    assert "CLIPWORKS_DATA (--data)" in reason
    assert server.address in reason
    assert str(server.process.pid) in reason
    assert server.stop() == 0
    assert sum(path.stat().st_size for path in data.glob("*-wal")) == 0
    with TestClient(make_app(data=data)) as client:
        while client.get("/readyz").status_code != 200:
            pass
        assert client.get("/collections/kept").json()["count"] == 299


def test_a_folder_that_cannot_be_used_is_named(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    reason = reason_why_not(make_app(data=tmp_path / "file"))
    assert "CLIPWORKS_DATA" in reason
    assert str(tmp_path / "file") in reason


def test_an_app_can_be_stopped_and_started_again(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    app = make_app(data=tmp_path)
    for turn in range(3):
        with TestClient(app, raise_server_exceptions=False) as client:
            while client.get("/readyz").status_code != 200:
                pass
            assert client.put("/collections/again", json={}).status_code == (201 if turn == 0 else 200)
            assert client.post("/collections/again/items", json={"items": rows(turn, 1)}).status_code == 200
            assert client.get("/collections/again").json()["count"] == turn + 1


def test_before_the_folder_is_open_it_is_503(make_app: Callable[..., FastAPI]) -> None:
    client = TestClient(make_app())  # without its life cycle: nothing is ever opened
    for method, path, body in (
        ("GET", "/collections", None), ("GET", "/collections/a", None), ("DELETE", "/collections/a", None),
        ("GET", "/collections/a/items", None), ("POST", "/collections/a/search", {"queries": ["a"]}),
        ("POST", "/collections/a/items", {"items": rows(0, 1)}),
    ):  # fmt: skip
        answer = client.request(method, path, json=body)
        error(answer, 503, "not_ready", None)
        assert answer.headers["retry-after"] == "1"


WITHOUT = """
import sys
sys.modules["apsw"] = None
from pathlib import Path
from starlette.testclient import TestClient
from service.app import create_app
from service.settings import Settings
app = create_app(Settings(store=Path(sys.argv[1]), builtin=False, probe=False, access_log=False))
with TestClient(app) as client:
    while client.get("/readyz").status_code != 200:
        pass
    assert client.post("/embed", json={"inputs": ["a"]}).status_code == 200
    assert client.get("/metrics").status_code == 200
    assert "/collections/{name}/search" in client.get("/openapi.json").json()["paths"]
    answer = client.post("/collections/a/search", json={"queries": ["a"]})
    print(answer.status_code, answer.json()["error"]["code"], answer.headers.get("retry-after"))
"""


def test_without_the_stores_libraries_everything_else_is_served(tiny_store: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, tiny_store], capture_output=True, text=True, check=False)
    assert done.stdout == "503 collections_unavailable None\n", done.stderr


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (retrieval.InvalidQuery, 422), (retrieval.InvalidCollection, 422), (retrieval.InvalidItem, 422),
        (retrieval.RetrievalError, 500), (retrieval.CollectionNotFound, 404), (retrieval.ItemNotFound, 404),
        (retrieval.CollectionConflict, 409), (retrieval.StoreClosed, 503), (retrieval.StorageFull, 507),
        (retrieval.StorageFailed, 503), (retrieval.StoreCorrupt, 500), (retrieval.StatementRefused, 422),
        (retrieval.Interrupted, 504), (retrieval.TooManyCollections, 413),
    ],
)  # fmt: skip
def test_status_of_each_error_of_the_store(kind: type[retrieval.RetrievalError], status: int) -> None:
    assert problem_of(kind("x")).status == status


def test_only_the_model_it_was_made_for(tiny_store: Path, make_client: Callable[..., TestClient]) -> None:
    """An equal encoder may add rows, an equal space may search, everything else is a 409 that names both."""
    tiny = Store(tiny_store, builtin=False).open("tiny@1").manifest
    publish(tiny_store, version=2)
    publish(tiny_store, name="foreign", space=OTHER)
    publish(tiny_store, name="retrained", fingerprint={"image": tiny.fingerprint.image, "text": OTHER})
    loaded = ("tiny@2", "foreign", "retrained")
    client = make_client(store=tiny_store, model="tiny@1", extra_models=loaded)
    assert client.put("/collections/c", json={"model": "tiny@1"}).status_code == 201
    message = error(client.put("/collections/c", json={"model": "foreign"}), 409, "space_mismatch", None)
    assert OTHER in message
    assert tiny.space in message
    error(client.put("/collections/c", json={"model": "retrained"}), 409, "space_mismatch", None)
    error(client.put("/collections/c", json={"model": "tiny@2"}), 409, "conflict", None)

    def add(model: str, *, on_error: str = "fail", **item: Any) -> Any:
        body = {"model": model, "items": [{"id": model, **item}], "on_error": on_error}
        return client.post("/collections/c/items", json=body)

    assert add("tiny@2", text="a cat").status_code == 200
    assert add("tiny@1", text="a dog").status_code == 200
    for on_error in ("fail", "item"):
        message = error(add("retrained", text="a", on_error=on_error), 409, "space_mismatch", "model")
    assert OTHER in message
    assert str(tiny.fingerprint.text) in message
    error(add("foreign", text="a"), 409, "space_mismatch", "model")
    error(add("foreign", vector=unit(0)), 409, "space_mismatch", "model")
    error(add("nobody", text="a"), 404, "model_not_found", "model")
    given = {"items": rows(0, 1)}
    error(client.post("/collections/c/items", json={**given, "space": OTHER}), 409, "space_mismatch", "space")
    assert client.post("/collections/c/items", json={**given, "space": tiny.space}).status_code == 200

    def search(**body: Any) -> Any:
        return client.post("/collections/c/search", json={"queries": ["a cat"], **body})

    assert search(model="retrained").json()["model"] == "retrained@1"
    hits = search(model="tiny@2").json()["results"][0]["hits"]
    assert (hits[0]["id"], round(hits[0]["score"], 5)) == ("tiny@2", 1.0)
    message = error(search(model="foreign"), 409, "space_mismatch", "model")
    assert OTHER[:12] in message
    assert tiny.space[:12] in message
    error(search(space=OTHER), 409, "space_mismatch", "space")
    assert client.get("/collections/c").json()["count"] == 3


def test_a_derivation_searches_what_its_base_indexed(tiny_store: Path, make_client: Callable[..., TestClient]) -> None:
    """Its text tower was changed and proved to keep the space, its image tower is its base's."""
    store = Store(tiny_store, builtin=False)
    tiny = store.open("tiny@1")
    proof = {
        "tower": "text", "statement": "captions find their pictures", "n": 100, "metric": "R@1", "value": 0.8,
        "at_least": 0.5, "base_value": 0.4, "fingerprint": OTHER,
    }  # fmt: skip
    prints = {"image": tiny.manifest.fingerprint.image, "text": OTHER}
    texts = [graph.model_dump() for graph in tiny.manifest.graphs if graph.role == "text_encoder"]
    base = {"name": "tiny", "version": 1, "fingerprint": tiny.manifest.fingerprint}
    derived = {
        "kind": "derivation",
        "base": base,
        "image": None,
        "text": None,
        "dense": None,
        "graphs": texts,
        "skipped": (),
    }
    publish(tiny_store, name="cured", fingerprint=prints, space_proofs=[proof], **derived)
    client = make_client(store=tiny_store, model="tiny@1", extra_models=("cured",))
    assert client.put("/collections/c", json={}).status_code == 201
    assert client.post("/collections/c/items", json={"items": [{"id": "a", "text": "a cat"}]}).status_code == 200
    found = client.post("/collections/c/search", json={"queries": ["a cat"], "model": "cured"}).json()
    assert (found["model"], found["results"][0]["hits"][0]["id"]) == ("cured@1", "a")
    body = {"model": "cured", "items": [{"id": "b", "text": "a dog"}]}
    error(client.post("/collections/c/items", json=body), 409, "space_mismatch", "model")


def test_its_model_is_loaded_when_it_is_needed(
    tiny_store: Path, make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    publish(tiny_store, version=2)
    data = tmp_path / "data"
    client = make_client(store=tiny_store, model="tiny@2", admin_keys=("admin-key-1",), data=data)
    assert client.put("/collections/c", json={"model": "tiny@2"}).status_code == 201
    assert client.post("/collections/c/items", json={"items": [{"id": "a", "text": "a cat"}]}).status_code == 200
    client.__exit__(None, None, None)

    client = make_client(store=tiny_store, model="tiny@1", admin_keys=("admin-key-1",), data=data)
    error(client.post("/embed", json={"inputs": ["a"], "model": "tiny@2"}), 409, "model_not_loaded", None)
    assert client.post("/collections/c/search", json={"queries": [{"id": "a"}]}).json()["model"] is None

    def search(_: int = 0) -> tuple[int, Any]:
        answer = client.post("/collections/c/search", json={"queries": ["a cat"]})
        return answer.status_code, answer.json().get("model")

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(search, range(4))) == {(200, "tiny@2")}
    assert client.post("/embed", json={"inputs": ["a"], "model": "tiny@2"}).status_code == 200
    assert client.post("/models/tiny@2/unload", headers=ADMIN).status_code == 204
    quick = {"X-Request-Timeout-Ms": "1"}
    body = {"items": [{"id": "b", "text": "a dog"}]}
    error(client.post("/collections/c/items", json=body, headers=quick), 504, "deadline_exceeded", None)
    assert client.post("/collections/c/items", json=body).status_code == 200
    assert client.post("/models/tiny@2/unload", headers=ADMIN).status_code == 204
    shutil.rmtree(tiny_store / "tiny" / "2")
    answer = client.post("/collections/c/search", json={"queries": ["a cat"]})
    assert "tiny@2" in error(answer, 409, "conflict", None)
    assert len(client.post("/collections/c/search", json={"queries": [{"id": "a"}]}).json()["results"][0]["hits"]) == 1
    assert client.post("/collections/c/search", json={"queries": ["a cat"], "model": "tiny@1"}).status_code == 200


@pytest.fixture(scope="module")
def address(serve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a server of its own process, with a folder on disk."""
    server = serve_module(data=tmp_path_factory.mktemp("data"))
    server.wait_for("ready")
    return server.address


def test_writers_and_searchers_at_once(address: str) -> None:
    """What was acknowledged is found by the next search, what was deleted never again, and nothing fails."""
    path = f"{address}/collections/busy"
    httpx2.put(path, json={}).raise_for_status()
    gone: set[str] = set()
    stop = threading.Event()

    def write(worker: int) -> int:
        done = 0
        with httpx2.Client(timeout=60) as client:
            for turn in range(12):
                first = 10_000 * worker + 20 * turn
                client.post(f"{path}/items", json={"items": rows(first, 20)}).raise_for_status()
                queries = [{"vector": unit(n)} for n in range(first, first + 20)]
                found = client.post(f"{path}/search", json={"queries": queries, "top_k": 1}).raise_for_status()
                hits = [result["hits"][0]["id"] for result in found.json()["results"]]
                assert hits == [f"{n:05}" for n in range(first, first + 20)]
                ids = [f"{first:05}", f"{first + 1:05}"]
                answer = client.post(f"{path}/items:delete", json={"ids": ids}).raise_for_status()
                assert answer.json() == {"deleted": 2}
                gone.update(ids)
                done += 18
        return done

    def search(worker: int) -> int:
        done = 0
        with httpx2.Client(timeout=60) as client:
            while not stop.is_set():
                dead = set(gone)
                queries = [{"vector": unit(int(id))} for id in sorted(dead)[-10:]] or [{"vector": unit(worker)}]
                found = client.post(f"{path}/search", json={"queries": queries, "top_k": 5}).raise_for_status()
                for result in found.json()["results"]:
                    assert not dead & {hit["id"] for hit in result["hits"]}
                done += 1
        return done

    with ThreadPoolExecutor(5) as threads:
        searches = [threads.submit(search, n) for n in range(2)]
        writes = [threads.submit(write, n) for n in range(3)]
        try:
            expected = sum(each.result(120) for each in writes)
        finally:
            stop.set()
        assert all(each.result(60) for each in searches)
    assert httpx2.get(path).json()["count"] == expected == 3 * 12 * 18


def test_a_client_that_goes_away_leaves_a_whole_write_or_none(address: str) -> None:
    path = f"{address}/collections/gone"
    httpx2.put(path, json={}).raise_for_status()
    size = 400
    acknowledged = 0
    for turn in range(25):
        body = {"items": rows(size * turn, size)}
        try:
            httpx2.post(f"{path}/items", json=body, timeout=0.002 * (turn + 1)).raise_for_status()
            acknowledged += 1
        except httpx2.TransportError:
            pass
    with httpx2.Client(timeout=60) as client:
        client.post(f"{path}/items", json={"items": rows(10**6, 1)}).raise_for_status()  # behind all that still runs
        count = client.get(path).json()["count"] - 1
    assert count % size == 0
    assert acknowledged * size <= count < 25 * size
