"""Some items of a collection, chosen by their ids alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from service.collections.vectors import Vector
from service.retrieval.backends.protocol import BackendCollection
from service.retrieval.stopping import Stop

_PAGE = 500


def sampled_vectors(collection: BackendCollection, most: int, stop: Stop) -> dict[str, Vector]:
    """Vectors of the `most` items whose ids have the smallest sha256, in that order; looks at every id.

    Raises:
        Interrupted: `stop` was due.
    """
    chosen = heapq.nsmallest(most, _ids(collection, stop), key=lambda id: hashlib.sha256(id.encode()).digest())
    vectors = collection.vector_of(chosen)
    return {id: vector for id, vector in zip(chosen, vectors, strict=True) if vector is not None}


def _ids(collection: BackendCollection, stop: Stop) -> Iterator[str]:
    cursor: str | None = None
    while True:
        stop.check()
        page = collection.items(cursor=cursor, limit=_PAGE, stop=stop)
        yield from (record.id for record in page.records)
        if (cursor := page.cursor) is None:
            return
