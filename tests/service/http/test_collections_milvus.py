"""A server whose collections live in Milvus: the same routes, its own durability, and collections that move over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.http.errors import problem_of
from service.retrieval.backends.errors import BackendUnavailable, NotSupported
from service.retrieval.records import CollectionSpec, RerankSpec
from service.settings import BadSettings, Settings
from tests.milvus import DURABILITY, empty_milvus

pytest.importorskip("milvus_lite", reason="the milvus backend is tested with milvus-lite")
DIM = 32
ADMIN = {"Authorization": "Bearer an-admin-key"}


def row(n: int) -> dict[str, Any]:
    return {"id": f"r{n}", "vector": np.random.default_rng(n).standard_normal(DIM).tolist(), "metadata": {"n": n}}


@pytest.fixture(scope="module")
def client(make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    uri = empty_milvus(tmp_path_factory.mktemp("milvus") / "served.db")
    return make_client(collections_backend="milvus", milvus_uri=uri, admin_keys=("an-admin-key",))


def test_the_life_of_a_collection(client: TestClient) -> None:
    made = client.put("/collections/pets", json={"index": {"kind": "flat"}, "metadata_schema": {"n": "number"}})
    info = made.json()
    assert (made.status_code, info["backend"], info["durability"], info["exact"]) == (201, "milvus", DURABILITY, True)
    assert (info["index_bytes"], info["disk_bytes"]) == (None, None)
    assert (
        client.put(
            "/collections/pets", json={"index": {"kind": "flat"}, "metadata_schema": {"n": "number"}}
        ).status_code
        == 200
    )
    assert client.put("/collections/pets", json={}).json()["error"]["code"] == "collection_conflict"
    assert client.get("/collections").json()["data"] == [client.get("/collections/pets").json()]
    items = [row(n) for n in range(50)]
    assert client.post("/collections/pets/items", json={"items": items}).json()["upserted"] == 50
    body = {"items": [{"id": "text", "text": "a cat"}, {"id": "bad", "vector": [0.0] * DIM}], "on_error": "item"}
    mixed = client.post("/collections/pets/items", json=body).json()
    assert (mixed["upserted"], mixed["data"][1]["error"]["code"]) == (1, "no_direction")
    query = {"queries": ["a cat", {"id": "r3"}, {"vector": items[5]["vector"]}], "top_k": 3}
    results = client.post("/collections/pets/search", json=query).json()["results"]
    assert [each["hits"][0]["id"] == "r3" for each in results] == [False, False, False]
    assert (results[0]["hits"][0]["id"], results[2]["hits"][0]["id"]) == ("text", "r5")
    folded = client.post("/collections/pets/search", json={**query, "group_near": 1e-6, "pool": 10, "top_k": 10}).json()
    assert [each["pool"] for each in folded["results"]] == [10, 10, 10]  # arranged here, not in Milvus
    assert all(sum(1 + len(hit["near"]) for hit in each["hits"]) == 10 for each in folded["results"])
    for more in ({"facets": ["n"]}, {"histogram": 3}, {"score_of": ["r3"]}):
        refused = client.post("/collections/pets/search", json={**query, **more})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_supported")
    few = client.post("/collections/pets/search", json={**query, "filter": {"n": {"$gte": 48}}}).json()["results"]
    assert {hit["id"] for each in few for hit in each["hits"]} == {"r48", "r49"}
    assert client.get("/collections/pets/items/r7").json()["metadata"] == {"n": 7}
    assert client.delete("/collections/pets/items/r7").status_code == 204
    assert client.get("/collections/pets/items/r7").json()["error"]["code"] == "item_not_found"
    assert client.post("/collections/pets/items:delete", json={"filter": {"n": {"$lt": 5}}}).json() == {"deleted": 5}
    assert client.get("/collections/pets").json()["count"] == 45
    page = client.get("/collections/pets/items", params={"limit": 40}).json()
    rest = client.get("/collections/pets/items", params={"limit": 40, "cursor": page["cursor"]}).json()
    names = [each["id"] for each in page["data"] + rest["data"]]
    assert (names, rest["cursor"]) == (sorted(names), None)
    assert len(names) == 45
    assert client.post("/collections/pets/doctor", json={}, headers=ADMIN).json()["healthy"]
    assert client.post("/collections/pets/compact", headers=ADMIN).status_code == 200
    assert client.delete("/collections/pets").status_code == 204
    assert client.get("/collections/pets").json()["error"]["code"] == "collection_not_found"


def test_what_it_cannot_do_is_a_422_with_the_place(client: TestClient) -> None:
    client.put("/collections/limits", json={"index": {"kind": "flat"}})
    for method, path, body, param in (
        ("POST", "/collections/limits/search", {"queries": ["a"], "filter": {"year": {"$gt": 1}}}, "filter.year.$gt"),
        (
            "POST",
            "/collections/limits/items:delete",
            {"filter": {"$not": {"a.b": {"$lt": "x"}}}},
            "filter.$not.a.b.$lt",
        ),
    ):
        refused = client.request(method, path, json=body)
        assert refused.status_code == 422, refused.text
        assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("invalid_filter", param)
    refused = client.put("/collections/other", json={"index": {"kind": "sq8"}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_collection")
    refused = client.post("/collections/limits/snapshot", headers=ADMIN)
    assert refused.status_code in (409, 422)  # in memory there is no folder to put it into either
    client.delete("/collections/limits")


@pytest.mark.long
def test_a_killed_server_has_kept_what_it_acknowledged(serve: Callable[..., Any], tmp_path: Path) -> None:
    """durability `process` is a claim, so it is tried: SIGKILL, and a new server on the same files."""
    settings = {"collections_backend": "milvus", "milvus_uri": empty_milvus(tmp_path / "kept.db")}
    server = serve(**settings)
    server.wait_for("ready")
    assert httpx2.put(f"{server.address}/collections/kept", json={"index": {"kind": "flat"}}).status_code == 201
    for first in range(0, 90, 30):
        body = {"items": [row(n) for n in range(first, first + 30)]}
        assert httpx2.post(f"{server.address}/collections/kept/items", json=body).status_code == 200
    assert httpx2.delete(f"{server.address}/collections/kept/items/r11").status_code == 204
    before = httpx2.get(f"{server.address}/collections/kept/items?limit=100&include=vector").json()
    server.process.kill()
    server.wait()
    server = serve(**settings)
    server.wait_for("ready")
    assert httpx2.get(f"{server.address}/collections/kept").json()["count"] == 89
    assert httpx2.get(f"{server.address}/collections/kept/items?limit=100&include=vector").json() == before
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "CLIPWORKS_MILVUS_URI"),
        ({"milvus_uri": "no-such-name"}, "CLIPWORKS_MILVUS_URI.*ends in .db"),
        ({"milvus_uri": "http://127.0.0.1:1"}, "CLIPWORKS_MILVUS_URI.*cannot be opened"),
    ],
)
def test_a_milvus_that_cannot_be_had_is_named(
    make_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("service.retrieval.backends.milvus_connection.CONNECT_S", 1.0)
    try:
        app = make_app(collections_backend="milvus", milvus_token="root:secret-token", **settings)
    except BadSettings as error:
        found = str(error)
    else:
        with TestClient(app) as started:
            while started.get("/readyz").json()["error"]["code"] != "failed":
                pass
            found = started.get("/readyz").json()["error"]["message"]
    assert pytest.RaisesExc(AssertionError, match=message).matches(AssertionError(found)), found
    assert "secret-token" not in found


def test_status_of_each_error_of_a_backend() -> None:
    assert problem_of(BackendUnavailable("x")).status == 503
    assert problem_of(NotSupported("x")).status == 422


def test_the_token_is_never_shown() -> None:
    settings = Settings(milvus_token="root:secret-token")  # type: ignore[arg-type,call-arg]
    assert "secret-token" not in repr(settings)


def test_thumbnails_are_refused(client: TestClient) -> None:
    answer = client.put("/collections/small", json={"thumbnails": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_supported")
    assert "milvus backend keeps no pictures" in answer.json()["error"]["message"]
    assert client.get("/collections/small").status_code == 404
    assert client.put("/collections/large", json={"thumbnails": False}).json()["thumbnails"] is None
    assert client.post("/collections/large/items", json={"items": [row(1)]}).status_code == 200
    answer = client.get("/collections/large/items/r1/thumbnail")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "thumbnail_not_found")


def test_position_vectors_are_refused(client: TestClient) -> None:
    app: Any = client.app
    backend = app.state.services.collections._opened()  # noqa: SLF001
    rerank = RerankSpec(model="judge@1", source="s", width=4)
    with pytest.raises(NotSupported, match="milvus backend keeps no position vectors"):
        backend.create("matched", CollectionSpec(model="tiny@1", space="s", fingerprints={}, dim=DIM, rerank=rerank))
    client.put("/collections/plain", json={}).raise_for_status()
    with pytest.raises(NotSupported, match="milvus backend keeps no position vectors"):
        backend.get("plain").positions_of(["a"])
    answer = client.post("/collections/plain/search", json={"queries": ["red"], "rerank": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_query")
