"""Servers under test as processes: started with stated settings, timed until the first answer, weighed, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx2
import psutil

from benchmarks.payloads import Dialect, send

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to start one server and what to ask it first.

    first: the embedding whose first 200 answer ends the start-up; a health route would only say what it believes.
    """

    name: str
    command: Sequence[str]
    port: int
    first: Dialect
    environment: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Memory:
    """Of a server's whole process tree, in MiB. `peak` is the sum of each process's own high-water mark."""

    resident_mib: float
    peak_mib: float


class Server:
    """A running server; use as a context manager, so that nothing is left behind."""

    def __init__(self, spec: ServerSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.ready_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if _port_taken(self.spec.host, self.spec.port):
            raise RuntimeError(f"port {self.spec.port} is taken: {self.spec.name} would not be what answers")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                list(self.spec.command),
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.spec.environment},
                start_new_session=True,
            )
        try:
            self._wait_ready(started)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.spec.name} is not running")
        return self._process.pid

    def memory(self) -> Memory:
        fields = [_status_kib(process.pid) for process in _tree(self.pid)]
        return Memory(
            resident_mib=sum(f.get("VmRSS", 0) for f in fields) / 1024,
            peak_mib=sum(f.get("VmHWM", 0) for f in fields) / 1024,
        )

    def cpu_s(self) -> float:
        """User and system seconds that the process tree has used so far."""
        times = [process.cpu_times() for process in _tree(self.pid)]
        return sum(t.user + t.system for t in times)

    def main_thread_cpu_s(self) -> float:
        """Seconds that the main thread, in both servers the event loop, has used; ticks of 10 ms."""
        stat = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _wait_ready(self, started: float) -> None:
        while time.perf_counter() - started < READY_TIMEOUT_S:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                answer = send(self.spec.url, self.spec.first)
            except httpx2.TransportError:
                time.sleep(_POLL_S)
                continue
            if answer.status_code == 200:
                self.ready_s = time.perf_counter() - started
                return
            if answer.status_code not in (429, 503):
                raise RuntimeError(f"{self.spec.name} answered {answer.status_code}: {answer.content[:300]!r}")
            time.sleep(_POLL_S)
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{self.spec.name} did not become ready; its log ends:\n{tail}")

    def _stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group is this server's own: start_new_session above
        self._process.wait()
        self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _port_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _status_kib(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) for name, value in pairs}
