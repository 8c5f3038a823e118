"""A server whose write-ahead log was lost says so wherever one would look, until an admin acknowledges it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clipworks.cli import app

DIM, ADMIN = 32, "an-admin-key"
BEARER = {"Authorization": f"Bearer {ADMIN}"}


def rows(first: int, count: int) -> dict[str, Any]:
    numbers = range(first, first + count)
    return {
        "items": [{"id": f"r{n}", "vector": np.random.default_rng(n).standard_normal(DIM).tolist()} for n in numbers]
    }


@pytest.fixture(scope="module")
def damaged(make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a kill leaves it, with four changes of `kept` and all of `young` in the log, and then no log."""
    folder = tmp_path_factory.mktemp("losses")
    client = make_client(data=folder / "live", checkpoint_s=3600, admin_keys=(ADMIN,))
    assert client.put("/collections/kept", json={}).status_code == 201
    assert client.post("/collections/kept/items", json=rows(0, 10)).status_code == 200
    assert client.post("/collections/kept/compact", headers=BEARER).status_code == 200  # empties the log
    assert client.get("/readyz").json() == {"status": "ok", "detail": None}
    for n in range(4):
        assert client.post("/collections/kept/items", json=rows(10 + n, 1)).status_code == 200
    assert client.put("/collections/young", json={}).status_code == 201
    assert client.post("/collections/young/items", json=rows(0, 3)).status_code == 200
    shutil.copytree(folder / "live", folder / "killed")
    (folder / "killed/collections.sqlite3-wal").unlink()
    return folder / "killed"


def test_it_is_said_everywhere_until_it_is_acknowledged(
    make_client: Callable[..., TestClient], damaged: Path, tmp_path: Path
) -> None:
    client = make_client(data=shutil.copytree(damaged, tmp_path / "data"), admin_keys=(ADMIN,))
    detail = client.get("/readyz").json()["detail"]
    assert "2 collections were lost before this start (kept: 4 changes, young: 1 changes)" in detail
    info = client.get("/collections/kept").json()
    assert {name: info["losses"][0][name] for name in ("kind", "items_before", "items_after")} == {
        "kind": "changes",
        "items_before": 14,
        "items_after": 10,
    }
    assert "lost 4 acknowledged changes" in info["warnings"][0]
    listed = client.get("/collections").json()
    assert [each["name"] for each in listed["data"]] == ["kept"]
    assert {each["collection"]: each["kind"] for each in listed["losses"]} == {"kept": "changes", "young": "collection"}
    report = client.post("/collections/kept/doctor", json={}, headers=BEARER).json()
    assert (report["healthy"], report["rows"], report["problems"]) == (False, 10, info["warnings"])
    refused = client.post("/collections/kept/acknowledge-loss")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    for name in ("kept", "young"):
        done = client.post(f"/collections/{name}/acknowledge-loss", headers=BEARER)
        assert (done.status_code, done.json()) == (200, {"acknowledged": 1})
    assert client.get("/collections").json()["losses"] == client.get("/collections/kept").json()["losses"] == []
    assert client.get("/readyz").json() == {"status": "ok", "detail": None}
    assert client.post("/collections/kept/doctor", json={}, headers=BEARER).json()["healthy"]
    again = client.post("/collections/young/acknowledge-loss", headers=BEARER)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "collection_not_found")


def test_names_are_not_told_to_whoever_has_no_key(
    make_client: Callable[..., TestClient], damaged: Path, tmp_path: Path
) -> None:
    client = make_client(data=shutil.copytree(damaged, tmp_path / "data"), api_keys=("an-api-key",))
    detail = client.get("/readyz").json()["detail"]
    assert detail == "acknowledged changes of 2 collections were lost before this start; see /collections"


def test_the_command_line_says_it_of_a_folder(damaged: Path, tmp_path: Path) -> None:
    place = ["--data", str(shutil.copytree(damaged, tmp_path / "data"))]
    checked = CliRunner().invoke(app, ["collections", "doctor", *place])
    said = " ".join(checked.output.split())
    assert (checked.exit_code, "collection young is gone" in said, "lost 4 acknowledged" in said) == (1, True, True)
    for name in ("kept", "young"):
        assert CliRunner().invoke(app, ["collections", "acknowledge-loss", name, *place]).exit_code == 0
    assert CliRunner().invoke(app, ["collections", "doctor", *place]).exit_code == 0


def test_a_missing_witness_is_said_until_it_is_acknowledged(
    make_client: Callable[..., TestClient], damaged: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(damaged, tmp_path / "data")
    (folder / "collections.witness").unlink()
    client = make_client(data=folder, admin_keys=(ADMIN,))
    detail = client.get("/readyz").json()["detail"]
    assert "1 collections may have been lost before this start (kept: not known)" in detail
    assert client.get("/collections/kept").json()["losses"][0]["kind"] == "uncertain"
    report = client.post("/collections/kept/doctor", json={}, headers=BEARER).json()
    assert (report["healthy"], "collections.witness" in report["problems"][0]) == (False, True)
    assert client.post("/collections/kept/acknowledge-loss", headers=BEARER).json() == {"acknowledged": 1}
    assert client.get("/readyz").json() == {"status": "ok", "detail": None}
