"""The body of one request, read under limits of size and time."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Protocol

from starlette.requests import Request

from service.context import ClientGone
from service.errors import BodyRefused, Refusal


class BodyLimits(Protocol):
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def body_timeout_s(self) -> float: ...


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The body, refused as soon as it is over its limit, encoded, or too slow.

    Raises:
        Refusal: 408, 413 or 415.
        ClientGone: the client closed the connection.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise BodyRefused(415, "unsupported_encoding", "send the body without Content-Encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:19]) > limits.max_body_bytes:
        raise _too_long(BodyRefused, limits)
    # BytesIO gives its own buffer away at the end: the body is in memory once, not twice.
    whole = BytesIO()
    received = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                more: bool = message.get("more_body", False)
                received += len(message.get("body", b""))
                if received > limits.max_body_bytes:
                    raise _too_long(BodyRefused if more else Refusal, limits)
                whole.write(message.get("body", b""))
                if not more:
                    return whole.getvalue()
    except TimeoutError:
        seconds = f"{limits.body_timeout_s:g}"
        raise BodyRefused(408, "body_timeout", f"the body did not arrive within {seconds} s") from None


def _too_long(kind: type[Refusal], limits: BodyLimits) -> Refusal:
    message = f"the body is larger than {limits.max_body_bytes} bytes (CLIPWORKS_MAX_BODY_BYTES)"
    return kind(413, "body_too_large", message)
