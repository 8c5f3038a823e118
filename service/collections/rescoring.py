"""The best items of a search once more: matched with the query's text by a reranker, and ordered anew."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model_store.errors import ClipworksError
from service.decoding.pool import DecodePool
from service.engine.running import RunningModel
from service.tasks.pipeline import Places, gather_outcomes
from service.tasks.reranking import Matching, Positions, TextStates, matching, score_of
from service.timing import Budget

if TYPE_CHECKING:
    from service.collections.threads import StoreThreads
    from service.retrieval import StoredHit
    from service.retrieval.backends.protocol import BackendCollection

_PAIRS = 64  # whose position vectors are in memory at one time: of 14 x 14 places and 512 numbers they take 26 MB
Logits = Mapping[str, float]


@dataclass(frozen=True)
class Rescoring:
    """model: with a reranker that reads what the collection keeps. top: best items that are matched with a query."""

    model: RunningModel
    top: int
    pool: DecodePool

    async def logits(
        self,
        texts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        collection: BackendCollection,
        *,
        threads: StoreThreads,
        budget: Budget,
    ) -> list[Logits | ClipworksError]:
        """For each text the logits of its candidates, by id, without those that have no position vectors.

        candidates: for each text ids of items. A text or a pair that fails makes its query an error.

        Raises:
            ServiceOverloaded, ServiceNotReady, DeadlinePassed
        """
        count = sum(map(len, candidates))
        async with matching(
            self.model, texts=len(texts), pairs=count, images=Places(0), pool=self.pool, budget=budget
        ) as at_work:
            read = await gather_outcomes([at_work.read(text) for text in texts], budget)
            found: list[dict[str, float]] = [{} for _ in texts]
            failed = {place: each for place, each in enumerate(read) if isinstance(each, ClipworksError)}
            pairs = [(place, id) for place, ids in enumerate(candidates) for id in ids if place not in failed]
            for start in range(0, len(pairs), _PAIRS):
                part = [pair for pair in pairs[start : start + _PAIRS] if pair[0] not in failed]
                ids = list(dict.fromkeys(id for _, id in part))
                kept = await threads.run(
                    "read", lambda _, ids=ids: collection.positions_of(ids), budget=budget, stage="search"
                )
                for place, id, logit in await _matched(at_work, part, read, dict(zip(ids, kept, strict=True)), budget):
                    if isinstance(logit, ClipworksError):
                        failed.setdefault(place, logit)
                    else:
                        found[place][id] = logit
        return [failed.get(place, logits) for place, logits in enumerate(found)]


async def _matched(
    at_work: Matching,
    pairs: Sequence[tuple[int, str]],
    texts: Sequence[TextStates | ClipworksError],
    positions: Mapping[str, Positions | None],
    budget: Budget,
) -> list[tuple[int, str, float | ClipworksError]]:
    """(place of the text, id, logit) of pairs whose item has position vectors."""
    there: list[tuple[int, str]] = []
    work: list[Awaitable[float]] = []
    for place, id in pairs:
        text, grid = texts[place], positions[id]
        if grid is not None and not isinstance(text, ClipworksError):
            there.append((place, id))
            work.append(at_work.match(grid, text))
    logits = await gather_outcomes(work, budget) if work else []
    return [(place, id, logit) for (place, id), logit in zip(there, logits, strict=True)]


def reordered(hits: Sequence[StoredHit], logits: Logits, top: int) -> list[StoredHit]:
    """The first `top` hits by their logits, best first, equal ones as they were; what has none keeps its place.

    Hits that were matched say so in `rerank_score`.
    """
    matched = [place for place, hit in enumerate(hits[:top]) if hit.id in logits]
    best = sorted(matched, key=lambda place: -logits[hits[place].id])
    made = list(hits)
    for place, taken in zip(matched, best, strict=True):
        hit = hits[taken]
        made[place] = replace(hit, rerank_score=score_of(logits[hit.id]))
    return made
