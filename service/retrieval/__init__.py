"""Durable vector collections: SQLite holds the truth, FAISS in memory answers, `CollectionStore` is the door.

Its errors are in service.retrieval.errors.
"""

from __future__ import annotations

from service.retrieval.collection import Collection
from service.retrieval.records import (
    CollectionInfo,
    CollectionSpec,
    CompactReport,
    DoctorReport,
    Hit,
    IndexSpec,
    Item,
    ItemOutcome,
    Page,
    Record,
    RetrievalSettings,
    SearchResult,
    SnapshotInfo,
)
from service.retrieval.store import CollectionStore

__all__ = [
    "Collection",
    "CollectionInfo",
    "CollectionSpec",
    "CollectionStore",
    "CompactReport",
    "DoctorReport",
    "Hit",
    "IndexSpec",
    "Item",
    "ItemOutcome",
    "Page",
    "Record",
    "RetrievalSettings",
    "SearchResult",
    "SnapshotInfo",
]
