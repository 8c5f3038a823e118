"""A real server with the tiny model for client and command line, and both clients behind one call."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from clipworks import AsyncClient, Client

ROOT = Path(__file__).parents[2]
TINY_STORE = ROOT / "tests" / "fixtures" / "tiny_store"
GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"
READY_S = 60


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CLIPWORKS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url(serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """Address of `clipworks serve` with the tiny model, ready; its port is the one it prints."""
    with serving("--store", TINY_STORE, "--model", "tiny", "--data", "memory", start_s=READY_S) as url:
        yield url


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """call(url, method, *args, client={...}, **kwargs): one method of a fresh client of either kind."""

    def sync(url: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(url, **(client or {})) as opened:
            return getattr(opened, method)(*args, **kwargs)

    def awaited(url: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, **(client or {})) as opened:
                return await getattr(opened, method)(*args, **kwargs)

        return asyncio.run(run())

    return sync if request.param == "sync" else awaited
