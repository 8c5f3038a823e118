"""Heads and bodies are cut out of a stream of bytes exactly, however it is split, and as llhttp would cut them."""

import contextlib

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.connection.framing import (
    MAX_HEAD_BYTES,
    BadRequest,
    ChunkedBody,
    KnownHeads,
    LengthBody,
    RequestHead,
)
from service.http.limits import MAX_QUERY_FIELDS

HEAD = b"POST /a?b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def read(reader, parts: list[bytes]) -> tuple[bytes, bytes]:  # type: ignore[no-untyped-def]
    """(body, what was left over) of a stream that comes in parts."""
    body = rest = b""
    for part in parts:
        at = 0
        while at < len(part) and not reader.done:
            got, at = reader.feed(part, at)
            body += got
        rest += part[at:]
    return body, rest


def refusal(reader, data: bytes) -> tuple[int, str]:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest) as refused:
        reader.feed(data, 0)
    return refused.value.problem.status, refused.value.problem.code


chunk = st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a", b';a="b;c"', b";" + b"x" * 200]))


@st.composite
def chunked(draw) -> tuple[bytes, bytes]:  # type: ignore[no-untyped-def]
    """(body, the same as chunks)."""
    parts = draw(st.lists(chunk, max_size=6))
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"Authorization: Bearer a\r\nB: c\r\n"]))
    wire = b"".join(b"%x%s\r\n%s\r\n" % (len(data), extension, data) for data, extension in parts)
    return b"".join(data for data, _ in parts), wire + b"0\r\n" + trailers + b"\r\n"


@given(both=chunked(), cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_a_chunked_body_ends_where_it_ends(both: tuple[bytes, bytes], cuts: list[int]) -> None:
    body, wire = both
    assert read(ChunkedBody(10_000), pieces(wire + NEXT, cuts)) == (body, NEXT)


@given(both=chunked())
def test_a_chunked_body_byte_by_byte(both: tuple[bytes, bytes]) -> None:
    body, wire = both
    assert read(ChunkedBody(10_000), [bytes([each]) for each in wire + NEXT]) == (body, NEXT)


@given(body=st.binary(min_size=1, max_size=100), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_a_body_of_known_length(body: bytes, cuts: list[int]) -> None:
    assert read(LengthBody(len(body)), pieces(body + NEXT, cuts)) == (body, NEXT)


class Seen:
    """What llhttp makes of a whole request."""

    def __init__(self, data: bytes) -> None:
        self.body, self.done = b"", False
        httptools.HttpRequestParser(self).feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


@given(both=chunked(), position=st.integers(0, 300), byte=st.integers(0, 255))
@example(both=(b"", b"0\r\n\r\n"), position=1, byte=10)
def test_what_is_taken_llhttp_takes_the_same_way(both: tuple[bytes, bytes], position: int, byte: int) -> None:
    """A proxy in front must not see another end of a body than the server does."""
    wire = bytearray(both[1])
    wire[position % len(wire)] = byte
    reader = ChunkedBody(10_000)
    try:
        body, rest = read(reader, [bytes(wire)])
    except BadRequest:
        return
    if reader.done and not rest:
        try:
            seen = Seen(HEAD + bytes(wire))
        except httptools.HttpParserError:
            # llhttp reads extensions and trailers closer; they are dropped here, whatever is in them.
            assert b";" in wire or not both[1].endswith(b"0\r\n\r\n")
            return
        assert (seen.body, seen.done) == (body, True)


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"8000000000000000\r\n", 413),
        (b"ffffffffffffffff\r\n", 413),
        (b"fffffffffffffffff\r\n", 400),
        (b"2711\r\n", 413),
        (b"-1\r\n", 400),
        (b"+1\r\n", 400),
        (b"0x1\r\n", 400),
        (b"1_0\r\n", 400),
        (b" 1\r\n", 400),
        (b"1 \r\n", 400),
        (b"\r\n", 400),
        (b"1\nx\r\n", 400),
        (b"1\r\nxy", 400),
        (b"1\r\nx\n", 400),
        (b"1;" + b"e" * 300, 400),
        (b"1;" + b"e" * 300 + b"\r\nx\r\n", 400),
        (b"0\r\nX: " + b"y" * 9000, 431),
        (b"0\r\n" + b"X: y\r\n" * 1500, 431),
        (b"0\r\nX: y\n\r\n", 400),
        (b"1;a\rb\r\nx\r\n", 400),
        (b"0\r\nX: a\rY: b\r\n\r\n", 400),
        (b"0\r\nX: a\0b\r\n\r\n", 400),
    ],
)
def test_chunks_that_are_refused(wire: bytes, status: int) -> None:
    assert refusal(ChunkedBody(10_000), wire)[0] == status


