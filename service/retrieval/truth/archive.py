"""Portable snapshots: one file with all rows of a collection, whole or refused.

Format: the line `CLIPWORKS-SNAPSHOT 1`, a line of JSON (specification, count, sequence), then each row as two uint32
(bytes of id, bytes of metadata), id, metadata as JSON, vector as little-endian float32; at the end the sha256 of all
before it. A collection that keeps thumbnails is of format 2: a row has a third uint32, and ends with its thumbnail,
which has 0 bytes where there is none. One that keeps position vectors is of format 3, thumbnails or not: a row has a
fourth uint32, and ends with its position vectors, or 0 bytes. No FAISS and no SQLite in it, so a file from elsewhere
can do no more than be wrong.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from model_store.files import whole_file
from service.retrieval.errors import InvalidCollection, InvalidItem, StoreCorrupt
from service.retrieval.records import CollectionSpec, Record, SnapshotInfo, StoreItem
from service.retrieval.truth.database import translate
from service.retrieval.truth.items import MAX_ID_BYTES, ItemChecks
from service.retrieval.truth.positions import MAX_POSITIONS_BYTES
from service.retrieval.truth.rows import Prepared
from service.retrieval.truth.tables import Counters
from service.retrieval.truth.thumbnails import MAX_THUMBNAIL_BYTES

_MAGIC = b"CLIPWORKS-SNAPSHOT 1\n"
_MAGIC_WITH_THUMBNAILS = b"CLIPWORKS-SNAPSHOT 2\n"
_MAGIC_WITH_POSITIONS = b"CLIPWORKS-SNAPSHOT 3\n"
_DIGEST_BYTES = 32
_LENGTHS = {_MAGIC: struct.Struct("<II"), _MAGIC_WITH_THUMBNAILS: struct.Struct("<III")}
_LENGTHS[_MAGIC_WITH_POSITIONS] = struct.Struct("<IIII")
_MAX_HEADER = 1 << 20
_MAX_METADATA = 1 << 28


@dataclass(frozen=True)
class ArchiveHeader:
    spec: CollectionSpec
    count: int
    sequence: int


def write(path: Path, spec: CollectionSpec, counters: Counters, records: Iterable[Record]) -> SnapshotInfo:
    """Raises InvalidCollection if `path` exists, StorageFull, StorageFailed."""
    if path.exists():
        raise InvalidCollection(f"{path.name} exists; a snapshot never replaces a file")
    header = {"spec": spec.model_dump(mode="json"), "count": counters.rows, "sequence": counters.sequence}
    digest = hashlib.sha256()
    size = 0

    def write_rows(stream: BinaryIO) -> None:
        nonlocal size

        def put(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            size += stream.write(data)

        magic = _magic_of(spec)
        beside = _LENGTHS[magic].size // 4 - 2
        put(magic + json.dumps(header, sort_keys=True).encode() + b"\n")
        for record in records:
            if record.vector is None:
                raise ValueError("a snapshot needs vectors")
            id = record.id.encode()
            metadata = orjson.dumps(record.metadata)
            vector = record.vector.astype("<f4").tobytes()
            kept = [each or b"" for each in (record.thumbnail, record.positions)[:beside]]
            put(_LENGTHS[magic].pack(len(id), len(metadata), *map(len, kept)) + id + metadata + vector + b"".join(kept))
        size += stream.write(digest.digest())

    try:
        with whole_file(path) as stream:
            write_rows(stream)
    except OSError as error:
        raise translate(error, path) from error
    return SnapshotInfo(str(path), digest.hexdigest(), size, counters.rows, counters.sequence)


@contextmanager
def opened(path: Path) -> Generator[tuple[ArchiveHeader, Generator[Prepared]]]:
    """Verify the whole file, then give its header and its rows.

    Raises:
        StoreCorrupt: the file is not complete, or not what was written.
        InvalidCollection: there is none.
        StorageFailed
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise InvalidCollection(f"there is no file {path.name}") from None
    except OSError as error:
        raise translate(error, path) from None
    with stream:
        try:
            magic = _verify(stream, path)
            stream.seek(len(magic))
            header = _header(stream, path)
            if _magic_of(header.spec) != magic:
                raise StoreCorrupt(f"{path.name} has a header of another format than its first line says")
        except OSError as error:
            raise translate(error, path) from None
        yield header, _rows(stream, header, path.stat().st_size)


