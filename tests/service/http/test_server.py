"""A server in its own process: what it prints, how it stops, and how long it listens to slow clients."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from clipworks import schemas

GREY = 200  # the looping artifact loops on an evenly grey picture of this level (tests/service/conftest.py)


def grey_picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), (GREY, GREY, GREY)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shared(serve_module: Callable[..., object]):  # type: ignore[no-untyped-def]
    """A ready server with short deadlines and small limits."""
    server = serve_module(header_timeout_s=1, body_timeout_s=1, max_body_bytes=300_000)
    server.wait_for("ready")
    return server


def test_it_announces_itself_answers_and_stops_with_0(serve: Callable[..., object]) -> None:
    server = serve(max_itemz="misspelt", port_8000_tcp="tcp://10.0.0.1:8000", log_format="json")
    server.wait_for("listening on http://127.0.0.1:")
    assert httpx2.get(server.address + "/livez").status_code == 200
    server.wait_for("ready")
    assert httpx2.get(server.address + "/readyz").json() == {"status": "ok", "detail": None}
    assert httpx2.post(server.address + "/embed", json={"inputs": ["a"]}).status_code == 200
    assert server.stop() == 0
    assert len(server.lines) == 2
    records = [json.loads(line) for line in server.log]
    assert "CLIPWORKS_MAX_ITEMZ" in records[0]["message"]
    assert "CLIPWORKS_MAX_ITEMS meant" in records[0]["message"]
    assert not [each for each in records if "load library" in each["message"] or each["level"] == "error"]
    assert {"path": "/embed", "status": 200}.items() <= records[-1].items()


def test_help_starts_no_server() -> None:
    command = [sys.executable, "-m", "service"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "CLIPWORKS_MAX_ITEMS" in done.stdout
    assert "listening" not in done.stdout
    wrong = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == 2
    assert "clipworks" not in wrong.stdout


def test_the_curl_lines_of_the_docs_work(shared, tmp_path: Path, jpeg: bytes) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    (tmp_path / "cat.jpg").write_bytes(jpeg)

    def curl(*arguments: str) -> dict[str, object]:
        done = subprocess.run(["curl", "-sS", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    form = curl("-F", "image=@cat.jpg", "-F", "labels=cat,dog", shared.address + "/classify")
    raw = curl(
        "-H", "Content-Type: image/jpeg", "--data-binary", "@cat.jpg", shared.address + "/classify?labels=cat,dog"
    )
    assert {p["label"] for p in form["data"][0]["predictions"]} == {"cat", "dog"}  # type: ignore[index]
    assert form == raw
    refused = curl("-d", '{"inputs": ["a"]}', shared.address + "/embed")
    assert refused["error"]["code"] == "unsupported_media_type"  # type: ignore[index]


def test_bad_settings_are_named_and_end_it_with_2(serve: Callable[..., object]) -> None:
    server = serve(port="many", max_items="0")
    assert server.wait() == 2
    text = "\n".join(server.log)
    assert "CLIPWORKS_PORT" in text
    assert "CLIPWORKS_MAX_ITEMS" in text
    assert "Traceback" not in text


def test_a_misspelt_key_ends_it_with_2(serve: Callable[..., object]) -> None:
    server = serve(api_keyz="a-secret-key")
    assert server.wait() == 2
    assert "CLIPWORKS_API_KEYS" in server.log[-1]
    assert "a-secret-key" not in "".join(server.log)


def test_a_store_without_models_ends_it_with_2(serve: Callable[..., object], tmp_path: Path) -> None:
    server = serve(store=tmp_path)
    assert server.wait() == 2
    assert "no model to serve" in "\n".join(server.log)


def test_a_corrupt_artifact_ends_it_with_a_reason(serve: Callable[..., object], tiny_store: Path) -> None:
    graph = next((tiny_store / "tiny" / "1").glob("text_encoder*.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\0")
    server = serve(store=tiny_store)
    assert server.wait() == 1
    assert any("cannot start" in line and graph.name in line for line in server.log)


def test_a_taken_port_ends_it(serve: Callable[..., object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(port=port, model="no-such-model")  # a model would be looked for after the port
        assert server.wait() == 1
    assert server.log == [
        f"clipworks: cannot start: port {port} of 127.0.0.1 is in use by another program: stop that one, or take "
        f"another port with --port {port + 1} (CLIPWORKS_PORT); --port 0 takes a free one"
    ]


def test_an_address_of_another_machine_is_said(serve: Callable[..., object]) -> None:
    server = serve(host="192.0.2.1")
    assert server.wait() == 1
    assert "CLIPWORKS_HOST" in server.log[0]


@pytest.mark.parametrize("looping_store", [1_200_000], indirect=True)  # a few seconds of one core
def test_sigterm_lets_requests_in_flight_finish(serve: Callable[..., object], looping_store: Path) -> None:
    patience = {"request_timeout_s": 110, "drain_s": 110, "hang_s": 110}
    server = serve(store=looping_store, drain_grace_s=0.7, log_level="warning", **patience)
    server.wait_for("ready")
    answers: list[httpx2.Response] = []
    headers = {"Content-Type": "image/png"}
    slow = threading.Thread(
        target=lambda: answers.append(
            httpx2.post(server.address + "/embed", content=grey_picture(), headers=headers, timeout=120)
        )
    )
    slow.start()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    draining = httpx2.get(server.address + "/readyz")
    assert (draining.status_code, draining.json()["error"]["code"]) == (503, "draining")
    time.sleep(1.0)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.address + "/livez")
    assert server.process.poll() is None, "the request in flight was too short for this test"
    slow.join(120)
    assert server.wait() == 0
    assert answers[0].status_code == 200, answers[0].text


@pytest.mark.parametrize("looping_store", [10**12], indirect=True)
def test_past_the_drain_a_request_gets_503(serve: Callable[..., object], looping_store: Path) -> None:
    server = serve(store=looping_store, drain_s=0.5, hang_s=100)
    server.wait_for("ready")
    answers: list[httpx2.Response] = []
    headers = {"Content-Type": "image/png"}
    slow = threading.Thread(
        target=lambda: answers.append(
            httpx2.post(server.address + "/embed", content=grey_picture(), headers=headers, timeout=60)
        )
    )
    slow.start()
    time.sleep(0.5)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    slow.join(30)
    assert time.monotonic() - started < 10
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "draining")
    assert server.wait(timeout_s=10) == 0, "the native call cannot be stopped, so it must be left behind"


@pytest.mark.parametrize("looping_store", [10**12], indirect=True)
def test_a_second_signal_does_not_wait(serve: Callable[..., object], looping_store: Path) -> None:
    server = serve(store=looping_store, hang_s=100)
    server.wait_for("ready")
    body = grey_picture()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(timeout_s=5) == 128 + signal.SIGTERM


def read_until_closed(connection: socket.socket, *, timeout_s: float) -> tuple[bytes, float]:
    """What came, and after how long the other side closed."""
    connection.settimeout(timeout_s)
    started, received = time.monotonic(), b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received, time.monotonic() - started


def test_slow_clients_are_cut_off_and_others_are_served(shared) -> None:
    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", shared.port))

    silent, headers, body, idle = connect(), connect(), connect(), connect()
    stop = threading.Event()
    headers.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\n")
    body.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")

    def drip() -> None:
        while not stop.wait(0.2):
            for connection, piece in ((headers, b"X-A: b\r\n"), (body, b" ")):
                with contextlib.suppress(OSError):  # closed: that is what is being waited for
                    connection.sendall(piece)

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(65536)
        for connection, longest in ((silent, 3), (headers, 3)):
            received, seconds = read_until_closed(connection, timeout_s=10)
            assert received == b""
            assert seconds < longest
        received, seconds = read_until_closed(body, timeout_s=15)
        assert b"408 Request Timeout" in received
        assert b'"code":"body_timeout"' in received
        assert seconds < 9
        assert read_until_closed(idle, timeout_s=10)[1] < 8
        assert httpx2.get(shared.address + "/livez").status_code == 200
    finally:
        stop.set()
        dripping.join()
        for connection in (silent, headers, body, idle):
            connection.close()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 40_000, 431, "headers_too_large"),
        (b"GET /" + b"a" * 400_000, 431, "headers_too_large"),
    ],
)
def test_what_is_no_http_has_the_error_shape_too(shared, sent: bytes, status: int, code: str) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        with contextlib.suppress(OSError):  # the server may close before all of it is sent
            connection.sendall(sent)
        received, _ = read_until_closed(connection, timeout_s=5)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    error = schemas.ErrorResponse.model_validate_json(body).error
    assert (error.code, error.type) == (code, "invalid_request_error")


def test_a_client_that_goes_away_frees_its_places(shared) -> None:
    body = json.dumps({"inputs": ["some words " * 50] * 256}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):  # 1,280 items, and 512 places
        with socket.create_connection(("127.0.0.1", shared.port)) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.02)
    time.sleep(0.2)
    answer = httpx2.post(shared.address + "/embed", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert any("status=499" in line for line in shared.log)


def test_what_is_sent_after_a_refusal_is_swallowed(shared) -> None:
    piece = b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000)
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + piece * 4)
        connection.settimeout(10)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        for _ in range(20):
            connection.sendall(piece)
            time.sleep(0.01)
        connection.sendall(b"0\r\n\r\n")
        assert read_until_closed(connection, timeout_s=10)[1] < 3


def test_a_refused_upload_still_gets_its_answer(shared) -> None:
    for content in (b"x" * 20_000_000, iter([b"x" * 100_000] * 100)):
        answer = httpx2.post(shared.address + "/embed", content=content, headers={"Content-Type": "image/png"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
