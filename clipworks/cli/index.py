"""`clipworks index`: pictures of folders, tar files and tables -> a collection."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipworks._progress import progress_bar
from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.index_run import Report, gone, index_entries, read_known
from clipworks.cli.index_sources import Columns, list_sources
from clipworks.client import AsyncClient, AsyncCollection
from clipworks.errors import ClientError, NotFound

FIELD_TYPES = ("string", "number", "boolean", "string[]", "number[]")
_SHOWN_FAILURES = 50
Collection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]


def index(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders, webdataset .tar files, .csv or .parquet tables.")
    ],
    collection: Collection,
    prune: Annotated[bool, typer.Option("--prune", help="Remove items of these sources that are gone.")] = False,
    prefix: Annotated[str, typer.Option(help="Put before every id.")] = "",
    field: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TYPE of a new collection's metadata, indexed for filters; may be repeated."),
    ] = None,
    kind: Annotated[
        Literal["auto", "flat", "sq8", "ivf_sq8"] | None, typer.Option("--index", help="Index of a new collection.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of a table with the pictures.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with the ids; default: the path.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that paths of a table start from.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at the same time.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Pictures of one request.")] = 32,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 120.0,
    as_json: connect.AsJson = False,
) -> None:
    """Store pictures in a collection, which is made if it is not there.

    The same command again goes on where it ended, and skips pictures whose content is stored already. Pictures that
    cannot be stored do not stop the others; they are listed at the end, and the exit code is 1.
    """
    schema = fields_of(field or [])
    report = Report()

    async def run() -> None:
        async with connect.collections_client(
            url=url,
            api_key=api_key,
            model=model,
            store=store,
            data=data,
            timeout_s=timeout_s,
            concurrency=concurrency,
        ) as client:
            report.began = time.monotonic()
            target, declared = await _target(client, collection, model=model, kind=kind, schema=schema)
            columns = Columns(image=image_column, id=id_column, root=root, schema=declared)
            listing = await asyncio.to_thread(list_sources, sources, columns, prefix=prefix)
            report.failures += listing.problems
            known = await read_known(target.items())
            shown = sys.stderr.isatty() and not as_json
            with progress_bar(f"index {collection}", len(listing.entries), shown=shown) as advance:
                await index_entries(
                    target,
                    listing,
                    known,
                    report,
                    model=model,
                    workers=concurrency,
                    batch=batch_size,
                    advance=advance,
                )
            if prune and listing.complete:
                report.pruned = await target.delete(gone(listing, known))
            elif prune:
                output.say("nothing was pruned, because not everything could be read")

    try:
        asyncio.run(run())
    except (ClientError, KeyboardInterrupt):
        if report.looked_at:
            output.say(f"{_counts(report)} until then; the same command goes on from there")
        raise
    _print(report, collection, time.monotonic() - report.began, as_json)
    if report.failures:
        raise typer.Exit(FAILED_ITEMS)


def fields_of(given: list[str]) -> dict[str, str]:
    """NAME=TYPE, several. Raises UsageError for what is none."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, kind = each.rpartition("=")
        if not equals or not name or kind not in FIELD_TYPES:
            raise UsageError(f"--field {each}: expected NAME=TYPE, with TYPE one of {', '.join(FIELD_TYPES)}")
        if name in found:
            raise UsageError(f"--field {name} is given twice")
        found[name] = kind
    return found


async def _target(
    client: AsyncClient,
    name: str,
    *,
    model: str | None,
    kind: Literal["auto", "flat", "sq8", "ivf_sq8"] | None,
    schema: dict[str, str],
) -> tuple[AsyncCollection, dict[str, str]]:
    """The collection and its declared fields; what is asked of one that is there must be what it is."""
    target = client.collection(name)
    try:
        info = await target.info()
    except NotFound:
        target = await client.create_collection(name, model=model, index=kind, metadata_schema=schema)
        info = await target.info()
        output.say(f"made collection {name}: {info.model}, {info.dim} numbers, index {info.index.kind}")
    else:
        if schema and schema != info.metadata_schema:
            there = ", ".join(f"{field}={type}" for field, type in info.metadata_schema.items()) or "none"
            raise UsageError(f"--field: collection {name} is there and declares {there}; that cannot be changed")
        if kind and kind != info.index.kind:
            raise UsageError(f"--index: collection {name} is there with {info.index.kind}; that cannot be changed")
    return target, dict(info.metadata_schema)


def _counts(report: Report) -> str:
    pruned = f", {report.pruned} pruned" if report.pruned else ""
    return f"{report.stored} stored, {report.unchanged} unchanged, {len(report.failures)} failed{pruned}"


def _print(report: Report, collection: str, seconds: float, as_json: bool) -> None:
    failures = [(_printable(each.name), _printable(each.reason)) for each in report.failures]
    if as_json:
        output.print_json(
            {
                "collection": collection,
                "stored": report.stored,
                "unchanged": report.unchanged,
                "pruned": report.pruned,
                "seconds": round(seconds, 3),
                "failures": [{"id": name, "message": reason} for name, reason in failures],
            }
        )
        return
    rate = f" ({report.stored / seconds:.1f}/s)" if report.stored else ""
    output.say(f"{collection}: {_counts(report)} in {seconds:.1f} s{rate}")
    if failures:
        shown = failures[:_SHOWN_FAILURES] if output.is_terminal() else failures
        output.print_table(["failed", "why"], shown)
        if len(shown) < len(failures):
            output.say(f"... and {len(failures) - len(shown)} more; --json lists all")


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
