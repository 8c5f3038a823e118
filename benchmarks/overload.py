"""Open-loop load at multiples of a server's capacity: goodput, latency and recovery.

    python benchmarks/overload.py                                                   the embedded model
    python benchmarks/overload.py --store DIR --model NAME --kinds image,text
    python benchmarks/overload.py --bin before=OLD/clipworks --bin after=NEW/clipworks   in turn, run by run

For each kind of request and each program: a server is started, its capacity is measured with closed-loop clients,
requests leave at `--factors` times of it whatever the answers do, and the capacity is measured again. Goodput counts
the answers 200 that came while requests were sent, as a share of the mean of both capacities. Recovery is the time from
the end of the load to the next request that is answered 200. A request "unanswered" got no HTTP answer at all: its
connection was refused, reset or closed, or nothing came within `--timeout` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import clipworks_server, describe
from benchmarks.figures import RESULTS, circumstances, column, read_record, write_record
from benchmarks.marked import markdown_table, publish
from benchmarks.payloads import Dialect, own_texts, photographs, raw_images, short_texts
from benchmarks.servers import Server
from clipworks.load import percentile

DEFAULT_OUT = RESULTS / "overload.json"
CAPACITY_CLIENTS = 16
MOST_CONNECTIONS = 900  # the server takes 1,024
UNANSWERED = "unanswered"
_RECOVERY_EVERY_S = 0.05
_RECOVERY_LIMIT_S = 60.0
_SETTLE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Sent:
    """One request: when it was due after the start, how long until its answer, and the status or UNANSWERED."""

    due_s: float
    took_s: float
    status: int | str


class _Connection(asyncio.Protocol):
    """One connection with at most one request on it; of an answer only the status is kept."""

    def __init__(self) -> None:
        self.is_open = True
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or not self._answer or self._answer.done():
            return
        head = head.lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if len(body) >= int(length or 0):
            self._received = b""
            self.is_open = b"connection: close" not in head
            self._answer.set_result(int(head[9:12]))

    def exchange(self, wire: bytes) -> asyncio.Future[int]:
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport and self.is_open:
            self._transport.write(wire)
        else:
            self._answer.set_exception(ConnectionError("closed by the server"))
        return self._answer

    def close(self) -> None:
        if self._transport:
            self._transport.close()


class Sender:
    """Sends prepared requests over connections that it keeps open and opens as many of as it needs, up to a limit.

    With all of them in use a request waits for one: without a limit a process that sends ten thousand requests a second
    soon has no descriptors left, and would count that as requests that the server did not answer. It shares the cores
    with the server, so it does as little for a request as it can.
    """

    def __init__(self, port: int, dialect: Dialect, *, timeout_s: float) -> None:
        lines = [f"{name}: {value}\r\n" for name, value in dialect.headers.items()]
        self._requests = itertools.cycle(
            f"POST {dialect.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {each.content_type}\r\n"
            f"Content-Length: {len(each.body)}\r\n{''.join(lines)}\r\n".encode()
            + each.body
            for each in dialect.payloads
        )
        self._port = port
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)

    async def send(self) -> int | str:
        """The status of the answer. A kept connection that the server had closed meanwhile is replaced, unseen."""
        wire = next(self._requests)
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                while self._idle:
                    with suppress(ConnectionError):
                        return await self._exchange(self._idle.pop(), wire)
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
                return await self._exchange(connection, wire)
        except (OSError, TimeoutError):
            return UNANSWERED

    async def _exchange(self, connection: _Connection, wire: bytes) -> int:
        try:
            status = await connection.exchange(wire)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return status

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def closed_loop(sender: Sender, *, seconds: float) -> float:
    """Answers 200 a second that CAPACITY_CLIENTS clients get."""
    started = time.perf_counter()
    answered = 0

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            status = await sender.send()  # a statement of its own: += would add to the count of before the wait
            answered += status == 200

    await asyncio.gather(*(client() for _ in range(CAPACITY_CLIENTS)))
    return answered / (time.perf_counter() - started)


async def open_loop(sender: Sender, *, rate: float, seconds: float) -> tuple[list[Sent], float, float]:
    """(every request, how long the sending took, recovery in seconds)."""
    started = time.perf_counter()
    sent: list[Sent] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due_s: float) -> None:
        status = await sender.send()
        sent.append(Sent(due_s, time.perf_counter() - started - due_s, status))

    for index in range(int(rate * seconds)):
        due_s = index / rate
        if (wait_s := due_s - (time.perf_counter() - started)) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one(due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    window_s = time.perf_counter() - started
    recovered_s = await recovery(sender)
    while tasks:
        await asyncio.wait(tasks)
    return sent, window_s, recovered_s


async def recovery(sender: Sender) -> float:
    started = time.perf_counter()
    while await sender.send() != 200 and time.perf_counter() - started < _RECOVERY_LIMIT_S:
        await asyncio.sleep(_RECOVERY_EVERY_S)
    return time.perf_counter() - started


def summary(sent: Sequence[Sent], *, window_s: float, recovered_s: float) -> dict[str, Any]:
    """The figures of one open-loop run; times in seconds, None where nothing had that status."""
    answered = sorted(each.took_s for each in sent if each.status == 200)
    refused = sorted(each.took_s for each in sent if each.status in (429, 503))
    in_time = sum(each.status == 200 and each.due_s + each.took_s <= window_s for each in sent)
    return {
        "requests": len(sent),
        "statuses": {str(status): count for status, count in sorted(Counter(s.status for s in sent).items(), key=str)},
        "goodput_per_s": in_time / window_s,
        "p50_s": percentile(answered, 0.5),
        "p99_s": percentile(answered, 0.99),
        "refused_p99_s": percentile(refused, 0.99),
        "recovery_s": recovered_s,
    }


async def measure(port: int, dialect: Dialect, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One server: capacity, each factor, capacity again; the share is taken of the mean of the two around a run."""
    sender = Sender(port, dialect, timeout_s=options.timeout)
    await closed_loop(sender, seconds=options.warmup)
    before = await closed_loop(sender, seconds=options.seconds)
    runs = []
    for factor in options.factors:
        sent, window_s, recovered_s = await open_loop(sender, rate=factor * before, seconds=options.seconds)
        await asyncio.sleep(_SETTLE_S)
        after = await closed_loop(sender, seconds=options.seconds)
        run = summary(sent, window_s=window_s, recovered_s=recovered_s)
        capacity = (before + after) / 2
        runs.append({"factor": factor, "capacity": capacity, "share": run["goodput_per_s"] / capacity, **run})
        before = after
    sender.close()
    return runs


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    spoken = {"image": raw_images(photographs(24), None), "text": own_texts(short_texts(4000), None)}
    settings = dict(pair.split("=", 1) for pair in options.set)
    record: dict[str, Any] = {"kind": "overload", "before": circumstances(), "runs": []}
    record["settings"] = {"model": options.model, "seconds": options.seconds, "repetitions": options.repetitions}
    for repetition in range(options.repetitions):
        for kind in options.kinds.split(","):
            programs = list(options.programs.items())
            for name, program in programs if repetition % 2 == 0 else reversed(programs):
                spec = clipworks_server(
                    name, model=options.model, store=options.store, precision=None, settings=settings
                )
                spec = dataclasses.replace(spec, command=[program, "serve"])
                with Server(spec, RESULTS / "logs" / f"overload_{name}.log") as server:
                    for figures in uvloop.run(measure(spec.port, spoken[kind], options)):
                        found = {"program": name, "kind": kind, "server": describe(spec), **figures}
                        found["peak_mib"] = server.memory().peak_mib
                        record["runs"].append(found)
                        console.print(*rows([found])[0])
    return record | {"after": circumstances()}


