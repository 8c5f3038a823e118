"""One search of a collection: queries become vectors, the store answers in threads, and what was asked for beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipworks.schemas import MAX_POOL, OnUnknown
from model_store.errors import ClipworksError
from model_store.search_presence import FIRST
from service.collections.arranging import POOL, Arranged, search_arranged
from service.collections.checks import check_filter, check_survey, filter_refused, shares_of
from service.collections.encoding import ItemEncoder, query_vectors
from service.collections.plans import QueryPlan, SearchParameters, StoredId
from service.collections.presence import Match, SearchEvidence
from service.collections.rescoring import reordered
from service.collections.threads import StoreThreads
from service.retrieval import SearchOutcome
from service.retrieval.backends.protocol import BackendCollection
from service.retrieval.errors import ScanNeeded
from service.retrieval.records import Vector
from service.retrieval.stopping import Stop
from service.retrieval.surveys import Survey
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
        check_survey(self._asked.survey)
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
            rows = {
                index: row
                for row, (index, each) in enumerate(zip(good, results, strict=True))
                if plans[index].text is not None and index not in found.weak and not isinstance(each, ClipworksError)
            }
            matches = await self._matches(vectors, excluded, rows)
        for index, each in zip(good, results, strict=True):
            outcomes[index] = each if isinstance(each, ClipworksError) else each.outcome
        if (evidence := self._asked.evidence) is not None:
            told = {index: each for index in matches if isinstance(each := outcomes[index], SearchOutcome)}
            texts = {index: vectors[rows[index]] for index in told}
            likely = await self._likely({index: each.hits for index, each in told.items()}, texts, evidence)
            for index, each in told.items():
                outcomes[index] = replace(each, hits=likely[index])
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
            matches,
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
        self, vectors: Vector, excluded: Sequence[Sequence[str]], rows: Mapping[int, int]
    ) -> dict[int, Match]:
        """Whether anything matches, by query. rows: of `vectors`, by the queries that are asked about."""
        evidence = self._asked.evidence
        if evidence is None or not rows:
            return {}
        asked = list(rows.values())
        found, _ = await self._ranked(vectors[asked], [excluded[row] for row in asked], self._first)
        return {
            index: evidence.match(vectors[rows[index]], each.outcome.hits)
            for index, each in zip(rows, found, strict=True)
        }

    async def _likely(
        self, hits: Mapping[int, Sequence[StoredHit]], texts: Mapping[int, Vector], evidence: SearchEvidence
    ) -> dict[int, list[StoredHit]]:
        """The hits of queries with the probability of each; in a thread their vectors are looked up, some at a time."""

        def likely(part: Sequence[tuple[int, StoredHit]]) -> list[StoredHit]:
            ids = list(dict.fromkeys(hit.id for _, hit in part))
            stored = dict(zip(ids, self._collection.vector_of(ids), strict=True))
            own = [stored[hit.id] for _, hit in part]
            return evidence.hits([hit for _, hit in part], own, [texts[query] for query, _ in part])

        made: dict[int, list[StoredHit]] = {query: [] for query in hits}
        every = [(query, hit) for query, found in hits.items() for hit in found]
        step = max(1, _VECTORS // self._collection.spec.dim)
        for start in range(0, len(every), step):
            part = every[start : start + step]
            found = await self._threads.run(
                "read", lambda _, part=part: likely(part), budget=self._budget, stage="store"
            )
            for (query, _), hit in zip(part, found, strict=True):
                made[query].append(hit)
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
