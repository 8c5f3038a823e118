"""uvicorn's HTTP/1.1 protocol with deadlines and bounds for everything that a client sends or leaves unread.

uvicorn has none of them. Differences: heads and bodies are framed by service.connection.framing; a request is looked at
when the one before it is answered; an offer to upgrade is ignored. What is refused here never reaches the application,
but has the same error shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import sys
from dataclasses import dataclass
from struct import unpack
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.connection.connections import Connections
from service.connection.framing import BadRequest, ChunkedBody, KnownHeads, LengthBody, RequestHead
from service.connection.shedding import LOOKED_AT, Asked, LoadShedder, Shed, overloaded_on_wire
from service.http.context import CLOSED_WITH
from service.http.errors import Problem

if sys.platform == "linux":
    import fcntl
    import termios

# The application answers 408 at its own body timeout; the connection is cut a little later if that did not end it.
_BODY_GRACE_S = 7.0
_MAX_BLANK_BYTES = 64
# A refused client has this long to read why, and may send so much meanwhile; closing sooner would reset the connection.
_LINGER_S = 2.0
_LINGER_BYTES = 4 * 2**20
# The rest of a body whose request is answered is dropped, so that the connection can go on.
_MAX_DROPPED_BYTES = 64 * 2**20  # or as much as a body may have
# One that is over the limit of connections gets its answer with its first byte, or after this time.
_OVER_LIMIT_S = 1.0
# A request that was sent ahead waits while more than this of the answers before it is unread, here and in the socket.
_MAX_AHEAD_BYTES = 256 * 1024
_LOOK_AGAIN_S = (0.005, 0.25)
_LEAST_PROGRESS_BYTES = 16 * 1024
_PACE_AFTER_S = 2.0
# Headers whose request gets its answer from the application, also when it is refused.
_NOT_SHED = frozenset({b"origin", b"expect"})


@dataclass(frozen=True, kw_only=True)
class WireLimits:
    """What one connection may take."""

    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    max_body_bytes: int


def bounded_protocol(limits: WireLimits, connections: Connections, shedder: LoadShedder) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=...)`, which takes a class and passes it no settings of ours."""

    heads = KnownHeads()

    class BoundedProtocol(_Protocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self.limits = limits
            self.room = connections
            self.shedder = shedder
            self.heads = heads

    return BoundedProtocol


class _Flow(FlowControl):
    """Reading stays paused while bytes of a next request are held."""

    holds = False

    def resume_reading(self) -> None:
        if not self.holds:
            super().resume_reading()


class _Protocol(HttpToolsProtocol):
    limits: WireLimits
    room: Connections
    shedder: LoadShedder
    heads: KnownHeads

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.address = ""
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._head: RequestHead | None = None
        self._body: LengthBody | ChunkedBody | None = None
        self._body_since = 0.0
        self._held = b""
        self._waiting: asyncio.Handle | None = None
        self._waiting_s = 0.0
        self._blank_bytes = 0
        self._dropped_bytes = 0
        self._unread = 0
        self._unread_since = 0.0
        self._over_limit = False
        self._leaving = False
        self._shed = False  # a request was, in this round of reading

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # As uvicorn does, without the copy of the socket that it asks for each address.
        self.connections.add(self)
        self.transport = transport
        self.server = _address(transport, "sockname")
        self.client = _address(transport, "peername")
        self.scheme = "http"
        self.flow = self._flow = _Flow(transport)
        self.address = self.client[0] if self.client else ""
        place = self.room.admit(self)
        if place == "out":
            transport.abort()
            return
        self._over_limit = place == "over"
        self._expect(_OVER_LIMIT_S if self._over_limit else self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        for timer in (self._sending, self._waiting):
            if timer is not None:
                timer.cancel()
        self.room.forget(self)
        self._held = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._leaving:
            self._drop(len(data), _LINGER_BYTES)
        elif self._over_limit:
            self._refuse_connection()
        else:
            self._held = self._held + data if self._held else data
            self._take()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()  # it went on since the last time
        self.room.leaves_unread(self)
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.room.reads(self)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_sending()
        if self._body is None:
            self._become_idle()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def closing(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def send_and_close(message: ASGISendEvent) -> None:
                # Nobody asked for the body, so whether it comes is open: nothing can follow on this connection.
                if cycle.waiting_for_100_continue:
                    cycle.keep_alive = False
                await send(message)

            await app(scope, receive, send_and_close)

        super()._start_asgi_task(cycle, closing if cycle.waiting_for_100_continue else app)

    # What service.connection.connections calls

    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    def is_behind(self) -> bool:
        body, seconds = self._body, self.loop.time() - self._body_since
        if body is None or seconds < _PACE_AFTER_S:
            return False
        return body.received_bytes < body.expected_bytes * seconds / self.limits.body_timeout_s

    def cut(self) -> None:
        self.transport.abort()

    # Receiving

    def _take(self) -> None:
        """Go through what has come, up to the end of the request that is being answered; hold the rest."""
        self._unset_keepalive_if_required()
        data, at = self._held, 0
        self._held, self._shed = b"", False
        try:
            while at < len(data) and not self.transport.is_closing():
                if self._body is not None:
                    piece, at = self._body.feed(data, at)
                    self._take_body(self._body, piece)
                elif self._unanswered() is not None or self._shed:
                    break
                else:
                    at = self._take_head(data, at)
        except BadRequest as error:
            self._refuse(error.problem)
            return
        self._held = data[at:] if at else data
        self._flow.holds = bool(self._held)
        if self._held:
            self.flow.pause_reading()
            if self._shed and self._body is None:
                self._waiting = self.loop.call_soon(self._take_held)

    def _unanswered(self) -> RequestResponseCycle | None:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # uvicorn says that it is never None
        return cycle if cycle is not None and not cycle.response_complete else None

    def _take_head(self, data: bytes, at: int) -> int:
        if self._head is None:
            known = self.heads.find(data, at)
            if known:
                head, at = known
                self._begin(head, len(data) - at)
                return at
            if self._receiving is None:
                self._expect(self.limits.header_timeout_s)
            blank = len(data) - at - len(data[at:].lstrip(b"\r\n")) if data[at] in b"\r\n" else 0
            self._blank_bytes += blank
            if self._blank_bytes > _MAX_BLANK_BYTES:
                raise BadRequest(400, "this is no HTTP/1.1 request: only blank lines")
            if blank:
                return at + blank
            head = self._head = RequestHead()
            self.room.move(self, "head")
            end = head.feed(data, at)
            if head.complete:
                self.heads.add(data[at:end], head)
        else:
            head, end = self._head, self._head.feed(data, at)
        if head.complete:
            self._head = None
            self._begin(head, len(data) - end)
        return end

    def _begin(self, head: RequestHead, more_bytes: int) -> None:
        """Hand a request whose head is complete to uvicorn, in the way in which its own parser would.

        more_bytes: have come behind it already.
        """
        self._blank_bytes = 0
        body = head.body(self.limits.max_body_bytes)
        self._unset_keepalive_if_required()  # the end of the body before may have come in the same packet
        asked = self._asked(head)
        shed = self.shedder.look_at(*asked) if asked else None
        if shed is not None:
            self._answer_overloaded(head, shed)
        else:
            self._begin_cycle(head)
            if asked:
                self.scope[LOOKED_AT] = True  # type: ignore[typeddict-unknown-key]
        self.room.move(self, "busy")
        self._dropped_bytes = 0
        self._body, self._body_since = body, self.loop.time()
        if body is None:
            self._end_message()
        elif isinstance(body, ChunkedBody) or body.expected_bytes > more_bytes:
            self._expect(self.limits.body_timeout_s + _BODY_GRACE_S)

    def _begin_cycle(self, head: RequestHead) -> None:
        self.on_message_begin()
        self.parser = head  # type: ignore[assignment]
        self.url = head.url
        self.headers.extend(head.headers)
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers
        )
        try:
            if not httptools.parse_url(head.url).path:
                raise BadRequest(400, "the address has no path")
            self.on_headers_complete()
        except httptools.HttpParserInvalidURLError:
            raise BadRequest(400, "the address cannot be read") from None

    def _take_body(self, body: LengthBody | ChunkedBody, piece: bytes) -> None:
        if self._unanswered() is None:
            self._drop(len(piece), max(_MAX_DROPPED_BYTES, self.limits.max_body_bytes))
        elif piece:
            self.on_body(piece)
        if body.done:
            self._body = None
            self._end_message()

    def _end_message(self) -> None:
        self._expect(None)
        if self._unanswered() is None:
            self._become_idle()
        else:
            self.on_message_complete()

    def _become_idle(self) -> None:
        """The request is received and answered: what is held of the next one has its turn."""
        if self.transport.is_closing() or self._leaving:
            return
        self.room.move(self, "idle")
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._held:
            self.loop.call_soon(self._take_held)

    def _take_held(self) -> None:
        self._waiting = None
        if self.transport.is_closing() or self._leaving:
            return
        if _unread_bytes(self.transport) > _MAX_AHEAD_BYTES:
            self._unset_keepalive_if_required()
            self._waiting_s = min(max(2 * self._waiting_s, _LOOK_AGAIN_S[0]), _LOOK_AGAIN_S[1])
            self._waiting = self.loop.call_later(self._waiting_s, self._take_held)
            self._watch_sending()
            return
        self._waiting_s = 0.0
        self._take()
        if not self._held:
            self.flow.resume_reading()

    def _drop(self, count: int, most: int) -> None:
        self._dropped_bytes += count
        if self._dropped_bytes > most:
            self.transport.abort()

    # Deadlines

    def _expect(self, seconds: float | None) -> None:
        """Cut the connection in so many seconds; None: nothing is awaited from the client."""
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._receiving = None
        if self.transport.is_closing():
            return
        if self._over_limit and not self._leaving:
            self._refuse_connection()
        elif self._leaving:
            self.transport.abort()
        else:
            self.room.cut(self, "slow", "a client was too slow to send, closing its connection")

    def _watch_sending(self) -> None:
        """Look now and then whether the client takes what waits for it; also while the connection is closing."""
        if self._sending is None:
            if not self._unread:
                self._unread_since = self.loop.time()
            self._unread = max(self._unread, _unread_bytes(self.transport))
            self._sending = self.loop.call_later(self.limits.write_timeout_s / 4, self._check_sending)

    def _check_sending(self) -> None:
        self._sending = None
        if not self.transport.get_write_buffer_size() and self._waiting is None:
            self._unread = 0
            return
        now, unread = self.loop.time(), _unread_bytes(self.transport)
        if unread <= self._unread - _LEAST_PROGRESS_BYTES:
            self._unread, self._unread_since = unread, now
        if now - self._unread_since >= self.limits.write_timeout_s:
            self.room.cut(self, "unread", "a client does not read its answer, closing its connection")
            return
        self._watch_sending()

    # Refusing

    def _asked(self, head: RequestHead) -> Asked | None:
        """What the load shedder is asked about a request; None: it is asked in the application.

        That is where an answer can be more than a fixed one (to a page of another origin, with an escaped address, on a
        connection that ends with it), and can wait for a client that does not read.
        """
        if head.get_method() != b"POST" or not head.should_keep_alive() or head.get_http_version() != "1.1":
            return None
        if self.flow.write_paused or any(name in _NOT_SHED for name, _ in head.headers):
            return None
        path, _, query = head.url.partition(b"?")
        if not path.startswith(b"/") or b"%" in path or not path.isascii():
            return None
        return self.root_path + path.decode("ascii"), query, head.headers

    def _answer_overloaded(self, head: RequestHead, shed: Shed) -> None:
        """Refuse a request by its head: no task is made for it, its body is dropped and the connection goes on."""
        self._shed = True
        self.shedder.count(shed)
        self.transport.write(overloaded_on_wire(shed, head.headers, self.server_state.default_headers))
        self.server_state.total_requests += 1

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, msg, "invalid_http"))

    def _refuse_connection(self) -> None:
        problem = Problem(503, "all connections of this server are in use; try again", "too_many_connections")
        self._refuse(problem, {"Retry-After": "1"})

    def _refuse(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        """Answer in place of the application and end the connection, in a way that lets the client read it."""
        self._held = b""
        cycle = self._unanswered()
        if cycle is None and self._body is not None:  # its request is answered: a second answer would be the next one's
            self._leave()
            return
        if cycle is not None:
            cycle.scope[CLOSED_WITH] = problem.status  # type: ignore[typeddict-unknown-key]
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        answer = problem.response({"Connection": "close", **(headers or {})})
        head = [b"HTTP/1.1 %d %s" % (problem.status, http.HTTPStatus(problem.status).phrase.encode())]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(answer.body))
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self._dropped_bytes = 0
        self._flow.holds = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._expect(_LINGER_S)


def _address(transport: asyncio.Transport, which: str) -> tuple[str, int] | None:
    """Host and port of one end of a connection; None: it is no internet address."""
    found: Any = transport.get_extra_info(which)
    if not isinstance(found, tuple):
        return None
    host, port = cast(tuple[Any, ...], found)[:2]
    return str(host), int(port)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client has not confirmed: ours, and where it can be asked those of the socket.

    A socket's own buffer may hold megabytes and takes more only when a third of it is free, so that a client that
    reads slowly would look like one that does not read.
    """
    waiting = transport.get_write_buffer_size()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            waiting += unpack(
                "i", fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4)
            )[0]
    return waiting
