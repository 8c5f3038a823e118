"""Load on a stand-in server: processes start and end, failures are seen, /metrics is read as the server writes it."""

from __future__ import annotations

import socket
import sys
import textwrap
from pathlib import Path

import httpx2
import psutil
import pytest

from benchmarks.measure import batch_counts, measure, must_succeed
from benchmarks.payloads import Dialect
from benchmarks.servers import Server, ServerSpec, free_port
from clipworks.load import Payload
from service.telemetry import Telemetry

_SCRIPT = textwrap.dedent(
    """
    import subprocess, sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            sum(range(400_000))
            self.answer(500 if self.path == "/bad" else 200, b"{}")
        def do_GET(self):
            self.answer(404, b"")
        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass
    print("child", child.pid, flush=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
    """
)


def _dialect(path: str) -> Dialect:
    return Dialect(path, "*/*", (Payload(body=b"{}", items=3),))


def _spec(script: str = _SCRIPT, first: str = "/good") -> ServerSpec:
    port = free_port()
    command = [sys.executable, "-c", script, str(port)]
    return ServerSpec(name="stand-in", command=command, port=port, first=_dialect(first))


def test_a_server_is_timed_weighed_loaded_and_ended_with_its_children(tmp_path: Path) -> None:
    with Server(_spec(), tmp_path / "log") as server:
        assert server.ready_s > 0
        child = psutil.Process(int((tmp_path / "log").read_text().split()[1]))
        memory = server.memory()
        own = psutil.Process(server.pid).memory_info().rss / 2**20
        assert own < memory.resident_mib <= memory.peak_mib + 1, "the child counts too"
        run = measure(server.spec.url, _dialect("/good"), clients=2, seconds=0.3, warmup_s=0.1, server=server)
        assert must_succeed(run, "good")["items"] == 3 * run["requests"]
        assert run["server_cpu_ms"] > 0
        assert run["batches"] == {}
    with pytest.raises(httpx2.ConnectError):
        httpx2.post(server.spec.url)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_errors_are_not_a_measurement(tmp_path: Path) -> None:
    with Server(_spec(), tmp_path / "log") as server:
        run = measure(server.spec.url, _dialect("/bad"), clients=1, seconds=0.2, warmup_s=0.0)
    assert run["errors"]["500"] > 0
    with pytest.raises(RuntimeError, match=r"bad: 0 answers, errors \{'500'"):
        must_succeed(run, "bad")


def test_a_server_that_ends_or_refuses_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="did not become ready; its log ends:\nno weights"),
        Server(_spec("import sys; sys.exit('no weights')"), tmp_path / "log"),
    ):
        pass
    with pytest.raises(RuntimeError, match="answered 500"), Server(_spec(first="/bad"), tmp_path / "log"):
        pass


def test_a_port_of_somebody_else_is_refused(tmp_path: Path) -> None:
    spec = _spec()
    with (
        socket.create_server(("127.0.0.1", spec.port)),
        pytest.raises(RuntimeError, match="is taken"),
        Server(spec, tmp_path / "log"),
    ):
        pass


def test_batch_sizes_come_from_the_servers_own_metrics() -> None:
    telemetry = Telemetry()
    telemetry.batch("m@1/image_encoder", 1, 0.1)
    earlier = batch_counts(telemetry.render().decode())["m@1/image_encoder"]
    for size in (1, 7, 8):
        telemetry.batch("m@1/image_encoder", size, 0.1)
    telemetry.batch("m@1/text_encoder", 3, 0.1)
    counts = batch_counts(telemetry.render().decode())
    assert counts["m@1/image_encoder"].since(earlier) == {
        "runs": 3,
        "mean": 5.333,
        "sizes": {"<=1.0": 1, "<=8.0": 2},
    }
    assert counts["m@1/text_encoder"].since(None) == {"runs": 1, "mean": 3.0, "sizes": {"<=4.0": 1}}
    assert batch_counts("process_cpu_seconds_total 3.0\n") == {}
