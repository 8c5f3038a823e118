"""Small collections to test with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.retrieval import CollectionSpec, EmbeddedCollection, IndexSpec, StoreItem


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def spec() -> Callable[..., CollectionSpec]:
    def make(
        dim: int = 8,
        kind: str = "flat",
        schema: dict[str, Any] | None = None,
        *,
        thumbnails: bool = False,
        **index: Any,
    ) -> CollectionSpec:
        return CollectionSpec(
            model="m@1",
            space="space",
            fingerprints={"image": "f"},
            dim=dim,
            index=IndexSpec(kind=kind, **index),
            metadata_schema=schema or {},
            thumbnails=thumbnails,
        )

    return make


@pytest.fixture
def vectors() -> Callable[..., np.ndarray]:
    return unit


@pytest.fixture
def fill() -> Callable[..., np.ndarray]:
    """Rows r0, r1, ... with metadata n, group; their vectors."""

    def put(collection: EmbeddedCollection, rows: int, *, seed: int = 0, first: int = 0) -> np.ndarray:
        values = unit(rows, collection.spec.dim, seed)
        collection.upsert(
            [StoreItem(f"r{first + n}", values[n], {"n": first + n, "group": (first + n) % 10}) for n in range(rows)]
        )
        return values

    return put


@pytest.fixture
def contents() -> Callable[[EmbeddedCollection], dict[str, tuple[bytes, str, bytes | None]]]:
    """All that a collection holds, comparable."""

    def read(collection: EmbeddedCollection) -> dict[str, tuple[bytes, str, bytes | None]]:
        return {
            record.id: (record.vector.tobytes(), repr(sorted(record.metadata.items())), record.thumbnail)
            for batch in collection.export_rows()
            for record in batch
        }

    return read
