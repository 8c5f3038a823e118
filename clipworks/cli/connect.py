"""One way to vectors: the client, over HTTP, or over the same application run inside this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console

from clipworks.cli import output
from clipworks.cli.failures import RefusedError, UsageError
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
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", envvar="CLIPWORKS_DATA", help="Folder of collections (without --url).", show_default=False),
]
TimeoutS = Annotated[float, typer.Option("--timeout-s", min=0.1, help="Limit of one request, in seconds.")]
RequestTimeoutS = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.1,
        help="Limit of one request, in seconds. Default: 60 with --url, an hour in this process.",
        show_default=False,
    ),
]
_ANNOUNCED_WITHIN_S = 3.0
_WITH_SERVER_S = 60.0
_IN_PROCESS_S = 3600.0
# Limits that guard a server from its callers; whoever runs a command has but himself to wait for.
_UNLIMITED = MappingProxyType(
    {
        "max_label_texts": 10_000_000,
        "max_conditional_texts": 10_000_000,
        "max_heatmaps": 100_000,
        "max_masks": 100_000,
        "max_rerank_pairs": 100_000,
    }
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; errors go to stderr as JSON.")]


@asynccontextmanager
async def vectors_client(
    *, url: str | None, api_key: str | None, model: str | None, store: Path | None, timeout_s: float | None
) -> AsyncGenerator[AsyncClient]:
    """A client of the server at `url`, or of one that lives in this process as long as the block.

    Raises:
        UsageError: the address is none.
        BadSettings, NotReady: the model cannot be run here.
    """
    if url:
        try:
            client = AsyncClient(url, api_key=api_key, timeout_s=timeout_s or _WITH_SERVER_S)
        except ValueError as error:
            raise UsageError(str(error)) from error
        async with client:
            yield client
        return
    limit_s = timeout_s or _IN_PROCESS_S
    async with (
        _in_process(model, store, limit_s=limit_s) as transport,
        AsyncClient("http://in-process", timeout_s=limit_s, transport=transport) as client,
    ):
        yield client


@asynccontextmanager
async def label_sets_client(
    *,
    url: str | None,
    api_key: str | None,
    model: str | None,
    store: Path | None,
    data: Path | None,
    timeout_s: float | None,
    is_stored: bool,
) -> AsyncGenerator[AsyncClient]:
    """As `vectors_client`; with `is_stored` the label sets of the data folder are there too, if there is one.

    Raises:
        As `collections_client`.
    """
    if url is None and is_stored and _has_label_sets(data):
        limit_s = timeout_s or _IN_PROCESS_S
        async with collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=limit_s
        ) as client:
            yield client
        return
    async with vectors_client(url=url, api_key=api_key, model=model, store=store, timeout_s=timeout_s) as client:
        yield client


@asynccontextmanager
async def collections_client(
    *,
    url: str | None,
    api_key: str | None,
    model: str | None,
    store: Path | None,
    data: Path | None,
    timeout_s: float,
    concurrency: int = 4,
    creates: bool = False,
    also: Sequence[str] = (),
) -> AsyncGenerator[AsyncClient]:
    """A client of the server at `url`, else of the one that holds the data folder, else of one in this process.

    creates: the command makes collections, so a folder that is not there is made; others would leave an empty one.
    also: further models that a server in this process loads.

    Raises:
        UsageError: the address is none, the collections would be in memory, or there is no such folder.
        RefusedError: another process holds the folder and serves nothing.
        BadSettings, NotReady: the model cannot be run here, or the folder cannot be read.
    """
    if not url:
        folder = data_folder(data)
        if not creates and not has_collections(folder):
            raise UsageError(f"{folder}: no such folder, so no collections; make one: clipworks index FOLDER -c NAME")
        url = await holder_of(folder)
        if url:
            output.say(f"{folder} is held by the server at {url}: asking it")
    if url:
        try:
            client = AsyncClient(url, api_key=api_key, timeout_s=timeout_s, concurrency=concurrency)
        except ValueError as error:
            raise UsageError(str(error)) from error
        async with client:
            yield client
        return
    async with (
        _in_process(model, store, data=data_folder(data), limit_s=timeout_s, also=also) as transport,
        AsyncClient("http://in-process", timeout_s=timeout_s, transport=transport, concurrency=concurrency) as client,
    ):
        yield client


def _has_label_sets(data: Path | None) -> bool:
    """Whether there is a data folder that can hold some. Raises UsageError: it was named, and is not there."""
    from service.settings import read_settings

    folder = read_settings({"data": str(data)} if data is not None else {}).data
    return folder is not None and has_collections(folder, must_be=data is not None)


def data_folder(data: Path | None) -> Path:
    """The folder that the server would take from the same settings. Raises UsageError when it is memory."""
    from service.settings import read_settings

    folder = read_settings({"data": str(data)} if data is not None else {}).data
    if folder is None:
        raise UsageError("collections in memory would end with this command: give --data FOLDER, or --url of a server")
    return folder


def has_collections(folder: Path, *, must_be: bool = False) -> bool:
    """Whether a data folder can hold some: it is there, or they are not in it.

    Raises:
        UsageError: it is not there and `must_be`, as somebody named it.
    """
    from service.settings import read_settings

    if folder.exists() or read_settings({}).collections_backend != "embedded":
        return True
    if must_be:
        raise UsageError(f"{folder}: no such folder")
    return False


async def holder_of(folder: Path) -> str | None:
    """Address of the server that holds the folder; None if it is free. A server that starts gets time to say it."""
    from service.retrieval import CollectionStore

    end = time.monotonic() + _ANNOUNCED_WITHIN_S
    while (address := CollectionStore.holder(folder)) == "":
        if time.monotonic() > end:
            raise RefusedError(
                f"{folder} is in use by another process that is no server (another clipworks command?); "
                "wait for its end, or start a server on this folder and use both through it"
            )
        await asyncio.sleep(0.1)
    return address


@asynccontextmanager
async def _in_process(
    model: str | None,
    store: Path | None,
    *,
    data: Path | None = None,
    limit_s: float | None = None,
    also: Sequence[str] = (),
) -> AsyncGenerator[httpx2.AsyncBaseTransport]:
    """The server's application without its sockets: the same limits, batches and vectors.

    The child process that opens each graph first is left out: here a crash ends one command, not a server. Keys guard
    a port, and there is none.
    """
    from service.app import create_app
    from service.settings import read_settings

    overrides: dict[str, Any] = {"access_log": False, "probe": False, "api_keys": (), "extra_models": tuple(also)}
    overrides |= {name: value for name, value in (("model", model), ("store", store)) if value is not None}
    overrides |= {} if data is None else {"data": str(data)}
    overrides |= _UNLIMITED
    if limit_s is not None:  # the client ends a request after this; the server's own limit must not be earlier
        overrides |= {"request_timeout_s": limit_s, "max_request_timeout_s": limit_s}
    settled: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    app = create_app(
        read_settings(overrides),
        on_ready=lambda: settled.set_result(None),
        on_fatal=settled.set_result,
        with_collections=data is not None,
    )
    with Console(stderr=True).status("loading the model in this process (no --url)"):
        manager = app.router.lifespan_context(app)
        await manager.__aenter__()
        reason = await settled
    try:
        if reason is not None:
            raise NotReady(reason, status=503, code="not_ready")
        yield httpx2.ASGITransport(app=app)
    finally:
        # Whatever ended the command, the application ends in its ordinary way: the folder is closed and free.
        await manager.__aexit__(None, None, None)
