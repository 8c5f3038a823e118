"""Durable vector collections: SQLite holds the truth, FAISS in memory answers, `CollectionStore` is the entry point.

Its errors are in service.retrieval.errors. Names are loaded when they are first used: FAISS and SQLite take a
while, and whoever only needs a record's type should not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.retrieval.collection import EmbeddedCollection
    from service.retrieval.records import (
        CollectionDescription,
        CollectionSpec,
        CompactReport,
        DoctorReport,
        IndexSpec,
        ItemOutcome,
        Loss,
        Page,
        Record,
        RetrievalSettings,
        SearchOutcome,
        SnapshotInfo,
        StoredHit,
        StoreItem,
    )
    from service.retrieval.store import CollectionStore

__all__ = [
    "EmbeddedCollection",
    "CollectionDescription",
    "CollectionSpec",
    "CollectionStore",
    "CompactReport",
    "DoctorReport",
    "StoredHit",
    "IndexSpec",
    "StoreItem",
    "ItemOutcome",
    "Loss",
    "Page",
    "Record",
    "RetrievalSettings",
    "SearchOutcome",
    "SnapshotInfo",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {"EmbeddedCollection": "collection", "CollectionStore": "store"}
    return getattr(importlib.import_module(f"{__name__}.{modules.get(name, 'records')}"), name)
