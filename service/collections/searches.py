"""One search of a collection: queries become vectors, the store answers in threads, and what was asked for beside."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from clipworks.schemas import MAX_POOL, OnUnknown
from model_store.errors import ClipworksError
from service.collections.arranging import POOL, Arranged, search_arranged
from service.collections.encoding import ItemEncoder, query_vectors
from service.collections.plans import FieldRefused, QueryPlan, SearchParameters, StoredId
from service.collections.threads import StoreThreads
from service.retrieval import SearchOutcome
from service.retrieval.backends.protocol import BackendCollection
from service.retrieval.errors import InvalidFilter, InvalidItem, InvalidQuery, ScanNeeded
from service.retrieval.paths import parse_path
from service.retrieval.records import Vector
from service.retrieval.stopping import Stop
from service.retrieval.surveys import Survey, SurveySpec
from service.retrieval.truth.filter_limits import is_small
from service.retrieval.truth.filters import compile_filter
from service.retrieval.truth.items import check_id
from service.timing import Budget

_T = TypeVar("_T")
_SCANS = 3
_FEW = 4 * POOL  # items that a reader may arrange; more wait for a turn
Found = tuple[SearchOutcome, Arranged | None]


@dataclass(frozen=True)
class Searched:
    """A result for each query, or why there is none.

    failed_part: which part of a combination is to blame. unknown_fields: of the filter, that no item has.
    unknown_parts: (query, part) of which the model knows nothing. weak: queries that have no other parts.
    arranged, surveys: by query, where asked for.
    """

    outcomes: list[SearchOutcome | ClipworksError]
    failed_part: Mapping[int, int]
    unknown_fields: Sequence[str] = ()
    unknown_parts: Sequence[tuple[int, int]] = ()
    weak: frozenset[int] = frozenset()
    arranged: Mapping[int, Arranged] = field(default_factory=dict[int, Arranged])
    surveys: Mapping[int, Survey] = field(default_factory=dict[int, Survey])


class Search:
    """One request on one collection. caller: who asks; what has to look at many rows waits for its caller's and its
    collection's turn. largest_pool: rows that an arrangement may look at."""

    def __init__(
        self,
        collection: BackendCollection,
        parameters: SearchParameters,
        *,
        threads: StoreThreads,
        caller: str,
        budget: Budget,
        largest_pool: int,
    ) -> None:
        self._collection = collection
        self._asked = parameters
        self._threads = threads
        self._shares = shares_of(collection, caller)
        self._budget = budget
        self._largest_pool = min(MAX_POOL, largest_pool)

    async def answer(
        self, plans: Sequence[QueryPlan], encoder: ItemEncoder, *, all_or_nothing: bool, on_unknown: OnUnknown
    ) -> Searched:
        """See `Collections.search`."""
        _check_survey(self._asked.survey)
        await check_filter(self._collection, self._asked.filter)
        found = await query_vectors(plans, self._collection.spec, encoder, lookup=self._stored, on_unknown=on_unknown)
        outcomes: list[SearchOutcome | ClipworksError] = [
            each if isinstance(each, ClipworksError) else SearchOutcome(exact=True, hits=[]) for each in found.vectors
        ]
        good = [index for index, each in enumerate(found.vectors) if isinstance(each, np.ndarray)]
        failed = any(isinstance(each, ClipworksError) for each in outcomes)
        if not good or (all_or_nothing and failed):
            return Searched(outcomes, found.failed_part, (), found.unknown_parts, found.weak)
        vectors = np.stack([each for each in found.vectors if isinstance(each, np.ndarray)])
        excluded = [[part.id for part in plans[index].parts if isinstance(part, StoredId)] for index in good]
        with filter_refused():
            # First: where a backend has none it says so before it searches, and what a filter looks at is remembered.
            surveys = await self._surveys(vectors, excluded)
            results, unknown = await self._ranked(vectors, excluded)
        for index, (outcome, _) in zip(good, results, strict=True):
            outcomes[index] = outcome
        return Searched(
            outcomes,
            found.failed_part,
            unknown,
            found.unknown_parts,
            found.weak,
            {index: arranged for index, (_, arranged) in zip(good, results, strict=True) if arranged is not None},
            dict(zip(good, surveys, strict=False)),
        )

    async def _stored(self, ids: Sequence[str]) -> list[Vector | None]:
        return await self._threads.run(
            "read", lambda _: self._collection.vector_of(ids), budget=self._budget, stage="store"
        )

    async def _surveys(self, vectors: Vector, excluded: Sequence[Sequence[str]]) -> list[Survey]:
        asked = self._asked
        if asked.survey.is_empty:
            return []
        survey = partial(self._collection.survey, vectors, asked.survey, filter=asked.filter, min_score=asked.min_score)
        return await self._threads.scan(
            lambda stop: survey(exclude_ids=excluded, stop=stop),
            shares=self._shares,
            budget=self._budget,
            stage="survey",
        )

    async def _ranked(self, vectors: Vector, excluded: Sequence[Sequence[str]]) -> tuple[list[Found], Sequence[str]]:
        """Results, and fields of the filter that no item has. Never keeps a reader for long: what the filter has to
        look at first is another lane's work."""
        filter = self._asked.filter

        def run(stop: Stop, *, may_scan: bool = False) -> tuple[list[Found], Sequence[str]]:
            found = self._find(vectors, excluded, may_scan=may_scan, stop=stop)
            return found, () if not filter else self._collection.unknown_fields(filter)

        scan = partial(self._threads.scan, shares=self._shares, budget=self._budget)
        for _ in range(_SCANS if len(vectors) * self._asked.arrangement.largest_pool <= _FEW else 0):
            try:
                return await self._threads.run("read", run, budget=self._budget, stage="search")
            except ScanNeeded:
                await scan(lambda stop: self._collection.scan(filter or {}, stop=stop), stage="filter")
        # Rows come faster than they are looked at, or there are many pools to arrange.
        return await scan(lambda stop: run(stop, may_scan=True), stage="search")

    def _find(self, vectors: Vector, excluded: Sequence[Sequence[str]], *, may_scan: bool, stop: Stop) -> list[Found]:
        """In a thread: all queries at once, or one after the other where each has a pool of its own."""
        asked = self._asked
        search = partial(self._collection.search, filter=asked.filter, min_score=asked.min_score, may_scan=may_scan)
        shown = {"with_metadata": asked.with_metadata, "with_vectors": asked.with_vectors, "stop": stop}
        if asked.arrangement.is_plain:
            page = partial(search, top_k=asked.top_k, offset=asked.offset, **shown)
            return [(outcome, None) for outcome in page(vectors, exclude_ids=excluded)]
        arranged = partial(
            search_arranged,
            metadata_of=self._metadata_of,
            asked=asked.arrangement,
            offset=asked.offset,
            top_k=asked.top_k,
            largest=self._largest_pool,
            **shown,
        )
        return [
            arranged(partial(search, vector[None], exclude_ids=[out]))
            for vector, out in zip(vectors, excluded, strict=True)
        ]

    def _metadata_of(self, id: str) -> dict[str, Any]:
        return self._collection.get(id).metadata


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


def _check_survey(asked: SurveySpec) -> None:
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
