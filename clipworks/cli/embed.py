"""`clipworks embed`: files, folders and lines of text -> vectors."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipworks.cli import connect, output, picture_files
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.file_names import text_of
from clipworks.results import EmbedResult

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource

_SUFFIXES = (".npy", ".jsonl")
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Inputs:
    """What to embed: texts first, then images, each with the name it is shown by."""

    texts: Sequence[str]
    images: Sequence[ImageSource]
    names: Sequence[str]
    files: Taken


@dataclass(frozen=True)
class Taken:
    """Pictures that were named or found, what was left out of folders, and what could not be looked at."""

    paths: list[str]
    skipped: picture_files.Skipped
    unread: list[picture_files.Unreadable]

    def say(self) -> None:
        """On stderr: nobody looks for what was never mentioned."""
        if left_out := self.skipped.describe():
            output.say(f"skipped: {left_out}")
        for each in self.unread:
            output.say(f"failed: {text_of(each.below)}: {each.why}")


def embed(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH|-",
            help="Images, folders (searched for images), .txt files (a text on each line), or - for stdin.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text; may be repeated.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="vectors.npy (float32, a row for each input; vectors.json names them) or vectors.jsonl."),
    ] = None,
    stdin: Annotated[
        Literal["texts", "paths", "image"], typer.Option(help="What - brings: lines of text, paths, or one image.")
    ] = "texts",
    null: Annotated[
        bool, typer.Option("--null", "-0", help="What - brings is separated by NUL, as by find -print0.")
    ] = False,
    normalize: Annotated[bool, typer.Option(help="Unit vectors.")] = True,
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
    """Embed images and texts.

    An input that cannot be embedded does not stop the others; its row is NaN, and the exit code is 1.
    """
    if out is not None and out.suffix not in _SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    selection = picture_files.Selection(
        hidden=hidden, follow_links=follow_links, include=include or (), exclude=exclude or ()
    )
    inputs = gather(paths or [], text or [], stdin, selection, null=null)

    async def run() -> EmbedResult:
        async with connect.vectors_client(
            url=url, api_key=api_key, model=model, store=store, timeout_s=timeout_s
        ) as client:
            return await client.embed(
                texts=inputs.texts,
                images=inputs.images,
                model=model,
                normalize=normalize,
                on_error="item",
                progress=sys.stderr.isatty() and len(inputs.names) > 1,
            )

    with output.saying_warnings():
        result = asyncio.run(run())
    if out is None:
        _print(inputs, result, as_json)
    else:
        _write(out, inputs, result)
        if as_json:
            output.print_json({"out": str(out), **_summary(inputs, result)})
        else:
            done = len(inputs.names) - len(result.errors)
            model_name = result.identity.model if result.identity else "no model"
            output.say(f"{done} of {len(inputs.names)} embedded by {model_name} -> {out}")
    for index, error in result.errors.items():
        output.say(f"failed: {inputs.names[index]}: {error}")
    inputs.files.say()
    if result.errors or inputs.files.unread:
        raise typer.Exit(FAILED_ITEMS)


def gather(
    paths: Sequence[str],
    texts: Sequence[str],
    stdin: Literal["texts", "paths", "image"],
    selection: picture_files.Selection,
    *,
    null: bool = False,
) -> Inputs:
    """Everything that was named, in order.

    Raises:
        UsageError: nothing to embed, or a path that is not there.
    """
    found_texts, images = list(texts), list[Any]()
    skipped, unread = picture_files.Skipped(), list[picture_files.Unreadable]()
    for path in paths:
        if path == "-":
            given = sys.stdin.buffer.read()
            if stdin == "image":
                images.append(given)
            elif stdin == "paths":
                lines = [os.fsdecode(line) for line in given.split(b"\0" if null else b"\n") if line.strip()]
                waits = [line for line in lines if picture_files.would_wait(line)]
                unread += [picture_files.Unreadable(line, "this is a device, pipe or socket") for line in waits]
                images += [line for line in lines if line not in waits]
            else:
                found_texts += _lines(given, "stdin", null=null)
        elif Path(path).is_dir():
            inside = taken_pictures([path], selection)
            images += inside.paths
            skipped.each += inside.skipped.each
            unread += inside.unread
        elif Path(path).suffix.lower() == ".txt":
            found_texts += _lines(_read(path), path)
        elif Path(path).is_file() or path.lower().startswith(("http://", "https://", "/dev/fd/")):
            images.append(path)
        else:
            what = "not a file" if os.path.lexists(path) else "no such file or folder"
            raise UsageError(f"{text_of(path)}: {what} (a text is given with --text, or in a .txt file)")
    names = [*found_texts, *("<stdin>" if isinstance(each, bytes) else text_of(each) for each in images)]
    files = Taken([], skipped, unread)
    if not names:
        files.say()
        raise UsageError("nothing to embed: give images, folders, .txt files, --text, or - for stdin")
    return Inputs(found_texts, images, names, files)


def taken_pictures(paths: Iterable[str], selection: picture_files.Selection) -> Taken:
    """Named pictures as they are, and those of folders. Raises UsageError: there is none at all."""
    taken = Taken(*picture_files.pictures_of(paths, selection))
    if not taken.paths:
        taken.say()
        raise UsageError("none of these can be read as a picture")
    return taken


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _lines(data: bytes, where: str, *, null: bool = False) -> list[str]:
    """Lines that are not empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "; for an image write --stdin image" if where == "stdin" else ""
        raise UsageError(f"{text_of(where)}: not UTF-8 text (byte {error.start}){remedy}") from error
    lines = text.split("\0") if null else text.splitlines()
    return [line.strip() for line in lines if line.strip()]


