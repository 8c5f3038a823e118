"""`clipworks index`: pictures of folders, tar files and tables -> a collection."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from clipworks._progress import progress_bar
from clipworks.cli import connect, output, picture_files
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.index_entries import PictureEntry, SourceListing
from clipworks.cli.index_prune import gone, refuse_absent_drives
from clipworks.cli.index_report import IndexReport, print_report
from clipworks.cli.index_run import Contents, Known, Work, index_entries, read_known
from clipworks.cli.index_sources import Columns, check_sources, list_sources
from clipworks.cli.photo_facts import Kind, kinds_in, photo_facts
from clipworks.cli.photo_facts import fields_of as photo_fields
from clipworks.client import AsyncClient, AsyncCollection
from clipworks.errors import ClientError, Conflict, NotFound
from clipworks.schemas import COLLECTION_PATTERN, VIEWS, CollectionInfo, FieldType, IndexKind

FIELD_TYPES: tuple[str, ...] = get_args(FieldType)
Collection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of one run that need no server to be checked. schema: of --field; kinds: of --metadata."""

    schema: Mapping[str, str]
    kinds: Sequence[Kind]
    kind: IndexKind | None
    thumbnails: bool
    rerank: str | None
    views: bool
    prefix: str
    prune: bool
    skip_duplicates: bool
    workers: int
    batch: int
    shown: bool


def index(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Folders, pictures, webdataset .tar files, .csv or .parquet tables."),
    ],
    collection: Collection,
    prune: Annotated[bool, typer.Option("--prune", help="Remove items of these sources that are gone.")] = False,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="photo|gps",
            help="photo: folder, name, date, camera, size in pixels. gps: where it was taken. May be repeated; a "
            "collection that is made with it keeps to it.",
        ),
    ] = None,
    exclude: picture_files.Exclude = None,
    include: picture_files.Include = None,
    hidden: picture_files.Hidden = False,
    follow_links: picture_files.FollowLinks = False,
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", help="Store only the first of files with equal content.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="Put before every id.")] = "",
    field: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TYPE of a new collection's metadata, indexed for filters; may be repeated."),
    ] = None,
    kind: Annotated[IndexKind | None, typer.Option("--index", help="Index of a new collection.")] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="A new collection keeps a small picture of each, about 10 kB.")
    ] = False,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A new collection keeps what this reranker reads of each picture, so that searches can be reranked.",
            show_default=False,
        ),
    ] = None,
    views: Annotated[
        bool,
        typer.Option(
            "--views",
            help="A new collection keeps two vectors of each, of --model and of its base (docs/intra-modal.md).",
        ),
    ] = False,
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

    The same command again goes on where it ended, and skips pictures whose content is stored already. Every file is
    counted: stored, unchanged, failed or skipped, with the reason. Failures do not stop the others; the exit code is 1.
    """
    check_name(collection)
    asked = _Asked(
        schema=fields_of(field or []),
        kinds=kinds_of(metadata or []),
        kind=kind,
        thumbnails=thumbnails,
        rerank=rerank,
        views=views,
        prefix=prefix,
        prune=prune,
        skip_duplicates=skip_duplicates,
        workers=concurrency,
        batch=batch_size,
        shown=sys.stderr.isatty() and not as_json,
    )
    refuse_clash(asked.schema, photo_fields(asked.kinds))
    columns = Columns(image=image_column, id=id_column, root=root)
    selection = picture_files.Selection(
        hidden=hidden, follow_links=follow_links, include=include or (), exclude=exclude or ()
    )
    check_sources(sources, columns, prune=prune)
    with output.waiting("looking for pictures", shown=asked.shown):
        listing = list_sources(sources, columns, selection, prefix=prefix, may_be_empty=prune)
    report = IndexReport(skipped=listing.skipped, failures=list(listing.problems))

    async def run() -> None:
        async with connect.collections_client(
            url=url,
            api_key=api_key,
            model=model,
            store=store,
            data=data,
            timeout_s=timeout_s,
            concurrency=concurrency,
            creates=True,
            also=() if rerank is None else (rerank,),
        ) as client:
            report.began = time.monotonic()
            await _run(client, collection, listing, asked, report, model=model)

    try:
        asyncio.run(run())
    except (ClientError, KeyboardInterrupt) as error:
        goes_on = "" if isinstance(error, Conflict) else "; the same command goes on from there"
        said = f"{report.counts()} until then{goes_on}"
        output.say(f"{collection}: {said if report.looked_at else 'nothing was stored yet'}")
        raise
    seconds = time.monotonic() - report.began
    if as_json:
        output.print_json(report.to_json(collection, seconds))
    else:
        print_report(report, collection, seconds)
    if report.failures:
        raise typer.Exit(FAILED_ITEMS)


async def _run(
    client: AsyncClient, name: str, listing: SourceListing, asked: _Asked, report: IndexReport, *, model: str | None
) -> None:
    """Everything is checked before a collection is made, so that a mistake leaves none behind."""
    there = await _there(client, name, asked, model)
    kinds = _kinds(asked, there)
    written = photo_fields(kinds)
    refuse_clash(asked.schema, written)
    schema = {**asked.schema, **written}
    if taken := sorted(listing.columns & written.keys()):
        raise UsageError(f"rename the column {taken[0]!r}: --metadata writes a field of that name")
    if there is None and not listing.entries and not listing.problems:
        raise UsageError(f"no pictures to index, and no collection {name} to prune")
    declared = dict(there.metadata_schema) if there else schema
    target = client.collection(name)
    known: dict[str, Known] = {}
    if there is None:
        target = await _made(client, name, asked, model=model, schema=schema)
    else:
        with output.waiting(f"reading what {name} holds", shown=asked.shown):
            known = await read_known(target.items())
    if asked.prune:
        refuse_absent_drives(listing, known)
    await _store(target, listing, known, kinds, declared, asked, report, model=model)


async def _store(
    target: AsyncCollection,
    listing: SourceListing,
    known: Mapping[str, Known],
    kinds: Sequence[Kind],
    declared: Mapping[str, str],
    asked: _Asked,
    report: IndexReport,
    *,
    model: str | None,
) -> None:
    def describe(entry: PictureEntry, data: bytes) -> Mapping[str, Any]:
        return photo_facts(data, entry.place, kinds) if kinds else {}

    went = gone(listing, known, prefix=asked.prefix)
    with progress_bar(f"index {target.name}", len(listing.entries), shown=asked.shown) as advance:
        work = Work(
            collection=target,
            known=known,
            report=report,
            contents=Contents(known, without=went),
            describe=describe,
            schema=declared,
            model=model,
            skip_duplicates=asked.skip_duplicates,
            advance=advance,
        )
        await index_entries(work, listing.entries, workers=asked.workers, batch=asked.batch)
    if asked.prune and listing.complete:
        report.pruned = await target.delete(went)
    elif asked.prune:
        output.say("nothing was pruned, because not everything could be read")
    ids = [entry.id for entry in listing.entries]
    unread = known.keys() - set(ids) - set(went)
    elsewhere = {id: sha256 for id in sorted(unread) if (sha256 := known[id].sha256) is not None}
    report.find_duplicates(elsewhere, ids)


def kinds_of(given: Sequence[str]) -> list[Kind]:
    """Raises UsageError for what is no kind of metadata."""
    found: list[Kind] = []
    for word in given:
        kind = next((each for each in get_args(Kind) if each == word), None)
        if kind is None:
            raise UsageError(f"--metadata {word}: expected {' or '.join(get_args(Kind))}")
        found.append(kind)
    return found


def refuse_clash(schema: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Raises UsageError: --field declares what --metadata writes, as another type."""
    for name in sorted(schema.keys() & written.keys()):
        if schema[name] != written[name]:
            raise UsageError(f"--field {name}: --metadata writes a field of that name, as {written[name]}")


