"""/collections/{name}/items: upsert, read and delete the rows of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import (
    CollectionVectorItem,
    DeleteItemsRequest,
    DeleteItemsResponse,
    ItemPage,
    ItemQuery,
    PageQuery,
    StoredItem,
    UpsertRequest,
    UpsertResponse,
)
from model_store.errors import InputError
from service.collections.plans import GivenVector, NewRow
from service.engine.running import RunningModel
from service.engine.vectors import unknown_inputs
from service.http.context import while_connected
from service.http.errors import Refusal, located
from service.http.ingress import Received, off_loop, query_options, read_json, read_request
from service.http.inputs import encoded_bytes, item_of
from service.http.limits import IngressLimits
from service.http.openapi import answers, bodies, json_body, query_parameters
from service.http.options import Options
from service.http.respond import encoded, entries, json_response, model_headers, model_response
from service.routes.collection_sources import (
    check_page,
    check_source,
    check_space,
    row_model,
    source_param,
    to_encode,
)
from service.routes.collections import Name
from service.routes.common import budget_for, caller_of, check_count
from service.services import services_of
from service.tasks.pipeline import ImageItem
from service.timing import Budget

if TYPE_CHECKING:
    from service.retrieval import Record

OPTIONS: Options = {"id": "texts", "model": "text", "space": "text", "on_error": "text"}
PAGE_OPTIONS: Options = {"cursor": "text", "limit": "whole", "include": "list", "encoding_format": "text"}
ITEM_OPTIONS: Options = {"include": "list", "encoding_format": "text"}
router = APIRouter(prefix="/collections/{name}")
Id = Annotated[str, Path(description="id of the item; slashes are part of it")]
_READ_ERRORS = (400, 404, 413, 422, 429, 500, 503, 504)


@router.post(
    "/items",
    summary="Add or replace items",
    description=(
        "An item brings a text, an image or a vector. 200 says that it is on disk and that searches see it. A request "
        "is applied as a whole or not at all, except that with on_error `item` bad items are left out. In "
        "multipart/form-data each item without content takes the next file, and `id` fields stand for items."
    ),
    responses=answers(UpsertResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=bodies(UpsertRequest, OPTIONS, files="each is put into the next item that has no content"),
)
async def upsert_items(request: Request, name: Name) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    budget = budget_for(request)
    received = await read_request(
        request, UpsertRequest, services.limits, budget=budget, options=OPTIONS, inputs="items", place="fill"
    )
    body = received.body
    collection = await collections.get(name, budget=budget)
    check_space(collection.spec, body.space)
    rows = await off_loop(
        request,
        lambda: [_row(received, index, services.limits) for index in range(len(body.items))],
        encoded_bytes(body.items),
        services.limits,
        budget,
    )
    inputs = to_encode([row.source for row in rows])
    check_count(services, len(inputs))
    model = None
    if inputs or body.model:
        model = await row_model(services, collection.spec, body.model, inputs, budget)
        _check_towers(model, rows, body.items)
    has_pictures = any(isinstance(each, ImageItem) for each in inputs)
    reranker = await collections.models.positions_for(collection.spec, budget) if has_pictures else None
    upserted = await while_connected(
        request,
        collections.upsert(
            collection,
            rows,
            model=model,
            reranker=reranker,
            all_or_nothing=body.on_error == "fail",
            budget=budget,
        ),
    )
    outcomes = upserted.outcomes

    def place(index: int) -> str:
        """An id or metadata that is refused is the item's fault as a whole."""
        is_whole = getattr(outcomes[index], "code", None) == "invalid_item"
        return f"items[{index}]" if is_whole else source_param(body.items[index], f"items[{index}]")

    data = entries(
        outcomes,
        lambda id: {"id": id},
        on_error=body.on_error,
        place=place,
        telemetry=services.telemetry,
        weak=upserted.weak,
    )
    payload: dict[str, Any] = {"upserted": sum("id" in each for each in data), "data": data}
    if warnings := unknown_inputs([place(index) for index in upserted.weak]):
        payload["warnings"] = warnings
    return json_response(payload, headers=model_headers(model) if model else None)


