"""`clipworks search`: a text, a picture, a stored item, or all of them together -> the best items of a collection."""

from __future__ import annotations

import asyncio
import json
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import UsageError
from clipworks.cli.index import Collection
from clipworks.cli.index_sources import RESERVED
from clipworks.results import Hits

MAX_ID_BYTES = 512
_SHOWN_METADATA = 120


def search(
    collection: Collection,
    text: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be repeated.")] = None,
    like: Annotated[list[str] | None, typer.Option("--like", help="Id of a stored item; may be repeated.")] = None,
    filter: Annotated[
        str | None, typer.Option(help="""JSON, such as '{"year": {"$gte": 2020}}'.""", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many items.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Items to skip.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Leave out items below this cosine.")] = None,
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
    """Search a collection. A text, pictures and stored items given together are added up, with equal weight."""
    query = query_of(text, image or [], like or [])
    wanted = None if filter is None else parse_filter(filter)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out}: this is a folder; expected a file such as sheet.html")

    async def run() -> Hits:
        async with connect.collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=timeout_s
        ) as client:
            [found] = await client.collection(collection).search(
                [query], top_k=top_k, offset=offset, filter=wanted, min_score=min_score, model=model
            )
            return found

    found = asyncio.run(run())
    if as_json:
        hits = [{"id": hit.id, "score": hit.score, "metadata": hit.metadata} for hit in found.hits]
        output.print_json({"collection": collection, "exact": found.exact, "hits": hits})
    else:
        _print(found, offset)
    if open_sheet or out is not None:
        asked = " + ".join([*([text] if text else []), *(path.name for path in image or []), *(like or [])])
        _show_sheet(found, out, title=asked, collection=collection, offset=offset, opened=open_sheet)


def query_of(text: str | None, images: list[Path], like: list[str]) -> Any:
    """One query for `Collection.search`.

    Raises:
        UsageError: nothing to look for, a file that is not there, or something that cannot be an id.
    """
    parts: list[dict[str, Any]] = []
    if text is not None:
        if not text.strip():
            raise UsageError("the text is empty")
        parts.append({"text": text})
    for path in images:
        if not path.is_file():
            raise UsageError(f"--image {path}: no such file")
        parts.append({"image": path})
    parts += [{"id": check_id(id)} for id in like]
    if not parts:
        raise UsageError("nothing to look for: give a text, --image FILE or --like ID")
    return parts[0] if len(parts) == 1 else {"combine": parts}


def check_id(id: str) -> str:
    """Raises UsageError for what no item can be called."""
    try:
        size = len(id.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError("--like: this id is no UTF-8 text") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise UsageError(f"--like: an id has 1 to {MAX_ID_BYTES} bytes, this one {size}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in id):
        raise UsageError("--like: an id has no control characters")
    return id


def parse_filter(text: str) -> dict[str, Any]:
    """A filter as it is sent; the server checks its fields and operators.

    Raises:
        UsageError: not a JSON object, a key twice, or NaN and the like.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"--filter: not JSON at character {error.pos + 1}: {error.msg}{_hint(text)}") from None
    except RecursionError:
        raise UsageError("--filter: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"--filter: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f'--filter: expected an object such as {{"year": 2024}}, got {text[:40]!r}')
    return found  # pyright: ignore[reportUnknownVariableType]


def _hint(text: str) -> str:
    return "; JSON wants double quotes" if "'" in text else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last of two equal keys would win silently."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice; use $and")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _print(found: Hits, offset: int) -> None:
    rows = [
        [str(offset + place), f"{hit.score:.4f}", hit.id, _brief(hit.metadata)]
        for place, hit in enumerate(found.hits, start=1)
    ]
    if not rows and output.is_terminal():
        output.say("nothing found")
        return
    output.print_table(["#", "score", "id", "metadata"], rows)
    if not found.exact:
        output.say("approximate: the index may have missed a better item")


def _brief(metadata: dict[str, Any]) -> str:
    """What is not the indexer's own book-keeping."""
    shown = {key: value for key, value in metadata.items() if key not in RESERVED}
    text = ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in shown.items()
    )
    return text if len(text) <= _SHOWN_METADATA else text[: _SHOWN_METADATA - 3] + "..."


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
