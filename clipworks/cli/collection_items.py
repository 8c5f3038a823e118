"""`clipworks collections items` and `delete-items`: what is in a collection, item by item."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import UsageError
from clipworks.cli.index_entries import RESERVED
from clipworks.cli.search_query import check_id, parse_filter
from clipworks.client import AsyncCollection

_PAGE = 500
_ON_TERMINAL = 50
_MOST_FILTERED = 10_000  # the server's default for what one search may return
_SHOWN_METADATA = 120

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]
Filter = Annotated[
    str | None,
    typer.Option(help="""Items that pass it; JSON, such as '{"year": {"$gte": 2020}}'.""", show_default=False),
]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Items of this id; may be repeated.")]


def items(
    name: Name,
    filter: Filter = None,
    id: Ids = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"How many; 0 for all. Default: {_ON_TERMINAL} on a terminal, elsewhere all."),
    ] = None,
    only_ids: Annotated[bool, typer.Option("--ids", help="Print ids, one a line.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="Print ids with NUL after each, for xargs -0.")] = False,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """List items with their metadata, in the order of their ids. --json prints one JSON object a line."""
    wanted = None if filter is None else parse_filter(filter)
    ids = [check_id(each, option="--id") for each in id or []]
    if ids and wanted is not None:
        raise UsageError("give either --id or --filter")
    people = output.is_terminal() and not (as_json or only_ids or null)
    most = (_ON_TERMINAL if people else 0) if limit is None else limit

    async def run() -> None:
        async with connect.collections_client(
            url=url, api_key=api_key, model=None, store=store, data=data, timeout_s=timeout_s
        ) as client:
            target = client.collection(name)
            found = _of_ids(target, ids) if ids else _filtered(target, wanted) if wanted is not None else _all(target)
            shown = _Shown(as_json=as_json, only_ids=only_ids or null, end="\0" if null else "\n")
            count = 0
            async for one, metadata in found:
                count += 1
                if most and count > most:
                    break
                shown.add(one, metadata)
            shown.finish(whole=bool(ids))
            if most and count > most:
                output.say(f"the first {most}; --limit 0 shows all")
            if not count:
                output.say("no item passes --filter" if wanted is not None else f"{name} has no items")

    asyncio.run(run())


def delete_items(
    name: Name,
    id: Ids = None,
    ids_from: Annotated[
        Path | None,
        typer.Option("--ids-from", metavar="FILE|-", help="A file with ids, one a line; - for stdin.", allow_dash=True),
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="Ids of --ids-from are separated by NUL.")] = False,
    filter: Filter = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Delete items by their ids, or all that pass a filter. Ids that are not there are no error."""
    wanted = None if filter is None else parse_filter(filter)
    ids = [check_id(each, option="--id") for each in id or []]
    ids += _read_ids(ids_from, null=null) if ids_from is not None else []
    if (wanted is None) == (not ids):
        raise UsageError("say which: either --filter, or --id and --ids-from")
    if wanted == {}:
        raise UsageError("--filter {} is every item: delete the collection instead")
    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody is there to ask; write --yes")

    async def run() -> int:
        async with connect.collections_client(
            url=url, api_key=api_key, model=None, store=store, data=data, timeout_s=timeout_s
        ) as client:
            target = client.collection(name)
            if not yes:
                count = len(ids)
                if wanted is not None:
                    count = len([each async for each in _filtered(target, wanted)])
                typer.confirm(f"delete {count} items of {name}?", abort=True)
            return await target.delete(ids) if wanted is None else await target.delete(filter=wanted)

    deleted = asyncio.run(run())
    if as_json:
        output.print_json({"collection": name, "deleted": deleted})
        return
    asked = f" of {len(set(ids))}" if ids else ""
    output.say(f"deleted {deleted}{asked} items of {name}")


def brief(metadata: dict[str, Any], *, without: Iterable[str] = ()) -> str:
    """Metadata on one line, cut off where it is long."""
    left_out = set(without)
    text = ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in metadata.items()
        if key not in left_out
    )
    return text if len(text) <= _SHOWN_METADATA else text[: _SHOWN_METADATA - 3] + "..."


class _Shown:
    """Prints items as they come where machines read, and as a table at the end for people."""

    def __init__(self, *, as_json: bool, only_ids: bool, end: str) -> None:
        self._as_json = as_json
        self._only_ids = only_ids
        self._end = end
        self._rows: list[tuple[str, dict[str, Any]]] = []

    def add(self, id: str, metadata: dict[str, Any]) -> None:
        if self._only_ids:
            sys.stdout.write(id + self._end)
        elif self._as_json:
            sys.stdout.write(json.dumps({"id": id, "metadata": metadata}, ensure_ascii=False) + "\n")
        else:
            self._rows.append((id, metadata))

    def finish(self, *, whole: bool) -> None:
        """whole: all metadata of each, a name and a value a line."""
        if self._as_json or self._only_ids:
            return
        if not whole:
            output.print_table(
                ["id", "metadata"], [(id, brief(metadata, without=RESERVED)) for id, metadata in self._rows]
            )
            return
        for id, metadata in self._rows:
            facts = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in metadata.items()]
            output.print_facts([("id", id), *facts])


async def _all(target: AsyncCollection) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for item in target.items(page=_PAGE):
        yield item.id, item.metadata


async def _of_ids(target: AsyncCollection, ids: list[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    for id in ids:
        item = await target.get(id)
        yield item.id, item.metadata


async def _filtered(target: AsyncCollection, wanted: dict[str, Any]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A search for nothing in particular, whose hits are all that pass the filter."""
    info = await target.info()
    anything = [1.0] + [0.0] * (info.dim - 1)
    top_k = max(1, min(info.count, _MOST_FILTERED))
    [found] = await target.search([{"vector": anything}], top_k=top_k, filter=wanted)
    if len(found.hits) == _MOST_FILTERED < info.count:
        output.say(
            f"{_MOST_FILTERED} items pass the filter, and there may be more: this is as many as one search gives"
        )
    elif not found.exact:
        output.say("the index is approximate: there may be more")
    for hit in sorted(found.hits, key=lambda each: each.id):
        yield hit.id, hit.metadata


def _read_ids(path: Path, *, null: bool) -> list[str]:
    """Raises UsageError: it cannot be read, or has something that is no id."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--ids-from {path}: {reason}") from error
    lines = text.split("\0") if null else [line.removesuffix("\r") for line in text.split("\n")]
    return [check_id(line, option="--ids-from") for line in lines if line]