@router.get(
    "/items",
    summary="List items, page by page",
    description="In the order of their ids. An item that is there all the time appears exactly once.",
    responses=answers(ItemPage, *_READ_ERRORS),
    openapi_extra=query_parameters(PageQuery, PAGE_OPTIONS),
)
async def list_items(request: Request, name: Name) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    query = query_options(request, PAGE_OPTIONS, PageQuery, services.limits)
    check_page(services, query.limit, param="limit", with_vectors="vector" in query.include)
    budget = budget_for(request)
    page = await collections.page(
        await collections.get(name, budget=budget),
        cursor=query.cursor,
        limit=query.limit,
        with_vectors="vector" in query.include,
        budget=budget,
    )
    return json_response({"data": [_shown(each, query) for each in page.records], "cursor": page.cursor})


@router.get(
    "/items/{id:path}",
    summary="Show an item",
    responses=answers(StoredItem, *_READ_ERRORS),
    openapi_extra=query_parameters(ItemQuery, ITEM_OPTIONS),
)
async def get_item(request: Request, name: Name, id: Id) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    query = query_options(request, ITEM_OPTIONS, ItemQuery, services.limits)
    budget = budget_for(request)
    try:
        record = await collections.item(
            await collections.get(name, budget=budget),
            id,
            with_vector="vector" in query.include,
            budget=budget,
        )
    except InputError as error:
        raise located(error, "id") from None
    return json_response(_shown(record, query))


@router.delete(
    "/items/{id:path}",
    status_code=204,
    summary="Delete an item",
    responses=answers(None, 404, 422, 429, 500, 503, 504, 507, status=204),
)
async def delete_item(request: Request, name: Name, id: Id) -> Response:
    budget = budget_for(request)
    if not await _delete(request, name, ids=[id], filter=None, param="id", budget=budget):
        raise Refusal(404, "item_not_found", f"collection {name} has no item with this id")
    return Response(status_code=204)


@router.post(
    "/items:delete",
    summary="Delete items by ids or by filter",
    description="Ids that are not there are no error. All or nothing.",
    responses=answers(DeleteItemsResponse, 400, 404, 408, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=json_body(DeleteItemsRequest),
)
async def delete_items(request: Request, name: Name) -> Response:
    services = services_of(request)
    services.require_collections()
    budget = budget_for(request)
    body = await read_json(request, DeleteItemsRequest, services.limits, budget=budget)
    count = await _delete(request, name, ids=body.ids, filter=body.filter, param="ids", budget=budget)
    return model_response(DeleteItemsResponse(deleted=count))


async def _delete(
    request: Request,
    name: str,
    *,
    ids: list[str] | None,
    filter: dict[str, Any] | None,
    param: str,
    budget: Budget,
) -> int:
    collections = services_of(request).require_collections()
    try:
        collection = await collections.get(name, budget=budget)
        work = collections.delete(
            collection,
            ids=ids,
            filter=filter,
            caller=caller_of(request),
            budget=budget,
        )
        return await (work if filter is None else while_connected(request, work))
    except InputError as error:
        raise located(error, param) from None


def _row(received: Received[UpsertRequest], index: int, limits: IngressLimits) -> NewRow:
    item = received.body.items[index]
    if index in received.files:
        source = ImageItem(received.files[index])
    elif isinstance(item, CollectionVectorItem):
        source = GivenVector(item.vector)
    else:
        source = item_of(item, limits)
    return NewRow(item.id, source, item.metadata)


def _check_towers(model: RunningModel, rows: Sequence[NewRow], items: Sequence[Any]) -> None:
    for index, row in enumerate(rows):
        check_source(model, row.source, source_param(items[index], f"items[{index}]"))


def _shown(record: Record, query: ItemQuery) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": record.id, "sequence": record.sequence}
    if "metadata" in query.include:
        shown["metadata"] = record.metadata
    if record.vector is not None:
        shown["vector"] = encoded(record.vector, query.encoding_format)
    return shown
