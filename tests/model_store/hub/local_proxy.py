"""A proxy on this machine: forwards requests for http addresses, opens tunnels for https ones, notes both."""

from __future__ import annotations

import base64
import select
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

_HOP = ("proxy-connection", "proxy-authorization", "connection", "host")


@dataclass
class LocalProxy:
    """asked: (method, address) of what came through. password: NAME:PASSWORD that it wants, or None."""

    address: str
    password: str | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def local_proxy() -> Iterator[LocalProxy]:
    class Bound(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    proxy = Bound.proxy = LocalProxy(f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: LocalProxy

    def do_HEAD(self) -> None:
        self._forward()

    def do_GET(self) -> None:
        self._forward()

    def do_CONNECT(self) -> None:
        if not self._may():
            return
        self.proxy.asked.append(("CONNECT", self.path))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            self._exchange(far)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...

    def _exchange(self, far: socket.socket) -> None:
        ways = {self.connection: far, far: self.connection}
        while True:
            for end in select.select(list(ways), [], [])[0]:
                data = end.recv(1 << 16)
                if not data:
                    return
                ways[end].sendall(data)

    def _may(self) -> bool:
        given = (self.headers.get("Proxy-Authorization") or "").removeprefix("Basic ")
        if self.proxy.password is None or base64.b64decode(given).decode() == self.proxy.password:
            return True
        self.send_response(407)
        self.send_header("Proxy-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def _forward(self) -> None:
        if not self._may():
            return
        self.proxy.asked.append((self.command, self.path))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AsItCame)
        try:
            answer = opener.open(urllib.request.Request(self.path, headers=headers, method=self.command))
        except HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status or 500)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())


class _AsItCame(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None
