"""uvicorn's HTTP/1.1 protocol with receive deadlines and caps on headers and connections; uvicorn has none of them.

A silent socket, headers that drip and a body that drips are each cut off. Between requests uvicorn's own keep-alive
timeout rules. What is refused here never reaches the application, but has the same error shape.
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import Problem

log = logging.getLogger("clipworks.http")
# The application answers 408 at its own body timeout; the connection is cut a little later if that did not end it.
_BODY_GRACE_S = 7.0
_MAX_HEAD_BYTES = 64 * 1024


def deadline_protocol(
    *, header_timeout_s: float, body_timeout_s: float, max_connections: int
) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=...)`, which takes a class and passes it no settings of ours."""

    class DeadlineProtocol(HttpToolsProtocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self._receiving: asyncio.TimerHandle | None = None
            self._in_message = False
            self._in_head = False
            self._head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                log.warning("more than %d connections, closing the newest", max_connections)
                transport.abort()
                return
            self._expect(header_timeout_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # Bytes of a next request that is not begun yet: from here its headers have their time, and no more of it.
            if self._receiving is None and not self._in_message:
                self._expect(header_timeout_s)
            super().data_received(data)
            self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(Problem(431, f"the headers are larger than {_MAX_HEAD_BYTES} bytes", "headers_too_large"))

        def send_400_response(self, msg: str) -> None:
            """Called by uvicorn for what is no HTTP."""
            self._refuse(Problem(400, msg, "invalid_http"))

        def on_message_begin(self) -> None:
            self._in_message = self._in_head = True
            if self._receiving is None:
                self._expect(header_timeout_s)
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._expect(body_timeout_s + _BODY_GRACE_S)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_message = False
            self._expect(None)
            super().on_message_complete()

        def _expect(self, seconds: float | None) -> None:
            """Cut the connection in so many seconds; None: nothing is awaited from the client."""
            if self._receiving is not None:
                self._receiving.cancel()
            self._receiving = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

        def _refuse(self, problem: Problem) -> None:
            answer = problem.response({"Connection": "close"})
            head = [b"HTTP/1.1 %d %s" % (problem.status, http.HTTPStatus(problem.status).phrase.encode())]
            head += [name + b": " + value for name, value in answer.raw_headers]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(answer.body))
            self.transport.close()

        def _too_slow(self) -> None:
            self._receiving = None
            if not self.transport.is_closing():
                log.info("a client was too slow to send, closing its connection")
                self.transport.abort()

    return DeadlineProtocol
