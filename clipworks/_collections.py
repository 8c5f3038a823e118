"""Requests to collections, as plans and steps that both clients carry out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from clipworks import errors
from clipworks._batches import Batch, BatchPart
from clipworks._calls import BatchLimits, CallPlan, unknown_fields
from clipworks._collections_inputs import (
    Item,
    is_late_query,
    item_sources,
    pack_items,
    pack_queries,
    query_sources,
    weight_of,
)
from clipworks._exchange import Request, Steps, check, exchange
from clipworks._inputs import chunks, several_images
from clipworks._json import json_bytes
from clipworks._queries import parse
from clipworks.results import Hit, Hits, SearchOptions, SearchResult, Stored, UpsertResult, vector_of
from clipworks.retry import RetryPolicy
from clipworks.schemas import (
    AcknowledgeLossResponse,
    AliasInfo,
    AliasList,
    CollectionInfo,
    CollectionList,
    CollectionLoss,
    CompactResponse,
    DeleteItemsResponse,
    DoctorResponse,
    Include,
    IndexKind,
    ItemError,
    ItemPage,
    OnError,
    OnUnknown,
    QueryResult,
    SearchResponse,
    SnapshotResponse,
    StoredItem,
    UpsertResponse,
)

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource

# Vectors need no encoder, so many fit one request.
_VECTORS_PER_REQUEST = 1000
_IDS_PER_REQUEST = 1000
_LOOKED_INTO = 16  # queries of a request that looks at many items for each
_PAIRS_PER_REQUEST, _RERANKED = 500, 100  # what servers match by default in one request, and for one query
PAGE = 500
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class CollectionCalls:
    """Makes plans and steps; holds what is the same for all collections of one client."""

    limits: BatchLimits
    policy: RetryPolicy
    chance: random.Random = field(default_factory=random.Random)

    def every(self) -> Steps[list[CollectionInfo]]:
        answer = yield from self._exchange("GET", "/collections")
        return parse(answer, CollectionList, "/collections").data

    def losses(self) -> Steps[list[CollectionLoss]]:
        answer = yield from self._exchange("GET", "/collections")
        return parse(answer, CollectionList, "/collections").losses

    def create(
        self,
        name: str,
        *,
        model: str | None,
        index: IndexKind | Mapping[str, Any] | None,
        metadata_schema: Mapping[str, str] | None,
        thumbnails: bool,
        rerank: str | None,
        views: Sequence[str] | None,
    ) -> Steps[CollectionInfo]:
        body: dict[str, Any] = {} if model is None else {"model": model}
        if index is not None:
            body["index"] = {"kind": index} if isinstance(index, str) else dict(index)
        if metadata_schema is not None:
            body["metadata_schema"] = dict(metadata_schema)
        if thumbnails:
            body["thumbnails"] = True
        if rerank is not None:
            body["rerank"] = rerank
        if views is not None:
            body["views"] = _several("views", views)
        path = _path(name)
        return parse((yield from self._exchange("PUT", path, body)), CollectionInfo, path)

    def info(self, name: str) -> Steps[CollectionInfo]:
        path = _path(name)
        return parse((yield from self._exchange("GET", path)), CollectionInfo, path)

    def drop(self, name: str) -> Steps[None]:
        yield from self._exchange("DELETE", _path(name))

    def aliases(self) -> Steps[dict[str, str]]:
        found = parse((yield from self._exchange("GET", "/aliases")), AliasList, "/aliases")
        return {each.name: each.collection for each in found.data}

    def set_alias(self, name: str, collection: str, *, keep_as: str | None, if_sequence: int | None) -> Steps[str]:
        path = _alias_path(name)
        body = {"collection": collection} | _given(keep_as=keep_as, if_sequence=if_sequence)
        return parse((yield from self._exchange("PUT", path, body)), AliasInfo, path).collection

    def delete_alias(self, name: str) -> Steps[None]:
        yield from self._exchange("DELETE", _alias_path(name))

    def doctor(self, name: str, *, queries: int, recall_at: int) -> Steps[DoctorResponse]:
        path = f"{_path(name)}/doctor"
        body = {"queries": queries, "recall_at": recall_at}
        return parse((yield from self._exchange("POST", path, body)), DoctorResponse, path)

    def compact(self, name: str) -> Steps[CompactResponse]:
        path = f"{_path(name)}/compact"
        return parse((yield from self._exchange("POST", path)), CompactResponse, path)

    def acknowledge_loss(self, name: str) -> Steps[int]:
        path = f"{_path(name)}/acknowledge-loss"
        return parse((yield from self._exchange("POST", path)), AcknowledgeLossResponse, path).acknowledged

    def snapshot(self, name: str) -> Steps[SnapshotResponse]:
        path = f"{_path(name)}/snapshot"
        return parse((yield from self._exchange("POST", path)), SnapshotResponse, path)

    def restore(self, name: str, snapshot: str) -> Steps[CollectionInfo]:
        path = f"{_path(name)}/restore"
        return parse((yield from self._exchange("POST", path, {"snapshot": snapshot})), CollectionInfo, path)

    def upsert(
        self, name: str, items: Iterable[Item | Mapping[str, Any]], *, model: str | None, space: str | None
    ) -> CallPlan[UpsertResult]:
        sources = item_sources(items)
        stored: set[int] = set()
        fields = _given(model=model, space=space) | {"on_error": "item"}
        batch = Batch[UpsertResponse](
            path=f"{_path(name)}/items",
            fields=fields,
            on_error="item",
            max_bytes=self.limits.image_bytes,
            policy=self.policy,
            chance=self.chance,
            read=_read_upserted,
            keep=lambda index, id: stored.add(index),
            pack=pack_items,
            weigh=weight_of,
        )

        def finish() -> UpsertResult:
            ids = [each.item.id for each in sources if each.index in stored]
            said = batch.said(f"collection {name}: ")
            return UpsertResult(upserted=len(ids), ids=ids, errors=dict(sorted(batch.failed.items())), warnings=said)

        only_vectors = all(each.item.vector is not None for each in sources)
        size = max(self.limits.items, _VECTORS_PER_REQUEST) if only_vectors else self.limits.items
        return CallPlan(label="upsert", total=len(sources), batch=batch, chunks=chunks(sources, size), finish=finish)

    def search(
        self,
        name: str,
        queries: Iterable[Any],
        *,
        top_k: int,
        offset: int,
        filter: Mapping[str, Any] | None,
        min_score: float | None,
        include: Sequence[Include],
        model: str | None,
        space: str | None,
        on_error: OnError,
        on_unknown: OnUnknown,
        more: SearchOptions,
    ) -> CallPlan[SearchResult]:
        sources = query_sources(queries)
        nothing = Hits(exact=True, hits=[])
        found = [nothing for _ in sources]
        fields = _given(model=model, space=space, min_score=min_score)
        fields |= {} if filter is None else {"filter": dict(filter)}
        fields |= {"top_k": top_k, "offset": offset, "include": _included(include)}
        fields |= {"encoding_format": "base64", "on_error": on_error} | unknown_fields(on_unknown)
        fields |= _search_options(more)
        batch = Batch[SearchResponse](
            path=f"{_path(name)}/search",
            fields=fields,
            on_error=on_error,
            max_bytes=self.limits.image_bytes,
            policy=self.policy,
            chance=self.chance,
            read=_read_found,
            keep=lambda index, each: found.__setitem__(index, _hits(each)),
            pack=pack_queries,
            weigh=weight_of,
            is_late=is_late_query,
        )

        def finish() -> SearchResult:
            return SearchResult(
                results=found, errors=dict(sorted(batch.failed.items())), warnings=batch.said(f"collection {name}: ")
            )

        most = (
            min(self.limits.items, _LOOKED_INTO)
            if fields.keys() & {"group_near", "pool", "facets"}
            else self.limits.items
        )
        if "rerank" in fields:
            top = fields["rerank"].get("top", _RERANKED)
            most = max(1, min(most, _PAIRS_PER_REQUEST // top)) if isinstance(top, int) and top > 0 else most
        parts = chunks(sources, most)
        return CallPlan(label="search", total=len(sources), batch=batch, chunks=parts, finish=finish)

    def get(self, name: str, id: str, *, vector: bool) -> Steps[Stored]:
        shown = "?include=metadata&include=vector&encoding_format=base64" if vector else ""
        path = f"{_path(name)}/items/{_id(id)}{shown}"
        return _stored(parse((yield from self._exchange("GET", path)), StoredItem, path), path)

    def thumbnail(self, name: str, id: str) -> Steps[bytes]:
        path = f"{_path(name)}/items/{_id(id)}/thumbnail"
        answer = check((yield from exchange(Request(method="GET", path=path), self.policy, self.chance)))
        if answer.headers.get("content-type") != "image/webp":
            raise errors.BadAnswer(f"{path}: no picture: is there an item of the id {f'{id}/thumbnail'!r}?")
        return answer.body

    def delete(self, name: str, *, ids: Iterable[str] | None, filter: Mapping[str, Any] | None) -> Steps[int]:
        """ids go out in several requests; a filter is one, and all or nothing."""
        if (ids is None) == (filter is None):
            raise ValueError("give either ids or filter")
        if isinstance(ids, str):
            raise TypeError("ids: expected several, got one string; write ids=[id]")
        if ids is None:
            bodies: list[dict[str, Any]] = [{"filter": dict(filter or {})}]
        else:
            bodies = [{"ids": list(part)} for part in chunks(list(dict.fromkeys(ids)), _IDS_PER_REQUEST)]
        path = f"{_path(name)}/items:delete"
        deleted = 0
        for body in bodies:
            answer = yield from self._exchange("POST", path, body)
            deleted += parse(answer, DeleteItemsResponse, path).deleted
        return deleted

    def page(
        self, name: str, *, cursor: str | None, limit: int, include: Sequence[Include]
    ) -> Steps[tuple[list[Stored], str | None]]:
        """Items in the order of their ids, and the cursor of the next page."""
        query = f"limit={limit}&encoding_format=base64"
        # An empty list has no form in a query: metadata comes then.
        query += "".join(f"&include={each}" for each in _included(include))
        query += f"&cursor={quote(cursor, safe='')}" if cursor is not None else ""
        path = f"{_path(name)}/items?{query}"
        found = parse((yield from self._exchange("GET", path)), ItemPage, path)
        return [_stored(each, path) for each in found.data], found.cursor

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Steps[bytes]:
        content = None if body is None else json_bytes(body)
        request = Request(method=method, path=path, content=content, headers=_JSON if content else {})
        return check((yield from exchange(request, self.policy, self.chance))).body


def image_items(
    images: Iterable[ImageSource], ids: Sequence[str] | None, metadata: Sequence[Mapping[str, Any]] | None
) -> list[Item]:
    """Items of pictures; an id is the path as it was given, with slashes, unless `ids` has it.

    Raises:
        TypeError: one picture where several are expected.
        ValueError: a picture without a path needs an id; lists of unequal length.
    """
    found = list(several_images(images))
    for name, values in (("ids", ids), ("metadata", metadata)):
        if values is not None and len(values) != len(found):
            raise ValueError(f"{name}: expected one for each of {len(found)} images, got {len(values)}")
    return [
        Item(
            id=ids[index] if ids is not None else _id_of_path(image, index),
            image=image,
            metadata={} if metadata is None else metadata[index],
        )
        for index, image in enumerate(found)
    ]


def _id_of_path(image: object, index: int) -> str:
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"images[{index}]: it has no path, so give it an id: ids=[...]")
    return os.fsdecode(image).replace(os.sep, "/")  # pyright: ignore[reportUnknownArgumentType]


def _read_upserted(body: bytes) -> BatchPart[UpsertResponse]:
    answer = UpsertResponse.model_validate_json(body, extra="ignore")
    entries = [(e.index, e.error if isinstance(e, ItemError) else e.id) for e in answer.data]
    return BatchPart(answer, None, entries, answer.warnings)


def _read_found(body: bytes) -> BatchPart[SearchResponse]:
    answer = SearchResponse.model_validate_json(body, extra="ignore")
    entries = [(e.index, e.error if isinstance(e, ItemError) else e) for e in answer.results]
    return BatchPart(answer, None, entries, answer.warnings)


def _hits(result: QueryResult) -> Hits:
    """Raises ValueError for a vector that is none."""
    hits = [
        Hit(
            id=each.id,
            score=each.score,
            metadata=each.metadata or {},
            vector=vector_of(each.vector),
            near=each.near or [],
            rerank_score=each.rerank_score,
            presence=each.presence,
        )
        for each in result.hits
    ]
    return Hits(
        exact=result.exact,
        hits=hits,
        weak=result.weak,
        pool=result.pool,
        reranked=result.reranked,
        match=result.match,
        facets=result.facets or {},
        histogram=result.histogram,
        scores=result.scores or [],
    )


def _search_options(more: SearchOptions) -> dict[str, Any]:
    """Fields of the request. Raises TypeError: an option that there is not, or one string for several."""
    if unknown := sorted(set(more) - SearchOptions.__annotations__.keys()):
        raise TypeError(f"search() has no option {unknown[0]!r}")
    fields = {name: value for name, value in more.items() if value is not None}
    for name in ("facets", "score_of"):
        if name in fields:
            fields[name] = _several(name, cast("Iterable[str]", fields[name]))
    for name, expected in (("rerank", "{'model': ..., 'top': ...}"), ("presence", "{'threshold': ...}")):
        if name in fields:
            if not isinstance(fields[name], Mapping):
                raise TypeError(f"{name}: expected {expected}, got {fields[name]!r:.80}")
            fields[name] = dict(cast("Mapping[str, Any]", fields[name]))
    return fields


def _several(name: str, values: Iterable[str]) -> list[str]:
    if isinstance(values, str):
        raise TypeError(f"{name}: expected several, got one string; write {name}=[...]")
    return list(values)


def _stored(item: StoredItem, path: str) -> Stored:
    try:
        vector = vector_of(item.vector)
    except ValueError as error:
        raise errors.BadAnswer(f"{path}: unexpected answer: {error}") from error
    return Stored(id=item.id, sequence=item.sequence, metadata=item.metadata or {}, vector=vector)


def _included(include: Sequence[Include]) -> list[Include]:
    if isinstance(include, str):
        raise TypeError("include: expected several, got one string; write include=['metadata']")
    return list(include)


def _path(name: str) -> str:
    return f"/collections/{quote(name, safe='')}"


def _alias_path(name: str) -> str:
    return f"/aliases/{quote(name, safe='')}"


def _id(id: str) -> str:
    """Dots too, so that an id such as a/../b reaches the server as it is.

    Raises:
        ValueError: no id has this form.
    """
    if not id:
        raise ValueError("an id has at least one character")
    try:
        return quote(id, safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise ValueError(f"an id holds a lone surrogate at {error.start}") from None


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
