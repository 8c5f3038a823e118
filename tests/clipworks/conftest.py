"""A real server with the tiny model for client and command line, and both clients behind one call."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipworks import AsyncClient, Client
from clipworks.cli import app

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


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """cli(*words, stdin=b""): exit code, stdout, stderr of the command line, with the tiny model and a data folder."""
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("CLIPWORKS_DATA", str(tmp_path / "data"))

    def run(*words: str | Path, stdin: bytes | None = None) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


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
