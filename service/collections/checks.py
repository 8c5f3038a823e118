"""What is looked at of a search, or of a deletion, before it begins; and whose turns it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from service.collections.plans import FieldRefused
from service.retrieval.backends.protocol import BackendCollection
from service.retrieval.errors import InvalidFilter, InvalidItem, InvalidQuery
from service.retrieval.paths import parse_path
from service.retrieval.surveys import SurveySpec
from service.retrieval.truth.filter_limits import is_small
from service.retrieval.truth.filters import compile_filter
from service.retrieval.truth.items import check_id


def shares_of(collection: BackendCollection, caller: str) -> tuple[tuple[str, str], ...]:
    """Whose turns a look at many rows takes; see `StoreThreads.scan`."""
    return ("collection", collection.name), ("caller", caller)


async def check_filter(collection: BackendCollection, filter: dict[str, Any] | None) -> None:
    """Raises FieldRefused with the place in the filter, before any work is done for it; a large one not on the loop."""
    if filter is None:
        return
    with filter_refused():
        if is_small(filter):
            compile_filter(filter, collection.spec.metadata_schema)
        else:
            await asyncio.to_thread(compile_filter, filter, collection.spec.metadata_schema)


@contextmanager
def filter_refused() -> Generator[None]:
    """What the language or the backend refuses, with the place in the filter."""
    try:
        yield
    except InvalidFilter as error:
        raise FieldRefused(error, error.path) from None


def check_survey(asked: SurveySpec) -> None:
    """Raises FieldRefused: a field or an id that cannot be one."""
    for place, name in enumerate(asked.facets):
        try:
            parse_path(name)
        except ValueError as error:
            raise FieldRefused(InvalidQuery(str(error)), f"facets[{place}]") from None
    for place, id in enumerate(asked.ids):
        try:
            check_id(id)
        except InvalidItem as error:
            raise FieldRefused(error, f"score_of[{place}]") from None
