"""Texts matched with pictures by a reranker: documents of a request, and hits of a search. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import OnUnknown
from model_store.errors import ClipworksError, RoleNotFound
from model_store.modality.text import is_quick
from model_store.towers import activated
from service.decoding.pool import DecodePool
from service.engine.admission import Ticket
from service.engine.batcher import Batcher
from service.engine.reranking import RerankBatchers
from service.engine.running import RunningModel
from service.engine.stacking import PictureAndText
from service.engine.vectors import KNOWS_NOTHING
from service.faults import NoDirection
from service.tasks.pipeline import (
    FailedItem,
    ImageItem,
    Input,
    Places,
    TextItem,
    gather_outcomes,
    look,
    places_of_images,
)
from service.timing import Budget

Positions = NDArray[np.float32]
_T = TypeVar("_T")


@dataclass(frozen=True)
class TextStates:
    """States float32 [L, W] of a text's own tokens; knows: whether the model knows a word of it."""

    states: NDArray[np.float32]
    knows: bool


@dataclass(frozen=True, eq=False)
class KeptPicture:
    """A picture of which a collection keeps the position vectors [rows, columns, D]; read: fetches them.

    They are fetched when their pair has its turn, so no request holds those of all its documents, and one that is
    refused none.
    """

    read: Callable[[], Awaitable[Positions]]


Document = Input | KeptPicture


@dataclass(frozen=True)
class RerankOutcome:
    """logits: of the documents, in order, or why there is none. query: why it could not be read; then there are none.

    weak: documents of which the model knows nothing. is_query_weak: nor of the query.
    """

    logits: list[float | ClipworksError]
    query: ClipworksError | None
    weak: list[int]
    is_query_weak: bool
    texts: int
    images: int
    tokens: int


class Matching:
    """The reranker of one model at work for one request, which has taken its places for all of it; see `matching`."""

    def __init__(
        self,
        model: RunningModel,
        batchers: RerankBatchers,
        dense: Batcher | None,
        tickets: tuple[Ticket, Ticket, Ticket | None],
        *,
        pool: DecodePool,
        budget: Budget,
    ) -> None:
        self._model = model
        self._batchers = batchers
        self._dense = dense
        self._texts, self._pairs, self._images = tickets
        self._pool = pool
        self._budget = budget
        self._turn = asyncio.Lock()
        self.tokens = 0

    async def read(self, text: str) -> TextStates:
        """Raises InvalidText, RunFailed, DeadlinePassed."""
        async with self._texts.turn(self._budget):
            ids, length = await self._ids(text)
            self.tokens += length
            states = await self._batchers.texts.submit(ids, self._budget)
        return TextStates(states[:length], self._model.knows(ids[:length]))

    async def see(self, picture: ImageItem) -> Positions:
        """Position vectors [rows, columns, D]. Raises InputError, RunFailed, DeadlinePassed."""
        if self._dense is None or self._images is None:
            raise RoleNotFound(f"{self._model.reference} was not asked for pictures")
        async with self._images.turn(self._budget):
            _, positions, _ = await look(self._model, self._dense, picture, None, pool=self._pool, budget=self._budget)
        return positions

    async def match(self, positions: Positions | KeptPicture, text: TextStates) -> float:
        """The logit. Raises RunFailed, DeadlinePassed; ItemNotFound, where a collection keeps no such picture."""
        async with self._pairs.turn(self._budget):
            grid = await positions.read() if isinstance(positions, KeptPicture) else positions
            return float(await self._batchers.pairs.submit(PictureAndText(grid, text.states), self._budget))

    async def _ids(self, text: str) -> tuple[NDArray[np.int64], int]:
        """Off the event loop where that may take a while, one text of a model at a time; see `pipeline.token_row`."""
        if is_quick(text):
            return self._batchers.ids(text)
        async with self._turn, self._model.tokenising:
            return await asyncio.to_thread(self._batchers.ids, text)


