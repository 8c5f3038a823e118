"""One run of load on one server, with what is needed to believe it: CPU spent by whom, batch sizes, failures."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil

from benchmarks.payloads import Dialect
from benchmarks.servers import Server
from clipworks.load import Mode, run_load

WARMUP_S = 1.0
_BUCKET = re.compile(r'^clipworks_batch_size_bucket\{graph="([^"]+)",le="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)
_SUM = re.compile(r'^clipworks_batch_size_(sum|count)\{graph="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True)
class BatchCounts:
    """How often a graph ran, how many items it took, and the cumulative histogram, as /metrics counts them."""

    runs: float
    items: float
    buckets: dict[str, float]

    def since(self, earlier: BatchCounts | None) -> dict[str, Any]:
        """Mean batch size between two scrapes, and runs by size: "<=8" holds the runs above the bucket before it."""
        earlier = earlier or BatchCounts(0.0, 0.0, {})
        runs, items = self.runs - earlier.runs, self.items - earlier.items
        sizes, below = {}, 0.0
        for edge, count in self.buckets.items():
            so_far = count - earlier.buckets.get(edge, 0.0)
            if so_far > below:
                sizes[f"<={edge}"] = int(so_far - below)
            below = so_far
        return {"runs": int(runs), "mean": round(items / runs, 3) if runs else None, "sizes": sizes}


def batch_counts(metrics: str) -> dict[str, BatchCounts]:
    """The batch size histogram of each graph in a Prometheus text; empty for a server that has none."""
    buckets: dict[str, dict[str, float]] = {}
    totals: dict[str, dict[str, float]] = {}
    for graph, edge, value in _BUCKET.findall(metrics):
        buckets.setdefault(graph, {})[edge] = float(value)
    for kind, graph, value in _SUM.findall(metrics):
        totals.setdefault(graph, {})[kind] = float(value)
    return {
        graph: BatchCounts(runs=total["count"], items=total["sum"], buckets=buckets.get(graph, {}))
        for graph, total in totals.items()
    }


def scrape(url: str) -> dict[str, BatchCounts]:
    answer = httpx2.get(url + "/metrics", timeout=10.0)
    return batch_counts(answer.text) if answer.status_code == 200 else {}


def measure(
    url: str,
    dialect: Dialect,
    *,
    clients: int,
    seconds: float,
    warmup_s: float = WARMUP_S,
    server: Server | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Plain numbers of one run: those of run_load, batch sizes, and CPU milliseconds an item of the server's processes.

    rate: requests a second at random moments (open loop) instead of `clients` that wait for their answers.
    loop_cpu_ms: of that, the server's main thread: HTTP, JSON, tokens, batching.
    foreign_cores: cores that neither the server nor this process used; far from 0, somebody else was measured too.
    """
    mode: Mode = "closed" if rate is None else "open"
    before, cpu_before, loop_before = scrape(url), _cpu(server), _loop(server)
    busy_before, own_before = _busy_s(), time.process_time()
    started = time.perf_counter()
    result = asyncio.run(
        run_load(
            url + dialect.path,
            dialect.payloads,
            mode=mode,
            concurrency=clients,
            rate=rate,
            duration_s=seconds,
            warmup_s=warmup_s,
            timeout_s=60.0,
            headers=dialect.headers,
        )
    )
    elapsed = time.perf_counter() - started
    server_s, loop_s = _cpu(server) - cpu_before, _loop(server) - loop_before
    own_s = time.process_time() - own_before
    foreign = (_busy_s() - busy_before - server_s - own_s) / elapsed if server else None
    batches = {graph: counts.since(before.get(graph)) for graph, counts in scrape(url).items()}
    answered = result.items_per_s * elapsed
    numbers = {key: _rounded(value) for key, value in result.as_dict().items()}
    return {
        **numbers,
        "batches": {graph: counts for graph, counts in batches.items() if counts["runs"]},
        "server_cpu_ms": _rounded(1000 * server_s / answered) if server and answered else None,
        "loop_cpu_ms": _rounded(1000 * loop_s / answered) if server and answered else None,
        "foreign_cores": _rounded(foreign),
    }


def must_succeed(run: dict[str, Any], what: str) -> dict[str, Any]:
    """A run with failures is not a measurement.

    Raises:
        RuntimeError: something was answered with an error, or nothing was answered.
    """
    if run["errors"] or not run["requests"]:
        raise RuntimeError(f"{what}: {run['requests']} answers, errors {run['errors']}")
    return run


def _cpu(server: Server | None) -> float:
    return server.cpu_s() if server else 0.0


def _loop(server: Server | None) -> float:
    return server.main_thread_cpu_s() if server else 0.0


def _busy_s() -> float:
    """CPU seconds that all processes of the machine have used."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
