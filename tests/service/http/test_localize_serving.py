"""The dense session of /localize: opened late, proven first, counted, unloaded; bad pictures, limits, full queues."""

from __future__ import annotations

import asyncio
import base64
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from clipworks import schemas
from model_store.seal import write_manifest
from model_store.store import Store, file_entries
from service.engine.dense import DenseSession
from service.engine.opening import EngineSettings
from service.engine.running import RunningModel, open_model
from service.faults import DeadlinePassed, ServiceNotReady
from service.telemetry import Telemetry
from service.timing import Budget

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
LABELS = ["red", "green", "blue"]
ADMIN = {"Authorization": "Bearer an-admin-key"}


@pytest.fixture(scope="module")
def store(colours: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colours`, and `spoilt`, whose golden cells are not what its graph gives."""
    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("localize") / "store"))
    colours.publish(folder, "colours")
    colours.publish(folder, "spoilt")
    artifact = Store(folder, builtin=False).open("spoilt")
    path = artifact.folder / "goldens" / "arrays.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in arrays:
        if name.startswith("dense_embeds."):
            arrays[name] = arrays[name][..., ::-1].copy()
    np.savez_compressed(path, allow_pickle=False, **arrays)
    manifest = artifact.manifest.model_copy(update={"files": file_entries(artifact.folder)})
    write_manifest(artifact.folder, manifest)
    return folder


@pytest.fixture(scope="module")
def fresh(store: Path, make_client: Callable[..., TestClient]) -> Callable[..., TestClient]:
    def start(**changes: object) -> TestClient:
        return make_client(**{"store": store, "model": "colours", "admin_keys": ("an-admin-key",), **changes})

    return start


@pytest.fixture(scope="module")
def client(fresh: Callable[..., TestClient]) -> TestClient:
    return fresh(max_pixels=300_000)


@pytest.fixture
def settings() -> EngineSettings:
    """Of a model in this process, without an app."""
    return EngineSettings(
        device="cpu", precision=None, intra_threads=1, spinning=False, max_batch_images=2, max_batch_texts=2,
        max_queue_items=2, probe_first=False,
    )  # fmt: skip


def mosaic(seed: int, *, width: int = 128, height: int = 96) -> bytes:
    """A picture of coloured squares, different for each seed."""
    levels = np.random.default_rng(seed).integers(0, 2, (6, 8, 3)).astype(np.uint8) * 255
    buffer = BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def image_input(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def localize(client: TestClient, inputs: list[Any], *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return client.post("/localize", json={"inputs": inputs, "labels": LABELS, **body}, headers=headers)


def sessions(client: TestClient, name: str) -> list[str]:
    return next(each["sessions"] for each in client.get("/models").json()["data"] if each["name"] == name)


def workers() -> int:
    """Threads of this process that run a dense encoder."""
    return sum(thread.name.startswith("run-colours@1/dense_encoder") for thread in threading.enumerate())


def test_the_dense_session_comes_with_the_first_request_and_goes_with_the_model(
    fresh: Callable[..., TestClient],
) -> None:
    client = fresh(extra_models=("spoilt",))
    detail = schemas.ModelDetail.model_validate_json(client.get("/models/colours").content)
    assert "dense_encoder" in detail.roles
    assert detail.precision["dense_encoder"] == "fp32"
    assert detail.dense_spec is not None
    assert detail.presence is not None
    assert detail.sessions == ["image_encoder", "text_encoder"]
    client.post("/classify", json={"inputs": [image_input(mosaic(0))], "labels": LABELS})
    assert "dense_encoder" not in sessions(client, "colours")
    assert localize(client, [image_input(mosaic(0))]).status_code == 200
    assert sessions(client, "colours") == ["image_encoder", "text_encoder", "dense_encoder"]
    assert 'graph="colours@1/dense_encoder"' in client.get("/metrics").text
    assert client.get("/models/tiny").json()["sessions"] == []

    assert client.post("/models/tiny/load", headers=ADMIN).status_code == 200
    assert client.post("/models/spoilt/unload", headers=ADMIN).status_code == 204
    assert sessions(client, "spoilt") == []


def test_unloading_ends_the_dense_session_too(fresh: Callable[..., TestClient]) -> None:
    client = fresh(model="tiny", extra_models=("colours",))
    before = workers()
    assert localize(client, [image_input(mosaic(0))], model="colours").status_code == 200
    assert "dense_encoder" in sessions(client, "colours")
    assert workers() == before + 1
    assert client.post("/models/colours/unload", headers=ADMIN).status_code == 204
    assert localize(client, [image_input(mosaic(0))], model="colours").json()["error"]["code"] == "model_not_loaded"
    end = time.monotonic() + 30
    while workers() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert workers() == before
    assert client.post("/models/colours/load", headers=ADMIN).status_code == 200
    assert sessions(client, "colours") == ["image_encoder", "text_encoder"]
    assert localize(client, [image_input(mosaic(0))], model="colours").status_code == 200


def test_requests_that_come_while_it_opens_wait_for_one_session(fresh: Callable[..., TestClient]) -> None:
    client = fresh(access_log=False)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: localize(client, [image_input(mosaic(3))]), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_a_dense_graph_that_is_not_the_exported_one_answers_nothing(fresh: Callable[..., TestClient]) -> None:
    client = fresh(model="spoilt")
    for _ in range(2):
        response = localize(client, [image_input(mosaic(0))])
        error = schemas.ErrorResponse.model_validate_json(response.content).error
        assert (response.status_code, error.code) == (500, "golden_mismatch")
        assert "the server's log says why" in error.message
    assert sessions(client, "spoilt") == ["image_encoder", "text_encoder"]
    assert client.post("/classify", json={"inputs": [image_input(mosaic(0))], "labels": LABELS}).status_code == 200
    assert client.get("/readyz").status_code == 200


def poisons() -> dict[str, tuple[dict[str, str], str]]:
    good = mosaic(99)
    return {
        "truncated": (image_input(good[: len(good) // 2]), "invalid_image"),
        "not an image": (image_input(b"<svg/>"), "unsupported_image"),
        "not base64": ({"image": "%%%"}, "invalid_image"),
        "too many pixels": (image_input(mosaic(1, width=700, height=700)), "image_too_large"),
        "url": ({"image_url": "http://127.0.0.1:1/x.png"}, "url_fetch_disabled"),
    }


@pytest.mark.parametrize("kind", list(poisons()))
def test_a_bad_picture_fails_alone_wherever_it_stands(kind: str, client: TestClient) -> None:
    poison, code = poisons()[kind]
    shapes = ((128, 96), (96, 128), (128, 96), (33, 200))
    good = [image_input(mosaic(seed, width=w, height=h)) for seed, (w, h) in enumerate(shapes * 2)]
    body = {"include": ["boxes", "mask", "heatmap"], "on_error": "item"}
    clean = [without_index(entry) for entry in localize(client, good, **body).json()["data"]]
    alone = [without_index(localize(client, [each], **body).json()["data"][0]) for each in good]
    assert clean == alone
    for position in (0, 3, len(good)):
        entries = localize(client, [*good[:position], poison, *good[position:]], **body).json()["data"]
        assert entries[position]["error"]["code"] == code
        assert [without_index(each) for index, each in enumerate(entries) if index != position] == clean
        failed = localize(client, [*good[:position], poison, *good[position:]])
        assert failed.json()["error"]["code"] == code
        assert failed.json()["error"]["param"].startswith(f"inputs[{position}]")
    assert client.get("/readyz").status_code == 200


def without_index(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "index"}


def test_deadlines_and_limits_hold_as_on_the_other_routes(client: TestClient) -> None:
    inputs = [image_input(mosaic(seed)) for seed in range(4)]
    late = localize(client, inputs * 40, headers={"X-Request-Timeout-Ms": "1"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    many = localize(client, inputs * 65)
    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_items")
    assert localize(client, inputs).status_code == 200


def test_a_full_queue_is_said_before_any_picture_is_decoded(fresh: Callable[..., TestClient]) -> None:
    client = fresh(max_queue_items=2)
    inputs = [image_input(mosaic(seed)) for seed in range(4)]
    assert localize(client, inputs).status_code == 200  # a single request always fits
    app: Any = client.app
    batcher = app.state.services.registry.resolve("colours").dense.opened
    with batcher.admit(1, Budget()):  # as if a picture of somebody else were in work
        for asked in (inputs, [{"image": "QUJD"}, *inputs]):  # the broken picture is not looked at
            full = localize(client, asked)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "overloaded")
            assert full.headers["Retry-After"]
    assert localize(client, inputs).status_code == 200


def test_a_closed_session_answers_nobody(store: Path, settings: EngineSettings) -> None:
    artifact = Store(store, builtin=False).open("colours")

    async def run() -> None:
        session = DenseSession(artifact, settings, Telemetry())
        batcher = await session.batcher(Budget())
        assert await session.batcher(Budget()) is batcher
        await session.close("a test ended it")
        assert batcher.broken == "a test ended it"
        with pytest.raises(ServiceNotReady, match="a test ended it"):
            await session.batcher(Budget())
        opening = DenseSession(artifact, settings, Telemetry())
        waiting = asyncio.create_task(opening.batcher(Budget()))
        await asyncio.sleep(0)
        await opening.close("a test ended it")
        with pytest.raises(ServiceNotReady, match="a test ended it"):
            await waiting
        assert opening.opened is None
        late = DenseSession(artifact, settings, Telemetry())
        with pytest.raises(DeadlinePassed):
            await late.batcher(Budget.after(0))
        assert await late.batcher(Budget())  # opening went on
        await late.close("the test is over")

    asyncio.run(run())


def test_closing_a_model_closes_its_dense_session(store: Path, settings: EngineSettings) -> None:
    artifact = Store(store, builtin=False).open("colours")

    async def run() -> None:
        model = RunningModel(open_model(artifact, settings), settings, Telemetry())
        batcher = await model.dense.batcher(Budget())
        assert model.fault() is None
        await model.close("unloaded")
        assert batcher.broken == "unloaded"

    asyncio.run(run())


class Sizes:
    """Keeps how many pictures each run had."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def batch(self, graph: str, size: int, seconds: float) -> None:
        self.seen.append(size)

    def queue(self, graph: str, depth: int) -> None:
        pass


def test_a_run_of_the_dense_encoder_is_bounded_by_pixels(store: Path, settings: EngineSettings) -> None:
    artifact = Store(store, builtin=False).open("colours")
    pictures = [np.full((96, 128, 3), level, dtype=np.uint8) for level in range(12)]
    sizes = Sizes()

    async def run() -> None:
        bounded = replace(settings, max_batch_images=8, max_batch_pixels=3 * 96 * 128, max_queue_items=20)
        session = DenseSession(artifact, bounded, sizes)
        batcher = await session.batcher(Budget())
        await asyncio.gather(*(batcher.submit(each, Budget()) for each in pictures))
        await session.close("the test is over")

    asyncio.run(run())
    assert sum(sizes.seen) == len(pictures)
    assert max(sizes.seen) == 3