def _magic_of(spec: CollectionSpec) -> bytes:
    """First line of a snapshot of such a collection: the oldest format that can hold it."""
    if spec.rerank is not None:
        return _MAGIC_WITH_POSITIONS
    return _MAGIC_WITH_THUMBNAILS if spec.thumbnails else _MAGIC


def _verify(stream: BinaryIO, path: Path) -> bytes:
    """Its first line."""
    left = path.stat().st_size - _DIGEST_BYTES
    magic = stream.read(len(_MAGIC))
    if left < len(_MAGIC) or magic not in _LENGTHS:
        raise StoreCorrupt(f"{path.name} is no snapshot of this version, or is cut short")
    digest = hashlib.sha256(magic)
    left -= len(magic)
    while left:
        part = stream.read(min(left, 1 << 20))
        if not part:
            raise StoreCorrupt(f"{path.name} is cut short")
        digest.update(part)
        left -= len(part)
    if stream.read(_DIGEST_BYTES) != digest.digest():
        raise StoreCorrupt(f"{path.name} is not what was written: its sha256 differs")
    return magic


def _header(stream: BinaryIO, path: Path) -> ArchiveHeader:
    try:
        found = json.loads(stream.readline(_MAX_HEADER))
        header = ArchiveHeader(CollectionSpec.model_validate(found["spec"]), found["count"], found["sequence"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreCorrupt(f"{path.name} has a header that cannot be read: {type(error).__name__}") from None
    for name, value in (("count", header.count), ("sequence", header.sequence)):
        if type(value) is not int or value < 0:
            raise StoreCorrupt(f"{path.name} has a header whose {name} is no number of rows or changes")
    return header


def _rows(stream: BinaryIO, header: ArchiveHeader, size: int) -> Generator[Prepared]:
    """size: of the file. Raises StoreCorrupt: sums that agree do not make a file from elsewhere well-formed."""
    checks = ItemChecks(header.spec, max_metadata_bytes=_MAX_METADATA)
    form = _LENGTHS[_magic_of(header.spec)]
    for place in range(header.count):
        lengths = stream.read(form.size)
        if len(lengths) != form.size:
            raise StoreCorrupt(f"row {place} of {header.count} is missing")
        id_bytes, metadata_bytes, *more = form.unpack(lengths)
        picture_bytes, grid_bytes = (*more, 0, 0)[:2]
        too_large = (
            metadata_bytes > _MAX_METADATA or picture_bytes > MAX_THUMBNAIL_BYTES or grid_bytes > MAX_POSITIONS_BYTES
        )
        if not 1 <= id_bytes <= MAX_ID_BYTES or too_large:
            raise StoreCorrupt(f"row {place} has impossible lengths")
        id, metadata = stream.read(id_bytes), stream.read(metadata_bytes)
        vector = stream.read(4 * header.spec.dim)
        picture, tokens = stream.read(picture_bytes), stream.read(grid_bytes)
        wanted = id_bytes + metadata_bytes + 4 * header.spec.dim + picture_bytes + grid_bytes
        if sum(map(len, (id, metadata, vector, picture, tokens))) != wanted:
            raise StoreCorrupt(f"row {place} is cut short")
        try:
            values = np.frombuffer(vector, "<f4").astype(np.float32)
            kept = {"thumbnail": picture or None, "positions": tokens or None}
            yield checks.prepare(StoreItem(id.decode(), values, json.loads(metadata), **kept))
        except (ValueError, RecursionError, InvalidItem) as error:
            raise StoreCorrupt(f"row {place} cannot be read: {error}") from None
    if stream.tell() != size - _DIGEST_BYTES:
        raise StoreCorrupt(f"there is more in the file than the {header.count} rows that it counts")