@asynccontextmanager
async def matching(
    model: RunningModel, *, texts: int, pairs: int, images: Places, pool: DecodePool, budget: Budget
) -> AsyncGenerator[Matching]:
    """A model's reranker with places for so many texts, pictures to look at, and pairs: all or none of them.

    Raises:
        ArtifactError: its graphs cannot be opened.
        ServiceOverloaded, ServiceNotReady, DeadlinePassed
    """
    batchers = await model.rerank.get(budget)
    dense = await model.dense.batcher(budget) if images.items else None
    with ExitStack() as stack:
        of_images = None
        if dense is not None:
            of_images = stack.enter_context(dense.admit(images.items, budget, are_slow=images.are_slow))
        of_texts = stack.enter_context(batchers.texts.admit(texts, budget))
        of_pairs = stack.enter_context(batchers.pairs.admit(pairs, budget))
        yield Matching(model, batchers, dense, (of_texts, of_pairs, of_images), pool=pool, budget=budget)


async def rerank(
    model: RunningModel,
    query: Input,
    documents: Sequence[Document],
    *,
    pool: DecodePool,
    on_unknown: OnUnknown,
    budget: Budget,
) -> RerankOutcome:
    """The match logit of a query with each document: a text with pictures, or a picture with texts.

    Raises:
        ArtifactError, ServiceOverloaded, ServiceNotReady, DeadlinePassed: for the request as a whole.
    """
    items = [query, *documents]
    images = places_of_images([item for item in items if not isinstance(item, KeptPicture)], pool)
    texts = sum(isinstance(item, TextItem) for item in items)
    weak: set[int] = set()

    async with matching(model, texts=texts, pairs=len(documents), images=images, pool=pool, budget=budget) as at_work:

        async def side(item: Document, index: int) -> Positions | KeptPicture | TextStates:
            if isinstance(item, FailedItem):
                raise item.error
            if isinstance(item, KeptPicture):
                return item
            if isinstance(item, ImageItem):
                return await at_work.see(item)
            read = await at_work.read(item.text)
            if not read.knows:
                if on_unknown == "error":
                    raise NoDirection(KNOWS_NOTHING)
                weak.add(index)
            return read

        async def one(index: int, item: Document, asked: Positions | KeptPicture | TextStates) -> float:
            given = await side(item, index)
            if isinstance(asked, TextStates) and not isinstance(given, TextStates):
                return await at_work.match(given, asked)
            if isinstance(given, TextStates) and not isinstance(asked, TextStates):
                return await at_work.match(asked, given)
            raise RoleNotFound(f"{model.reference} matches a text with a picture")

        [asked] = await gather_outcomes([side(query, -1)], budget)
        if isinstance(asked, ClipworksError):
            logits, failed = list[float | ClipworksError](), asked
        else:
            work = [one(index, item, asked) for index, item in enumerate(documents)]
            logits, failed = await gather_outcomes(work, budget), None
        return RerankOutcome(
            logits,
            query=failed,
            weak=sorted(weak - {-1}),
            is_query_weak=-1 in weak,
            texts=texts,
            images=images.items,
            tokens=at_work.tokens,
        )


async def positions_of(
    model: RunningModel,
    pictures: Sequence[ImageItem],
    *,
    keep: Callable[[Positions], _T],
    pool: DecodePool,
    budget: Budget,
) -> list[_T | ClipworksError]:
    """Position vectors [rows, columns, D] of pictures, as the model's reranker reads them, or why there are none.

    keep: what is kept of each.

    Raises:
        ArtifactError, ServiceOverloaded, ServiceNotReady, DeadlinePassed: for the request as a whole.
    """
    if not pictures:
        return []
    images = places_of_images(pictures, pool)
    dense = await model.dense.batcher(budget)

    async def one(picture: ImageItem) -> _T:
        async with ticket.turn(budget):
            _, positions, _ = await look(model, dense, picture, None, pool=pool, budget=budget)
        return keep(positions)

    with dense.admit(images.items, budget, are_slow=images.are_slow) as ticket:
        return await gather_outcomes([one(picture) for picture in pictures], budget)


def score_of(logit: float) -> float:
    """Sigmoid of a logit: how probable the reranker holds it that text and picture belong together."""
    return float(activated(np.array([logit], dtype=np.float64), "sigmoid")[0])
