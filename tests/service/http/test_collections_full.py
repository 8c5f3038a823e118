"""Disks without room and too few descriptors: the answer says so without a path, and all goes on afterwards.

Also: nothing of the collections writes, syncs or renames on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
DIM, ADMIN = 32, "an-admin-key"
BEARER = {"Authorization": f"Bearer {ADMIN}"}
# The limits are of the whole process, so it is one of its own: no file may grow, then no file may be opened.
LIMITED = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
from starlette.testclient import TestClient
from service.app import create_app
from service.settings import Settings
data = Path(sys.argv[2])
key = "an-admin-key"
app = create_app(Settings(
    store=Path(sys.argv[1]), builtin=False, probe=False, access_log=False, data=data, admin_keys=(key,),
    checkpoint_s=3600,
))
def rows(first, count):
    values = np.random.default_rng(first).standard_normal((count, 32)).tolist()
    return {"items": [{"id": f"r{first + n}", "vector": row, "metadata": {"n": n}} for n, row in enumerate(values)]}
with TestClient(app, raise_server_exceptions=False) as client:
    client.headers["Authorization"] = "Bearer " + key
    while client.get("/readyz").status_code != 200:
        pass
    assert client.put("/collections/kept", json={"index": {"kind": "sq8"}}).status_code == 201
    assert client.post("/collections/kept/items", json=rows(0, 300)).status_code == 200
    def everything(turn):
        found = {}
        def ask(name, answer):
            error = answer.json()["error"] if answer.status_code >= 400 else {}
            found[name] = [answer.status_code, error.get("code"), error.get("message", "")]
        ask("upsert", client.post("/collections/kept/items", json=rows(1000 * turn, 30)))
        ask("delete", client.post("/collections/kept/items:delete", json={"filter": {"n": turn}}))
        ask("create", client.put(f"/collections/made{turn}", json={}))
        ask("snapshot", client.post("/collections/kept/snapshot"))
        ask("snapshots", client.get("/snapshots"))
        ask("compact", client.post("/collections/kept/compact"))
        ask("search", client.post("/collections/kept/search", json={"queries": [{"vector": [1.0] * 32}]}))
        ask("show", client.get("/collections/kept"))
        ask("list", client.get("/collections"))
        ask("doctor", client.post("/collections/kept/doctor", json={}))
        ask("restore", client.post("/collections/back/restore", json={"snapshot": "none.snapshot"}))
        ask("drop", client.delete(f"/collections/made{turn - 1}"))
        return found
    result = {"before": everything(1)}
    for name, kind, limit in (
        ("no room", resource.RLIMIT_FSIZE, 20_000),
        ("no descriptors", resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1),
    ):
        soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit, hard))
        during = everything(2)
        resource.setrlimit(kind, (soft, hard))
        result[name] = during
        result["after " + name] = everything(3)
print(json.dumps(result))
"""


def test_without_room_or_descriptors_it_says_so_and_goes_on_afterwards(tmp_path: Path) -> None:
    data = tmp_path / "a-data-folder"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, TINY_STORE, data], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert str(data) in done.stderr  # the log has what the answers have not
    for answers in result.values():
        for name, (status, code, message) in answers.items():
            assert str(tmp_path) not in message, message
            assert (status, code) != (500, "internal_error"), (name, message)
    full, few = result["no room"], result["no descriptors"]
    for name in ("upsert", "delete", "create", "snapshot"):
        assert full[name][:2] == [507, "storage_full"], (name, full[name])
    assert few["snapshot"][:2] == [503, "storage_failed"]
    for answers in (full, few):
        for name in ("search", "show", "list", "doctor"):
            assert answers[name][0] == 200, (name, answers[name])
    for name in ("before", "after no room", "after no descriptors"):
        for call in ("upsert", "snapshot", "snapshots", "compact", "search", "doctor"):
            assert result[name][call][0] in (200, 201), (name, call, result[name][call])


def test_nothing_is_written_on_the_event_loop(
    make_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs must not stop the answers to /livez: every call that may wait for it is made in a thread."""
    on_loop: list[str] = []
    calls = ("fsync", "fdatasync", "replace", "rename", "pwrite", "ftruncate", "unlink", "mkdir", "open")

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            is_ours = isinstance(arguments[0], int) or str(arguments[0]).startswith(str(tmp_path))
            if is_ours and asyncio._get_running_loop() is not None:
                on_loop.append(f"{name} {arguments[:1]}")
            return real(*arguments, **keywords)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, watched(name))
    client = make_client(data=tmp_path / "data", admin_keys=(ADMIN,), checkpoint_s=0.05)
    client.headers.update(BEARER)
    rows = np.random.default_rng(0).standard_normal((300, DIM)).tolist()
    items = [{"id": f"r{n}", "vector": row} for n, row in enumerate(rows)]
    assert client.put("/collections/kept", json={"index": {"kind": "sq8"}}).status_code == 201
    assert client.post("/collections/kept/items", json={"items": items}).status_code == 200
    assert client.post("/collections/kept/search", json={"queries": [{"vector": rows[0]}]}).status_code == 200
    assert client.post("/collections/kept/items:delete", json={"ids": ["r1"]}).status_code == 200
    made = client.post("/collections/kept/snapshot").json()["snapshot"]
    assert client.get("/snapshots").json()["data"][0]["snapshot"] == made
    assert client.get(f"/snapshots/{made}").status_code == 200
    assert client.post("/collections/again/restore", json={"snapshot": made}).status_code == 201
    assert client.post("/collections/kept/compact").status_code == 200
    assert client.post("/collections/kept/acknowledge-loss").json() == {"acknowledged": 0}
    for path in ("/collections/again", "/collections/kept", f"/snapshots/{made}"):
        assert client.delete(path).status_code == 204
    assert client.get("/metrics").status_code == 200
    # A decode process is started in the thread of the loop, with /dev/null as its input.
    assert [call for call in on_loop if "/dev/null" not in call] == []
