"""`clipworks embed`: files, folders and lines of text -> vectors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.results import EmbedResult

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_SUFFIXES = (".npy", ".jsonl")
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Inputs:
    """What to embed: texts first, then images, each with the name it is shown by."""

    texts: Sequence[str]
    images: Sequence[ImageSource]
    names: Sequence[str]


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
    normalize: Annotated[bool, typer.Option(help="Unit vectors.")] = True,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Embed images and texts.

    An input that cannot be embedded does not stop the others; its row is NaN, and the exit code is 1.
    """
    if out is not None and out.suffix not in _SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    inputs = gather(paths or [], text or [], stdin)

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
    if result.errors:
        raise typer.Exit(FAILED_ITEMS)


def gather(paths: Sequence[str], texts: Sequence[str], stdin: Literal["texts", "paths", "image"]) -> Inputs:
    """Everything that was named, in order.

    Raises:
        UsageError: nothing to embed, or a path that is not there.
    """
    found_texts, images = list(texts), list[Any]()
    for path in paths:
        if path == "-":
            if stdin == "image":
                images.append(sys.stdin.buffer.read())
                continue
            lines = _lines(sys.stdin.buffer.read(), "stdin")
            (found_texts if stdin == "texts" else images).extend(lines)
        elif Path(path).is_dir():
            images += images_below(Path(path))
        elif Path(path).suffix.lower() == ".txt":
            found_texts += _lines(_read(path), path)
        elif Path(path).is_file() or path.lower().startswith(("http://", "https://")):
            images.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder (a text is given with --text, or in a .txt file)")
    names = [*found_texts, *("<stdin>" if isinstance(each, bytes) else str(each) for each in images)]
    if not names:
        raise UsageError("nothing to embed: give images, folders, .txt files, --text, or - for stdin")
    return Inputs(found_texts, images, names)


def images_below(folder: Path) -> list[str]:
    """Image files of a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        UsageError: there is none.
    """
    found = sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UsageError(f"{folder}: no image in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _lines(data: bytes, where: str) -> list[str]:
    """Lines that are not empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "; for an image write --stdin image" if where == "stdin" else ""
        raise UsageError(f"{where}: not UTF-8 text (byte {error.start}){remedy}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


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
