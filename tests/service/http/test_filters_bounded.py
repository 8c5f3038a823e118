"""Filters that look at many rows: they end at their deadline, leave readers to others, and say what no item has."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest

DIM = 32
DEADLINE_S = 1.0
LONG = [f"{n:06}" for n in range(6000)]


class Caller:
    """Plain HTTP, so that a connection can be closed while it is answered."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: object = None, *, timeout_ms: int = 60_000) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=90)
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(timeout_ms)}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def slow(self, salt: str, *, timeout_ms: int) -> tuple[int, Any]:
        """A search whose filter costs minutes: 128 conditions on arrays that nobody declared."""
        filter = {"$or": [{"big": f"{salt}-{n}"} for n in range(128)]}
        body = {"queries": [{"vector": vector(0)}], "filter": filter}
        return self.ask("POST", "/collections/slow/search", body, timeout_ms=timeout_ms)


def vector(seed: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(DIM).tolist()


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any]) -> tuple[Caller, Any]:
    served = serve_module()
    served.wait_for("ready")
    caller = Caller(served.port)
    for name in ("slow", "other"):
        assert caller.ask("PUT", f"/collections/{name}", {})[0] == 201
    rows = [{"id": f"r{n}", "vector": vector(n), "metadata": {"big": LONG, "n": n}} for n in range(300)]
    for start in range(0, 300, 100):
        assert caller.ask("POST", "/collections/slow/items", {"items": rows[start : start + 100]})[0] == 200
    small = [{"id": "x", "vector": vector(1), "metadata": {"flat.key": 1, "path": "trips/rome/1.jpg"}}]
    assert caller.ask("POST", "/collections/other/items", {"items": small})[0] == 200
    return caller, served


def test_others_are_answered_while_slow_filters_run(server: tuple[Caller, Any]) -> None:
    """Eight of them at once: each ends at its deadline; searches, reads and filters of another collection go on."""
    caller, _ = server
    answers: list[tuple[int, float]] = []

    def search(place: int) -> None:
        began = time.monotonic()
        status, _ = caller.slow(f"a{place}", timeout_ms=4000)
        answers.append((status, time.monotonic() - began))

    threads = [threading.Thread(target=search, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert not answers
    plain = {"queries": [{"vector": vector(1)}]}
    assert caller.ask("POST", "/collections/other/search", plain, timeout_ms=3000)[0] == 200
    assert caller.ask("POST", "/collections/slow/search", plain, timeout_ms=3000)[0] == 200
    assert caller.ask("GET", "/collections/other/items/x", timeout_ms=3000)[0] == 200
    assert not answers, "the slow ones had ended before anything else was asked"
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [504] * 8
    assert max(seconds for _, seconds in answers) < 15
    began = time.monotonic()
    filtered = {**plain, "filter": {"path": {"$prefix": "trips/"}}}
    status, body = caller.ask("POST", "/collections/other/search", filtered, timeout_ms=8000)
    assert (status, [hit["id"] for hit in body["results"][0]["hits"]]) == (200, ["x"])
    assert time.monotonic() - began < 8, "a filter of another collection had to wait for one whose caller is gone"


def test_a_deletion_by_a_slow_filter_ends_too_and_writes_go_on(server: tuple[Caller, Any]) -> None:
    caller, _ = server
    slow = {"filter": {"$or": [{"big": f"d-{n}"} for n in range(128)]}}
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(caller.ask("POST", "/collections/slow/items:delete", slow, timeout_ms=4000)[0])
    )
    thread.start()
    time.sleep(0.5)
    items = {"items": [{"id": "y", "vector": vector(2)}]}
    assert caller.ask("POST", "/collections/other/items", items, timeout_ms=3000)[0] == 200
    assert not statuses
    thread.join()
    assert statuses == [504]
    assert caller.ask("GET", "/collections/slow")[1]["count"] == 300


def test_a_caller_that_goes_frees_the_reader(server: tuple[Caller, Any]) -> None:
    """Without that the second filter would wait its whole minute: its collection has one turn."""
    caller, _ = server
    connection = HTTPConnection("127.0.0.1", caller.port)
    body = {"queries": [{"vector": vector(0)}], "filter": {"$or": [{"big": f"g-{n}"} for n in range(128)]}}
    headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": "60000"}
    connection.request("POST", "/collections/slow/search", json.dumps(body), headers)
    time.sleep(1)
    connection.close()
    search = {"queries": [{"vector": vector(7)}], "filter": {"n": 7}}
    status, found = caller.ask("POST", "/collections/slow/search", search, timeout_ms=20_000)
    assert (status, [hit["id"] for hit in found["results"][0]["hits"]]) == (200, ["r7"])


def test_what_no_item_has_is_said(server: tuple[Caller, Any]) -> None:
    caller, _ = server

    def warnings(filter: dict[str, Any]) -> list[str] | None:
        body = {"queries": [{"vector": vector(1)}], "filter": filter}
        status, found = caller.ask("POST", "/collections/other/search", body)
        assert status == 200, found
        return found.get("warnings")

    assert warnings({"flat.key": 1}) is None
    assert warnings({"flat\\.key": 1}) is None
    assert warnings({"flat.kay": 1, "path": "x"}) == ["filter: no item of the collection has a field 'flat.kay'"]
    assert warnings({"flat.kay": 1, "path": "x"}) == ["filter: no item of the collection has a field 'flat.kay'"]
    caller.ask(
        "POST",
        "/collections/other/items",
        {"items": [{"id": "z", "vector": vector(3), "metadata": {"flat": {"kay": 1}}}]},
    )
    assert warnings({"flat.kay": 1, "path": "x"}) is None


@pytest.mark.parametrize(
    ("filter", "limit"),
    [
        ({"$or": [{}] * 1100}, "128 conditions"),
        ({"$and": [{}] * 100_000}, "128 conditions"),
        ({"$and": [{"s": {"$in": [f"{k}-{n}" for n in range(1000)]}} for k in range(120)]}, "10000 values"),
        ({"s": {"$in": ["x" * 4000 + str(n) for n in range(1000)]}}, "1048576 bytes"),
        ({"k" * 300: 1}, "limit is 256"),
    ],
)
def test_a_filter_that_is_too_large_names_the_limit(
    server: tuple[Caller, Any], filter: dict[str, Any], limit: str
) -> None:
    body = {"queries": [{"vector": vector(1)}], "filter": filter}
    status, found = server[0].ask("POST", "/collections/other/search", body)
    assert (status, found["error"]["code"]) == (422, "invalid_filter")
    assert limit in found["error"]["message"]


def test_the_server_ends_while_a_slow_filter_runs(server: tuple[Caller, Any]) -> None:
    """The last test of this server: it waits for the answer, not for what the filter would have cost."""
    caller, served = server
    thread = threading.Thread(target=lambda: caller.slow("z", timeout_ms=3000))
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert served.stop(timeout_s=60) == 0
    assert time.monotonic() - began < 30
    thread.join()