def _summary(inputs: Inputs, result: EmbedResult) -> dict[str, Any]:
    identity = result.identity
    return {
        "model": identity.model if identity else None,
        "fingerprint": identity.fingerprint.model_dump() if identity else None,
        "space": identity.space if identity else None,
        "dim": identity.dim if identity else None,
        "inputs": list(inputs.names),
        "errors": [
            {"index": index, "input": inputs.names[index], "code": getattr(error, "code", ""), "message": str(error)}
            for index, error in result.errors.items()
        ],
    }


def _records(inputs: Inputs, result: EmbedResult) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for index, (name, row) in enumerate(zip(inputs.names, result.vectors, strict=True)):
        error = result.errors.get(index)
        answer = {"error": str(error)} if error else {"embedding": [float(value) for value in row]}
        records.append({"index": index, "input": name, **answer})
    return records


def _write(out: Path, inputs: Inputs, result: EmbedResult) -> None:
    """Raises UsageError when the file cannot be written."""
    try:
        if out.suffix == ".npy":
            import numpy as np

            np.save(out, result.vectors)
            facts = json.dumps(_summary(inputs, result), ensure_ascii=False, indent=1)
            out.with_suffix(".json").write_text(facts + "\n", encoding="utf-8")
        else:
            lines = [json.dumps(record, ensure_ascii=False) for record in _records(inputs, result)]
            out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error


def _print(inputs: Inputs, result: EmbedResult, as_json: bool) -> None:
    """JSON lines for machines; a glance for people, because a vector is nothing to read."""
    if as_json or not output.is_terminal():
        for record in _records(inputs, result):
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
        return
    rows = [
        [name, "failed" if index in result.errors else " ".join(f"{value:+.3f}" for value in row[:4]) + " ..."]
        for index, (name, row) in enumerate(zip(inputs.names, result.vectors, strict=True))
    ]
    identity = result.identity
    title = f"{identity.model}, {identity.dim} numbers each (--out vectors.npy keeps them)" if identity else None
    output.print_table(["input", "vector"], rows[:_SHOWN_ROWS], title=title)
    if len(rows) > _SHOWN_ROWS:
        output.say(f"... and {len(rows) - _SHOWN_ROWS} more")
