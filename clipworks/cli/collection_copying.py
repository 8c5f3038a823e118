"""Encode the items of one collection again into another one, until both hold the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipworks._inputs import chunks
from clipworks.cli.index_sources import read_picture
from clipworks.client import AsyncCollection, Item
from clipworks.errors import UnreadableInput
from clipworks.results import Stored

_PASSES = 50


@dataclass(frozen=True)
class Sources:
    """Where the content of items is found: in the file that each was indexed from, below `folder`, or in a field."""

    folder: Path | None
    text_field: str | None

    def item_of(self, stored: Stored) -> Item:
        """The item with its content; blocks.

        Raises:
            OSError, UnreadableInput: the content is not there any more, or is another one.
        """
        text = stored.metadata.get(self.text_field) if self.text_field else None
        if isinstance(text, str) and "path" not in stored.metadata:
            return Item(id=stored.id, text=text, metadata=stored.metadata)
        data = read_picture(self._moved(stored))
        known = stored.metadata.get("sha256")
        if isinstance(known, str) and hashlib.sha256(data).hexdigest() != known:
            raise UnreadableInput("its picture is another one now: run `clipworks index` first")
        return Item(id=stored.id, image=data, metadata=stored.metadata)

    def _moved(self, stored: Stored) -> Mapping[str, Any]:
        """The metadata with the path below the folder that was named, if one was."""
        if self.folder is None:
            return stored.metadata
        path, source = stored.metadata.get("path"), stored.metadata.get("source")
        below = stored.id
        if isinstance(path, str) and isinstance(source, str) and Path(path).is_relative_to(source):
            below = os.path.relpath(path, source) if path != source else os.path.basename(path)
        found = (self.folder / below).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            raise UnreadableInput(f"{below} is not below {self.folder}")
        return {**stored.metadata, "path": str(found)}


@dataclass
class CopyReport:
    """What became of the items, in all passes; `failures`: why, by id."""

    encoded: int = 0
    unchanged: int = 0
    removed: int = 0
    failures: dict[str, str] = field(default_factory=dict[str, str])


class Copying:
    """`sequence`: the change of the old collection that the new one holds; -1 before the first pass."""

    def __init__(
        self,
        old: AsyncCollection,
        new: AsyncCollection,
        sources: Sources,
        report: CopyReport,
        *,
        workers: int,
        batch: int,
    ) -> None:
        self.old = old
        self.sequence = -1
        self._new, self._sources, self._report = new, sources, report
        self._workers, self._batch = workers, batch

    async def run(self, advance: Callable[[int], None]) -> None:
        """Pass over the old collection until nothing in it changed meanwhile; what is there already is left alone."""
        for _ in range(_PASSES):
            before = (await self.old.info()).sequence
            if before == self.sequence:
                return
            await self._once(advance)
            self.sequence = before

    async def add_late(self) -> None:
        """After a switch: what requests that had begun before it still stored in the old collection is added.

        The new collection is written to by its name now, so nothing in it is replaced or deleted.
        """
        if (await self.old.info()).sequence == self.sequence:
            return
        there = {item.id async for item in self._new.items()}
        late = [item async for item in self.old.items() if item.sequence > self.sequence and item.id not in there]
        await self._encode(late, lambda _: None)

    async def _once(self, advance: Callable[[int], None]) -> None:
        there = {item.id: _digest(item) async for item in self._new.items()}
        seen: set[str] = set()
        waiting: list[Stored] = []
        self._report.unchanged = 0
        self._report.failures.clear()
        async for item in self.old.items():
            seen.add(item.id)
            if there.get(item.id) == _digest(item):
                self._report.unchanged += 1
                advance(1)
                continue
            waiting.append(item)
            if len(waiting) >= self._batch * self._workers:
                await self._encode(waiting, advance)
                waiting = []
        await self._encode(waiting, advance)
        if gone := [id for id in there if id not in seen or id in self._report.failures]:
            self._report.removed += await self._new.delete(gone)

    async def _encode(self, items: list[Stored], advance: Callable[[int], None]) -> None:
        async def some(part: Sequence[Stored]) -> None:
            found = await asyncio.to_thread(self._read, part)
            if found:
                result = await self._new.upsert(found)
                self._report.encoded += result.upserted
                self._report.failures |= {found[n].id: str(error) for n, error in result.errors.items()}
            advance(len(part))

        tasks = [asyncio.create_task(some(part)) for part in chunks(items, self._batch)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _read(self, part: Sequence[Stored]) -> list[Item]:
        found: list[Item] = []
        for stored in part:
            try:
                found.append(self._sources.item_of(stored))
            except OSError as error:
                self._report.failures[stored.id] = f"{error.filename or stored.id}: {error.strerror or error}"
            except UnreadableInput as error:
                self._report.failures[stored.id] = str(error)
        return found


def _digest(item: Stored) -> bytes:
    return hashlib.blake2b(json.dumps(item.metadata, sort_keys=True).encode("ascii"), digest_size=16).digest()
