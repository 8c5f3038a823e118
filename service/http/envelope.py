"""The outermost ASGI layer: request ids, timing headers, metrics, the access log, and the last line of defence."""

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

log = logging.getLogger("clipworks.http")
_CLIENT_GONE = 499


class Envelope:
    """Wraps the whole app. HEAD is answered as GET without its body, which the server leaves out."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry, bodies: BodyMemory, access_log: bool) -> None:
        self.app = app
        self._telemetry = telemetry
        self._bodies = bodies
        self._access_log = access_log

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
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, context)
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
        except Exception:
            log.exception("internal error", extra={"fields": {"request": context.request_id}})
            if status:
                raise
            await internal_problem(context.request_id).response()(scope, receive, send_with_headers)
        finally:
            context.body.release()
            self._telemetry.in_flight.dec()
            self._record(scope, context, status)

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        seconds = time.perf_counter() - context.started
        # A method that a path does not take is the client's invention, as is a path that is not there.
        route = "unmatched" if status == 405 else getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.request(route, scope["method"], status, seconds)
        for name, spent in context.timings.seconds.items():
            self._telemetry.stage(name, spent)
        if self._access_log:
            fields: dict[str, Any] = {
                "request": context.request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            log.info("request", extra={"fields": fields})


def _add_headers(message: MutableMapping[str, Any], context: RequestContext) -> None:
    total = f"total;dur={1000 * (time.perf_counter() - context.started):.2f}"
    stages = context.timings.header()
    message["headers"] = [
        *message.get("headers", ()),
        (b"x-request-id", context.request_id.encode("ascii")),
        (b"server-timing", (f"{stages}, {total}" if stages else total).encode("ascii")),
    ]
