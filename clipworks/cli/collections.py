"""`clipworks collections`: list, show, delete; doctor, compact, snapshot, restore on the data folder itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from clipworks.cli import collection_files, connect, output
from clipworks.cli.failures import FAILED_ITEMS, RefusedError, UsageError
from clipworks.client import AsyncClient
from clipworks.schemas import CollectionInfo

if TYPE_CHECKING:
    from service.retrieval import CollectionStore, DoctorReport

T = TypeVar("T")
app = typer.Typer(
    help="List, show, export, import and delete collections; check, compact and copy them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]
_DATABASE = "collections.sqlite3"


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
    found = _ask(lambda client: client.collections(), url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json([info.model_dump() for info in found])
        return
    if not found and output.is_terminal():
        output.say("no collections; make one: clipworks index FOLDER --collection NAME")
        return
    rows = [
        [info.name, str(info.count), info.model, str(info.dim), _search_of(info), _megabytes(info.index_bytes)]
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
            ("items", str(info.count)),
            ("model", info.model),
            ("space", info.space),
            ("image encoder", info.fingerprint.image or "none"),
            ("text encoder", info.fingerprint.text or "none"),
            ("numbers of a vector", str(info.dim)),
            ("declared fields", ", ".join(f"{key}={kind}" for key, kind in info.metadata_schema.items()) or "none"),
            ("index", f"{info.kind} (asked for: {info.index.kind}), {_search_of(info)}"),
            ("dead slots", str(info.dead)),
            ("index MB in memory", _megabytes(info.index_bytes)),
            ("MB on disk, all collections", _megabytes(info.disk_bytes)),
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
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to ask; write --yes")
        typer.confirm(f"delete collection {name} with all its items?", abort=True)
    _ask(lambda client: client.delete_collection(name), url, api_key, store, data, timeout_s)
    output.say(f"deleted {name}")


app.command("export")(collection_files.export_collection)
app.command("import")(collection_files.import_collection)


@app.command()
def doctor(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="All collections when left out.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Stored vectors to search for.")] = 100,
    recall_at: Annotated[int, typer.Option(min=1, help="Neighbours of each.")] = 10,
    data: connect.DataFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Check every row's checksum, that the index holds exactly the rows, and its recall on your own data."""
    with _opened(data) as opened:
        names = [name] if name else [info.name for info in opened.list()]
        reports = {each: opened.get(each).doctor(queries=queries, recall_at=recall_at) for each in names}
        warnings = opened.warnings
    if as_json:
        output.print_json({each: _report_facts(report) for each, report in reports.items()})
    else:
        rows = [
            [
                each,
                str(report.rows),
                str(report.indexed),
                str(len(report.bad_rows)),
                "" if report.recall is None else f"{report.recall:.4f}",
                "healthy" if report.healthy else "; ".join(report.problems),
            ]
            for each, report in reports.items()
        ]
        output.print_table(["collection", "rows", "indexed", "bad rows", f"recall@{recall_at}", "state"], rows)
    for warning in warnings:
        output.say(f"warning: {warning}")
    if not all(report.healthy for report in reports.values()):
        raise typer.Exit(FAILED_ITEMS)


@app.command()
def compact(name: Name, data: connect.DataFolder = None, as_json: connect.AsJson = False) -> None:
    """Rebuild the index without deleted rows, train it anew, and give unused disk space back."""
    with _opened(data) as opened:
        report = opened.get(name).compact()
    if as_json:
        output.print_json({"slots_removed": report.slots_removed, "bytes_freed": report.bytes_freed})
    else:
        output.say(f"{name}: {report.slots_removed} dead slots removed, {_megabytes(report.bytes_freed)} MB freed")


@app.command()
def snapshot(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="It must not exist.")],
    data: connect.DataFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Write one collection, as of one moment, into a file with a checksum."""
    with _opened(data) as opened:
        made = opened.get(name).snapshot(file)
    if as_json:
        facts = {"path": made.path, "sha256": made.sha256, "bytes": made.bytes, "count": made.count}
        output.print_json({**facts, "sequence": made.sequence})
    else:
        output.say(f"{made.count} items in {made.path} ({_megabytes(made.bytes)} MB, sha256 {made.sha256})")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by `snapshot`.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new collection.")],
    data: connect.DataFolder = None,
) -> None:
    """Make a new collection from a snapshot: all of it or nothing."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    with _opened(data, may_be_new=True) as opened:
        count = opened.restore(file, name=name).describe().count
    output.say(f"restored {name}: {count} items")


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


@contextmanager
def _opened(data: Path | None, *, may_be_new: bool = False) -> Generator[CollectionStore]:
    """The store of a data folder that no server holds.

    Raises:
        UsageError: there is none.
        RefusedError: another process holds it.
    """
    from service.retrieval import CollectionStore
    from service.retrieval.errors import FolderInUse

    folder = connect.data_folder(data)
    if not may_be_new and not (folder / _DATABASE).is_file():
        raise UsageError(f"{folder}: no collections in this folder; name it with --data or CLIPWORKS_DATA")
    try:
        opened = CollectionStore.open(folder)
    except FolderInUse as error:
        raise RefusedError(f"{error}: stop it first, this command works on the folder itself") from error
    with opened:
        yield opened


def _report_facts(report: DoctorReport) -> dict[str, Any]:
    return {
        "healthy": report.healthy,
        "rows": report.rows,
        "indexed": report.indexed,
        "bad_rows": list(report.bad_rows),
        "differing_slots": report.differing_slots,
        "recall": report.recall,
        "recall_at": report.recall_at,
        "sampled": report.sampled,
        "problems": list(report.problems),
    }


def _search_of(info: CollectionInfo) -> str:
    return "exact" if info.exact else "approximate"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
