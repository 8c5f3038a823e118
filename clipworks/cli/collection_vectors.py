"""Vectors that a batch job wrote (clipworks.batch), as a parquet file or a folder of them, into a collection."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipworks._progress import progress_bar
from clipworks.cli.arrow import arrow, parquet
from clipworks.cli.failures import RefusedError, UsageError
from clipworks.cli.index_tables import plain_value
from clipworks.client import AsyncClient, AsyncCollection, Item
from clipworks.errors import NotFound
from clipworks.schemas import EncoderFingerprint

_ROWS = 1000
_NEEDED = ("vector", "space", "fingerprint")
_OWN = frozenset({*_NEEDED, "error"})


@dataclass(frozen=True)
class JobVectors:
    """Files of one job, whose rows all name the same space and encoder. id_column: of the items."""

    files: Sequence[Path]
    space: str
    fingerprint: str
    count: int
    id_column: str


def are_vectors_of_a_job(path: Path) -> bool:
    """Whether it is a folder, or a parquet file with the columns that a job writes."""
    if path.is_dir():
        return True
    try:
        names: list[str] = parquet().read_schema(path).names
    except (arrow().ArrowException, OSError):
        return False
    return set(_NEEDED) <= set(names)


def read_job(path: Path, id_column: str | None) -> JobVectors:
    """What every row of the files says of its vector, and that no id comes twice; vectors are not read yet.

    Raises:
        UsageError: no parquet file, a column is missing, or an id is empty or there twice.
        RefusedError: vectors of two spaces or of two encoders; names both.
    """
    files = sorted(each for each in path.rglob("*.parquet") if each.is_file()) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: no parquet file in it")
    said: dict[str, tuple[str, Path]] = {}
    seen: set[str] = set()
    column = id_column or ""
    for file in files:
        names = _columns(file)
        column = column or ("id" if "id" in names else "path")
        if missing := [name for name in (*_NEEDED, column) if name not in names]:
            raise UsageError(f"{file}: no column {missing[0]!r}; it has {', '.join(names)} (--id-column names the ids)")
        for row in _rows(file, ["space", "fingerprint", column]):
            id = row[column]
            if not isinstance(id, str) or not id:
                raise UsageError(f"{file}: {id!r} in {column!r} is no id: ids are strings that are not empty")
            if id in seen:
                raise UsageError(f"{file}: the id {id!r} in {column!r} is there twice")
            seen.add(id)
            for name in ("space", "fingerprint"):
                first, where = said.setdefault(name, (row[name], file))
                if row[name] != first:
                    raise RefusedError(f"vectors of two models: {name} {first} in {where}, {row[name]} in {file}")
    if not seen:
        raise UsageError(f"{path}: there is no row in it")
    return JobVectors(files, said["space"][0], said["fingerprint"][0], len(seen), column)


async def fill_from_job(
    client: AsyncClient, name: str, model: str | None, job: JobVectors
) -> tuple[int, list[tuple[str, str]]]:
    """Items stored, and (id, why) of those that were not: rows with an error, and those that are refused.

    Raises:
        UsageError: there is no such collection, and no model to make it with.
        RefusedError: it is of another space, or of another encoder.
    """
    target = await _matching(client, name, model, job)
    stored, failures = 0, list[tuple[str, str]]()
    with progress_bar(f"import {name}", job.count, shown=sys.stderr.isatty()) as advance:
        for file in job.files:
            taken = [column for column in _columns(file, plain_only=True) if column not in _OWN]
            read = [*taken, "vector", *(["error"] if "error" in _columns(file) else [])]
            held: list[Item] = []
            for row in _rows(file, list(dict.fromkeys([job.id_column, *read]))):
                try:
                    held.append(_item(row, taken, job.id_column))
                except ValueError as error:
                    failures.append((row[job.id_column], str(error)))
                    advance(1)
                    continue
                if len(held) == _ROWS:
                    stored += await upserted(target, held, job.space, failures)
                    advance(len(held))
                    held = []
            if held:
                stored += await upserted(target, held, job.space, failures)
                advance(len(held))
    return stored, failures


async def _matching(client: AsyncClient, name: str, model: str | None, job: JobVectors) -> AsyncCollection:
    target = client.collection(name)
    try:
        there = await target.info()
    except NotFound:
        if model is None:
            raise UsageError(
                f"there is no collection {name}: name the model that made the vectors (--model), and it is made"
            ) from None
        detail = await client.model(model)
        _require_equal(job, detail.space, detail.fingerprint, f"model {detail.name}@{detail.version}")
        return await client.create_collection(name, model=model)
    _require_equal(job, there.space, there.fingerprint, f"collection {name}")
    return target


def _require_equal(job: JobVectors, space: str, fingerprint: EncoderFingerprint, who: str) -> None:
    if space != job.space:
        raise RefusedError(f"the vectors are of space {job.space}, {who} is of space {space}")
    if job.fingerprint not in (fingerprint.image, fingerprint.text):
        raise RefusedError(
            f"the vectors were made by the encoder {job.fingerprint}, {who} has the image encoder {fingerprint.image} "
            f"and the text encoder {fingerprint.text}"
        )


async def upserted(target: AsyncCollection, items: Sequence[Item], space: str, failures: list[tuple[str, str]]) -> int:
    """How many were stored; (id, why) of the others go to `failures`."""
    result = await target.upsert(items, space=space)
    failures += [(items[index].id, str(error)) for index, error in result.errors.items()]
    return result.upserted


def _item(row: dict[str, Any], taken: Sequence[str], id_column: str) -> Item:
    """Raises ValueError: the job says that it failed, or it cannot be an item."""
    if row.get("error"):
        raise ValueError(row["error"])
    kept = [name for name in taken if row[name] is not None and (name != id_column or name == "path")]
    return Item(id=row[id_column], vector=row["vector"], metadata={name: plain_value(row[name]) for name in kept})


def _columns(file: Path, *, plain_only: bool = False) -> list[str]:
    """Names of a file's columns. Raises UsageError: it is not parquet."""
    pa = arrow()
    try:
        schema = parquet().read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not parquet: {error}") from error
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
    return [field.name for field in schema if not (plain_only and any(kind(field.type) for kind in kinds))]


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in parquet().ParquetFile(file).iter_batches(_ROWS, columns=columns):
        yield from batch.to_pylist()
