"""The sockets that a server listens on, taken before anything else is done: a port in use ends the start at once."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

# libuv takes one connection from a socket in each round of the event loop (since 1.46). Under load a round lasts tens
# of milliseconds, and clients would wait outside for seconds, unseen; each duplicate of the socket takes one more.
_ACCEPTS_PER_ROUND = 8
_OTHER_HOST = "take another address with --host (CLIPWORKS_HOST)"


class CannotListen(Exception):
    """The address cannot be had.

    reason, advice: why, and what to do; the message has both.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}: {advice}")
        self.reason, self.advice = reason, advice


def listen(host: str, port: int, *, backlog: int) -> list[socket.socket]:
    """Listening sockets for every address of `host`, each several times; a port of 0 takes a free one, one for all.

    Raises:
        CannotListen: the name has no address, or the address is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(
            f"{host!r} is no address of this machine ({error})", f"{_OTHER_HOST}; 0.0.0.0 is every interface"
        ) from None
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, _, _, _, address in dict.fromkeys(found):
            listener = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if not port and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                listener.bind(address)
                listener.listen(backlog)
            except OSError as error:
                raise _explained(error, host, port) from None
            listener.setblocking(False)
            sockets.append(listener)
        opened.pop_all()
        return [*sockets, *(each.dup() for each in sockets for _ in range(_ACCEPTS_PER_ROUND - 1))]


def _explained(error: OSError, host: str, port: int) -> CannotListen:
    if error.errno == errno.EADDRINUSE:
        return CannotListen(
            f"port {port} of {host} is in use by another program",
            f"stop that one, or take another port with --port {port + 1 if port < 65535 else 8000} (CLIPWORKS_PORT); "
            "--port 0 takes a free one",
        )
    if error.errno == errno.EACCES:
        return CannotListen(
            f"port {port} needs more rights than this user has", "take one above 1023 with --port (CLIPWORKS_PORT)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return CannotListen(f"{host} is no address of this machine", f"{_OTHER_HOST}; 0.0.0.0 is every interface")
    return CannotListen(
        f"cannot listen on {host} port {port} ({error.strerror})", f"{_OTHER_HOST}, or another --port (CLIPWORKS_PORT)"
    )