_HEAD = ["kind", "load", "program", "capacity/s", "goodput", "min", "200", "429/503", "504", "unanswered", "p50 s"]
_HEAD += ["p99 s", "refused p99 s", "recovery s", "peak MiB"]


def rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each kind, factor and program: medians over the repetitions, the worst goodput, sums of statuses."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for each in runs:
        groups.setdefault((each["kind"], each["factor"], each["program"]), []).append(each)

    def total(group: list[dict[str, Any]], *statuses: str) -> str:
        return str(sum(each["statuses"].get(status, 0) for each in group for status in statuses))

    def middle(group: list[dict[str, Any]], key: str) -> str:
        found = [each[key] for each in group if each[key] is not None]
        return f"{statistics.median(found):.2f}" if found else ""

    return [
        [
            kind,
            f"{factor:g}x",
            program,
            f"{statistics.median(column(group, 'capacity')):.1f}",
            middle(group, "share"),
            f"{min(column(group, 'share')):.2f}",
            total(group, "200"),
            total(group, "429", "503"),
            total(group, "504"),
            total(group, UNANSWERED),
            *(middle(group, key) for key in ("p50_s", "p99_s", "refused_p99_s", "recovery_s")),
            f"{max(column(group, 'peak_mib')):.0f}",
        ]
        for (kind, factor, program), group in groups.items()
    ]


def markdown(record: dict[str, Any]) -> str:
    before, after, settings = record["before"], record["after"], record["settings"]
    facts = (
        f"{settings['model'] or 'the embedded model'}, {before['at_utc']}, {before['cores']} cores of {before['cpu']}, "
        f"load average {before['load_average']} before and {after['load_average']} after; {settings['repetitions']} "
        f"repetitions, {settings['seconds']:g} s a run, requests and server on the same cores."
    )
    return "\n\n".join([facts, markdown_table(_HEAD, rows(record["runs"]))])


def _program(text: str) -> tuple[str, str]:
    name, _, path = text.rpartition("=")
    return name or "clipworks", path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = str(Path(sys.executable).parent / "clipworks")
    parser.add_argument("--bin", dest="programs", action="append", type=_program, metavar="[NAME=]PATH", default=[])
    parser.add_argument("--store", type=Path, help="artifact folder, beside the embedded model")
    parser.add_argument("--model", help="name or name@version; without it the server's default")
    parser.add_argument("--kinds", default="image,text")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.8, 2.0, 10.0], help="of the capacity")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, and of each measurement of capacity")
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help="such as max_wait_s=1")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--write-docs", metavar="BLOCK", help="write the record into the docs' block bench:BLOCK")
    parser.add_argument("--only-docs", action="store_true", help="measure nothing, write the docs from --out")
    options = parser.parse_args()
    options.programs = dict(options.programs or [_program(own)])
    console = Console()
    if not options.only_docs:
        record = run(options, console)
        write_record(record, options.out)
        table = Table(*_HEAD, title=str(options.model or "the embedded model"))
        for row in rows(record["runs"]):
            table.add_row(*row)
        console.print(table)
        console.print(f"Record: {options.out}")
    if options.write_docs:
        record = read_record(options.out)
        for path in publish(options.out, f"{options.write_docs}.json", {options.write_docs: markdown(record)}):
            console.print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
