"""The collections of one server: the store behind threads, and the models that its collections are bound to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from clipworks.schemas import OnUnknown
from model_store.errors import ClipworksError, RoleNotFound
from service.collections.backends import BackendSource
from service.collections.checks import check_filter, filter_refused, shares_of
from service.collections.encoding import ItemEncoder, row_vectors
from service.collections.media import MediaRoot, Thumbnail
from service.collections.models import PinnedModels, require_equal_model
from service.collections.plans import FieldRefused, NewRow, QueryPlan, SearchParameters
from service.collections.sampling import sampled_vectors
from service.collections.searches import Search, Searched
from service.collections.threads import StoreThreads
from service.collections.vectors import Vector
from service.collections.views import prints_of, space_of_views, vector_in, view_in
from service.decoding.pool import DecodePool
from service.engine.registry import Registry
from service.engine.reranking import positions_source
from service.engine.running import RunningModel
from service.faults import CollectionsOff, ServiceNotReady, ThumbnailNotFound
from service.retrieval import (
    CollectionDescription,
    CollectionSpec,
    CollectionStore,
    IndexSpec,
    Loss,
    Page,
    Record,
    RetrievalSettings,
    StoreItem,
)
from service.retrieval.backends.protocol import Backend, BackendCollection
from service.retrieval.errors import (
    CollectionNotFound,
    InvalidCollection,
    InvalidItem,
    InvalidQuery,
    ItemNotFound,
    RetrievalError,
)
from service.retrieval.records import Positions, RerankSpec, ViewName, ViewsSpec
from service.retrieval.stopping import Stop
from service.timing import Budget

_T = TypeVar("_T")
PositionsReader = Callable[[str], Awaitable[Positions]]


@dataclass(frozen=True)
class Upserted:
    """For each row the id of what is durable and visible now, or why it is not. weak: rows of which the model knows
    nothing, stored all the same."""

    outcomes: list[str | ClipworksError]
    weak: list[int]


@dataclass(frozen=True)
class CollectionTotals:
    """What all collections of the server hold together."""

    collections: int
    items: int
    thumbnails: int
    thumbnail_bytes: int


class Collections:
    """All methods belong to the event loop; the store's blocking calls run in threads of their own.

    Knows no HTTP, and no more of the store than service.retrieval.backends.protocol says.
    """

    def __init__(
        self,
        source: BackendSource,
        *,
        registry: Registry,
        pool: DecodePool,
        settings: RetrievalSettings,
        media_root: Path | None = None,
        media_slots: int = 2,
    ) -> None:
        """media_root: where pictures of items lie that keep none; None: nowhere. media_slots: see MediaRoot."""
        self._source = source
        self.models = PinnedModels(registry)
        self._pool = pool
        self._settings = settings
        self._threads = StoreThreads(readers=settings.readers, scanners=settings.scanners)
        self._media = MediaRoot(media_root, threads=self._threads, pool=pool, slots=media_slots) if media_root else None
        self._store: Backend | None = None
        self._opening: asyncio.Future[Backend] | None = None
        self._address: str | None = None

    # Life cycle

    async def start(self) -> None:
        """Open the backend; takes long when there is much in a folder.

        Raises:
            CollectionsOff: another process holds it, or it cannot be read; the message says which and where.
        """
        self._opening = asyncio.ensure_future(asyncio.to_thread(self._source.open, self._address))
        try:
            opened = await asyncio.shield(self._opening)
        except RetrievalError as error:
            raise CollectionsOff(f"{self._source.setting}: {error}") from error
        if self._address is not None:  # it became known meanwhile
            await asyncio.to_thread(opened.announce, self._address)
        self._store = opened

    @property
    def is_open(self) -> bool:
        return self._store is not None

    def losses(self) -> Sequence[Loss]:
        """Acknowledged changes that were not there when the store was opened; from memory. Raises ServiceNotReady."""
        return self._opened().losses()

    def announce(self, address: str) -> None:
        """Leave the server's address in the folder, for whoever wants to open it too; written in a thread."""
        self._address = address
        if self._store is not None:
            asyncio.get_running_loop().run_in_executor(None, self._store.announce, address)

    async def stop(self, timeout_s: float | None = None) -> None:
        """Finish the writes in hand, truncate the write-ahead log and free the folder, even one just being opened.

        timeout_s: see CollectionStore.close; of the closing alone.
        """
        self.models.stop()
        self._threads.close()
        if self._opening is not None:
            [opened] = await asyncio.gather(self._opening, return_exceptions=True)
            if not isinstance(opened, BaseException):
                await asyncio.to_thread(opened.close, timeout_s)

    # Collections

    async def get(self, name: str, *, budget: Budget) -> BackendCollection:
        """Raises ServiceNotReady (the backend is being opened), CollectionNotFound."""
        store = self._opened()
        if isinstance(store, CollectionStore):
            return store.get(name)  # looks into a dictionary: a thread would cost more
        return await self._threads.run("read", lambda _: store.get(name), budget=budget)

    async def create(
        self,
        name: str,
        model: RunningModel,
        *,
        index: dict[str, Any],
        schema: dict[str, Any],
        thumbnails: bool,
        rerank: RerankSpec | None,
        views: ViewsSpec | None,
        budget: Budget,
    ) -> tuple[CollectionDescription, bool]:
        """A collection for the vectors of `model`, and whether it is new.

        rerank: whose position vectors it keeps of pictures; see `kept_positions`.
        views: that it keeps two vectors of each item, and whose; see `views_of`.

        Raises:
            SpaceMismatch, Conflict, CollectionConflict: the name is taken by another one; the message names both.
            FieldRefused: `index` or `schema`.
            NotSupported: the backend keeps no thumbnails, or no position vectors.
        """
        store = self._opened()
        try:
            spec = CollectionSpec(
                model=model.reference,
                space=model.space if views is None else space_of_views(views),
                fingerprints=prints_of(model.fingerprint),
                dim=model.dim if views is None else views.dim,
                index=IndexSpec.model_validate(index),
                metadata_schema=schema,
                thumbnails=thumbnails,
                rerank=rerank,
                views=views,
            )
        except ValidationError as error:
            raise _refused(error) from None

        def call(_: Stop) -> tuple[CollectionDescription, bool]:
            with suppress(CollectionNotFound):
                require_equal_model(name, store.get(name).spec, spec)
            made, is_new = store.create(name, spec)
            return made.describe(), is_new

        return await self._threads.run("slow", call, budget=budget)

    async def list(self, *, budget: Budget) -> list[CollectionDescription]:
        store = self._opened()
        return await self._threads.run("slow", lambda _: _named(store, store.list()), budget=budget)

    async def totals(self, budget: Budget) -> CollectionTotals:
        found = await self.list(budget=budget)
        thumbnails = [each.thumbnails for each in found if each.thumbnails is not None]
        return CollectionTotals(
            collections=len(found),
            items=sum(each.count for each in found),
            thumbnails=sum(each.count for each in thumbnails),
            thumbnail_bytes=sum(each.bytes for each in thumbnails),
        )

    async def describe(self, name: str, *, budget: Budget) -> CollectionDescription:
        store = self._opened()
        [info] = await self._threads.run("read", lambda _: _named(store, [store.get(name).describe()]), budget=budget)
        return info

    async def aliases(self, *, budget: Budget) -> Mapping[str, str]:
        """Name of the collection by alias."""
        store = self._opened()
        return await self._threads.run("slow", lambda _: store.aliases(), budget=budget)

    async def set_alias(
        self, name: str, collection: str, *, keep_as: str | None, if_sequence: int | None, budget: Budget
    ) -> bool:
        """Let a name mean another collection at once; whether the alias is new.

        Raises:
            CollectionNotFound, CollectionConflict, NotSupported
        """
        store = self._opened()
        return await self._threads.run(
            "slow",
            lambda _: store.set_alias(name, collection, keep_as=keep_as, if_sequence=if_sequence),
            budget=budget,
        )

    async def delete_alias(self, name: str, *, budget: Budget) -> None:
        """Raises AliasNotFound."""
        store = self._opened()
        await self._threads.run("slow", lambda _: store.delete_alias(name), budget=budget)

    async def drop(self, name: str, *, budget: Budget) -> None:
        store = self._opened()
        await self._threads.run("slow", lambda _: store.drop(name), budget=budget)

    async def look_after(self, call: Callable[[Backend, Stop], _T]) -> _T:
        """Run a long piece of upkeep in a thread: one at a time, in no other call's way, and without a deadline.

        It is told to stop when its caller goes, or the server ends.
        """
        store = self._opened()
        return await self._threads.run("upkeep", lambda stop: call(store, stop), budget=Budget())

    # Items

    async def upsert(
        self,
        collection: BackendCollection,
        rows: Sequence[NewRow],
        *,
        model: RunningModel | None,
        reranker: RunningModel | None,
        all_or_nothing: bool,
        budget: Budget,
    ) -> Upserted:
        """Store rows.

        reranker: whose position vectors of pictures are kept, in a collection that does.
        all_or_nothing: after a failure nothing is written, and the outcomes end with the first.
        A request whose caller goes, or whose deadline passes, is applied as a whole or not at all.

        Raises:
            SpaceMismatch: `model` does not make rows of this collection.
            StorageFull, ServiceOverloaded, DeadlinePassed
        """
        encoder = ItemEncoder(model, self._pool, budget, reranker, collection.spec.views)
        made = await row_vectors(
            rows,
            collection.spec,
            encoder,
            all_or_nothing=all_or_nothing,
            max_metadata_bytes=self._settings.max_metadata_bytes,
        )
        found = made.vectors
        outcomes: list[str | ClipworksError] = [
            each if isinstance(each, ClipworksError) else row.id for row, each in zip(rows, found, strict=False)
        ]
        good = [
            (index, StoreItem(rows[index].id, each, rows[index].metadata, *made.beside[index]))
            for index, each in enumerate(found)
            if not isinstance(each, ClipworksError)
        ]
        if not good or (all_or_nothing and len(good) < len(rows)):
            return Upserted(outcomes, [])
        items = [item for _, item in good]
        try:
            written = await self._threads.run(
                "write",
                lambda _: collection.upsert(items, all_or_nothing=all_or_nothing),
                budget=budget,
                stage="store",
            )
        except InvalidItem as error:
            place = good[error.index or 0][0]
            return Upserted([*outcomes[:place], error], [])
        for (place, _), outcome in zip(good, written, strict=True):
            if isinstance(outcome.error, ClipworksError):
                outcomes[place] = outcome.error
        return Upserted(outcomes, [index for index in made.weak if isinstance(outcomes[index], str)])

    async def delete(
        self,
        collection: BackendCollection,
        *,
        ids: Sequence[str] | None,
        filter: dict[str, Any] | None,
        caller: str,
        budget: Budget,
    ) -> int:
        """Remove rows by ids or by filter; how many there were.

        Raises:
            InvalidItem, FieldRefused, StorageFull
        """
        await check_filter(collection, filter)

        def remove(stop: Stop) -> int:
            return collection.delete(ids, filter=filter, stop=stop)

        with filter_refused():
            if filter is None:
                return await self._threads.run("write", remove, budget=budget, stage="store")
            return await self._threads.scan(remove, shares=shares_of(collection, caller), budget=budget, stage="store")

    async def item(
        self,
        collection: BackendCollection,
        id: str,
        *,
        with_vector: bool,
        with_thumbnail: bool = False,
        budget: Budget,
    ) -> Record:
        """Raises ItemNotFound, InvalidItem."""
        return await self._threads.run(
            "read",
            lambda _: collection.get(id, with_vector=with_vector, with_thumbnail=with_thumbnail),
            budget=budget,
            stage="store",
        )

    async def holds(self, collection: BackendCollection, id: str, *, budget: Budget) -> bool:
        """Whether there is an item of this id."""
        with suppress(ItemNotFound, InvalidItem):
            await self.item(collection, id, with_vector=False, budget=budget)
            return True
        return False

    async def thumbnail(
        self, collection: BackendCollection, id: str, *, known: Collection[str], caller: str, budget: Budget
    ) -> Thumbnail:
        """The picture that was stored with an item, else one made of the file of the media root that it names.

        known: tags of pictures that the client has.

        Raises:
            ItemNotFound, InvalidItem
            ThumbnailNotFound: there is neither.
            ServiceOverloaded, DeadlinePassed
        """
        record = await self.item(collection, id, with_vector=False, with_thumbnail=True, budget=budget)
        if (picture := record.thumbnail) is not None:
            tag = hashlib.sha256(picture).hexdigest()[:32]
            return Thumbnail(tag, None if tag in known else picture)
        if self._media is None:
            raise ThumbnailNotFound("this item has no thumbnail")
        return await self._media.thumbnail(record.metadata.get("path"), known=known, caller=caller, budget=budget)

    async def image_vectors(
        self, name: str, ids: Sequence[str], model: RunningModel, *, budget: Budget
    ) -> list[Any | ClipworksError]:
        """Unit vectors float32 [D] of items, or ItemNotFound; of what else the items are the collection knows nothing.

        Raises:
            CollectionNotFound, ServiceNotReady, DeadlinePassed
            SpaceMismatch: the collection does not hold images as the model's own image encoder makes them.
        """
        collection, view = await self._with_images_of(name, model, budget)
        found: list[Any] = await self._threads.run(
            "read", lambda _: collection.vector_of(ids), budget=budget, stage="store"
        )
        missing = ItemNotFound(f"collection {name} has no item with this id")
        return [missing if vector is None else _seen(vector, collection.spec, view) for vector in found]

    async def positions_reader(self, name: str, model: RunningModel, *, budget: Budget) -> PositionsReader:
        """What fetches the position vectors [rows, columns, width] of a picture by its id, as the reranker of `model`
        reads them; it raises ItemNotFound where there are none.

        Raises:
            CollectionNotFound, ServiceNotReady, DeadlinePassed
            InvalidQuery, StateConflict: as PinnedModels.reranker.
        """
        collection = await self.get(name, budget=budget)
        await self.models.reranker(collection.spec, model, budget)

        async def read(id: str) -> Positions:
            [found] = await self._threads.run(
                "read", lambda _: collection.positions_of([id]), budget=budget, stage="store"
            )
            if found is None:
                raise ItemNotFound(f"collection {name} has no item with this id, or no position vectors of it")
            return found

        return read

    async def some_vectors(
        self, name: str, most: int, model: RunningModel, *, caller: str, budget: Budget
    ) -> dict[str, Any]:
        """Unit vectors float32 [D] of `most` items by id, or of all: a sample that their ids alone decide, so that
        neither the order nor the neighbourhood in which they were stored does.

        Raises:
            CollectionNotFound, ServiceNotReady, ServiceOverloaded, DeadlinePassed
            SpaceMismatch: as `image_vectors`.
        """
        collection, view = await self._with_images_of(name, model, budget)
        found = await self._threads.scan(
            lambda stop: sampled_vectors(collection, most, stop),
            shares=shares_of(collection, caller),
            budget=budget,
            stage="store",
        )
        return {id: _seen(vector, collection.spec, view) for id, vector in found.items()}

    async def _with_images_of(
        self, name: str, model: RunningModel, budget: Budget
    ) -> tuple[BackendCollection, ViewName | None]:
        """The collection, and in which of its views, if it has such.

        Raises:
            SpaceMismatch: it does not hold images as the model's own image encoder makes them.
        """
        collection = await self.get(name, budget=budget)
        spec, of = collection.spec, f"model {model.reference}"
        view = view_in(spec, model.space)
        if spec.views is None or view is None:
            spec.require_space(model.space, of=of)
            spec.require_fingerprint("image", str(model.fingerprint.image), of=of)
        else:
            spec.views.of(view).require_fingerprint("image", str(model.fingerprint.image), of=of)
        return collection, view

    async def page(
        self,
        collection: BackendCollection,
        *,
        cursor: str | None,
        limit: int,
        with_vectors: bool,
        budget: Budget,
    ) -> Page:
        """Raises FieldRefused: a cursor that is not from here."""
        try:
            return await self._threads.run(
                "read",
                lambda stop: collection.items(cursor=cursor, limit=limit, with_vectors=with_vectors, stop=stop),
                budget=budget,
                stage="store",
            )
        except InvalidQuery as error:
            raise FieldRefused(error, "cursor") from None

    async def search(
        self,
        collection: BackendCollection,
        plans: Sequence[QueryPlan],
        parameters: SearchParameters,
        *,
        model: RunningModel | None,
        all_or_nothing: bool,
        on_unknown: OnUnknown,
        caller: str,
        budget: Budget,
    ) -> Searched:
        """Answer all queries: one run of the encoders, one search of a matrix; or one each, where they are arranged.

        all_or_nothing: nothing is searched after a failure. Stored items that a query names are no hits of it.

        Raises:
            FieldRefused: the filter, a facet, an id to tell the score of.
            NotSupported: the backend has no surveys.
            ServiceOverloaded, DeadlinePassed
        """
        search = Search(
            collection,
            parameters,
            threads=self._threads,
            caller=caller,
            budget=budget,
            largest_pool=self._settings.max_results,
        )
        encoder = ItemEncoder(model, self._pool, budget, views=collection.spec.views)
        return await search.answer(plans, encoder, all_or_nothing=all_or_nothing, on_unknown=on_unknown)

    def _opened(self) -> Backend:
        if self._store is None:
            raise ServiceNotReady("the collections are being opened")
        return self._store


def _seen(vector: Vector, spec: CollectionSpec, view: ViewName | None) -> Vector:
    return vector if spec.views is None or view is None else vector_in(vector, spec.views, view)


def _named(store: Backend, infos: Sequence[CollectionDescription]) -> list[CollectionDescription]:
    """Descriptions with the aliases of each collection, which it does not know itself."""
    aliases = store.aliases()
    return [
        replace(info, aliases=tuple(sorted(name for name, target in aliases.items() if target == info.name)))
        for info in infos
    ]


def kept_positions(model: RunningModel) -> RerankSpec:
    """What a collection keeps for the reranker of a model. Raises RoleNotFound: it has none."""
    found = model.artifact.graph_spec("reranker", "fp32")
    width = found[1].inputs[0].shape[-1] if found else None
    if not isinstance(width, int):
        raise RoleNotFound(f"{model.reference} has no reranker")
    return RerankSpec(model=model.reference, source=positions_source(model.artifact), width=width)


def _refused(error: ValidationError) -> FieldRefused:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = str(first["loc"][0])
    message = first["msg"].removeprefix("Value error, ")
    return FieldRefused(InvalidCollection(f"{field}: {message}"), field)
