"""Read, embed and store: workers that each take the next pictures, so files are read while others are encoded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from clipworks.cli.file_names import name_of
from clipworks.cli.index_entries import EntryProblem, PictureEntry
from clipworks.cli.index_report import IndexReport
from clipworks.client import AsyncCollection, Item
from clipworks.errors import DeadlineExceeded, TimedOut, UnreadableInput
from clipworks.results import Stored

_BYTES_IN_HAND = 8 * 2**20
# What may change without the item being another one.
_FLEETING = frozenset({"mtime"})

Describe = Callable[[PictureEntry, bytes], Mapping[str, Any]]


@dataclass(frozen=True)
class Known:
    """What the collection holds of one id: a digest of its metadata, the hash of its content, its source, and when the
    file was written (seconds since 1970)."""

    digest: bytes
    sha256: str | None
    source: str | None
    mtime: float


class Contents:
    """Which id a content belongs to, by its sha256; asked from several threads."""

    def __init__(self, known: Mapping[str, Known], without: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._holders: dict[str, str] = {}
        gone = set(without)
        for id, each in known.items():
            if each.sha256 is not None and id not in gone:
                self._holders.setdefault(each.sha256, id)

    def holder(self, sha256: str, id: str, *, before: str | None) -> str:
        """The id that holds this content, `id` itself if it is the first. before: what `id` held until now."""
        with self._lock:
            if before is not None and before != sha256 and self._holders.get(before) == id:
                del self._holders[before]
            return self._holders.setdefault(sha256, id)


@dataclass(kw_only=True)
class Work:
    """What is the same for all pictures of one run. `later`: copies, as it seemed, looked at again when all are read:
    what held their content may have changed since."""

    collection: AsyncCollection
    known: Mapping[str, Known]
    report: IndexReport
    contents: Contents
    describe: Describe
    schema: Mapping[str, str]
    model: str | None
    skip_duplicates: bool
    advance: Callable[[int], None]
    later: list[PictureEntry] | None = field(default_factory=list[PictureEntry])


async def read_known(items: AsyncIterator[Stored]) -> dict[str, Known]:
    known: dict[str, Known] = {}
    sources: dict[str, str] = {}
    async for item in items:
        source, sha256, mtime = (item.metadata.get(name) for name in ("source", "sha256", "mtime"))
        known[item.id] = Known(
            digest_of(item.metadata),
            sha256 if isinstance(sha256, str) else None,
            sources.setdefault(source, source) if isinstance(source, str) else None,
            float(mtime) if isinstance(mtime, (int, float)) else 0.0,
        )
    return known


async def index_entries(work: Work, entries: Sequence[PictureEntry], *, workers: int, batch: int) -> None:
    """Store what is new or changed; the report is filled as it goes, so that it is right whenever this ends.

    Raises:
        ClientError: a request failed that was not about one picture. What was stored stays stored.
    """
    waiting = iter(entries)
    # Which of two equal pictures is the first must not depend on which file is read faster.
    turn = asyncio.Lock() if work.skip_duplicates else nullcontext()

    async def take() -> None:
        while True:
            async with turn:
                read = await asyncio.to_thread(_read, waiting, work, batch)
            if read.count == 0:
                return
            await _store(work, read)

    tasks = [asyncio.create_task(take()) for _ in range(max(1, workers))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if later := work.later:
        work.later = None
        await index_entries(work, later, workers=workers, batch=batch)


def digest_of(metadata: Mapping[str, Any]) -> bytes:
    lasting = {key: value for key, value in metadata.items() if key not in _FLEETING}
    return hashlib.blake2b(json.dumps(lasting, sort_keys=True).encode("ascii"), digest_size=16).digest()


async def _store(work: Work, read: _Read) -> None:
    work.report.add_read(read.hashes, unchanged=read.unchanged, failures=read.failures, copies=read.copies)
    work.advance(read.unchanged + len(read.failures) + len(read.copies))
    if work.later is not None:
        work.later += read.later
    if read.items:
        await _upsert(work, read.items)


@dataclass
class _Read:
    items: list[Item] = field(default_factory=list[Item])
    failures: list[EntryProblem] = field(default_factory=list[EntryProblem])
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    copies: list[str] = field(default_factory=list[str])
    later: list[PictureEntry] = field(default_factory=list[PictureEntry])
    unchanged: int = 0
    count: int = 0


def _read(waiting: Iterator[PictureEntry], work: Work, batch: int) -> _Read:
    """The next pictures, as many as fit into a request; blocking. Asked from several threads."""
    read, size = _Read(), 0
    for entry in islice(waiting, batch):
        read.count += 1
        there = work.known.get(entry.id)
        if there and there.source not in (None, entry.source) and os.path.exists(name_of(there.source or "")):
            taken = f"the collection has an item of this id from {there.source}; use --prefix, or another collection"
            read.failures.append(EntryProblem(entry.id, taken))
            continue
        try:
            loaded = entry.load(work.schema)
            sha256 = hashlib.sha256(loaded.data).hexdigest()
            metadata = (
                loaded.metadata | dict(work.describe(entry, loaded.data)) | {"sha256": sha256, "size": len(loaded.data)}
            )
            digest = digest_of(metadata)
        except (OSError, UnreadableInput, TypeError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            read.failures.append(EntryProblem(entry.id, reason))
            continue
        holder = work.contents.holder(sha256, entry.id, before=there.sha256 if there else None)
        if holder != entry.id and work.skip_duplicates and there is None:
            if work.later is not None:
                read.later.append(entry)
                continue
            read.copies.append(entry.id)
            read.hashes[entry.id] = sha256
            continue
        read.hashes[entry.id] = sha256
        if there and there.digest == digest:
            read.unchanged += 1
            continue
        read.items.append(Item(id=entry.id, image=loaded.data, metadata=metadata))
        size += len(loaded.data)
        if size >= _BYTES_IN_HAND:
            break
    return read


async def _upsert(work: Work, items: list[Item]) -> None:
    """A request that takes too long is tried again in halves: doing it twice does no harm."""
    try:
        result = await work.collection.upsert(items, model=work.model)
    except (TimedOut, DeadlineExceeded):
        if len(items) == 1:
            raise
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            await _upsert(work, half)
        return
    work.report.add_stored(
        result.upserted, failures=[EntryProblem(items[index].id, str(error)) for index, error in result.errors.items()]
    )
    work.advance(len(items))
