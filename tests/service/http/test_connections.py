"""Connections of a real server: who is let in, what is taken apart, and what ends those that take without giving."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from clipworks import schemas

JSON = b'{"inputs": ["a red shirt"]}'
POST = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
PLACES = 16


@pytest.fixture(scope="module")
def shared(serve_module: Callable[..., object]):  # type: ignore[no-untyped-def]
    """A ready server with few places and short deadlines."""
    server = serve_module(
        header_timeout_s=4, body_timeout_s=4, write_timeout_s=2, max_connections=PLACES, max_body_bytes=1_000_000
    )
    server.wait_for("ready")
    return server


def connect(server, receive_buffer: int = 0) -> socket.socket:  # type: ignore[no-untyped-def]
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    return connection


@contextlib.contextmanager
def connected(server, count: int) -> Iterator[list[socket.socket]]:  # type: ignore[no-untyped-def]
    opened = [connect(server) for _ in range(count)]
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of each answer in a stream of them."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        found.append((int(head.split()[1]), received[:length]))
        received = received[length:]
    return found


def exchange(server, sent: bytes, *, last: bytes = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):  # type: ignore[no-untyped-def]
    """Answers to these bytes, and to one good request behind them on the same connection."""
    with connect(server) as connection:
        connection.sendall(sent + last)
        return answers(read_all(connection))


def metric(server, name: str) -> float:  # type: ignore[no-untyped-def]
    text = httpx2.get(server.address + "/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def wait_until(true: Callable[[], bool], *, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def with_length(body: bytes, headers: bytes = b"") -> bytes:
    return POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
H2C += b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        with_length(JSON),
        with_length(JSON, H2C),  # java.net.http.HttpClient, curl --http2, Ktor
        with_length(JSON, b"Connection: Upgrade\r\n"),
        with_length(JSON, b"Upgrade: h2c\r\n"),
        with_length(JSON, b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n1b\r\n" + JSON + b"\r\n0\r\n\r\n",
        CHUNKED + b"5;name=value\r\n" + JSON[:5] + b"\r\n16\r\n" + JSON[5:] + b"\r\n0\r\nX-Trailer: y\r\n\r\n",
        b"\r\n\r\n" + with_length(JSON),
        with_length(JSON) + b"\r\n",  # some old clients end a body with a line break
    ],
)
def test_a_body_arrives_and_the_connection_goes_on(shared, sent: bytes) -> None:
    (status, body), after = exchange(shared, sent)
    assert (status, after[0]) == (200, 200)
    assert len(json.loads(body)["data"]) == 1


def test_a_websocket_is_answered_like_any_get(shared) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    first, after = exchange(shared, b"GET /models HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
    assert (first[0], after[0]) == (200, 200)
    assert json.loads(first[1])["data"]


def test_a_trailer_is_no_header_of_the_request(shared) -> None:
    sent = CHUNKED + b"1b\r\n" + JSON + b"\r\n0\r\nX-Request-Timeout-Ms: nonsense\r\nContent-Encoding: gzip\r\n\r\n"
    assert [status for status, _ in exchange(shared, sent)] == [200, 200]


def test_pipelined_requests_are_answered_in_order(shared) -> None:
    sent = GET * 2 + with_length(JSON) + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 400
    statuses = [status for status, _ in exchange(shared, sent)]
    assert statuses == [200, 200, 200, 404] + [200] * 401


def test_a_request_that_comes_byte_by_byte(shared) -> None:
    sent = CHUNKED + b"1b\r\n" + JSON + b"\r\n0\r\n\r\n" + GET.replace(b"x", b"x\r\nConnection: close")
    with connect(shared) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for each in sent:
            connection.sendall(bytes([each]))
        assert [status for status, _ in answers(read_all(connection))] == [200, 200]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /livez\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/2.0\r\n\r\n", 400, "invalid_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
        (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_http"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_http"),
        (b"\r\n" * 500, 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 66_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 8_500 + b"\r\n", 431, "headers_too_large"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A:b\r\n" * 300 + b"\r\n", 431, "headers_too_large"),
        (b"GET /livez?" + b"y" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers_too_large"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 415, "unsupported_encoding"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400, "invalid_http"),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "invalid_http"),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, "invalid_http"),
        (POST + b"Content-Length: " + b"0" * 5_000 + b"3\r\n\r\nabc", 400, "invalid_http"),
        (
            b"GET /livez?" + b"a=1&" * 15_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            400,
            "invalid_query",
        ),
        (CHUNKED + b"8000000000000000\r\n", 413, "body_too_large"),
        (CHUNKED + b"f4241\r\n", 413, "body_too_large"),
        (CHUNKED + b"1;" + b"x" * 400, 400, "invalid_http"),
        (CHUNKED + b"5\r\nhelloX", 400, "invalid_http"),
        (CHUNKED + b"0\r\nX: " + b"y" * 9_000, 431, "headers_too_large"),
        (CHUNKED + b"0\r\n" + b"X: y\r\n" * 2_000, 431, "headers_too_large"),
        (CHUNKED + b"1\r\nx\r\n" * 40_000, 400, "invalid_http"),
    ],
)
def test_what_is_refused_is_refused_at_once(shared, sent: bytes, status: int, code: str) -> None:
    with connect(shared) as connection:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        [(found, body)] = answers(read_all(connection))
    assert time.monotonic() - started < 3.5, "that was a deadline"
    assert (found, schemas.ErrorResponse.model_validate_json(body).error.code) == (status, code)


def test_a_client_that_asks_first_gets_its_answer(serve: Callable[..., object]) -> None:
    server = serve(api_keys="some-key-123")
    server.wait_for("ready")
    asking = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(JSON)
    with connect(server) as connection:  # with a key: it is told to go on, and the connection is kept
        for _ in range(2):
            connection.sendall(asking + b"Authorization: Bearer some-key-123\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(JSON)
            received = b""
            while b'"usage"' not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
    with connect(server) as connection:  # without: the body never comes, so nothing may follow it
        connection.sendall(asking + b"\r\n")
        received = read_all(connection)
        assert b"connection: close" in received.lower()
        assert [status for status, _ in answers(received)] == [401]


def test_silent_connections_make_room(shared) -> None:
    with connected(shared, 3 * PLACES) as silent:
        for _ in range(10):
            assert httpx2.get(shared.address + "/livez").status_code == 200
        halves = silent[-PLACES // 2 :]
        for each in halves:
            with contextlib.suppress(OSError):
                each.sendall(b"GET /livez HTTP/1.1\r\nHo")
        assert httpx2.post(shared.address + "/embed", json={"inputs": ["a"]}).status_code == 200
        assert silent[0].recv(1) == b"", "the oldest is closed first"
    assert metric(shared, 'clipworks_connections_cut_total{reason="idle"}') >= 2 * PLACES


def test_one_too_many_is_told_so_and_slow_bodies_make_room(shared) -> None:
    with connected(shared, PLACES) as held:
        for each in held:
            each.sendall(POST + b"Content-Length: 900000\r\n\r\n" + b" " * 200_000)
        time.sleep(0.3)
        for sent in (GET, with_length(b" " * 300_000), b""):
            with connect(shared) as over:
                with contextlib.suppress(OSError):
                    over.sendall(sent)
                received = read_all(over)
            [(status, body)] = answers(received)
            assert b"retry-after: 1\r\n" in received.lower()
            assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
        time.sleep(2)  # by now more than these 200,000 bytes should have come
        assert httpx2.get(shared.address + "/livez").status_code == 200
    wait_until(lambda: httpx2.get(shared.address + "/livez").status_code == 200)


def test_one_address_has_its_own_limit(serve: Callable[..., object]) -> None:
    server = serve(max_connections_per_address=3)
    server.wait_for("ready")
    with connected(server, 3), connect(server) as over:
        over.sendall(GET)
        assert [status for status, _ in answers(read_all(over))] == [503]
    wait_until(lambda: httpx2.get(server.address + "/livez").status_code == 200)


def test_answers_that_nobody_reads_are_given_up(shared) -> None:
    before = metric(shared, 'clipworks_connections_cut_total{reason="unread"}')
    many = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    readers = [connect(shared, receive_buffer=4096) for _ in range(4)]
    for each in readers:
        each.sendall(many)
    wait_until(lambda: metric(shared, 'clipworks_connections_cut_total{reason="unread"}') >= before + 4)
    assert metric(shared, "clipworks_connections ") <= 2
    for each in readers:
        each.close()


def test_a_slow_reader_gets_everything(shared) -> None:
    size = len(httpx2.get(shared.address + "/openapi.json").content)
    count = 60
    with connect(shared, receive_buffer=4096) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * (count - 1))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = []
        end = time.monotonic() + 4  # longer than the time for writing, in small sips
        while time.monotonic() < end:
            received.append(connection.recv(8192))
            time.sleep(0.05)
        received.append(read_all(connection))
    found = answers(b"".join(received))
    assert [(status, len(body)) for status, body in found] == [(200, size)] * count


def test_unread_answers_have_a_bound_together(serve: Callable[..., object]) -> None:
    server = serve(max_unread_bytes=3_000_000, write_timeout_s=60)
    server.wait_for("ready")
    client = httpx2.Client(base_url=server.address, timeout=60)
    assert client.put("/collections/large", json={}).status_code == 201
    items = [{"id": f"i{n}", "vector": [1.0, n + 1.0] + [0.0] * 30, "metadata": {"t": "x" * 4000}} for n in range(1500)]
    assert client.post("/collections/large/items", json={"items": items}).status_code == 200
    query = json.dumps({"queries": [{"vector": [1.0] * 32}], "top_k": 1500, "include": ["metadata"]}).encode()
    sent = with_length(query).replace(b"/embed", b"/collections/large/search")
    readers = [connect(server, receive_buffer=4096) for _ in range(4)]
    for each in readers:  # 6 MB each, of which the socket takes a part
        each.sendall(sent)
    try:
        wait_until(lambda: metric(server, 'clipworks_connections_cut_total{reason="unread"}') >= 2)
        assert metric(server, "clipworks_connections ") >= 2, "one large answer may be over the bound"
    finally:
        for each in readers:
            each.close()
        client.close()