def check_name(collection: str) -> None:
    """Raises UsageError for what no collection can be called."""
    if not re.fullmatch(COLLECTION_PATTERN, collection):
        raise UsageError(
            f"--collection {json.dumps(collection)}: expected 1 to 64 of a-z, 0-9, dot, dash and underscore, with a "
            "letter or a digit first"
        )


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


async def _there(client: AsyncClient, name: str, asked: _Asked, model: str | None) -> CollectionInfo | None:
    """The collection, if there is one; what is asked of it must be what it is.

    Raises:
        UsageError: it has other fields, or another index, or keeps no thumbnails, one vector of each item, or nothing
            for this reranker.
        Conflict, SpaceMismatch: it is bound to another model than `model`.
    """
    try:
        info = await client.collection(name).info()
    except NotFound as error:
        if error.code != "collection_not_found":
            raise
        return None
    declared = dict(info.metadata_schema)
    own = {field: kind for field, kind in declared.items() if field not in photo_fields(kinds_in(declared))}
    if asked.schema and asked.schema not in (declared, own):
        shown = ", ".join(f"{field}={kind}" for field, kind in declared.items()) or "none"
        raise UsageError(f"--field: collection {name} is there and declares {shown}; that cannot be changed")
    if asked.kind and asked.kind != info.index.kind:
        raise UsageError(f"--index: collection {name} is there with {info.index.kind}; that cannot be changed")
    if asked.thumbnails and info.thumbnails is None:
        raise UsageError(f"--thumbnails: collection {name} is there and keeps none; that cannot be changed")
    if asked.views and info.views is None:
        raise UsageError(f"--views: collection {name} is there and keeps one vector of each; that cannot be changed")
    kept = info.rerank.model if info.rerank else None
    if asked.rerank is not None and asked.rerank not in (kept, kept and kept.partition("@")[0]):
        what = f"keeps what {kept} reads" if kept else "keeps nothing for a reranker"
        raise UsageError(f"--rerank: collection {name} is there and {what}; that cannot be changed")
    if model is not None:
        # Asking for the collection that is there, but of this model, changes nothing, and is refused if it has another.
        index = info.index.model_dump(exclude_none=True)
        await client.create_collection(
            info.name,
            model=model,
            index=index,
            metadata_schema=declared,
            thumbnails=info.thumbnails is not None,
            rerank=kept,
            views=None if info.views is None else VIEWS,
        )
    return info


def _kinds(asked: _Asked, there: CollectionInfo | None) -> list[Kind]:
    """Kinds of metadata to write: what the collection was made for, and what is asked for now."""
    kept = kinds_in(there.metadata_schema) if there else []
    if there and (new := [kind for kind in asked.kinds if kind not in kept]):
        output.say(
            f"--metadata {' and '.join(new)}: the collection was made without, so give it each time; filters work, and "
            "are faster in a collection that is made with it"
        )
    return list(dict.fromkeys([*kept, *asked.kinds]))


async def _made(
    client: AsyncClient, name: str, asked: _Asked, *, model: str | None, schema: Mapping[str, str]
) -> AsyncCollection:
    target = await client.create_collection(
        name,
        model=model,
        index=asked.kind,
        metadata_schema=dict(schema),
        thumbnails=asked.thumbnails,
        rerank=asked.rerank,
        views=VIEWS if asked.views else None,
    )
    info = await target.info()
    output.say(f"made collection {name}: {info.model}, {info.dim} numbers, index {info.index.kind}")
    return target
