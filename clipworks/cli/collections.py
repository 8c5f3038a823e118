"""`clipworks collections`: list, show, delete; the other verbs are in collection_files.py and collection_upkeep.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clipworks.cli import collection_files, collection_items, collection_upgrade, collection_upkeep, connect, output
from clipworks.cli.collection_upkeep import megabytes
from clipworks.client import AsyncClient
from clipworks.schemas import CollectionInfo

T = TypeVar("T")
app = typer.Typer(
    help="List, show, export, import and delete collections and their items; check, compact and copy them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]


@app.command("list")
def list_collections(
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """All collections of a server, or of a data folder."""
    is_empty = not url and not connect.has_collections(connect.data_folder(data), must_be=data is not None)
    found = [] if is_empty else _ask(lambda client: client.collections(), url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json([info.model_dump() for info in found])
        return
    if not found and output.is_terminal():
        output.say("no collections; make one: clipworks index FOLDER --collection NAME")
        return
    rows = [
        [info.name, str(info.count), info.model, str(info.dim), _search_of(info), megabytes(info.index_bytes)]
        for info in found
    ]
    output.print_table(["collection", "items", "model", "dim", "search", "index MB"], rows)


@app.command()
def show(
    name: Name,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Everything about one collection."""
    info = _ask(lambda client: client.collection(name).info(), url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json(info.model_dump())
        return
    output.print_facts(
        [
            ("name", info.name),
            ("aliases", ", ".join(info.aliases) or "none"),
            ("items", str(info.count)),
            ("model", info.model),
            ("space", info.space),
            ("image encoder", info.fingerprint.image or "none"),
            ("text encoder", info.fingerprint.text or "none"),
            ("numbers of a vector", str(info.dim)),
            ("declared fields", ", ".join(f"{key}={kind}" for key, kind in info.metadata_schema.items()) or "none"),
            ("index", f"{info.kind} (asked for: {info.index.kind}), {_search_of(info)}"),
            ("dead slots", str(info.dead)),
            ("index MB in memory", megabytes(info.index_bytes)),
            ("MB on disk, all collections", megabytes(info.disk_bytes)),
            ("backend", info.backend),
            ("durability", info.durability),
            ("sequence", str(info.sequence)),
            *(("warning", warning) for warning in info.warnings),
        ]
    )


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
) -> None:
    """Delete a collection with all its items."""
    if not yes:
        output.confirm(f"delete collection {name} with all its items?")
    _ask(lambda client: client.delete_collection(name), url, api_key, store, data, timeout_s)
    output.say(f"deleted {name}")


app.command("items")(collection_items.items)
app.command("delete-items")(collection_items.delete_items)
app.command("export")(collection_files.export_collection)
app.command("import")(collection_files.import_collection)


app.command()(collection_upgrade.upgrade)
app.command()(collection_upgrade.alias)
app.command()(collection_upgrade.unalias)
app.command()(collection_upgrade.aliases)


app.command()(collection_upkeep.doctor)
app.command("acknowledge-loss")(collection_upkeep.acknowledge_loss)
app.command()(collection_upkeep.compact)
app.command()(collection_upkeep.snapshot)
app.command()(collection_upkeep.restore)
app.command()(collection_upkeep.snapshots)


def _ask(
    question: Callable[[AsyncClient], Awaitable[T]],
    url: str | None,
    api_key: str | None,
    store: Path | None,
    data: Path | None,
    timeout_s: float,
) -> T:
    async def run() -> T:
        async with connect.collections_client(
            url=url, api_key=api_key, model=None, store=store, data=data, timeout_s=timeout_s
        ) as client:
            return await question(client)

    return asyncio.run(run())


def _search_of(info: CollectionInfo) -> str:
    return "exact" if info.exact else "approximate"
