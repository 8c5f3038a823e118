"""Looking after collections while they are served: doctor, compact, snapshots that lie on the server, restore."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from service.collections.facade import Collections
from service.faults import StateConflict, UnknownName
from service.retrieval import CollectionDescription, CompactReport, DoctorReport, SnapshotInfo
from service.retrieval.backends.protocol import Backend
from service.retrieval.stopping import Stop
from service.retrieval.truth.database import translated

FOLDER = "snapshots"
SNAPSHOT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,119}\.snapshot$"
_NAME = re.compile(SNAPSHOT_PATTERN[1:-1])


class CollectionUpkeep:
    """Long calls, one at a time, without a deadline; searches and writes go on meanwhile.

    folder: the server's data folder; None when it keeps nothing on disk, and then there are no snapshots.
    """

    def __init__(self, collections: Collections, folder: Path | None) -> None:
        self._collections = collections
        self._folder = None if folder is None else folder / FOLDER

    async def doctor(self, name: str, *, queries: int, recall_at: int) -> DoctorReport:
        return await self._collections.look_after(
            lambda store, stop: store.get(name).doctor(queries=queries, recall_at=recall_at, stop=stop)
        )

    async def compact(self, name: str) -> CompactReport:
        return await self._collections.look_after(lambda store, _: store.get(name).compact())

    async def acknowledge_loss(self, name: str) -> int:
        """How many losses of the collection are no longer shown. Raises CollectionNotFound."""
        return await self._collections.look_after(lambda store, _: store.acknowledge_loss(name))

    async def snapshot(self, name: str) -> SnapshotInfo:
        """Write a snapshot under a name that the server chooses; a path from outside never reaches the disk.

        Raises:
            StateConflict: the collections are in memory.
            CollectionNotFound, NotSupported, StorageFull
        """
        folder = self._required()
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        file = folder / f"{name.replace('@', '-')}-{moment}-{secrets.token_hex(4)}.snapshot"

        def write(store: Backend, stop: Stop) -> SnapshotInfo:
            collection = store.get(name)
            with translated(folder):
                folder.mkdir(parents=True, exist_ok=True)
                # What a killed process left half written; one is made at a time, so no other is being written.
                for left in folder.glob(".*.snapshot.writing"):
                    left.unlink(missing_ok=True)
            return collection.snapshot(file, stop=stop)

        return await self._collections.look_after(write)

    async def restore(self, name: str, snapshot: str) -> CollectionDescription:
        """A new collection from a snapshot that lies on the server.

        Raises:
            UnknownName: there is no such snapshot.
            CollectionConflict, StoreCorrupt, InvalidCollection
        """
        return await self._collections.look_after(
            lambda store, _: store.restore(self.file_of(snapshot), name=name).describe()
        )

    def list(self) -> list[tuple[str, int]]:
        """(name, bytes) of every snapshot that lies on the server."""
        if self._folder is None or not self._folder.is_dir():
            return []
        with translated(self._folder):
            files = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and _is_file(path)]
            return sorted((path.name, path.stat().st_size) for path in files)

    def file_of(self, snapshot: str) -> Path:
        """Raises UnknownName, also for a name that no snapshot can have, and for a link."""
        folder = self._required()
        file = folder / snapshot
        if not _NAME.fullmatch(snapshot) or not _is_file(file):
            raise UnknownName(f"this server has no snapshot {snapshot[:130]!r}")
        return file

    def delete(self, snapshot: str) -> None:
        """Raises UnknownName."""
        file = self.file_of(snapshot)
        with translated(file):
            file.unlink(missing_ok=True)

    def _required(self) -> Path:
        if self._folder is None:
            raise StateConflict("snapshots lie in the data folder, and this server keeps its collections in memory")
        return self._folder


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
