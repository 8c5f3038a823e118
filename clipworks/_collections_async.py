"""One collection, for the client on asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, Unpack, overload

from clipworks._collections import PAGE, CollectionCalls, image_items
from clipworks._progress import Progress
from clipworks.results import Hits, SearchOptions, SearchResult, Stored, UpsertResult
from clipworks.schemas import (
    CollectionInfo,
    CompactResponse,
    DoctorResponse,
    Include,
    OnError,
    OnUnknown,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from clipworks._calls import CallPlan
    from clipworks._collections_inputs import Item, QueryLike
    from clipworks._exchange import Steps
    from clipworks._inputs import ImageSource

T = TypeVar("T")


class AsyncDrive(Protocol):
    """Carries out steps to their end."""

    async def __call__(self, steps: Steps[T]) -> T: ...


class AsyncRun(Protocol):
    """Carries out a plan, several requests at a time."""

    async def __call__(self, plan: CallPlan[T], progress: Progress) -> T: ...


class AsyncCollection:
    """Rows of one collection of a server. Made by `AsyncClient.collection`, which sends nothing.

    Raises, every method: ClientError; NotFound when there is no such collection.
    """

    def __init__(self, name: str, calls: CollectionCalls, *, drive: AsyncDrive, run: AsyncRun) -> None:
        self.name = name
        self._calls = calls
        self._drive = drive
        self._run = run

    async def info(self) -> CollectionInfo:
        """See `Collection.info`."""
        return await self._drive(self._calls.info(self.name))

    async def upsert_images(
        self,
        images: Iterable[ImageSource],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> UpsertResult:
        """See `Collection.upsert_images`."""
        return await self.upsert(image_items(images, ids, metadata), model=model, progress=progress)

    async def upsert(
        self,
        items: Iterable[Item | Mapping[str, Any]],
        *,
        model: str | None = None,
        space: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> UpsertResult:
        """See `Collection.upsert`."""
        return await self._run(self._calls.upsert(self.name, items, model=model, space=space), progress)

    @overload
    async def search(
        self,
        queries: Iterable[QueryLike],
        *,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        include: Sequence[Include] = ("metadata",),
        model: str | None = None,
        space: str | None = None,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool | Callable[[int, int], None] = False,
        **more: Unpack[SearchOptions],
    ) -> list[Hits]: ...
    @overload
    async def search(
        self,
        queries: Iterable[QueryLike],
        *,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        include: Sequence[Include] = ("metadata",),
        model: str | None = None,
        space: str | None = None,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
        progress: bool | Callable[[int, int], None] = False,
        **more: Unpack[SearchOptions],
    ) -> SearchResult: ...
    async def search(
        self,
        queries: Iterable[QueryLike],
        *,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        include: Sequence[Include] = ("metadata",),
        model: str | None = None,
        space: str | None = None,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool | Callable[[int, int], None] = False,
        **more: Unpack[SearchOptions],
    ) -> list[Hits] | SearchResult:
        """See `Collection.search`."""
        plan = self._calls.search(
            self.name,
            queries,
            top_k=top_k,
            offset=offset,
            filter=filter,
            min_score=min_score,
            include=include,
            model=model,
            space=space,
            on_error=on_error,
            on_unknown=on_unknown,
            more=more,
        )
        result = await self._run(plan, progress)
        return result if on_error == "item" else result.results

    async def get(self, id: str, *, vector: bool = False) -> Stored:
        """See `Collection.get`."""
        return await self._drive(self._calls.get(self.name, id, vector=vector))

    async def thumbnail(self, id: str) -> bytes:
        """See `Collection.thumbnail`."""
        return await self._drive(self._calls.thumbnail(self.name, id))

    async def delete(self, ids: Iterable[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> int:
        """See `Collection.delete`."""
        return await self._drive(self._calls.delete(self.name, ids=ids, filter=filter))

    async def doctor(self, *, queries: int = 100, recall_at: int = 10) -> DoctorResponse:
        """See `Collection.doctor`."""
        return await self._drive(self._calls.doctor(self.name, queries=queries, recall_at=recall_at))

    async def compact(self) -> CompactResponse:
        """See `Collection.compact`."""
        return await self._drive(self._calls.compact(self.name))

    async def acknowledge_loss(self) -> int:
        """See `Collection.acknowledge_loss`."""
        return await self._drive(self._calls.acknowledge_loss(self.name))

    async def snapshot(self) -> SnapshotResponse:
        """See `Collection.snapshot`."""
        return await self._drive(self._calls.snapshot(self.name))

    async def restore(self, snapshot: str) -> CollectionInfo:
        """See `Collection.restore`."""
        return await self._drive(self._calls.restore(self.name, snapshot))

    async def items(self, *, include: Sequence[Include] = ("metadata",), page: int = PAGE) -> AsyncIterator[Stored]:
        """See `Collection.items`."""
        cursor: str | None = None
        while True:
            rows, cursor = await self._drive(self._calls.page(self.name, cursor=cursor, limit=page, include=include))
            for row in rows:
                yield row
            if cursor is None:
                return
