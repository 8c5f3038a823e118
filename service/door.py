"""The cheapest answer there is: while many requests are refused, more of their kind are refused by their heads alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import OVERLOADED, Problem
from service.faults import Overloaded

# Up to so many refusals a second each is made with full knowledge of the request: that is affordable.
_STORM_PER_S = 50
_MAX_KINDS = 64
# What is not known from a head: which encoder a request is for. Its kind stands for that.
Kind = tuple[str, bytes, bytes]


class Refusals:
    """How many there were in the last second, roughly: those of this second and the rest of the one before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._now = 0
        self._before = 0

    def add(self) -> None:
        self._turn()
        self._now += 1

    @property
    def per_s(self) -> float:
        share = self._turn()
        return self._now + self._before * (1 - share)

    def _turn(self) -> float:
        now = self._clock()
        second = int(now)
        if second != self._second:
            self._before = self._now if second == self._second + 1 else 0
            self._now = 0
            self._second = second
        return now - second


class Door:
    """ASGI layer that remembers, for each kind of request, which encoder refused the last one, and asks that one first.

    Reading, parsing and checking a request costs as much as answering one of a small model, so at ten times the
    capacity the refusals alone would fill the machine. When there are many of them, a request whose kind was refused
    last, by an encoder that would still refuse a single item, is answered 429 before its body is read. The body is
    dropped as it comes; the connection goes on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._refused: dict[Kind, Callable[[], float | None]] = {}
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self._refused and self._refusals.per_s > _STORM_PER_S:
            still = self._refused.get(_kind(scope))
            wait_s = still() if still else None
            if wait_s is not None:
                self._refusals.add()
                await _refuse(send, wait_s)
                return
        await self.app(scope, receive, send)
        refusal: Overloaded | None = scope.get(OVERLOADED)
        if refusal is not None and refusal.still_s is not None:
            self._refusals.add()
            if len(self._refused) >= _MAX_KINDS:
                self._refused.clear()
            self._refused[_kind(scope)] = refusal.still_s


def _kind(scope: Scope) -> Kind:
    media_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return scope["path"], media_type.partition(b";")[0].partition(b"/")[0], scope["query_string"]


async def _refuse(send: Send, wait_s: float) -> None:
    message = f"the server has more requests than it can answer, the wait would be {wait_s:.1f} s"
    problem = Problem(429, message, "overloaded")
    body = orjson.dumps({"error": problem.detail()})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(max(math.ceil(wait_s), 1)).encode()),
    ]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
