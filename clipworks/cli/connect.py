"""One way to vectors: the client, over HTTP, or over the same application run inside this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console

from clipworks.cli.failures import UsageError
from clipworks.client import AsyncClient
from clipworks.errors import NotReady

Url = Annotated[
    str | None,
    typer.Option(envvar="CLIPWORKS_URL", help="A running server. Without it, the model runs in this process."),
]
ApiKey = Annotated[str | None, typer.Option(envvar="CLIPWORKS_API_KEY", help="Key for --url.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="NAME or NAME@VERSION; default: the server's, or the embedded one.")]
StoreFolder = Annotated[
    Path | None, typer.Option(envvar="CLIPWORKS_STORE", help="Folder of model artifacts (in this process).")
]
TimeoutS = Annotated[float, typer.Option("--timeout-s", min=0.1, help="Limit of one request, in seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; errors go to stderr as JSON.")]


@asynccontextmanager
async def vectors_client(
    *, url: str | None, api_key: str | None, model: str | None, store: Path | None, timeout_s: float
) -> AsyncGenerator[AsyncClient]:
    """A client of the server at `url`, or of one that lives in this process as long as the block.

    Raises:
        UsageError: the address is none.
        BadSettings, NotReady: the model cannot be run here.
    """
    if url:
        try:
            client = AsyncClient(url, api_key=api_key, timeout_s=timeout_s)
        except ValueError as error:
            raise UsageError(str(error)) from error
        async with client:
            yield client
        return
    async with (
        _in_process(model, store) as transport,
        AsyncClient("http://in-process", timeout_s=timeout_s, transport=transport) as client,
    ):
        yield client


@asynccontextmanager
async def _in_process(model: str | None, store: Path | None) -> AsyncGenerator[httpx2.AsyncBaseTransport]:
    """The server's application without its sockets: the same limits, batches and vectors.

    The child process that opens each graph first is left out: here a crash ends one command, not a server. Keys guard
    a port, and there is none.
    """
    from service.app import create_app
    from service.settings import read_settings

    overrides: dict[str, Any] = {"access_log": False, "probe": False, "api_keys": (), "extra_models": ()}
    overrides |= {name: value for name, value in (("model", model), ("store", store)) if value is not None}
    settled: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    app = create_app(read_settings(overrides), on_ready=lambda: settled.set_result(None), on_fatal=settled.set_result)
    with Console(stderr=True).status("loading the model in this process (no --url)"):
        manager = app.router.lifespan_context(app)
        await manager.__aenter__()
        reason = await settled
    try:
        if reason is not None:
            raise NotReady(reason, status=503, code="not_ready")
        yield httpx2.ASGITransport(app=app)
    finally:
        await manager.__aexit__(*sys.exc_info())
