"""HTTP/1.1 framing: readers of one request's head, and of a body by Content-Length or in chunks.

httptools (llhttp) parses heads. It does not frame bodies here: it skips the body of a request that offers an upgrade,
counts neither trailers nor chunk extensions, and cannot be stopped at the end of a message. These readers take
exactly the bytes of one message, so that nothing of the next one is looked at before its turn.
"""

from __future__ import annotations

import re
from typing import Literal

import httptools

from service.http.errors import Problem
from service.http.limits import MAX_LENGTH_DIGITS, MAX_QUERY_FIELDS

MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 256
_MAX_CHUNK_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8 * 1024
# Each chunk costs the event loop a microsecond or two, however small it is.
_FREE_CHUNKS = 16_384
_LEAST_MEAN_CHUNK_BYTES = 64
_MAX_KNOWN, _MAX_KNOWN_BYTES = 256, 1024  # of heads that are kept: a quarter of a megabyte, whatever clients send
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")


class BadRequest(Exception):
    """What came cannot be taken as a request; `problem` is the whole answer, and the connection ends with it."""

    def __init__(self, status: int, message: str, code: str = "invalid_http") -> None:
        super().__init__(message)
        self.problem = Problem(status, message, code)


class RequestHead:
    """Request line and headers of one request, fed as they arrive."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._keep_alive = False
        self._length: int | None = None  # once it is known that the body is framed by its length
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._size = 0
        self._tail = b""

    def feed(self, data: bytes, at: int) -> int:
        """Take bytes from `at` on, at most up to the end of the head; the position behind what was taken.

        Raises:
            BadRequest: 400 or 431.
        """
        end, closed = self._end(data, at)
        piece = data[at:end]
        self._size += len(piece)
        if self._size > MAX_HEAD_BYTES:
            message = f"request line and headers are larger than {MAX_HEAD_BYTES} bytes"
            raise BadRequest(431, message, "headers_too_large")
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # an offer, and none is taken up: the request is answered as it is
        except httptools.HttpParserError as error:
            raise BadRequest(400, f"this is no HTTP/1.1 request: {error}") from None
        self._tail = (self._tail + piece)[-3:]
        if len(self.headers) > _MAX_HEADERS:
            raise BadRequest(431, f"more than {_MAX_HEADERS} headers", "headers_too_large")
        if self.complete and self.get_http_version() not in ("1.0", "1.1"):
            raise BadRequest(400, "this server speaks HTTP/1.1 and HTTP/1.0")
        if self.complete != closed:
            raise BadRequest(400, "this is no HTTP/1.1 request: the end of its headers is not clear")
        if self.complete:
            self._check_host()
            self._check_query()
        return end

    def body(self, max_body_bytes: int) -> LengthBody | ChunkedBody | None:
        """The reader of the body that these headers announce; None: there is none.

        Raises:
            BadRequest: 400 or 415, the framing is not one that can be trusted.
        """
        if self._length is not None:
            return LengthBody(self._length) if self._length else None
        coding = [value for name, value in self.headers if name == b"transfer-encoding"]
        if coding:
            if self.get_http_version() == "1.0":
                raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
            if coding != [b"chunked"] and b", ".join(coding).strip().lower() != b"chunked":
                raise BadRequest(415, "Transfer-Encoding: only chunked is taken", "unsupported_encoding")
            return ChunkedBody(max_body_bytes)
        # llhttp has made sure that there is one Content-Length at most, and that it is a number of 64 bits.
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if len(length) > MAX_LENGTH_DIGITS:
            raise BadRequest(400, f"Content-Length has {len(length)} digits, at most {MAX_LENGTH_DIGITS} are taken")
        self._length = int(length)
        return self.body(max_body_bytes)

    # What uvicorn asks its parser

    def get_http_version(self) -> str:
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        return self._keep_alive

    def should_upgrade(self) -> bool:
        return False

    # What httptools calls

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()  # known in this call only

    def _check_host(self) -> None:
        """RFC 9112, section 3.2: one Host, which only HTTP/1.0 may leave out."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.get_http_version() != "1.0"):
            raise BadRequest(400, f"a request has one Host header, this one has {hosts or 'none'}")

    def _check_query(self) -> None:
        """The application parses a query before it knows who asks, a microsecond for each field."""
        query = self.url.partition(b"?")[2]
        fields = 1 + query.count(b"&") + query.count(b";")
        if fields > MAX_QUERY_FIELDS:
            message = f"the query has {fields} fields, the limit is {MAX_QUERY_FIELDS}"
            raise BadRequest(400, message, "invalid_query")

    def _end(self, data: bytes, at: int) -> tuple[int, bool]:
        """Where the head ends in `data`, and whether it does; the blank line may lie across two pieces."""
        if self._tail:
            seam = self._tail + data[at : at + 3]
            found = seam.find(b"\r\n\r\n")
            if found >= 0:
                return at + found + 4 - len(self._tail), True
        found = data.find(b"\r\n\r\n", at)
        return (found + 4, True) if found >= 0 else (len(data), False)


