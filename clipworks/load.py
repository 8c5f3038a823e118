"""Load on an HTTP server that costs its maker little: for `clipworks bench`, and for whoever measures a server.

Server and load often share the cores of one machine, so what this module spends it takes from the server: requests are
bytes made beforehand, connections are kept open, answers are counted and thrown away. `LoadResult.own_cpu_share` says
what it did spend.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["closed", "open"]


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One prepared body, and how many items (images, texts) it asks for."""

    body: bytes
    content_type: str = "application/json"
    items: int = 1


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What one run showed. Latencies in milliseconds, of requests answered 2xx; None when there were none.

    errors: HTTP status, "timeout" or "connection" -> requests. In an open loop a latency counts from the moment at
    which the request was due, so a server that falls behind cannot hide its queue.
    own_cpu_share: this process's CPU seconds per second of the measured time.
    """

    mode: Mode
    duration_s: float
    concurrency: int
    offered_rate: float | None
    requests: int
    items: int
    items_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float | None
    errors: dict[str, int]
    own_cpu_share: float

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


async def run_load(
    url: str,
    payloads: Sequence[Payload],
    *,
    mode: Mode = "closed",
    concurrency: int = 8,
    rate: float | None = None,
    duration_s: float = 10.0,
    warmup_s: float = 2.0,
    timeout_s: float = 30.0,
    headers: Mapping[str, str] | None = None,
    seed: int = 0,
) -> LoadResult:
    """POST `payloads` in turn to `url` for `warmup_s` + `duration_s`, and measure the second part.

    closed: `concurrency` clients, each sends its next request when the last one is answered.
    open: `rate` requests per second at random (Poisson) moments, on at most `concurrency` connections.

    Raises:
        ValueError: an argument that makes no sense; the message says which.
        OSError: the server cannot be reached at all.
    """
    if not payloads:
        raise ValueError("payloads is empty")
    if concurrency < 1 or duration_s <= 0 or warmup_s < 0 or timeout_s <= 0:
        raise ValueError("concurrency, duration_s and timeout_s must be positive, warmup_s not negative")
    if (mode == "open") != (rate is not None) or (rate is not None and rate <= 0):
        raise ValueError("mode 'open' needs a positive rate, mode 'closed' none")
    target = _Target.of(url, headers or {})
    prepared = [(target.encode(payload), payload.items) for payload in payloads]
    connections = [await target.connect()]
    run = _Run(target, connections, prepared, concurrency, warmup_s, duration_s, timeout_s)
    try:
        await (run.closed_loop() if rate is None else run.open_loop(rate, random.Random(seed)))
    finally:
        for connection in connections:
            connection.close()
    return run.result(mode, rate)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


@dataclass(frozen=True)
class _Target:
    host: str
    port: int
    tls: ssl.SSLContext | None
    path: str
    head: str

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str]) -> _Target:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an http or https address, got {url!r}")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"Host: {parts.netloc.rpartition('@')[2]}", *(f"{name}: {value}" for name, value in headers.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header holds a line break")
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, path, "\r\n".join(lines))

    def encode(self, payload: Payload) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\n{self.head}\r\nContent-Type: {payload.content_type}\r\n"
        return f"{head}Content-Length: {len(payload.body)}\r\n\r\n".encode("latin-1") + payload.body

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.host, self.port, ssl=self.tls)
        return connection


class _Connection(asyncio.Protocol):
    """One kept-open HTTP/1.1 connection with at most one request in flight; only the status of an answer is kept."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head = _Head(0, 0, False)
        self._read_head = False
        self._answer: asyncio.Future[int] | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, wire: bytes) -> asyncio.Future[int]:
        """The future status; a ConnectionError when the server closes before the answer is complete."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._answer.set_exception(ConnectionError("the connection is closed"))
        else:
            self._transport.write(wire)
        return self._answer

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._read_head:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head, self._read_head = _Head.parse(bytes(self._buffer[:end])), True
            del self._buffer[: end + 4]
        if self._head.chunked:
            if not self._skip_chunks():
                return
        elif len(self._buffer) < self._head.length:
            return
        self._buffer.clear()
        self._read_head = False
        if self._answer and not self._answer.done():
            self._answer.set_result(self._head.status)

    def _skip_chunks(self) -> bool:
        """Drop the complete chunks of the buffer; true when the last one has come."""
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
            if len(self._buffer) < end + 2 + size + 2:
                return False
            if size == 0:
                return True
            del self._buffer[: end + 2 + size + 2]
        return False


@dataclass(frozen=True)
class _Head:
    status: int
    length: int
    chunked: bool

    @classmethod
    def parse(cls, head: bytes) -> _Head:
        first, *lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        chunked = fields.get(b"transfer-encoding", b"").lower() == b"chunked"
        return cls(int(first.split(b" ", 2)[1]), int(fields.get(b"content-length", b"0")), chunked)


class _Run:
    """The counters of one run; time 0 is its start, measured is what ends after `warmup_s`."""

    def __init__(
        self,
        target: _Target,
        connections: list[_Connection],
        payloads: Sequence[tuple[bytes, int]],
        concurrency: int,
        warmup_s: float,
        duration_s: float,
        timeout_s: float,
    ) -> None:
        self._target = target
        self._connections = connections
        self._idle = list(connections)
        self._payloads = cycle(payloads)
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._warmup_s = warmup_s
        self._duration_s = duration_s
        self._began = time.perf_counter()
        self._end = self._began + warmup_s + duration_s
        self._latencies_s: list[float] = []
        self._items = 0
        self._errors: Counter[str] = Counter()
        self._cpu_s = 0.0
        self._open = False

    async def closed_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure_cpu())
            for _ in range(self._concurrency):
                group.create_task(self._client())

    async def open_loop(self, rate: float, chance: random.Random) -> None:
        self._open = True
        free = asyncio.Semaphore(self._concurrency)
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure_cpu())
            while (due := due + chance.expovariate(rate)) < self._end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._exchange(due, free))

    def result(self, mode: Mode, rate: float | None) -> LoadResult:
        ordered = sorted(self._latencies_s)

        def ms(share: float) -> float | None:
            value = percentile(ordered, share)
            return None if value is None else 1000 * value

        return LoadResult(
            mode=mode,
            duration_s=self._duration_s,
            concurrency=self._concurrency,
            offered_rate=rate,
            requests=len(ordered),
            items=self._items,
            items_per_s=self._items / self._duration_s,
            p50_ms=ms(0.50),
            p95_ms=ms(0.95),
            p99_ms=ms(0.99),
            mean_ms=1000 * sum(ordered) / len(ordered) if ordered else None,
            errors=dict(self._errors),
            own_cpu_share=self._cpu_s / self._duration_s,
        )

    async def _measure_cpu(self) -> None:
        await asyncio.sleep(self._warmup_s)
        before = time.process_time()
        await asyncio.sleep(self._end - time.perf_counter())
        self._cpu_s = time.process_time() - before

    async def _client(self) -> None:
        while (now := time.perf_counter()) < self._end:
            if not await self._exchange(now):
                # An error that comes back at once must not turn the load into a busy loop.
                await asyncio.sleep(0.01)

    async def _exchange(self, since: float, free: asyncio.Semaphore | None = None) -> bool:
        """One request and its answer within `timeout_s` of `since`, on an idle connection or a new one.

        Returns true when it was answered 2xx.
        """
        wire, items = next(self._payloads)
        connection: _Connection | None = None
        outcome = "timeout"
        try:
            async with asyncio.timeout(since + self._timeout_s - time.perf_counter()), free or nullcontext():
                connection = await self._connection()
                outcome = str(await connection.send(wire))
        except TimeoutError:
            if connection:
                connection.close()
        except (OSError, ValueError):
            outcome = "connection"
        if connection and connection.open:
            self._idle.append(connection)
        self._count(outcome, items, since, time.perf_counter())
        return outcome.startswith("2")

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        connection = await self._target.connect()
        self._connections.append(connection)
        return connection

    def _count(self, outcome: str, items: int, since: float, ended: float) -> None:
        """A closed loop counts what ends inside the measured time; an open loop what was due inside it."""
        start, moment = self._began + self._warmup_s, since if self._open else ended
        if not start <= moment <= self._end:
            return
        if not outcome.startswith("2"):
            self._errors[outcome] += 1
            return
        self._latencies_s.append(ended - since)
        if ended <= self._end:
            self._items += items
