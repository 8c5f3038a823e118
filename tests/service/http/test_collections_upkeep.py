"""Admin routes of collections: doctor, compact, snapshot, restore, while the server runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

ADMIN, API = "an-admin-key", "an-api-key"
DIM = 32


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def rows(count: int) -> list[dict[str, Any]]:
    values = np.random.default_rng(0).standard_normal((count, DIM))
    return [{"id": f"r{n}", "vector": row.tolist(), "metadata": {"n": n}} for n, row in enumerate(values)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upkeep") / "data"


@pytest.fixture(scope="module")
def keeper(make_client: Callable[..., TestClient], data: Path) -> TestClient:
    client = make_client(data=data, admin_keys=(ADMIN,), api_keys=(API,))
    client.headers.update(bearer(ADMIN))
    assert client.put("/collections/kept", json={"metadata_schema": {"n": "number"}}).status_code == 201
    assert client.post("/collections/kept/items", json={"items": rows(300)}).status_code == 200
    return client


ROUTES = [
    ("POST", "/collections/kept/doctor"), ("POST", "/collections/kept/compact"), ("POST", "/collections/kept/snapshot"),
    ("POST", "/collections/kept/restore"), ("GET", "/snapshots"), ("GET", "/snapshots/a.snapshot"),
    ("DELETE", "/snapshots/a.snapshot"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_each_needs_an_admin_key(keeper: TestClient, client: TestClient, method: str, path: str) -> None:
    refused = keeper.request(method, path, headers=bearer(API), json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only")
    assert keeper.request(method, path, headers={"Authorization": ""}, json={}).status_code == 401
    off = client.request(method, path, json={})
    assert (off.status_code, off.json()["error"]["code"]) == (403, "admin_disabled")


def test_doctor_proves_what_is_there(keeper: TestClient) -> None:
    report = keeper.post("/collections/kept/doctor", json={"queries": 20, "recall_at": 5}).json()
    assert (report["healthy"], report["problems"], report["recall"], report["recall_at"], report["sampled"]) == (
        True, [], 1.0, 5, 20,
    )  # fmt: skip
    assert (report["rows"], report["indexed"], report["bad_count"], report["bad_rows"]) == (300, 300, 0, [])
    assert keeper.post("/collections/kept/doctor", json={"queries": 0}).status_code == 422
    assert keeper.post("/collections/nope/doctor", json={}).json()["error"]["code"] == "collection_not_found"


def test_compact_removes_dead_slots(keeper: TestClient) -> None:
    assert keeper.put("/collections/holes", json={}).status_code == 201
    assert keeper.post("/collections/holes/items", json={"items": rows(200)}).status_code == 200
    gone = {"ids": [f"r{n}" for n in range(50)]}
    assert keeper.post("/collections/holes/items:delete", json=gone).json() == {"deleted": 50}
    assert keeper.get("/collections/holes").json()["dead"] == 50
    assert keeper.post("/collections/holes/compact").json()["slots_removed"] == 50
    assert keeper.get("/collections/holes").json()["dead"] == 0
    assert keeper.delete("/collections/holes").status_code == 204


def test_a_snapshot_is_made_listed_fetched_restored_and_deleted(keeper: TestClient, data: Path) -> None:
    made = keeper.post("/collections/kept/snapshot")
    assert made.status_code == 201
    facts = made.json()
    name = facts["snapshot"]
    assert name.startswith("kept-")
    assert (facts["count"], facts["bytes"]) == (300, (data / "snapshots" / name).stat().st_size)
    assert {"snapshot": name, "bytes": facts["bytes"]} in keeper.get("/snapshots").json()["data"]
    content = keeper.get(f"/snapshots/{name}").content
    assert (len(content), hashlib.sha256(content[:-32]).hexdigest()) == (facts["bytes"], facts["sha256"])

    keeper.post("/collections/kept/items", json={"items": [{"id": "later", "vector": [1.0] * DIM}]})
    restored = keeper.post("/collections/copy/restore", json={"snapshot": name})
    assert (restored.status_code, restored.json()["count"]) == (201, 300)
    query = {"queries": [{"vector": rows(1)[0]["vector"]}], "top_k": 5, "filter": {"n": {"$lt": 100}}}
    answers = [keeper.post(f"/collections/{each}/search", json=query).json()["results"] for each in ("kept", "copy")]
    assert answers[0] == answers[1]
    taken = keeper.post("/collections/copy/restore", json={"snapshot": name})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "collection_conflict")
    keeper.delete("/collections/copy")

    damaged = data / "snapshots" / "damaged.snapshot"
    damaged.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    bad = keeper.post("/collections/copy/restore", json={"snapshot": "damaged.snapshot"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (500, "store_corrupt")
    assert "/" not in bad.json()["error"]["message"], "no path of the server's machine"
    assert keeper.get("/collections/copy").status_code == 404

    assert keeper.delete(f"/snapshots/{name}").status_code == 204
    assert keeper.delete(f"/snapshots/{name}").status_code == 404
    assert keeper.get(f"/snapshots/{name}").status_code == 404


def test_parts_of_a_snapshot_are_given_and_others_refused_in_the_one_shape(keeper: TestClient) -> None:
    name = keeper.post("/collections/kept/snapshot").json()["snapshot"]
    whole = keeper.get(f"/snapshots/{name}").content
    part = keeper.get(f"/snapshots/{name}", headers={"Range": "bytes=5-104"})
    assert (part.status_code, part.content) == (206, whole[5:105])
    beyond = keeper.get(f"/snapshots/{name}", headers={"Range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
    odd = keeper.get(f"/snapshots/{name}", headers={"Range": "lines=0-1"})
    for refused in (beyond, odd):
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_header", "Range")
    assert odd.status_code == 422
    keeper.delete(f"/snapshots/{name}")


def test_what_a_killed_process_left_of_a_snapshot_is_removed_by_the_next(keeper: TestClient, data: Path) -> None:
    left = data / "snapshots" / ".kept-20260101-000000-0badcafe.snapshot.writing"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    name = keeper.post("/collections/kept/snapshot").json()["snapshot"]
    assert not left.exists()
    assert (left.parent / name).is_file()
    keeper.delete(f"/snapshots/{name}")


@pytest.mark.parametrize(
    "name", ["../collections.sqlite3", "..", "link.snapshot", "UPPER.snapshot", "nope.snapshot", "/etc/passwd"]
)
def test_no_other_file_is_ever_read(keeper: TestClient, data: Path, name: str) -> None:
    (data / "snapshots").mkdir(exist_ok=True)
    link = data / "snapshots" / "link.snapshot"
    if not link.is_symlink():
        link.symlink_to(data / "collections.sqlite3")
    before = sorted(path.name for path in data.iterdir())
    refused = keeper.post("/collections/stolen/restore", json={"snapshot": name})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    escaped = name.replace("/", "%2F")
    for method in ("GET", "DELETE"):
        answer = keeper.request(method, f"/snapshots/{escaped}", follow_redirects=False)
        # A client makes "/" of "/snapshots/..", which leads to the page.
        assert answer.status_code in ((307, 405) if name == ".." else (404, 422))
    assert sorted(path.name for path in data.iterdir()) == before
    assert link.is_symlink()


def test_in_memory_there_are_none(make_client: Callable[..., TestClient]) -> None:
    client = make_client(admin_keys=(ADMIN,))
    client.headers.update(bearer(ADMIN))
    client.put("/collections/light", json={})
    refused = client.post("/collections/light/snapshot")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert client.get("/snapshots").json() == {"data": []}
    assert client.post("/collections/light/doctor", json={}).json()["healthy"]


def test_metrics_are_there_when_the_collections_are_not(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    assert client.get("/metrics").status_code == 200
    assert client.portal is not None
    client.portal.call(client.app.state.services.collections.look_after, lambda store, _: store.close())  # pyright: ignore
    assert client.get("/collections").status_code == 503
    assert client.get("/metrics").status_code == 200
