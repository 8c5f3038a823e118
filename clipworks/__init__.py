"""clipworks: train CLIP variants, export them to verified ONNX artifacts, serve them over HTTP.

`import clipworks` loads nothing; the first use of a name loads the client, which needs httpx2 and pydantic only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from clipworks.client import AsyncClient, AsyncCollection, Client, Collection, Item
    from clipworks.errors import ClientError
    from clipworks.results import (
        ClassifyResult,
        EmbedResult,
        LocalizeResult,
        SearchResult,
        TeachResult,
        UpsertResult,
    )
    from clipworks.retry import RetryPolicy

__all__ = [
    "AsyncClient",
    "AsyncCollection",
    "ClassifyResult",
    "Client",
    "ClientError",
    "Collection",
    "EmbedResult",
    "Item",
    "LocalizeResult",
    "RetryPolicy",
    "SearchResult",
    "TeachResult",
    "UpsertResult",
]

_HOMES = {
    "AsyncClient": "clipworks.client",
    "AsyncCollection": "clipworks.client",
    "Client": "clipworks.client",
    "Collection": "clipworks.client",
    "Item": "clipworks.client",
    "ClassifyResult": "clipworks.results",
    "EmbedResult": "clipworks.results",
    "LocalizeResult": "clipworks.results",
    "SearchResult": "clipworks.results",
    "TeachResult": "clipworks.results",
    "UpsertResult": "clipworks.results",
    "ClientError": "clipworks.errors",
    "RetryPolicy": "clipworks.retry",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("clipworks")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'clipworks' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
