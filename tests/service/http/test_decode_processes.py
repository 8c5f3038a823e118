"""Images are decoded in processes: slow ones fail alone, dead ones are replaced, none outlives its server."""

import asyncio
import base64
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from io import BytesIO

import httpx2
import psutil
import pytest
from PIL import Image

from model_store.errors import InvalidImage
from model_store.manifest import ImageSpec
from model_store.modality.image import DecodeLimits
from service.decoding.pool import DecodePool
from service.faults import ServiceNotReady
from service.timing import Budget

SLOW_SIDE_PX = 4000


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A JPEG of some 65 kB under every limit, whose 100 scans take the decoder about a second."""
    sink = BytesIO()
    Image.new("L", (SLOW_SIDE_PX, SLOW_SIDE_PX), 90).save(sink, "JPEG", progressive=True, quality=10)
    data = sink.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * (100 - data.count(b"\xff\xda")) + b"\xff\xd9"


def embed(address: str, images: list[bytes], *, timeout_ms: int = 60_000, **fields: object) -> httpx2.Response:
    body = {"inputs": [{"image": base64.b64encode(each).decode()} for each in images], **fields}
    return httpx2.post(address + "/embed", json=body, headers={"X-Request-Timeout-Ms": str(timeout_ms)}, timeout=120)


def decoders(server) -> list[psutil.Process]:  # type: ignore[no-untyped-def]
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [each for each in children if "service.decoding.child" in each.cmdline()]


def wait_until(true: Callable[[], object], *, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(serve_module):  # type: ignore[no-untyped-def]
    """Two processes, a third of a second for an image."""
    server = serve_module(decode_workers=2, decode_timeout_s=0.3)
    server.wait_for("ready")
    return server


@pytest.fixture(scope="module")
def patient(serve_module):  # type: ignore[no-untyped-def]
    """One process, as much time for an image as its request has, and 45 slow images in one."""
    server = serve_module(decode_workers=1, decode_timeout_s=60, max_request_pixels=45 * SLOW_SIDE_PX**2)
    server.wait_for("ready")
    return server


def test_a_slow_image_fails_alone_and_its_process_is_replaced(server, slow: bytes, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    answer = embed(server.address, [*[jpeg] * 16, slow, *[jpeg] * 15], on_error="item")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data if "error" in each] == [16]
    assert data[16]["error"]["code"] == "image_too_large"
    assert "CLIPWORKS_DECODE_TIMEOUT_S" in data[16]["error"]["message"]
    assert time.monotonic() - started < 30
    assert embed(server.address, [jpeg] * 8).status_code == 200
    assert httpx2.get(server.address + "/readyz").status_code == 200


def test_a_slow_image_alone_is_refused(server, slow: bytes) -> None:  # type: ignore[no-untyped-def]
    answer = httpx2.post(server.address + "/embed", content=slow, headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "image_too_large")


def test_what_is_done_at_the_deadline_is_kept(patient, slow: bytes, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    # The images take longer than the request has: first with an answer for each item, then as a whole.
    answer = embed(patient.address, [jpeg, slow, slow, slow, slow, jpeg], on_error="item", timeout_ms=900)
    if answer.status_code == 200:
        late = {each["index"]: each["error"]["code"] for each in answer.json()["data"] if "error" in each}
        assert late.keys() & {1, 2, 3, 4}  # how many a fast machine does in time is open
        assert set(late.values()) == {"deadline_exceeded"}
    else:
        assert answer.status_code == 504  # a machine too busy for the small ones
    answer = embed(patient.address, [slow], on_error="item", timeout_ms=300)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    wait_until(lambda: embed(patient.address, [jpeg]).status_code == 200)


def test_pixels_of_one_request_are_bounded_before_any_is_decoded(patient, slow: bytes, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    encoded = [base64.b64encode(slow).decode()] * 46
    images = [{"image": each} for each in encoded]
    for path, body in {
        "/embed": {"inputs": images, "on_error": "item"},
        "/classify": {"inputs": images, "labels": ["shirt", "shoe"], "on_error": "item"},
    }.items():
        answer = httpx2.post(patient.address + path, json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items")
        assert "CLIPWORKS_MAX_REQUEST_PIXELS" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 10
    assert embed(patient.address, [jpeg]).status_code == 200


def test_killed_processes_are_replaced(server, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    embed(server.address, [jpeg] * 8)
    before = {each.pid for each in decoders(server)}
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in before))
    assert embed(server.address, [jpeg] * 4).status_code == 200
    assert httpx2.get(server.address + "/readyz").status_code == 200
    assert not before & {each.pid for each in decoders(server)}


def test_a_process_that_breaks_down_costs_its_image_alone(patient, slow: bytes, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    assert embed(patient.address, [jpeg]).status_code == 200
    (decoder,) = decoders(patient)
    idle_s = decoder.cpu_times().user
    answers: list[httpx2.Response] = []
    caller = threading.Thread(target=lambda: answers.append(embed(patient.address, [slow, jpeg], on_error="item")))
    caller.start()
    wait_until(lambda: decoder.cpu_times().user > idle_s + 0.2)
    decoder.send_signal(signal.SIGSEGV)
    caller.join(60)
    first, second = answers[0].json()["data"]
    assert first["error"]["code"] == "invalid_image"
    assert "embedding" in second


def test_another_request_is_not_behind_all_slow_images_of_one(patient, slow: bytes, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    (decoder,) = decoders(patient)
    idle_s = decoder.cpu_times().user

    def ask() -> None:
        with contextlib.suppress(httpx2.HTTPError):  # the server is gone
            embed(patient.address, [slow] * 40, timeout_ms=30_000)

    attack = threading.Thread(target=ask, daemon=True)
    attack.start()
    wait_until(lambda: decoder.cpu_times().user > idle_s + 0.1)
    assert embed(patient.address, [jpeg], timeout_ms=60_000).status_code == 200
    assert attack.is_alive()


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_no_process_outlives_its_server(serve, slow: bytes, end: signal.Signals) -> None:  # type: ignore[no-untyped-def]
    server = serve(decode_workers=2, decode_timeout_s=60, drain_s=0.2)
    server.wait_for("ready")

    def ask() -> None:
        with contextlib.suppress(httpx2.HTTPError):  # the server is gone
            embed(server.address, [slow] * 20)

    caller = threading.Thread(target=ask)
    caller.start()
    wait_until(lambda: len(decoders(server)) == 2 and all(each.cpu_times().user > 0.6 for each in decoders(server)))
    left = decoders(server)
    server.process.send_signal(end)
    server.wait()
    caller.join(30)
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def test_signals_to_the_whole_group_do_not_reach_the_processes(server, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    embed(server.address, [jpeg])
    before = decoders(server)
    for each in before:
        for number in (signal.SIGINT, signal.SIGTERM):
            each.send_signal(number)
    assert embed(server.address, [jpeg] * 4).status_code == 200
    assert all(each.is_running() for each in before)


def test_the_pool_is_what_the_services_hold(client) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(client.app.state.services.pool, DecodePool)
    assert client.app.state.services.pool.fault() is None


def test_children_know_no_keys(serve: Callable[..., object], jpeg: bytes) -> None:
    server = serve(api_keys="a-secret-key", decode_workers=1)
    server.wait_for("ready")  # type: ignore[attr-defined]
    found = [each.environ() for each in decoders(server)]
    assert found
    assert not [name for environment in found for name in environment if name.startswith("CLIPWORKS_")]


def test_an_answer_that_makes_no_sense_costs_its_image_alone(monkeypatch: pytest.MonkeyPatch, jpeg: bytes) -> None:
    async def run() -> None:
        spec = ImageSpec(
            height_px=32, width_px=32, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        )
        pool = DecodePool(workers=1, limits=DecodeLimits(), timeout_s=20, memory_bytes=2**30, max_request_pixels=10**9)
        await pool.begin()
        with monkeypatch.context() as patch:
            patch.setattr("service.decoding.worker.json.loads", lambda line: 5)
            with pytest.raises(InvalidImage, match="broke down"):
                await pool.prepare(jpeg, spec, Budget())
        assert (await pool.prepare(jpeg, spec, Budget())).shape == (32, 32, 3)
        await pool.close()
        with pytest.raises(ServiceNotReady, match="stopping"):
            await pool.prepare(jpeg, spec, Budget())

    asyncio.run(run())


def test_huge_images_of_others_neither_hold_up_nor_refuse_a_small_one(serve, jpeg: bytes) -> None:  # type: ignore[no-untyped-def]
    server = serve(decode_workers=2, decode_timeout_s=60)
    server.wait_for("ready")
    sink = BytesIO()
    Image.new("RGBA", (5600, 5600), (0, 0, 0, 0)).save(sink, "WEBP", lossless=True, method=0)  # of some thirty bytes
    answers: list[int] = []
    others = [
        threading.Thread(target=lambda: answers.append(embed(server.address, [sink.getvalue()]).status_code))
        for _ in range(3)
    ]
    for each in others:
        each.start()
    wait_until(lambda: len(decoders(server)) == 2)
    statuses = [embed(server.address, [jpeg]).status_code for _ in range(20)]
    assert len(answers) < 3  # they are still at it
    assert statuses == [200] * 20
    for each in others:
        each.join()
    assert set(answers) <= {200, 429}