def test_a_flood_of_tiny_chunks_is_refused_and_a_stream_of_small_ones_is_not() -> None:
    assert refusal(ChunkedBody(10**9), b"1\r\nx\r\n" * 20_000)[0] == 400
    assert len(read(ChunkedBody(10**9), [b"20\r\n%s\r\n" % (b"x" * 32) * 20_000])[0]) == 640_000
    assert len(read(ChunkedBody(10**9), [b"40\r\n%s\r\n" % (b"x" * 64) * 50_000])[0]) == 3_200_000


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_a_head_ends_at_its_blank_line(cuts: list[int]) -> None:
    head, rest = RequestHead(), b""
    for part in pieces(HEAD + b"5\r\nhello", cuts):
        at = 0 if head.complete else head.feed(part, 0)
        rest += part[at:]
    assert (head.url, rest) == (b"/a?b", b"5\r\nhello")
    assert head.headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]
    assert isinstance(head.body(10), ChunkedBody)


def test_a_head_that_came_before_is_known_and_no_other_is() -> None:
    known, head = KnownHeads(), RequestHead()
    assert known.find(HEAD, 0) is None
    head.feed(HEAD, 0)
    known.add(HEAD, head)
    assert known.find(b"12345" + HEAD + b"5\r\nhello", 5) == (head, 5 + len(HEAD))
    for end in range(len(HEAD)):
        assert known.find(HEAD[:end], 0) is None
        changed = HEAD[:end] + bytes([HEAD[end] ^ 1]) + HEAD[end + 1 :]
        assert known.find(changed + b"\r\n\r\n", 0) is None


def test_few_heads_are_kept_and_none_that_is_long() -> None:
    known = KnownHeads()
    for i in range(2000):
        known.add(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i, RequestHead())
    assert 0 < sum(known.find(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i, 0) is not None for i in range(2000)) <= 256
    long = b"GET /" + b"y" * 1024 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    known.add(long, RequestHead())
    assert known.find(long, 0) is None


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEAD_BYTES, 431),
        (b"GET /" + b"y" * MAX_HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 257 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 36893488147419103232\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
    ],
)
def test_heads_that_are_refused(wire: bytes, status: int) -> None:
    assert refusal(RequestHead(), wire)[0] == status


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"chunked ,", b"gzip,chunked"])
def test_other_codings_are_refused(coding: bytes) -> None:
    wire = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + coding + b"\r\n\r\n"
    with pytest.raises(BadRequest):
        body_of(wire)
    with pytest.raises(BadRequest):
        body_of(HEAD.replace(b"1.1", b"1.0"))


def body_of(wire: bytes) -> object:
    head = RequestHead()
    head.feed(wire, 0)
    return head.body(10)


@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for reader in (ChunkedBody(100), RequestHead()):
        with contextlib.suppress(BadRequest):
            reader.feed(data, 0)


@pytest.mark.parametrize("separator", [b"&", b";"])
def test_a_query_of_too_many_fields_is_refused_before_anybody_parses_it(separator: bytes) -> None:
    query = separator.join([b"a=1"] * MAX_QUERY_FIELDS)
    RequestHead().feed(b"GET /livez?%s HTTP/1.1\r\nHost: x\r\n\r\n" % query, 0)
    assert refusal(RequestHead(), b"GET /livez?%s%sa HTTP/1.1\r\nHost: x\r\n\r\n" % (query, separator)) == (
        400,
        "invalid_query",
    )


@pytest.mark.parametrize(("length", "expected"), [(b"0" * 18 + b"7", 7), (b"9" * 18, 10**18 - 1)])
def test_a_content_length_of_as_many_digits_as_are_taken(length: bytes, expected: int) -> None:
    head = RequestHead()
    head.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % length, 0)
    body = head.body(10_000)
    assert body is not None
    assert body.expected_bytes == expected


@pytest.mark.parametrize("digits", [20, 4300, 4301, 60_000])
def test_a_content_length_of_too_many_digits_is_refused(digits: int) -> None:
    head = RequestHead()
    head.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %s7\r\n\r\n" % (b"0" * (digits - 1)), 0)
    with pytest.raises(BadRequest) as refused:
        head.body(10_000)
    assert (refused.value.problem.status, refused.value.problem.code) == (400, "invalid_http")
