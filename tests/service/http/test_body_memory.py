"""Bodies in flight share one budget: what does not fit is refused with Retry-After, and all of it is given back."""

import json
import socket
import time
from collections.abc import Callable

import httpx2
import pytest

HEAD = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
MIB = 2**20


@pytest.fixture(scope="module")
def small(serve_module: Callable[..., object]):  # type: ignore[no-untyped-def]
    """A server that holds 4 MiB of bodies, two of the largest."""
    server = serve_module(max_body_bytes=2 * MIB, max_bodies_bytes=4 * MIB, body_timeout_s=20)
    server.wait_for("ready")
    return server


def send(server, data: bytes) -> socket.socket:  # type: ignore[no-untyped-def]
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(data)
    return connection


def held(server) -> float:  # type: ignore[no-untyped-def]
    text = httpx2.get(server.address + "/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("clipworks_body_bytes "))


def wait_held(server, least: float, most: float) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 10
    while not least <= held(server) <= most:
        assert time.monotonic() < end, held(server)
        time.sleep(0.05)


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b"x" * size)


def test_what_does_not_fit_is_refused_and_short_requests_are_not(small) -> None:
    declared = HEAD + b"Content-Length: %d\r\n\r\n" % (2 * MIB) + b"x" * (2 * MIB - 1)
    full = [send(small, declared) for _ in range(2)]
    wait_held(small, 3.8 * MIB, 4 * MIB)
    over = httpx2.post(small.address + "/embed", content=b"x" * MIB, headers={"Content-Type": "image/jpeg"})
    assert (over.status_code, over.json()["error"]["code"]) == (429, "overloaded")
    assert over.headers["retry-after"] == "1"
    with send(small, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(MIB)) as chunked:
        assert chunked.recv(65536).startswith(b"HTTP/1.1 429 ")
    assert httpx2.post(small.address + "/embed", json={"inputs": ["a"]}).status_code == 200
    full[0].close()  # the client went
    full[1].sendall(b"x")  # the request ends
    assert full[1].recv(65536).startswith(b"HTTP/1.1 422 ")
    full[1].close()
    wait_held(small, 0, 0)
    assert httpx2.post(small.address + "/embed", content=b"x" * MIB, headers={"Content-Type": "image/jpeg"}).is_error
    wait_held(small, 0, 0)


def test_a_body_that_is_too_slow_gives_way(small) -> None:
    slow = [send(small, HEAD + b"Content-Length: %d\r\n\r\nx" % (2 * MIB)) for _ in range(2)]
    wait_held(small, 3.8 * MIB, 4 * MIB)
    time.sleep(1)
    after = httpx2.post(small.address + "/embed", content=b"x" * MIB, headers={"Content-Type": "image/jpeg"})
    assert after.json()["error"]["code"] != "overloaded"
    assert slow[0].recv(65536).startswith(b"HTTP/1.1 429 ")
    for each in slow:
        each.close()
    wait_held(small, 0, 0)


def test_who_holds_the_most_makes_room_for_another_caller(small) -> None:
    """By its newest body; one caller alone holds as much as there is, and is refused more."""
    declared = HEAD + b"Content-Length: %d\r\n\r\n" % (2 * MIB) + b"x" * (2 * MIB - 1)
    older, newer = (send(small, declared) for _ in range(2))
    wait_held(small, 3.8 * MIB, 4 * MIB)
    with httpx2.Client(transport=httpx2.HTTPTransport(local_address="127.0.0.2")) as another:
        jpeg = {"Content-Type": "image/jpeg"}
        assert httpx2.post(small.address + "/embed", content=b"x" * MIB, headers=jpeg).status_code == 429
        assert another.post(small.address + "/embed", content=b"x" * MIB, headers=jpeg).status_code == 422
    assert newer.recv(65536).startswith(b"HTTP/1.1 429 ")
    older.sendall(b"x")
    assert older.recv(65536).startswith(b"HTTP/1.1 422 ")
    for each in (older, newer):
        each.close()
    wait_held(small, 0, 0)


def test_nobody_without_a_key_holds_any_of_it(serve: Callable[..., object]) -> None:
    server = serve(api_keys="some-key-123", max_body_bytes=2 * MIB, max_bodies_bytes=2 * MIB)
    server.wait_for("ready")
    strangers = [send(server, HEAD + b"Content-Length: %d\r\n\r\n" % (2 * MIB) + b"x" * 100_000) for _ in range(8)]
    for each in strangers:
        assert each.recv(65536).startswith(b"HTTP/1.1 401 ")
    headers = {"Content-Type": "application/json", "Authorization": "Bearer some-key-123"}
    body = json.dumps({"inputs": ["a"]}).ljust(2 * MIB)
    assert httpx2.post(server.address + "/embed", content=body, headers=headers).status_code == 200
    for each in strangers:
        each.close()


def test_parsed_values_are_held_with_their_body(small) -> None:
    """A body of numbers takes many times its own length once it is parsed; alone it is always taken."""
    numbers = b'{"inputs": ["a"], "x": [%s1]}' % (b"1," * 900_000)

    def ask() -> httpx2.Response:
        return httpx2.post(small.address + "/embed", content=numbers, headers={"Content-Type": "application/json"})

    assert ask().status_code == 422  # x is unknown
    wait_held(small, 0, 0)
    with send(small, HEAD + b"Content-Length: %d\r\n\r\n" % MIB + b"x" * (MIB - 1)):
        wait_held(small, 0.9 * MIB, MIB)
        refused = ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        text = json.dumps({"inputs": ["a" * 1_800_000]})  # one value
        long = httpx2.post(small.address + "/embed", content=text, headers={"Content-Type": "application/json"})
        assert long.status_code != 429
    wait_held(small, 0, 0)
    assert ask().status_code == 422
