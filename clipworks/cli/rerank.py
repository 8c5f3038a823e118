"""`clipworks rerank`: a text and pictures, or a picture and texts -> which match best."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clipworks.cli import connect, output, picture_files
from clipworks.cli.embed import taken_pictures
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.file_names import text_of
from clipworks.cli.picture_files import picture_suffixes
from clipworks.results import RerankedDocuments


def rerank(
    query: Annotated[str, typer.Argument(help="Words, or a picture's file.", show_default=False)],
    documents: Annotated[
        list[str],
        typer.Argument(metavar="FILES|TEXTS", help="Pictures or folders of them; texts where the query is a picture."),
    ],
    top_n: Annotated[int | None, typer.Option("--top-n", "-n", min=1, help="Only the best so many.")] = None,
    exclude: picture_files.Exclude = None,
    include: picture_files.Include = None,
    hidden: picture_files.Hidden = False,
    follow_links: picture_files.FollowLinks = False,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    timeout_s: connect.RequestTimeoutS = None,
    as_json: connect.AsJson = False,
) -> None:
    """Order pictures by how well a text fits them, or texts by how well they fit a picture; --model has a reranker."""
    if not query.strip():
        raise UsageError("the query is empty")
    is_picture = os.path.splitext(query)[1].lower() in picture_suffixes() and os.path.isfile(query)
    say_files: Callable[[], None] = lambda: None  # noqa: E731
    unread = False
    if is_picture:
        given, names = list[Any](documents), documents
    else:
        selection = picture_files.Selection(
            hidden=hidden, follow_links=follow_links, include=include or (), exclude=exclude or ()
        )
        files = taken_pictures(documents, selection)
        given, names, say_files = list[Any](files.paths), [text_of(each) for each in files.paths], files.say
        unread = bool(files.unread)

    async def run() -> RerankedDocuments:
        async with connect.vectors_client(
            url=url, api_key=api_key, model=model, store=store, timeout_s=timeout_s
        ) as client:
            return await client.rerank(
                Path(query) if is_picture else query,
                given,
                model=model,
                top_n=top_n,
                on_error="item",
                progress=sys.stderr.isatty() and len(names) > 1,
            )

    with output.saying_warnings():
        found = asyncio.run(run())
    if as_json:
        output.print_json(_shown(found, names))
    else:
        rows = [
            [str(place), f"{each.score:.4f}", names[each.index]] for place, each in enumerate(found.documents, start=1)
        ]
        title = found.identity.model if found.identity else None
        output.print_table(["#", "score", "text" if is_picture else "image"], rows, title=title)
        for index, error in found.errors.items():
            output.say(f"failed: {names[index]}: {error}")
    say_files()
    if found.errors or unread:
        raise typer.Exit(FAILED_ITEMS)


def _shown(found: RerankedDocuments, names: Sequence[str]) -> dict[str, Any]:
    return {
        "model": found.identity.model if found.identity else None,
        "results": [
            {"index": each.index, "document": names[each.index], "score": each.score} for each in found.documents
        ],
        "failed": [
            {"index": index, "document": names[index], "error": str(error)} for index, error in found.errors.items()
        ],
    }
