"""Requests refused by their heads, seen from the wire: the real protocol on a transport that keeps what it is given."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from service.connection.connections import Connections
from service.connection.protocol import WireLimits, bounded_protocol
from service.connection.shedding import LOOKED_AT, LoadShedder

SHED = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
LENGTH = SHED + b"Content-Length: 10\r\n\r\n"
CHUNKED = SHED + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
HIGH_WATER_BYTES = 64 * 1024
MAX_BODY_BYTES = 80 * 2**20


class Wire(asyncio.Transport):
    """A client that reads everything, or nothing at all."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = False
        self.ended = False
        self._reads = reads
        self._socket = socket.socket()
        self._socket.close()  # it can be asked for, and has no buffer
        self.protocol: asyncio.Protocol | None = None

    def get_extra_info(self, name: str, default: object = None) -> object:
        known = {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2), "socket": self._socket}
        return known.get(name, default)

    def write(self, data: bytes) -> None:  # type: ignore[override]
        was_low = self.get_write_buffer_size() <= HIGH_WATER_BYTES
        self.written += data
        if was_low and self.get_write_buffer_size() > HIGH_WATER_BYTES and self.protocol:
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return 0 if self._reads else len(self.written)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed and self.protocol:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed = True

    abort = close


def talk(conversation: Callable[[asyncio.Protocol, Wire], Awaitable[None]], *, reads: bool = True) -> Wire:
    """Have a conversation with a server that refuses every POST and takes half a second for a GET."""

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        # The application asks about what the protocol did not, and nobody is asked twice.
        assert (LOOKED_AT in scope) == (scope["method"] == "POST" and scope["path"] == "/other")
        if scope["method"] == "GET":
            await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> Wire:
        shedder = LoadShedder(lambda route, count: None)
        for _ in range(1000):
            headers = [(b"content-type", b"image/png"), (b"content-length", b"10")]
            shedder.learn("/embed", b"", headers, route="/embed", still_s=lambda ahead: 5.0)
            shedder.learn("/embed", b"", headers[:1], route="/embed", still_s=lambda ahead: 5.0)
        limits = WireLimits(header_timeout_s=10, body_timeout_s=10, write_timeout_s=10, max_body_bytes=MAX_BODY_BYTES)
        room = Connections(limit=10, limit_per_address=0, max_unsent_bytes=2**20, count=lambda reason: None)
        config = Config(app, lifespan="off", timeout_keep_alive=0.2)  # type: ignore[arg-type]
        config.load()
        protocol = bounded_protocol(limits, room, shedder)(config, ServerState(), {})
        wire = Wire(reads=reads)
        wire.protocol = protocol
        protocol.connection_made(wire)
        await conversation(protocol, wire)
        wire.close()
        await asyncio.sleep(0)
        return wire

    return asyncio.run(run())


def statuses(wire: Wire) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", wire.written)]


def test_a_request_that_comes_with_the_end_of_a_dropped_body_has_its_time() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        server.data_received(LENGTH + b"1234")
        assert statuses(wire) == [429]
        server.data_received(b"567890" + GET)  # its answer takes longer than an idle connection has
        await asyncio.sleep(0.7)
        assert statuses(wire) == [429, 200]

    talk(conversation)


def test_a_request_has_one_answer_also_when_the_rest_of_its_body_is_broken() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        server.data_received(CHUNKED + b"3\r\nabc\r\n")
        server.data_received(b"no chunk\r\n" + GET)
        await asyncio.sleep(0.7)
        assert statuses(wire) == [429]
        assert wire.ended

    talk(conversation)


def test_a_client_that_reads_no_refusals_is_read_no_more() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        for _ in range(20_000):
            if not wire.reading:
                break
            server.data_received(LENGTH + b"1234567890")
            await asyncio.sleep(0)
        assert not wire.reading
        assert len(wire.written) < 2 * HIGH_WATER_BYTES

    talk(conversation, reads=False)


def test_an_idle_connection_ends_after_a_refusal_as_after_an_answer() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        server.data_received(LENGTH + b"1234567890")
        await asyncio.sleep(0.05)
        assert not wire.closed
        await asyncio.sleep(0.3)
        assert wire.closed

    talk(conversation)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 1000), max_size=6))
@example(cuts=[])
def test_refused_requests_sent_ahead_are_taken_apart_however_they_are_cut(cuts: list[int]) -> None:
    whole = LENGTH + b"1234567890" + CHUNKED + b"3;x=y\r\nGET\r\n0\r\nT: v\r\n\r\n" + LENGTH + b"POST /a\r\n\r"
    ends = [*sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]

    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        for start, end in zip([0, *ends], ends, strict=False):
            if start < end:
                server.data_received(whole[start:end])
                for _ in range(4):
                    await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert statuses(wire) == [429, 429, 429]
        assert not wire.closed

    talk(conversation)


def test_requests_that_are_refused_in_one_packet_leave_others_their_turns() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        server.data_received((LENGTH + b"1234567890") * 50)
        assert statuses(wire) == [429]
        for _ in range(60):
            await asyncio.sleep(0)
        assert statuses(wire) == [429] * 50

    talk(conversation)


def test_a_refused_upload_of_any_length_that_a_body_may_have_is_dropped_to_its_end() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        server.data_received(SHED + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES)
        for _ in range(80):
            server.data_received(bytes(2**20))
        server.data_received(GET)
        await asyncio.sleep(0.7)
        assert statuses(wire) == [429, 200]

    talk(conversation)


def test_what_the_protocol_lets_in_is_not_asked_about_again() -> None:
    async def conversation(server: asyncio.Protocol, wire: Wire) -> None:
        for head in (b"POST /other HTTP/1.1\r\n", b"POST /embed HTTP/1.1\r\nOrigin: https://page.test\r\n"):
            server.data_received(head + b"Host: x\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx")
            await asyncio.sleep(0.05)
        assert statuses(wire) == [200, 200]

    talk(conversation)
