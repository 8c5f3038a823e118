"""The outermost ASGI layer: request ids, timing headers, metrics, access log, traces, and the last line of defence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.body_memory import BodyMemory
from service.http.context import CLOSED_WITH, ClientGone, RequestContext, put_context, request_id
from service.http.errors import Problem, internal_problem
from service.telemetry import Telemetry
from service.tracing import RequestSpan, Tracing

log = logging.getLogger("clipworks.http")
_CLIENT_GONE = 499
# Asked every few seconds by machines: no trace, and no line above debug while they are answered.
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_UNMATCHED = "unmatched"


class Envelope:
    """Wraps the whole app. HEAD is answered as GET without its body, which the server leaves out."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        telemetry: Telemetry,
        bodies: BodyMemory,
        access_log: bool,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self._telemetry = telemetry
        self._bodies = bodies
        self._access_log = access_log
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        address = scope.get("client")
        context = RequestContext(
            request_id(scope["headers"]), self._bodies.share(), caller=address[0] if address else ""
        )
        put_context(scope, context)
        span = None
        if self._tracing is not None and scope["path"] not in PROBES:
            span = self._tracing.begin(method=scope["method"], headers=scope["headers"], started=context.started)
            if span is not None:
                context.timings = span.timings
                context.notes.trace_id = span.trace_id
        status = sent_bytes = 0
        defect: str | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, context)
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        self._telemetry.in_flight.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        except ClientGone:
            status = scope.get(CLOSED_WITH, _CLIENT_GONE)
        except asyncio.CancelledError:
            if not status:  # the drain is over: the client learns that it may try elsewhere
                problem = Problem(503, "the server stopped before the request was done", "draining")
                await problem.response({"Connection": "close"})(scope, receive, send_with_headers)
        except Exception as error:
            defect = type(error).__name__
            log.exception("internal error")
            if status:
                raise
            await internal_problem(context.request_id).response()(scope, receive, send_with_headers)
        finally:
            context.body.release()
            self._telemetry.in_flight.dec()
            self._record(scope, context, status, sent_bytes)
            if span is not None:
                _end(span, scope, context, status, sent_bytes, defect)

    def _record(self, scope: Scope, context: RequestContext, status: int, sent_bytes: int) -> None:
        seconds = time.perf_counter() - context.started
        # A method that a path does not take is the client's invention, as is a path that is not there.
        route = _UNMATCHED if status == 405 else getattr(scope.get("route"), "path", _UNMATCHED)
        self._telemetry.request(route, scope["method"], status, seconds)
        for name, spent in context.timings.seconds.items():
            self._telemetry.stage(name, spent)
        if not self._access_log:
            return
        # What /readyz says is logged when it changes.
        is_quiet = scope["path"] in PROBES and (status < 400 or status == 503)
        level = logging.DEBUG if is_quiet else logging.INFO
        if log.isEnabledFor(level):
            fields: dict[str, Any] = {
                "method": scope["method"],
                "path": route,  # the template: what stands in its place may be a user's
                "status": status,
                "duration_ms": round(seconds * 1000, 2),
                "bytes": sent_bytes,
            }
            if context.notes.model is not None:
                fields["model"] = context.notes.model
            log.log(level, "request", extra={"fields": fields})


def _end(
    span: RequestSpan, scope: Scope, context: RequestContext, status: int, sent_bytes: int, defect: str | None
) -> None:
    span.end(
        route=None if status == 405 else getattr(scope.get("route"), "path", None),
        path=scope["path"],
        status=status,
        attributes={
            "network.protocol.version": scope.get("http_version"),
            "http.response.body.size": sent_bytes,
            "clipworks.request_id": context.request_id,
            "clipworks.model": context.notes.model,
        },
        error=defect,
    )


def _add_headers(message: MutableMapping[str, Any], context: RequestContext) -> None:
    total = f"total;dur={1000 * (time.perf_counter() - context.started):.2f}"
    stages = context.timings.header()
    message["headers"] = [
        *message.get("headers", ()),
        (b"x-request-id", context.request_id.encode("ascii")),
        (b"server-timing", (f"{stages}, {total}" if stages else total).encode("ascii")),
    ]
