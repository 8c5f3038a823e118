"""The small interface between the server and whatever keeps its collections.

`service.retrieval.CollectionStore` and `Collection` are the reference: their docstrings say what each call promises.
A backend that promises less says so in `CollectionDescription.durability` and in docs/retrieval.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.retrieval.records import (
    CollectionDescription,
    CollectionSpec,
    CompactReport,
    DoctorReport,
    ItemOutcome,
    Loss,
    Page,
    Positions,
    Record,
    SearchOutcome,
    SnapshotInfo,
    StoreItem,
    Vector,
)
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.surveys import Survey, SurveySpec


class BackendCollection(Protocol):
    """Rows of one space. Every method blocks and may be called from many threads at once."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> CollectionSpec: ...
    def upsert(self, items: Sequence[StoreItem], *, all_or_nothing: bool = False) -> list[ItemOutcome]: ...
    def delete(
        self, ids: Sequence[str] | None = None, *, filter: dict[str, Any] | None = None, stop: Stop = NEVER
    ) -> int: ...
    def get(self, id: str, *, with_vector: bool = False, with_thumbnail: bool = False) -> Record: ...
    def vector_of(self, ids: Sequence[str]) -> list[Vector | None]: ...
    def positions_of(self, ids: Sequence[str]) -> list[Positions | None]: ...
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
    ) -> list[SearchOutcome]: ...
    def survey(
        self,
        vectors: Vector,
        asked: SurveySpec,
        *,
        filter: dict[str, Any] | None = None,
        min_score: float | None = None,
        exclude_ids: Sequence[Sequence[str]] | None = None,
        may_scan: bool = True,
        stop: Stop = NEVER,
    ) -> list[Survey]: ...
    def scan(self, filter: dict[str, Any], *, stop: Stop = NEVER) -> None: ...
    def unknown_fields(self, filter: dict[str, Any]) -> Sequence[str]: ...
    def export_rows(self, *, batch: int = 1000) -> Iterator[list[Record]]: ...
    def describe(self) -> CollectionDescription: ...
    def compact(self) -> CompactReport: ...
    def snapshot(self, path: Path, *, stop: Stop = NEVER) -> SnapshotInfo: ...
    def doctor(self, *, queries: int = 100, recall_at: int = 10, stop: Stop = NEVER) -> DoctorReport: ...


class Backend(Protocol):
    """All collections of one server."""

    def announce(self, address: str) -> None: ...
    def create(self, name: str, spec: CollectionSpec) -> tuple[BackendCollection, bool]: ...
    def get(self, name: str) -> BackendCollection: ...
    def list(self) -> list[CollectionDescription]: ...
    def aliases(self) -> Mapping[str, str]: ...
    def set_alias(
        self, name: str, collection: str, *, keep_as: str | None = None, if_sequence: int | None = None
    ) -> bool: ...
    def delete_alias(self, name: str) -> None: ...
    def drop(self, name: str) -> None: ...
    def restore(self, path: Path, *, name: str) -> BackendCollection: ...
    def losses(self) -> Sequence[Loss]: ...
    def acknowledge_loss(self, name: str) -> int: ...
    def close(self, timeout_s: float | None = None) -> None: ...
