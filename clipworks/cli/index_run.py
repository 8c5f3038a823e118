"""Read, embed and store: workers that each take the next pictures, so files are read while others are encoded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from clipworks.cli.index_sources import Entry, Listing, Problem
from clipworks.client import AsyncCollection, Item
from clipworks.errors import DeadlineExceeded, TimedOut, UnreadableInput
from clipworks.results import Stored

_BYTES_IN_HAND = 8 * 2**20
# What may change without the item being another one.
_FLEETING = frozenset({"mtime"})


@dataclass(frozen=True)
class Known:
    """What the collection holds of one id: a digest of its metadata, in which its content's hash is, and its source."""

    digest: bytes
    source: str | None


@dataclass
class Report:
    """What became of the pictures, and when the model was ready (time.monotonic)."""

    began: float = field(default_factory=time.monotonic)
    stored: int = 0
    unchanged: int = 0
    pruned: int = 0
    failures: list[Problem] = field(default_factory=list[Problem])

    @property
    def looked_at(self) -> int:
        return self.stored + self.unchanged + len(self.failures)


async def read_known(items: AsyncIterator[Stored]) -> dict[str, Known]:
    known: dict[str, Known] = {}
    sources: dict[str, str] = {}
    async for item in items:
        source = item.metadata.get("source")
        source = sources.setdefault(source, source) if isinstance(source, str) else None
        known[item.id] = Known(digest_of(item.metadata), source)
    return known


async def index_entries(
    collection: AsyncCollection,
    listing: Listing,
    known: Mapping[str, Known],
    report: Report,
    *,
    model: str | None,
    workers: int,
    batch: int,
    advance: Callable[[int], None],
) -> None:
    """Store what is new or changed; `report` is filled as it goes, so that it is right whenever this ends.

    Raises:
        ClientError: a request failed that was not about one picture. What was stored stays stored.
    """
    waiting = iter(listing.entries)

    async def work() -> None:
        while chunk := list(islice(waiting, batch)):
            await _store_chunk(collection, iter(chunk), known, report, model=model, advance=advance)

    tasks = [asyncio.create_task(work()) for _ in range(max(1, workers))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def gone(listing: Listing, known: Mapping[str, Known]) -> list[str]:
    """Ids of items that came from these sources and are not there any more."""
    there = {entry.id for entry in listing.entries}
    return [id for id, each in known.items() if each.source in listing.sources and id not in there]


def digest_of(metadata: Mapping[str, Any]) -> bytes:
    lasting = {key: value for key, value in metadata.items() if key not in _FLEETING}
    return hashlib.blake2b(json.dumps(lasting, sort_keys=True).encode("ascii"), digest_size=16).digest()


async def _store_chunk(
    collection: AsyncCollection,
    chunk: Iterator[Entry],
    known: Mapping[str, Known],
    report: Report,
    *,
    model: str | None,
    advance: Callable[[int], None],
) -> None:
    while True:
        read = await asyncio.to_thread(_read, chunk, known)
        if read.count == 0:
            return
        report.unchanged += read.unchanged
        report.failures += read.failures
        advance(read.unchanged + len(read.failures))
        if read.items:
            await _upsert(collection, read.items, report, model=model, advance=advance)


@dataclass
class _Read:
    items: list[Item] = field(default_factory=list[Item])
    failures: list[Problem] = field(default_factory=list[Problem])
    unchanged: int = 0
    count: int = 0


def _read(chunk: Iterator[Entry], known: Mapping[str, Known]) -> _Read:
    """The next pictures of a chunk, as many as fit into a request; blocking."""
    read, size = _Read(), 0
    for entry in chunk:
        read.count += 1
        there = known.get(entry.id)
        if there and there.source not in (None, entry.source) and os.path.exists(there.source or ""):
            taken = f"the collection has an item of this id from {there.source}; use --prefix, or another collection"
            read.failures.append(Problem(entry.id, taken))
            continue
        try:
            loaded = entry.load()
            facts = {"sha256": hashlib.sha256(loaded.data).hexdigest(), "size": len(loaded.data)}
            metadata = loaded.metadata | facts
            digest = digest_of(metadata)
        except (OSError, UnreadableInput, TypeError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            read.failures.append(Problem(entry.id, reason))
            continue
        if there and there.digest == digest:
            read.unchanged += 1
            continue
        read.items.append(Item(id=entry.id, image=loaded.data, metadata=metadata))
        size += len(loaded.data)
        if size >= _BYTES_IN_HAND:
            break
    return read


async def _upsert(
    collection: AsyncCollection,
    items: list[Item],
    report: Report,
    *,
    model: str | None,
    advance: Callable[[int], None],
) -> None:
    """A request that takes too long is tried again in halves: doing it twice does no harm."""
    try:
        result = await collection.upsert(items, model=model)
    except (TimedOut, DeadlineExceeded):
        if len(items) == 1:
            raise
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            await _upsert(collection, half, report, model=model, advance=advance)
        return
    report.stored += result.upserted
    report.failures += [Problem(items[index].id, str(error)) for index, error in result.errors.items()]
    advance(len(items))
