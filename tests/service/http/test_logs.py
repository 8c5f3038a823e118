"""The log of a server as JSON: every line of its process parses, has the request's id, and says nothing of a user's."""

import base64
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from typing import Any

import httpx2
import psutil
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.logs import configure_logging
from service.routes.operations import router

SECRET = "s3cret"  # in everything that a user says
HOSTILE_IDS = ('{"level": "forged"}', "a\tforged", "forged" * 30, "forged é", "")


def records(lines: list[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in list(lines)]
    for each in found:
        assert {"time", "level", "logger", "message"} <= each.keys()
        assert datetime.fromisoformat(each["time"]).utcoffset() == timedelta(0)
        assert each["time"].endswith("Z")
    return found


def wait_for(true: Callable[[], Any], *, timeout_s: float = 20) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any]) -> Generator[Any]:
    """Its decode processes say how they crash, in words of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONFAULTHANDLER", "1")
        server = serve_module(
            log_format="json", decode_workers=2, decode_timeout_s=0.4, drain_grace_s=2, max_itemz="misspelt"
        )
    server.wait_for("listening on")
    while httpx2.get(server.address + "/readyz").status_code != 200:
        time.sleep(0.01)
    server.wait_for("ready")
    return server


def accesses(server: Any) -> list[dict[str, Any]]:
    return [each for each in records(server.log) if each["message"] == "request"]


def access(server: Any, request_id: str) -> dict[str, Any]:
    return wait_for(lambda: next((each for each in accesses(server) if each["request_id"] == request_id), None))


def decoders(server: Any) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [each for each in children if "service.decoding.child" in each.cmdline()]


def both_decoders(server: Any, jpeg: bytes) -> list[psutil.Process]:
    """When they have begun: one or two were started by this request."""
    image = {"image": base64.b64encode(jpeg).decode()}
    assert httpx2.post(server.address + "/embed", json={"inputs": [image] * 4}).status_code == 200
    # A limit of memory is the last that such a process sees to before it says that it is ready.
    wait_for(lambda: sum(each.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY for each in decoders(server)) == 2)
    time.sleep(0.2)
    return decoders(server)


def test_a_request_is_one_line_with_its_template_and_no_content(server: Any) -> None:
    done = httpx2.post(server.address + "/embed", json={"inputs": [SECRET]}, headers={"X-Request-Id": "mine-1"})
    assert done.headers["x-request-id"] == "mine-1"
    line = access(server, "mine-1")
    assert line.pop("duration_ms") > 0
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "clipworks.http",
        "message": "request",
        "request_id": "mine-1",
        "method": "POST",
        "path": "/embed",
        "status": 200,
        "bytes": len(done.content),
        "model": "tiny@1",
    }
    refused = httpx2.get(f"{server.address}/collections/{SECRET}/items/{SECRET}.jpg?filter={SECRET}")
    line = access(server, refused.headers["x-request-id"])
    assert (line["path"], line["status"]) == ("/collections/{name}/items/{id:path}", refused.status_code)
    assert "model" not in line
    lost = httpx2.get(f"{server.address}/{SECRET}?labels={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    assert access(server, lost.headers["x-request-id"])["path"] == "unmatched"
    assert SECRET not in "".join(server.log + server.lines)


@pytest.mark.parametrize("given_id", HOSTILE_IDS)
def test_an_id_that_is_no_word_is_replaced(server: Any, given_id: str) -> None:
    done = httpx2.get(server.address + "/models", headers={"X-Request-Id": given_id.encode("latin-1")})
    assert access(server, done.headers["x-request-id"])["status"] == 200
    assert "forged" not in "".join(server.log)


def test_a_header_that_goes_on_in_a_second_line_breaks_none(server: Any) -> None:
    sent = b'GET /models HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\n {"level": "forged"}\r\nConnection: close\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass
    records(server.log)
    assert "forged" not in "".join(server.log)


def test_what_a_child_says_of_its_crash_is_records(server: Any, jpeg: bytes) -> None:
    children = both_decoders(server, jpeg)
    for child in children:
        child.send_signal(signal.SIGSEGV)

    def said() -> list[dict[str, Any]]:
        return [each for each in records(server.log) if each["logger"] == "clipworks.decode"]

    wait_for(lambda: str(said()).count("Segmentation fault") == 2)
    assert {each.get("pid") for each in said()} == {child.pid for child in children}
    assert not [each for each in said() if "request_id" in each]


def test_the_image_that_was_too_slow_is_told_by_its_request(server: Any, jpeg: bytes) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-Id": "slow-1"}
    for child in both_decoders(server, jpeg):
        child.send_signal(signal.SIGSTOP)
    done = httpx2.post(server.address + "/embed", content=jpeg, headers=headers, timeout=30)
    assert done.status_code == 413
    line = next(each for each in records(server.log) if "its process was killed" in each["message"])
    assert (line["request_id"], line["level"]) == ("slow-1", "warning")


def test_probes_are_no_lines_and_a_change_of_readiness_is_one(server: Any) -> None:
    """The last one: it stops the server."""
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert httpx2.get(server.address + path).status_code == 200
    last = httpx2.get(server.address + "/openapi.json").headers["x-request-id"]
    access(server, last)
    server.process.send_signal(signal.SIGTERM)
    with httpx2.Client(base_url=server.address) as client:
        wait_for(lambda: client.get("/readyz").status_code == 503)
        for _ in range(3):
            assert client.get("/readyz").status_code == 503
    assert server.wait() == 0
    assert not {each["path"] for each in accesses(server)} & {"/livez", "/readyz", "/health", "/metrics"}
    said = [each["message"] for each in records(server.log) if each["message"].startswith(("ready", "not ready"))]
    assert said[-1] == "not ready: draining"
    assert said.count("not ready: draining") == 1
    assert said[:-1] in ([], ["not ready: starting", "ready"])
    assert [each["message"].partition(" ")[0] for each in records(server.lines)] == ["listening", "ready"]
    first = records(server.log)[0]
    assert (first["level"], "CLIPWORKS_MAX_ITEMZ" in first["message"]) == ("warning", True)


def test_a_server_that_cannot_start_says_so_in_json(serve: Callable[..., Any]) -> None:
    server = serve(log_format="json", port="many")
    assert server.wait() == 2
    (line,) = records(server.log)
    assert (line["level"], "CLIPWORKS_PORT" in line["message"]) == ("critical", True)
    assert server.lines == []


@pytest.fixture
def logged() -> Generator[Callable[..., io.StringIO]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()

    def configure(least: str = "info") -> io.StringIO:
        configure_logging(least, form="json", stream=stream)
        return stream

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_defect_is_one_line_with_its_traceback(make_app: Callable[..., FastAPI], logged: Callable[..., Any]) -> None:
    app = make_app(access_log=True)

    @app.get("/defect")
    async def defect() -> None:
        raise RuntimeError("line 1\nline 2")

    stream = logged()
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/defect", headers={"X-Request-Id": "broken-1"}).status_code == 500
    lines = records(stream.getvalue().splitlines())
    error, request = (each for each in lines if each.get("request_id") == "broken-1")
    assert (error["level"], error["message"]) == ("error", "internal error")
    assert "RuntimeError: line 1\nline 2" in error["exception"]
    assert (request["path"], request["status"]) == ("/defect", 500)


def test_probes_are_logged_at_debug(make_app: Callable[..., FastAPI], logged: Callable[..., Any]) -> None:
    app = make_app(access_log=True)
    stream = logged("debug")
    with TestClient(app) as client:
        client.get("/livez")
        client.delete("/livez")
    lines = [each for each in records(stream.getvalue().splitlines()) if each["message"] == "request"]
    assert [(each["level"], each["path"], each["status"]) for each in lines] == [
        ("debug", "/livez", 200),
        ("info", "unmatched", 405),
    ]
    assert {"/livez", "/readyz", "/health", "/metrics"} < {route.path for route in router.routes}  # type: ignore[attr-defined]


STRAY = """
import sys, threading, warnings
from service.logs import configure_logging, log_what_python_prints
configure_logging("info", form="json")
log_what_python_prints()
warnings.warn("two\\nlines", RuntimeWarning)
def fail(): raise ValueError("in a\\nthread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Bad:
    def __del__(self): raise ValueError("not\\nraisable")
Bad()
raise ValueError("the\\nend")
"""


def test_what_python_would_print_is_records() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, "-c", STRAY], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = records(done.stderr.splitlines())
    assert [each["logger"] for each in lines] == ["py.warnings", *["clipworks.server"] * 3]
    assert "two\nlines" in lines[0]["message"]
    assert ["in a\nthread" in lines[1]["exception"], "not\nraisable" in lines[2]["exception"]] == [True, True]
    assert "the\nend" in lines[3]["exception"]
