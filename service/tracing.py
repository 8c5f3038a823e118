"""OpenTelemetry traces: one server span a request, and inside it one span for each stage that was timed.

The spans are made here, after the request, from times that are taken anyway. An instrumentation of the framework would
stand inside our outermost layer, would not see what that refuses, and writes paths and messages of exceptions into its
spans, which name what users stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from service.timing import Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("clipworks.server")
Headers = Iterable[tuple[bytes, bytes]]
CLOSE_S = 2.0
"""What the last spans may take on their way out, when the server stops."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_EXTRA = "otel"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_COMPLAINTS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
_QUIET_S = 60.0


def open_tracing(environment: Mapping[str, str], *, version: str) -> Tracing | None:
    """Tracing as the variables of OpenTelemetry say; the exporter and the sampler read most of them themselves.

    None without an endpoint. None also where there is one and it cannot be used, and the log says why.
    """
    if not any(environment.get(name) for name in _ENDPOINTS):
        return None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if (exporter := environment.get("OTEL_TRACES_EXPORTER") or "otlp") != "otlp":
        if exporter != "none":
            log.warning("no traces: OTEL_TRACES_EXPORTER is %s, this server knows otlp only", exporter)
        return None
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        log.warning("no traces: the protocol of OTLP is %s, this server knows %s only", protocol, _PROTOCOL)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces: OpenTelemetry is not installed: pip install 'clipworks[%s]'", _EXTRA)
        return None
    for name in _COMPLAINTS:
        logging.getLogger(name).addFilter(_OneAMinute())
    is_named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if is_named else {"service.name": "clipworks"}
    provider = TracerProvider(resource=Resource.create({**name, "service.version": version}), shutdown_on_exit=False)
    try:
        processor = BatchSpanProcessor(OTLPSpanExporter())
    except ValueError as error:
        log.warning("no traces: a variable of OpenTelemetry has a value that it does not know: %s", error)
        return None
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("clipworks", version), processor)


class Tracing:
    """Spans of one server. They are sent by a thread of the library; what its queue does not hold is dropped."""

    def __init__(self, tracer: Tracer, processor: BatchSpanProcessor) -> None:
        from opentelemetry.propagate import get_global_textmap

        self._tracer = tracer
        self._processor = processor
        self._propagated = {name.lower().encode("latin-1") for name in get_global_textmap().fields}

    def begin(self, *, method: str, headers: Headers, started: float) -> RequestSpan | None:
        """The span of a request that began at `started` (perf_counter), below the caller's traceparent if it has one.

        None: it is not sampled.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in self._propagated
        }
        known = method if method in _METHODS else "_OTHER"
        name = method if method in _METHODS else "HTTP"
        zero_ns = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(
            name,
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": known, "url.scheme": "http"},
            start_time=zero_ns + int(1e9 * started),
        )
        return RequestSpan(self._tracer, span, name, zero_ns) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left; returns after CLOSE_S at the latest, whatever the collector does."""
        closing = threading.Thread(target=self._processor.shutdown, name="close traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("the last spans could not be sent within %g s", CLOSE_S)


class RequestSpan:
    """The span of one request, and the timings that its stages become."""

    def __init__(self, tracer: Tracer, span: Span, name: str, zero_ns: int) -> None:
        """name: of the span, without the route. zero_ns: perf_counter plus this, in nanoseconds, is the time of day."""
        self.timings = StageTimes()
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self._tracer = tracer
        self._span = span
        self._name = name
        self._zero_ns = zero_ns

    def end(
        self, *, route: str | None, path: str, status: int, attributes: Mapping[str, Any], error: str | None
    ) -> None:
        """The request is over. route: None if no route took it. path: shown only where it is a route's own.

        error: the name of an exception that nobody expected.
        """
        from opentelemetry.trace import StatusCode, set_span_in_context

        span = self._span
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        span.set_attribute("url.path", path if path == route else route or "REDACTED")
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{self._name} {route}")
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500 or error:
            span.set_attribute("error.type", error or str(status))
            span.set_status(StatusCode.ERROR)
        context = set_span_in_context(span)
        for name, stage in self.timings.stages.items():
            child = self._tracer.start_span(
                name,
                context=context,
                attributes={"clipworks.items": stage.count, "clipworks.slowest_ms": round(1000 * stage.slowest_s, 3)},
                start_time=self._ns(stage.started),
            )
            child.end(self._ns(stage.ended))
        span.end(self._ns(time.perf_counter()))

    def _ns(self, seconds: float) -> int:
        return self._zero_ns + int(1e9 * seconds)


class _Stage:
    __slots__ = ("count", "ended", "slowest_s", "started")

    def __init__(self, started: float, ended: float) -> None:
        self.count = 0
        self.slowest_s = 0.0
        self.started = started
        self.ended = ended


class StageTimes(Timings):
    """Timings that also know when each stage began and ended: from its first item to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, _Stage] = {}

    def add(self, name: str, seconds: float, *, ended: float | None = None) -> None:
        super().add(name, seconds)
        ended = time.perf_counter() if ended is None else ended
        started = ended - seconds
        stage = self.stages.get(name)
        if stage is None:
            stage = self.stages[name] = _Stage(started, ended)
        stage.count += 1
        stage.slowest_s = max(stage.slowest_s, seconds)
        stage.started = min(stage.started, started)
        stage.ended = max(stage.ended, ended)


class _OneAMinute(logging.Filter):
    """A collector that is away is worth a line, not one for each batch of spans and each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _QUIET_S
        return True
