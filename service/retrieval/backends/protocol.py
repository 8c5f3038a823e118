"""The small interface between the server and whatever keeps its collections.

`service.retrieval.CollectionStore` and `Collection` are the reference: their docstrings say what each call promises.
A backend that promises less says so in `CollectionInfo.durability` and in docs/retrieval.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.retrieval.records import (
    CollectionInfo,
    CollectionSpec,
    CompactReport,
    DoctorReport,
    Item,
    ItemOutcome,
    Page,
    Record,
    SearchResult,
    SnapshotInfo,
    Vector,
)
from service.retrieval.stopping import NEVER, Stop


class BackendCollection(Protocol):
    """Rows of one space. Every method blocks and may be called from many threads at once."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> CollectionSpec: ...
    def upsert(self, items: Sequence[Item], *, all_or_nothing: bool = False) -> list[ItemOutcome]: ...
    def delete(
        self, ids: Sequence[str] | None = None, *, filter: dict[str, Any] | None = None, stop: Stop = NEVER
    ) -> int: ...
    def get(self, id: str, *, with_vector: bool = False) -> Record: ...
    def vector_of(self, ids: Sequence[str]) -> list[Vector | None]: ...
    def items(
        self, *, cursor: str | None = None, limit: int = 100, with_vectors: bool = False, stop: Stop = NEVER
    ) -> Page: ...
    def search(
        self,
        vectors: Vector,
        *,
        top_k: int = 10,
        offset: int = 0,
        filter: dict[str, Any] | None = None,
        min_score: float | None = None,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exclude_ids: Sequence[Sequence[str]] | None = None,
        may_scan: bool = True,
        stop: Stop = NEVER,
    ) -> list[SearchResult]: ...
    def scan(self, filter: dict[str, Any], *, stop: Stop = NEVER) -> None: ...
    def unknown_fields(self, filter: dict[str, Any]) -> Sequence[str]: ...
    def export_rows(self, *, batch: int = 1000) -> Iterator[list[Record]]: ...
    def describe(self) -> CollectionInfo: ...
    def compact(self) -> CompactReport: ...
    def snapshot(self, path: Path, *, stop: Stop = NEVER) -> SnapshotInfo: ...
    def doctor(self, *, queries: int = 100, recall_at: int = 10, stop: Stop = NEVER) -> DoctorReport: ...


class Backend(Protocol):
    """All collections of one server."""

    def announce(self, address: str) -> None: ...
    def create(self, name: str, spec: CollectionSpec) -> tuple[BackendCollection, bool]: ...
    def get(self, name: str) -> BackendCollection: ...
    def list(self) -> list[CollectionInfo]: ...
    def drop(self, name: str) -> None: ...
    def restore(self, path: Path, *, name: str) -> BackendCollection: ...
    def close(self) -> None: ...
