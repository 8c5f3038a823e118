"""Query vectors as callers give them, checked; and the cursors of pages of items."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from service.retrieval.errors import InvalidQuery
from service.retrieval.records import Vector


def check_queries(vectors: Any, dim: int) -> Vector:
    """Contiguous float32 [n, dim].

    Raises:
        InvalidQuery: another shape or type, a number that is not finite or is huge, or a zero vector.
    """
    queries = np.asarray(vectors)
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        raise InvalidQuery(f"queries must be float32 [n, {dim}], got {queries.dtype} {list(queries.shape)}")
    largest = np.abs(queries).max(axis=1, initial=0.0)  # NaN if there is one
    if not (finite := largest < 1e15).all():
        raise InvalidQuery(f"query {int(np.argmin(finite))} has a number that is not finite or is huge")
    if not (directed := largest > 0).all():
        raise InvalidQuery(f"query {int(np.argmin(directed))} is the zero vector, which has no direction")
    return np.ascontiguousarray(queries)


def cursor_of(id: str) -> str:
    """What a page of items says about where the next one starts."""
    return base64.urlsafe_b64encode(id.encode()).decode().rstrip("=")


def id_of_cursor(cursor: str | None) -> str:
    """The last id of the page before, "" at the start.

    Raises:
        InvalidQuery: no page gave this cursor.
    """
    if cursor is None:
        return ""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (ValueError, UnicodeError):
        raise InvalidQuery("the cursor is not one that a page of items gave") from None
