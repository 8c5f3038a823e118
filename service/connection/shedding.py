"""Load shedding: while many requests are refused, more of their kind are refused by their heads alone."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.faults import ServiceOverloaded
from service.http.context import request_id
from service.http.errors import OVERLOADED, Problem
from service.logs import of_no_request

log = logging.getLogger("clipworks.http")
LOOKED_AT = "clipworks.looked_at"  # in the ASGI scope of a request about which the protocol asked the load shedder

# Up to so many refusals a second each is made with full knowledge of the request: that is affordable.
_STORM_PER_S = 50
_MAX_KINDS = 64
_BEAT_S = 0.02
_LATE_S = 0.1
_LATE_FOR_S = 0.5
_REPORT_EVERY_S = 1.0
Header = tuple[bytes, bytes]
Asked = tuple[str, bytes, list[Header]]  # path, query, headers
StillS = Callable[[int], float | None]
# What is not known from a head: which encoder a request is for. Its kind stands for that.
Kind = tuple[str, bytes, bytes, bool]
_FEW_BYTES = 4096  # texts of one request are seldom more, images seldom less: in JSON both have one media type


class _Refused(NamedTuple):
    route: str
    still_s: StillS


class Shed(NamedTuple):
    """A request that is refused by its head: the route it would have taken, and how long it would wait there."""

    route: str
    wait_s: float


_BEHIND = Shed("unmatched", 1.0)


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
        else:
            self._late_since = None

    def _schedule(self) -> None:
        self._due = self._clock() + _BEAT_S
        asyncio.get_running_loop().call_later(_BEAT_S, self.beat)


class LoadShedder:
    """Decides which requests are refused (429) by their heads alone, when reading them is what there is too much of.

    Reading, parsing and checking a request of a small model costs as much as answering it, so under a storm the
    refusals alone would fill the machine. When there are many of them, a request whose kind was refused last, by an
    encoder that would still refuse a single item, is refused by its head. And while the event loop is behind, what has
    waited for it too long is refused too: no queue of the server shows that wait.

    count: told routes and how many requests to them were refused where nothing else counts them, once a second; the log
    has one line for them all.
    """

    def __init__(self, count: Callable[[str, int], None]) -> None:
        self._count = count
        self._refused: dict[Kind, _Refused] = {}
        self._refusals = Refusals()
        self._pulse = Pulse()
        self._uncounted: Counter[str] = Counter()
        self._on_the_way: Counter[Kind] = Counter()

    def look_at(self, path: str, query: bytes, headers: list[Header]) -> Shed | None:
        """Whether a POST request is to be refused; None: let it in."""
        self._pulse.use()
        if self._pulse.is_behind:
            return _BEHIND
        if not self._refused or self._refusals.per_s <= _STORM_PER_S:
            return None
        kind = _kind(path, query, headers)
        refused = self._refused.get(kind)
        if refused is None:
            return None
        wait_s = refused.still_s(self._on_the_way[kind])
        if wait_s is None:
            self._let_in(kind)
            return None
        self._refusals.add()
        return Shed(refused.route, wait_s)

    def learn(self, path: str, query: bytes, headers: list[Header], *, route: str, still_s: StillS) -> None:
        """A request of this kind was refused by an encoder with full knowledge of it."""
        self._refusals.add()
        if len(self._refused) >= _MAX_KINDS:
            self._refused.clear()
        self._refused[_kind(path, query, headers)] = _Refused(route, still_s)

    def _let_in(self, kind: Kind) -> None:
        """It has no place yet: those that came in the same moment must not count on the same one.

        It takes its place in the next turn of the event loop, if its body is there; in the one after it is forgotten.
        """
        if not self._on_the_way:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._on_the_way.clear)
        self._on_the_way[kind] += 1

    def count(self, shed: Shed) -> None:
        """A request was refused where nothing else counts it."""
        if not self._uncounted:
            asyncio.get_running_loop().call_later(_REPORT_EVERY_S, self._report, context=of_no_request())
        self._uncounted[shed.route] += 1

    def _report(self) -> None:
        refused = self._uncounted.total()
        log.warning("overloaded: %d requests were refused by their heads within %g s", refused, _REPORT_EVERY_S)
        for route, count in self._uncounted.items():
            self._count(route, count)
        self._uncounted.clear()


class Shedding:
    """ASGI layer that asks a LoadShedder where the protocol did not, and tells it of requests refused behind it."""

    def __init__(self, app: ASGIApp, *, shedder: LoadShedder) -> None:
        self.app = app
        self._shedder = shedder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        asked: Asked = (scope["path"], scope["query_string"], scope["headers"])
        shed = None if LOOKED_AT in scope else self._shedder.look_at(*asked)
        if shed is not None:
            answer = overloaded(shed.wait_s)
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)
        refusal: ServiceOverloaded | None = scope.get(OVERLOADED)
        if refusal is not None and refusal.still_s is not None:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._shedder.learn(*asked, route=route, still_s=refusal.still_s)


def overloaded(wait_s: float) -> Response:
    """The answer to a request that was refused by its head."""
    message = f"the server has more requests than it can answer, the wait would be {wait_s:.1f} s"
    return Problem(429, message, "overloaded").response({"Retry-After": str(max(math.ceil(wait_s), 1))})


def overloaded_on_wire(shed: Shed, headers: Iterable[Header], default_headers: Iterable[Header]) -> bytes:
    """The same answer as HTTP/1.1; `default_headers` are those of the server."""
    lines, body = _fixed_parts(math.ceil(10 * shed.wait_s))
    own = b"x-request-id: %b\r\nserver-timing: total;dur=0.00\r\n\r\n" % request_id(headers).encode("ascii")
    return b"HTTP/1.1 429 Too Many Requests\r\n" + _lines(default_headers) + lines + own + body


@lru_cache(maxsize=64)
def _fixed_parts(tenths: int) -> tuple[bytes, bytes]:
    """(header lines, body) for a wait of so many tenths of a second; the same few come again and again."""
    answer = overloaded(tenths / 10)
    return _lines(answer.raw_headers), bytes(answer.body)


def _lines(headers: Iterable[Header]) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


def _kind(path: str, query: bytes, headers: list[Header]) -> Kind:
    named = dict(headers)
    media_type = named.get(b"content-type", b"").partition(b";")[0].partition(b"/")[0]
    length = named.get(b"content-length", b"")
    is_small = length.isdigit() and len(length) < 20 and int(length) <= _FEW_BYTES
    return path, media_type, query, is_small
