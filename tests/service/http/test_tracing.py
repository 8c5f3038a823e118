"""Traces of a real server, as a real collector of OTLP over HTTP gets them; and one that never answers."""

import base64
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from service.tracing import CLOSE_S, open_tracing

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
trace_pb2 = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2")
SECRET = "s3cret"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """POST /v1/traces. `answers` unset: it takes a request and never answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[Any] = []
        self.answers = threading.Event()
        self.asked = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self, request_id: str, *, timeout_s: float = 20) -> list[Any]:
        """All spans of the trace in which the request is; the server sends them together."""
        end = time.monotonic() + timeout_s
        while True:
            every = [s for each in self.received for r in each.resource_spans for p in r.scope_spans for s in p.spans]
            root = next((s for s in every if attributes(s).get("clipworks.request_id") == request_id), None)
            if root is not None:
                return [s for s in every if s.trace_id == root.trace_id]
            assert time.monotonic() < end, f"no span of {request_id} among {len(every)}"
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.asked.set()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.wait()
        assert self.path == "/v1/traces"
        self.server.received.append(service.ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield collector
        collector.answers.set()
        collector.shutdown()
        thread.join()


def start(serve: Callable[..., Any], collector: Collector, **settings: object) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        server = serve(log_format="json", **settings)
    server.wait_for("ready")
    return server


@pytest.fixture(scope="module")
def collector() -> Generator[Collector]:
    with collecting() as collector:
        collector.answers.set()
        yield collector


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any], collector: Collector) -> Any:
    return start(serve_module, collector)


def embed(server: Any, request_id: str, *, images: list[bytes], **headers: str) -> httpx2.Response:
    inputs = [{"image": base64.b64encode(each).decode()} for each in images]
    return httpx2.post(
        server.address + "/embed", json={"inputs": inputs}, headers={"X-Request-Id": request_id, **headers}
    )


def test_a_request_is_a_span_of_the_caller_s_trace_and_its_stages_are_inside(
    server: Any, collector: Collector, jpeg: bytes
) -> None:
    done = embed(server, "traced-1", images=[jpeg] * 2, traceparent=f"00-{TRACE}-{CALLER}-01")
    assert done.status_code == 200
    root, *stages = sorted(collector.spans("traced-1"), key=lambda span: span.kind != trace_pb2.Span.SPAN_KIND_SERVER)
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, CALLER)
    assert (root.name, root.kind) == ("POST /embed", trace_pb2.Span.SPAN_KIND_SERVER)
    assert root.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "http.response.body.size": len(done.content),
        "network.protocol.version": "1.1",
        "url.path": "/embed",
        "url.scheme": "http",
        "clipworks.request_id": "traced-1",
        "clipworks.model": "tiny@1",
    }
    timed = {each.partition(";")[0].strip() for each in done.headers["server-timing"].split(",")} - {"total"}
    assert {"decode", "queue", "infer"} <= timed == {each.name for each in stages}
    for stage in stages:
        assert stage.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= root.end_time_unix_nano
        assert attributes(stage)["clipworks.items"] == 2
    by_name = {each.name: each for each in stages}
    order = [by_name[name].start_time_unix_nano for name in ("decode_wait", "decode", "queue", "infer")]
    assert order == sorted(order)
    resource = {
        each.key: each.value.string_value for each in collector.received[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "clipworks"
    line = next(each for each in map(json.loads, server.log) if each.get("request_id") == "traced-1")
    assert line["trace_id"] == TRACE


def test_a_request_without_a_caller_is_a_trace_of_its_own_and_names_nothing_of_a_user(
    server: Any, collector: Collector
) -> None:
    address = f"{server.address}/collections/{SECRET}/items/{SECRET}.jpg?filter={SECRET}"
    headers = {"X-Request-Id": "own-1", "User-Agent": SECRET, "Authorization": f"Bearer {SECRET}"}
    httpx2.get(address, headers={**headers, "traceparent": "00-not-a-trace-01"})
    (root,) = collector.spans("own-1")
    assert root.parent_span_id == b""
    assert root.name == "GET /collections/{name}/items/{id:path}"
    assert attributes(root)["url.path"] == "/collections/{name}/items/{id:path}"
    httpx2.get(f"{server.address}/{SECRET}", headers=headers | {"X-Request-Id": "own-2"})
    (lost,) = collector.spans("own-2")
    assert (lost.name, attributes(lost)["url.path"], "http.route" in attributes(lost)) == ("GET", "REDACTED", False)
    assert root.trace_id != lost.trace_id
    assert SECRET not in str(collector.received)


def test_what_fails_here_is_an_error_and_what_the_client_did_wrong_is_none(
    server: Any, collector: Collector, jpeg: bytes
) -> None:
    late = embed(server, "late-1", images=[jpeg] * 60, **{"X-Request-Timeout-Ms": "1"})
    wrong = embed(server, "wrong-1", images=[b"no image"])
    assert (late.status_code, wrong.status_code) == (504, 422)
    found = {}
    for name in ("late-1", "wrong-1"):
        (found[name],) = (s for s in collector.spans(name) if s.kind == trace_pb2.Span.SPAN_KIND_SERVER)
    assert found["late-1"].status.code == trace_pb2.Status.STATUS_CODE_ERROR
    assert attributes(found["late-1"])["error.type"] == "504"
    assert found["wrong-1"].status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert attributes(found["wrong-1"])["http.response.status_code"] == 422


def test_what_the_caller_does_not_sample_and_probes_are_no_spans(server: Any, collector: Collector) -> None:
    httpx2.get(
        server.address + "/models", headers={"X-Request-Id": "unsampled", "traceparent": f"00-{TRACE}-{CALLER}-00"}
    )
    httpx2.get(server.address + "/readyz", headers={"X-Request-Id": "probe"})
    httpx2.get(server.address + "/models", headers={"X-Request-Id": "last"})
    collector.spans("last")
    assert not {"unsampled", "probe"} & set(str(collector.received).split('"'))


def test_a_collector_that_never_answers_delays_neither_requests_nor_the_end(
    serve: Callable[..., Any], jpeg: bytes
) -> None:
    with collecting() as hanging:
        server = start(serve, hanging)
        for number in range(2):
            assert embed(server, f"hanging-{number}", images=[jpeg]).status_code == 200
            assert hanging.asked.wait(20)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < CLOSE_S + 5
        assert any("the last spans could not be sent within 2 s" in line for line in server.log)
        assert not hanging.received


def refused(environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert open_tracing(environment, version="1") is None
    return caplog.text


def test_without_an_endpoint_or_the_extra_there_are_no_traces(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
    assert refused({}, caplog) == ""
    assert refused({**endpoint, "OTEL_SDK_DISABLED": "true"}, caplog) == ""
    assert refused({**endpoint, "OTEL_TRACES_EXPORTER": "none"}, caplog) == ""
    assert "OTEL_TRACES_EXPORTER is console" in refused({**endpoint, "OTEL_TRACES_EXPORTER": "console"}, caplog)
    assert "http/protobuf only" in refused({**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, caplog)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert "pip install 'clipworks[otel]'" in refused(endpoint, caplog)
