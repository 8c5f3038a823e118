"""A real server with the tiny model for client and command line, and both clients behind one call."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipworks import AsyncClient, Client

ROOT = Path(__file__).parents[2]
TINY_STORE = ROOT / "tests" / "fixtures" / "tiny_store"
GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"
READY_S = 60


def without_settings() -> dict[str, str]:
    """This environment without any CLIPWORKS_ variable of the person who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CLIPWORKS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Address of `clipworks serve` with the tiny model, ready; its port is the one it prints."""
    command = [Path(sys.executable).with_name("clipworks"), "serve", "--port", "0", "--log-level", "warning"]
    command += ["--store", TINY_STORE, "--model", "tiny", "--no-builtin", "--drain-grace-s", "0"]
    command += ["--data", "memory"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_settings())
    alarm = threading.Timer(READY_S, server.kill)
    alarm.start()
    try:
        url = ""
        assert server.stdout
        for line in server.stdout:
            url = line.removeprefix("clipworks: listening on ").strip() if "listening" in line else url
            if "ready" in line:
                break
        assert url, f"the server did not start, exit status {server.wait()}"
        alarm.cancel()
        yield url
    finally:
        alarm.cancel()
        server.terminate()
        server.wait(timeout=40)
        if server.stdout:
            server.stdout.close()


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