class KnownHeads:
    """Heads that came before. Clients send the same bytes again and again, and the same bytes are the same head."""

    def __init__(self) -> None:
        self._heads: dict[bytes, RequestHead] = {}

    def find(self, data: bytes, at: int) -> tuple[RequestHead, int] | None:
        """The head that begins at `at`, and the position behind it."""
        end = data.find(b"\r\n\r\n", at, at + _MAX_KNOWN_BYTES) + 4
        head = self._heads.get(data[at:end]) if end > 3 else None
        return (head, end) if head else None

    def add(self, raw: bytes, head: RequestHead) -> None:
        """`head` is complete, and these are all of its bytes."""
        if len(raw) <= _MAX_KNOWN_BYTES:
            if len(self._heads) >= _MAX_KNOWN:
                self._heads.clear()
            self._heads[raw] = head


class LengthBody:
    """A body of Content-Length."""

    def __init__(self, length: int) -> None:
        self._remaining = length
        self.expected_bytes = length
        self.received_bytes = 0

    @property
    def done(self) -> bool:
        return self._remaining == 0

    def feed(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Bytes of the body from `at` on, and the position behind them."""
        end = min(at + self._remaining, len(data))
        self._remaining -= end - at
        self.received_bytes += end - at
        return (data if end - at == len(data) else data[at:end]), end


class ChunkedBody:
    """A body in chunks. Extensions and trailers are dropped, and bounded; a client's trailer never becomes a header."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._state: Literal["size", "data", "data end", "trailers"] = "size"
        self._remaining = 0
        self._line = b""
        self._chunks = 0
        self._trailer_bytes = 0
        self.expected_bytes = max_bytes
        self.received_bytes = 0
        self.done = False

    def feed(self, data: bytes, at: int) -> tuple[bytes, int]:
        """As LengthBody.

        Raises:
            BadRequest: 400, 413 or 431.
        """
        pieces: list[bytes] = []
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._remaining]
                pieces.append(piece)
                at += len(piece)
                self._remaining -= len(piece)
                self.received_bytes += len(piece)
                if not self._remaining:
                    self._state = "data end"
            else:
                at = self._take_line(data, at)
        return b"".join(pieces), at

    def _take_line(self, data: bytes, at: int) -> int:
        most = at + _MAX_TRAILER_BYTES + 1  # a line without an end in there is refused below
        end = data.find(b"\n", at, most) + 1
        self._line += data[at : end or most]
        line = self._line
        if self._state == "trailers":
            if self._trailer_bytes + len(line) > _MAX_TRAILER_BYTES:
                raise BadRequest(431, f"trailers are larger than {_MAX_TRAILER_BYTES} bytes", "headers_too_large")
        elif len(line) > _MAX_CHUNK_LINE_BYTES or (self._state == "data end" and not b"\r\n".startswith(line)):
            raise BadRequest(400, "the body is not chunked as HTTP/1.1 says")
        if not end:
            return len(data)
        self._line = b""
        if line[-2:] != b"\r\n" or _CONTROL.search(line, 0, len(line) - 2):
            raise BadRequest(400, "the body is not chunked as HTTP/1.1 says: lines end with CR LF and are printable")
        self._end_line(line[:-2])
        return end

    def _end_line(self, line: bytes) -> None:
        if self._state == "size":
            self._begin_chunk(line)
        elif self._state == "data end":
            self._state = "size"
        elif line:
            self._trailer_bytes += len(line) + 2
        else:
            self.done = True

    def _begin_chunk(self, line: bytes) -> None:
        size = line.partition(b";")[0]
        if not _CHUNK_SIZE.fullmatch(size):
            raise BadRequest(400, "the body is not chunked as HTTP/1.1 says: a chunk has no size")
        self._remaining = int(size, 16)
        if self.received_bytes + self._remaining > self._max_bytes:
            message = f"the body is larger than {self._max_bytes} bytes (CLIPWORKS_MAX_BODY_BYTES)"
            raise BadRequest(413, message, "body_too_large")
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS + self.received_bytes // _LEAST_MEAN_CHUNK_BYTES:
            raise BadRequest(400, f"{self._chunks} chunks for {self.received_bytes} bytes: send larger chunks")
        self._state = "data" if self._remaining else "trailers"
