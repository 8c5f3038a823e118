"""Opens the backend that keeps a server's collections: the embedded store or Milvus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from service.retrieval import CollectionStore, RetrievalSettings
from service.retrieval.backends.protocol import Backend


class BadBackend(Exception):
    """The settings name a backend that cannot be had; the message says which setting."""


@dataclass(frozen=True)
class BackendSource:
    """`open` blocks; it is given the server's address, if it is known already. `setting` is named when it fails."""

    setting: str
    open: Callable[[str | None], Backend]


def embedded(folder: Path | None, settings: RetrievalSettings) -> BackendSource:
    """folder: None keeps everything in memory."""
    return BackendSource(
        "CLIPWORKS_DATA (--data)",
        lambda address: CollectionStore.open(folder, address=address, settings=settings),
    )


def milvus(uri: str | None, *, token: str | None, database: str | None, settings: RetrievalSettings) -> BackendSource:
    """Raises BadBackend: no address, or no library."""
    if not uri:
        raise BadBackend("CLIPWORKS_MILVUS_URI (--milvus-uri): the milvus backend needs the address of a Milvus")
    wanted = ["pymilvus"] if "://" in uri else ["pymilvus", "milvus_lite"]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise BadBackend(
            f"CLIPWORKS_COLLECTIONS_BACKEND (--collections-backend): milvus needs {' and '.join(missing)}:"
            " pip install 'clipworks[serve,milvus]', and milvus-lite for a path"
        )

    def open_it(address: str | None) -> Backend:
        from service.retrieval.backends.milvus import MilvusBackend

        return MilvusBackend(uri, token=token, database=database, settings=settings)

    return BackendSource("CLIPWORKS_MILVUS_URI (--milvus-uri)", open_it)
