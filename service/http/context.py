"""The context of one HTTP request, kept in its ASGI scope: id, clock, rights and memory."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from service.http.errors import Refusal
from service.logs import begin_notes
from service.timing import Budget, Timings

if TYPE_CHECKING:
    from service.http.body_memory import BodyShare

_SCOPE_KEY = "clipworks"
# Where the protocol leaves the status of its own answer, when it ended a request while its body was still coming.
CLOSED_WITH = "clipworks.closed_with"
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TIMEOUT_HEADER = b"x-request-timeout-ms"
_T = TypeVar("_T")


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class RequestContext:
    """Identity, clock, rights and memory of a request; `caller` is who asks, to share what is scarce."""

    def __init__(self, request_id: str, body: BodyShare, *, caller: str = "") -> None:
        self.request_id = request_id
        self.notes = begin_notes(request_id)
        self.body = body
        self.caller = caller
        self.started = time.perf_counter()
        self.timings = Timings()
        self.is_admin = False


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own X-Request-Id if it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{random.getrandbits(64):016x}"  # nobody is let in by it, so the system need not be asked for each


def put_context(scope: Scope, context: RequestContext) -> None:
    scope[_SCOPE_KEY] = context


def context_of(scope: Scope) -> RequestContext:
    return scope[_SCOPE_KEY]


def budget_of(scope: Scope, *, default_s: float, cap_s: float) -> Budget:
    """What the request may spend: its X-Request-Timeout-Ms, at most `cap_s`, else `default_s`; from now on.

    Raises:
        Refusal: 422, the header is not a whole number of milliseconds above 0.
    """
    timings = context_of(scope).timings
    for name, value in scope["headers"]:
        if name == _TIMEOUT_HEADER:
            if not (value.isdigit() and len(value) <= 9 and int(value) > 0):
                raise Refusal(
                    422,
                    "invalid_header",
                    "X-Request-Timeout-Ms takes a whole number of milliseconds, 1 to 999999999",
                    param="X-Request-Timeout-Ms",
                )
            return Budget.of(min(int(value) / 1000, cap_s), timings)
    return Budget.of(default_s, timings)


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Await `work`, and cancel it as soon as the client goes away; the body must have been read.

    Raises:
        ClientGone: it went.
    """
    task = asyncio.current_task()
    if task is None:
        return await work
    gone = False

    async def watch(receive: Receive) -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.get_running_loop().create_task(watch(request.receive))
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
