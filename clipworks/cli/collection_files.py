"""A collection as a parquet file and a manifest, out and in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipworks._progress import progress_bar
from clipworks.cli import connect, output
from clipworks.cli.arrow import arrow, parquet
from clipworks.cli.collection_vectors import are_vectors_of_a_job, fill_from_job, read_job, upserted
from clipworks.cli.failures import FAILED_ITEMS, RefusedError, UsageError
from clipworks.client import AsyncClient, AsyncCollection, Item
from clipworks.errors import NotFound
from clipworks.results import Stored
from clipworks.schemas import VIEWS, CollectionIndex, CollectionInfo, EncoderFingerprint, FieldType
from model_store.files import whole_file, write_whole

_ROWS = 1000


class CopyManifest(BaseModel):
    """What must be known about a parquet file of vectors before anyone may use them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["clipworks-collection"] = "clipworks-collection"
    format_version: Literal[1] = 1
    collection: str
    model: str
    space: str
    fingerprint: EncoderFingerprint
    dim: int
    index: CollectionIndex
    metadata_schema: dict[str, FieldType]
    count: int
    sequence: int
    one_moment: bool
    sha256: str
    created: str
    views: bool = Field(default=False, exclude_if=lambda kept: not kept)


def manifest_path(file: Path) -> Path:
    return file.with_name(file.stem + ".manifest.json")


def export_collection(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="photos.parquet; it must not exist.")],
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Write all items as parquet (id, vector, metadata as JSON), and FILE's manifest.json beside it.

    Thumbnails and what is kept for a reranker are not among that: a snapshot carries them.
    """
    if file.suffix != ".parquet":
        raise UsageError(f"{file}: expected a name that ends in .parquet")
    for each in (file, manifest_path(file)):
        if each.exists():
            raise UsageError(f"{each} exists; an export never replaces a file")

    async def run() -> tuple[CopyManifest, list[str]]:
        async with connect.collections_client(
            url=url, api_key=api_key, model=None, store=store, data=data, timeout_s=timeout_s
        ) as client:
            target = client.collection(name)
            before = await target.info()
            count = await _write_rows(file, before, target.items(include=("metadata", "vector"), page=_ROWS))
            after = await target.info()
            is_unchanged = (before.sequence, before.count) == (after.sequence, after.count)
            if is_unchanged and count != after.count:
                raise RefusedError(f"{file} has {count} items, the collection {after.count}: do not rely on it")
            beside = {"thumbnails": before.thumbnails, "position vectors": before.rerank}
            return _manifest(file, before, after, count), [name for name, kept in beside.items() if kept is not None]

    try:
        manifest, beside = asyncio.run(run())
        _write_manifest(file, manifest)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from error
    if not manifest.one_moment:
        output.say("the collection changed meanwhile, or may have: the file is not known to hold one moment of it")
    if beside:
        output.say(f"{' and '.join(beside)} are not in the file: `clipworks collections snapshot` carries them")
    if as_json:
        output.print_json(manifest.model_dump())
    else:
        output.say(f"{manifest.count} items of {name} in {file} and {manifest_path(file)}")


def import_collection(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="Made by `export`, with its manifest beside it; or parquet of a batch job (docs/batch.md).",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Collection to fill; default: as it was called, if it was exported.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION that made the vectors, where it has another name here.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of the ids, of a batch job; default: id, else path.", show_default=False),
    ] = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Put vectors into a collection of the same space, made if it is not there. Equal ids are replaced."""
    if not manifest_path(file).exists() and file.exists() and are_vectors_of_a_job(file):
        if name is None:
            raise UsageError(f"{file} was written by a batch job: name the collection to fill (--name)")
        target, job = name, read_job(file, id_column)

        async def fill(client: AsyncClient) -> tuple[int, list[tuple[str, str]]]:
            return await fill_from_job(client, target, model, job)

    else:
        manifest = read_manifest(file)
        target, model = name or manifest.collection, model or manifest.model

        async def fill(client: AsyncClient) -> tuple[int, list[tuple[str, str]]]:
            return await _fill(await _matching(client, target, manifest, model or manifest.model), file, manifest)

    async def run() -> tuple[int, list[tuple[str, str]]]:
        async with connect.collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=timeout_s, creates=True
        ) as client:
            return await fill(client)

    _say(asyncio.run(run()), target, as_json)


def _say(result: tuple[int, list[tuple[str, str]]], target: str, as_json: bool) -> None:
    """Raises typer.Exit: some failed."""
    stored, failures = result
    if as_json:
        shown = [{"id": id, "message": reason} for id, reason in failures]
        output.print_json({"collection": target, "stored": stored, "failures": shown})
    else:
        output.say(f"{stored} items stored in {target}, {len(failures)} failed")
        if failures:
            output.print_table(["failed", "why"], failures)
    if failures:
        raise typer.Exit(FAILED_ITEMS)


