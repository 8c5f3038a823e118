"""The body of one request, read under limits of size and time."""

from __future__ import annotations

import asyncio
import sys
from io import BytesIO

from starlette.datastructures import Headers
from starlette.requests import Request

from service.http.body_memory import BodyLimits, BodyShare
from service.http.context import ClientGone, context_of
from service.http.errors import BodyRefused, Refusal
from service.http.limits import MAX_LENGTH_DIGITS


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The body, refused as soon as it is over its limit, encoded, too slow, or finds no memory.

    Raises:
        Refusal: 408, 413, 415 or 429.
        ClientGone: the client closed the connection.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise BodyRefused(415, "unsupported_encoding", "send the body without Content-Encoding")
    declared = _declared_bytes(request.headers)
    if declared is not None and declared > limits.max_body_bytes:
        raise _too_long(BodyRefused, limits)
    context = context_of(request.scope)
    share = context.body
    try:
        share.begin(declared, limits, caller=context.caller)
        with share.idle():
            async with asyncio.timeout(limits.body_timeout_s):
                return await _receive(request, limits, share)
    except TimeoutError:
        seconds = f"{limits.body_timeout_s:g}"
        raise BodyRefused(408, "body_timeout", f"the body did not arrive within {seconds} s") from None
    finally:
        share.end()


def _declared_bytes(headers: Headers) -> int | None:
    """None: the body is counted as it comes. CPython reads no numbers of thousands of digits, and none is needed."""
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal():
        return None
    return int(length[-MAX_LENGTH_DIGITS:]) if not length[:-MAX_LENGTH_DIGITS].strip("0") else sys.maxsize


async def _receive(request: Request, limits: BodyLimits, share: BodyShare) -> bytes:
    # BytesIO gives its own buffer away at the end: the body is in memory once, not twice.
    whole = BytesIO()
    received = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more: bool = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received > limits.max_body_bytes:
            raise _too_long(BodyRefused if more else Refusal, limits)
        share.receive(len(chunk))
        whole.write(chunk)
        if not more:
            return whole.getvalue()


def _too_long(kind: type[Refusal], limits: BodyLimits) -> Refusal:
    message = f"the body is larger than {limits.max_body_bytes} bytes (CLIPWORKS_MAX_BODY_BYTES)"
    return kind(413, "body_too_large", message)
