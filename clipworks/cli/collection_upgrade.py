"""`clipworks collections upgrade | alias | unalias | aliases`: another model for a collection, under the same name."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clipworks._progress import progress_bar
from clipworks.cli import connect, output
from clipworks.cli.collection_copying import Copying, CopyReport, Sources
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.client import AsyncClient, AsyncCollection
from clipworks.errors import ClientError, Conflict
from clipworks.schemas import VIEWS, CollectionInfo

T = TypeVar("T")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or alias of the collection.")]
_VERSION = re.compile(r"@[1-9][0-9]*$")
_SWITCHES = 20
_SHOWN_FAILURES = 50


def upgrade(
    name: Name,
    model: Annotated[str, typer.Option(help="NAME or NAME@VERSION of the model to encode with.")],
    source: Annotated[
        Path | None,
        typer.Option(help="Folder that the pictures are in now; default: where each was indexed from."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Metadata field with the text of items that were stored as texts.")
    ] = None,
    switch: Annotated[bool, typer.Option(help="Let NAME mean the new collection at the end.")] = True,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Switch even if some items could not be encoded again.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at the same time.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Pictures of one request.")] = 32,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 120.0,
    as_json: connect.AsJson = False,
) -> None:
    """Encode a collection with another model, beside the old one, and switch when all is done.

    Searches go on and notice nothing. The same command again goes on where it ended, however it ended. The old
    collection stays under a name of its own until you delete it.
    """
    if _VERSION.search(name):
        raise UsageError(f"{name} is one version: give the name that searches use, {_VERSION.sub('', name)}")
    sources = Sources(source, text_field)
    report = CopyReport()
    shown = sys.stderr.isatty() and not as_json

    async def run(client: AsyncClient) -> tuple[CollectionInfo, str, str | None]:
        old = await client.collection(name).info()
        new = await _target(client, name, old, model)
        before, after = client.collection(old.name), client.collection(new.name)
        output.say(f"encoding {old.name} ({old.count} items, {old.model}) with {new.model} into {new.name}")
        copying = Copying(before, after, sources, report, workers=concurrency, batch=batch_size)
        with progress_bar(f"upgrade {name}", old.count, shown=shown) as advance:
            await copying.run(advance)
        if not switch or (report.failures and not allow_missing):
            return new, old.name, None
        return new, old.name, await _switch(client, name, copying, before, new.name)

    try:
        new, old_name, kept = _ask(run, url, api_key, store, data, timeout_s, model=model, concurrency=concurrency)
    except (ClientError, KeyboardInterrupt):
        if report.encoded or report.unchanged:
            output.say(f"{report.encoded} encoded until then; the same command goes on from there")
        raise
    _print(report, name, new, old_name, kept, as_json=as_json)
    if report.failures:
        raise typer.Exit(FAILED_ITEMS)


def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS")],
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="What the alias means from now on.")],
    keep_as: Annotated[
        str | None, typer.Option(help="New name of the collection that has the alias' name as its own.")
    ] = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
) -> None:
    """Give a collection another name, or move that name to it, in one step."""
    target = _ask(
        lambda client: client.set_alias(name, collection, keep_as=keep_as), url, api_key, store, data, timeout_s
    )
    output.say(f"{name} means {target}")


def unalias(
    name: Annotated[str, typer.Argument(metavar="ALIAS")],
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
) -> None:
    """Delete an alias; the collection stays."""
    _ask(lambda client: client.delete_alias(name), url, api_key, store, data, timeout_s)
    output.say(f"{name} is no alias any more")


def aliases(
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """All aliases and what they mean."""
    found: Mapping[str, str] = _ask(lambda client: client.aliases(), url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json(dict(found))
    else:
        output.print_table(["alias", "collection"], [[name, target] for name, target in found.items()])


async def require_model_of(client: AsyncClient, info: CollectionInfo, model: str) -> None:
    """A model that is asked for must be the one that a collection's pictures are encoded by.

    Raises:
        UsageError: it is another one; says which, and how to change it.
        NotFound: the server has no such model.
    """
    wanted = await client.model(model)
    if wanted.fingerprint.image != info.fingerprint.image or wanted.space != info.space:
        raise UsageError(
            f"--model {model}: collection {info.name} holds vectors of {info.model}, and those of"
            f" {wanted.name}@{wanted.version} cannot be compared with them; to encode it again:"
            f" clipworks collections upgrade {info.name} --model {wanted.name}@{wanted.version}"
        )


async def _target(client: AsyncClient, name: str, old: CollectionInfo, model: str) -> CollectionInfo:
    """The collection to fill: the one that an earlier run began, or a new one `NAME@N`."""
    wanted = await client.model(model)
    reference = f"{wanted.name}@{wanted.version}"
    if old.model == reference:
        raise UsageError(f"collection {name} is encoded by {reference} already")
    there = await client.collections()
    for info in sorted(there, key=lambda each: each.sequence, reverse=True):
        same = info.model == reference and info.metadata_schema == old.metadata_schema and not info.aliases
        same = same and (info.thumbnails is None) == (old.thumbnails is None) and _reranker(info) == _reranker(old)
        same = same and (info.views is None) == (old.views is None)
        if same and info.name != name and _VERSION.sub("", info.name) == name:
            return info
    made = await client.create_collection(
        _next_name(name, there),
        model=reference,
        index=old.index.model_dump(),
        metadata_schema=old.metadata_schema,
        thumbnails=old.thumbnails is not None,
        rerank=_reranker(old),
        views=None if old.views is None else VIEWS,
    )
    return await made.info()


def _reranker(info: CollectionInfo) -> str | None:
    return info.rerank.model if info.rerank else None


def _next_name(name: str, there: list[CollectionInfo]) -> str:
    """`photos@2` beside `photos`, which is kept as `photos@1`."""
    taken = [info.name for info in there if _VERSION.sub("", info.name) == name and info.name != name]
    return f"{name}@{max([1, *(int(each.rpartition('@')[2]) for each in taken)]) + 1}"


async def _switch(client: AsyncClient, name: str, copying: Copying, old: AsyncCollection, new: str) -> str:
    """Let the name mean the new collection, once it has every change of the old one, whose name is returned."""
    for _ in range(_SWITCHES):
        keep_as = None
        if old.name == name:
            there = [info.name for info in await client.collections()]
            keep_as = next(each for n in range(1, len(there) + 2) if (each := f"{name}@{n}") not in there)
        try:
            await client.set_alias(name, new, keep_as=keep_as, if_sequence=copying.sequence)
        except Conflict as error:
            if error.code != "collection_conflict" or (await old.info()).sequence == copying.sequence:
                raise
            await copying.run(lambda _: None)  # it changed meanwhile
            continue
        copying.old = client.collection(keep_as or old.name)
        await copying.add_late()
        return copying.old.name
    raise UsageError(f"{name} changes all the time: stop writing to it and run the command again")


def _print(
    report: CopyReport, name: str, new: CollectionInfo, old_name: str, kept: str | None, *, as_json: bool
) -> None:
    if as_json:
        output.print_json(
            {
                "collection": new.name,
                "model": new.model,
                "encoded": report.encoded,
                "unchanged": report.unchanged,
                "removed": report.removed,
                "failures": [{"id": id, "message": why} for id, why in report.failures.items()],
                "switched": kept is not None,
                "kept_as": kept,
            }
        )
        return
    failed = list(report.failures.items())
    output.say(f"{new.name}: {report.encoded} encoded, {report.unchanged} there already, {len(failed)} failed")
    if failed:
        output.print_table(["failed", "why"], failed[:_SHOWN_FAILURES])
        if len(failed) > _SHOWN_FAILURES:
            output.say(f"... and {len(failed) - _SHOWN_FAILURES} more; --json lists all")
    if kept:
        output.say(f"{name} means {new.name} now; the old one is kept as {kept}: clipworks collections delete {kept}")
    elif failed:
        output.say(f"{name} still means {old_name}; --allow-missing switches without these")
    else:
        output.say(f"not switched; do it with: clipworks collections upgrade {name} --model {new.model}")


def _ask(
    question: Callable[[AsyncClient], Awaitable[T]],
    url: str | None,
    api_key: str | None,
    store: Path | None,
    data: Path | None,
    timeout_s: float,
    *,
    model: str | None = None,
    concurrency: int = 4,
) -> T:
    async def run() -> T:
        async with connect.collections_client(
            url=url,
            api_key=api_key,
            model=model,
            store=store,
            data=data,
            timeout_s=timeout_s,
            concurrency=concurrency,
        ) as client:
            return await question(client)

    return asyncio.run(run())
