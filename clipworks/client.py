"""Client and AsyncClient: embed, classify, localize, collections, and the server's models and label sets, from Python.

    from clipworks import Client

    with Client("http://localhost:8000") as client:
        vectors = client.embed(texts=["a red shirt"], images=["shirt.jpg"])

Many inputs become several requests with bounded concurrency; 429, 503 and broken connections are retried. Both classes
share requests, retries and parsing (`_calls`, `_collections`, `_batches`, `_queries`, `_exchange`); they differ in how
a step of these is carried out: `_sync_client` blocks, `_async_client` awaits.
"""

from __future__ import annotations

from clipworks._async_client import AsyncClient
from clipworks._collections_async import AsyncCollection
from clipworks._collections_inputs import Item
from clipworks._collections_sync import Collection
from clipworks._setup import DEFAULT_URL
from clipworks._sync_client import Client
from clipworks.retry import RetryPolicy

__all__ = ["DEFAULT_URL", "AsyncClient", "AsyncCollection", "Client", "Collection", "Item", "RetryPolicy"]
