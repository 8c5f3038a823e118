"""Labels of a request take places once, by its deadline: refused at once or not at all, and others have room too."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.engine.batcher import Batcher
from service.faults import ServiceOverloaded
from service.timing import Deadline

MAX_ITEMS = 160  # of which one request's labels take 40


@pytest.fixture(scope="module")
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """Of a server that knows how fast texts are done."""
    client = make_client(max_queue_items=MAX_ITEMS, max_label_texts=6_000, max_wait_s=100)
    assert client.post("/embed", json={"inputs": ["a", "b"]}).status_code == 200
    return client


@pytest.fixture(scope="module")
def ask(png: bytes) -> Callable[..., Any]:
    image = {"image": base64.b64encode(png).decode()}

    def classify(client: TestClient, labels: Sequence[str], timeout_ms: int = 60_000) -> Any:
        body = {"inputs": [image], "labels": labels, "templates": "none", "top_k": 2}
        return client.post("/classify", json=body, headers={"X-Request-Timeout-Ms": str(timeout_ms)})

    return classify


def labels(name: str, count: int) -> list[str]:
    return [f"{name} {n}" for n in range(count)]


def batcher_of(client: TestClient) -> Batcher:
    return client.app.state.services.registry.resolve("tiny").batchers["text_encoder"]  # type: ignore[attr-defined]


def on_loop(client: TestClient, work: Callable[[], Any]) -> Any:
    assert client.portal is not None

    async def run() -> Any:
        return work()

    return client.portal.call(run)


@contextmanager
def held(client: TestClient, items: int, *, unless: Future[Any] | None = None) -> Generator[None]:
    """As if somebody else had so many texts in work; waits for the room, but not longer than `unless` takes."""
    batcher, end = batcher_of(client), time.monotonic() + 30
    while True:
        try:
            ticket = on_loop(client, lambda: batcher.admit(items, Deadline()))
            break
        except ServiceOverloaded:
            assert time.monotonic() < end
            assert unless is None or not unless.done()
            time.sleep(0.002)
    try:
        yield
    finally:
        on_loop(client, lambda: ticket.__exit__(None, None, None))


def assert_idle(client: TestClient) -> None:
    """Every place was given back."""
    end = time.monotonic() + 10
    while on_loop(client, batcher_of(client).admission.expected_wait_s) > 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    with held(client, MAX_ITEMS - 1), held(client, 1):
        pass


def refused(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def begun(client: TestClient, request: Future[Any]) -> None:
    """Return when texts of the request are in work."""
    while on_loop(client, lambda: batcher_of(client).admission.expected_wait_s()) == 0:
        assert not request.done()
        time.sleep(0.001)


def test_labels_are_refused_at_once_when_there_is_no_room(client: TestClient, ask: Callable[..., Any]) -> None:
    with held(client, MAX_ITEMS):
        for count in (1, 3, 300):
            response = ask(client, [*labels("refused", count), "another"])
            assert refused(response)[:2] == (429, "overloaded")
            assert int(response.headers["Retry-After"]) >= 1
    assert_idle(client)
    assert ask(client, labels("refused", 300)).status_code == 200
    assert_idle(client)


def test_many_labels_come_in_beside_others(client: TestClient, ask: Callable[..., Any]) -> None:
    with held(client, MAX_ITEMS - 40):
        assert ask(client, labels("beside", 300)).status_code == 200
    with held(client, MAX_ITEMS - 39):
        assert refused(ask(client, labels("too many", 300)))[0] == 429
        assert ask(client, labels("beside", 300)).status_code == 200  # remembered: needs no place
    assert_idle(client)


def test_labels_that_were_let_in_are_never_refused_halfway(client: TestClient, ask: Callable[..., Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(ask, client, labels("halfway", 6_000))
        begun(client, request)
        with held(client, MAX_ITEMS - 40, unless=request):
            assert not request.done()
            assert request.result().status_code == 200
    assert_idle(client)


def test_many_labels_leave_room_for_others(client: TestClient, ask: Callable[..., Any]) -> None:
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(ask, client, labels(f"room {n}", 4_000)) for n in range(3)]
        begun(client, requests[0])
        answered = 0
        while not all(request.done() for request in requests):
            assert client.post("/embed", json={"inputs": ["a single text"]}).status_code == 200
            answered += 1
        assert answered > 3
        assert {request.result().status_code for request in requests} == {200}
    assert_idle(client)


def test_a_deadline_that_cannot_be_met_is_told_at_once(
    make_client: Callable[..., TestClient], ask: Callable[..., Any]
) -> None:
    client = make_client(max_queue_items=8_000, max_label_texts=6_000)
    assert client.post("/embed", json={"inputs": ["a", "b"]}).status_code == 200
    with held(client, 1):
        answers = [refused(ask(client, labels(f"late {n}", 2_000), timeout_ms=60)) for n in range(5)]
    codes = {code for _, code, _ in answers}  # a busy machine may read a request for longer than its deadline
    assert "overloaded" in codes
    assert codes <= {"overloaded", "deadline_exceeded"}
    assert "its deadline leaves" in next(message for _, code, message in answers if code == "overloaded")


def test_places_of_labels_that_ended_early_are_given_back(client: TestClient, ask: Callable[..., Any]) -> None:
    for n, timeout_ms in enumerate((1, 2, 5, 10, 20, 40, 80)):
        assert ask(client, labels(f"early {n}", 6_000), timeout_ms).status_code == 504
        assert_idle(client)
    assert ask(client, [*labels("spoilt", 300), "&" + "#38;" * 1900]).status_code == 422
    assert_idle(client)


def test_equal_labels_at_the_same_time_take_places_once(client: TestClient, ask: Callable[..., Any]) -> None:
    same = labels("same", 6_000)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, client, same)
        begun(client, first)
        with held(client, MAX_ITEMS - 40, unless=first):
            others = [pool.submit(ask, client, same) for _ in range(4)]
            assert {each.result().status_code for each in (first, *others)} == {200}
    assert_idle(client)
