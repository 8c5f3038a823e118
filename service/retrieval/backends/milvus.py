"""Collections in Milvus, for who outgrows one machine. Chosen by CLIPWORKS_COLLECTIONS_BACKEND=milvus.

What a collection is bound to lies in its properties there, so several servers may share one Milvus. What differs from
the embedded store: a write of many items may be applied in part when it fails, there are no snapshots, and what an
answer promises is Milvus' to keep (`durability`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from pathlib import Path

from service.retrieval.backends.errors import NotSupported
from service.retrieval.backends.milvus_collection import MilvusCollection
from service.retrieval.backends.milvus_connection import MilvusConnection
from service.retrieval.backends.milvus_rows import (
    READY,
    SPEC,
    add_fields,
    built_kind,
    index_params,
    name_here,
    name_there,
)
from service.retrieval.errors import CollectionConflict, CollectionNotFound, InvalidCollection, StoreCorrupt
from service.retrieval.records import NAME_PATTERN, CollectionDescription, CollectionSpec, Loss, RetrievalSettings
from service.retrieval.truth import archive
from service.retrieval.truth.rows import Prepared

_RESTORE_ROWS = 1000
_NO_ALIASES = "the milvus backend has no aliases: a Milvus collection cannot be renamed and aliased in one step"


class Clock:
    """Numbers of changes that grow through restarts and fit a double: microseconds, never the same twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = self._last = time.time_ns() // 1000
        self._by_name: dict[str, int] = {}

    def tick(self, name: str) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            self._by_name[name] = self._last
            return self._last

    def of(self, name: str) -> int:
        """Of the last change that came through this server."""
        with self._lock:
            return self._by_name.get(name, self._started)


class MilvusBackend:
    """See protocol.py. Safe from any thread."""

    def __init__(
        self, uri: str, *, settings: RetrievalSettings, token: str | None = None, database: str | None = None
    ) -> None:
        """Raises StorageFailed, BackendUnavailable."""
        self._connection = MilvusConnection(uri, token=token, database=database)
        self._settings = settings
        self._clock = Clock()
        self._changing = threading.Lock()
        for there in self._connection.names():
            if name_here(there) is not None:
                self._connection.write("load_collection", there)  # milvus-lite opens them unloaded

    def announce(self, address: str) -> None:
        """Nobody else needs it: a Milvus serves many."""

    def create(self, name: str, spec: CollectionSpec) -> tuple[MilvusCollection, bool]:
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidCollection(f"a collection's name must match {NAME_PATTERN.pattern}, got {name[:80]!r}")
        built_kind(spec)
        _refuse_what_is_beside(spec)
        with self._changing:
            there = self._find(name)
            if there is not None:
                if there != spec:
                    raise CollectionConflict(f"collection {name} exists with another specification")
                return self._collection(name, there), False
            self._make(name, spec, ready=True)
        return self._collection(name, spec), True

    def get(self, name: str) -> MilvusCollection:
        spec = self._find(name)
        if spec is None:
            raise CollectionNotFound(f"there is no collection {name[:80]!r}")
        return self._collection(name, spec)

    def list(self) -> list[CollectionDescription]:
        names = sorted(name for each in self._connection.names() if (name := name_here(each)) is not None)
        found: list[CollectionDescription] = []
        for name in names:
            spec = self._find(name)
            if spec is not None:
                found.append(self._collection(name, spec).describe())
        return found

    def aliases(self) -> dict[str, str]:
        return {}

    def set_alias(
        self, name: str, collection: str, *, keep_as: str | None = None, if_sequence: int | None = None
    ) -> bool:
        raise NotSupported(_NO_ALIASES)

    def delete_alias(self, name: str) -> None:
        raise NotSupported(_NO_ALIASES)

    def drop(self, name: str) -> None:
        with self._changing:
            self.get(name)
            self._connection.write("drop_collection", name_there(name))
            self._clock.tick(name)

    def restore(self, path: Path, *, name: str) -> MilvusCollection:
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidCollection(f"a collection's name must match {NAME_PATTERN.pattern}, got {name[:80]!r}")
        with self._changing, archive.opened(path) as (header, rows):
            if self._find(name) is not None:
                raise CollectionConflict(f"collection {name} exists; restore under another name, or drop it first")
            _refuse_what_is_beside(header.spec)
            self._make(name, header.spec, ready=False)
            made = self._collection(name, header.spec)
            try:
                self._fill(made, rows, header.count, path)
                self._connection.write("alter_collection_properties", name_there(name), properties={READY: "yes"})
            except BaseException:
                self._connection.write("drop_collection", name_there(name))
                raise
            return made

    def losses(self) -> tuple[Loss, ...]:
        """A Milvus keeps its own log, and says itself what it lost."""
        return ()

    def acknowledge_loss(self, name: str) -> int:
        self.get(name)
        return 0

    def close(self, timeout_s: float | None = None) -> None:
        self._connection.close()

    def _find(self, name: str) -> CollectionSpec | None:
        """What a complete collection is bound to; what an interrupted restore left counts as nothing."""
        if not NAME_PATTERN.fullmatch(name):
            return None
        properties = self._connection.properties(name_there(name))
        if properties is None or properties.get(READY) != "yes":
            return None
        try:
            return CollectionSpec.model_validate_json(properties[SPEC])
        except (KeyError, ValueError):
            raise StoreCorrupt(f"collection {name} in Milvus has no specification that can be read") from None

    def _make(self, name: str, spec: CollectionSpec, *, ready: bool) -> None:
        from pymilvus import MilvusClient

        there = name_there(name)
        if self._connection.properties(there) is not None:
            self._connection.write("drop_collection", there)  # unready: see _find
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        add_fields(schema, spec)
        params = MilvusClient.prepare_index_params()
        kind, options = index_params(spec)
        params.add_index("vector", index_type=kind, metric_type="IP", params=options)
        if self._connection.indexes_arrays:  # otherwise a filter reads them all
            params.add_index("facts", index_type="INVERTED")
        self._connection.write(
            "create_collection",
            there,
            schema=schema,
            index_params=params,
            consistency_level="Strong",  # a search sees every write that was answered
            properties={SPEC: spec.model_dump_json(), READY: "yes" if ready else "no"},
        )
        self._clock.tick(name)

    def _fill(self, made: MilvusCollection, rows: Generator[Prepared], count: int, path: Path) -> None:
        done = 0
        while done < count:
            batch = [row for _, row in zip(range(min(_RESTORE_ROWS, count - done)), rows, strict=False)]
            made.put(batch)
            done += len(batch)
        if made.count() != count:
            raise StoreCorrupt(f"{path} has an id twice")

    def _collection(self, name: str, spec: CollectionSpec) -> MilvusCollection:
        return MilvusCollection(name, spec, connection=self._connection, clock=self._clock, settings=self._settings)


def _refuse_what_is_beside(spec: CollectionSpec) -> None:
    """Raises NotSupported."""
    if spec.thumbnails:
        raise NotSupported(
            "thumbnails: the milvus backend keeps no pictures; leave it out, or set CLIPWORKS_MEDIA_ROOT"
        )
    if spec.rerank is not None:
        raise NotSupported(
            "rerank: the milvus backend keeps no position vectors; leave it out, or use the embedded backend"
        )
