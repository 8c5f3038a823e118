"""One collection, for the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Drive(Protocol):
    """Carries out steps to their end."""

    def __call__(self, steps: Steps[T]) -> T: ...


class Run(Protocol):
    """Carries out a plan, several requests at a time."""

    def __call__(self, plan: CallPlan[T], progress: Progress) -> T: ...


class Collection:
    """Rows of one collection of a server. Made by `Client.collection`, which sends nothing.

    Raises, every method: ClientError; NotFound when there is no such collection.
    """

    def __init__(self, name: str, calls: CollectionCalls, *, drive: Drive, run: Run) -> None:
        self.name = name
        self._calls = calls
        self._drive = drive
        self._run = run

    def info(self) -> CollectionInfo:
        """Count, model, space, index, sizes, durability."""
        return self._drive(self._calls.info(self.name))

    def upsert_images(
        self,
        images: Iterable[ImageSource],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> UpsertResult:
        """Store pictures: paths, bytes, PIL images. An id is the path as given, unless `ids` has one for each.

        Returns when all of them are durable and found by searches. Pictures that cannot be stored are in `errors` of
        the result. progress: True draws a bar on stderr; a function is told (finished, total).

        Raises:
            ClientError: a request as a whole failed. What was stored stays; the same call again does no harm.
        """
        return self.upsert(image_items(images, ids, metadata), model=model, progress=progress)

    def upsert(
        self,
        items: Iterable[Item | Mapping[str, Any]],
        *,
        model: str | None = None,
        space: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> UpsertResult:
        """Add or replace items by id: `Item`s, or mappings with the same fields; as `upsert_images`.

        space: of the vectors given; another one than the collection's is refused.
        """
        return self._run(self._calls.upsert(self.name, items, model=model, space=space), progress)

    @overload
    def search(
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
    def search(
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
    def search(
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
        """The best items for each query, in the order of the queries.

        A query is a text (str), a picture (a Path, bytes, a PIL image), a vector (list or array), or a mapping:
        {"text"}, {"image"}, {"vector"}, {"id"} of a stored item, which is no hit of itself, or {"combine": [query,
        ...]} whose parts may have a "weight"; a negative one pushes away.
        on_error: "fail" raises for the first bad query; "item" returns a SearchResult with errors by index.
        on_unknown: "warn" leaves out what the model knows nothing of, and warns; "error" makes it a bad query.
        more: diversity, near duplicates folded, facets, a histogram, ranks of named items; see `SearchOptions`.
        """
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
        result = self._run(plan, progress)
        return result if on_error == "item" else result.results

    def get(self, id: str, *, vector: bool = False) -> Stored:
        """Raises NotFound (code item_not_found)."""
        return self._drive(self._calls.get(self.name, id, vector=vector))

    def thumbnail(self, id: str) -> bytes:
        """A small picture of an item, as WebP: stored with it, or made of its file below the server's media root.

        Raises NotFound (code item_not_found, or thumbnail_not_found for whatever reason there is none).
        """
        return self._drive(self._calls.thumbnail(self.name, id))

    def delete(self, ids: Iterable[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> int:
        """Remove items by ids or by filter, exactly one of them; how many there were. Unknown ids are no error."""
        return self._drive(self._calls.delete(self.name, ids=ids, filter=filter))

    def doctor(self, *, queries: int = 100, recall_at: int = 10) -> DoctorResponse:
        """Prove row count, checksums and that the index holds exactly the rows; measure recall on your own data.

        Needs an admin key, as the three below. It reads every row: give the client a `timeout_s` that allows for it.
        """
        return self._drive(self._calls.doctor(self.name, queries=queries, recall_at=recall_at))

    def compact(self) -> CompactResponse:
        """Rebuild the index without deleted rows, train it anew, give unused disk space back."""
        return self._drive(self._calls.compact(self.name))

    def acknowledge_loss(self) -> int:
        """Say no more of what a damaged store lost of it (`info().losses`); how many losses were shown.

        Works for a collection that is gone, too. Needs an admin key.
        """
        return self._drive(self._calls.acknowledge_loss(self.name))

    def snapshot(self) -> SnapshotResponse:
        """Write all rows of one moment into a file on the server, whose name it chooses."""
        return self._drive(self._calls.snapshot(self.name))

    def restore(self, snapshot: str) -> CollectionInfo:
        """Make this collection from a snapshot that lies on the server. Raises Conflict: it is there already."""
        return self._drive(self._calls.restore(self.name, snapshot))

    def items(self, *, include: Sequence[Include] = ("metadata",), page: int = PAGE) -> Iterator[Stored]:
        """All items in the order of their ids, `page` of them in a request.

        An item that is there all the time comes exactly once; one that comes or goes meanwhile may be missing.
        """
        cursor: str | None = None
        while True:
            rows, cursor = self._drive(self._calls.page(self.name, cursor=cursor, limit=page, include=include))
            yield from rows
            if cursor is None:
                return
