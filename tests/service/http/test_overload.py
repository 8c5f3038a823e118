"""More than a server can do, on a model whose pictures take a while: some are answered, the others are told at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
from PIL import Image

GREY = 200  # the looping artifact loops on an evenly grey picture of this level (tests/service/conftest.py)
MAX_WAIT_S = 1.0
pytestmark = pytest.mark.parametrize("looping_store", [100_000], indirect=True)


def grey_picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (48, 48), (GREY, GREY, GREY)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(serve: Callable[..., object], looping_store: Path):  # type: ignore[no-untyped-def]
    """One picture a run, each of which takes some hundredths of a second; nobody waits longer than MAX_WAIT_S."""
    started = serve(store=looping_store, max_wait_s=MAX_WAIT_S, max_batch_images=1, access_log="false")
    started.wait_for("ready")
    return started


@pytest.fixture
def patient(serve: Callable[..., object], looping_store: Path):  # type: ignore[no-untyped-def]
    """The same, but for the wait, which may be long."""
    started = serve(store=looping_store, max_wait_s=100, max_batch_images=1, access_log="false")
    started.wait_for("ready")
    return started


def embed(address: str, *, timeout_ms: int = 60_000) -> tuple[httpx2.Response, float]:
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": str(timeout_ms)}
    started = time.monotonic()
    return httpx2.post(f"{address}/embed", content=grey_picture(), headers=headers, timeout=90), (
        time.monotonic() - started
    )


def test_a_flood_is_answered_in_part_and_refused_at_once_for_the_rest(server) -> None:  # type: ignore[no-untyped-def]
    each_s = min(embed(server.address)[1] for _ in range(5))
    slowest_livez_s = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal slowest_livez_s
        while not over.wait(0.1):
            started = time.monotonic()
            assert httpx2.get(f"{server.address}/livez", timeout=30).status_code == 200
            slowest_livez_s = max(slowest_livez_s, time.monotonic() - started)

    watching = threading.Thread(target=watch)
    watching.start()
    count = min(max(int(4 * MAX_WAIT_S / each_s), 40), 200)
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda _: embed(server.address), range(count)))
    over.set()
    watching.join()
    statuses = [answer.status_code for answer, _ in answers]
    assert set(statuses) == {200, 429}, statuses
    for answer, seconds in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "overloaded"
            assert 1 <= int(answer.headers["Retry-After"]) <= 10
        else:
            assert seconds < 10 * MAX_WAIT_S
    assert slowest_livez_s < 5
    started = time.monotonic()
    while embed(server.address)[0].status_code != 200:
        time.sleep(0.05)
    assert time.monotonic() - started < 5


def test_a_deadline_that_cannot_be_met_is_refused_before_any_work(patient) -> None:  # type: ignore[no-untyped-def]
    for _ in range(5):
        embed(patient.address)
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(embed, patient.address) for _ in range(8)]
        time.sleep(0.1)
        hasty, _ = embed(patient.address, timeout_ms=20)
        assert (hasty.status_code, hasty.json()["error"]["code"]) == (429, "overloaded")
        assert "deadline" in hasty.json()["error"]["message"]
        assert {each.result()[0].status_code for each in waiting} == {200}
    answer, _ = embed(patient.address, timeout_ms=1)  # alone: it is tried, and told the truth
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_large_batch_on_an_idle_server_is_let_in_and_others_get_their_turn(patient) -> None:  # type: ignore[no-untyped-def]
    each_s = min(embed(patient.address)[1] for _ in range(5))
    count = min(max(int(5 / each_s), 8), 150)
    files = [("image", (f"{i}.png", grey_picture(), "image/png")) for i in range(count)]
    headers = {"X-Request-Timeout-Ms": "110000"}
    url = f"{patient.address}/embed"
    with ThreadPoolExecutor(1) as pool, httpx2.Client(timeout=120) as client:
        assert client.get(f"{patient.address}/livez").status_code == 200  # connected before it counts
        batch = pool.submit(httpx2.post, url, files=files, headers=headers, timeout=120)
        while "clipworks_requests_in_flight 2.0" not in client.get(f"{patient.address}/metrics").text:
            time.sleep(0.01)
        time.sleep(0.1)
        answer = client.post(url, content=grey_picture(), headers=headers | {"Content-Type": "image/png"})
        assert answer.status_code == 200
        assert batch.result().status_code == 200
        assert len(batch.result().json()["data"]) == count
