"""`clipworks search`: a text, a picture, a stored item, or all of them together -> the best items of a collection."""

from __future__ import annotations

import asyncio
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from clipworks.cli import connect, output
from clipworks.cli.collection_items import brief
from clipworks.cli.failures import UsageError
from clipworks.cli.index import Collection, check_name
from clipworks.cli.index_entries import RESERVED
from clipworks.cli.search_beside import print_match, print_survey, survey_json
from clipworks.cli.search_query import QueryPart, combined, parse_filter, parts_of
from clipworks.results import Hit, Hits, SearchOptions
from clipworks.schemas import ViewName


def search(
    collection: Collection,
    text: Annotated[
        str | None, typer.Argument(help="What to look for: words, or a picture's file.", show_default=False)
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be repeated.")] = None,
    like: Annotated[list[str] | None, typer.Option("--like", help="Id of a stored item; may be repeated.")] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="TEXT|FILE", help="Words or a picture to keep away from; may be repeated."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            help="One for each part: the text, each --image, --like, --not, in this order. Default: 1; of --not 0.3 "
            "for words (1 without a text to look for), 0.1 for a picture."
        ),
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="""JSON, such as '{"year": {"$gte": 2020}}'.""", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many items.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Items to skip.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Leave out items below this cosine.")] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: the best first; more, such as 0.4: hits unlike each other.")
    ] = 0.0,
    group_near: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Fold hits whose cosine is at least this, such as 0.95, into the best of them."
        ),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(min=1, help="Best items that --diversity and --group-near look at.", show_default=False),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Order the best items anew with this reranker, in a collection that was made with --rerank.",
            show_default=False,
        ),
    ] = None,
    rerank_top: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="How many of the best items are ordered anew. Default: 100; alone: by the collection's own reranker.",
            show_default=False,
        ),
    ] = None,
    presence: Annotated[
        bool, typer.Option("--presence", help="Show how likely each hit is right, and say if nothing matches the text.")
    ] = False,
    presence_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Say that nothing matches below this probability. Default: the model's own.",
            show_default=False,
        ),
    ] = None,
    views: Annotated[
        ViewName | None,
        typer.Option(
            help="What to read of a collection that was made with --views. Default: texts cross, pictures intra.",
            show_default=False,
        ),
    ] = None,
    facet: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Count the values of this field; may be repeated.")
    ] = None,
    histogram: Annotated[
        int | None,
        typer.Option(min=1, max=200, metavar="BINS", help="Show how all items' scores are distributed."),
    ] = None,
    score_of: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Tell the score and rank of this item, hit or not; may be repeated."),
    ] = None,
    open_sheet: Annotated[bool, typer.Option("--open", help="Show the pictures in a browser.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the pictures as one page, such as sheet.html.")] = None,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Search a collection. A text, pictures and stored items are added up, by their weights; --not is subtracted."""
    check_name(collection)
    more: SearchOptions = {
        "diversity": diversity or None,
        "group_near": group_near,
        "pool": pool,
        "facets": facet or None,
        "histogram": histogram,
        "score_of": score_of or None,
        "rerank": _given(model=rerank, top=rerank_top) or None,
        "presence": {"threshold": presence_threshold} if presence or presence_threshold is not None else None,
        "views": views,
    }
    parts = parts_of(text, image or [], like or [], without or [], weight or [])
    wanted = None if filter is None else parse_filter(filter)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out}: this is a folder; expected a file such as sheet.html")

    async def run() -> Hits:
        async with connect.collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=timeout_s
        ) as client:
            [found] = await client.collection(collection).search(
                [combined(parts)], top_k=top_k, offset=offset, filter=wanted, min_score=min_score, model=model, **more
            )
            return found

    with output.saying_warnings():
        found = asyncio.run(run())
    if as_json:
        hits = [_hit(hit, found, grouped=bool(group_near)) for hit in found.hits]
        output.print_json({"collection": collection, "exact": found.exact, "hits": hits, **survey_json(found)})
    else:
        _print(found, offset, grouped=bool(group_near))
        print_survey(found)
        print_match(found)
    if more["presence"] is not None and found.match is None and not found.weak:
        output.say("no probabilities: --presence is of words alone")
    if not found.hits and not found.weak:
        output.say(_why_nothing(offset, filtered=wanted is not None, min_score=min_score))
    if open_sheet or out is not None:
        _show_sheet(found, out, title=_title(parts), collection=collection, offset=offset, opened=open_sheet)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _hit(hit: Hit, found: Hits, *, grouped: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": hit.id, "score": hit.score, "metadata": hit.metadata}
    shown |= {"rerank_score": hit.rerank_score} if found.reranked is not None else {}
    shown |= {"presence": hit.presence} if found.match is not None else {}
    return shown | ({"near": [each.model_dump() for each in hit.near]} if grouped else {})


def _print(found: Hits, offset: int, *, grouped: bool) -> None:
    is_reranked = found.reranked is not None
    rows = [
        [
            str(offset + place),
            f"{hit.score:.4f}",
            *(["" if hit.rerank_score is None else f"{hit.rerank_score:.4f}"] if is_reranked else []),
            *(["" if hit.presence is None else f"{hit.presence:.2f}"] if found.match is not None else []),
            hit.id,
            *([str(len(hit.near) or "")] if grouped else []),
            brief(hit.metadata, without=RESERVED),
        ]
        for place, hit in enumerate(found.hits, start=1)
    ]
    if not rows and output.is_terminal():
        return
    beside = ["match"] if is_reranked else []
    beside += ["presence"] if found.match is not None else []
    output.print_table(["#", "score", *beside, "id", *(["near"] if grouped else []), "metadata"], rows)
    if not found.exact:
        output.say("approximate: the index may have missed a better item")


def _why_nothing(offset: int, *, filtered: bool, min_score: float | None) -> str:
    """Without a filter a search of anything finds something, so nothing has a reason."""
    reasons = [f"the search has fewer than {offset} hits, or"] if offset else []
    reasons += ["no item passes --filter"] if filtered else []
    reasons += [f"none reaches --min-score {min_score:g}"] if min_score is not None else []
    return f"nothing found: {' or '.join(reasons) or 'the collection has no other items'}"


def _title(parts: list[QueryPart]) -> str:
    return " ".join(
        f"{'-' if part.weight < 0 else '+' if place else ''} {part.shown}".strip() for place, part in enumerate(parts)
    )


def _show_sheet(found: Hits, out: Path | None, *, title: str, collection: str, offset: int, opened: bool) -> None:
    from clipworks.cli.contact_sheet import contact_sheet

    page = contact_sheet(found, title=title, collection=collection, offset=offset)
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="clipworks-search-")) / "sheet.html"
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    shown = opened and webbrowser.open(out.resolve().as_uri())
    output.say(f"pictures: {out}" + ("" if shown or not opened else " (no browser could be started)"))
