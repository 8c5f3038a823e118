"""One search of a collection: queries become vectors, the store answers in threads, and what was asked for beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipworks.schemas import MAX_POOL, OnUnknown
from model_store.errors import ClipworksError
from model_store.search_presence import FIRST
from service.collections.arranging import POOL, Arranged, search_arranged
from service.collections.encoding import ItemEncoder, query_vectors
from service.collections.plans import FieldRefused, QueryPlan, SearchParameters, StoredId
from service.collections.presence import Match, SearchEvidence
from service.collections.rescoring import reordered
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

if TYPE_CHECKING:
    from service.retrieval import StoredHit

_SCANS = 3
_FEW = 4 * POOL  # items that a reader may arrange; more wait for a turn
_VECTORS = 2**20  # numbers of hits' vectors that are in memory at one time


@dataclass(frozen=True)
class Searched:
    """A result for each query, or why there is none.

    failed_part: which part of a combination is to blame. unknown_fields: of the filter, that no item has.
    unknown_parts: (query, part) of which the model knows nothing. weak: queries that have no other parts.
    arranged, surveys, reranked (how many hits were matched), matches: by query, where asked for.
    """

    outcomes: list[SearchOutcome | ClipworksError]
    failed_part: Mapping[int, int]
    unknown_fields: Sequence[str] = ()
    unknown_parts: Sequence[tuple[int, int]] = ()
    weak: frozenset[int] = frozenset()
    arranged: Mapping[int, Arranged] = field(default_factory=dict[int, Arranged])
    surveys: Mapping[int, Survey] = field(default_factory=dict[int, Survey])
    reranked: Mapping[int, int] = field(default_factory=dict[int, int])
    matches: Mapping[int, Match] = field(default_factory=dict[int, Match])


class FoundHits(NamedTuple):
    """The answer to one query. reranked: how many hits were matched, where that was asked for."""

    outcome: SearchOutcome
    arranged: Arranged | None = None
    reranked: int | None = None


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
        self._most = largest_pool
        self._largest_pool = min(MAX_POOL, largest_pool)

    async def answer(
        self, plans: Sequence[QueryPlan], encoder: ItemEncoder, *, all_or_nothing: bool, on_unknown: OnUnknown
    ) -> Searched:
        """See `Collections.search`."""
        _check_survey(self._asked.survey)
        await check_filter(self._collection, self._asked.filter)
        found = await query_vectors(
            plans,
            self._collection.spec,
            encoder,
            lookup=self._stored,
            on_unknown=on_unknown,
            view=self._asked.view,
        )
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
            if self._asked.rescoring is None:
                results, unknown = await self._ranked(vectors, excluded, self._find)
            else:
                results, unknown = await self._reranked(vectors, excluded, [plans[index] for index in good])
            places = [
                place
                for place, (index, each) in enumerate(zip(good, results, strict=True))
                if plans[index].text is not None and index not in found.weak and not isinstance(each, ClipworksError)
            ]
            matches = await self._matches(vectors, excluded, places)
        for index, each in zip(good, results, strict=True):
            outcomes[index] = each if isinstance(each, ClipworksError) else each.outcome
        if (evidence := self._asked.evidence) is not None:
            for place in matches:
                outcome = outcomes[good[place]]
                if not isinstance(outcome, ClipworksError):
                    outcomes[good[place]] = replace(
                        outcome, hits=await self._likely(outcome.hits, vectors[place], evidence)
                    )
        return Searched(
            outcomes,
            found.failed_part,
            unknown,
            found.unknown_parts,
            found.weak,
            {
                index: each.arranged
                for index, each in zip(good, results, strict=True)
                if not isinstance(each, ClipworksError) and each.arranged is not None
            },
            dict(zip(good, surveys, strict=False)),
            {
                index: each.reranked
                for index, each in zip(good, results, strict=True)
                if not isinstance(each, ClipworksError) and each.reranked is not None
            },
            {good[place]: match for place, match in matches.items()},
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

    async def _matches(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], places: Sequence[int]
    ) -> dict[int, Match]:
        """Whether anything matches, of those rows of `vectors` that are asked about."""
        evidence = self._asked.evidence
        if evidence is None or not places:
            return {}
        found, _ = await self._ranked(vectors[places], [excluded[place] for place in places], self._first)
        return {place: evidence.match(each.outcome.hits) for place, each in zip(places, found, strict=True)}

    async def _likely(self, hits: Sequence[StoredHit], query: Vector, evidence: SearchEvidence) -> list[StoredHit]:
        """The hits of a query with the probability of each; in a thread their vectors are looked up, some at a time."""

        def likely(part: Sequence[StoredHit]) -> list[StoredHit]:
            return evidence.hits(part, self._collection.vector_of([hit.id for hit in part]), query)

        made: list[StoredHit] = []
        step = max(1, _VECTORS // self._collection.spec.dim)
        for start in range(0, len(hits), step):
            made += await self._threads.run(
                "read",
                lambda _, part=hits[start : start + step]: likely(part),
                budget=self._budget,
                stage="store",
            )
        return made

    async def _ranked(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], find: Callable[..., list[FoundHits]]
    ) -> tuple[list[FoundHits], Sequence[str]]:
        """Results, and fields of the filter that no item has. Never keeps a reader for long: what the filter has to
        look at first is another lane's work."""
        filter = self._asked.filter

        def run(stop: Stop, *, may_scan: bool = False) -> tuple[list[FoundHits], Sequence[str]]:
            found = find(vectors, excluded, may_scan=may_scan, stop=stop)
            return found, () if not filter else self._collection.unknown_fields(filter)

        scan = partial(self._threads.scan, shares=self._shares, budget=self._budget)
        for _ in range(_SCANS if len(vectors) * self._asked.arrangement.largest_pool <= _FEW else 0):
            try:
                return await self._threads.run("read", run, budget=self._budget, stage="search")
            except ScanNeeded:
                await scan(lambda stop: self._collection.scan(filter or {}, stop=stop), stage="filter")
        # Rows come faster than they are looked at, or there are many pools to arrange.
        return await scan(lambda stop: run(stop, may_scan=True), stage="search")

    async def _reranked(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], plans: Sequence[QueryPlan]
    ) -> tuple[list[FoundHits | ClipworksError], Sequence[str]]:
        """As `_ranked`, with the best hits matched and ordered anew before a page is cut, or hits are arranged."""
        rescoring, asked = self._asked.rescoring, self._asked
        if rescoring is None:
            raise ValueError("nothing to rerank with")
        first, unknown = await self._ranked(vectors, excluded, self._candidates)
        logits = await rescoring.logits(
            [plan.text or "" for plan in plans],
            [[hit.id for hit in each.outcome.hits[: rescoring.top]] for each in first],
            self._collection,
            threads=self._threads,
            budget=self._budget,
        )
        results: list[FoundHits | ClipworksError] = []
        for each, matched, vector, out in zip(first, logits, vectors, excluded, strict=True):
            if isinstance(matched, ClipworksError):
                results.append(matched)
                continue
            reorder = partial(reordered, logits=matched, top=rescoring.top)
            if asked.arrangement.is_plain:
                hits = reorder(each.outcome.hits)[asked.offset : asked.offset + asked.top_k]
                results.append(FoundHits(SearchOutcome(each.outcome.exact, hits), None, len(matched)))
                continue
            [arranged], _ = await self._ranked(
                vector[None], [out], partial(self._arranged, reorder=reorder, first=each.outcome)
            )
            results.append(arranged._replace(reranked=len(matched)))
        return results, unknown

    def _find(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], *, may_scan: bool, stop: Stop
    ) -> list[FoundHits]:
        """In a thread: all queries at once, or one after the other where each has a pool of its own."""
        asked = self._asked
        if not asked.arrangement.is_plain:
            return self._arranged(vectors, excluded, may_scan=may_scan, stop=stop)
        found = self._search(may_scan)(
            vectors,
            exclude_ids=excluded,
            top_k=asked.top_k,
            offset=asked.offset,
            with_metadata=asked.with_metadata,
            with_vectors=asked.with_vectors,
            stop=stop,
        )
        return [FoundHits(outcome) for outcome in found]

    def _first(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], *, may_scan: bool, stop: Stop
    ) -> list[FoundHits]:
        """In a thread: for each query the first hits of all that pass the filter, with their vectors."""
        found = self._collection.search(
            vectors,
            top_k=FIRST,
            offset=0,
            filter=self._asked.filter,
            min_score=None,
            exclude_ids=excluded,
            with_metadata=False,
            with_vectors=True,
            may_scan=may_scan,
            stop=stop,
        )
        return [FoundHits(outcome) for outcome in found]

    def _candidates(
        self, vectors: Vector, excluded: Sequence[Sequence[str]], *, may_scan: bool, stop: Stop
    ) -> list[FoundHits]:
        """In a thread: for each query all hits that a page of it may come from, or its first pool."""
        asked, is_plain = self._asked, self._asked.arrangement.is_plain
        depth = asked.offset + asked.top_k if is_plain else asked.arrangement.least_pool(asked.top_k)
        found = self._search(may_scan)(
            vectors,
            exclude_ids=excluded,
            top_k=min(max(depth, self._top), self._most),
            offset=0,
            with_metadata=asked.with_metadata and is_plain,
            with_vectors=asked.with_vectors or not is_plain,
            stop=stop,
        )
        return [FoundHits(outcome) for outcome in found]

    def _arranged(
        self,
        vectors: Vector,
        excluded: Sequence[Sequence[str]],
        *,
        may_scan: bool,
        stop: Stop,
        reorder: Callable[[Sequence[StoredHit]], Sequence[StoredHit]] = lambda hits: hits,
        first: SearchOutcome | None = None,
    ) -> list[FoundHits]:
        """In a thread: the pools of queries one after the other, each arranged."""
        asked, search = self._asked, self._search(may_scan)
        return [
            FoundHits(
                *search_arranged(
                    partial(search, vector[None], exclude_ids=[out]),
                    metadata_of=self._metadata_of,
                    asked=asked.arrangement,
                    offset=asked.offset,
                    top_k=asked.top_k,
                    largest=self._largest_pool,
                    with_metadata=asked.with_metadata,
                    with_vectors=asked.with_vectors,
                    stop=stop,
                    least=self._top,
                    reorder=reorder,
                    first=first,
                )
            )
            for vector, out in zip(vectors, excluded, strict=True)
        ]

    def _search(self, may_scan: bool) -> Callable[..., list[SearchOutcome]]:
        asked = self._asked
        return partial(self._collection.search, filter=asked.filter, min_score=asked.min_score, may_scan=may_scan)

    @property
    def _top(self) -> int:
        return self._asked.rescoring.top if self._asked.rescoring else 0

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
