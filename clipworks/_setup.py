"""Addresses, keys and limits of a client, and the errors of its transport; shared by the blocking and the async one."""

from __future__ import annotations

import os
import random

import httpx2

from clipworks._calls import BatchLimits, Calls
from clipworks._collections import CollectionCalls
from clipworks._exchange import Broken, Request
from clipworks._queries import Queries
from clipworks._reranking import RerankCalls
from clipworks._teaching import Teaching
from clipworks.retry import RetryPolicy

DEFAULT_URL = "http://127.0.0.1:8000"
MIB = 2**20


class Setup:
    """What both clients are made of, from the same arguments."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        retry: RetryPolicy | None = None,
        batch_size: int = 32,
        batch_bytes: int = 8 * MIB,
        concurrency: int = 4,
    ) -> None:
        """Nothing is sent yet.

        url: the server's address; default $CLIPWORKS_URL, else http://127.0.0.1:8000.
        api_key: sent as a bearer token; default $CLIPWORKS_API_KEY.
        timeout_s: limit of one attempt, from sending to the last byte of the answer; the server is told it too.
        batch_size, batch_bytes: inputs and image bytes of one request; the server's own limits are found by splitting.
        concurrency: requests of one call that run at the same time.
        """
        if timeout_s <= 0 or connect_timeout_s <= 0:
            raise ValueError("timeout_s and connect_timeout_s must be positive")
        policy = retry or RetryPolicy()
        self.url = address(url or os.environ.get("CLIPWORKS_URL") or DEFAULT_URL)
        self.timeout_s = timeout_s
        limits = BatchLimits(items=batch_size, image_bytes=batch_bytes, concurrency=concurrency)
        self.calls = Calls(limits=limits, policy=policy)
        self.collections = CollectionCalls(limits=limits, policy=policy)
        self.reranking = RerankCalls(limits=limits, policy=policy)
        self.teaching = Teaching(limits=limits, policy=policy)
        self.queries = Queries(policy, random.Random())
        key = api_key or os.environ.get("CLIPWORKS_API_KEY")
        headers = {"Accept": "application/json", "X-Request-Timeout-Ms": str(max(1, round(1000 * timeout_s)))}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.headers = headers
        self.httpx_timeout = httpx2.Timeout(timeout_s, connect=min(connect_timeout_s, timeout_s))
        self.limits = httpx2.Limits(max_connections=concurrency + 2, max_keepalive_connections=concurrency + 2)

    def too_slow(self, request: Request) -> Broken:
        return Broken("timeout", f"{request.method} {self.url}{request.path}: no answer within {self.timeout_s:g} s")

    def broken(self, request: Request, error: Exception) -> Broken:
        """A transport's exception as a value; a timeout before the connection stood may be tried again."""
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return self.too_slow(request)
        reason = str(error) or type(error).__name__
        return Broken("connection", f"{request.method} {self.url}{request.path}: {reason}")


def address(url: str) -> str:
    """The base address without its last slash; `host:port` alone means http.

    Raises:
        ValueError: neither http nor https.
    """
    full = url if "://" in url else f"http://{url}"
    if not full.lower().startswith(("http://", "https://")):
        raise ValueError(f"url: expected http:// or https://, got {url!r}")
    return full.rstrip("/")


def lower_case(headers: httpx2.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
