"""The cheapest answer: while many requests are refused, more of their kind are refused by their heads alone."""

from __future__ import annotations

import asyncio
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
_BEAT_S = 0.02
_LATE_S = 0.1
_LATE_FOR_S = 0.5
# What is not known from a head: which encoder a request is for. Its kind stands for that.
Kind = tuple[str, bytes, bytes, bool]
_FEW_BYTES = 4096  # texts of one request are seldom more, images seldom less: in JSON both have one media type


class Refusals:
    """How many there were in the last second, roughly: those of this second and the rest of the one before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second: int = 0
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


class Pulse:
    """Whether the event loop keeps up: a short beat that comes late by as much as everybody else waits for the loop.

    As in CoDel (Nichols and Jacobson, ACM Queue 2012) being late once means nothing, a large body is enough for that;
    the loop is behind when no beat came in time for _LATE_FOR_S. It beats while there are requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None
        self._late_since: float | None = None
        self._is_used = False

    def use(self) -> None:
        """A request came: go on beating."""
        self._is_used = True
        if self._due is None:
            self._schedule()

    @property
    def is_behind(self) -> bool:
        """Late now, and for a while."""
        if self._due is None or self._late_since is None:
            return False
        now = self._clock()
        return now - self._due > _LATE_S and now - self._late_since > _LATE_FOR_S

    def beat(self) -> None:
        if self._due is not None and self._clock() - self._due <= _LATE_S:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = self._due
        self._due = None
        if self._is_used:
            self._is_used = False
            self._schedule()

    def _schedule(self) -> None:
        self._due = self._clock() + _BEAT_S
        asyncio.get_running_loop().call_later(_BEAT_S, self.beat)


class Door:
    """ASGI layer that refuses requests (429) before their bodies are read, when reading them is what there is too
    much of. The body is dropped as it comes; the connection goes on.

    Reading, parsing and checking a request of a small model costs as much as answering it, so under a storm the
    refusals alone would fill the machine. When there are many of them, a request whose kind was refused last, by an
    encoder that would still refuse a single item, is refused by its head. And while the event loop is behind, what has
    waited for it too long is refused too: no queue of the server shows that wait.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._refused: dict[Kind, Callable[[], float | None]] = {}
        self._refusals = Refusals()
        self._pulse = Pulse()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._pulse.use()
        if self._pulse.is_behind:
            await _refuse(send, 1.0)
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
    headers = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"").partition(b";")[0].partition(b"/")[0]
    length = headers.get(b"content-length", b"")
    is_small = length.isdigit() and int(length[:9]) <= _FEW_BYTES
    return scope["path"], media_type, scope["query_string"], is_small


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
