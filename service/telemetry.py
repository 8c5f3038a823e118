"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """Metrics of one server, in a registry of its own. Every label comes from a closed set, or from the store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "clipworks_requests", "Answered requests", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "clipworks_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._stage_seconds = Histogram(
            "clipworks_stage_seconds", "Time of a stage of a request", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._batch_size = Histogram(
            "clipworks_batch_size", "Items of a model run", ["graph"], buckets=_BATCHES, registry=registry
        )
        self._batch_seconds = Histogram(
            "clipworks_batch_seconds", "Time of a model run", ["graph"], buckets=_SECONDS, registry=registry
        )
        self._queue_depth = Gauge("clipworks_queue_depth", "Items that wait", ["graph"], registry=registry)
        self._item_errors = Counter("clipworks_item_errors", "Items refused or failed", ["code"], registry=registry)
        self._loaded = Gauge("clipworks_model_loaded", "1 while the model runs", ["model"], registry=registry)
        self._ready = Gauge("clipworks_ready", "1 while /readyz answers 200", registry=registry)
        self._collections = Gauge("clipworks_collections", "Collections", registry=registry)
        self._collection_items = Gauge("clipworks_collection_items", "Items of all collections", registry=registry)
        self._thumbnails = Gauge("clipworks_collection_thumbnails", "Stored thumbnails", registry=registry)
        self._thumbnail_bytes = Gauge(
            "clipworks_collection_thumbnail_bytes", "Bytes of stored thumbnails", registry=registry
        )
        self._connections = Gauge("clipworks_connections", "Open connections", registry=registry)
        self._body_bytes = Gauge("clipworks_body_bytes", "Bytes of request bodies in work", registry=registry)
        self._cut = Counter("clipworks_connections_cut", "Connections cut or refused", ["reason"], registry=registry)
        self.in_flight = Gauge("clipworks_requests_in_flight", "Requests being answered", registry=registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def shed(self, route: str, count: int) -> None:
        """So many requests were refused by their heads: they took no time that is worth a histogram."""
        self._requests.labels(route, "POST", "429").inc(count)

    def stage(self, name: str, seconds: float) -> None:
        self._stage_seconds.labels(name).observe(seconds)

    def batch(self, graph: str, size: int, seconds: float) -> None:
        self._batch_size.labels(graph).observe(size)
        self._batch_seconds.labels(graph).observe(seconds)

    def queue(self, graph: str, depth: int) -> None:
        self._queue_depth.labels(graph).set(depth)

    def item_error(self, code: str) -> None:
        self._item_errors.labels(code).inc()

    def model_loaded(self, reference: str, loaded: bool) -> None:
        self._loaded.labels(reference).set(int(loaded))

    def collections(self, *, collections: int, items: int, thumbnails: int, thumbnail_bytes: int) -> None:
        """What all collections hold together."""
        self._collections.set(collections)
        self._collection_items.set(items)
        self._thumbnails.set(thumbnails)
        self._thumbnail_bytes.set(thumbnail_bytes)

    def connection_cut(self, reason: str) -> None:
        self._cut.labels(reason).inc()

    def watch_bodies(self, held_bytes: Callable[[], int]) -> None:
        """Ask `held_bytes` at each scrape."""
        self._body_bytes.set_function(held_bytes)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Ask `count` at each scrape."""
        self._connections.set_function(count)

    def watch_readiness(self, ready: Callable[[], bool]) -> None:
        """Ask `ready` at each scrape."""
        self._ready.set_function(lambda: float(ready()))

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