def read_manifest(file: Path) -> CopyManifest:
    """The manifest beside an exported file, which must be the file that it describes.

    Raises:
        UsageError: one of the two is not there, or they do not belong together.
    """
    path = manifest_path(file)
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    try:
        manifest = CopyManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: vectors without it have no known space") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}") from error
    if _sha256(file) != manifest.sha256:
        raise UsageError(f"{file} is not the file that {path.name} describes: its sha256 differs")
    return manifest


async def _write_rows(file: Path, info: CollectionInfo, items: AsyncIterator[Stored]) -> int:
    """Whole or not at all."""
    pa, pq = arrow(), parquet()

    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), info.dim)), ("metadata", pa.string())])
    count = 0
    with whole_file(file) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        held: list[Stored] = []
        with progress_bar(f"export {info.name}", info.count, shown=sys.stderr.isatty()) as advance:
            async for item in items:
                held.append(item)
                if len(held) == _ROWS:
                    writer.write_batch(_batch_of(held, schema))
                    count += len(held)
                    advance(len(held))
                    held = []
            if held:
                writer.write_batch(_batch_of(held, schema))
                count += len(held)
                advance(len(held))
    return count


def _batch_of(items: list[Stored], schema: Any) -> Any:
    pa = arrow()

    columns: list[Any] = [
        pa.array([item.id for item in items], schema.field("id").type),
        pa.array([list(item.vector) for item in items if item.vector is not None], schema.field("vector").type),
        pa.array([json.dumps(item.metadata, ensure_ascii=False) for item in items], schema.field("metadata").type),
    ]
    return pa.record_batch(columns, schema=schema)


def _manifest(file: Path, before: CollectionInfo, after: CollectionInfo, count: int) -> CopyManifest:
    return CopyManifest(
        collection=before.name,
        model=before.model,
        space=before.space,
        fingerprint=before.fingerprint,
        dim=before.dim,
        index=before.index,
        metadata_schema=before.metadata_schema,
        count=count,
        sequence=after.sequence,
        # In a Milvus others may write, and their changes do not show in this server's sequence.
        one_moment=before.sequence == after.sequence and after.backend == "embedded",
        sha256=_sha256(file),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        views=before.views is not None,
    )


def _write_manifest(file: Path, manifest: CopyManifest) -> None:
    write_whole(manifest_path(file), (manifest.model_dump_json(indent=2) + "\n").encode())


async def _matching(client: AsyncClient, name: str, manifest: CopyManifest, model: str) -> AsyncCollection:
    """The collection to fill; what made its vectors must be what made the file's.

    Raises:
        RefusedError: it is not; names both.
    """
    target = client.collection(name)
    try:
        there = await target.info()
    except NotFound:
        detail = await client.model(model)
        # The space of rows that hold two vectors is the collection's, which is made to know it.
        space = manifest.space if manifest.views else detail.space
        _require_equal(manifest, space, detail.fingerprint, f"model {detail.name}@{detail.version}")
        made = await client.create_collection(
            name,
            model=model,
            index=manifest.index.model_dump(),
            metadata_schema=manifest.metadata_schema,
            views=VIEWS if manifest.views else None,
        )
        if manifest.views and (space := (await made.info()).space) != manifest.space:
            await client.delete_collection(name)
            _require_equal(manifest, space, detail.fingerprint, f"model {detail.name}@{detail.version}")
        return made
    _require_equal(manifest, there.space, there.fingerprint, f"collection {name}")
    return target


def _require_equal(manifest: CopyManifest, space: str, fingerprint: EncoderFingerprint, who: str) -> None:
    if space != manifest.space:
        raise RefusedError(f"the file's vectors are of space {manifest.space}, {who} is of space {space}")
    if fingerprint != manifest.fingerprint:
        raise RefusedError(
            f"the file's vectors were made by {_shown(manifest.fingerprint)}, {who} has {_shown(fingerprint)}"
        )


def _shown(fingerprint: EncoderFingerprint) -> str:
    return f"image encoder {fingerprint.image} and text encoder {fingerprint.text}"


async def _fill(target: AsyncCollection, file: Path, manifest: CopyManifest) -> tuple[int, list[tuple[str, str]]]:
    pa, pq = arrow(), parquet()

    stored, failures = 0, list[tuple[str, str]]()
    try:
        table = pq.ParquetFile(file)
        with progress_bar(f"import {target.name}", manifest.count, shown=sys.stderr.isatty()) as advance:
            for batch in table.iter_batches(_ROWS, columns=["id", "vector", "metadata"]):
                items = [
                    Item(id=row["id"], vector=row["vector"], metadata=json.loads(row["metadata"]))
                    for row in batch.to_pylist()
                ]
                stored += await upserted(target, items, manifest.space, failures)
                advance(len(items))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: not a file of `export`: {error}") from error
    return stored, failures


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
