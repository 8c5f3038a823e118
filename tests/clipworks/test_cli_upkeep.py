"""doctor, compact, snapshot and restore by a running server; collections that move between two backends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipworks import AsyncClient, Client
from clipworks.cli import app
from clipworks.errors import Conflict, NotFound, Unauthorized
from tests.milvus import DURABILITY, empty_milvus

CLIPWORKS = Path(sys.executable).with_name("clipworks")
TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
ADMIN = "an-admin-key"
DIM = 32


@pytest.fixture(autouse=True)
def _tiny_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("CLIPWORKS_DATA", str(tmp_path / "data"))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr (its lines joined) of the command line, in this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and data folder of a server with an admin key and one collection of 40 rows."""
    data = tmp_path_factory.mktemp("kept") / "data"
    command = [CLIPWORKS, "serve", "--port", "0", "--log-level", "warning", "--no-builtin", "--drain-grace-s", "0"]
    command += ["--store", TINY_STORE, "--model", "tiny", "--data", data, "--admin-keys", ADMIN]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(120, server.kill)
    alarm.start()
    try:
        assert server.stdout
        assert any("ready" in line for line in server.stdout), "the server did not start"
        url = json.loads((data / "LOCK").read_bytes())["address"]
        with Client(url) as client:
            client.create_collection("photos")
            rows = np.random.default_rng(0).standard_normal((40, DIM))
            client.collection("photos").upsert([{"id": f"r{n}", "vector": row} for n, row in enumerate(rows)])
        yield url, data
    finally:
        alarm.cancel()
        server.terminate()
        server.wait(timeout=60)
        if server.stdout:
            server.stdout.close()


def test_the_server_that_holds_the_folder_is_asked(kept: tuple[str, Path], tmp_path: Path) -> None:
    url, data = kept
    for place in (("--url", url), ("--data", data)):
        code, out, _ = run("collections", "doctor", "photos", *place, "--api-key", ADMIN, "--json")
        assert (code, json.loads(out)["photos"]["healthy"], json.loads(out)["photos"]["rows"]) == (0, True, 40)
        code, out, _ = run("collections", "compact", "photos", *place, "--api-key", ADMIN, "--json")
        assert (code, json.loads(out)["slots_removed"]) == (0, 0)
        file = tmp_path / f"{place[0]}.snapshot"
        code, out, _ = run("collections", "snapshot", "photos", file, *place, "--api-key", ADMIN, "--json")
        made = json.loads(out)
        assert (code, made["path"], made["count"], made["bytes"]) == (0, str(file), 40, file.stat().st_size)
        assert run("collections", "snapshot", "photos", file, *place, "--api-key", ADMIN)[0] == 2
    assert list((data / "snapshots").iterdir()) == []  # fetched, so it lies here and nowhere else
    code, _, err = run("collections", "restore", file, "--name", "again", "--data", data, "--api-key", ADMIN)
    assert (code, "restored again: 40 items" in err) == (0, True), err
    code, _, err = run("collections", "restore", file, "--name", "again", "--data", data, "--api-key", ADMIN)
    assert (code, "exists" in err) == (3, True)
    assert list((data / "snapshots").iterdir()) == []
    code, _, err = run("collections", "doctor", "--data", data)
    assert (code, "admin key" in err) == (3, True)
    # The file is one for any folder: without a server it is restored there.
    assert run("collections", "restore", file, "--name", "here")[0] == 0
    code, out, _ = run("collections", "doctor", "--json")
    assert (code, json.loads(out)["here"]["rows"]) == (0, 40)


def test_a_snapshot_on_the_server_is_listed_and_restored_by_name(kept: tuple[str, Path]) -> None:
    url, _ = kept
    with Client(url, api_key=ADMIN) as client:
        made = client.collection("photos").snapshot()
    code, out, _ = run("collections", "snapshots", "--url", url, "--api-key", ADMIN, "--json")
    assert code == 0
    assert {"snapshot": made.snapshot, "bytes": made.bytes} in json.loads(out)
    restored = ("collections", "restore", made.snapshot, "--name", "by-name", "--url", url, "--api-key", ADMIN)
    code, _, err = run(*restored)
    assert (code, "40 items" in err) == (0, True), err
    code, _, err = run("collections", "restore", "some/file", "--name", "x", "--url", url, "--api-key", ADMIN)
    assert (code, "lies on the server" in err) == (2, True)


def test_both_clients_look_after_a_collection(kept: tuple[str, Path]) -> None:
    url, _ = kept
    with Client(url) as plain, pytest.raises(Unauthorized):
        plain.collection("photos").compact()
    with Client(url, api_key=ADMIN, timeout_s=60) as client:
        photos = client.collection("photos")
        report = photos.doctor(queries=5, recall_at=3)
        assert (report.healthy, report.rows, report.recall, report.sampled) == (True, 40, 1.0, 5)
        assert photos.compact().slots_removed == 0
        made = photos.snapshot()
        assert made.count == 40
        with pytest.raises(Conflict):
            photos.restore(made.snapshot)
        with pytest.raises(NotFound):
            client.collection("other").restore("none.snapshot")

    async def again() -> None:
        async with AsyncClient(url, api_key=ADMIN, timeout_s=60) as client:
            photos = client.collection("photos")
            assert await photos.doctor(queries=5, recall_at=3) == report
            assert (await photos.compact()).slots_removed == 0
            assert (await photos.snapshot()).sha256 == made.sha256
            assert (await client.collection("async").restore(made.snapshot)).count == 40

    asyncio.run(again())


def test_a_collection_moves_to_milvus_and_back(
    monkeypatch: pytest.MonkeyPatch, kept: tuple[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("milvus_lite")
    url, _ = kept
    there, back = tmp_path / "there.parquet", tmp_path / "back.parquet"
    assert run("collections", "export", "photos", there, "--url", url)[0] == 0
    with monkeypatch.context() as patch:
        patch.setenv("CLIPWORKS_COLLECTIONS_BACKEND", "milvus")
        patch.setenv("CLIPWORKS_MILVUS_URI", empty_milvus(tmp_path / "moved.db"))
        code, _, err = run("collections", "import", there)
        assert (code, "40 items stored" in err) == (0, True), err
        code, out, _ = run("collections", "show", "photos", "--json")
        info = json.loads(out)
        assert (info["backend"], info["count"], info["durability"]) == ("milvus", 40, DURABILITY)
        code, out, _ = run("collections", "doctor", "--json")
        assert (code, json.loads(out)["photos"]["healthy"]) == (0, True)
        code, out, _ = run("collections", "export", "photos", back, "--json")
        assert (code, json.loads(out)["one_moment"]) == (0, False)  # other servers may write to the same Milvus
    assert run("collections", "import", back, "--name", "back", "--url", url)[0] == 0
    with Client(url) as client:
        rows = [
            {item.id: np.asarray(item.vector) for item in client.collection(name).items(include=["vector"])}
            for name in ("photos", "back")
        ]
    assert rows[0].keys() == rows[1].keys()
    for id, vector in rows[0].items():
        np.testing.assert_array_max_ulp(vector, rows[1][id], maxulp=2)
